"""Messages of a known form: what is recognised without decoding must mean the same as what is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference.grpc_service_pb2 import ModelInferRequest, ModelInferResponse

from tests.harness import graphs
from tests.harness.calls import infer_request
from vigil_sidecar.batching.batcher import run_batch
from vigil_sidecar.batching.job import Job, JobResult
from vigil_sidecar.engine.golden import Golden
from vigil_sidecar.engine.session import Session
from vigil_sidecar.errors import CallError, OutputViolation
from vigil_sidecar.injection.faults import Faults, FaultySession
from vigil_sidecar.registry.options import ModelOptions
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.call import Call, CallContext, Reply
from vigil_sidecar.server.forms import InferForms
from vigil_sidecar.server.open_inference import infer_job

NO_GOLDEN = Golden({}, None)


def version_of(folder: Path, data: bytes, batch: int, options: ModelOptions | None = None) -> LoadedVersion:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return LoadedVersion("m", 1, "00" * 32, 1, Session(str(path)), options or ModelOptions(), batch, 0.0, 0.0, NO_GOLDEN, lambda v: None)


def call_of(message: bytes) -> Call:
    def nobody(call: Call, reply: Reply) -> None:
        raise AssertionError

    return Call(1, "/inference.GRPCInferenceService/ModelInfer", message, CallContext(), nobody)


def decoded(message: bytes, version: LoadedVersion) -> Job | CallError:
    try:
        return infer_job(call_of(message), ModelInferRequest.FromString(message), version)
    except CallError as error:
        return error


def quick(forms: InferForms, message: bytes, version: LoadedVersion) -> Job | None:
    found = forms.recognise(message)
    return forms.quick_job(call_of(message), found, version) if found is not None else None


def answer(job: Job) -> ModelInferResponse | str:
    if isinstance(job.result, JobResult):
        assert isinstance(job.result.answer, bytes)
        return ModelInferResponse.FromString(job.result.answer)
    return str(job.result)


def same(forms: InferForms, message: bytes, version: LoadedVersion) -> bool:
    """Whether the message was recognised; if so, the job and its answer must be those of the decoded one."""
    job = quick(forms, message, version)
    if job is None:
        return False
    slow = decoded(message, version)
    if isinstance(slow, CallError):  # the only thing that is looked at later: numbers that are not finite
        run_batch([job])
        assert str(job.result) == str(slow)
        return True
    assert (job.input_hash, job.request_id, job.rows, job.outputs) == (slow.input_hash, slow.request_id, slow.rows, slow.outputs)
    run_batch([job])
    run_batch([slow])
    assert answer(job) == answer(slow)
    if isinstance(job.result, JobResult) and isinstance(slow.result, JobResult):
        assert job.result.output_hash == slow.result.output_hash
    return True


@pytest.fixture(params=[False, True], ids=["any numbers", "finite inputs"])
def scale(tmp_path: Path, request: pytest.FixtureRequest) -> LoadedVersion:
    return version_of(tmp_path, graphs.scale(2.0), 8, ModelOptions(finite_inputs=request.param))


@pytest.fixture
def pairwise(tmp_path: Path) -> LoadedVersion:
    return version_of(tmp_path, graphs.pairwise(), 8)


def learn(forms: InferForms, request: ModelInferRequest, version: LoadedVersion) -> Job:
    return forms.job(call_of(request.SerializeToString()), request, version)


finite = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(finite, min_size=8, max_size=8), st.text(max_size=40), st.integers(1, 2), st.sampled_from(["", "1"]))
def test_another_id_and_other_numbers_are_recognised(
    scale: LoadedVersion, values: list[float], request_id: str, rows: int, number: str
) -> None:
    """After one request of a form, all that differ in id and numbers are recognised, and answered alike."""
    forms = InferForms()
    zero = np.zeros((rows, 4), np.float32)
    learned = learn(forms, infer_request("m", {"x": zero}, number), scale)
    assert learned.form is not None
    x = np.array(values[: rows * 4], np.float32).reshape(rows, 4)
    message = infer_request("m", {"x": x}, number, request_id).SerializeToString()
    assert same(forms, message, scale)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(finite, min_size=12, max_size=12), st.text(max_size=8))
def test_two_inputs(pairwise: LoadedVersion, values: list[float], request_id: str) -> None:
    """The same with two inputs, whose lengths stand between their bytes."""
    forms = InferForms()
    learn(forms, infer_request("m", {"b": np.zeros((2, 3), np.float32), "a": np.ones((2, 3), np.float32)}), pairwise)
    a, b = np.array(values, np.float32).reshape(2, 2, 3)
    assert same(forms, infer_request("m", {"b": b, "a": a}, "", request_id).SerializeToString(), pairwise)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_changed_message_is_taken_for_another(scale: LoadedVersion, data: Any) -> None:
    """Whatever is changed, cut, put in or appended: a message is recognised only if decoding gives the same job."""
    forms = InferForms()
    base = infer_request("m", {"x": np.ones((2, 4), np.float32)}, "", data.draw(st.sampled_from(["", "id", "x" * 127, "x" * 130])))
    if data.draw(st.booleans()):
        base.parameters["priority"].uint64_param = 3
    learn(forms, base, scale)
    message = bytearray(base.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(message)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "id", "append"]))
        if kind == "flip" and at < len(message):
            message[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del message[at : at + data.draw(st.integers(1, 4))]
        elif kind == "insert":
            message[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        elif kind == "id":
            text = data.draw(st.binary(max_size=5))
            message[at:at] = b"\x1a" + bytes([len(text)]) + text
        else:
            message += data.draw(st.sampled_from([b"\x1a\x01z", b"\x3a\x00", b"\x12\x011", bytes(message)]))
    found = forms.recognise(bytes(message))
    if found is None:
        return
    job = forms.quick_job(call_of(bytes(message)), found, scale)
    if job is None:
        return
    request = ModelInferRequest.FromString(bytes(message))  # what is recognised can be decoded
    assert (request.model_name, request.model_version, request.id) == (found.model, found.version, found.request_id.decode())
    assert same(forms, bytes(message), scale)


def test_what_has_no_form(tmp_path: Path, scale: LoadedVersion) -> None:
    """Typed contents, empty tensors, strings and long heads are decoded each time, and still answered."""
    forms = InferForms()
    typed = ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
    assert learn(forms, typed, scale).form is None
    long = infer_request("m", {"x": np.ones((1, 4), np.float32)})
    long.parameters["p"].string_param = "v" * 2000
    assert learn(forms, long, scale).form is None
    text = version_of(tmp_path, graphs.identity_bytes(), 0)
    request = ModelInferRequest(model_name="m", raw_input_contents=[b"\x02\0\0\0hi"])
    request.inputs.add(name=next(iter(text.inputs)), datatype="BYTES", shape=[1])
    job = learn(forms, request, text)
    assert job.form is None
    run_batch([job])
    assert isinstance(job.result, JobResult)


def test_a_number_that_is_not_finite_is_refused_alone(tmp_path: Path) -> None:
    """In a stacked batch the bad job is refused by name, and its neighbours share one run."""
    scale = version_of(tmp_path, graphs.scale(2.0), 8, ModelOptions(finite_inputs=True))
    forms = InferForms()
    jobs = [learn(forms, infer_request("m", {"x": np.full((1, 4), i, np.float32)}), scale) for i in range(4)]
    bad = quick(forms, infer_request("m", {"x": np.array([[1, np.nan, 3, 4]], np.float32)}).SerializeToString(), scale)
    assert bad is not None
    run_batch([*jobs[:2], bad, *jobs[2:]])
    assert isinstance(bad.result, CallError) and "input 'x' has a number that is not finite" in str(bad.result)
    assert [j.batch_size for j in jobs] == [4] * 4
    for i, job in enumerate(jobs):
        response = answer(job)
        assert isinstance(response, ModelInferResponse)
        assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [2.0 * i] * 4


def test_an_implausible_output_is_that_jobs_error(tmp_path: Path) -> None:
    """The check of a whole batch finds it, then each job is looked at by itself."""
    version = version_of(tmp_path, graphs.scale(2.0), 8, ModelOptions(output_max=10.0))
    forms = InferForms()
    jobs = [learn(forms, infer_request("m", {"x": np.full((1, 4), v, np.float32)}), version) for v in (1.0, 100.0, 2.0)]
    run_batch(jobs)
    assert [isinstance(j.result, JobResult) for j in jobs] == [True, False, True]
    assert "the most plausible is 10.0" in str(jobs[1].result)


def test_memory_of_forms_is_bounded(scale: LoadedVersion) -> None:
    """A caller that sends ever new heads does not fill the memory."""
    forms = InferForms()
    for i in range(1500):
        request = infer_request("m", {"x": np.ones((1, 4), np.float32)})
        request.parameters[f"p{i}"].int64_param = i
        learn(forms, request, scale)
    assert len(scale.plans) <= 1024
    assert len(scale.forms) == 1


def test_an_id_with_a_long_length_is_not_cut(scale: LoadedVersion) -> None:
    """An id whose end looks like a known head's parameters is not taken for them: its length has two bytes."""
    forms = InferForms()
    x = np.ones((1, 4), np.float32)
    request = infer_request("m", {"x": x})
    plain = infer_request("m", {"x": x}).SerializeToString()
    request.parameters["p"].string_param = "v" * 120
    extra = len(request.SerializeToString()) - len(plain)
    request.parameters["p"].string_param = "v" * (120 + 129 - extra)
    extra = len(request.SerializeToString()) - len(plain)
    assert extra == 129
    learn(forms, request, scale)
    parameters = request.SerializeToString()[3 : 3 + extra]
    message = plain[:3] + b"\x1a\x80\x02" + b"i" * 127 + parameters + plain[3:]
    assert len(ModelInferRequest.FromString(message).id.encode()) == 256
    assert quick(forms, message, scale) is None


def test_an_output_of_another_shape_is_that_models_fault(scale: LoadedVersion) -> None:
    """What the graph declares holds on both ways, decoded and recognised; a session that gives a column less answers nobody."""
    forms, faults = InferForms(), Faults()
    scale.session = FaultySession("m", scale.session, faults)
    request = infer_request("m", {"x": np.ones((2, 4), np.float32)})
    learned = learn(forms, request, scale)
    faults.begin("model_shape", "m", 0)
    again = quick(forms, request.SerializeToString(), scale)
    assert again is not None
    for jobs in ([learned], [again], [infer_job(call_of(b""), request, scale)], [learned, again]):
        run_batch(jobs)
        assert all(isinstance(j.result, OutputViolation) and "declares [-1, 4]" in str(j.result) for j in jobs)
    faults.end("model_shape")
    run_batch([learned])
    assert isinstance(learned.result, JobResult)


def test_an_id_given_twice_is_the_last_one(scale: LoadedVersion) -> None:
    """A second, empty id wins over the first: such a head is decoded each time."""
    forms = InferForms()
    message = infer_request("m", {"x": np.ones((1, 4), np.float32)}, "", "abc").SerializeToString()
    twice = message[:8] + b"\x1a\x00" + message[8:]
    request = ModelInferRequest.FromString(twice)
    assert request.id == ""
    assert forms.job(call_of(twice), request, scale).form is None
    assert quick(forms, twice, scale) is None


def test_what_stands_between_two_tensors_is_looked_at(pairwise: LoadedVersion) -> None:
    """A message whose second tensor is not where a known one has it is not recognised."""
    forms = InferForms()
    request = infer_request("m", {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)})
    learn(forms, request, pairwise)
    message = request.SerializeToString()
    assert quick(forms, message, pairwise) is not None
    at = len(message) - 24 - 2
    assert message[at] == 0x3A
    assert quick(forms, message[:at] + b"\x42" + message[at + 1 :], pairwise) is None
