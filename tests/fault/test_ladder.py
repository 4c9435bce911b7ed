"""What answers while a model does not: last good answer, smaller model, constants, refusal. Each says so, and has its record."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip
from vigil.audit.v1.audit_pb2 import CallPayload
from vigil.perception.v1 import perception_pb2 as perception
from vigil.safety.v1 import safety_pb2 as safety

from tests.harness import graphs
from tests.harness.calls import DETECT, INFER, Stub, details, infer_request, output
from tests.harness.product import ROOT, Product, wait_for
from tests.unit.test_pipelines import png
from vigil_safety import events_gen as events
from vigil_sidecar.audit.entry import SAFETY_CODES
from vigil_sidecar.audit.reader import Record, read_records
from vigil_sidecar.audit.tensor_hash import frame_hash, tensor_hash

X = np.array([[1, 2, 3, 4]], np.float32)
RESTING = {"safety.backoff_ms": 600_000, "safety.backoff_max_ms": 600_000, "safety.probe_interval_s": 0}
"""A model that fell stays so for the time of a test."""
GONE = {"supervisor.backoff_ms": 60_000}
"""A sidecar that was killed stays away."""
LOG = '[ladder]\nlast_good_ms = 60000\nfallback_model = "small"\noutputs.y.fill = 7.5\n'


def request(model: str, x: Any, source: str = "", request_id: str = "") -> oip.ModelInferRequest:
    made = infer_request(model, {"x": x}, request_id=request_id)
    if source:
        made.parameters["vigil_source"].string_param = source
    return made


def ask(stub: Stub, made: oip.ModelInferRequest, tenant: str = "", timeout_s: float = 30) -> tuple[oip.ModelInferResponse, dict[str, str]]:
    return stub.unary(INFER, made, oip.ModelInferResponse, timeout_s, metadata=[("vigil-tenant", tenant)] if tenant else None)


def marks(answer: tuple[oip.ModelInferResponse, dict[str, str]]) -> tuple[str, str]:
    """Quality and stand-in, which parameters and trailer must say alike."""
    response, beside = answer
    said = response.parameters
    found = said["vigil_quality"].string_param, said["vigil_stand_in"].string_param
    assert found == (beside.get("vigil-quality", ""), beside.get("vigil-stand-in", ""))
    assert str(said["vigil_age_ms"].int64_param) == beside.get("vigil-age-ms", "0")
    return found


def record_of(product: Product, position: str) -> Record:
    log, _, sequence = position.split("/")
    return next(r for r in read_records(product.data / "audit" / log) if r.header.sequence == int(sequence))


def model(product: Product, name: str, toml: str = "", make: Any = graphs.with_nan) -> None:
    make(product.models / name / "1" / "model.onnx")
    if toml:
        (product.models / name / "vigil.toml").write_text(toml)


def kill_sidecar(product: Product, stub: Stub) -> None:
    os.kill(product.pids()["sidecar_pid"], signal.SIGKILL)
    wait_for(lambda: stub.state().subjects[0].state != 2, what="noticed")


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    running = Product(tmp_path_factory.mktemp("ladder"), RESTING | GONE)
    model(running, "log", LOG)
    model(running, "bare")
    model(running, "refusing", "[ladder]\n")
    model(running, "strict", "finite_inputs = true\n[ladder]\noutputs.y.fill = 0.0\n", lambda p: graphs.scale(2.0, p))
    model(running, "small", make=lambda p: graphs.scale(2.0, p))
    with running:
        yield running


def test_a_fallen_model_is_answered_for_rung_by_rung(product: Product) -> None:
    """The call that brings the model down gets the last good answer of its source and tenant; without one the smaller model answers."""
    stub = Stub(product.channel())
    good = ask(stub, request("log", X, "cam-1", "first"), "plant")
    assert marks(good) == ("", "") and np.allclose(output(good[0]), np.log(X))
    fallen = ask(stub, request("log", -X, "cam-1", "second"), "plant")
    assert marks(fallen) == ("cache", "last_good") and fallen[0].id == "second"
    assert fallen[1]["vigil-safety-state"] == "DEGRADED" and np.array_equal(output(fallen[0]), output(good[0]))

    repeated = record_of(product, fallen[1]["vigil-audit-position"])
    first = record_of(product, good[1]["vigil-audit-position"])
    said, h = CallPayload.FromString(repeated.payload), repeated.header
    assert (h.event_id, h.quality, h.status_code) == (events.STAND_IN_ANSWER, 2, 0)
    assert said.first_given == good[1]["vigil-audit-position"] and "not finite" in said.cause and said.handed_over
    assert h.input_hash == tensor_hash([("x", "FP32", X.shape, (-X).tobytes())]) and h.output_hash == first.header.output_hash
    assert (h.model_digest, h.model_version) == (first.header.model_digest, 1) and h.tenant_hash == first.header.tenant_hash

    for made, tenant in ((request("log", X, "cam-2"), "plant"), (request("log", X, "cam-1"), "other"), (request("log", X), "plant")):
        answer = ask(stub, made, tenant)
        assert marks(answer) == ("rule", "model small") and np.array_equal(output(answer[0]), 2 * X)
        assert answer[0].model_name == "small"
        kept = record_of(product, answer[1]["vigil-audit-position"])
        assert kept.header.safety_state == SAFETY_CODES[answer[1]["vigil-safety-state"]] == SAFETY_CODES["DEGRADED"]
        assert (kept.header.event_id, kept.header.quality) == (events.STAND_IN_ANSWER, 3)
        assert CallPayload.FromString(kept.payload).model == "log"
    two = ask(stub, request("log", np.vstack([X, X]), "cam-1"), "plant")  # the good answer had one row
    assert marks(two) == ("rule", "model small") and output(two[0]).shape == (2, 4)


def test_without_a_ladder_nothing_stands_in(product: Product) -> None:
    """A fallen model without one answers on, and says DEGRADED; one with an empty ladder refuses until it is Normal."""
    stub = Stub(product.channel())
    for name in ("bare", "refusing"):
        with pytest.raises(grpc.RpcError) as error:
            ask(stub, request(name, -X, "cam-1"))
        assert "not finite" in error.value.details()  # its own error, or that of the fallen model, whichever is known first
    answer = ask(stub, request("bare", X, "cam-1"))
    assert marks(answer) == ("", "") and answer[1]["vigil-safety-state"] == "DEGRADED"
    with pytest.raises(grpc.RpcError) as error:
        ask(stub, request("refusing", X, "cam-1"))
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE and details(error.value)["reason"] == "MODEL_DEGRADED"


def test_the_callers_own_faults_are_refused_as_ever(product: Product) -> None:
    """Nothing stands in for a request that is wrong, whoever looks at it: the sidecar, or, when it rests, the gateway."""
    stub = Stub(product.channel())
    for made, field in (
        (infer_request("log", {"x": np.ones((1, 5), np.float32)}), "x"),
        (infer_request("log", {"z": X}), "z"),
        (infer_request("log", {"x": X.astype(np.float64)}), "x"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            stub.infer(made)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value.details()
        assert details(error.value)["fields"] == [field]


def test_inputs_that_are_refused_do_not_bring_a_model_down(product: Product) -> None:
    """However many: they are found just before the run, and are the caller's own; nothing stands in for them either."""
    stub = Stub(product.channel())
    for _ in range(30):
        with pytest.raises(grpc.RpcError) as error:
            ask(stub, request("strict", X * np.nan, "cam-1"))
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value.details()
    assert next(s.state for s in stub.state().subjects if s.subject == "model/strict") == 2


def test_with_a_dead_sidecar_the_gateway_answers(product: Product) -> None:
    """From its cache, then with constants; both have their record in its log. This is the last test of this product."""
    stub = Stub(product.channel())
    kill_sidecar(product, stub)
    assert marks(ask(stub, request("log", X, "cam-1"), "plant")) == ("cache", "last_good")
    x = np.vstack([X, X, X])
    constant = ask(stub, request("log", x, "cam-9", "third"))
    assert marks(constant) == ("rule", "constants") and np.array_equal(output(constant[0]), np.full((3, 4), 7.5, np.float32))
    h = record_of(product, constant[1]["vigil-audit-position"]).header
    assert (h.quality, h.model_digest, h.model_version) == (3, bytes(32), 0)
    assert h.input_hash == tensor_hash([("x", "FP32", x.shape, x.tobytes())])
    assert h.output_hash == tensor_hash([("y", "FP32", (3, 4), np.full((3, 4), 7.5, np.float32).tobytes())])
    typed = oip.ModelInferRequest(model_name="log")
    typed.inputs.add(name="x", datatype="FP32", shape=X.shape).contents.fp32_contents.extend(X.ravel().tolist())
    again = ask(stub, typed)
    assert record_of(product, again[1]["vigil-audit-position"]).header.input_hash == tensor_hash([("x", "FP32", X.shape, X.tobytes())])
    for made in (request("bare", X), request("refusing", X)):
        with pytest.raises(grpc.RpcError) as error:
            ask(stub, made)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{product.ports['metrics']}/metrics", timeout=10).read().decode()
    counted = {q for q in ("normal", "cache", "rule") if re.search(rf'vigil_requests_total{{.*model="log".*quality="{q}"', metrics)}
    assert counted == {"normal", "cache", "rule"}


def test_a_good_answer_gets_too_old(tmp_path: Path) -> None:
    """last_good_ms is kept to; a ladder may have that rung only, and then the model's own error is the last."""
    product = Product(tmp_path, RESTING)
    model(product, "log", "[ladder]\nlast_good_ms = 700\n")
    with product:
        stub = Stub(product.channel())
        ask(stub, request("log", X, "cam-1"))
        assert marks(ask(stub, request("log", -X, "cam-1"))) == ("cache", "last_good")
        time.sleep(0.4)
        aged = ask(stub, request("log", X, "cam-1"))
        assert marks(aged) == ("cache", "last_good") and 400 <= int(aged[1]["vigil-age-ms"]) <= 700
        time.sleep(0.5)
        with pytest.raises(grpc.RpcError) as error:
            ask(stub, request("log", X, "cam-1"))
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_stop_is_answered_by_nobody(tmp_path: Path) -> None:
    """Safe stop of a model refuses though it has a ladder, also when the sidecar has gone."""
    product = Product(tmp_path, GONE | {"safety.rounds_max": 1, "safety.backoff_ms": 0, "safety.probe_interval_s": 0})
    model(product, "log", "[ladder]\noutputs.y.fill = 0.0\nlast_good_ms = 60000\n")
    with product:
        stub = Stub(product.channel())
        ask(stub, request("log", X, "cam-1"))
        assert marks(ask(stub, request("log", -X, "cam-1"))) == ("cache", "last_good")
        wait_for(lambda: marks(ask(stub, request("log", X))) == ("", ""), what="normal again")
        with pytest.raises(grpc.RpcError) as error:
            ask(stub, request("log", -X))
            ask(stub, request("log", X))
        assert "stopped safely" in error.value.details()
        kill_sidecar(product, stub)
        with pytest.raises(grpc.RpcError) as error:
            ask(stub, request("log", X, "cam-1"))
        assert "model 'log' is stopped safely" in error.value.details()


def test_the_call_that_stops_a_model_has_no_stand_in(tmp_path: Path) -> None:
    """With no falls borne, the first one is a stop: it and later calls are refused, whichever the gateway hears of first."""
    for trial in range(5):
        product = Product(tmp_path / str(trial), GONE | {"safety.rounds_max": 0, "safety.probe_interval_s": 0})
        model(product, "log", "[ladder]\nlast_good_ms = 60000\noutputs.y.fill = 0.0\n")
        with product:
            stub = Stub(product.channel())
            ask(stub, request("log", X, "cam"))
            for x in (-X, X):
                with pytest.raises(grpc.RpcError):
                    ask(stub, request("log", x, "cam"))


def test_calls_under_way_do_not_wait_for_a_run_that_hangs(tmp_path: Path) -> None:
    """The call that runs, those behind it, and later ones are answered once supervision says that the run is late."""
    product = Product(tmp_path, RESTING | {"safety.run_ms_max": 300, "models.warmup_budget_s": 60})
    model(product, "spin", "[ladder]\noutputs.y.fill = 0.0\n", graphs.spinning)
    with product:
        stub = Stub(product.channel())
        long = infer_request("spin", {"n": np.array([3000], np.int64)})
        begun = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            answers = [f.result() for f in [pool.submit(ask, Stub(product.channel()), long) for _ in range(4)]]
            waited_s = time.monotonic() - begun
            late = ask(stub, long)
        assert {marks(a) for a in [*answers, late]} == {("rule", "constants")}
        running = stub.state().subjects
        assert any("end did not come" in s.reason or "run" in s.reason for s in running if s.subject == "model/spin"), running
        assert waited_s < 8  # the run itself takes longer; how long exactly is for the bench to say


def test_a_stopped_sidecar_is_not_waited_for(tmp_path: Path) -> None:
    """SIGSTOP with calls under way: they are answered by the ladder while it stands still; its late records are superseded."""
    product = Product(tmp_path, {"supervisor.restart_after_ms": 0, "safety.run_ms_max": 100_000})
    model(product, "spin", "[ladder]\noutputs.y.fill = 0.0\n", graphs.spinning)
    with product:
        stub = Stub(product.channel())
        long = infer_request("spin", {"n": np.array([150], np.int64)})
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(ask, Stub(product.channel()), long) for _ in range(2)]
            time.sleep(0.2)
            sidecar = product.pids()["sidecar_pid"]
            os.kill(sidecar, signal.SIGSTOP)
            try:
                assert {marks(c.result(20)) for c in calls} == {("rule", "constants")}
                assert marks(ask(stub, long)) == ("rule", "constants")
            finally:
                os.kill(sidecar, signal.SIGCONT)
        wait_for(lambda: marks(ask(stub, infer_request("spin", {"n": np.array([1], np.int64)}))) == ("", ""), 30, "answers again")


def test_what_is_stopped_beside_the_model_stops_it_too(tmp_path: Path) -> None:
    """Stops that cannot be read stop everything in the sidecar; nothing stands in, also when it has gone."""
    product = Product(tmp_path, GONE)
    model(product, "log", "[ladder]\noutputs.y.fill = 0.0\n")
    (product.data / "safety").mkdir(parents=True)
    (product.data / "safety" / "sidecar.json").write_text("{")
    with product:
        stub = Stub(product.channel())
        for gone in (False, True):
            if gone:
                kill_sidecar(product, stub)
            with pytest.raises(grpc.RpcError) as error:
                ask(stub, request("log", X))
            assert "stopped safely" in error.value.details(), error.value.details()


def test_a_ladder_outlives_its_models_version(tmp_path: Path) -> None:
    """After a swap the answer of the version before is not given again; a model that comes back without a good version is stood in for."""
    product = Product(tmp_path, RESTING | {"supervisor.backoff_ms": 0})
    model(product, "m", "[ladder]\nlast_good_ms = 60000\noutputs.y.fill = 7.0\n", lambda p: graphs.scale(2.0, p))
    with product:
        stub = Stub(product.channel())
        assert np.array_equal(output(ask(stub, request("m", X, "cam"))[0]), 2 * X)
        graphs.scale(3.0, product.models / "m" / "2" / "model.onnx")
        wait_for(lambda: stub.models()["m"].serving_version == 2, what="swapped")
        time.sleep(0.3)  # the gateway hears of it with the next heartbeat
        (product.models / "m" / "1" / "model.onnx").write_bytes(b"no graph")
        (product.models / "m" / "2" / "model.onnx").write_bytes(b"no graph")
        old = product.pids()["sidecar_pid"]
        os.kill(old, signal.SIGKILL)
        for _ in range(2):
            assert marks(ask(stub, request("m", X, "cam"))) == ("rule", "constants")
            wait_for(lambda: product.pids()["sidecar_pid"] != old, 60, "restarted")
            wait_for(lambda: any(s.subject == "model/m" and s.state == 3 for s in stub.state().subjects), 30, "degraded")
        with pytest.raises(grpc.RpcError):
            stub.infer(infer_request("m", {"x": X}, version="1"))  # constants are of the version that served


def inject(stub: Stub, kind: str, name: str, duration_ms: int, magnitude: float = 0) -> None:
    asked = safety.InjectRequest(kind=kind, model=name, duration_ms=duration_ms, magnitude=magnitude)
    done, _ = stub.unary("/vigil.safety.v1.SafetyService/Inject", asked, safety.InjectResponse)
    time.sleep((done.inject_delay_ms + 100) / 1000)


def test_a_fallback_that_hangs_has_its_time(tmp_path: Path) -> None:
    """It may take ladder.fallback_ms; then constants answer."""
    product = Product(tmp_path, RESTING | {"ladder.fallback_ms": 200, "safety.run_ms_max": 100_000, "safety.injection": "true"})
    model(product, "log", '[ladder]\nfallback_model = "small"\noutputs.y.fill = 7.5\n')
    model(product, "small", "[ladder]\n", lambda p: graphs.scale(2.0, p))
    with product:
        stub = Stub(product.channel())
        assert marks(ask(stub, request("log", -X))) == ("rule", "model small")
        inject(stub, "model_hang", "small", 8000)
        begun = time.monotonic()
        assert marks(ask(stub, request("log", X))) == ("rule", "constants")
        assert time.monotonic() - begun < 5  # the run itself takes longer


def test_an_answer_is_as_old_as_its_call(tmp_path: Path) -> None:
    """One that took longer than last_good_ms is too old when it comes."""
    product = Product(tmp_path, RESTING | GONE | {"safety.injection": "true"})
    model(product, "log", "[ladder]\nlast_good_ms = 300\noutputs.y.fill = 7.5\n")
    with product:
        stub = Stub(product.channel())
        inject(stub, "model_slow", "log", 3000, 600)
        assert marks(ask(stub, request("log", X, "cam"))) == ("", "")
        inject(stub, "model_error", "log", 2000)
        assert marks(ask(stub, request("log", X, "cam"))) == ("rule", "constants")


BOXES = """
[ladder]
last_good_ms = 60000
[[ladder.boxes]]
x_min = 0.0
y_min = 0.25
x_max = 1.0
y_max = 1.0
label = "anything"
"""


def test_boxes(tmp_path: Path) -> None:
    """Typed answers: the last good boxes of the source, for frames of their size; else constant boxes, as fractions of the frame."""
    product = Product(tmp_path, GONE)
    folder = product.models / "face-detection"
    shutil.copytree(ROOT / "models" / "face-detection", folder)
    (folder / "vigil.toml").write_text((folder / "vigil.toml").read_text() + BOXES)
    picture = (ROOT / "build" / "pictures" / "astronaut.png").read_bytes()
    face, small = perception.Frame(encoded=picture), perception.Frame(encoded=png(200, 100))
    with product:
        stub = Stub(product.channel())
        first = stub.detect("cam-1", "face-detection", face)
        kill_sidecar(product, stub)
        repeated = stub.detect("cam-1", "face-detection", face)
        assert (repeated.quality.kind, repeated.quality.source) == (perception.QUALITY_KIND_CACHE, "last_good")
        assert repeated.boxes == first.boxes and repeated.capture_time_us == first.capture_time_us and repeated.quality.age_ms > 0
        assert repeated.audit_position.log == "gateway" and repeated.trace_id != first.trace_id
        position = f"gateway/{repeated.audit_position.boot}/{repeated.audit_position.sequence}"
        kept = record_of(product, position).header
        source = record_of(product, f"sidecar/{first.audit_position.boot}/{first.audit_position.sequence}").header
        assert kept.output_hash == source.output_hash and kept.model_digest == source.model_digest
        now = time.time_ns() // 1000
        made = perception.DetectRequest(source_id="cam-1", capture_time_us=now, frame=small, model="face-detection", min_confidence=0.5)
        constant, beside = stub.unary(DETECT, made, perception.DetectResponse)
        box = constant.output.boxes[0]
        assert (box.x_min, box.y_min, box.x_max, box.y_max, box.label) == (0, 25, 200, 100, "anything")
        assert (constant.output.quality.kind, beside["vigil-quality"]) == (perception.QUALITY_KIND_RULE, "rule")
        assert record_of(product, beside["vigil-audit-position"]).header.input_hash == frame_hash(png(200, 100), now, "cam-1")
        with pytest.raises(grpc.RpcError) as error:
            stub.detect("cam-1", "face-detection", perception.Frame(encoded=b"no picture"))
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
