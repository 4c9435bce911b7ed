"""The pure safety core: scenarios, exhaustive enumeration, refused tables."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.product import ROOT
from vigil_safety.core import MachineState, Table, TableError, initial, load_table, step
from vigil_safety.monitor import Change, Monitor
from vigil_safety.table import machine_source, machine_table, worst

SCENARIOS = sorted((ROOT / "safety" / "scenarios").glob("*.txt"))
GRAPH = ROOT / "safety" / "scenarios" / "graph.json"
SMALL = {"good_probes_min": 2, "rounds_max": 2, "rounds_window_ms": 1_000_000_000}


def parameters_of(text: str) -> dict[str, int]:
    for line in text.splitlines():
        if line.startswith("# parameters: "):
            return {k: int(v) for k, v in (p.split("=") for p in line.removeprefix("# parameters: ").split())}
    return {}


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda f: f.stem)
def test_scenario(file: Path) -> None:
    """Each readable transcript is what the core does."""
    text = file.read_text()
    table = load_table(machine_source(), parameters_of(text))
    state = initial(table)
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        left, right = line.split(" -> ")
        now, event = left.split()
        name, *actions = right.split()
        state, done = step(table, state, event, int(now))
        assert (state.name, list(done)) == (name, actions), line


def enumerate_graph(table: Table) -> dict[str, dict[str, str]]:
    """Every reachable state with its counters, by event: the same text form as the Go core's test."""

    def text(s: MachineState) -> str:
        counts = " ".join(f"{n}={len(v)}" for n, v in sorted(s.counters.items()) if v)
        return f"{s.name} {counts}".strip()

    start = initial(table)
    graph: dict[str, dict[str, str]] = {}
    todo = [start]
    while todo:
        state = todo.pop()
        if text(state) in graph:
            continue
        row = graph[text(state)] = {}
        for event in sorted(table.events):
            after, actions = step(table, state, event, 0)
            row[event] = f"{text(after)} / {' '.join(actions)}".strip()
            todo.append(after)
    return graph


def test_graph_is_the_committed_one() -> None:
    """All reachable states for small parameters are those in graph.json, which the Go core must reach too."""
    graph = enumerate_graph(load_table(machine_source(), SMALL))
    assert graph == json.loads(GRAPH.read_text()), "regenerate with tools/generate_graph.py after a deliberate change"
    assert len(graph) >= 10


def test_properties_of_the_graph() -> None:
    """Safe stop is left only by a reset, faults never lead to safer-looking states, and a way back exists."""
    table = load_table(machine_source(), SMALL)
    graph = enumerate_graph(table)

    def name(text: str) -> str:
        return text.split(" ")[0]

    for state, row in graph.items():
        for event, target in row.items():
            if name(state) == "SAFE_STOP" and event != "reset":
                assert name(target) == "SAFE_STOP"
            if event in ("fault", "probe_bad") and name(state) != "STARTING":
                assert table.ranks[name(target)] >= table.ranks[name(state)]
            if name(target) == "NORMAL" and name(state) == "RECOVERING":
                assert event == "probe_good"
            if name(state) == "DEGRADED":
                assert name(target) in ("DEGRADED", "RECOVERING")
        if name(state) != "SAFE_STOP":
            reached, edge = set(), [state]
            while edge:
                at = edge.pop()
                if at in reached:
                    continue
                reached.add(at)
                edge += [graph[at][e].split(" / ")[0].removesuffix(" /") for e in ("ready", "probe_good")]
            assert any(name(s) == "NORMAL" for s in reached), f"no way back from {state}"


@given(st.lists(st.tuples(st.sampled_from(["ready", "fault", "probe_good", "probe_bad", "reset"]), st.integers(0, 5000)), max_size=60))
def test_normal_needs_good_probes_in_a_row(history: list[tuple[str, int]]) -> None:
    """In any history Normal after Recovering follows good_probes_min good probes without a bad one between."""
    table = machine_table()
    state, now, good = initial(table), 0, 0
    for event, later in history:
        now += later
        before = state.name
        state, _ = step(table, state, event, now)
        if before != "RECOVERING" or event in ("fault", "probe_bad"):
            good = 0
        elif event == "probe_good":
            good += 1
        if before == "RECOVERING" and state.name == "NORMAL":
            assert good >= 3
            good = 0


def broken(change: Any) -> dict[str, Any]:
    source = copy.deepcopy(machine_source())
    change(source)
    return source


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["transitions"]["NORMAL"].pop("fault"),
        lambda s: s["transitions"]["NORMAL"]["fault"].pop(),
        lambda s: s["transitions"]["NORMAL"]["fault"].insert(0, {"to": "DEGRADED"}),
        lambda s: s["transitions"]["NORMAL"]["ready"][0].update(to="NOWHERE"),
        lambda s: s["transitions"]["NORMAL"]["ready"][0].update(count="nothing"),
        lambda s: s["transitions"]["NORMAL"].update(unknown=[{"to": "NORMAL"}]),
        lambda s: s["states"].update(ISLAND={"rank": 1}) or s["transitions"].update(ISLAND=s["transitions"]["NORMAL"]),
    ],
)
def test_broken_tables_do_not_load(change: Any) -> None:
    """A table with a hole, a nondeterminism, an unknown name or an unreachable state is refused."""
    with pytest.raises(TableError):
        load_table(broken(change))


def test_worst_state_wins() -> None:
    """The state of the whole is the one with the highest rank."""
    assert worst(["NORMAL", "DEGRADED", "RECOVERING"]) == "DEGRADED"
    assert worst(["NORMAL", "NORMAL"]) == "NORMAL"
    assert worst([]) == "STARTING"


def test_monitor_tells_changes_only() -> None:
    """Listeners hear of changes with their cause, not of events that change nothing."""
    heard: list[Change] = []
    monitor = Monitor(lambda: 0, lambda: 7, heard.append)
    monitor.event("a", "ready", "up")
    monitor.event("a", "ready", "again")
    monitor.event("a", "fault", "gone")
    assert [(c.subject, c.before, c.after, c.event, c.reason) for c in heard] == [
        ("a", "STARTING", "NORMAL", "ready", "up"),
        ("a", "NORMAL", "DEGRADED", "fault", "gone"),
    ]
    assert monitor.whole() == "DEGRADED"
    assert monitor.status("a").since_us == 7
