"""``make bench-peers``: Vigil beside other servers, in one run, on the same graphs, bytes and generator.

Each answer of the small model is checked, of the large one the first. Triton's settings (with its Python backend) are
searched first, by the small model at 32 in flight, and what was found is in the table's JSON. Vigil
has everything on: rules, audit, metrics, supervision, and traces of one call in 100 at a receiver that counts them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort

from tests.bench.peer_servers import MLServer, Server, Triton, Vigil
from tests.bench.pictures import bars
from tests.bench.run import OUT, SECONDS, Table, build, conv_gflop, load
from tests.harness import graphs
from tests.harness.calls import Stub, infer_request, output
from tests.harness.environments import PEERS
from tests.harness.otlp import receiver

ROUNDS = 3
X = np.array([[1, 2, 3, 4]], np.float32)
SMALL = infer_request("scale", {"x": X}).SerializeToString()
DOUBLE = (X * 2).tobytes()
GRID = [(instances, delay, pool) for instances in (1, 2) for delay in (0, 100) for pool in (8, 256)]
SHAPES = {"scale": "[4]", "gflop": "[3, 112, 112]"}


class Measured:
    """What rounds of loads gave of each server."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict[str, Any]]] = {}

    def add(self, server: Server, run: Callable[[], dict[str, Any]]) -> None:
        """One load of a server, with the processor time that it took."""
        before = server.cpu_s()
        result = run()
        result["cpu_us"] = (server.cpu_s() - before) / max(1, result["calls"]) * 1e6
        self.runs.setdefault(server.name, []).append(result)

    def ratio(self, key: str, peer: str) -> float:
        """Median of the rounds' own ratios of Vigil to a peer."""
        return statistics.median(a[key] / b[key] for a, b in zip(self.runs["Vigil"], self.runs[peer], strict=True))

    def figures(self) -> dict[str, Any]:
        """Median, least and most of each server."""
        out: dict[str, Any] = {}
        for name, runs in self.runs.items():
            out[name] = {}
            for key in ("per_second", "p50_us", "p99_us", "cpu_us"):
                values = sorted(r[key] for r in runs)
                out[name][key] = [round(v, 1) for v in (statistics.median(values), values[0], values[-1])]
        return out


def compared(servers: list[Server], run: Callable[[Server], dict[str, Any]]) -> Measured:
    """Loads of the servers in turn, the first one another each round."""
    measured = Measured()
    for turn in range(ROUNDS):
        for server in servers if turn % 2 == 0 else reversed(servers):
            measured.add(server, lambda s=server: run(s))  # type: ignore[misc]
    return measured


def search(folder: Path, files: dict[str, Path]) -> tuple[tuple[int, int, int], list[dict[str, Any]]]:
    """Triton's best settings at 32 in flight, and all that were tried."""
    tried = []
    for instances, delay, pool in GRID:
        server = Triton(folder, {"scale": files["scale"]}, SHAPES, instances, delay, pool)
        try:
            load(server.grpc, SMALL, 32, DOUBLE, 0.5)
            found = load(server.grpc, SMALL, 32, DOUBLE, 1.5)
        finally:
            server.stop()
        tried.append({"instances": instances, "queue_delay_us": delay, "pool": pool, "per_second": round(found["per_second"])})
        print(f"  Triton, {instances} instances, {delay} us, a pool of {pool}: {found['per_second']:.0f}/s", flush=True)
    best = max(tried, key=lambda t: t["per_second"])
    return (best["instances"], best["queue_delay_us"], best["pool"]), tried


def small_model(table: Table, vigil: Server, triton: Server, mlserver: Server | None) -> None:
    """Calls a second and latency of a model that costs nothing."""
    best = 0.0
    for n, goal in ((1, 1.5), (32, 2.5), (256, 3.5)):
        servers = [vigil, triton] + ([mlserver] if mlserver is not None and n == 32 else [])
        found = compared(servers, lambda s, n=n: load(s.grpc, SMALL, n, DOUBLE))  # type: ignore[misc]
        shown = found.figures()
        table.add(f"small model, {n} in flight: calls a second / Triton", found.ratio("per_second", "Triton"), goal, shown)
        limit = None if n == 256 else 1.0
        for key in ("p50_us", "p99_us"):
            table.add(f"small model, {n} in flight: {key[:3]} / Triton", found.ratio(key, "Triton"), limit, shown, at_most=True)
        if len(servers) == 3:
            table.add("small model, 32 in flight: calls a second / MLServer", found.ratio("per_second", "MLServer"), 20, shown)
        best = max(best, shown["Triton"]["per_second"][0])
    rate = 0.6 * best
    found = compared([vigil, triton], lambda s: load(s.grpc, SMALL, 256, DOUBLE, rate=rate))
    for key in ("p50_us", "p99_us"):
        what = f"small model, {rate:.0f} calls a second offered: {key[:3]} / Triton"
        table.add(what, found.ratio(key, "Triton"), 1.0, found.figures(), at_most=True)


def heavy_model(table: Table, vigil: Server, triton: Server, graph: Path) -> None:
    """Calls a second of a model of 1 GFLOP."""
    image = np.random.default_rng(1).random((1, 3, 112, 112), np.float32)
    request = infer_request("gflop", {"x": image}).SerializeToString()
    expected = ort.InferenceSession(str(graph)).run(None, {"x": image})[0]
    for server in (vigil, triton):  # rows of a batch differ in the last bits, so one answer of each is compared by value
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            assert np.allclose(output(Stub(channel).infer(infer_request("gflop", {"x": image}))), expected, rtol=1e-3, atol=1e-5), (
                server.name
            )
    for n in (1, 8):
        loads = compared([vigil, triton], lambda s, n=n: load(s.grpc, request, n, b""))  # type: ignore[misc]
        what = f"1-GFLOP model, {n} in flight: calls a second / Triton (Python backend)"
        table.add(what, loads.ratio("per_second", "Triton"), 1.0, loads.figures())


class Running:
    """Servers that run."""

    def __init__(self) -> None:
        self.all: list[Server] = []

    def add(self, start: Callable[[], Server]) -> Server:
        """Start one."""
        self.all.append(start())
        return self.all[-1]


@contextmanager
def running() -> Iterator[Running]:
    """Servers, ended at the end."""
    servers = Running()
    try:
        yield servers
    finally:
        for server in servers.all:
            server.stop()


def main() -> int:
    """Run everything; 0 whatever the ratios are: they are figures, not tests."""
    build()
    folder = OUT / "peers"
    files = {"scale": folder / "scale.onnx", "gflop": folder / "gflop.onnx"}
    folder.mkdir(parents=True, exist_ok=True)
    graphs.scale(2.0, files["scale"])
    conv_gflop(files["gflop"])
    print("searching Triton's settings", flush=True)
    best, tried = search(PEERS / "run-triton", files)
    table = Table()
    small, heavy = {"scale": files["scale"]}, {"gflop": files["gflop"]}
    with receiver() as (spans, port):
        settings = {"trace.otlp_endpoint": f"127.0.0.1:{port}", "trace.sample_ratio": "0.01"}
        with running() as servers:
            vigil = servers.add(lambda: Vigil(PEERS / "run-vigil", small, settings))
            triton = servers.add(lambda: Triton(PEERS / "run-triton", small, SHAPES, *best))
            try:
                mlserver: Server | None = servers.add(lambda: MLServer(PEERS / "run-mlserver", small, 32))
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                mlserver = None
                print(f"MLServer is left out: {error}", flush=True)
            started = {s.name: round(s.start_s, 2) for s in servers.all}
            table.add("start to ready: seconds / Triton", vigil.start_s / triton.start_s, 0.7, started, True)
            table.add("start to ready: seconds", vigil.start_s, 1.5, started, True)
            small_model(table, vigil, triton, mlserver)
            memory = {s.name: round(s.memory_mb()) for s in servers.all}
            table.add("memory after the loads of a small model: Vigil / Triton", memory["Vigil"] / memory["Triton"], 1.0, memory, True)
        with running() as servers:
            vigil = servers.add(lambda: Vigil(PEERS / "run-vigil", heavy, settings, batch=8))
            triton = servers.add(lambda: Triton(PEERS / "run-triton", heavy, SHAPES, *best))
            heavy_model(table, vigil, triton, files["gflop"])
        print(f"spans received: {len(spans.spans)}; audit interval; rules in the sidecar on 1 call in 64; cache and ladder off")
    result = {"seconds": SECONDS, "rounds": ROUNDS, "triton": {"tried": tried, "best": best}, "rows": table.rows}
    (OUT / "peers.json").write_text(json.dumps(result, indent=1))
    bars(OUT / "peers.svg", "Vigil against other servers", table.rows)
    print(f"{OUT / 'peers.json'}, {OUT / 'peers.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
