"""Coverage with exact bounds, and what a trial's records and calls mean."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_safety import events_gen as events
from vigil_safety.coverage import clopper_pearson
from vigil_safety.kinds import KINDS
from vigil_sidecar.campaign.judge import Called, Seen, Trial, judge, spread, summarise
from vigil_sidecar.injection.injector import Injector

MS = 1_000_000


def test_known_bounds() -> None:
    """Values of Clopper and Pearson's interval as R's binom.test prints them, and the closed forms at both ends."""
    for successes, trials, low, high in ((7, 10, 0.3475471, 0.9332605), (1, 20, 0.001265089, 0.2487328), (50, 100, 0.3983211, 0.6016789)):
        assert clopper_pearson(successes, trials) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert clopper_pearson(30, 30)[0] == pytest.approx(0.025 ** (1 / 30), abs=1e-9)
    assert clopper_pearson(0, 30) == (0.0, pytest.approx(1 - 0.025 ** (1 / 30), abs=1e-9))
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    for bad in ((2, 1, 0.95), (-1, 3, 0.95), (1, 3, 1.0)):
        with pytest.raises(ValueError):
            clopper_pearson(*bad)


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_bounds_cover_what_they_promise(trials: int, data: Any) -> None:
    """For any true p, the chance that the interval misses it is at most 5 %: summed over all outcomes, not sampled."""
    p = data.draw(st.floats(0.001, 0.999))
    missed = 0.0
    for k in range(trials + 1):
        low, high = clopper_pearson(k, trials)
        if not low <= p <= high:
            missed += math.comb(trials, k) * p**k * (1 - p) ** (trials - k)
    assert missed <= 0.05 + 1e-9


def test_every_kind_expects_what_exists() -> None:
    names = set(events.NAMES.values())
    for kind in KINDS.values():
        assert all(w in names or w.split(":")[0] == "state" for w in kind.expect), kind
        assert isinstance(kind.magnitude, (int, float)) and (kind.below is None or 0 < kind.below < kind.magnitude), kind
        assert kind.needs in ("", "probes", "plausible", "user") and kind.by in ("gateway", "sidecar", "caller"), kind
    assert {k.group for k in KINDS.values()} == {
        "process", "model", "files", "link", "log", "clock", "supervision", "load", "configuration",
    }  # fmt: skip
    done_here = {n for n, k in KINDS.items() if k.by == "sidecar" and k.group in ("files", "configuration", "process")}
    assert all(hasattr(Injector, "_" + n) for n in done_here)


def trial(kind: str, calls: tuple[Called, ...] = (), harmless: bool = False) -> Trial:
    return Trial(kind, "m", harmless, 0, 10_000 * MS, "NORMAL", calls)


def seen(ms: float, name: str, **more: str) -> Seen:
    return Seen(int(ms * MS), "sidecar", name, **more)


BEGIN = seen(100, "fault_injected", text="model_nan")
FELL = seen(104, "state_changed", subject="model/m", to="DEGRADED")


def test_a_trial_is_measured_from_its_record() -> None:
    """Detection from the injection's record to the first expected one; reaction from there to the first answer that a caller felt."""
    calls = (
        Called(98 * MS, 99 * MS, "OK", ""), Called(99 * MS, 103 * MS, "OK", ""),
        Called(103 * MS, 106 * MS, "OK", "cache"), Called(110 * MS, 150 * MS, "UNAVAILABLE", ""),
    )  # fmt: skip
    records = [seen(50, "output_violation"), BEGIN, FELL, seen(400, "state_changed", subject="model/m", to="NORMAL")]
    r = judge(trial("model_nan", calls), records)
    assert (r.detected, r.mechanism, r.detection_ms, r.reaction_ms) == (True, "state of model/m", 4.0, 2.0)
    assert (r.longest_wait_ms, r.back_ms) == (40.0, 296.0)
    assert r.callers == {"OK": 2, "OK cache": 1, "UNAVAILABLE": 1}


@pytest.mark.parametrize(
    ("records", "detected"),
    [
        ([BEGIN], False),
        ([FELL._replace(ns=50 * MS), BEGIN], False),
        ([BEGIN, FELL._replace(subject="model/other")], False),
        ([BEGIN, FELL._replace(to="RECOVERING")], False),
        ([BEGIN, FELL._replace(to="SAFE_STOP")], True),
        ([BEGIN, seen(120, "version_refused")], False),
        ([BEGIN, FELL._replace(ns=10_001 * MS)], False),
    ],
)
def test_only_what_is_expected_and_in_time_counts(records: list[Seen], detected: bool) -> None:
    assert judge(trial("model_nan"), records).detected is detected


def test_harmless_ones_count_any_alarm() -> None:
    begin = seen(100, "fault_injected", text="model_slow")
    other = seen(120, "state_changed", subject="log/sidecar", to="DEGRADED")
    assert not judge(trial("model_slow", harmless=True), [begin]).detected
    alarmed = judge(trial("model_slow", harmless=True), [begin, other])
    found = summarise([alarmed, judge(trial("model_slow"), [begin, FELL]), judge(trial("model_nan"), [BEGIN])])
    assert (found["false_alarms"], found["undetected"]) == (["model_slow"], ["model_nan"])
    assert found["coverage"] == {"successes": 1, "trials": 2, "low": 0.0126, "high": 0.9874}
    assert judge(trial("load_slow_reader"), [other]).detected  # it must have no effect on anybody


def test_a_log_that_cannot_record_is_noticed_by_the_first_answer_withheld() -> None:
    begin = seen(100, "fault_injected", text="log_hung")
    calls = (Called(101 * MS, 900 * MS, "UNAVAILABLE", ""),)
    r = judge(trial("log_hung", calls), [begin, seen(2600, "unlogged")])
    assert (r.mechanism, r.detection_ms, r.reaction_ms) == ("unlogged", 800.0, 0.0)


def test_spread_is_by_nearest_rank() -> None:
    assert spread([]) == {"count": 0} == spread([-1, -1])
    assert spread([-1, *range(1, 101)]) == {"count": 100, "median": 50, "p99": 99, "worst": 100}
