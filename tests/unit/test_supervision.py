"""The pure core of supervision, by tables and by random histories."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_safety.supervision import (
    DEACTIVATED,
    EXPIRED,
    FAILED,
    OK,
    STOPPED,
    Entity,
    EntityState,
    GlobalState,
    SupervisionError,
    activate,
    checkpoint,
    cycle,
    deactivate,
    global_status,
    load_supervision,
)  # fmt: skip


def entity(**more: Any) -> Entity:
    other = {"process": "gateway", "doc": "what the process asked for does not have"}
    return load_supervision({"cycle_ms": 10, "entities": {"e": more | {"process": "sidecar"}, "other": other}}, "sidecar")["e"]


ALIVE = {"reference_ms": 100, "min": 2, "max": 4, "failed_tolerance": 1}
LOADER = {
    "deadlines": [{"from": "load", "to": "loaded", "max_ms": 50}],
    "logical": {"start": ["look"], "next": {"look": ["look", "load"], "load": ["loaded"], "loaded": ["look"]}},
}


def run(e: Entity, steps: list[tuple[int, str]]) -> list[str]:
    """Statuses after each cycle; a step is a checkpoint by name, or a cycle by an empty one."""
    state, found = activate(EntityState(), 0), []
    for now, name in steps:
        if name:
            state = checkpoint(e, state, name, now)
        else:
            state = cycle(e, state, now)
            found.append(state.status)
    return found


@pytest.mark.parametrize(
    ("signs", "statuses"),
    [
        ([2, 3, 4], [OK, OK, OK]),
        ([1, 2, 2], [FAILED, OK, OK]),
        ([5, 2, 2], [FAILED, OK, OK]),
        ([1, 5, 2], [FAILED, EXPIRED, OK]),
        ([0, 0, 0, 3], [FAILED, EXPIRED, EXPIRED, OK]),
        ([2, 0, 2, 0, 0], [OK, FAILED, OK, FAILED, EXPIRED]),
    ],
)
def test_alive(signs: list[int], statuses: list[str]) -> None:
    """Too few and too many signs of life fail a reference time; one failed in a row is borne; a good one cures."""
    steps = [step for i, n in enumerate(signs) for step in [(100 * i + 50, "x")] * n + [(100 * (i + 1), "")]]
    assert run(entity(alive=ALIVE), steps) == statuses


def test_a_reference_time_is_judged_at_its_end() -> None:
    assert run(entity(alive=ALIVE), [(50, ""), (99, ""), (100, ""), (150, ""), (200, "")]) == [OK, OK, FAILED, FAILED, EXPIRED]


def test_deadline() -> None:
    """Late, and not there at all, are both noticed; what comes in time cures."""
    e = entity(**LOADER)
    assert run(e, [(0, "look"), (10, "load"), (60, ""), (60, "loaded"), (70, "")]) == [OK, OK]
    assert run(e, [(0, "look"), (10, "load"), (61, ""), (200, ""), (201, "loaded"), (202, "")]) == [EXPIRED, EXPIRED, OK]
    state = activate(EntityState(), 0)
    for now, name in ((0, "look"), (10, "load"), (100, "loaded")):
        state = checkpoint(e, state, name, now)
    assert state.status == EXPIRED and "took 90 ms, the limit is 50" in state.reason and state.expiries == 1


@pytest.mark.parametrize(
    "order", [["load"], ["look", "loaded"], ["look", "load", "look"], ["look", "load", "loaded", "load"], ["nonsense"]]
)
def test_wrong_order(order: list[str]) -> None:
    state = activate(EntityState(), 0)
    for name in order:
        assert state.status == OK
        state = checkpoint(entity(**LOADER), state, name, 1)
    assert state.status == EXPIRED and f"{order[-1]} came after" in state.reason


def test_nothing_is_asked_of_what_is_not_active() -> None:
    e = entity(alive=ALIVE)
    state = EntityState()
    assert cycle(e, checkpoint(e, state, "x", 5), 1000) == state
    state = deactivate(cycle(e, cycle(e, activate(state, 0), 100), 200))
    assert (state.status, state.expiries) == (DEACTIVATED, 1)
    assert activate(state, 300).status == OK and activate(activate(state, 300), 400).reference_ms == 300


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=200))
def test_alive_in_any_history(history: list[tuple[int, bool]]) -> None:
    """Expired only after two failed reference times in a row, never when signs of life came evenly."""
    e = entity(alive=ALIVE | {"max": 0})
    state, now, last_ok = activate(EntityState(), 0), 0, 0
    for later, sign in history:
        now += later
        if sign:
            state = checkpoint(e, state, "x", now)
        before, state = state, cycle(e, state, now)
        if state.reference_ms != before.reference_ms and before.indications >= 2:
            last_ok = now
            assert state.status == OK
        if state.status == EXPIRED:
            assert now - last_ok >= 200


def test_global_status() -> None:
    """The worst of all; Stopped after a time of Expired, for good."""

    def of(*statuses: str) -> list[EntityState]:
        return [EntityState(s) for s in statuses]

    now = GlobalState()
    assert global_status(now, of(OK, DEACTIVATED), 0, 100).status == OK
    assert global_status(now, of(OK, FAILED), 0, 100).status == FAILED
    now = global_status(now, of(FAILED, EXPIRED), 10, 100)
    assert now.status == EXPIRED and global_status(now, of(EXPIRED), 109, 100).status == EXPIRED
    assert global_status(now, of(OK), 60, 100).status == OK
    stopped = global_status(now, of(EXPIRED), 110, 100)
    assert stopped.status == STOPPED == global_status(stopped, of(OK), 999, 100).status


@pytest.mark.parametrize(
    "more",
    [
        {}, {"alive": ALIVE | {"reference_ms": 5}}, {"alive": ALIVE | {"min": 5}},
        {"logical": {"start": ["a"], "next": {}}}, {"logical": {"start": ["a"], "next": {"a": ["b"]}}},
        LOADER | {"deadlines": [{"from": "load", "to": "nowhere", "max_ms": 1}]},
    ],
)  # fmt: skip
def test_configurations_that_do_not_load(more: dict[str, Any]) -> None:
    with pytest.raises(SupervisionError, match=r"^e: "):
        entity(**more)
