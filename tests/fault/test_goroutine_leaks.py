"""Go's own leak profile of a gateway after calls, cancellations, streams, swaps and kills: no goroutine waits for what can never come."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from vigil.safety.v1 import safety_pb2 as safety

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request
from tests.harness.product import wait_for

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = "goroutineleakprofile"
"""Finds goroutines that are blocked on what nothing reachable can release (Go 1.26)."""
X = {"x": np.ones((1, 4), np.float32)}
LEAKS = """
package main

import (
	"os"
	"runtime/pprof"
	"time"
)

func main() {
	go func() { <-make(chan int) }()
	time.Sleep(100 * time.Millisecond)
	_ = pprof.Lookup("goroutineleak").WriteTo(os.Stdout, 1)
}
"""


def build(folder: Path, package: str, into: Path) -> None:
    environment = os.environ | {"GOEXPERIMENT": EXPERIMENT}
    done = subprocess.run(["go", "build", "-o", str(into), package], cwd=folder, env=environment, capture_output=True, text=True)
    if "unknown GOEXPERIMENT" in done.stderr:
        pytest.skip(f"this Go has no {EXPERIMENT}")
    assert done.returncode == 0, done.stderr


def leaked(profile: str) -> int:
    found = re.match(r"goroutineleak profile: total (\d+)", profile)
    assert found is not None, profile[:200]
    return int(found.group(1))


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def serves(stub: Stub) -> bool:
    try:
        stub.infer(infer_request("m", X))
    except grpc.RpcError:
        return False
    return True


def work(port: int, file: Path, round_number: int) -> None:
    """Calls that are answered, refused, cancelled and cut off; streams that are left; a swap."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = Stub(channel)
        wait_for(lambda: serves(stub), 30, "it serves")
        for model, timeout_s in [("m", 30.0), ("nobody", 30.0), ("m", 1e-4)] * 20:
            with suppress(grpc.RpcError):  # refused, too late, or while versions change
                stub.infer(infer_request(model, X), timeout_s=timeout_s)
        watch = channel.unary_stream(
            "/vigil.safety.v1.SafetyService/Watch", request_serializer=safety.WatchRequest.SerializeToString,
            response_deserializer=safety.WatchResponse.FromString,
        )  # fmt: skip
        for _ in range(10):
            stream = watch(safety.WatchRequest(), timeout=30)
            next(stream)
            stream.cancel()
        left = [stub.raw("/inference.GRPCInferenceService/ModelInfer").future(infer_request("m", X).SerializeToString()) for _ in range(50)]
        graphs.scale(2.0 + round_number, file)
    for call in left:  # the channel was closed under them
        call.cancel()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_no_goroutine_waits_for_ever(tmp_path: Path) -> None:
    (tmp_path / "leaks").mkdir()
    (tmp_path / "leaks" / "main.go").write_text(LEAKS)
    build(tmp_path / "leaks", "main.go", tmp_path / "leaking")
    assert leaked(subprocess.run([tmp_path / "leaking"], capture_output=True, text=True, check=True).stdout) == 1
    build(ROOT / "gateway-go", "./cmd/vigil-gateway", tmp_path / "vigil-gateway")
    models, data = tmp_path / "models", tmp_path / "var"
    file = models / "m" / "1" / "model.onnx"
    graphs.scale(2.0, file)
    settings = [f"--{n}-port=0" for n in ("grpc", "http", "metrics", "sidecar-grpc", "sidecar-metrics")]
    settings += [
        "--models",
        str(models),
        "--data-dir",
        str(data),
        "--set",
        "safety.rounds_max=10000",
        "--set",
        "supervisor.restart_count_max=1000",
    ]
    with running(str(tmp_path / "vigil-gateway"), *settings):
        ports = wait_for(lambda: (f := data / "run" / "gateway.json").exists() and json.loads(f.read_text()), 30, "ports")
        for i in range(8):
            with running(sys.executable, "-m", "vigil_sidecar.cli.main", "sidecar", *settings) as sidecar:
                work(ports["grpc"], file, i)
                if i % 2:
                    sidecar.kill()
        profile = (
            urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/debug/pprof/goroutineleak?debug=1", timeout=30).read().decode()
        )
    assert leaked(profile) == 0, profile
