"""A load of checked calls from a process of its own.

Each answer's numbers are compared with what in-process ONNX Runtime computed
for the digest that the answer names, and must differ from the other digests'.
Run as a module with a JSON job on standard input; prints a JSON result when
standard input closes or the time is up.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from inference import grpc_service_pb2 as oip

from tests.harness.calls import infer_request, output
from tests.harness.product import Product

__all__ = ["Load"]

_CALL_TIMEOUT_S = 20.0


class Load:
    """Keeps calls in flight until ``stop``, which returns what they saw."""

    def __init__(
        self, product: Product, model: str, in_flight: int, inputs: dict[str, Any], expected: dict[str, Any],
        seconds_max: float = 120.0, pause_s: float = 0.0,
    ) -> None:  # fmt: skip
        """``expected`` maps each digest to the output that it computes for ``inputs``."""
        self._folder = tempfile.TemporaryDirectory()
        np.savez(Path(self._folder.name) / "inputs.npz", **inputs)
        np.savez(Path(self._folder.name) / "expected.npz", **expected)
        self._job = {
            "target": f"127.0.0.1:{product.ports['grpc']}", "model": model, "in_flight": in_flight, "folder": self._folder.name,
            "seconds_max": seconds_max, "pause_s": pause_s,
        }  # fmt: skip
        self.result: dict[str, Any] = {}
        self._product = product

    def start(self) -> Load:
        """Start calling."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._job) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "started"
        return self

    def stop(self) -> dict[str, Any]:
        """Let the running calls end, and return the result."""
        out, _ = self._process.communicate(timeout=60)
        self.result = json.loads(out)
        self._folder.cleanup()
        self._product.replies.positions += [(position, code) for position, code in self.result["replies"] if position]
        return self.result

    def __enter__(self) -> Load:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not self.result:
            self.stop()


class _Worker:
    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        folder = Path(job["folder"])
        self.request = infer_request(job["model"], dict(np.load(folder / "inputs.npz")))
        self.expected = dict(np.load(folder / "expected.npz"))
        self.stop = False
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.errors: list[dict[str, Any]] = []
        self.latencies: list[tuple[float, float]] = []
        self.replies: list[tuple[str, str]] = []

    def check(self, response: oip.ModelInferResponse) -> None:
        digest = response.parameters["vigil_model_digest"].string_param
        got = output(response)
        want = self.expected.get(digest)
        if want is None or not np.allclose(got, want, rtol=1e-3, atol=1e-5):
            self.wrong.append(f"version {response.model_version} {digest[:12]}: {got.ravel()[:4].tolist()}")
            return
        for other, values in self.expected.items():
            if other != digest and np.allclose(got, values, rtol=1e-3, atol=1e-5):
                self.wrong.append(f"the numbers of {digest[:12]} and {other[:12]} cannot be told apart")
        self.answers[f"{response.model_version}:{digest}"] += 1

    def note(self, trailers: Any, code: str) -> None:
        self.replies.append((dict(trailers).get("vigil-audit-position", ""), code))

    async def caller(self, call: Any) -> None:
        while not self.stop:
            start = time.monotonic()
            try:
                running = call(self.request, timeout=_CALL_TIMEOUT_S)
                self.check(await running)
                self.note(await running.trailing_metadata(), "OK")
                self.latencies.append((time.time(), time.monotonic() - start))
            except grpc.aio.AioRpcError as error:
                took = time.monotonic() - start
                self.note(error.trailing_metadata(), error.code().name)
                if len(self.errors) < 100000:
                    self.errors.append({"code": error.code().name, "text": error.details(), "took_s": took, "at": time.time()})
                await asyncio.sleep(0.02)
            if self.job["pause_s"]:
                await asyncio.sleep(self.job["pause_s"])

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self.job["target"]) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer", request_serializer=oip.ModelInferRequest.SerializeToString,
                response_deserializer=oip.ModelInferResponse.FromString,
            )  # fmt: skip
            print("started", flush=True)
            loop = asyncio.get_running_loop()
            callers = [asyncio.create_task(self.caller(call)) for _ in range(self.job["in_flight"])]
            ended = loop.run_in_executor(None, sys.stdin.read)
            await asyncio.wait([ended], timeout=self.job["seconds_max"])
            self.stop = True
            await asyncio.gather(*callers)

    def result(self) -> dict[str, Any]:
        took = sorted(t for _, t in self.latencies)
        at = sorted(a for a, _ in self.latencies)
        gaps = [(b - a, a) for a, b in pairwise(at)]
        return {
            "answers": dict(self.answers), "total": sum(self.answers.values()), "wrong": self.wrong[:20], "wrong_count": len(self.wrong),
            "errors": self.errors[:2000], "error_count": len(self.errors),
            "replies": self.replies, "error_codes": dict(Counter(e["code"] for e in self.errors)),
            "error_slowest_s": max((e["took_s"] for e in self.errors), default=0.0),
            "p50_ms": 1000 * took[len(took) // 2] if took else 0, "p99_ms": 1000 * took[int(len(took) * 0.99)] if took else 0,
            "max_ms": 1000 * took[-1] if took else 0, "longest_gap_s": max(gaps, default=(0.0, 0))[0],
            "first_at": at[0] if at else 0, "last_at": at[-1] if at else 0,
        }  # fmt: skip


def main() -> None:
    worker = _Worker(json.loads(sys.stdin.readline()))
    asyncio.run(worker.run())
    print(json.dumps(worker.result()), flush=True)


if __name__ == "__main__":
    main()
