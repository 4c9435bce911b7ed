"""All that a table can do: every reachable state with its counters and their ages, for small parameters."""

from __future__ import annotations

import hashlib
import json
from types import MappingProxyType
from typing import Any

from vigil_safety.core import MachineState, Table, initial, load_table, step

__all__ = ["SMALL", "TICK", "Graph", "explore", "summary"]

SMALL = {
    "good_probes_min": 3, "lease_ms": 1, "timeouts_max": 2, "errors_max": 3, "errors_window_ms": 2, "rounds_max": 2, "rounds_window_ms": 7,
    "restarts_max": 2, "restarts_window_ms": 2, "backoff_ms": 1, "backoff_max_ms": 3,
}  # fmt: skip
"""Parameters so small that all states can be visited; times are in ticks of one millisecond."""
TICK = "tick"
"""A millisecond passes."""

Graph = dict[str, dict[str, tuple[str, tuple[str, ...]]]]
"""By state, by event: the state after it and the actions requested. A state is its name, then ``counter=ages`` or ``counter=count``."""


def _later(table: Table, state: MachineState, ms: int) -> MachineState:
    """The same state seen from ``ms`` later: times are kept relative to now."""
    counters = {}
    for name, times in state.counters.items():
        window = table.windows_ms.get(name)
        kept = times if window is None else tuple(t - ms for t in times if ms - t < window)
        if kept:
            counters[name] = kept
    return MachineState(state.name, MappingProxyType(counters))


def _text(table: Table, state: MachineState) -> str:
    parts = [state.name]
    for name, times in sorted(state.counters.items()):
        if times:
            parts.append(f"{name}=" + (",".join(str(-t) for t in times) if name in table.windows_ms else str(len(times))))
    return " ".join(parts)


def explore(table: Table) -> Graph:
    """Every state that events and ticks reach from the initial one."""
    graph: Graph = {}
    todo = [initial(table)]
    while todo:
        state = todo.pop()
        if _text(table, state) in graph:
            continue
        row = graph[_text(table, state)] = {}
        for event in sorted(table.events):
            after, actions = step(table, state, event, 0)
            after = _later(table, after, 0)
            row[event] = (_text(table, after), actions)
            todo.append(after)
        after = _later(table, state, 1)
        row[TICK] = (_text(table, after), ())
        todo.append(after)
    return graph


def summary(source: dict[str, Any]) -> dict[str, Any]:
    """How large the graph is, and a hash of all of it: equal in both cores."""
    graph = explore(load_table(source, SMALL))
    digest = hashlib.sha256()
    for state in sorted(graph):
        for event in sorted(graph[state]):
            after, actions = graph[state][event]
            digest.update(f"{state} | {event} | {after} | {' '.join(actions)}\n".encode())
    return {"parameters": SMALL, "states": len(graph), "steps": sum(map(len, graph.values())), "sha256": digest.hexdigest()}


if __name__ == "__main__":
    from vigil_safety.table import machine_source

    print(json.dumps(summary(machine_source()), indent=1))
