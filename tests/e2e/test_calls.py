"""Calls through the gateway: answers, headers, refusals, records."""

from __future__ import annotations

import re
import struct
import time
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip

from tests.harness.calls import INFER, Stub, details, infer_request, output
from tests.harness.product import Product, wait_for
from vigil_sidecar.audit.tensor_hash import tensor_hash
from vigil_sidecar.audit.verify import Record, read_records
from vigil_sidecar.engine.datatypes import encode_bytes

X = np.array([[1, 2, 3, 4]], np.float32)


def records(product: Product, log: str) -> list[Record]:
    return list(read_records(product.data / "audit" / log))


def record_at(product: Product, position: str) -> Record:
    log, boot, sequence = position.split("/")
    return next(r for r in records(product, log) if r.header.sequence == int(sequence) and r.header.boot_id.hex() == boot)


def test_answer_with_everything_beside_it(product: Product, stub: Stub) -> None:
    """An answer carries numbers, version, digest, trace id, position and state; its record has the same."""
    request = infer_request("scale", {"x": X}, request_id="call-7")
    trace = "0af7651916cd43dd8448eb211c80319c"
    response, beside = stub.unary(INFER, request, oip.ModelInferResponse, metadata=(("traceparent", f"00-{trace}-b7ad6b7169203331-01"),))
    assert np.array_equal(output(response), X * 2)
    assert response.id == "call-7" and response.model_version == "1"
    digest = response.parameters["vigil_model_digest"].string_param
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert beside["vigil-trace-id"] == trace
    assert beside["vigil-safety-state"] == "NORMAL"
    record = record_at(product, beside["vigil-audit-position"])
    h = record.header
    assert h.trace_id.hex() == trace and h.model_digest.hex() == digest and h.model_version == 1
    assert h.input_hash == tensor_hash([("x", "FP32", (1, 4), X.tobytes())])
    assert h.output_hash == tensor_hash([("y", "FP32", (1, 4), (X * 2).tobytes())])
    assert h.batch_size >= 1 and h.latency_ns > 0 and h.status_code == 0 and h.safety_state == 2


def test_raw_and_typed_contents_have_one_hash(product: Product, stub: Stub) -> None:
    """The same call by raw and by typed contents gives the same answer and the same input hash."""
    raw = infer_request("scale", {"x": X})
    typed = oip.ModelInferRequest(model_name="scale")
    tensor = typed.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend(X.ravel().tolist())
    hashes = []
    for request in (raw, typed):
        response, beside = stub.unary(INFER, request, oip.ModelInferResponse)
        assert np.array_equal(output(response), X * 2)
        hashes.append(record_at(product, beside["vigil-audit-position"]).header.input_hash)
    assert hashes[0] == hashes[1]


def test_strings_go_through(stub: Stub) -> None:
    """BYTES tensors arrive as they were sent."""
    request = oip.ModelInferRequest(model_name="strings")
    request.inputs.add(name="x", datatype="BYTES", shape=[3])
    request.raw_input_contents.append(encode_bytes(["a", "", "größer"]))
    assert stub.infer(request).raw_output_contents[0] == encode_bytes(["a", "", "größer"])


def test_requested_outputs_and_free_dimensions(stub: Stub) -> None:
    """Named outputs only, and any size of a free dimension."""
    request = infer_request("pairwise", {"a": np.ones((2, 7), np.float32), "b": np.full((2, 7), 2, np.float32)})
    request.outputs.add(name="sum")
    assert output(stub.infer(request)).tolist() == [[3.0] * 7] * 2
    del request.outputs[:]
    request.outputs.add(name="nope")
    with pytest.raises(grpc.RpcError, match="unexpected inference output 'nope'"):
        stub.infer(request)


def refused(stub: Stub, request: Any, code: grpc.StatusCode, text: str, product: Product | None = None) -> dict[str, Any]:
    with pytest.raises(grpc.RpcError) as error:
        stub.unary(INFER, request, oip.ModelInferResponse)
    assert error.value.code() == code
    assert text in error.value.details()
    found = details(error.value)
    trailing = dict(error.value.trailing_metadata())
    assert found["info"]["trace_id"] == dict(error.value.initial_metadata())["vigil-trace-id"]
    if product is not None:
        record = record_at(product, trailing["vigil-audit-position"])
        assert f"DIA-{record.header.event_id}" == found["info"]["event"]
        assert record.header.trace_id.hex() == found["info"]["trace_id"]
        assert record.header.status_code == code.value[0]
    return found


def bad(change: Any) -> oip.ModelInferRequest:
    request = infer_request("scale", {"x": X})
    change(request)
    return request


def set_shape(*shape: int) -> Any:
    def change(r: oip.ModelInferRequest) -> None:
        del r.inputs[0].shape[:]
        r.inputs[0].shape.extend(shape)

    return change


def twice(r: oip.ModelInferRequest) -> None:
    r.inputs.append(r.inputs[0])
    r.raw_input_contents.append(r.raw_input_contents[0])


def both(r: oip.ModelInferRequest) -> None:
    r.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])


SEMANTIC = [
    ("bytes do not match", lambda r: r.raw_input_contents.__setitem__(0, b"123"), "needs 16 bytes, got 3"),
    ("negative shape", set_shape(-1, 4), "negative dimension -1"),
    ("huge shape", set_shape(2**62, 4), "more than"),
    ("overflowing shape", set_shape(2**32, 2**32, 2**32), "more than"),
    ("empty but huge", set_shape(0, 2**62), "more than"),
    ("other rank", set_shape(4), "expected [-1, 4], got [4]"),
    ("other width", set_shape(1, 5), "unexpected shape"),
    ("type", lambda r: setattr(r.inputs[0], "datatype", "INT32"), "data-type is 'INT32'"),
    ("unknown type", lambda r: setattr(r.inputs[0], "datatype", "FLOAT"), "data-type is 'FLOAT'"),
    ("unknown input", lambda r: setattr(r.inputs[0], "name", "q"), "unexpected inference input 'q'"),
    ("missing input", lambda r: (r.inputs.pop(), r.raw_input_contents.pop()), "'x' is missing"),
    ("given twice", twice, "given twice"),
    ("both contents", both, "exclude each other"),
    ("raw count", lambda r: r.raw_input_contents.append(b""), "has 2 items"),
    ("version", lambda r: setattr(r, "model_version", "one"), "failed to get model version from specified version string"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change", "text"), SEMANTIC, ids=[s[0] for s in SEMANTIC])
def test_semantic_violations(product: Product, stub: Stub, what: str, change: Any, text: str) -> None:
    """A request that contradicts itself or the model is INVALID_ARGUMENT with the field, and is recorded."""
    found = refused(stub, bad(change), grpc.StatusCode.INVALID_ARGUMENT, text, product)
    assert found["reason"] == "SEMANTIC_VIOLATION" and found["fields"]
    assert np.array_equal(output(stub.infer(infer_request("scale", {"x": X}))), X * 2)


def test_contract_violation(product: Product, stub: Stub) -> None:
    """A broken rule is INVALID_ARGUMENT with every field, DIA-2047, and a record in the gateway's log."""
    request = oip.ModelInferRequest(id="i" * 300)
    request.inputs.add(name="")
    found = refused(stub, request, grpc.StatusCode.INVALID_ARGUMENT, "contract violation", product)
    assert found["fields"] == ["model_name", "id", "inputs[0].name", "inputs[0].datatype"]
    assert (found["reason"], found["info"]["event"]) == ("CONTRACT_VIOLATION", "DIA-2047")


@pytest.mark.parametrize(
    ("model", "version", "text"),
    [
        ("nope", "", "Request for unknown model: 'nope' is not found"),
        ("scale", "9", "Request for unknown model: 'scale' version 9 is not at ready state"),
        ("../scale", "", "Request for unknown model"),
    ],
)
def test_unknown_models(product: Product, stub: Stub, model: str, version: str, text: str) -> None:
    """Unknown models and versions have Triton's texts and NOT_FOUND."""
    found = refused(stub, infer_request(model, {"x": X}, version), grpc.StatusCode.NOT_FOUND, text, product)
    assert found["info"]["event"] == "DIA-2042"


def test_output_that_is_not_finite_is_no_answer(product: Product, stub: Stub) -> None:
    """NaN in an output is an error with its own event; the next good call works."""
    request = infer_request("log", {"x": np.array([[-1, 1, 1, 1]], np.float32)})
    found = refused(stub, request, grpc.StatusCode.INTERNAL, "is not finite", product)
    assert (found["reason"], found["info"]["event"]) == ("OUTPUT_VIOLATION", "DIA-2048")
    assert output(stub.infer(infer_request("log", {"x": np.ones((1, 4), np.float32)}))).tolist() == [[0, 0, 0, 0]]


def test_rows_of_a_time_axis_are_not_batched(stub: Stub) -> None:
    """Calls at once to a model whose rows influence each other each get their own answer."""
    call = stub.channel.unary_unary(
        INFER, request_serializer=oip.ModelInferRequest.SerializeToString, response_deserializer=oip.ModelInferResponse.FromString
    )
    inputs = [np.full((2, 4), i, np.float32) + np.array([[0], [1]], np.float32) for i in range(40)]
    futures = [call.future(infer_request("mixing", {"x": x}), timeout=20) for x in inputs]
    for future in futures:
        assert output(future.result()).tolist() == [[-0.5] * 4, [0.5] * 4]


def test_many_at_once_are_batched_and_right(product: Product, stub: Stub) -> None:
    """Calls at once share batches (as their records say), and each gets its own rows."""
    call = stub.channel.unary_unary(
        INFER, request_serializer=oip.ModelInferRequest.SerializeToString, response_deserializer=oip.ModelInferResponse.FromString
    )
    futures = [(i, call.future(infer_request("scale", {"x": X + i}), timeout=20)) for i in range(400)]
    positions = []
    for i, future in futures:
        assert np.array_equal(output(future.result()), (X + i) * 2)
        positions.append(dict(future.trailing_metadata())["vigil-audit-position"])
    assert len(set(positions)) == 400
    wanted = {int(p.split("/")[2]) for p in positions}
    found = [r.header for r in records(product, "sidecar") if r.header.sequence in wanted]
    assert len(found) == 400
    assert max(h.batch_size for h in found) > 1
    assert all(h.batch_row < h.batch_size for h in found)


def test_expired_call_is_not_computed(product: Product, stub: Stub) -> None:
    """A call whose deadline passes while it waits behind a slow one is DEADLINE_EXCEEDED, and is never computed."""
    slow = infer_request("slow", {"x": np.ones((1024, 1024), np.float32)})
    call = stub.channel.unary_unary(
        INFER, request_serializer=oip.ModelInferRequest.SerializeToString, response_deserializer=oip.ModelInferResponse.FromString
    )
    first = call.future(slow, timeout=60)
    time.sleep(0.05)
    with pytest.raises(grpc.RpcError) as error:
        stub.unary(INFER, slow, oip.ModelInferResponse, timeout_s=0.1, metadata=(("traceparent", f"00-{'c' * 32}-{'d' * 16}-00"),))
    # Both ends time the call; when the server's clock is first, grpc-go resets the stream, which grpcio calls cancelled.
    assert error.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    assert output(first.result()).shape == (1024, 1024)
    wait_for(lambda: not first.running(), 10, "the slow call has ended")
    stub.infer(slow, timeout_s=60)
    mine = [r.header for log in ("gateway", "sidecar") for r in records(product, log) if r.header.trace_id.hex() == "c" * 32]
    assert mine and all(h.kind == 2 and h.status_code in (1, 4) for h in mine)


UNIMPLEMENTED = [
    "CudaSharedMemoryRegister",
]


@pytest.mark.parametrize("name", UNIMPLEMENTED)
def test_calls_that_are_not_built_yet(stub: Stub, name: str) -> None:
    """Declared calls that are not offered say so and name what to use."""
    request = getattr(oip, f"{name}Request")()
    with pytest.raises(grpc.RpcError) as error:
        stub.unary(f"/inference.GRPCInferenceService/{name}", request, oip.ModelConfigResponse)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert any(word in error.value.details() for word in ("use ", "set ", "send ", "read "))


def test_direct_sidecar_serves_the_same(product: Product) -> None:
    """The sidecar's own port answers, refuses by the same rules and names the same fields."""
    direct = Stub(product.channel("sidecar_grpc"))
    assert np.array_equal(output(direct.infer(infer_request("scale", {"x": X}))), X * 2)
    with pytest.raises(grpc.RpcError) as error:
        direct.infer(oip.ModelInferRequest(id="i" * 300))
    assert details(error.value)["fields"] == ["model_name", "id"]
    assert details(error.value)["info"]["event"] == "DIA-2047"


def test_garbage_bytes_as_a_message(product: Product, stub: Stub) -> None:
    """Bytes that are no message are refused by gateway and sidecar, recorded, and hurt nobody."""
    for channel in (product.channel(), product.channel("sidecar_grpc")):
        with pytest.raises(grpc.RpcError) as error:
            Stub(channel).raw(INFER)(b"\xff\xfe\xfd" * 10, timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "not a inference.ModelInferRequest" in error.value.details()
        assert dict(error.value.trailing_metadata())["vigil-audit-position"]
    assert np.array_equal(output(stub.infer(infer_request("scale", {"x": X}))), X * 2)


def test_small_message_that_would_become_huge(product: Product, stub: Stub) -> None:
    """Millions of empty inputs in 8 MiB are refused before they are built, by both, and memory stays as it was."""

    def resident_mb(name: str) -> int:
        text = open(f"/proc/{product.pids()[name]}/status").read()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) >> 10

    before = [resident_mb(n) for n in ("gateway_pid", "sidecar_pid")]
    for channel in (product.channel(), product.channel("sidecar_grpc")):
        with pytest.raises(grpc.RpcError) as error:
            Stub(channel).raw(INFER)(b"\x2a\x00" * (4 << 20), timeout=30)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "more than 16384 messages" in error.value.details()
    after = [resident_mb(n) for n in ("gateway_pid", "sidecar_pid")]
    assert all(a < b + 200 for a, b in zip(after, before, strict=True)), (before, after)


def test_many_violations_keep_their_status(stub: Stub) -> None:
    """Hundreds of violated fields still arrive as INVALID_ARGUMENT, the first ones named and the rest counted."""
    request = oip.ModelInferRequest(model_name="scale")
    for _ in range(500):
        request.inputs.add()
    for port in (stub, stub):
        with pytest.raises(grpc.RpcError) as error:
            port.infer(request)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "inputs[0].name" in details(error.value)["fields"]


def test_runtime_failure_names_no_source_file(stub: Stub) -> None:
    """What ONNX Runtime says of a failed run reaches the caller without paths."""
    request = infer_request("pairwise", {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 4), np.float32)})
    with pytest.raises(grpc.RpcError) as error:
        stub.infer(request)
    assert "/onnxruntime" not in error.value.details()


def test_message_over_the_limit(stub: Stub) -> None:
    """A message over limits.message_bytes_max is RESOURCE_EXHAUSTED; one just below goes through."""
    request = infer_request("scale", {"x": np.zeros((1 << 22, 4), np.float32)})
    with pytest.raises(grpc.RpcError) as error:
        stub.infer(request, timeout_s=60)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    rows = (60 << 20) // 16
    big = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    assert np.array_equal(output(stub.infer(infer_request("scale", {"x": big}), timeout_s=60)), big * 2)


def test_non_utf8_strings_are_refused_by_name(stub: Stub) -> None:
    """ONNX Runtime takes text only, so other bytes are refused with the input's name."""
    request = oip.ModelInferRequest(model_name="strings")
    request.inputs.add(name="x", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", 2) + b"\xff\xfe")
    refused(stub, request, grpc.StatusCode.INVALID_ARGUMENT, "input 'x': BYTES element 0 is not UTF-8")


def test_metadata_and_readiness(stub: Stub) -> None:
    """What the Open Inference Protocol tells about server and model."""
    prefix = "/inference.GRPCInferenceService/"
    assert stub.unary(prefix + "ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse)[0].live
    assert stub.unary(prefix + "ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse)[0].ready
    ready = stub.unary(prefix + "ModelReady", oip.ModelReadyRequest(name="scale"), oip.ModelReadyResponse)[0]
    unknown = stub.unary(prefix + "ModelReady", oip.ModelReadyRequest(name="nope"), oip.ModelReadyResponse)[0]
    assert ready.ready and not unknown.ready
    meta = stub.unary(prefix + "ModelMetadata", oip.ModelMetadataRequest(name="scale"), oip.ModelMetadataResponse)[0]
    assert (meta.inputs[0].name, meta.inputs[0].datatype, list(meta.inputs[0].shape)) == ("x", "FP32", [-1, 4])
    index = stub.unary(prefix + "RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse)[0]
    assert {(m.name, m.state) for m in index.models} >= {("scale", "READY"), ("log", "READY")}


@pytest.mark.parametrize("port", ["grpc", "sidecar_grpc"])
def test_errors_that_quote_much_reach_their_caller(product: Product, port: str) -> None:
    """A client of gRPC's core drops trailers over 8 KiB, by chance: it gets what was said, each time."""
    stub = Stub(product.channel(port))
    name = "\u00e9" * 2000
    for _ in range(20):
        request = infer_request("scale", {"x": X})
        request.inputs.add(name=name, datatype="FP32", shape=[1])
        request.raw_input_contents.append(b"1234")
        with pytest.raises(grpc.RpcError) as error:
            stub.infer(request)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value.details()
    with pytest.raises(grpc.RpcError) as error:
        stub.raw("/" + "s" * 2500 + "/" + "m" * 2500)(b"", timeout=10)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
