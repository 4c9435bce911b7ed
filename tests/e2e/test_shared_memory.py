"""System shared memory: tritonclient unchanged over gRPC and REST, and what must not work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request, own_address
from tests.harness.product import Product, wait_for
from vigil_sidecar.audit.reader import read_records

SERVICE = "/inference.GRPCInferenceService/"
CLIENT = """
import json, sys
import numpy as np
import tritonclient.{form} as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException
c = triton.InferenceServerClient(sys.argv[1])
c.unregister_system_shared_memory()
x = np.arange(8, dtype=np.float32).reshape(2, 4)
a = shm.create_shared_memory_region("in", "/vigil_test_in_{form}", x.nbytes)
b = shm.create_shared_memory_region("out", "/vigil_test_out_{form}", 64)
out = dict()
try:
    shm.set_shared_memory_region(a, [x])
    c.register_system_shared_memory("in", "/vigil_test_in_{form}", x.nbytes)
    c.register_system_shared_memory("out", "/vigil_test_out_{form}", 64)
    out["status"] = c.get_system_shared_memory_status({as_json})
    i = triton.InferInput("x", [2, 4], "FP32"); i.set_shared_memory("in", x.nbytes)
    o = triton.InferRequestedOutput("y"); o.set_shared_memory("out", 32, offset=16)
    r = c.infer("scale", [i], outputs=[o])
    out["y"] = shm.get_contents_as_numpy(b, np.float32, [2, 4], offset=16).tolist()
    plain = triton.InferRequestedOutput("y")
    out["mixed"] = c.infer("scale", [i], outputs=[plain]).as_numpy("y").tolist()
    small = triton.InferRequestedOutput("y"); small.set_shared_memory("out", 8)
    missing = triton.InferInput("x", [2, 4], "FP32"); missing.set_shared_memory("nowhere", 32)
    beyond = triton.InferInput("x", [2, 4], "FP32"); beyond.set_shared_memory("in", 32, offset=8)
    calls = dict(
        small=lambda: c.infer("scale", [i], outputs=[small]), missing=lambda: c.infer("scale", [missing]),
        beyond=lambda: c.infer("scale", [beyond]), again=lambda: c.register_system_shared_memory("in", "/vigil_test_in_{form}", 8),
        unknown=lambda: c.get_system_shared_memory_status("nowhere"), cuda=lambda: c.register_cuda_shared_memory("g", b"aGFuZGxl", 0, 8),
    )
    for name, call in calls.items():
        try:
            call(); out[name] = "no error"
        except InferenceServerException as e:
            out[name] = [e.status(), e.message()]
    c.unregister_system_shared_memory("in")
    try:
        c.infer("scale", [i]); out["gone"] = "no error"
    except InferenceServerException as e:
        out["gone"] = e.message()
    c.unregister_system_shared_memory()
finally:
    shm.destroy_shared_memory_region(a); shm.destroy_shared_memory_region(b)
print(json.dumps(out))
"""


@pytest.mark.parametrize("form", ["grpc", "http"])
def test_tritonclient_works_unchanged(product: Product, form: str) -> None:
    """Inputs and outputs in regions, beside plain ones, and each error with its code."""
    code = CLIENT.replace("{form}", form).replace("{as_json}", "as_json=True" if form == "grpc" else "")
    address = f"127.0.0.1:{product.ports[form]}"
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout)
    assert out["y"] == out["mixed"] == [[0, 2, 4, 6], [8, 10, 12, 14]]
    regions = out["status"]["regions"].values() if form == "grpc" else out["status"]
    assert {(r["name"], int(r["byte_size"])) for r in regions} == {("in", 32), ("out", 64)}
    codes = {
        "small": ("INVALID_ARGUMENT", "400"), "missing": ("NOT_FOUND", "404"), "beyond": ("INVALID_ARGUMENT", "400"),
        "again": ("ALREADY_EXISTS", "409"), "unknown": ("NOT_FOUND", "404"), "cuda": ("UNIMPLEMENTED", "501"),
    }  # fmt: skip
    for name, (by_grpc, by_http) in codes.items():
        assert out[name][0] == ("StatusCode." + by_grpc if form == "grpc" else by_http), (name, out[name])
    assert "is 8, the output has 32 bytes" in out["small"][1] and "unable to find the shared memory region: 'nowhere'" in out["missing"][1]
    assert "offset 8, byte size 32, the region has 32 bytes" in out["beyond"][1] and "unable to find" in out["gone"]


@pytest.fixture
def region(stub: Stub) -> Iterator[shared_memory.SharedMemory]:
    """A registered region of 16 bytes, named r."""
    memory = shared_memory.SharedMemory(create=True, size=16)
    request = oip.SystemSharedMemoryRegisterRequest(name="r", key="/" + memory.name.lstrip("/"), byte_size=16)
    stub.unary(SERVICE + "SystemSharedMemoryRegister", request, oip.SystemSharedMemoryRegisterResponse)
    yield memory
    forget = oip.SystemSharedMemoryUnregisterRequest(name="r")
    stub.unary(SERVICE + "SystemSharedMemoryUnregister", forget, oip.SystemSharedMemoryUnregisterResponse)
    memory.close()
    memory.unlink()


def shared_request(size: int = 16, **parameters: Any) -> oip.ModelInferRequest:
    request = infer_request("scale", {"x": np.zeros((1, 4), np.float32)})
    del request.raw_input_contents[:]
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = size
    for name, value in parameters.items():
        request.inputs[0].parameters[name].int64_param = value
    return request


def test_the_hash_is_that_of_the_same_call_inline(product: Product, stub: Stub, region: shared_memory.SharedMemory) -> None:
    x = np.array([[1, 2, 3, 4]], np.float32)
    assert region.buf is not None
    region.buf[:16] = x.tobytes()
    headers = []
    for request in (infer_request("scale", {"x": x}), shared_request()):
        reply, trailers = stub.unary(SERVICE + "ModelInfer", request, oip.ModelInferResponse)
        assert np.frombuffer(reply.raw_output_contents[0], np.float32).tolist() == [2, 4, 6, 8]
        log, _, sequence = trailers["vigil-audit-position"].split("/")
        folder = product.data / "audit" / log
        found = wait_for(lambda f=folder, s=int(sequence): [r for r in read_records(f) if r.header.sequence == s])
        headers.append((found[0].header.input_hash, found[0].header.output_hash))
    assert headers[0] == headers[1]


def test_an_answer_and_its_hash_speak_of_the_same_bytes(product: Product, stub: Stub, region: shared_memory.SharedMemory) -> None:
    """The caller changes the region without a pause; each answer is that of one state of it that was copied, as its record says."""
    over = threading.Event()
    assert region.buf is not None
    view = region.buf

    def change() -> None:
        n = 0
        while not over.is_set():
            n += 1
            view[:16] = np.full(4, n % 1000, np.float32).tobytes()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        answers = []
        for _ in range(100):
            reply, trailers = stub.unary(SERVICE + "ModelInfer", shared_request(), oip.ModelInferResponse)
            answers.append((np.frombuffer(reply.raw_output_contents[0], np.float32) / 2, trailers["vigil-audit-position"]))
    finally:
        over.set()
        changing.join()
    by_position = {}
    for x, position in answers:
        _, again = stub.unary(SERVICE + "ModelInfer", infer_request("scale", {"x": x.reshape(1, 4)}), oip.ModelInferResponse)
        by_position[int(position.split("/")[2])] = int(again["vigil-audit-position"].split("/")[2])
    last = max(by_position.values())

    def recorded() -> Any:
        found = {r.header.sequence: r.header for r in read_records(product.data / "audit" / "sidecar")}
        return last in found and found

    records = wait_for(recorded)
    assert all(records[a].input_hash == records[b].input_hash for a, b in by_position.items())


@pytest.mark.parametrize(
    ("request_of", "code", "text"),
    [
        (lambda: shared_request(shared_memory_offset=8), "INVALID_ARGUMENT", "offset 8, byte size 16, the region has 16 bytes"),
        (lambda: shared_request(shared_memory_offset=-1), "INVALID_ARGUMENT", "must not be negative"),
        (lambda: shared_request(size=2**62), "RESOURCE_EXHAUSTED", "limits.message_bytes_max"),
        (lambda: shared_request(size=8), "INVALID_ARGUMENT", "x"),
    ],
)
def test_places_that_are_wrong(stub: Stub, region: shared_memory.SharedMemory, request_of: Any, code: str, text: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub.infer(request_of())
    assert error.value.code().name == code and text in error.value.details()
    stub.infer(shared_request())


def test_memory_that_is_cut_short_or_not_ours(stub: Stub, region: shared_memory.SharedMemory) -> None:
    """Truncated after it was registered: refused, nothing crashes. Of another user: not registered."""
    os.truncate("/dev/shm/" + region.name.lstrip("/"), 4)
    with pytest.raises(grpc.RpcError) as error:
        stub.infer(shared_request())
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "cut short" in error.value.details()
    stub.infer(infer_request("scale", {"x": np.ones((1, 4), np.float32)}))
    if os.geteuid() == 0:
        os.chown("/dev/shm/" + region.name.lstrip("/"), 12345, 12345)
        request = oip.SystemSharedMemoryRegisterRequest(name="f", key="/" + region.name.lstrip("/"), byte_size=4)
        with pytest.raises(grpc.RpcError) as error:
            stub.unary(SERVICE + "SystemSharedMemoryRegister", request, oip.SystemSharedMemoryRegisterResponse)
        assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.skipif(not own_address(), reason="this machine has no address but loopback")
def test_callers_from_elsewhere_have_no_shared_memory(tmp_path: Path) -> None:
    """On a listener that is not loopback neither registering nor using a region works."""
    graphs.scale(2.0, tmp_path / "models" / "scale" / "1" / "model.onnx")
    with Product(tmp_path, {"listen.host": "0.0.0.0"}) as product:
        stub = Stub(grpc.insecure_channel(f"{own_address()}:{product.ports['grpc']}"))
        request = oip.SystemSharedMemoryRegisterRequest(name="r", key="/x", byte_size=4)
        for call in (
            lambda: stub.unary(SERVICE + "SystemSharedMemoryRegister", request, oip.SystemSharedMemoryRegisterResponse),
            lambda: stub.infer(shared_request()),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call()
            assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED
