"""Recorded steps held against the table: each is computed anew from what it was computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from vigil_safety.core import MachineState, Table, TableError, load_table, step

__all__ = ["Gap", "Recorded", "replay"]


class Gap(NamedTuple):
    """Steps of a run may be missing from here back: the log could not be written, or was pruned."""

    run: str


class Recorded(NamedTuple):
    """One recorded change. ``run`` tells machines of different processes apart, ``place`` is for messages."""

    place: str
    run: str
    subject: str
    before: str
    after: str
    event: str
    actions: tuple[str, ...]
    now_ms: int
    counters: Mapping[str, tuple[int, ...]]
    parameters: Mapping[str, int]
    digest: str


class _Machine(NamedTuple):
    state: MachineState
    now_ms: int


def _steps_only(table: Table) -> frozenset[str]:
    """Counters that grow only by steps that change the state: these leave nothing out of the record."""
    still = {
        row.count
        for (state, _), rows in table.rows.items()
        for i, row in enumerate(rows)
        if row.count is not None and any(r.to == state for r in rows[i:])
    }
    return frozenset(table.windows_ms) - still


def _within(table: Table, name: str, times: tuple[int, ...], now_ms: int) -> tuple[int, ...]:
    window = table.windows_ms.get(name)
    return times if window is None else tuple(t for t in times if now_ms - t < window)


def _wrong(table: Table, r: Recorded, last: _Machine | None) -> str:
    """Why a recorded step is not the one that the table gives; empty when it is."""
    if (r.before, r.event) not in table.rows:
        return f"the table knows no {r.event} in {r.before}"
    if last is not None:
        if last.state.name != r.before:
            return f"it starts in {r.before}, the step before ended in {last.state.name}"
        if r.now_ms < last.now_ms:
            return f"it comes {last.now_ms - r.now_ms} ms before the step before"
        for name in table.windows_ms:
            then, now = (_within(table, name, c.get(name, ()), r.now_ms) for c in (last.state.counters, r.counters))
            if not set(then) <= set(now) or (name in _steps_only(table) and then != now):
                return f"counter {name} held {list(then)} after the step before, and holds {list(now)}"
    if any(t > r.now_ms for times in r.counters.values() for t in times):
        return "something was counted after it"
    after, actions = step(table, MachineState(r.before, MappingProxyType(dict(r.counters))), r.event, r.now_ms)
    # SR-045
    if after.name != r.after:
        return f"{r.event} in {r.before} leads to {after.name}, {r.after} is recorded"
    if actions != r.actions:
        return f"{r.event} in {r.before} requests {list(actions)}, {list(r.actions)} are recorded"
    return ""


def replay(source: Mapping[str, Any], recorded: Iterable[Recorded | Gap]) -> Iterator[tuple[Recorded, str]]:
    """Each recorded step in order, and what is wrong with it: empty when it is the one that the table gives.

    A machine's first step of a run may start in the initial state, or in the latched
    one, whose stop outlived a restart; after a ``Gap`` in any. One whose subject went away
    and came again starts anew. ``source`` is the parsed ``safety/machine.yaml``.
    """
    tables: dict[tuple[tuple[str, int], ...], Table] = {}
    machines: dict[tuple[str, str], _Machine] = {}
    gaps = set[str]()
    for r in recorded:
        if isinstance(r, Gap):
            gaps.add(r.run)
            machines = {k: m for k, m in machines.items() if k[0] != r.run}
            continue
        if r.digest != source["digest"]:
            yield r, f"it was made by the table {r.digest[:12] or '(none)'}, this one is {source['digest'][:12]}"
            continue
        key = tuple(sorted(r.parameters.items()))
        try:
            table = tables.get(key) or tables.setdefault(key, load_table(source, r.parameters))
        except TableError as error:
            yield r, str(error)
            continue
        last = machines.get((r.run, r.subject))
        if r.before in (table.initial, table.latched) and not r.counters:
            last = None
        wrong = _wrong(table, r, last)
        if not wrong and last is None and r.run not in gaps and r.before not in (table.initial, table.latched):
            wrong = f"the first step of a run starts in {r.before}"
        yield r, wrong
        after, _ = step(table, MachineState(r.before, r.counters), r.event, r.now_ms) if (r.before, r.event) in table.rows else (None, ())
        machines[r.run, r.subject] = _Machine(after if after is not None and after.name == r.after else MachineState(r.after), r.now_ms)
