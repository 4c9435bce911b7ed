"""How long faults take to be noticed, and callers to hear of it: measured on the running product, from its own log."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, infer_request
from tests.harness.product import Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import read_records

__all__ = ["detection_times"]

KILLS, STOPS, OUTPUTS = (int(os.environ.get(n, d)) for n, d in (("BENCH_KILLS", "15"), ("BENCH_STOPS", "5"), ("BENCH_OUTPUTS", "200")))
CALLERS = 4
X = np.array([[1, 2, 3, 4]], np.float32)


class Callers:
    """Calls without a pause, and when each refusal came."""

    def __init__(self, product: Product) -> None:
        self.refused_ns: list[int] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(product,)) for _ in range(CALLERS)]

    def _call(self, product: Product) -> None:
        send, request = Stub(product.channel()).raw(INFER), infer_request("m", {"x": X}).SerializeToString()
        while not self._over.is_set():
            try:
                send(request, timeout=20)
            except grpc.RpcError:
                self.refused_ns.append(time.time_ns())
                time.sleep(0.02)

    def __enter__(self) -> Callers:
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for t in self._threads:
            t.join()


def spread(values: list[float]) -> dict[str, Any]:
    ordered = sorted(values)
    return {
        "count": len(ordered), "median": round(statistics.median(ordered), 2), "p90": round(ordered[int(0.9 * (len(ordered) - 1))], 2),
        "worst": round(ordered[-1], 2),
    }  # fmt: skip


def times_of(folder: Path, event: int) -> list[int]:
    return [r.header.time_ns for r in read_records(folder) if r.header.event_id == event]


def serves(stub: Stub) -> bool:
    try:
        return stub.models()["m"].serving_version == 1
    except (grpc.RpcError, KeyError):
        return False


def injected(folder: Path, number: int, count: int, event: int, settings: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Signal the sidecar so often under load: ms until the gateway's log has the event, and from there to the first refusal."""
    product = Product(folder, {"supervisor.restart_count_max": 100000, "supervisor.backoff_ms": 0, "safety.rounds_max": 100000} | settings)
    product.accounted = False
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    at: list[int] = []
    with product:
        stub = Stub(product.channel())
        with Callers(product) as callers:
            for _ in range(count):
                wait_for(lambda: serves(stub), 30, "it serves", 0.05)
                time.sleep(0.4)
                before = product.pids()["sidecar_pid"]
                at.append(time.time_ns())
                os.kill(before, number)
                wait_for(lambda b=before: product.pids()["sidecar_pid"] != b, 60, "another sidecar", 0.05)
        assert product.stop() == 0
    noticed = times_of(product.data / "audit" / "gateway", event)
    first = [min(t for t in noticed if t >= a) for a in at]
    heard = [min(t for t in callers.refused_ns if t >= a) for a in at]
    return [(n - a) / 1e6 for n, a in zip(first, at, strict=True)], [max(0.0, (h - n) / 1e6) for h, n in zip(heard, first, strict=True)]


def implausible(folder: Path, count: int) -> tuple[int, list[float]]:
    """Outputs that left though they were not finite, and ms until the machine was Degraded, counted from the call."""
    settings = {"backoff_ms": 0, "rounds_max": 100000, "good_probes_min": 1, "probe_interval_s": 0}
    product = Product(folder, {"safety." + name: value for name, value in settings.items()})
    graphs.with_nan(product.models / "log" / "1" / "model.onnx")
    left, took = 0, list[float]()
    with product:
        stub = Stub(product.channel())
        for _ in range(count):
            start = time.perf_counter()
            try:
                stub.infer(infer_request("log", {"x": -X}))
                left += 1
            except grpc.RpcError as error:
                took.append((time.perf_counter() - start) * 1000)
                left += dict(error.trailing_metadata())["vigil-safety-state"] == "NORMAL"
            time.sleep(0.06)
    return left, took


def detection_times(table: Any, out: Path) -> None:
    """Rows of worst times against the budgets of the safety concept; each figure has its distribution."""
    dead, heard = injected(out / "dead", signal.SIGKILL, KILLS, events.LINK_LOST, {})
    table.add("a killed sidecar is noticed, worst ms", max(dead), 10.0, spread(dead), at_most=True)
    table.add("from there to the first refusal, worst ms", max(heard), 10.0, spread(heard), at_most=True)
    hung, heard = injected(out / "hung", signal.SIGSTOP, STOPS, events.HEARTBEAT_EXPIRED, {"supervisor.restart_after_ms": 200})
    table.add("a stopped sidecar is noticed, worst ms", max(hung), 100.0, spread(hung), at_most=True)
    table.add("from there to the first refusal, worst ms", max(heard), 10.0, spread(heard), at_most=True)
    left, took = implausible(out / "implausible", OUTPUTS)
    table.add("implausible outputs that left", float(left), 0.0, spread(took), at_most=True)
