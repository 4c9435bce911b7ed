"""What keeps the sidecar busy for long is not called a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request, output
from tests.harness.product import Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import read_records

_SILENT = (events.HEARTBEAT_EXPIRED, events.HEARTBEAT_LATE)

_HOG = """
import os, sys, time
os.sched_setaffinity(0, {0})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    pass
"""
"""Leaves nothing of the first processor to whoever has no real-time priority."""


def _may_hog() -> bool:
    return subprocess.run([sys.executable, "-c", _HOG, "0"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif((os.cpu_count() or 1) < 2 or not _may_hog(), reason="needs two processors and the right to real-time priority")
def test_a_sidecar_that_gets_no_processor_does_not_hang(tmp_path: Path) -> None:
    """As where a container's share is used up: the kernel counts such a wait only when it ends."""
    graphs.scale(2.0, tmp_path / "models" / "scale" / "1" / "model.onnx")
    with Product(tmp_path) as product:
        stub = Stub(product.channel())
        wait_for(lambda: stub.infer(infer_request("scale", {"x": np.ones((1, 4), np.float32)})), what="an answer")
        pids = product.pids()
        for process, processor in (("sidecar_pid", 0), ("gateway_pid", 1)):
            for thread in os.listdir(f"/proc/{pids[process]}/task"):
                os.sched_setaffinity(int(thread), {processor})
        for _ in range(3):
            subprocess.run([sys.executable, "-c", _HOG, "0.35"], check=True)
            time.sleep(0.2)
    assert [r.payload for r in read_records(product.data / "audit" / "gateway") if r.header.event_id in _SILENT] == []


@pytest.mark.parametrize(("form", "mib", "calls", "at_once"), [("raw", 40, 9, 3), ("typed", 12, 3, 1)])
def test_large_messages_are_no_hang(tmp_path: Path, form: str, mib: int, calls: int, at_once: int) -> None:
    """Each is copied, hashed and encoded under the interpreter's lock, typed numbers one by one: heartbeats go on between."""
    width = mib << 18
    graphs.scale(2.0, tmp_path / "models" / "scale" / "1" / "model.onnx", width, rows=1)
    x = np.ones((1, width), np.float32)
    with Product(tmp_path) as product:
        request = infer_request("scale", {"x": x})
        if form == "typed":
            request.ClearField("raw_input_contents")
            request.inputs[0].contents.fp32_contents.extend(x.ravel().tolist())
        stubs = [Stub(product.channel()) for _ in range(at_once)]
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda i: stubs[i % at_once].infer(request, timeout_s=60), range(calls)))
    assert [r.payload for r in read_records(product.data / "audit" / "gateway") if r.header.event_id in _SILENT] == []


@pytest.mark.parametrize("hang_ms", [0, 75])
def test_calls_with_a_ladder_do_not_wait_for_a_silent_sidecar(tmp_path: Path, hang_ms: int) -> None:
    """Where no hang is looked for, its state stays as it was, and what stands in answers all the same."""
    graphs.scale(2.0, tmp_path / "models" / "m" / "1" / "model.onnx")
    (tmp_path / "models" / "m" / "vigil.toml").write_text("[ladder]\noutputs.y.fill = 7.5\n")
    asked, stop = list[tuple[float, str]](), threading.Event()
    with Product(tmp_path, {"safety.injection": True, "link.hang_ms": hang_ms, "supervisor.restart_after_ms": 0}) as product:
        request = infer_request("m", {"x": np.ones((1, 4), np.float32)})

        def ask() -> None:
            stub = Stub(product.channel())
            while not stop.is_set():
                answer = stub.infer(request)
                asked.append((float(output(answer)[0, 0]), answer.parameters["vigil_stand_in"].string_param))

        caller = threading.Thread(target=ask)
        caller.start()
        wait_for(lambda: (2.0, "") in asked, what="the model's own answer")
        product.vigil("safety", "inject", "sidecar_spin", "--model", "m", "--magnitude", "500")
        wait_for(lambda: (7.5, "constants") in asked, what="a stand-in")
        asked.clear()
        wait_for(lambda: (2.0, "") in asked, what="the model's own answer again")
        stop.set()
        caller.join()
    found = {r.header.event_id for r in read_records(product.data / "audit" / "gateway")} & set(_SILENT)
    assert found == ({events.HEARTBEAT_LATE} if hang_ms == 0 else {events.HEARTBEAT_EXPIRED})
