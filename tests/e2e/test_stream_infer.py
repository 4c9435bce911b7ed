"""ModelStreamInfer: requests of one stream, answered in order, each with its own record."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip

from tests.harness import graphs
from tests.harness.calls import infer_request
from tests.harness.product import Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import read_records

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
CLIENT = """
import json, queue, sys
import numpy as np
import tritonclient.grpc as triton
c = triton.InferenceServerClient(sys.argv[1])
got = queue.Queue()
c.start_stream(lambda result, error: got.put((result, error)))
for n in range(200):
    x = np.full((1, 4), n, np.float32)
    i = triton.InferInput("x", x.shape, "FP32"); i.set_data_from_numpy(x)
    model = "nope" if n % 10 == 9 else "scale"
    c.async_stream_infer(model, [i], request_id=str(n), enable_empty_final_response=n % 2 == 1)
out = []
for n in range(200):
    result, error = got.get(timeout=30)
    if error is not None:
        out.append([error.message(), None, None]); continue
    r = result.get_response()
    out.append([r.id, float(result.as_numpy("y")[0, 0]), r.parameters["triton_final_response"].bool_param])
c.stop_stream()
print(json.dumps(out))
"""


def streamed(product: Product, requests: Iterator[bytes], port: str = "grpc", timeout_s: float = 60) -> Any:
    call = product.channel(port).stream_stream(METHOD, response_deserializer=oip.ModelStreamInferResponse.FromString)
    return call(requests, timeout=timeout_s)


def request(n: float, model: str = "scale", **more: Any) -> bytes:
    return infer_request(model, {"x": np.full((1, 4), n, np.float32)}, **more).SerializeToString()


def test_tritonclient_streams_unchanged(product: Product) -> None:
    """200 requests without waiting, one in ten for no model: answered in order, errors within the stream."""
    address = f"127.0.0.1:{product.ports['grpc']}"
    done = subprocess.run([sys.executable, "-c", CLIENT, address], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-2000:]
    for n, (first, value, final) in enumerate(json.loads(done.stdout)):
        if n % 10 == 9:
            assert "Request for unknown model: 'nope' is not found" in first and value is None
        else:
            assert (first, value, final) == (str(n), 2.0 * n, True)


@pytest.mark.parametrize("port", ["grpc", "http"])
def test_each_request_has_its_record(product: Product, port: str) -> None:
    """Positions stand in the answers' parameters; garbage and broken rules are refused in their place, and the stream goes on."""
    given = [request(1, request_id="a"), b"\xff\xff", request(2, request_id="i" * 300), request(3, request_id="d")]
    answers = list(streamed(product, iter(given), port))
    assert [a.infer_response.id for a in answers] == ["a", "", "i" * 300, "d"]
    assert [bool(a.error_message) for a in answers] == [False, True, True, False]
    assert "not a inference.ModelInferRequest" in answers[1].error_message and "id" in answers[2].error_message
    assert np.frombuffer(answers[3].infer_response.raw_output_contents[0], np.float32).tolist() == [6, 6, 6, 6]
    assert len(answers[0].infer_response.parameters["vigil_model_digest"].string_param) == 64
    expected = [events.ANSWER, events.CONTRACT_VIOLATION, events.CONTRACT_VIOLATION, events.ANSWER]
    for answer, event in zip(answers, expected, strict=True):
        log, _, sequence = answer.infer_response.parameters["vigil_audit_position"].string_param.split("/")
        folder = product.data / "audit" / log
        found = wait_for(lambda f=folder, s=int(sequence): [r for r in read_records(f) if r.header.sequence == s])
        assert found[0].header.event_id == event
        assert answer.infer_response.parameters["vigil_safety_state"].string_param == "NORMAL"


def test_a_stream_that_is_left_leaves_nothing(product: Product) -> None:
    """Cancelled in the midst, with requests under way and answers unread: places and bytes come back."""
    for _ in range(5):
        endless = (request(n) for n in iter(int, 1))
        call = streamed(product, endless)
        next(call)
        call.cancel()

    def depth() -> float:
        import urllib.request

        text = urllib.request.urlopen(f"http://127.0.0.1:{product.ports['metrics']}/metrics", timeout=10).read().decode()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("vigil_queue_depth "))

    wait_for(lambda: depth() == 0, what="no call is in flight")
    assert len(list(streamed(product, iter([request(1)])))) == 1


@pytest.mark.parametrize("port", ["grpc", "http"])
def test_a_message_that_is_too_large_ends_the_stream(product: Product, port: str) -> None:
    """It cannot be read; what came before is answered, and the refusal is recorded, under the stream's trace."""
    call = streamed(product, iter([request(1), b"\0" * (130 << 20)]), port)
    assert next(call).infer_response.raw_output_contents
    with pytest.raises(grpc.RpcError) as error:
        next(call)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    trace = bytes.fromhex(dict(call.initial_metadata())["vigil-trace-id"])
    log = product.data / "audit" / "gateway"
    wait_for(lambda: [r for r in read_records(log) if r.header.trace_id == trace and r.header.event_id == events.TRANSPORT_REFUSED])


def test_a_long_stream_over_the_web_listener_holds_no_bytes(tmp_path: Path) -> None:
    """More bytes than may be in flight go through one stream, and others are served beside it."""
    graphs.scale(2.0, tmp_path / "models" / "scale" / "1" / "model.onnx", 1 << 16, rows=1)
    x = infer_request("scale", {"x": np.ones((1, 1 << 16), np.float32)}).SerializeToString()
    with Product(tmp_path, {"limits.message_bytes_max": 1 << 20, "limits.bytes_in_flight_max": 4 << 20}) as product:
        call = streamed(product, (x for _ in range(64)), "http")
        assert [a.error_message for a in call] == [""] * 64


def test_a_draining_gateway_answers_what_it_took(tmp_path: Path) -> None:
    """SIGTERM while a stream waits for more: the stream ends with UNAVAILABLE after its answers, and the stop is orderly."""
    graphs.scale(2.0, tmp_path / "models" / "scale" / "1" / "model.onnx")
    with Product(tmp_path) as product:
        over = threading.Event()

        def slow() -> Iterator[bytes]:
            yield request(1)
            over.wait(30)

        call = streamed(product, slow())
        assert np.frombuffer(next(call).infer_response.raw_output_contents[0], np.float32).tolist() == [2, 2, 2, 2]
        stopping = threading.Thread(target=product.stop)
        stopping.start()
        with pytest.raises(grpc.RpcError) as error:
            next(call)
        over.set()
        stopping.join()
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert product.process is not None and product.process.returncode == 0


def test_the_sidecars_own_listener_names_the_gateway(product: Product) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(streamed(product, iter([b""]), "sidecar_grpc", 10))
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED and "the gateway" in error.value.details()
