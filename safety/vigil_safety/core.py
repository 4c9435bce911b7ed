"""The pure core: ``step(table, state, event, now)`` gives the next state and actions.

No clock, lock, I/O or callback. States are immutable, so the core may be
called from anywhere at the same time; whoever keeps a state orders its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["Guard", "MachineState", "Row", "Table", "TableError", "initial", "load_table", "step", "stopped"]


class TableError(ValueError):
    """The table has a hole, a nondeterminism, an unknown name, an unreachable state or a step without its actions."""


@dataclass(frozen=True)
class Guard:
    """Holds when the count of ``counter`` is ``kind`` (above, at_least, below) ``limit``.

    ``after_backoff`` holds when the last time counted lies at least ``limit`` ms back,
    doubled for each time counted before it, at most ``limit_max`` ms; or nothing is counted.
    """

    counter: str
    kind: str
    limit: int
    limit_max: int = 0

    def holds(self, times: tuple[int, ...], now_ms: int) -> bool:
        """Whether the times counted satisfy the guard."""
        if self.kind == "above":
            return len(times) > self.limit
        if self.kind == "at_least":
            return len(times) >= self.limit
        if self.kind == "below":
            return len(times) < self.limit
        return not times or now_ms - times[-1] >= min(self.limit << min(len(times) - 1, 32), self.limit_max)


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
    parameters: Mapping[str, int]
    digest: str
    latched: str


@dataclass(frozen=True)
class MachineState:
    """A state with its counters: each the times (ms) of what was counted."""

    name: str
    counters: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))


_KINDS = ("above", "at_least", "below")


def _guard(raw: Mapping[str, Any], parameters: Mapping[str, int], where: str) -> Guard:
    kinds = [k for k in (*_KINDS, "after_backoff") if k in raw]
    if len(kinds) != 1:
        raise TableError(f"{where}: a guard needs one of above, at_least, below, after_backoff")
    names = raw[kinds[0]] if kinds[0] == "after_backoff" else [raw[kinds[0]]]
    if len(names) not in (1, 2) or any(n not in parameters for n in names):
        raise TableError(f"{where}: unknown parameter in {names}")
    return Guard(raw["counter"], kinds[0], *(parameters[n] for n in names))


def _check(row: Row, raw: Mapping[str, Any], state: str, where: str) -> None:
    used = {row.count, row.guard.counter if row.guard else None, *row.clear} - {None}
    if row.to not in raw["states"] or not used <= set(raw["counters"]):
        raise TableError(f"{where}: unknown state or counter in {row}")
    if not set(row.actions) <= set(raw["actions"]):
        raise TableError(f"{where}: unknown action in {row.actions}")
    missing = set(raw["states"][row.to].get("on_entry", ())) - set(row.actions)
    if row.to != state and missing:
        raise TableError(f"{where}: {row.to} is entered without {sorted(missing)}")
    if raw["states"][state].get("latched") and row.to != state and where.partition("/")[2] != "reset":
        raise TableError(f"{where}: a latched state is left by something else than a reset")


def _rows(raw: Mapping[str, Any], values: Mapping[str, int]) -> dict[tuple[str, str], tuple[Row, ...]]:
    states, events = set(raw["states"]), set(raw["events"])
    if set(raw["transitions"]) != states:
        raise TableError(f"unhandled or unknown states {sorted(states ^ set(raw['transitions']))}")
    rows: dict[tuple[str, str], tuple[Row, ...]] = {}
    for state in states:
        by_event = raw["transitions"][state]
        if set(by_event) != events:
            raise TableError(f"{state}: unhandled or unknown events {sorted(events ^ set(by_event))}")
        for event, options in by_event.items():
            where = f"{state}/{event}"
            parsed = tuple(
                Row(
                    o["to"], o.get("count"), _guard(o["guard"], values, where) if "guard" in o else None,
                    tuple(o.get("clear", ())), tuple(o.get("actions", ())),
                )
                for o in options
            )  # fmt: skip
            if not parsed or parsed[-1].guard is not None:
                raise TableError(f"{where}: the last row must have no guard")
            if any(r.guard is None for r in parsed[:-1]):
                raise TableError(f"{where}: a row behind one without a guard is never reached")
            for row in parsed:
                _check(row, raw, state, where)
            rows[state, event] = parsed
    return rows


def load_table(raw: Mapping[str, Any], parameters: Mapping[str, int] | None = None) -> Table:
    """A table from the parsed form of ``safety/machine.yaml``; ``parameters`` replace defaults.

    Raises:
        TableError: the table is not complete, deterministic and connected.
    """
    values = {n: int(p["default"]) for n, p in raw["parameters"].items()} | dict(parameters or {})
    if unknown := set(values) - set(raw["parameters"]):
        raise TableError(f"unknown parameters {sorted(unknown)}")
    if negative := [n for n, v in values.items() if v < 0]:
        raise TableError(f"parameters below 0: {sorted(negative)}")
    rows = _rows(raw, values)
    reached, edge = {raw["initial"]}, [raw["initial"]]
    while edge:
        state = edge.pop()
        for event in raw["events"]:
            for r in rows[state, event]:
                if r.to not in reached:
                    reached.add(r.to)
                    edge.append(r.to)
    # SR-031
    if reached != set(raw["states"]):
        raise TableError(f"unreachable states {sorted(set(raw['states']) - reached)}")
    windows = {n: values[c["window"]] for n, c in raw["counters"].items() if c.get("window")}
    ranks = {n: int(s["rank"]) for n, s in raw["states"].items()}
    [latched] = [n for n, s in raw["states"].items() if s.get("latched")]
    return Table(raw["initial"], ranks, frozenset(raw["events"]), rows, windows, values, raw.get("digest", ""), latched)


def initial(table: Table) -> MachineState:
    """The state of a machine that has seen nothing."""
    return MachineState(table.initial)


def stopped(table: Table) -> MachineState:
    """The state of a machine whose stop was kept over a restart."""
    return MachineState(table.latched)


def step(table: Table, state: MachineState, event: str, now_ms: int) -> tuple[MachineState, tuple[str, ...]]:
    """Next state and requested actions.

    ``now_ms`` is monotonic. What lies outside its window is not counted. Rows are
    tried in order; a row that counts does so before its guard is asked, and the
    count stays even when the guard fails.

    Raises:
        KeyError: the event is not in the table (a caller's mistake).
    """
    counters = {}
    for name, times in state.counters.items():
        window = table.windows_ms.get(name)
        kept = times if window is None else tuple(t for t in times if now_ms - t < window)
        if kept:
            counters[name] = kept
    # SR-034
    for row in table.rows[state.name, event]:
        if row.count is not None:
            counters[row.count] = (*counters.get(row.count, ()), now_ms)
        # SR-033
        if row.guard is not None and not row.guard.holds(counters.get(row.guard.counter, ()), now_ms):
            continue
        for name in row.clear:
            counters.pop(name, None)
        return MachineState(row.to, MappingProxyType(counters)), row.actions
    raise AssertionError("a loaded table always has a row without a guard")
