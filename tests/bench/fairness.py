"""What a flood does to others, and overload to what is answered in time: rows of ``make bench``."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, infer_request, output
from tests.harness.product import Product

if TYPE_CHECKING:
    from tests.bench.run import Table

__all__ = ["fairness"]

LAYERS, WIDTH, ROWS = 128, 512, 8
"""A model of so many milliseconds that what is refused, and the generator, cost little beside what is computed."""
ROUNDS = 3
DEADLINE_MS = 500


def started(target: list[str], in_flight: int, seconds: float, check: bytes, rate: float, tenant: str, deadline_ms: int = 30_000) -> Any:
    command = [*target, str(in_flight), str(seconds), check.hex(), str(rate), tenant, str(deadline_ms)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ended(process: Any) -> dict[str, Any]:
    out, _ = process.communicate(timeout=300)
    result: dict[str, Any] = json.loads(out)
    assert process.returncode == 0 and result["wrong"] == 0, result
    return result


def fairness(table: Table, out: Path, tool: Path, seconds: float) -> None:
    """A tenant with ten times its share beside one that keeps to its own; and three times the capacity."""
    folder = out / "fairness"
    shutil.rmtree(folder, ignore_errors=True)
    p = Product(folder)
    graphs.gemm(LAYERS, WIDTH, p.models / "m" / "1" / "model.onnx")
    x = np.ones((ROWS, WIDTH), np.float32)
    with p:
        request = infer_request("m", {"x": x})
        stub = Stub(p.channel())
        assert np.isfinite(output(stub.infer(request))).all()
        check = stub.models()["m"].serving_digest.encode()
        file = folder / "request.bin"
        file.write_bytes(request.SerializeToString())
        target = [str(tool), "load", f"127.0.0.1:{p.ports['grpc']}", INFER, str(file)]
        seconds = max(10.0, seconds)
        ratios, shown = [], []
        for _ in range(ROUNDS):
            best, both = capacity(target, check), []
            for times in (1, 10):  # of its share, which is 0.4 of the capacity; the other keeps to 0.2
                many = started(target, 256, seconds, check, 0.4 * best * times, "many")
                few = started(target, 64, seconds, check, 0.2 * best, "few")
                both.append({"few": ended(few), "many": ended(many)})
                assert both[-1]["few"]["failed"] == 0, both[-1]["few"]
            ratios.append(both[1]["few"]["p99_us"] / both[0]["few"]["p99_us"])
            shown.append([{k: [round(r[k]["good_per_second"]), round(r[k]["good_p99_us"])] for k in r} for r in both])
        table.add(
            "p99 beside a tenant at 10 times its share / at its share", statistics.median(ratios), 1.5, {"rounds": shown}, at_most=True
        )
        overload(table, target, check, seconds)


def capacity(target: list[str], check: bytes) -> float:
    """Calls a second with 32 always under way, measured just before it is used: on a shared machine it wanders."""
    per_second: float = ended(started(target, 32, 3.0, check, 0, ""))["good_per_second"]
    return per_second


def overload(table: Table, target: list[str], check: bytes, seconds: float) -> None:
    """Calls with a deadline: what is answered in time at three times the capacity, to the most that is at any load."""
    ratios, shown = [], []
    for _ in range(ROUNDS):
        best = capacity(target, check)
        answered = {
            times: ended(started(target, 512, seconds, check, best * times, "", DEADLINE_MS))["good_per_second"]
            for times in (0.8, 1.0, 3.0)
        }
        ratios.append(answered[3.0] / max(answered.values()))
        shown.append({str(k): round(v, 1) for k, v in answered.items()})
    table.add("answered in time at 3 times the capacity / at best", statistics.median(ratios), 0.9, {"rounds": shown})
