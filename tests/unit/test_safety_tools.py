"""What stands around the safety core: its schema, simulating, replaying, kept stops, actions, golden runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.product import ROOT, VIGIL
from vigil_safety.core import initial, load_table, step
from vigil_safety.latch import LatchFile, Stop
from vigil_safety.monitor import Change, Monitor
from vigil_safety.replay import Gap, Recorded, replay
from vigil_safety.simulate import SimulationError, simulate
from vigil_safety.table import machine_source, machine_table
from vigil_sidecar.cli.supervisor import Supervisor
from vigil_sidecar.engine.golden import make_golden
from vigil_sidecar.settings import load as load_settings

EVENTS = sorted(machine_source()["events"])
GATEWAY = str(ROOT / "bin" / "vigil-gateway")


def schema(name: str) -> Any:
    return json.loads((ROOT / "safety" / f"{name}.schema.json").read_text())


def test_the_table_has_the_form_of_its_schema() -> None:
    table = yaml.safe_load((ROOT / "safety" / "machine.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(schema("machine"))
    jsonschema.validate(table, schema("machine"))
    table["states"]["NORMAL"]["colour"] = "green"
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        jsonschema.validate(table, schema("machine"))


LINES = st.lists(
    st.tuples(st.integers(0, 900), st.sampled_from(EVENTS), st.sampled_from(["sidecar", "model/é<&>", ""])), min_size=1, max_size=300
)


@given(LINES, st.integers(0, 5), st.integers(0, 500))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_cores_simulate_the_same(history: list[tuple[int, str, str]], rounds: int, backoff: int) -> None:
    """Byte for byte, over random histories of several subjects and parameters."""
    now, lines = 0, []
    for later, event, subject in history:
        now += later
        lines.append(json.dumps({"time_ms": now, "event": event, "subject": subject}))
        jsonschema.validate(json.loads(lines[-1]), schema("events"))
    text = ("\n".join(lines) + "\n").encode()
    parameters = {"rounds_max": rounds, "backoff_ms": backoff}
    arguments = [x for n, v in parameters.items() for x in ("--parameter", f"{n}={v}")]
    go = subprocess.run([GATEWAY, "simulate", *arguments], input=text, capture_output=True, check=True)
    python = "".join(line + "\n" for line in simulate(load_table(machine_source(), parameters), text.splitlines(True)))
    assert go.stdout == python.encode()
    assert len(go.stdout.splitlines()) == len(history)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not an event"), (b"[]", "not an event"), (b'{"time_ms": 1.5, "event": "ready"}', "not an event"),
        (b'{"time_ms": 1, "event": "ready", "colour": 1}', "not an event"), (b'{"event": "ready"}', "time_ms is missing"),
        (b'{"time_ms": 1, "event": "explode"}', "unknown event"), (b'{"time_ms": -1, "event": "ready"}', "time does not go back"),
        (b'{"time_ms": 1, "event": "ready", "subject": "' + b"x" * (64 << 10) + b'"}', "the limit is 65536 bytes"),
    ],
    ids=lambda v: v[:30].decode() if isinstance(v, bytes) else v,
)  # fmt: skip
def test_lines_that_are_no_events(line: bytes, why: str) -> None:
    """Both commands name the line and say why, and end with 1; what came before is answered."""
    text = b'# comment\n\n{"time_ms": 0, "event": "ready"}\n' + line + b"\n"
    for command in ([GATEWAY, "simulate"], [*VIGIL, "safety", "simulate"]):
        done = subprocess.run(command, input=text, capture_output=True)
        assert done.returncode == 1 and len(done.stdout.splitlines()) == 1
        assert b"line 4: " in done.stderr and why.encode() in done.stderr
    with pytest.raises(SimulationError, match="line 4"):
        list(simulate(machine_table(), text.splitlines(True)))


@pytest.mark.parametrize("parameter", ["rounds_max", "rounds_max=x", "unknown=1", "rounds_max=-1"])
def test_parameters_that_are_none(parameter: str) -> None:
    for command in ([GATEWAY, "simulate"], [*VIGIL, "safety", "simulate"]):
        done = subprocess.run([*command, "--parameter", parameter], input=b"", capture_output=True)
        assert done.returncode == 2 and done.stderr


def life(events: list[tuple[int, str]], parameters: dict[str, int] | None = None) -> list[Recorded]:
    """The changes that a machine with these events would record."""
    table, found = load_table(machine_source(), parameters), list[Recorded]()
    state = initial(table)
    for now, event in events:
        after, actions = step(table, state, event, now)
        if after.name != state.name:
            found.append(
                Recorded(
                    str(len(found)), "run", "m", state.name, after.name, event, actions, now, state.counters, table.parameters, table.digest
                )
            )
        state = after
    return found


STORY = [
    (0, "ready"), (10, "call_timeout"), (20, "call_timeout"), (30, "call_timeout"), (90, "ready"),
    (91, "probe_good"), (92, "probe_good"), (93, "probe_good"), (200, "fault"), (300, "ready"), (301, "probe_bad"),
]  # fmt: skip


def wrong(recorded: list[Recorded | Gap]) -> list[str]:
    return [reason for _, reason in replay(machine_source(), recorded) if reason]


def test_an_honest_history_replays() -> None:
    assert len(life(STORY)) == 7 and wrong([*life(STORY)]) == []
    gap: list[Recorded | Gap] = [*life(STORY)[:2], Gap("run"), *life(STORY)[4:]]
    assert wrong(gap) == []
    stopped = life([(0, "ready")])[0]._replace(before="SAFE_STOP", after="STARTING", event="reset", actions=("unlatch",))
    assert wrong([stopped]) == []


@pytest.mark.parametrize(
    ("at", "change", "why"),
    [
        (1, {"after": "NORMAL"}, "leads to DEGRADED"),
        (1, {"counters": {"timeouts": (10,)}}, "leads to NORMAL"),
        (1, {"event": "call_error"}, "leads to NORMAL"),
        (1, {"actions": ()}, "requests"),
        (2, {"now_ms": 60}, "leads to DEGRADED"),
        (2, {"counters": {}}, "counter rounds"),
        (2, {"counters": {"rounds": (30, 31)}}, "counter rounds"),
        (2, {"before": "NORMAL", "after": "NORMAL", "actions": ()}, "ended in DEGRADED"),
        (4, {"now_ms": 80}, "before the step before"),
        (4, {"counters": {"rounds": (30, 9999)}}, "counter rounds"),
        (0, {"before": "RECOVERING"}, "leads to RECOVERING"),
        (1, {"digest": "00"}, "made by the table"),
        (1, {"parameters": {"rounds_max": -1}}, "below 0"),
        (1, {"event": "explode"}, "knows no explode"),
        (3, None, "ended in RECOVERING"),
    ],
)
def test_a_changed_history_does_not(at: int, change: dict[str, Any] | None, why: str) -> None:
    """Whatever of a recorded change is altered, or left out, the step is not the one that the table gives."""
    recorded: list[Recorded | Gap] = [*life(STORY)]
    if change is None:
        del recorded[at]
    else:
        recorded[at] = recorded[at]._replace(**change)  # type: ignore[union-attr]
    assert any(why in reason for reason in wrong(recorded)), wrong(recorded)


def test_kept_stops(tmp_path: Path) -> None:
    path = tmp_path / "safety" / "x.json"
    latch = LatchFile(path)
    assert latch.stops == {} and not latch.unreadable
    latch.keep("model/a", Stop("why", 7))
    latch.keep("model/b", Stop("why not", 8))
    latch.drop("model/a")
    assert LatchFile(path).stops == {"model/b": Stop("why not", 8)}
    for broken in (b"", b"{", b"[]", b'{"version": 2, "stops": {}}', b'{"version": 1}', b'{"version": 1, "stops": {"a": {}}}', b"\xff",
                   b'{"version": 1, "stops": {"a": {"reason": "x", "since_us": 1e999}}}', b"[" * 100000,
                   b'{"version": 1, "stops": {"a": {"reason": "x", "since_us": 99999999999999999999}}}'):  # fmt: skip
        path.write_bytes(broken)
        assert "cannot be read" in LatchFile(path).unreadable
    if os.geteuid():
        path.chmod(0)
        assert LatchFile(path).unreadable


def test_actions_are_carried_out_and_their_failure_is_an_event() -> None:
    """In the order of the table; a stop that could not be kept stays a stop, and is told."""
    heard, done = list[Change](), list[str]()

    def fails(change: Change) -> None:
        done.append("start_probes")
        raise OSError("no room")

    table = load_table(machine_source(), {"backoff_ms": 0, "rounds_max": 1})
    monitor = Monitor(
        table, lambda: 0, lambda: 7, heard.append,
        {"start_probes": fails, "latch": lambda c: done.append("latch"), "refuse_calls": lambda c: done.append("refuse_calls")},
    )  # fmt: skip
    monitor.event("a", "ready")
    monitor.event("a", "fault", "gone")
    assert monitor.event("a", "ready") == "SAFE_STOP"
    assert [c.event for c in heard] == ["ready", "fault", "ready", "action_failed"]
    assert "start_probes: OSError: no room" in heard[-1].reason and done == ["start_probes", "latch", "refuse_calls"]
    kept = Monitor(table, lambda: 0, lambda: 7, heard.append, kept={"a": Stop("why", 3)})
    kept.add("a")
    assert kept.status("a") == ("SAFE_STOP", "why", 3)


def test_call_good_is_told_where_it_means_something() -> None:
    heard = list[Change]()
    monitor = Monitor(machine_table(), lambda: 0, lambda: 7, heard.append)
    monitor.event("a", "ready")
    for _ in range(5):
        monitor.event("a", "call_timeout")
        monitor.event("a", "call_timeout")
        monitor.call_good("a")
    assert monitor.status("a").state == "NORMAL"
    for _ in range(3):
        monitor.event("a", "call_timeout")
    assert monitor.status("a").state == "DEGRADED"


class Graph:
    """Stands for a session: gives what it is told to."""

    def __init__(self, *outputs: list[float]) -> None:
        self.outputs = [np.array(o, np.float32) for o in outputs]

    def run(self, feeds: Any, outputs: Any = None) -> Any:
        return [self.outputs.pop(0) if len(self.outputs) > 1 else self.outputs[0]]


def test_a_golden_run_notices_drift() -> None:
    golden = make_golden(Graph([1, 2]), {})
    assert golden.check(Graph([1, 2])) == golden.check(Graph([1.0005, 2])) == ""
    assert "drifted" in golden.check(Graph([1.1, 2])) and "drifted" in golden.check(Graph([1, float("nan")]))
    assert "shape" in golden.check(Graph([1, 2, 3]))
    never = make_golden(Graph([1, float("nan")], [3, float("inf")]), {})
    assert never.check(Graph([5, float("nan")])) == ""  # it was not finite when it was loaded either
    unsteady = make_golden(Graph([1, 2], [3, 4]), {})
    assert unsteady.check(Graph([5, 6])) == "" and "not finite" in unsteady.check(Graph([5, float("inf")]))


def test_only_silence_is_a_hang() -> None:
    """A gateway that refuses a health check, or ends its connection, is not taken for one that hangs; one that says nothing is."""
    loaded, _ = load_settings(None, {}, {"listen.host": "127.0.0.1"})
    supervisor = Supervisor(loaded, {}, None, None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        supervisor._heard_s = 0.0
        assert not supervisor._health(port) and supervisor._heard_s == 0.0  # connected by the kernel, never answered

        def hang_up() -> None:
            for _ in range(2):  # the one before waits still
                server.accept()[0].close()

        ending = threading.Thread(target=hang_up)
        ending.start()
        assert not supervisor._health(port) and supervisor._heard_s > 0.0
        ending.join(5)
    supervisor._heard_s = 0.0
    assert not supervisor._health(port) and supervisor._heard_s > 0.0
