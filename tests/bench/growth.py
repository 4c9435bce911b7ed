"""What costs more when there is more of it, and what one user does to another: rows of ``make bench``."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import shared_memory
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from inference import grpc_service_pb2 as oip

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, infer_request
from tests.harness.otlp import receiver
from tests.harness.product import Product, wait_for

if TYPE_CHECKING:
    from tests.bench.run import Table

__all__ = ["growth"]

SERVICE = INFER.rsplit("/", 1)[0] + "/"
MODELS, CONNECTIONS, TENSORS = 500, 10_000, (1, 100, 200)
FLOATS = 5 * 1000 * 1000 // 4
ROUNDS = 3
SCRAPE_S = 1.0
Load = Callable[..., dict[str, Any]]
X = np.array([[1, 2, 3, 4]], np.float32)
SMALL, DOUBLE = infer_request("scale", {"x": X}).SerializeToString(), (X * 2).tobytes()


def _shown(**runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: {k: [round(r[k], 1) for r in found] for k in ("per_second", "p50_us", "p99_us")} for name, found in runs.items()}


def _in_turn(*loads: Callable[[], dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The loads' results, in alternating order."""
    found: list[list[dict[str, Any]]] = [[] for _ in loads]
    for turn in range(ROUNDS):
        for i in sorted(range(len(loads)), reverse=turn % 2 == 1):
            found[i].append(loads[i]())
    return found


def _ratio(of: list[dict[str, Any]], to: list[dict[str, Any]], key: str = "per_second") -> float:
    return statistics.median(a[key] / b[key] for a, b in zip(of, to, strict=True))


def _product(folder: Path, settings: dict[str, Any] | None = None) -> Product:
    p = Product(folder, settings or {}, start_timeout_s=300)
    graphs.scale(2.0, p.models / "scale" / "1" / "model.onnx")
    return p


@contextmanager
def _held(tool: Path, port: int, number: int) -> Iterator[None]:
    """So many connections without a call; all must still be open at the end."""
    command = [str(tool), "hold", f"127.0.0.1:{port}", str(number)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline().strip() == str(number)
        yield
        process.stdin.close()
        left = process.stdout.read().strip()
        assert left == str(number), f"{left} of {number} connections are left"
    finally:
        process.kill()
        process.wait()


def connections(table: Table, folder: Path, tool: Path, load: Load) -> None:
    """Time of a call beside 10,000 open connections, to that beside none."""
    with _product(folder) as p:
        few, many = [], []
        for _ in range(ROUNDS):
            few.append(load(p.ports["grpc"], SMALL, 32, DOUBLE))
            with _held(tool, p.ports["grpc"], CONNECTIONS):
                many.append(load(p.ports["grpc"], SMALL, 32, DOUBLE))
        what = f"time of a call beside {CONNECTIONS:,} open connections / beside none"
        table.add(what, _ratio(few, many), 1.3, _shown(none=few, many=many), at_most=True)


def models(table: Table, folder: Path, load: Load) -> None:
    """Time of a call of one model among 500, to that of one alone; each product runs by itself."""
    alone, among = _product(folder / "one"), _product(folder / "many")
    for i in range(MODELS - 1):
        graphs.scale(float(i), among.models / f"m{i}" / "1" / "model.onnx")

    def run(p: Product, number: int) -> dict[str, Any]:
        with p:
            stub = Stub(p.channel())
            wait_for(lambda: sum(m.serving_version > 0 for m in stub.models().values()) == number, 300, "all models", every_s=0.5)
            return load(p.ports["grpc"], SMALL, 32, DOUBLE)

    one, many = _in_turn(lambda: run(alone, 1), lambda: run(among, MODELS))
    table.add(f"time of a call, {MODELS} models / 1", _ratio(one, many), 1.3, _shown(one=one, many=many), at_most=True)


def tensors(table: Table, folder: Path, load: Load) -> None:
    """What the second hundred tensors of a call add, to what the first hundred do."""
    with Product(folder) as p:
        for n in TENSORS:
            graphs.many(n, p.models / f"many{n}" / "1" / "model.onnx")
        stub = Stub(p.channel())
        wait_for(lambda: sum(m.serving_version > 0 for m in stub.models().values()) == len(TENSORS), 60, "all models")
        requests = [infer_request(f"many{n}", {f"x{i}": X for i in range(n)}).SerializeToString() for n in TENSORS]
        found = _in_turn(*[lambda r=r: load(p.ports["grpc"], r, 1, DOUBLE) for r in requests])
        per_call = [[1e6 / r["per_second"] for r in runs] for runs in found]
        ratio = statistics.median((c - b) / (b - a) * 99 / 100 for a, b, c in zip(*per_call, strict=True))
        shown = {f"{n} tensors, us a call": [round(v) for v in values] for n, values in zip(TENSORS, per_call, strict=True)}
        table.add("a tensor's time between 100 and 200 in a call / below 100", ratio, 1.3, shown, at_most=True)


@contextmanager
def _scraping(ports: Sequence[int]) -> Iterator[None]:
    """The metrics of these ports are read each second; fails when that failed, or never happened."""
    stop, done, failed = threading.Event(), [0], list[Exception]()

    def scrape() -> None:
        try:
            while not stop.wait(SCRAPE_S):
                for port in ports:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                        answer.read()
                done[0] += 1
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed and done[0], (failed, done)


def observed(table: Table, folder: Path, load: Load) -> None:
    """Traces of 1 call in 100 to a receiver that counts them and metrics read each second, against neither; and all rules twice."""
    with receiver() as (spans, port), _product(folder / "plain") as plain:
        seen = _product(folder / "seen", {"trace.otlp_endpoint": f"127.0.0.1:{port}", "trace.sample_ratio": "0.01"})
        checked = _product(folder / "checked", {"link.revalidate": "all"})
        with seen, checked:

            def scraped() -> dict[str, Any]:
                with _scraping([seen.ports["metrics"], seen.ports["sidecar_metrics"]]):
                    return load(seen.ports["grpc"], SMALL, 32, DOUBLE)

            without, with_both, every = _in_turn(
                lambda: load(plain.ports["grpc"], SMALL, 32, DOUBLE), scraped, lambda: load(checked.ports["grpc"], SMALL, 32, DOUBLE)
            )
        assert spans.spans, "no span was received"
        shown = _shown(without=without, with_both=with_both, every=every) | {"spans received": len(spans.spans)}
        table.add("traces (1 in 100) and metrics read each second / neither, 32 in flight", _ratio(with_both, without), 0.95, shown)
        table.add("rules again in the sidecar on every call / on 1 in 64, 32 in flight", _ratio(every, without), None, shown)


def _shared(stub: Stub, name: str, memory: shared_memory.SharedMemory) -> None:
    request = oip.SystemSharedMemoryRegisterRequest(name=name, key="/" + memory.name.lstrip("/"), byte_size=4 * FLOATS)
    stub.unary(SERVICE + "SystemSharedMemoryRegister", request, oip.SystemSharedMemoryRegisterResponse)


def _passes_ms() -> dict[str, float]:
    """What each pass over 5 MB costs by itself, ms, the least of several."""
    x = np.random.default_rng(1).random(FLOATS, np.float32)
    raw = x.tobytes()
    passes: dict[str, Callable[[], Any]] = {
        "SHA-256": lambda: hashlib.sha256(raw).digest(), "finite": lambda: np.isfinite(x.sum()),
        "CRC-32C": lambda: google_crc32c.value(raw), "copy": lambda: bytearray(raw),
    }  # fmt: skip
    out = {}
    for name, one in passes.items():
        times = []
        for _ in range(20):
            start = time.perf_counter()
            one()
            times.append(time.perf_counter() - start)
        out[name] = round(min(times) * 1e3, 2)
    return out


def _large(p: Product, memories: list[shared_memory.SharedMemory], load: Load) -> list[list[dict[str, Any]]]:
    """Loads with 5 MB in and out, inline and by shared memory."""
    stub = Stub(p.channel())
    x = np.ones((1, FLOATS), np.float32)
    inline = infer_request("scale", {"x": x})
    for name, memory in zip(("in", "out"), memories, strict=True):
        _shared(stub, name, memory)
    first, last = (m.buf for m in memories)
    assert first is not None and last is not None
    first[: x.nbytes] = x.tobytes()
    shared = oip.ModelInferRequest(model_name="scale", inputs=[inline.inputs[0]])
    wanted = shared.outputs.add(name="y")
    for parameters, region in ((shared.inputs[0].parameters, "in"), (wanted.parameters, "out")):
        parameters["shared_memory_region"].string_param = region
        parameters["shared_memory_byte_size"].int64_param = x.nbytes
    marker = stub.models()["scale"].serving_digest.encode()
    found = _in_turn(*[lambda r=r: load(p.ports["grpc"], r.SerializeToString(), 1, marker) for r in (inline, shared)])
    assert bytes(last[x.nbytes - 4 : x.nbytes]) == np.float32(2).tobytes()
    return found


def large_tensors(table: Table, folder: Path, load: Load) -> None:
    """5 MB in and out by shared memory against inline, with everything on, and without the passes over whole tensors."""
    for what, settings, options in (
        ("everything on", {}, ""),
        ("no log, no finite scan", {"audit.enabled": "false"}, "finite_inputs = false\nfinite_outputs = false\n"),
    ):
        p = Product(folder / what.split()[0], settings)
        graphs.scale(2.0, p.models / "scale" / "1" / "model.onnx", width=FLOATS)
        (p.models / "scale" / "vigil.toml").write_text(options)
        memories = [shared_memory.SharedMemory(create=True, size=4 * FLOATS) for _ in range(2)]
        try:
            with p:
                inline, shared = _large(p, memories, load)
        finally:
            for memory in memories:
                memory.close()
                memory.unlink()
        shown = _shown(inline=inline, shared=shared) | {"a pass, ms": _passes_ms()}
        table.add(f"5 MB in and out, shared memory / inline, {what}", _ratio(shared, inline), 4.0 if options else None, shown)


BURN = """
import sys
import numpy as np, onnxruntime as ort
o = ort.SessionOptions(); o.add_session_config_entry("session.intra_op.allow_spinning", "0")
s = ort.InferenceSession(sys.argv[1], o); x = np.ones((4, 3, 112, 112), np.float32)
s.run(None, {"x": x}); print("burning", flush=True)
while True:
    s.run(None, {"x": x})
"""


def slow_beside_fast(table: Table, folder: Path, tool: Path, load: Load, heavy: Callable[[Path], None]) -> None:
    """p99 of a fast model while a slow one of the same server is saturated, to that while another process computes the same."""
    p = _product(folder)
    file = p.models / "gflop" / "1" / "model.onnx"
    heavy(file)
    (p.models / "gflop" / "config.pbtxt").write_text("max_batch_size: 4\n")
    request = folder / "slow.bin"
    request.write_bytes(infer_request("gflop", {"x": np.ones((1, 3, 112, 112), np.float32)}).SerializeToString())
    with p:
        stub = Stub(p.channel())
        wait_for(lambda: "gflop" in stub.models() and stub.models()["gflop"].serving_version > 0, 30, "the slow model")

        def served() -> int:
            statistics = stub.unary(SERVICE + "ModelStatistics", oip.ModelStatisticsRequest(name="gflop"), oip.ModelStatisticsResponse)[0]
            return sum(s.inference_stats.success.count for s in statistics.model_stats)

        def beside(command: list[str], ready: bool) -> dict[str, Any]:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            try:
                if ready:
                    process.stdout.readline()
                time.sleep(0.5)
                before = served()
                found = load(p.ports["grpc"], SMALL, 4, DOUBLE)
                assert process.poll() is None, "the other load ended first"
                assert ready or served() - before > 10, "the slow model was not called"
                return found
            finally:
                process.kill()
                process.wait()

        slow = [str(tool), "load", f"127.0.0.1:{p.ports['grpc']}", INFER, str(request), "8", "60", ""]
        other = [sys.executable, "-c", BURN, str(file)]
        mine, theirs = _in_turn(lambda: beside(slow, False), lambda: beside(other, True))
        what = "p99 of a fast model beside a saturated slow one / beside another process"
        table.add(what, _ratio(mine, theirs, "p99_us"), 2.0, _shown(same_server=mine, other_process=theirs), at_most=True)


def growth(table: Table, out: Path, tool: Path, load: Load, heavy: Callable[[Path], None]) -> None:
    """All rows of this module; ``heavy`` writes the 1-GFLOP graph."""
    folder = out / f"growth-{os.getpid()}"
    observed(table, folder / "observed", load)
    large_tensors(table, folder / "large", load)
    slow_beside_fast(table, folder / "beside", tool, load, heavy)
    connections(table, folder / "connections", tool, load)
    models(table, folder / "models", load)
    tensors(table, folder / "tensors", load)
