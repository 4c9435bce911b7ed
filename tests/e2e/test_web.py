"""The web listener: Connect, gRPC-Web, reflection, health, origins, hosts."""

from __future__ import annotations

import base64
import http.client
import json
import struct
import subprocess
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from inference import grpc_service_pb2 as oip

from tests.harness.calls import Stub, infer_request, output
from tests.harness.product import ROOT, Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit.verify import read_records

X = np.array([[1, 2, 3, 4]], np.float32)
INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"


def post(product: Product, path: str, body: bytes, kind: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", product.ports["http"], timeout=20)
    connection.request("POST", path, body, {"Content-Type": kind, **headers})
    answer = connection.getresponse()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def test_connect_json(product: Product) -> None:
    """Plain JSON by POST: what curl would do."""
    body = {
        "modelName": "scale",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32Contents": [1, 2, 3, 4]}}],
    }
    status, headers, data = post(product, INFER_PATH, json.dumps(body).encode(), "application/json")
    reply = json.loads(data)
    assert status == 200
    assert np.frombuffer(base64.b64decode(reply["rawOutputContents"][0]), np.float32).tolist() == [2, 4, 6, 8]
    assert len(headers["vigil-trace-id"]) == 32
    assert headers["trailer-vigil-audit-position"].startswith("sidecar/")


def test_connect_errors_carry_details(product: Product) -> None:
    """An error has code, text and the decoded details."""
    status, headers, data = post(product, INFER_PATH, b'{"id":"' + b"i" * 300 + b'"}', "application/json")
    reply = json.loads(data)
    assert status == 400 and reply["code"] == "invalid_argument"
    kinds = {d["type"]: d.get("debug", {}) for d in reply["details"]}
    assert [v["field"] for v in kinds["google.rpc.BadRequest"]["fieldViolations"]] == ["model_name", "id"]
    assert kinds["google.rpc.ErrorInfo"]["metadata"]["event"] == "DIA-2047"
    assert headers["vigil-audit-position"].startswith("gateway/")


def grpc_web(product: Product, path: str, message: bytes, **headers: str) -> tuple[list[bytes], dict[str, str]]:
    status, headers, data = post(product, path, b"\0" + struct.pack(">I", len(message)) + message, "application/grpc-web+proto", **headers)
    assert status == 200
    messages, trailers = [], dict(headers)  # an error without a message may put its trailers into the headers
    while data:
        flag, (size,) = data[0], struct.unpack(">I", data[1:5])
        part, data = data[5 : 5 + size], data[5 + size :]
        if flag & 0x80:
            trailers |= dict(line.split(": ", 1) for line in part.decode().strip().split("\r\n"))
        else:
            messages.append(part)
    return messages, {k.lower(): v for k, v in trailers.items()}


def test_grpc_web_unary(product: Product) -> None:
    """Frames and trailers as browsers' gRPC-Web clients expect them."""
    messages, trailers = grpc_web(product, INFER_PATH, infer_request("scale", {"x": X}).SerializeToString())
    assert np.array_equal(output(oip.ModelInferResponse.FromString(messages[0])), X * 2)
    assert trailers["grpc-status"] == "0"
    assert trailers["vigil-audit-position"].startswith("sidecar/") and trailers["vigil-safety-state"] == "NORMAL"


def test_grpc_web_error(product: Product) -> None:
    """Errors arrive in trailers with their details."""
    messages, trailers = grpc_web(product, INFER_PATH, infer_request("nope", {"x": X}).SerializeToString())
    assert not messages and trailers["grpc-status"] == "5"
    raw = trailers["grpc-status-details-bin"]
    assert Status.FromString(base64.b64decode(raw + "=" * (-len(raw) % 4))).message.startswith("Request for unknown model")


def test_grpc_on_the_web_listener(product: Product) -> None:
    """A native gRPC client works on this port as well."""
    stub = Stub(grpc.insecure_channel(f"127.0.0.1:{product.ports['http']}"))
    assert np.array_equal(output(stub.infer(infer_request("scale", {"x": X}))), X * 2)


@pytest.mark.parametrize("port", ["grpc", "http", "sidecar_grpc"])
def test_reflection(product: Product, port: str) -> None:
    """Every service is listed, and its descriptor can be had, on every listener."""
    stub = reflection_pb2_grpc.ServerReflectionStub(product.channel(port))
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="vigil.perception.v1.PerceptionService"),
    ]
    listed, described = list(stub.ServerReflectionInfo(iter(asked), timeout=10))
    names = {s.name for s in listed.list_services_response.service}
    assert names >= {
        "inference.GRPCInferenceService", "vigil.perception.v1.PerceptionService", "vigil.models.v1.ModelsService",
        "vigil.safety.v1.SafetyService", "grpc.health.v1.Health",
    }  # fmt: skip
    assert described.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("port", ["grpc", "http", "sidecar_grpc"])
def test_health(product: Product, port: str) -> None:
    """grpc.health.v1 says SERVING on every listener."""
    call = product.channel(port).unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    assert call(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    watch = product.channel(port).unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )(health_pb2.HealthCheckRequest(), timeout=10)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_buf_curl_by_reflection(product: Product) -> None:
    """A client that knows nothing calls by reflection, over gRPC and over gRPC-Web."""
    for protocol in ("grpc", "grpcweb", "connect"):
        done = subprocess.run(
            [
                str(ROOT / ".venv" / "bin" / "buf"), "curl", "--protocol", protocol, "--http2-prior-knowledge", "--data", "{}",
                f"http://127.0.0.1:{product.ports['http']}/vigil.models.v1.ModelsService/ListModels",
            ],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "scale" in {m["name"] for m in json.loads(done.stdout)["models"]}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403), ({"Host": "evil.example:8000"}, 403), ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403), ({"Host": "localhost"}, 200), ({"Host": "[::1]:8000"}, 200), ({"Host": "127.0.0.1.evil.example"}, 403),
    ],
)  # fmt: skip
def test_host_and_origin(product: Product, headers: dict[str, Any], status: int) -> None:
    """No DNS rebinding and no foreign page."""
    body = json.dumps({"name": "scale"}).encode()
    answer = post(product, "/inference.GRPCInferenceService/ModelMetadata", body, "application/json", **headers)
    assert answer[0] == status
    if status == 403:
        sequence = int(answer[1]["vigil-audit-position"].split("/")[2])
        record = next(r for r in read_records(product.data / "audit" / "gateway") if r.header.sequence == sequence)
        assert record.header.event_id == events.WEB_FORBIDDEN and record.header.trace_id.hex() == answer[1]["vigil-trace-id"]


def test_same_origin_is_allowed(product: Product) -> None:
    """The page that this port serves may call it."""
    origin = f"http://127.0.0.1:{product.ports['http']}"
    assert post(product, "/inference.GRPCInferenceService/ServerLive", b"{}", "application/json", Origin=origin)[0] == 200


WRONG = [
    ("broken JSON", INFER_PATH, b"{", "application/json", {}, 400),
    ("broken protobuf", INFER_PATH, b"\xff\xff", "application/proto", {}, 400),
    ("unknown content type", INFER_PATH, b"{}", "text/plain", {}, 415),
    ("unknown method", "/nope.Service/Call", b"{}", "application/json", {}, 404),
    ("deep JSON", INFER_PATH, b'{"inputs":' * 200 + b"1" + b"}" * 200, "application/json", {}, 400),
    ("broken gzip", INFER_PATH, b"not gzip", "application/json", {"Content-Encoding": "gzip"}, 400),
    ("unknown compression", INFER_PATH, b"{}", "application/json", {"Content-Encoding": "rot13"}, 501),
    ("broken gRPC-Web frame", INFER_PATH, b"\x00\x00\x00\x00\x09short", "application/grpc-web+proto", {}, 200),
]


@pytest.mark.parametrize(("name", "path", "body", "kind", "headers", "status"), WRONG, ids=[w[0] for w in WRONG])
def test_what_the_web_transport_refuses(
    product: Product, name: str, path: str, body: bytes, kind: str, headers: dict[str, str], status: int
) -> None:
    """A clear error with trace id, one record under its position; the next call works."""
    found, answer, _ = post(product, path, body, kind, **headers)
    assert found == status
    log, _, sequence = answer["vigil-audit-position"].split("/")
    record = next(r for r in read_records(product.data / "audit" / log) if r.header.sequence == int(sequence))
    wanted = events.CONTRACT_VIOLATION if name == "broken protobuf" else events.TRANSPORT_REFUSED
    assert record.header.event_id == wanted and record.header.trace_id.hex() == answer["vigil-trace-id"]
    assert post(product, "/inference.GRPCInferenceService/ServerLive", b"{}", "application/json")[0] == 200


def test_what_the_native_transport_refuses(product: Product) -> None:
    """Unknown services and methods, and messages too large to be read, are recorded too, and found by position or trace id."""
    channel = product.channel()
    for path, size in (("/nope.Service/Call", 0), ("/inference.GRPCInferenceService/Nope", 0), (INFER_PATH, 130 << 20)):
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(path)(bytes(size), timeout=30)
        found = dict((*error.value.initial_metadata(), *error.value.trailing_metadata()))
        trace = found["vigil-trace-id"]

        def recorded(trace: str = trace) -> Any:
            return next((r for r in read_records(product.data / "audit" / "gateway") if r.header.trace_id.hex() == trace), None)

        record = wait_for(recorded, 5, "the record")
        assert record.header.event_id == events.TRANSPORT_REFUSED
        assert record.header.status_code == error.value.code().value[0]
        if not size:
            assert int(found["vigil-audit-position"].split("/")[2]) == record.header.sequence
