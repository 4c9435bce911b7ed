"""What a campaign's trials mean, from the logs' records and from what callers saw. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vigil_safety.coverage import clopper_pearson
from vigil_safety.kinds import KINDS, Kind

__all__ = ["Called", "Result", "Seen", "Trial", "judge", "spread", "summarise"]

_FALLEN = ("DEGRADED", "SAFE_STOP")


class Seen(NamedTuple):
    """A record: when (CLOCK_MONOTONIC, ns), in which log, and what it says."""

    ns: int
    log: str
    name: str
    subject: str = ""
    to: str = ""
    text: str = ""


class Called(NamedTuple):
    """A call of the campaign's load: when it was sent and answered (CLOCK_MONOTONIC, ns), status, and quality ("" is the model's own)."""

    sent_ns: int
    came_ns: int
    code: str
    quality: str


class Trial(NamedTuple):
    """One injection. ``harmless``: with a magnitude that must trip nothing. ``problem``: why it could not be made."""

    kind: str
    model: str
    harmless: bool
    from_ns: int
    to_ns: int
    state: str
    calls: tuple[Called, ...]
    problem: str = ""


class Result(NamedTuple):
    """What a trial came to. Times are ms, -1 where there are none."""

    kind: str
    harmless: bool
    problem: str
    detected: bool
    mechanism: str
    detection_ms: float
    reaction_ms: float
    longest_wait_ms: float
    back_ms: float
    state: str
    callers: dict[str, int]
    records: int


def _matches(kind: Kind, model: str, s: Seen) -> str:
    """The expectation that a record fulfils; empty when it is none."""
    for wanted in kind.expect:
        if wanted.startswith("state:"):
            if s.name == "state_changed" and s.to in _FALLEN and s.subject == wanted[6:].replace("MODEL", model):
                return f"state of {s.subject}"
        elif s.name == wanted:
            return wanted
    return ""


def _alarm(s: Seen) -> bool:
    return s.name == "state_changed" and s.to in _FALLEN


def judge(trial: Trial, seen: Sequence[Seen]) -> Result:
    """Hold a trial against the records of its time, in order of time."""
    kind = KINDS[trial.kind]
    window = [s for s in seen if trial.from_ns <= s.ns <= trial.to_ns]
    begin = next((s.ns for s in window if s.name == "fault_injected" and s.text == kind.name), trial.from_ns)
    after = [s for s in window if s.ns >= begin and s.name != "fault_injected"]
    found = next(((s, m) for s in after if (m := _matches(kind, trial.model, s))), None)
    if found is None and (trial.harmless or not kind.expect):
        alarm = next((s for s in after if _alarm(s)), None)
        found = None if alarm is None else (alarm, f"state of {alarm.subject}")
    affected = [c for c in trial.calls if c.came_ns >= begin and (c.code != "OK" or c.quality)]
    first = min((c.came_ns for c in affected), default=None)
    detection = found[0].ns if found else None
    if detection is not None and first is not None and found is not None and found[1] == "unlogged":
        detection = min(detection, first)  # a log that cannot be written records it afterwards; the first answer withheld shows it
    fell = [s.ns for s in after if _alarm(s)]
    back = [s.ns for s in after if s.name == "state_changed" and s.to == "NORMAL" and fell and s.ns > fell[0]]
    return Result(
        trial.kind, trial.harmless, trial.problem, found is not None, found[1] if found else "",
        (detection - begin) / 1e6 if detection is not None else -1,
        max(0.0, (first - detection) / 1e6) if first is not None and detection is not None else -1,
        max(((c.came_ns - c.sent_ns) / 1e6 for c in trial.calls if c.came_ns >= begin), default=-1),
        (back[-1] - fell[0]) / 1e6 if back else -1, trial.state,
        dict(Counter(f"{c.code}{' ' + c.quality if c.quality else ''}" for c in trial.calls)),
        sum(1 for s in after if s.name != "checkpoint"),
    )  # fmt: skip


def spread(values: Iterable[float]) -> dict[str, float]:
    """Count, median, 99th percentile (nearest rank) and worst of those that are not -1."""
    ordered = sorted(v for v in values if v >= 0)
    if not ordered:
        return {"count": 0}
    ranks = {"median": 0.5, "p99": 0.99, "worst": 1.0}
    return {"count": len(ordered)} | {n: round(ordered[max(0, math.ceil(q * len(ordered)) - 1)], 3) for n, q in ranks.items()}


def _bounds(good: int, trials: int) -> dict[str, Any]:
    low, high = clopper_pearson(good, trials)
    return {"successes": good, "trials": trials, "low": round(low, 4), "high": round(high, 4)}


def _of_kind(kind: Kind, results: Sequence[Result]) -> dict[str, Any]:
    made = [r for r in results if not r.problem]
    real, harmless = [r for r in made if not r.harmless], [r for r in made if r.harmless]
    expected = [r for r in real if r.detected] if kind.expect else [r for r in real if not r.detected]
    callers: Counter[str] = Counter()
    for r in real:
        callers.update(r.callers)
    return {
        "kind": kind.name, "group": kind.group, "doc": kind.doc, "needs": kind.needs,
        "as_expected": _bounds(len(expected), len(real)), "must_be_detected": bool(kind.expect),
        "false_alarms_below": _bounds(sum(r.detected for r in harmless), len(harmless)) if kind.below is not None else None,
        "mechanisms": dict(Counter(r.mechanism for r in real if r.mechanism)),
        "detection_ms": spread(r.detection_ms for r in real if kind.expect), "reaction_ms": spread(r.reaction_ms for r in real),
        "longest_wait_ms": spread(r.longest_wait_ms for r in real), "back_to_normal_ms": spread(r.back_ms for r in real),
        "states_after": dict(Counter(r.state for r in real)), "callers": dict(callers), "records": sum(r.records for r in real),
        "not_made": sorted({r.problem for r in results if r.problem}),
    }  # fmt: skip


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """The campaign's table and its coverage: over the kinds that must be detected, each injection counting once."""
    kinds = [_of_kind(k, [r for r in results if r.kind == n]) for n, k in KINDS.items() if any(r.kind == n for r in results)]
    real = [r for r in results if not r.problem and not r.harmless and KINDS[r.kind].expect]
    groups = sorted({KINDS[r.kind].group for r in real})
    per_group = {g: [r for r in real if KINDS[r.kind].group == g] for g in groups}
    return {
        "kinds": kinds,
        "coverage": _bounds(sum(r.detected for r in real), len(real)),
        "coverage_by_group": {g: _bounds(sum(r.detected for r in rs), len(rs)) for g, rs in per_group.items()},
        "undetected": sorted({r.kind for r in real if not r.detected}),
        "false_alarms": sorted({r.kind for r in results if not r.problem and r.detected and (r.harmless or not KINDS[r.kind].expect)}),
        "latched": sorted({r.kind for r in results if r.state == "SAFE_STOP"}),
        "not_made": sorted({r.kind for r in results if r.problem}),
    }  # fmt: skip
