"""``make bench``: ratios side by side in one run, answers checked, a table and ``build/bench/*.json``."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.bench.fairness import fairness
from tests.bench.growth import growth
from tests.bench.logs import audit_log, reading_while_serving, search_among_many
from tests.bench.pages import pages
from tests.bench.times import detection_times
from tests.bench.wear import wear
from tests.harness import graphs
from tests.harness.calls import Stub, infer_request, output
from tests.harness.product import ROOT, Product, wait_for

OUT = ROOT / "build" / "bench"
TOOL = OUT / "bench"
INFER = "/inference.GRPCInferenceService/ModelInfer"
ROUNDS = 5
SECONDS = float(os.environ.get("BENCH_SECONDS", "3"))
SWAP_SECONDS = float(os.environ.get("BENCH_SWAP_SECONDS", str(SECONDS)))
"""About four swaps a second: 50 s a round make 1,000."""
X = np.array([[1, 2, 3, 4]], np.float32)


def build() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", str(TOOL), "./bench"], cwd=ROOT / "gateway-go", check=True, env=environment)


def load(port: int, request: bytes, in_flight: int, check: bytes, seconds: float = SECONDS, rate: float = 0) -> dict[str, Any]:
    """One load; fails unless every answer holds the expected bytes. With a rate, calls are due whether answers come or not."""
    file = OUT / "request.bin"
    file.write_bytes(request)
    command = [str(TOOL), "load", f"127.0.0.1:{port}", INFER, str(file), str(in_flight), str(seconds), check.hex(), str(rate)]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert result["failed"] == 0 and result["wrong"] == 0, result
    return result


class Table:
    """Rows of (what, ratio, goal, figures)."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, ratio: float, goal: float | None, figures: dict[str, Any], at_most: bool = False) -> None:
        held = goal is None or (ratio <= goal if at_most else ratio >= goal)
        self.rows.append({"what": what, "ratio": ratio, "goal": goal, "at_most": at_most, "held": held, "figures": figures})
        mark = "" if goal is None else f"goal {'≤' if at_most else '≥'} {goal:.2f} {'ok' if held else 'SHORT'}"
        print(f"{what:74} {ratio:6.2f}  {mark}", flush=True)

    def save(self) -> None:
        (OUT / "bench.json").write_text(json.dumps(self.rows, indent=1))


def rounds(*runs: Callable[[], dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs, interleaved, several rounds; results by run."""
    results: list[list[dict[str, Any]]] = [[] for _ in runs]
    for turn in range(ROUNDS):
        for i in sorted(range(len(runs)), reverse=turn % 2 == 1):  # who goes first changes: a machine warms up, or slows down
            results[i].append(runs[i]())
    return results


def ratio(of: list[dict[str, Any]], to: list[dict[str, Any]]) -> float:
    """Median of the rounds' own ratios: what both runs of a round had in common drops out."""
    return statistics.median(a["per_second"] / b["per_second"] for a, b in zip(of, to, strict=True))


def figures(**named: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {k: [round(r[k], 1) for r in results] for k in ("per_second", "p50_us", "p99_us", "p999_us") if k in results[0]}
        for name, results in named.items()
    }


def product(name: str, settings: dict[str, Any]) -> Product:
    p = Product(OUT / name, settings)
    graphs.scale(2.0, p.models / "scale" / "1" / "model.onnx")
    return p


def against_echo(table: Table, on: Product, off: Product) -> None:
    request = infer_request("scale", {"x": X}).SerializeToString()
    echo = subprocess.Popen([str(TOOL), "echo"], stdout=subprocess.PIPE, text=True)
    assert echo.stdout is not None
    port = int(echo.stdout.readline())
    try:
        for n in (1, 32, 256):
            bare, whole, unlogged = rounds(
                lambda n=n: load(port, request, n, X.tobytes()),
                lambda n=n: load(on.ports["grpc"], request, n, (X * 2).tobytes()),
                lambda n=n: load(off.ports["grpc"], request, n, (X * 2).tobytes()),
            )
            goal = {1: 0.40, 32: 0.35, 256: 0.50}[n]
            shown = figures(echo=bare, gateway=whole, audit_off=unlogged)
            table.add(f"gateway with everything on / bare grpc-go echo, {n} in flight", ratio(whole, bare), goal, shown)
            table.add(f"audit on / audit off, {n} in flight", ratio(whole, unlogged), 0.90, shown)
    finally:
        echo.kill()
        echo.wait()


def in_process(path: Path, feeds: dict[str, Any], seconds: float = SECONDS) -> dict[str, Any]:
    """Rows per second of ONNX Runtime alone, in this process, with the sidecar's session options."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options)
    session.run(None, feeds)
    rows = len(next(iter(feeds.values())))
    count, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        session.run(None, feeds)
        count += rows
    return {"per_second": count / (time.monotonic() - start)}


def against_in_process(table: Table, p: Product) -> None:
    image = np.random.default_rng(1).random((1, 3, 112, 112), np.float32)
    heavy = p.models / "gflop" / "1" / "model.onnx"
    request = infer_request("gflop", {"x": image}).SerializeToString()
    # Batches differ in the last bits, so the digest is what each answer is searched for; one is compared by value.
    marker = Stub(p.channel()).models()["gflop"].serving_digest.encode()
    expected = ort.InferenceSession(str(heavy)).run(None, {"x": image})[0]
    assert np.allclose(output(Stub(p.channel()).infer(infer_request("gflop", {"x": image}))), expected, rtol=1e-3)
    alone, whole = rounds(
        lambda: in_process(heavy, {"x": image}), lambda: load(p.ports["grpc"], request, 1, marker)
    )  # fmt: skip
    table.add("1-GFLOP model: gateway / in-process, batch 1", ratio(whole, alone), 0.85, figures(in_process=alone, gateway=whole))
    batch = np.repeat(image, 4, axis=0)
    alone, whole = rounds(
        lambda: in_process(heavy, {"x": batch}), lambda: load(p.ports["grpc"], request, 8, marker)
    )  # fmt: skip
    table.add("1-GFLOP model: gateway / in-process, batches of 4", ratio(whole, alone), 0.85, figures(in_process=alone, gateway=whole))
    light = p.models / "scale" / "1" / "model.onnx"
    small = infer_request("scale", {"x": X}).SerializeToString()
    alone, whole = rounds(
        lambda: in_process(light, {"x": X}), lambda: load(p.ports["grpc"], small, 256, (X * 2).tobytes())
    )  # fmt: skip
    table.add(
        "light model: gateway at 256 in flight / in-process one by one",
        ratio(whole, alone),
        None,
        figures(in_process=alone, gateway=whole),
    )


def while_swapping(table: Table, p: Product) -> None:
    """p99 of calls while the model is swapped five times a second, against a steady run."""
    request = infer_request("scale", {"x": X}).SerializeToString()
    stop = threading.Event()
    swaps, failed = [0], list[Exception]()

    def swapping() -> None:
        try:
            swap()
        except Exception as error:
            failed.append(error)

    def swap() -> None:
        data = graphs.scale(2.0)
        number = 1
        while not stop.is_set():
            number += 1
            folder = p.models / "scale" / str(number)
            folder.mkdir()
            (folder / "model.onnx").write_bytes(data)
            wait_for(lambda n=number: Stub(p.channel()).models()["scale"].serving_version == n, 30, "swap")
            swaps[0] += 1

    steady, moving = [], []
    for _ in range(ROUNDS):
        steady.append(load(p.ports["grpc"], request, 32, (X * 2).tobytes(), SWAP_SECONDS))
        stop.clear()
        thread = threading.Thread(target=swapping)
        thread.start()
        moving.append(load(p.ports["grpc"], request, 32, (X * 2).tobytes(), SWAP_SECONDS))
        stop.set()
        thread.join()
        assert not failed, failed
        for folder in sorted((p.models / "scale").iterdir(), key=lambda f: int(f.name))[1:]:
            (folder / "model.onnx").unlink()
            folder.rmdir()
        product_restart(p)
    ratio = statistics.median(r["p99_us"] for r in moving) / statistics.median(r["p99_us"] for r in steady)
    shown = figures(steady=steady, swapping=moving) | {"swaps": swaps[0]}
    table.add(f"p99 latency while swapping / steady, 32 in flight, {swaps[0]} swaps", ratio, None, shown, at_most=True)
    rare = statistics.median(r["p999_us"] for r in moving) / statistics.median(r["p999_us"] for r in steady)
    table.add(f"p99.9 latency while swapping / steady, {swaps[0]} swaps, none failed", rare, 1.5, shown, at_most=True)


def product_restart(p: Product) -> None:
    p.stop()
    p.start()


def conv_gflop(path: Path) -> None:
    """Two 3x3 convolutions, 3 to 64 and 64 to 64 channels on 112x112, then the mean: 0.97 GFLOP a row."""
    rng = np.random.default_rng(2)
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) / 24).astype(np.float32), name)
        for name, shape in (("w1", (64, 3, 3, 3)), ("w2", (64, 64, 3, 3)))
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 112, 112])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64, 1, 1])
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "gflop", [x], [y], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def serving(table: Table) -> None:
    """Rows of one product with everything on, and one without its log."""
    on, off = product("on", {}), product("off", {"audit.enabled": "false"})
    conv_gflop(on.models / "gflop" / "1" / "model.onnx")
    (on.models / "gflop" / "config.pbtxt").write_text("max_batch_size: 4\n")
    with on:
        with off:
            against_echo(table, on, off)
        against_in_process(table, on)
        while_swapping(table, on)
        reading_while_serving(table, on, load, ROUNDS)


def logs(table: Table) -> None:
    """Rows of the audit log alone."""
    audit_log(table, OUT, ROUNDS)
    search_among_many(table, OUT)


PARTS: dict[str, Callable[[Table], None]] = {
    "serving": serving,
    "logs": logs,
    "wear": lambda table: wear(table, OUT),
    "pages": lambda table: pages(table, OUT, load, rounds, ratio),
    "growth": lambda table: growth(table, OUT, TOOL, load, conv_gflop),
    "fairness": lambda table: fairness(table, OUT, TOOL, SECONDS),
    "times": lambda table: detection_times(table, OUT),
}


def main() -> int:
    """Run all parts, or those that BENCH_PARTS names; 0 whatever the ratios are: they are figures, not tests."""
    wanted = os.environ.get("BENCH_PARTS", ",".join(PARTS)).split(",")
    if unknown := set(wanted) - set(PARTS):
        print(f"BENCH_PARTS has {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    shutil.rmtree(OUT, ignore_errors=True)
    build()
    table = Table()
    print(f"{'median of ' + str(ROUNDS) + ' interleaved rounds of ' + str(SECONDS) + ' s':74}  ratio")
    for part in wanted:
        PARTS[part](table)
        table.save()
    print(f"saved {(OUT / 'bench.json').relative_to(ROOT)}; machine: {os.cpu_count()} cores, {sys.platform}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
