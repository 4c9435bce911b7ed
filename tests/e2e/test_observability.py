"""One trace id through header, log, metrics, spans and audit records."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip

from tests.harness import graphs, otlp
from tests.harness.calls import INFER, Stub, infer_request
from tests.harness.otlp import Receiver
from tests.harness.product import Product, wait_for
from vigil_sidecar.audit.verify import read_records

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[Receiver, int]]:
    with otlp.receiver() as running:
        yield running


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


CLIENT = """
import json, sys
import tritonclient.{form} as triton
from tritonclient.utils import InferenceServerException
c = triton.InferenceServerClient(sys.argv[1])
plain = dict(as_json=True) if "{form}" == "grpc" else {{}}
def tell(call, *arguments, **named):
    try:
        return call(*arguments, **named, **plain)
    except InferenceServerException as e:
        return [e.status(), e.message()]
out = [tell(c.get_trace_settings), tell(c.update_trace_settings, settings={{"trace_level": ["OFF"], "trace_rate": "1000"}})]
out.append(tell(c.update_trace_settings, settings={{"trace_level": None, "trace_rate": None}}))
out.append(tell(c.update_trace_settings, settings={{"trace_file": "/tmp/x"}}))
out.append(tell(c.update_trace_settings, model_name="m", settings={{"trace_rate": "2"}}))
out += [tell(c.get_trace_settings, model_name="m"), tell(c.get_log_settings)]
out.append(tell(c.update_log_settings, {{"log_info": False, "log_verbose_level": 1}}))
out.append(tell(c.update_log_settings, {{"log_file": "/tmp/x"}}))
out.append(tell(c.update_log_settings, {{"log_info": True, "log_verbose_level": 0}}))
print(json.dumps(out))
"""


def plain(told: Any) -> Any:
    """Settings as REST gives them, from what gRPC's JSON says."""
    if not isinstance(told, dict) or "settings" not in told:
        return told
    out = {}
    for name, value in told["settings"].items():
        if "value" in value:
            out[name] = value["value"] if name == "trace_level" else value["value"][0]
        else:
            out[name] = next(iter(value.values()), "")
    return out


@pytest.mark.parametrize("form", ["grpc", "http"])
def test_tritonclient_tells_and_changes_settings(product: Product, form: str) -> None:
    """Trace and log settings by Triton's own clients: what they say is so, what cannot be changed is refused by name."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT.format(form=form), f"127.0.0.1:{product.ports[form]}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    before, off, again, file, model, of_model, log, quiet, log_file, loud = map(plain, json.loads(done.stdout))
    assert (before["trace_level"], before["trace_rate"], before["trace_mode"]) == (["TIMESTAMPS"], "1", "opentelemetry")
    assert (off["trace_level"], off["trace_rate"]) == (["OFF"], "1000")
    assert again == before == of_model
    status = {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}[form]
    assert file[0] == model[0] == log_file[0] == status
    assert "'trace_file' cannot be changed" in file[1] and "'model_name' must be empty" in model[1] and "'log_file'" in log_file[1]
    assert (log["log_info"], log["log_warning"], log["log_error"], log["log_verbose_level"]) == (True, True, True, 0)
    assert (quiet["log_info"], quiet["log_verbose_level"]) == (False, 1) and loud == log


def test_changed_settings_have_their_effect(product: Product, receiver: tuple[Receiver, int]) -> None:
    """OFF traces nothing new but what callers trace; without log_info neither process writes info lines."""
    stub = Stub(product.channel())

    def change(**settings: str) -> Any:
        request = oip.TraceSettingRequest()
        for name, value in settings.items():
            request.settings[name].value.append(value)
        return stub.unary("/inference.GRPCInferenceService/TraceSetting", request, oip.TraceSettingResponse)[0]

    def log(on: bool) -> None:
        request = oip.LogSettingsRequest()
        request.settings["log_info"].bool_param = on
        stub.unary("/inference.GRPCInferenceService/LogSettings", request, oip.LogSettingsResponse)

    def traced(**named: Any) -> str:
        return stub.unary(INFER, infer_request("m", {"x": X}), oip.ModelInferResponse, **named)[1]["vigil-trace-id"]

    def arrived(trace: str) -> bool:
        with receiver[0].lock:
            return any(s.trace_id.hex() == trace for _, s in receiver[0].spans)

    change(trace_level="OFF")
    quiet = [traced() for _ in range(20)]
    asked = traced(metadata=(("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),))
    change(trace_level="TIMESTAMPS", trace_rate="4")
    some = [traced() for _ in range(400)]
    change(trace_rate="1")
    loud = traced()
    wait_for(lambda: arrived(loud) and arrived(asked), 20, "the traced calls' spans")
    assert not any(map(arrived, quiet))
    assert 50 <= sum(map(arrived, some)) <= 160, "one call in four"

    def lines(text: str) -> int:
        return product.log.read_text().count(text)

    for on, more in ((False, 0), (True, 1)):
        log(on)
        told = lines('"version_switched"')
        graphs.scale(2.0 + more, product.models / "m" / str(2 + more) / "model.onnx")
        wait_for(lambda: stub.models()["m"].serving_version == 2 + more, 20, "the next version serves")  # noqa: B023
        wait_for(lambda: not more or lines('"version_switched"') == told + 1, 5, "the line is written")  # noqa: B023
        assert lines('"version_switched"') == told + more
