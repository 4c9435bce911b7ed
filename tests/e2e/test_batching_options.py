"""dynamic_batching, model_warmup, labels and finite_outputs of a model, through the whole product."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from inference import grpc_service_pb2 as oip
from onnx import TensorProto, helper

from tests.harness import graphs
from tests.harness.calls import Stub, details, infer_request, output
from tests.harness.product import Product, wait_for
from vigil_sidecar.audit.reader import read_records
from vigil_sidecar.audit.tensor_hash import tensor_hash

CONFIGS = {
    "plain": "max_batch_size: 8",
    "patient": "max_batch_size: 8 dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 400000 }",
    "short": "max_batch_size: 1 dynamic_batching { default_queue_policy { max_queue_size: 2 } }",
    "labelled": "max_batch_size: 8 output { name: 'y' data_type: TYPE_FP32 dims: [4] label_filename: 'labels.txt' }",
    "reshaped": "max_batch_size: 8 input { name: 'x' data_type: TYPE_FP32 dims: [2, 2] reshape { shape: [4] } } "
    "output { name: 'y' data_type: TYPE_FP32 dims: [4, 1] reshape { shape: [4] } }",
    "hasty": "max_batch_size: 1 dynamic_batching { default_queue_policy { default_timeout_microseconds: 30000 } }",
}


def reshaping(path: Path) -> None:
    """y = x in the shape that the input says: no made-up shape is one."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])], "reshaping",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6]), helper.make_tensor_value_info("shape", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
    )  # fmt: skip
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    running = Product(tmp_path_factory.mktemp("options"), {"safety.injection": True})
    for name, text in CONFIGS.items():
        graphs.scale(2.0, running.models / name / "1" / "model.onnx")
        (running.models / name / "config.pbtxt").write_text(text)
    (running.models / "labelled" / "labels.txt").write_text("cat\ndog\na bird\n")
    for name in ("strict", "open"):
        graphs.with_nan(running.models / name / "1" / "model.onnx")
    (running.models / "open" / "vigil.toml").write_text("finite_outputs = false\n")
    for name in ("made-up", "named"):
        reshaping(running.models / name / "1" / "model.onnx")
    folder = running.models / "named"
    (folder / "warmup").mkdir()
    (folder / "warmup" / "shape").write_bytes(np.array([3, 4], np.int64).tobytes())
    (folder / "config.pbtxt").write_text(
        "model_warmup { name: 'three by four' batch_size: 1 "
        "inputs { key: 'x' value { data_type: TYPE_FP32 dims: [2, 6] random_data: true } } "
        "inputs { key: 'shape' value { data_type: TYPE_INT64 dims: [2] input_data_file: 'shape' } } }"
    )
    for name in ("ragged", "unmasked"):
        graphs.sequence(running.models / name / "1" / "model.onnx", masked=name == "ragged")
        (running.models / name / "config.pbtxt").write_text("max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 400000 }")
        mask = 'mask = "mask"\n' if name == "ragged" else ""
        (running.models / name / "vigil.toml").write_text(f"[batching]\ninputs.x = 1\noutputs.y = 1\nlength_max = 24\n{mask}")
    graphs.spinning(running.models / "levels" / "1" / "model.onnx")
    (running.models / "levels" / "config.pbtxt").write_text(
        "dynamic_batching { priority_levels: 2 default_priority_level: 2 default_queue_policy { allow_timeout_override: true } }"
    )
    graphs.spinning(running.models / "twins" / "1" / "model.onnx")
    (running.models / "twins" / "config.pbtxt").write_text("instance_group { count: 2 kind: KIND_CPU }")
    with running:
        yield running


@pytest.fixture(scope="module")
def stub(product: Product) -> Stub:
    return Stub(product.channel())


def sizes(product: Product, model: str, first: int) -> list[int]:
    """Batch sizes that the records of a model tell, from a record on."""
    records = read_records(product.data / "audit" / "sidecar")
    found = [r.header for r in records if r.header.kind == 1 and r.header.sequence >= first]
    return [h.batch_size for h in found]


def ask(stub: Stub, model: str, calls: int) -> Counter[str]:
    """So many calls at once; their codes."""
    together = threading.Barrier(calls)

    def one(i: int) -> str:
        together.wait()
        try:
            answer = stub.infer(infer_request(model, {"x": np.full((1, 4), i, np.float32)}))
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        assert output(answer)[0, 0] == 2 * i
        return "OK"

    with ThreadPoolExecutor(calls) as pool:
        return Counter(pool.map(one, range(calls)))


def slow(product: Product, model: str) -> None:
    """Have each run of a model take 150 ms longer, once the fault before is over."""
    inject = ("safety", "inject", "model_slow", "--model", model, "--magnitude", "150")
    wait_for(lambda: product.vigil(*inject, check=False).returncode == 0, 20, "the injection", every_s=0.2)


def next_record(product: Product) -> int:
    return max(r.header.sequence for r in read_records(product.data / "audit" / "sidecar")) + 1


def test_calls_wait_for_a_preferred_batch(product: Product, stub: Stub) -> None:
    """Four calls that come apart run as one batch of four; without the option each runs as it comes."""
    for model, expected in (("patient", [4, 4, 4, 4]), ("plain", [1, 1, 1, 1])):
        first, futures = next_record(product), []
        with ThreadPoolExecutor(4) as pool:
            for i in range(4):
                futures.append(pool.submit(stub.infer, infer_request(model, {"x": np.full((1, 4), i, np.float32)})))
                threading.Event().wait(0.03)
            assert [output(f.result())[0, 0] for f in futures] == [0, 2, 4, 6]
        wait_for(lambda: len(sizes(product, model, first)) == 4, 5, "their records")  # noqa: B023
        assert sizes(product, model, first) == expected, model


def test_a_lone_call_waits_no_longer_than_it_must(stub: Stub) -> None:
    """One call alone is answered after the delay."""
    assert ask(stub, "patient", 1) == {"OK": 1}


def test_queues_have_limits(product: Product, stub: Stub) -> None:
    """A queue that is full refuses by name and with a retry; a call that waited too long is not run."""
    for model, code in (("short", "RESOURCE_EXHAUSTED: Exceeds maximum queue size"), ("hasty", "UNAVAILABLE: Request timeout expired")):
        slow(product, model)
        found = ask(stub, model, 12)
        assert found["OK"] >= 1 and sum(found.values()) == 12
        others = [text for text in found if text != "OK"]
        assert others and all(text.startswith(code) for text in others), found
    wait_for(lambda: set(ask(stub, "short", 1)) == {"OK"}, 10, "the fault is over")
    slow(product, "short")
    with pytest.raises(grpc.RpcError) as error, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: stub.infer(infer_request("short", {"x": np.ones((1, 4), np.float32)})), range(8)))
    assert details(error.value)["info"]["limit"] == "max_queue_size" and details(error.value)["retry"]


def test_outputs_that_are_not_finite_by_design(stub: Stub) -> None:
    """Refused unless the model's vigil.toml allows them."""
    x = {"x": np.zeros((1, 4), np.float32)}
    assert not np.isfinite(output(stub.infer(infer_request("open", x)))).all()
    with pytest.raises(grpc.RpcError, match="is not finite"):
        stub.infer(infer_request("strict", x))


def test_inputs_to_warm_up_with(product: Product, stub: Stub) -> None:
    """A graph that takes only certain inputs is refused, with what to do, until they are named; then it serves and tells them."""
    refused = stub.models()["made-up"].versions[0].reason
    assert refused.startswith("warm-up failed") and "model_warmup in config.pbtxt" in refused
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    answer = output(stub.infer(infer_request("named", {"x": x, "shape": np.array([4, 3], np.int64)})))
    assert np.array_equal(answer, x.reshape(4, 3))
    told = product.vigil("models", "config", "named").stdout
    assert 'input_data_file: "shape"' in told and "random_data: true" in told


CLIENT = """
import json, sys
import numpy as np
import tritonclient.{form} as triton
from tritonclient.utils import InferenceServerException
c = triton.InferenceServerClient(sys.argv[1])
x = np.array([[0.5, 3, -1, 2], [4, 0, 0, 1]], np.float32)
i = triton.InferInput("x", x.shape, "FP32"); i.set_data_from_numpy(x)
def ask(**more):
    y = c.infer("labelled", [i], outputs=[triton.InferRequestedOutput("y", **more)]).as_numpy("y")
    return [[t.decode() if isinstance(t, bytes) else t for t in row] for row in y.tolist()] if y.dtype == object else y.tolist()
print(json.dumps([ask(class_count=2), ask(class_count=99), ask(), c.get_server_metadata(**{more})]))
"""


@pytest.mark.parametrize("form", ["grpc", "http"])
def test_outputs_as_classes(product: Product, stub: Stub, form: str) -> None:
    """Triton's clients get values, indices and labels of the largest outputs; the record speaks of the texts."""
    target, more = f"127.0.0.1:{product.ports[form]}", '{"as_json": True}' if form == "grpc" else "{}"
    code = CLIENT.replace("{form}", form).replace("**{more}", f"**{more}")
    done = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    two, every, plain, server = json.loads(done.stdout)
    assert two == [["6.000000:1:dog", "4.000000:3"], ["8.000000:0:cat", "2.000000:3"]]
    assert [len(row) for row in every] == [4, 4] and every[0][3] == "-2.000000:2:a bird"
    assert plain == [[1, 6, -2, 4], [8, 0, 0, 2]] and "classification" in server["extensions"]
    request = infer_request("labelled", {"x": np.ones((1, 4), np.float32)})
    request.outputs.add(name="y").parameters["classification"].int64_param = 0
    with pytest.raises(grpc.RpcError, match="classification must be an int64 from 1"):
        stub.infer(request)
    request.outputs[0].parameters["classification"].int64_param = 1
    answer = stub.infer(request)
    assert answer.outputs[0].datatype == "BYTES" and list(answer.outputs[0].shape) == [1, 1]
    texts = [("y", "BYTES", (1, 1), answer.raw_output_contents[0])]
    records = read_records(product.data / "audit" / "sidecar")
    assert [r.header.output_hash for r in records if r.header.kind == 1][-1] == tensor_hash(texts)


def test_reshape(product: Product, stub: Stub) -> None:
    """Callers see dims, and the record too; the graph gets its own shape. What does not fit dims is refused as ever."""
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    answer = stub.infer(infer_request("reshaped", {"x": x}, request_id="reshaped"))
    assert output(answer).tolist() == (2 * x).reshape(3, 4, 1).tolist()
    record = [r.header for r in read_records(product.data / "audit" / "sidecar") if r.header.kind == 1][-1]
    assert record.input_hash == tensor_hash([("x", "FP32", (3, 2, 2), x.tobytes())])
    with pytest.raises(grpc.RpcError) as refusal:
        stub.infer(infer_request("reshaped", {"x": x.reshape(3, 4)}))
    assert "expected [-1, 2, 2], got [3, 4]" in refusal.value.details()
    config = json.loads(product.vigil("models", "config", "reshaped", "--json").stdout)
    assert "reshape" in json.dumps(config["input"])


def spin(model: str, turns: int, request_id: str, **parameters: int) -> oip.ModelInferRequest:
    request = infer_request(model, {"n": np.array([turns], np.int64)}, request_id=request_id)
    for name, value in parameters.items():
        request.parameters[name].uint64_param = value
    return request


def test_priority_and_timeout_of_a_call(product: Product, stub: Stub) -> None:
    """While one runs, three wait: the urgent one is next, the patient one last, and the one with little time is refused, not run."""
    ended: list[str] = []

    def ask(request: oip.ModelInferRequest) -> None:
        try:
            stub.infer(request)
            ended.append(request.id)
        except grpc.RpcError as error:
            ended.append(f"{request.id}: {error.details()}")

    with ThreadPoolExecutor(4) as pool:
        pool.submit(ask, spin("levels", 300, "first"))
        time.sleep(0.2)
        pool.submit(ask, spin("levels", 20, "patient"))
        pool.submit(ask, spin("levels", 1, "short", timeout=1000))
        time.sleep(0.1)
        pool.submit(ask, spin("levels", 1, "urgent", priority=1))
    late = next(e for e in ended if e.startswith("short"))
    assert "Request timeout expired" in late
    assert [e for e in ended if e != late] == ["first", "urgent", "patient"]


def test_instances_run_at_once(product: Product, stub: Stub) -> None:
    """With two of them a short call need not wait for a long one that runs."""
    ended: list[str] = []

    def ask(request: oip.ModelInferRequest) -> None:
        stub.infer(request)
        ended.append(request.id)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(ask, spin("twins", 1000, "long"))
        time.sleep(0.2)
        pool.submit(ask, spin("twins", 1, "short"))
    assert ended == ["short", "long"]
    config = json.loads(product.vigil("models", "config", "twins", "--json").stdout)
    assert "2" in json.dumps(config["instance_group"])


def test_lengths_share_a_batch(product: Product, stub: Stub) -> None:
    """Three lengths are one batch, a fourth would be too long with them; each gets its own, and the record is of what it sent."""
    lengths = (3, 6, 4, 20)
    sent = [np.arange(2 * n, dtype=np.float32).reshape(1, n, 2) for n in lengths]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda x: stub.infer(infer_request("ragged", {"x": x})), sent))
    for x, answer in zip(sent, answers, strict=True):
        assert output(answer).tolist() == (2 * x).tolist()
        np.testing.assert_allclose(output(answer, 1), x.mean(1), rtol=1e-5)
    records = [r.header for r in read_records(product.data / "audit" / "sidecar") if r.header.kind == 1][-4:]
    found = {h.input_hash: h.batch_size for h in records}
    sizes = [found[tensor_hash([("x", "FP32", x.shape, x.tobytes())])] for x in sent]
    assert max(sizes[:3]) > 1 and sizes[3] == 1
    with pytest.raises(grpc.RpcError) as refusal:
        stub.infer(infer_request("ragged", {"x": np.ones((5, 5, 2), np.float32)}))
    assert "5 rows of the length 5 are 25, batching.length_max of the model is 24" in refusal.value.details()


def test_padding_that_changes_answers_is_refused(product: Product) -> None:
    """A graph that heeds no mask would answer differently beside longer neighbours: it never serves."""
    text = product.vigil("models", "list", "--json").stdout
    assert "is another one when it is padded to 10; has the graph an input that is a mask?" in text
