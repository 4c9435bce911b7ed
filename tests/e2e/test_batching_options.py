"""dynamic_batching, model_warmup and finite_outputs of a model, through the whole product."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.harness import graphs
from tests.harness.calls import Stub, details, infer_request, output
from tests.harness.product import Product, wait_for
from vigil_sidecar.audit.reader import read_records

CONFIGS = {
    "plain": "max_batch_size: 8",
    "patient": "max_batch_size: 8 dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 400000 }",
    "short": "max_batch_size: 1 dynamic_batching { default_queue_policy { max_queue_size: 2 } }",
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
