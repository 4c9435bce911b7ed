"""Pure supervision of parts: alive, deadline and logical, after AUTOSAR's Watchdog Manager (SWS_WatchdogManager).

No clock, thread or I/O: times come in. Immutable states; whoever keeps one orders its steps.
Unlike there, a local status leaves Expired when what expired is cured: the process is judged
by how long something stays expired (``global_status``), and recovery is the safety machine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = [
    "DEACTIVATED", "EXPIRED", "FAILED", "OK", "STOPPED", "Alive", "Deadline", "Entity", "EntityState", "GlobalState", "SupervisionError",
    "activate", "checkpoint", "cycle", "deactivate", "global_status", "load_supervision", "resume",
]  # fmt: skip

OK, FAILED, EXPIRED, STOPPED, DEACTIVATED = "OK", "FAILED", "EXPIRED", "STOPPED", "DEACTIVATED"
_RANK = {DEACTIVATED: 0, OK: 0, FAILED: 1, EXPIRED: 2}


class SupervisionError(ValueError):
    """The configuration is not complete; the text names the entity and what is wrong."""


@dataclass(frozen=True)
class Alive:
    """Between ``minimum`` and ``maximum`` (0: any) indications within ``reference_ms``; so many failed references in a row are borne."""

    reference_ms: int
    minimum: int
    maximum: int
    failed_tolerance: int


@dataclass(frozen=True)
class Deadline:
    """Between two checkpoints lie at most ``max_ms``."""

    begin: str
    end: str
    max_ms: int


@dataclass(frozen=True)
class Entity:
    """What one part has promised. ``successors`` is empty without logical supervision."""

    name: str
    alive: Alive | None
    deadlines: tuple[Deadline, ...]
    start: frozenset[str]
    successors: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class EntityState:
    """Local status and why; what alive supervision counts, the last checkpoint and its time, how often it expired."""

    status: str = DEACTIVATED
    reason: str = ""
    indications: int = 0
    reference_ms: int = 0
    failed_references: int = 0
    last: str = ""
    last_ms: int = 0
    expiries: int = 0


def load_supervision(raw: Mapping[str, Any], process: str) -> dict[str, Entity]:
    """A process's entities by name from the parsed ``safety/supervision.yaml``; raises ``SupervisionError``."""
    found: dict[str, Entity] = {}
    for name, e in ((n, e) for n, e in raw["entities"].items() if e["process"] == process):
        alive = Alive(**{_FIELDS.get(k, k): int(v) for k, v in e["alive"].items()}) if "alive" in e else None
        deadlines = tuple(Deadline(d["from"], d["to"], int(d["max_ms"])) for d in e.get("deadlines", ()))
        logical = e.get("logical", {"start": [], "next": {}})
        successors = {k: frozenset(v) for k, v in logical["next"].items()}
        if alive is not None and (alive.reference_ms < raw["cycle_ms"] or alive.minimum < 0 or 0 < alive.maximum < alive.minimum):
            raise SupervisionError(f"{name}: alive supervision over {alive.reference_ms} ms, {alive.minimum}..{alive.maximum}")
        unknown = {x for v in successors.values() for x in v} | set(logical["start"])
        if unknown - set(successors):
            raise SupervisionError(f"{name}: nothing may follow {sorted(unknown - set(successors))}")
        if successors and any({d.begin, d.end} - set(successors) for d in deadlines):
            raise SupervisionError(f"{name}: a deadline names a checkpoint that logical supervision does not know")
        if alive is None and not deadlines and not successors:
            raise SupervisionError(f"{name}: nothing is supervised")
        found[name] = Entity(name, alive, deadlines, frozenset(logical["start"]), successors)
    return found


_FIELDS = {"min": "minimum", "max": "maximum"}


def activate(state: EntityState, now_ms: int) -> EntityState:
    """Begin to supervise; an active one stays as it is."""
    return EntityState(OK, reference_ms=now_ms, last_ms=now_ms, expiries=state.expiries) if state.status == DEACTIVATED else state


def deactivate(state: EntityState) -> EntityState:
    """Stop supervising."""
    return EntityState(expiries=state.expiries)


def resume(state: EntityState, now_ms: int) -> EntityState:
    """Begin anew from the checkpoint passed last: what was not done while the process stood still says nothing."""
    if state.status == DEACTIVATED:
        return state
    return EntityState(OK, reference_ms=now_ms, last=state.last, last_ms=now_ms, expiries=state.expiries)


def _expired(state: EntityState, reason: str) -> EntityState:
    return replace(state, status=EXPIRED, reason=reason, expiries=state.expiries + (state.status != EXPIRED))


def checkpoint(entity: Entity, state: EntityState, name: str, now_ms: int) -> EntityState:
    """A part passes a checkpoint, which is an indication of life too. Nothing happens while deactivated."""
    if state.status == DEACTIVATED:
        return state
    after = replace(state, last=name, last_ms=now_ms, indications=state.indications + 1)
    if entity.successors:
        allowed = entity.successors.get(state.last, frozenset()) if state.last else entity.start
        # SR-022
        if name not in allowed:
            return _expired(after, f"{name} came after {state.last or 'nothing'}")
    for d in entity.deadlines:
        if state.last == d.begin and name == d.end and now_ms - state.last_ms > d.max_ms:
            return _expired(after, f"{d.begin} to {d.end} took {now_ms - state.last_ms} ms, the limit is {d.max_ms}")
    return after


def _late(entity: Entity, state: EntityState, now_ms: int) -> str:
    for d in entity.deadlines:
        # SR-021
        if state.last == d.begin and now_ms - state.last_ms > d.max_ms:
            return f"{d.end} has not come {now_ms - state.last_ms} ms after {d.begin}, the limit is {d.max_ms}"
    return ""


def cycle(entity: Entity, state: EntityState, now_ms: int) -> EntityState:
    """Judge an entity at the end of a supervision cycle. Missing indications count as none."""
    if state.status == DEACTIVATED:
        return state
    if late := _late(entity, state, now_ms):
        return replace(_expired(state, late), indications=0, reference_ms=now_ms)
    alive = entity.alive
    if alive is None or any(state.last == d.begin for d in entity.deadlines):  # under a deadline nothing else is asked
        return replace(state, status=OK, reason="", indications=0, reference_ms=now_ms)
    passed_ms = now_ms - state.reference_ms
    if passed_ms < alive.reference_ms:
        return state
    begun = replace(state, indications=0, reference_ms=now_ms)
    # SR-020
    if alive.minimum <= state.indications and (not alive.maximum or state.indications <= alive.maximum):
        return replace(begun, status=OK, reason="", failed_references=0)
    failed = state.failed_references + 1
    bounds = f"{alive.minimum}..{alive.maximum or 'any'}"
    reason = f"{state.indications} signs of life within {passed_ms} ms, expected {bounds}"
    if failed <= alive.failed_tolerance:
        return replace(begun, status=FAILED, reason=reason, failed_references=failed)
    return _expired(replace(begun, failed_references=failed), reason)


@dataclass(frozen=True)
class GlobalState:
    """Status of the process: Stopped, for good, once something was expired for too long."""

    status: str = OK
    expired_since_ms: int | None = None


def global_status(before: GlobalState, states: Iterable[EntityState], now_ms: int, stopped_after_ms: int) -> GlobalState:
    """The worst local status; Stopped after ``stopped_after_ms`` of Expired."""
    if before.status == STOPPED:
        return before
    worst = max((s.status for s in states), key=lambda s: _RANK[s], default=OK)
    if worst != EXPIRED:
        return GlobalState(FAILED if worst == FAILED else OK)
    since = before.expired_since_ms if before.expired_since_ms is not None else now_ms
    return GlobalState(STOPPED if now_ms - since >= stopped_after_ms else EXPIRED, since)
