"""NVIDIA's tritonclient against Vigil, in a process of its own (its message names are ours)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from inference import grpc_service_pb2, model_config_pb2

from tests.harness import graphs
from tests.harness.product import Product

CLIENT = """
import json, sys, time
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException
c = triton.InferenceServerClient(sys.argv[1])
out = {"live": c.is_server_live(), "ready": c.is_server_ready()}
out |= {"model_ready": c.is_model_ready("scale"), "unknown_ready": c.is_model_ready("nope")}
meta = c.get_model_metadata("scale", as_json=True)
out["meta"] = [meta["inputs"][0]["name"], meta["inputs"][0]["datatype"], meta["platform"]]
out["server"] = c.get_server_metadata(as_json=True)["name"]
out["index"] = sorted(m["name"] for m in c.get_model_repository_index(as_json=True)["models"])
x = np.arange(8, dtype=np.float32).reshape(2, 4)
i = triton.InferInput("x", x.shape, "FP32"); i.set_data_from_numpy(x)
r = c.infer("scale", [i], outputs=[triton.InferRequestedOutput("y")], request_id="7", client_timeout=10)
out["y"] = r.as_numpy("y").tolist(); out["id"] = r.get_response().id
s = np.array(["a", "bc"], dtype=object)
i2 = triton.InferInput("x", s.shape, "BYTES"); i2.set_data_from_numpy(s)
out["s"] = [v.decode() for v in c.infer("strings", [i2]).as_numpy("y").tolist()]
import threading
done = threading.Event(); got = []
def cb(result, error): got.append((result, error)); done.set()
c.async_infer("scale", [i], cb); done.wait(10)
out["async"] = got[0][0].as_numpy("y").tolist()
time.sleep(0.2)
config = c.get_model_config("scale", as_json=True)["config"]
strings = c.get_model_config("strings", as_json=True)["config"]["input"][0]["data_type"]
out["config"] = [config["platform"], config["max_batch_size"], [config["input"][0][k] for k in ("data_type", "dims")], strings]
def stats(version=""):
    m = c.get_inference_statistics("scale", version).model_stats[0]
    s = m.inference_stats
    by_size = {b.batch_size: b.compute_infer.count for b in m.batch_stats}
    return m, s, [m.inference_count, m.execution_count, s.success.count, s.fail.count, by_size.get(2, 0), s.cache_hit.count]
m, s, before = stats("1")
for _ in range(2):
    c.infer("scale", [i])
m, s, after = stats()
out["stats"] = [m.version, *(a - b for a, b in zip(after, before))]
assert 0 < s.compute_infer.ns <= s.success.ns and s.queue.ns <= s.success.ns and m.last_inference > 1.7e12, s
bad = triton.InferInput("x", [3, 4], "FP32"); bad.set_data_from_numpy(np.zeros((3, 4), np.float32)); bad._input.shape[:] = [2, 4]
out["all"] = sorted(m.name for m in c.get_inference_statistics().model_stats)
try:
    c.infer("scale", [bad]); out["bad"] = "no error"
except InferenceServerException:
    out["bad"] = stats()[2][3] - after[3]
calls = {
    "unknown": lambda: c.infer("nope", [i]), "version": lambda: c.infer("scale", [i], model_version="x"),
    "load": lambda: c.load_model("scale"),
}
for name, call in calls.items():
    try:
        call(); out[name] = "no error"
    except InferenceServerException as e:
        out[name] = [e.status(), e.message()]
print(json.dumps(out))
"""

DUMP = """
import json, sys
from google.protobuf.descriptor_pb2 import FileDescriptorProto
import tritonclient.grpc.service_pb2 as s
import base64
print(json.dumps([base64.b64encode(f.serialized_pb).decode() for f in (s.DESCRIPTOR, *s.DESCRIPTOR.dependencies)]))
"""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    running = Product(tmp_path_factory.mktemp("triton"))
    graphs.scale(2.0, running.models / "scale" / "1" / "model.onnx")
    graphs.identity_bytes(running.models / "strings" / "1" / "model.onnx")
    with running:
        yield running


@pytest.mark.parametrize("port", ["grpc", "sidecar_grpc"])
def test_tritonclient_works_unchanged(product: Product, port: str) -> None:
    """Health, metadata, index, inference by numpy, strings, asynchronous calls and error texts."""
    done = subprocess.run([sys.executable, "-c", CLIENT, f"127.0.0.1:{product.ports[port]}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout)
    assert (out["live"], out["ready"], out["model_ready"], out["unknown_ready"]) == (True, True, True, False)
    assert out["meta"] == ["x", "FP32", "onnxruntime_onnx"] and out["server"] == "vigil"
    assert out["index"] == ["scale", "strings"]
    assert out["y"] == out["async"] == [[0, 2, 4, 6], [8, 10, 12, 14]] and out["id"] == "7"
    assert out["s"] == ["a", "bc"]
    assert out["unknown"] == ["StatusCode.NOT_FOUND", "Request for unknown model: 'nope' is not found"]
    assert out["version"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "failed to get model version from specified version string" in out["version"][1]
    assert out["load"][0] == "StatusCode.UNAVAILABLE"
    assert out["load"][1].startswith("explicit model load / unload is not allowed if polling is enabled")
    assert out["config"] == ["onnxruntime_onnx", 32, ["TYPE_FP32", ["4"]], "TYPE_STRING"]
    assert out["stats"] == ["1", 4, 2, 2, 0, 2, 0] and out["all"] == ["scale", "strings"] and out["bad"] == 1


def fields(file: FileDescriptorProto) -> dict[str, set[tuple[str, int, int, int, str]]]:
    found: dict[str, set[tuple[str, int, int, int, str]]] = {}

    def walk(message: object, prefix: str) -> None:
        name = prefix + message.name  # type: ignore[attr-defined]
        found[name] = {(f.name, f.number, f.type, f.label, f.type_name) for f in message.field}  # type: ignore[attr-defined]
        for inner in message.nested_type:  # type: ignore[attr-defined]
            walk(inner, name + ".")

    for message in file.message_type:
        walk(message, "")
    for enum in file.enum_type:
        found[enum.name] = {(v.name, v.number, 0, 0, "") for v in enum.value}
    for service in file.service:
        found[service.name] = {(m.name, m.client_streaming, m.server_streaming, 0, m.input_type + m.output_type) for m in service.method}
    return found


def test_descriptors_are_wire_compatible() -> None:
    """Every message, field number, type, enum and method of Triton's service is ours too, and nothing else."""
    import base64

    done = subprocess.run([sys.executable, "-c", DUMP], capture_output=True, text=True, timeout=60, check=True)
    theirs: dict[str, set[tuple[str, int, int, int, str]]] = {}
    for text in json.loads(done.stdout):
        theirs |= fields(FileDescriptorProto.FromString(base64.b64decode(text)))
    ours: dict[str, set[tuple[str, int, int, int, str]]] = {}
    for module in (grpc_service_pb2, model_config_pb2):
        ours |= fields(FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))
    assert len(theirs) > 100
    assert ours == theirs
    assert Path(grpc_service_pb2.__file__).exists()
