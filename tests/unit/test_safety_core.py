"""The pure safety core: scenarios, exhaustive enumeration, refused tables."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.product import ROOT
from vigil_safety.core import TableError, initial, load_table, step
from vigil_safety.explore import SMALL, TICK, Graph, explore, summary
from vigil_safety.monitor import Change, Monitor
from vigil_safety.table import machine_source, machine_table, worst

SCENARIOS = sorted((ROOT / "safety" / "scenarios").glob("*.txt"))
GRAPH = ROOT / "safety" / "scenarios" / "graph.json"


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


@pytest.fixture(scope="module")
def graph() -> Graph:
    return explore(load_table(machine_source(), SMALL))


def test_graph_is_the_committed_one() -> None:
    """All reachable states for small parameters are those of graph.json, which the Go core must reach too."""
    found = summary(machine_source())
    assert found == json.loads(GRAPH.read_text()), "run make generate after a deliberate change"
    assert found["states"] > 4000


def name(state: str) -> str:
    return state.split(" ")[0]


def counted(state: str) -> dict[str, list[int]]:
    """Ages of what is counted; for a counter without a window its count."""
    return {k: [int(x) for x in v.split(",")] for k, v in (p.split("=") for p in state.split(" ")[1:])}


def steps(graph: Graph) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(state, event, *target) for state, row in graph.items() for event, target in row.items()]


def test_safe_stop_is_left_only_by_a_reset(graph: Graph) -> None:
    for state, event, after, actions in steps(graph):
        if name(state) == "SAFE_STOP":
            assert (name(after), actions) == (("STARTING", ("unlatch",)) if event == "reset" else ("SAFE_STOP", ()))


def test_normal_comes_after_the_full_number_of_good_probes(graph: Graph) -> None:
    """Under one lease: whatever leaves or enters Recovering clears the count."""
    for state, event, after, actions in steps(graph):
        if name(after) == "NORMAL" != name(state):
            assert (name(state), event) in (("STARTING", "ready"), ("RECOVERING", "probe_good"))
            if event == "probe_good":
                assert counted(state)["good"] == [SMALL["good_probes_min"] - 1] and actions == ("clear_degraded",)
        if name(after) != "RECOVERING" or name(state) != "RECOVERING":
            assert "good" not in counted(after)


def test_faults_never_lead_to_a_less_safe_state(graph: Graph) -> None:
    table, severity = machine_table(), {e: v["severity"] for e, v in machine_source()["events"].items()} | {TICK: "info"}
    for state, event, after, _ in steps(graph):
        if severity[event] in ("error", "warning"):
            assert table.ranks[name(after)] >= table.ranks[name(state)], (state, event, after)
        if event in ("fault", "implausible", "action_failed"):
            assert name(after) in ("DEGRADED", "SAFE_STOP")
        if event in ("probe_bad", "lease_expired") and name(state) == "RECOVERING":
            assert name(after) in ("DEGRADED", "SAFE_STOP")


def test_every_step_requests_what_it_needs(graph: Graph) -> None:
    """Each degraded answer is marked from the step on, each stop kept and calls refused; a step that changes nothing requests nothing."""
    needed = {"DEGRADED": {"mark_degraded"}, "SAFE_STOP": {"latch", "refuse_calls"}, "RECOVERING": {"start_probes"}}
    for state, _, after, actions in steps(graph):
        if name(after) == name(state):
            assert actions == ()
        else:
            assert needed.get(name(after), set()) <= set(actions)


def test_degrading_and_recovering_are_bounded(graph: Graph) -> None:
    """Falls within the window are counted, each leaves Degraded later than the one before, and one too many stops."""
    for state, event, after, _ in steps(graph):
        rounds = counted(state).get("rounds", [])
        if name(after) == "DEGRADED" != name(state):
            assert counted(after)["rounds"] == [*rounds, 0] and len(rounds) < SMALL["rounds_max"]
        elif name(after) == "SAFE_STOP" != name(state) and event != "restarted":
            assert len(rounds) == SMALL["rounds_max"]
        elif event not in (TICK, "reset"):
            assert counted(after).get("rounds", []) == rounds
        if name(state) == "DEGRADED" and name(after) == "RECOVERING":
            assert event == "ready" and (not rounds or rounds[-1] >= min(2 ** (len(rounds) - 1), SMALL["backoff_max_ms"]))


def test_there_is_a_way_back_when_faults_end(graph: Graph) -> None:
    """From every state but Safe stop, by time, readiness and good probes alone."""
    back = {s for s in graph if name(s) == "NORMAL"}
    while True:
        more = {s for s, row in graph.items() if s not in back and any(row[e][0] in back for e in ("ready", "probe_good", TICK))}
        if not more:
            break
        back |= more
    assert {name(s) for s in graph if s not in back} == {"SAFE_STOP"}


EVENTS = sorted(machine_source()["events"])


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 400)), max_size=400))
@settings(max_examples=200)
def test_falls_in_any_history(history: list[tuple[str, int]]) -> None:
    """However long and odd: never more falls within the window than the bound, never Degraded for less than its back-off."""
    table = load_table(machine_source(), {"rounds_max": 4, "rounds_window_ms": 3000})
    state, now, falls = initial(table), 0, list[int]()
    for event, later in history:
        now += later
        before = state.name
        state, _ = step(table, state, event, now)
        if event == "reset" and before == "SAFE_STOP":
            falls.clear()
        if state.name == "DEGRADED" != before:
            falls.append(now)
            assert sum(now - t < 3000 for t in falls) <= 4
        if before == "DEGRADED" and state.name == "RECOVERING":
            recent = [t for t in falls if now - t < 3000]
            assert not recent or now - recent[-1] >= min(50 * 2 ** (len(recent) - 1), 2000)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5000)), max_size=60))
def test_normal_needs_good_probes_in_a_row(history: list[tuple[str, int]]) -> None:
    """In any history Normal after Recovering follows good_probes_min good probes without a bad one between."""
    table = machine_table()
    state, now, good = initial(table), 0, 0
    for event, later in history:
        now += later
        before = state.name
        state, _ = step(table, state, event, now)
        if before != "RECOVERING" or state.name not in ("RECOVERING", "NORMAL"):
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
        lambda s: s["transitions"].pop("NORMAL"),
        lambda s: s["transitions"].update(NOWHERE=s["transitions"]["NORMAL"]),
        lambda s: s["transitions"]["NORMAL"].pop("fault"),
        lambda s: s["transitions"]["NORMAL"]["fault"][1]["actions"].pop(),
        lambda s: s["transitions"]["NORMAL"]["fault"][1]["actions"].append("nothing"),
        lambda s: s["transitions"]["NORMAL"]["fault"][0]["guard"].update(below="rounds_max"),
        lambda s: s["transitions"]["NORMAL"]["fault"][0]["guard"].pop("above"),
        lambda s: s["transitions"]["NORMAL"]["fault"][0]["guard"].update(above="unknown"),
        lambda s: s["transitions"]["NORMAL"]["fault"][0]["guard"].update(counter="unknown"),
        lambda s: s["transitions"]["SAFE_STOP"]["ready"][0].update(to="STARTING"),
        lambda s: s["parameters"]["rounds_max"].update(default=-1),
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
    monitor = Monitor(machine_table(), lambda: 0, lambda: 7, heard.append)
    monitor.event("a", "ready", "up")
    monitor.event("a", "ready", "again")
    monitor.event("a", "fault", "gone")
    assert [(c.subject, c.before, c.after, c.event, c.reason) for c in heard] == [
        ("a", "STARTING", "NORMAL", "ready", "up"),
        ("a", "NORMAL", "DEGRADED", "fault", "gone"),
    ]
    assert monitor.whole() == "DEGRADED"
    assert monitor.status("a").since_us == 7
