"""How long faults take to be noticed, and callers to hear of it: measured on the running product, from its own log."""

from __future__ import annotations

import math
import os
import signal
import statistics
import threading
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from vigil.safety.v1 import safety_pb2 as safety

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, infer_request
from tests.harness.product import Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import read_records

__all__ = ["detection_times"]

KILLS, HANGS, OUTPUTS, LOGS = (
    int(os.environ.get("BENCH_" + n, d)) for n, d in (("KILLS", "15"), ("HANGS", "20"), ("OUTPUTS", "200"), ("LOGS", "3"))
)
"""How often each is injected. For the figures that are published: 100 kills, 1,000 of the others."""
CALLERS = 4
INJECT, HISTORY = ("/vigil.safety.v1.SafetyService/" + n for n in ("Inject", "History"))
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
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 2), "worst": round(ordered[-1], 2),
    }  # fmt: skip


def times_of(folder: Path, event: int) -> list[int]:
    return [r.header.time_ns for r in read_records(folder) if r.header.event_id == event]


def serves(stub: Stub) -> bool:
    try:
        return stub.models()["m"].serving_version == 1
    except (grpc.RpcError, KeyError):
        return False


def product_with(folder: Path, settings: dict[str, Any]) -> Product:
    many = {"supervisor.restart_count_max": 1000000, "supervisor.backoff_ms": 0, "safety.rounds_max": 1000000, "safety.good_probes_min": 1}
    product = Product(folder, many | {"safety.backoff_ms": 0, "audit.segment_bytes": 1 << 20} | settings)
    product.accounted = False
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    return product


def from_to(at: list[int], noticed: list[int], refused: list[int]) -> tuple[list[float], list[float]]:
    """Milliseconds from each injection until it was noticed, and from there until the first refusal (0: it came before)."""
    first = [noticed[bisect_left(noticed, a)] for a in at]
    heard = [refused[bisect_left(refused, a)] for a in at]
    return [(n - a) / 1e6 for n, a in zip(first, at, strict=True)], [max(0.0, (h - n) / 1e6) for h, n in zip(heard, first, strict=True)]


def killed(folder: Path, count: int) -> tuple[list[float], list[float]]:
    """SIGKILL of the sidecar under load: ms until the gateway's log has the lost link, and from there to the first refusal."""
    at: list[int] = []
    with product_with(folder, {}) as product:
        stub = Stub(product.channel())
        with Callers(product) as callers:
            for _ in range(count):
                wait_for(lambda: serves(stub), 30, "it serves", 0.05)
                time.sleep(0.4)
                before = product.pids()["sidecar_pid"]
                at.append(time.time_ns())
                os.kill(before, signal.SIGKILL)
                wait_for(lambda b=before: product.pids()["sidecar_pid"] != b, 60, "another sidecar", 0.05)
        assert product.stop() == 0
    return from_to(at, times_of(product.data / "audit" / "gateway", events.LINK_LOST), sorted(callers.refused_ns))


def hung(folder: Path, kind: str, count: int) -> tuple[list[float], list[float]]:
    """A process that stands still, or keeps the interpreter lock, for 200 ms, under load: as above. Nothing is restarted."""
    with product_with(folder, {"safety.injection": True}) as product:
        stub = Stub(product.channel())
        with Callers(product) as callers:
            for _ in range(count):
                wait_for(lambda: answers(stub), 30, "it serves", 0.02)
                stub.unary(INJECT, safety.InjectRequest(kind=kind, magnitude=200), safety.InjectResponse)
                time.sleep(0.35)
            wait_for(lambda: serves(stub), 30, "it serves")
        assert product.stop() == 0
    logs = product.data / "audit"
    at = times_of(logs / ("gateway" if kind == "sidecar_stop" else "sidecar"), events.FAULT_INJECTED)
    assert len(at) == count
    return from_to(at, times_of(logs / "gateway", events.HEARTBEAT_EXPIRED), sorted(callers.refused_ns))


def answers(stub: Stub) -> bool:
    """Whether the whole is Normal and the model answers."""
    try:
        stub.infer(infer_request("m", {"x": X}))
        return bool(stub.state().state == safety.STATE_NORMAL)
    except grpc.RpcError:
        return False


def silent_log(folder: Path, count: int) -> list[float]:
    """Writes of the sidecar's log that do not return: ms until it, or the sidecar, is Degraded."""
    took: list[float] = []
    with product_with(folder, {"safety.injection": True}) as product:
        stub = Stub(product.channel())
        with Callers(product):
            for _ in range(count):
                wait_for(lambda: answers(stub), 30, "it serves", 0.02)
                since_us = time.time_ns() // 1000
                stub.unary(INJECT, safety.InjectRequest(kind="log_hung"), safety.InjectResponse)

                def degraded(since_us: int = since_us) -> list[int]:
                    history, _ = stub.unary(HISTORY, safety.HistoryRequest(limit=20), safety.HistoryResponse)
                    return [
                        t.time_us for t in history.transitions
                        if t.subject in ("log/sidecar", "sidecar") and t.to == safety.STATE_DEGRADED and t.time_us > since_us
                    ]  # fmt: skip

                took.append(wait_for(degraded, 30, "it is noticed", 0.05)[0] * 1000)
        assert product.stop() == 0
    at = times_of(product.data / "audit" / "sidecar", events.FAULT_INJECTED)
    assert len(at) == count
    return [(n - a) / 1e6 for n, a in zip(took, at, strict=True)]


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


_LEFT, _WIDTH, _ROW = 330, 900, 26


def picture(rows: list[tuple[str, list[float], float]]) -> str:
    """SVG: each injection a stroke on a logarithmic axis from 0.1 ms to 10 s, the worst and the budget marked."""

    def x(ms: float) -> float:
        return _LEFT + (math.log10(max(ms, 0.1)) + 1) / 5 * (_WIDTH - _LEFT - 20)

    height = _ROW * len(rows) + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">']
    parts.append(f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>')
    for decade in range(-1, 5):
        parts.append(f'<path d="M{x(10.0**decade):.1f} 6V{height - 30}" stroke="#ccc"/>')
        parts.append(f'<text x="{x(10.0**decade):.1f}" y="{height - 12}" text-anchor="middle">{10.0**decade:g} ms</text>')
    for i, (what, values, budget) in enumerate(rows):
        y = _ROW * i + 22
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{what} ({len(values)})</text>')
        strokes = "".join(f"M{p:.1f} {y - 6}v12" for p in sorted({round(x(v), 1) for v in values}))
        parts.append(f'<path d="{strokes}" stroke="#3b6ea8" stroke-opacity="0.5"/>')
        parts.append(f'<circle cx="{x(max(values)):.1f}" cy="{y}" r="4" fill="none" stroke="#a12b23" stroke-width="2"/>')
        if budget:
            parts.append(f'<path d="M{x(budget):.1f} {y - 10}v20" stroke="#222" stroke-width="2" stroke-dasharray="3 2"/>')
    return "\n".join([*parts, "</svg>\n"])


def detection_times(table: Any, out: Path) -> None:
    """Rows of worst times against the budgets of the safety concept; each figure has its distribution, all are in times.svg."""
    rows: list[tuple[str, list[float], float]] = []

    def add(what: str, values: list[float], budget: float) -> None:
        rows.append((what, values, budget))
        table.add(what + ", worst ms", max(values), budget, spread(values), at_most=True)

    dead, heard = killed(out / "dead", KILLS)
    add("a killed sidecar is noticed", dead, 10.0)
    add("then to the first refusal", heard, 10.0)
    for kind, what in (("sidecar_stop", "stopped"), ("sidecar_spin", "spinning"), ("sidecar_native_hang", "native code")):
        noticed, heard = hung(out / kind, kind, HANGS)
        add(f"a sidecar that hangs ({what}) is noticed", noticed, 100.0)
        add("then to the first refusal", heard, 10.0)
    add("a log that hangs is noticed", silent_log(out / "log", LOGS), 1000.0)
    left, took = implausible(out / "implausible", OUTPUTS)
    table.add("implausible outputs that left", float(left), 0.0, spread(took), at_most=True)
    rows.append(("a call with implausible outputs is refused", took, 0.0))
    (out / "times.svg").write_text(picture(rows))
