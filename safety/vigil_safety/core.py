"""The pure core: ``step(table, state, event, now)`` gives the next state and actions.

No clock, lock, I/O or callback. States are immutable, so the core may be
called from anywhere at the same time; whoever keeps a state orders its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["Guard", "MachineState", "Row", "Table", "TableError", "initial", "load_table", "step"]


class TableError(ValueError):
    """The table has a hole, a nondeterminism, an unknown name or an unreachable state."""


@dataclass(frozen=True)
class Guard:
    """Holds when ``counter`` is above, or at least, ``limit``."""

    counter: str
    limit: int
    strict: bool

    def holds(self, value: int) -> bool:
        """Whether the counter's value satisfies the guard."""
        return value > self.limit if self.strict else value >= self.limit


@dataclass(frozen=True)
class Row:
    """One way out of a state for an event."""

    to: str
    count: str | None = None
    guard: Guard | None = None
    clear: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A checked specification. ``windows_ms`` holds the window of each windowed counter."""

    initial: str
    ranks: Mapping[str, int]
    events: frozenset[str]
    rows: Mapping[tuple[str, str], tuple[Row, ...]]
    windows_ms: Mapping[str, int]
    digest: str


@dataclass(frozen=True)
class MachineState:
    """A state with its counters: each the times (ms) of what was counted."""

    name: str
    counters: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))


def _row(raw: Mapping[str, Any], parameters: Mapping[str, int]) -> Row:
    guard = None
    if "guard" in raw:
        g = raw["guard"]
        strict = "above" in g
        guard = Guard(g["counter"], parameters[g["above" if strict else "at_least"]], strict)
    return Row(raw["to"], raw.get("count"), guard, tuple(raw.get("clear", ())), tuple(raw.get("actions", ())))


def load_table(raw: Mapping[str, Any], parameters: Mapping[str, int] | None = None) -> Table:
    """A table from the parsed form of ``safety/machine.yaml``.

    Raises:
        TableError: the table is not complete, deterministic and connected.
    """
    values = {n: int(p["default"]) for n, p in raw["parameters"].items()} | dict(parameters or {})
    states, events, counters = set(raw["states"]), set(raw["events"]), raw["counters"]
    rows: dict[tuple[str, str], tuple[Row, ...]] = {}
    for state in states:
        by_event = raw["transitions"].get(state, {})
        if set(by_event) != events:
            raise TableError(f"{state}: unhandled or unknown events {sorted(events ^ set(by_event))}")
        for event, options in by_event.items():
            parsed = tuple(_row(o, values) for o in options)
            if not parsed or parsed[-1].guard is not None:
                raise TableError(f"{state}/{event}: the last row must have no guard")
            if any(r.guard is None for r in parsed[:-1]):
                raise TableError(f"{state}/{event}: a row behind one without a guard is never reached")
            for r in parsed:
                used = {r.count, r.guard.counter if r.guard else None, *r.clear} - {None}
                if r.to not in states or not used <= set(counters):
                    raise TableError(f"{state}/{event}: unknown state or counter in {r}")
            rows[state, event] = parsed
    reached, edge = {raw["initial"]}, [raw["initial"]]
    while edge:
        state = edge.pop()
        for event in events:
            for r in rows[state, event]:
                if r.to not in reached:
                    reached.add(r.to)
                    edge.append(r.to)
    if reached != states:
        raise TableError(f"unreachable states {sorted(states - reached)}")
    windows = {n: values[c["window"]] for n, c in counters.items() if c.get("window")}
    ranks = {n: int(s["rank"]) for n, s in raw["states"].items()}
    return Table(raw["initial"], ranks, frozenset(events), rows, windows, raw.get("digest", ""))


def initial(table: Table) -> MachineState:
    """The state of a machine that has seen nothing."""
    return MachineState(table.initial)


def _counted(table: Table, times: tuple[int, ...], name: str, now_ms: int) -> tuple[int, ...]:
    window = table.windows_ms.get(name)
    kept = times if window is None else tuple(t for t in times if now_ms - t < window)
    return (*kept, now_ms)


def step(table: Table, state: MachineState, event: str, now_ms: int) -> tuple[MachineState, tuple[str, ...]]:
    """Next state and requested actions.

    ``now_ms`` is monotonic. Rows are tried in order; a row that counts does so
    before its guard is asked, and the count stays even when the guard fails.

    Raises:
        KeyError: the event is not in the table (a caller's mistake).
    """
    counters = dict(state.counters)
    for row in table.rows[state.name, event]:
        if row.count is not None:
            counters[row.count] = _counted(table, counters.get(row.count, ()), row.count, now_ms)
        if row.guard is not None and not row.guard.holds(len(counters.get(row.guard.counter, ()))):
            continue
        for name in row.clear:
            counters.pop(name, None)
        return MachineState(row.to, MappingProxyType(counters)), row.actions
    raise AssertionError("a loaded table always has a row without a guard")
