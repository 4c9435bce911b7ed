"""One trace id through header, log, metrics, spans and audit records."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, infer_request
from tests.harness.product import Product, wait_for
from vigil_sidecar.audit.verify import read_records

X = np.array([[1, 2, 3, 4]], np.float32)


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """A real OTLP receiver."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:
        with self.lock:
            for resource in request.resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                for scope in resource.scope_spans:
                    self.spans.extend((service, span) for span in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[Receiver, int]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = Receiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, port
    server.stop(0)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory, receiver: tuple[Receiver, int]) -> Iterator[Product]:
    running = Product(tmp_path_factory.mktemp("seen"), {"trace.otlp_endpoint": f"127.0.0.1:{receiver[1]}"})
    graphs.scale(2.0, running.models / "m" / "1" / "model.onnx")
    with running:
        yield running


def scrape(product: Product, name: str, accept: str = "application/openmetrics-text") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{product.ports[name]}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode())


def test_one_trace_id_everywhere(product: Product, receiver: tuple[Receiver, int]) -> None:
    """The caller's trace id is in the header, in the spans gateway, batch and run below each other, in an exemplar and in the record."""
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    stub = Stub(product.channel())
    _, beside = stub.unary(
        INFER, infer_request("m", {"x": X}), oip.ModelInferResponse, metadata=(("traceparent", f"00-{trace}-{parent}-01"),)
    )
    assert beside["vigil-trace-id"] == trace

    def mine() -> dict[str, tuple[str, Any]]:
        with receiver[0].lock:
            return {s.name: (service, s) for service, s in receiver[0].spans if s.trace_id.hex() == trace}

    spans = wait_for(lambda: len(mine()) >= 3 and mine(), 20, "three spans")
    gateway, batch, run = spans[INFER], spans["batch"], spans["onnxruntime.run"]
    assert (gateway[0], batch[0], run[0]) == ("vigil-gateway", "vigil-sidecar", "vigil-sidecar")
    assert gateway[1].parent_span_id.hex() == parent
    assert batch[1].parent_span_id == gateway[1].span_id
    assert run[1].parent_span_id == batch[1].span_id
    assert (
        gateway[1].start_time_unix_nano <= run[1].start_time_unix_nano < run[1].end_time_unix_nano <= gateway[1].end_time_unix_nano + 10**6
    )
    exemplar = re.search(
        rf'vigil_request_duration_seconds_bucket{{[^}}]*method="ModelInfer"[^}}]*}} \d+ # {{trace_id="{trace}"}}',
        scrape(product, "metrics"),
    )
    assert exemplar
    sequence = int(beside["vigil-audit-position"].split("/")[2])
    record = next(r for r in read_records(product.data / "audit" / "sidecar") if r.header.sequence == sequence)
    assert record.header.trace_id.hex() == trace and record.header.span_id == gateway[1].span_id
    tail = product.vigil("audit", "tail", str(product.data / "audit" / "sidecar"), "--trace", trace).stdout
    assert trace in tail and len(tail.splitlines()) == 1


def test_unsampled_calls_make_no_spans(product: Product, receiver: tuple[Receiver, int]) -> None:
    """A caller that says "not sampled" is heeded, and still gets its id back."""
    trace = "a" * 32
    stub = Stub(product.channel())
    _, beside = stub.unary(
        INFER, infer_request("m", {"x": X}), oip.ModelInferResponse, metadata=(("traceparent", f"00-{trace}-{'b' * 16}-00"),)
    )
    assert beside["vigil-trace-id"] == trace
    time.sleep(6)
    assert not [s for _, s in receiver[0].spans if s.trace_id.hex() == trace]


@pytest.mark.parametrize("header", ["", "junk", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "A" * 32 + "-" + "1" * 16 + "-01"])
def test_malformed_trace_context_starts_anew(product: Product, header: str) -> None:
    """A malformed traceparent is ignored and a fresh id is given."""
    _, beside = Stub(product.channel()).unary(
        INFER, infer_request("m", {"x": X}), oip.ModelInferResponse, metadata=(("traceparent", header),)
    )
    assert re.fullmatch("[0-9a-f]{32}", beside["vigil-trace-id"]) and beside["vigil-trace-id"] not in header


def test_metrics_of_both(product: Product) -> None:
    """The named metrics are there, with the values that calls gave them."""
    stub = Stub(product.channel())
    stub.infer(infer_request("m", {"x": X}))
    with pytest.raises(grpc.RpcError):
        stub.infer(infer_request("never-heard-of", {"x": X}))
    gateway, sidecar = scrape(product, "metrics"), scrape(product, "sidecar_metrics")
    assert re.search(r'vigil_requests_total{code="OK",method="ModelInfer",model="m",quality="normal",version="1"} \d', gateway)
    assert "never-heard-of" not in gateway, "names that clients invent are no labels"
    assert 'vigil_safety_state{state="NORMAL",subject="sidecar"} 1' in gateway
    assert "vigil_queue_depth" in gateway and "vigil_audit_records_total" in gateway
    assert re.search(r'vigil_batch_size_bucket{le="1.0",model="m"} \d', sidecar)
    assert 'vigil_swaps_total{model="m",result="switched"} 1.0' in sidecar
    assert re.search(r'vigil_model_info{digest="[0-9a-f]{64}",model="m",version="1"} 1.0', sidecar)
    assert 'vigil_safety_state{state="NORMAL",subject="model/m"} 1.0' in sidecar


def test_limit_hits_are_counted(product: Product) -> None:
    """A refusal by a named limit is counted under that name."""
    with pytest.raises(grpc.RpcError) as error:
        Stub(product.channel()).infer(infer_request("m", {"x": np.zeros((5 << 20, 4), np.float32)}), timeout_s=60)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "limits.message_bytes_max" in error.value.details()
    assert dict(error.value.trailing_metadata())["vigil-audit-position"].startswith("gateway/")
    assert 'vigil_limit_hits_total{limit="limits.message_bytes_max"} 1' in scrape(product, "metrics")
    for limit in ("message_bytes_max", "streams_per_connection_max", "header_bytes_max", "keepalive_min_s", "connections_max"):
        assert f'vigil_limit{{limit="limits.{limit}"}}' in scrape(product, "metrics")
