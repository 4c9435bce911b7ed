"""The REST form of the Open Inference Protocol at the web listener, with tritonclient.http and by hand."""

from __future__ import annotations

import gzip
import http.client
import json
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from inference import grpc_service_pb2 as oip
from inference.model_config_pb2 import ModelConfig

from tests.harness.calls import Stub, infer_request
from tests.harness.product import Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import Record, read_records

X = np.array([[1, 2, 3, 4]], np.float32)
CLIENT = """
import json, sys
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException
c = triton.InferenceServerClient(sys.argv[1], concurrency=4)
out = {"live": c.is_server_live(), "ready": c.is_server_ready()}
out |= {"model_ready": c.is_model_ready("scale"), "unknown_ready": c.is_model_ready("no")}
out |= {"server": c.get_server_metadata(), "meta": c.get_model_metadata("scale")}
out["index"] = sorted(m["name"] for m in c.get_model_repository_index())
config = c.get_model_config("scale")
out["config"] = [config["max_batch_size"], config["input"][0]["dims"], config["input"][0]["data_type"]]
x = np.arange(8, dtype=np.float32).reshape(2, 4)
out["y"] = []
for binary in (True, False):
    i = triton.InferInput("x", x.shape, "FP32"); i.set_data_from_numpy(x, binary_data=binary)
    o = triton.InferRequestedOutput("y", binary_data=binary)
    for packed in (None, "gzip", "deflate"):
        r = c.infer("scale", [i], outputs=[o], request_id="7", request_compression_algorithm=packed, response_compression_algorithm=packed)
        out["y"].append(r.as_numpy("y").tolist()); out["id"] = r.get_response()["id"]
out["default"] = c.infer("scale", [i], model_version="1").as_numpy("y").tolist()
s = np.array(["a", "b\\u00e9"], dtype=object)
out["s"] = []
for binary in (True, False):
    i2 = triton.InferInput("x", s.shape, "BYTES"); i2.set_data_from_numpy(s, binary_data=binary)
    got = c.infer("strings", [i2], outputs=[triton.InferRequestedOutput("y", binary_data=binary)]).as_numpy("y").tolist()
    out["s"].append([v.decode() if isinstance(v, bytes) else v for v in got])
out["async"] = [c.async_infer("scale", [i]).get_result().as_numpy("y").tolist() for _ in range(8)]
stats = c.get_inference_statistics("scale")["model_stats"][0]
out["stats"] = [stats["inference_count"] > 0, isinstance(stats["inference_stats"]["success"]["ns"], int)]
calls = {"unknown": lambda: c.infer("nope", [i]), "load": lambda: c.load_model("scale")}
calls["memory"] = lambda: c.get_system_shared_memory_status()
for name, call in calls.items():
    try:
        call(); out[name] = "no error"
    except InferenceServerException as e:
        out[name] = [e.status(), e.message()]
print(json.dumps(out))
"""


def ask(product: Product, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", product.ports["http"], timeout=30)
    connection.request(method, path, body or None, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def request(**more: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}], **more}).encode()


def recorded(product: Product, position: str) -> Record:
    log, _, sequence = position.split("/")
    folder = product.data / "audit" / log
    return wait_for(lambda: [r for r in read_records(folder) if r.header.sequence == int(sequence)], what=position)[0]


def test_tritonclient_http_works_unchanged(product: Product) -> None:
    """Health, metadata, configuration, index, statistics, inference in both forms, packed both ways, asynchronous calls, error texts."""
    address = f"127.0.0.1:{product.ports['http']}"
    done = subprocess.run([sys.executable, "-c", CLIENT, address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout)
    assert (out["live"], out["ready"], out["model_ready"], out["unknown_ready"]) == (True, True, True, False)
    assert out["server"]["name"] == "vigil" and "binary_tensor_data" in out["server"]["extensions"]
    assert out["meta"] == {
        "name": "scale", "versions": ["1"], "platform": "onnxruntime_onnx", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }  # fmt: skip
    assert {"scale", "strings"} <= set(out["index"]) and out["config"] == [32, [4], "TYPE_FP32"]
    expected = [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert out["y"] == [expected] * 6 and out["default"] == expected and out["async"] == [expected] * 8 and out["id"] == "7"
    assert out["s"] == [["a", "bé"]] * 2 and out["stats"] == [True, True]
    assert out["unknown"] == ["404", "Request for unknown model: 'nope' is not found"]
    assert out["load"][0] == "503" and "not allowed" in out["load"][1] and out["memory"] == "no error"


def test_a_rest_call_is_recorded_like_any(product: Product, stub: Stub) -> None:
    """Position, state and trace stand in headers; hashes are those of the same call over gRPC, by data, nested data or binary data."""
    _, trailers = stub.unary("/inference.GRPCInferenceService/ModelInfer", infer_request("scale", {"x": X}), oip.ModelInferResponse)
    wanted = recorded(product, trailers["vigil-audit-position"])
    nested = json.loads(request())
    nested["inputs"][0]["data"] = [[1, 2, 3, 4]]
    binary = json.loads(request(parameters={"binary_data_output": True}))
    del binary["inputs"][0]["data"]
    binary["inputs"][0]["parameters"] = {"binary_data_size": 16}
    head = json.dumps(binary).encode()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for body, headers in (
        (request(), {}), (json.dumps(nested).encode(), {}), (head + X.tobytes(), {"Inference_Header_Content_Length": str(len(head))}),
    ):  # fmt: skip
        status, got, data = ask(product, "POST", "/v2/models/scale/infer", body, traceparent=f"00-{trace}-00f067aa0ba902b7-01", **headers)
        assert status == 200 and got["vigil-safety-state"] == "NORMAL" and got["vigil-trace-id"] == trace
        if headers:
            size = int(got["inference-header-content-length"])
            assert np.frombuffer(data[size:], np.float32).tolist() == [2, 4, 6, 8]
            assert json.loads(data[:size])["outputs"][0]["parameters"] == {"binary_data_size": 16}
        else:
            answer = json.loads(data)
            assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2, 4, 6, 8]}]
            assert answer["model_version"] == "1" and len(answer["parameters"]["vigil_model_digest"]) == 64
        h = recorded(product, got["vigil-audit-position"]).header
        assert (h.input_hash, h.output_hash, h.event_id) == (wanted.header.input_hash, wanted.header.output_hash, events.ANSWER)
        assert h.trace_id.hex() == trace


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "text"),
    [
        ("scale", b'{"inputs"', {}, 400, "failed to parse the request JSON buffer"),
        ("scale", request().replace(b"[1, 2, 3, 4]", b"[1, 2, 3]"), {}, 400, "data has 3 elements, the shape has 4"),
        ("scale", request().replace(b"1, 2, 3, 4", b"1, 2, 3, 1e99"), {}, 400, "('x'): data[3]: 1e99 is beyond the range of FP32"),
        ("scale", request(), {"Inference_Header_Content_Length": "9999"}, 400, "Inference-Header-Content-Length is '9999'"),
        ("scale", request(), {"Content_Encoding": "br"}, 400, "Content-Encoding 'br' is not known"),
        ("scale", request(), {"Content_Encoding": "gzip"}, 400, "gzip: invalid header"),
        ("scale", gzip.compress(request())[:-4], {"Content_Encoding": "gzip"}, 400, "unexpected EOF"),
        ("scale", gzip.compress(b" " * (130 << 20)), {"Content_Encoding": "gzip"}, 413, "unpacks to more bytes than the limit"),
        ("scale", zlib.compress(b"[" * 1_000_000), {"Content_Encoding": "deflate"}, 400, "nested deeper than 64"),
        ("scale", request(outputs=[{"name": "z"}]), {}, 400, "z"),
        ("scale/versions/x", request(), {}, 400, "failed to get model version from specified version string"),
        ("scale/versions/9", request(), {}, 404, "9"),
        ("no%2Fsuch", request(), {}, 404, "no/such"),
        ("unknown", request(), {}, 404, "Request for unknown model: 'unknown' is not found"),
    ],
)  # fmt: skip
def test_bad_requests(product: Product, path: str, body: bytes, headers: dict[str, str], status: int, text: str) -> None:
    """Each is refused with words and a record, and the next good call works."""
    got, answered, data = ask(product, "POST", f"/v2/models/{path}/infer", body, **headers)
    assert got == status and text in json.loads(data)["error"], data
    assert recorded(product, answered["vigil-audit-position"]).header.event_id not in (0, events.ANSWER)
    assert ask(product, "POST", "/v2/models/scale/infer", request())[0] == 200


def test_values_that_json_does_not_have(product: Product) -> None:
    """The model's output is checked before; what is left to say no to is a type without a form in JSON."""
    status, _, data = ask(product, "POST", "/v2/models/log/infer", request().replace(b"[1,", b"[-1,"))
    assert status == 500 or status == 400, data
    status, _, data = ask(product, "GET", "/v2/nothing")
    assert status == 404 and "not a path" in json.loads(data)["error"]
    status, headers, _ = ask(product, "POST", "/v2/models/scale/infer", request(), Accept_Encoding="br, deflate;q=0, gzip")
    assert status == 200 and headers["content-encoding"] == "gzip"


def test_a_foreign_page_may_not(product: Product) -> None:
    assert ask(product, "POST", "/v2/models/scale/infer", request(), Origin="http://elsewhere.example")[0] == 403
    assert ask(product, "POST", "/v2/models/scale/infer", request(), Host="elsewhere.example")[0] == 403


def test_models_config_prints_what_config_pbtxt_would_have(product: Product) -> None:
    """The text is a configuration that the same model accepts."""
    printed = product.vigil("models", "config", "scale").stdout
    config = text_format.Parse(printed, ModelConfig())
    assert config.name == "scale" and config.max_batch_size == 32 and list(config.input[0].dims) == [4]
    assert json.loads(product.vigil("models", "config", "strings", "--json").stdout)["input"][0]["data_type"] == "TYPE_STRING"
    assert "unknown model" in product.vigil("models", "config", "nope", check=False).stderr
