"""Real signals and kills: sidecar, gateway, supervisor; ports and folders that cannot be had."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from vigil.safety.v1 import safety_pb2 as safety

from tests.harness import graphs
from tests.harness.calls import Stub, details, infer_request, output
from tests.harness.load import Load
from tests.harness.product import ROOT, VIGIL, Product, wait_for
from vigil_sidecar.audit.verify import verify_folder

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    running = Product(tmp_path, {"supervisor.restart_count_max": 50})
    graphs.scale(2.0, running.models / "m" / "1" / "model.onnx")
    with running:
        yield running


def expected(product: Product) -> dict[str, Any]:
    data = (product.models / "m" / "1" / "model.onnx").read_bytes()
    return {hashlib.sha256(data).hexdigest(): X * 2}


def load(product: Product, in_flight: int = 32) -> Load:
    return Load(product, "m", in_flight, {"x": X}, expected(product))


def restarted(product: Product, name: str, before: dict[str, int]) -> None:
    wait_for(lambda: product.pids()[name] != before[name], 60, f"{name} is restarted")


def test_killed_sidecar(product: Product) -> None:
    """Callers get UNAVAILABLE with RetryInfo at once, the sidecar comes back, the log has every answer, the states are told."""
    stub = Stub(product.channel())
    states: list[str] = []
    watch = stub.channel.unary_stream(
        "/vigil.safety.v1.SafetyService/Watch",
        request_serializer=safety.WatchRequest.SerializeToString,
        response_deserializer=safety.WatchResponse.FromString,
    )(safety.WatchRequest(subjects=["sidecar"]), timeout=120)

    def read() -> None:
        try:
            for message in watch:
                states.append(safety.State.Name(message.transition.to) if message.HasField("transition") else "first")
        except grpc.RpcError:
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with load(product) as running:
        time.sleep(1)
        before = product.pids()
        os.kill(before["sidecar_pid"], signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as error:
            for _ in range(1000):
                stub.infer(infer_request("m", {"x": X}))
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert details(error.value)["retry"] and details(error.value)["info"]["event"] == "DIA-2050"
        restarted(product, "sidecar_pid", before)
        time.sleep(0.5)
        result = running.stop()
    assert set(result["error_codes"]) == {"UNAVAILABLE"} and result["error_slowest_s"] < 5
    assert result["wrong_count"] == 0 and result["total"] > 100
    wait_for(lambda: states[-1:] == ["STATE_NORMAL"], 10, "the watcher saw Normal again")
    assert states == ["first", "STATE_DEGRADED", "STATE_RECOVERING", "STATE_NORMAL"]
    watch.cancel()
    assert product.stop() == 0
    reports = [verify_folder(product.data / "audit" / n) for n in ("gateway", "sidecar")]
    assert all(r.intact for r in reports) and reports[1].boots == 2
    assert result["total"] <= reports[1].kinds["answer"] <= result["total"] + 32
    assert reports[0].kinds["refusal"] + reports[1].kinds.get("refusal", 0) >= result["error_count"]
    assert [r["head"] for r in product.auditverify()] == [r.head for r in reports]


def test_stopped_sidecar_is_noticed_and_comes_back(product: Product) -> None:
    """A sidecar that hangs (SIGSTOP) is Degraded, callers are refused and nobody hangs; when it goes on, so does service."""
    stub = Stub(product.channel())
    pid = product.pids()["sidecar_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        threads = Path(f"/proc/{pid}/task")
        wait_for(lambda: {t.read_text().rsplit(")", 1)[1].split()[0] for t in threads.glob("*/stat")} == {"T"}, what="it stands")
        start = time.monotonic()
        with pytest.raises(grpc.RpcError) as error:
            stub.infer(infer_request("m", {"x": X}), timeout_s=20)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE and time.monotonic() - start < 10
        assert safety.State.Name(stub.state().state) == "STATE_DEGRADED"
        start = time.monotonic()
        with pytest.raises(grpc.RpcError):
            stub.infer(infer_request("m", {"x": X}), timeout_s=20)
        assert time.monotonic() - start < 1, "new calls are refused at once"
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: safety.State.Name(stub.state().state) == "STATE_NORMAL", 20, "Normal again")
    assert np.array_equal(output(stub.infer(infer_request("m", {"x": X}))), X * 2)


def test_killed_gateway(product: Product) -> None:
    """The gateway comes back on the same port, and its log is whole."""
    before = product.pids()
    os.kill(before["gateway_pid"], signal.SIGKILL)
    restarted(product, "gateway_pid", before)
    after = product.pids()
    assert after["grpc"] == before["grpc"] and after["sidecar_pid"] == before["sidecar_pid"]
    assert np.array_equal(output(Stub(product.channel()).infer(infer_request("m", {"x": X}))), X * 2)
    assert product.stop() == 0
    assert verify_folder(product.data / "audit" / "gateway").boots == 2


def test_kills_under_load(product: Product) -> None:
    """Several kills of the sidecar under load: every answer received has its record."""
    total = 0
    for _ in range(5):
        with load(product) as running:
            time.sleep(0.4)
            before = product.pids()
            os.kill(before["sidecar_pid"], signal.SIGKILL)
            restarted(product, "sidecar_pid", before)
            result = running.stop()
        assert result["wrong_count"] == 0
        total += result["total"]
    assert product.stop() == 0
    report = verify_folder(product.data / "audit" / "sidecar")
    assert report.intact and report.boots == 6
    assert total <= report.kinds["answer"] <= total + 5 * 32


def run_up(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    command = [*VIGIL, "up", "--models", str(folder / "models"), "--data-dir", str(folder / "var")]
    for name in ("grpc", "http", "metrics", "sidecar-grpc", "sidecar-metrics"):
        if f"--{name}-port" not in arguments:
            command += [f"--{name}-port", "0"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)


def unprivileged() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def test_folders_without_permission(tmp_path: Path) -> None:
    """As an ordinary user: a data folder that cannot be written stops the start; an unreadable model is refused."""
    if os.getuid() == 0:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
                folder.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    (tmp_path / "models").mkdir(mode=0o777)
    command = [
        str(ROOT / "bin" / "vigil-gateway"),
        "--data-dir",
        str(closed / "var"),
        "--grpc-port",
        "0",
        "--http-port",
        "0",
        "--metrics-port",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, preexec_fn=unprivileged, cwd="/")
    assert done.returncode == 1 and "give --data-dir a folder that can be written" in done.stderr
    assert "permission denied" in done.stderr.lower()


def test_unreadable_model_is_refused(tmp_path: Path) -> None:
    """A model file without permission is refused with that reason by a process that is not root."""
    python = next((p for p in (sys.executable, "/usr/bin/python3") if _other_can_run(Path(p).resolve())), "")
    if os.getuid() == 0 and not python:
        pytest.skip("another user cannot run any Python here, so permissions cannot be tried")
    # The staging module needs the standard library only; a copy is readable by everybody.
    code = tmp_path / "code"
    for source, names in (
        ("sidecar/vigil_sidecar", ["__init__.py", "errors.py"]),
        ("sidecar/vigil_sidecar/engine", ["__init__.py", "staging.py"]),
    ):
        target = code / Path(source).relative_to("sidecar")
        target.mkdir(parents=True)
        for name in names:
            shutil.copy(ROOT / source / name, target / name)
    shutil.copytree(ROOT / "safety" / "vigil_safety", code / "vigil_safety", ignore=shutil.ignore_patterns("__pycache__"))
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x")
    model.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    probe = (
        "import pathlib, sys\n"
        "from vigil_sidecar.engine.staging import stage\n"
        "from vigil_sidecar.errors import CandidateRefused\n"
        "try:\n stage(pathlib.Path(sys.argv[1]), 1 << 20)\n"
        "except CandidateRefused as error: print(error)\n"
    )
    done = subprocess.run(
        [python or sys.executable, "-c", probe, str(model)], capture_output=True, text=True, cwd=code, timeout=60,
        preexec_fn=unprivileged, env={"PYTHONPATH": str(code), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert "Permission denied" in done.stdout, done.stderr


def _other_can_run(path: Path) -> bool:
    return path.exists() and all(p.stat().st_mode & 0o001 for p in (path, *path.parents))


def test_ten_thousand_calls_at_once(product: Product) -> None:
    """Over limits.calls_in_flight_max calls are RESOURCE_EXHAUSTED with RetryInfo; the rest are answered; nothing dies."""
    pids = product.pids()
    stub = Stub(product.channel())
    from inference import grpc_service_pb2 as oip

    call = stub.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    request = infer_request("m", {"x": X})
    channels = [product.channel() for _ in range(10)]
    futures = []
    for i in range(10_000):
        one = channels[i % 10].unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        futures.append(one.future(request, timeout=60))
    codes: dict[str, int] = {}
    for future in futures:
        code = future.code()
        codes[code.name] = codes.get(code.name, 0) + 1
        if code == grpc.StatusCode.OK:
            assert np.array_equal(output(future.result()), X * 2)
    assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED"} and codes["OK"] >= 1000, codes
    assert np.array_equal(output(call(request, timeout=10)), X * 2)
    assert product.pids() == pids
    report = wait_for(lambda: verify_folder(product.data / "audit" / "sidecar"), 5, "log")
    assert report.intact and report.kinds["answer"] == codes["OK"] + 1


def test_large_calls_at_once(product: Product) -> None:
    """Calls of 40 MiB at once share no frame: each is answered, and the sidecar stays Normal."""
    stub = Stub(product.channel())
    from inference import grpc_service_pb2 as oip

    call = stub.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    big = np.ones(((40 << 20) // 16, 4), np.float32)
    request = infer_request("m", {"x": big})
    futures = [call.future(request, timeout=120) for _ in range(6)]
    for future in futures:
        assert output(future.result())[0].tolist() == [2, 2, 2, 2]
    assert "damaged" not in product.log.read_text()


def test_deleted_log_is_noticed(product: Product) -> None:
    """When the log's folder is deleted, calls are refused within two seconds: no answer leaves without its record."""
    product.accounted = False  # records are gone with the folder
    stub = Stub(product.channel())
    stub.infer(infer_request("m", {"x": X}))
    shutil.rmtree(product.data / "audit" / "sidecar")

    def refused() -> bool:
        try:
            stub.infer(infer_request("m", {"x": X}))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            return True
        return False

    wait_for(refused, 3, "calls are refused")


def test_timeline_is_told_in_lines(product: Product) -> None:
    """The supervisor says each change of its processes in one readable line."""
    before = product.pids()
    os.kill(before["sidecar_pid"], signal.SIGKILL)
    restarted(product, "sidecar_pid", before)
    lines = product.output.read_text().splitlines()
    assert any("sidecar killed by SIGKILL; restart 1 in 0.1 s" in line for line in lines)
    assert sum("ready: grpc" in line for line in lines) >= 2
    assert json.loads((product.folder / "ready.json").read_text())["supervisor_pid"] > 0


def test_streams_are_under_the_message_limit(product: Product) -> None:
    """A stream's request above the limit, or beyond the contract's, is refused like any other."""
    from vigil.safety.v1 import safety_pb2 as safety

    channel = product.channel()
    watch = channel.unary_stream(
        "/vigil.safety.v1.SafetyService/Watch",
        request_serializer=safety.WatchRequest.SerializeToString,
        response_deserializer=safety.WatchResponse.FromString,
    )
    for size, code in ((100 << 20, grpc.StatusCode.RESOURCE_EXHAUSTED), (300, grpc.StatusCode.INVALID_ARGUMENT)):
        with pytest.raises(grpc.RpcError) as error:
            next(watch(safety.WatchRequest(subjects=["x" * size]), timeout=60))
        assert error.value.code() == code, error.value
