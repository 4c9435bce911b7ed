"""The supervisor: signals, ports, limits of restarts, two in one folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, infer_request, output
from tests.harness.product import VIGIL, Product, wait_for

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    running = Product(tmp_path, {"supervisor.restart_count_max": 50})
    graphs.scale(2.0, running.models / "m" / "1" / "model.onnx")
    with running:
        yield running


def run_up(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    command = [*VIGIL, "up", "--models", str(folder / "models"), "--data-dir", str(folder / "var")]
    for name in ("grpc", "http", "metrics", "sidecar-grpc", "sidecar-metrics"):
        if f"--{name}-port" not in arguments:
            command += [f"--{name}-port", "0"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)


def restarted(product: Product, name: str, before: dict[str, int]) -> None:
    wait_for(lambda: product.pids()[name] != before[name], 60, f"{name} is restarted")


def test_supervisor_gives_up(tmp_path: Path) -> None:
    """After supervisor.restart_count_max restarts of the gateway the supervisor ends with 1 and says why; no process is left."""
    product = Product(tmp_path, {"supervisor.restart_count_max": 2, "supervisor.backoff_ms": 10})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    product.start()
    for _ in range(2):
        before = product.pids()
        os.kill(before["gateway_pid"], signal.SIGKILL)
        restarted(product, "gateway_pid", before)
    last = product.pids()
    os.kill(last["gateway_pid"], signal.SIGKILL)
    assert product.process is not None
    assert product.process.wait(30) == 1
    assert "giving up" in product.output.read_text()
    assert not Path(f"/proc/{last['sidecar_pid']}").exists()


def test_drain_finishes_running_calls(tmp_path: Path) -> None:
    """SIGTERM lets running calls finish, refuses new ones, and ends with 0."""
    product = Product(tmp_path)
    graphs.gemm(24, 1024, product.models / "slow" / "1" / "model.onnx")
    with product:
        channel = product.channel()
        from inference import grpc_service_pb2 as oip

        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        running = call.future(infer_request("slow", {"x": np.ones((1024, 1024), np.float32)}), timeout=60)
        time.sleep(0.3)
        assert product.process is not None
        product.process.send_signal(signal.SIGTERM)
        assert output(running.result()).shape == (1024, 1024)
        assert product.process.wait(30) == 0


@pytest.mark.parametrize("name", ["grpc", "http", "metrics", "sidecar-grpc", "sidecar-metrics"])
def test_port_taken(tmp_path: Path, name: str) -> None:
    """A taken port stops the start with the port and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_up(tmp_path, f"--{name}-port", str(port))
    assert done.returncode == 1
    assert "give another port" in done.stderr and "Traceback" not in done.stderr


def test_second_product_in_one_folder(product: Product) -> None:
    """A second sidecar on the same socket and log is refused in words; the first goes on."""
    done = subprocess.run(
        [*VIGIL, "sidecar", "--models", str(product.models), "--data-dir", str(product.data), "--sidecar-grpc-port", "0",
         "--sidecar-metrics-port", "0"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "another process writes it" in done.stderr and "Traceback" not in done.stderr
    assert np.array_equal(output(Stub(product.channel()).infer(infer_request("m", {"x": X}))), X * 2)


def test_interrupt_of_the_terminal_drains(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole foreground group; running calls still finish, and the end is in order."""
    product = Product(tmp_path)
    graphs.gemm(24, 1024, product.models / "slow" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        running = stub.raw(INFER).future(infer_request("slow", {"x": np.ones((1024, 1024), np.float32)}).SerializeToString(), timeout=60)
        time.sleep(0.3)
        assert product.process is not None
        groups = {os.getpgid(pid) for pid in (product.process.pid, *(v for k, v in product.pids().items() if k.endswith("_pid")))}
        assert len(groups) == 3  # so a signal to the supervisor's group reaches nobody else
        product.process.send_signal(signal.SIGINT)
        assert running.result()
        assert product.process.wait(30) == 0


def test_a_second_up_leaves_the_first_alone(product: Product) -> None:
    """A second supervisor in the same data folder is refused, and the first one's files and service stay."""
    before = {p.name: p.read_bytes() for p in (product.data / "run").glob("*.json")}
    command = [*VIGIL, "up", "--models", str(product.models), "--data-dir", str(product.data), "--grpc-port", "0", "--http-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "another `vigil up` runs there" in done.stderr, done
    assert {p.name: p.read_bytes() for p in (product.data / "run").glob("*.json")} == before
    assert product.listed("m")["serving_version"] == 1


def test_ready_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    """Before anything starts."""
    done = run_up(tmp_path, "--ready-file", str(tmp_path / "missing" / "x"))
    assert done.returncode == 1 and "there is no folder" in done.stderr, done


def test_sidecar_alone_drains(tmp_path: Path) -> None:
    """SIGTERM to the sidecar alone lets the gateway's running calls finish."""
    product = Product(tmp_path)
    graphs.gemm(24, 1024, product.models / "slow" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        sidecar = product.pids()["sidecar_pid"]

        def worked() -> int:
            fields = Path(f"/proc/{sidecar}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        idle = worked()
        request = infer_request("slow", {"x": np.ones((1024, 1024), np.float32)}).SerializeToString()
        running = [stub.raw(INFER).future(request, timeout=60) for _ in range(3)]
        metrics = f"http://127.0.0.1:{product.ports['metrics']}/metrics"
        wait_for(lambda: b"vigil_queue_depth 3" in urllib.request.urlopen(metrics, timeout=5).read(), 10, "the calls are in the gateway")
        wait_for(lambda: worked() > idle + 20, 30, "the sidecar computes")
        os.kill(sidecar, signal.SIGTERM)
        assert all(call.result() for call in running)
