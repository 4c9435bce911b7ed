"""Memory that is short: what would not fit is refused with the figures, and no process is ever killed for it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, infer_request, output
from tests.harness.product import Product, wait_for

MIB = 1 << 20
TAKEN = 2000 * MIB
"""What the sidecar may take."""
GOOD = infer_request("m", {"x": np.array([[1, 2, 3, 4]], np.float32)})


def peak_bytes(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    product = Product(tmp_path_factory.mktemp("memory"), {"limits.memory_bytes_max": TAKEN})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    graphs.filling(product.models / "filling" / "1" / "model.onnx")
    graphs.scale(2.0, product.models / "wide" / "1" / "model.onnx", width=15 * MIB)
    (product.models / "wide" / "config.pbtxt").write_text("max_batch_size: 1\n")
    with product:
        yield product


@pytest.fixture
def stub(product: Product) -> Iterator[Stub]:
    pids = product.pids()
    with product.channel() as channel:
        stub = Stub(channel)
        yield stub
        answer, _ = stub.unary(INFER, GOOD, oip.ModelInferResponse)
        assert output(answer).tolist() == [[2, 4, 6, 8]]
    assert product.pids() == pids  # whatever came, nothing was replaced
    told = json.loads(product.vigil("safety", "status", "--json", check=False).stdout)["subjects"]
    assert {s["subject"]: s["state"] for s in told if s["subject"] != "model/big" and s["state"] != "NORMAL"} == {}


def test_a_model_that_would_not_fit_is_refused(product: Product, stub: Stub) -> None:
    """Its file, what it needs, and what there is; what serves goes on serving."""
    path = product.models / "big" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(TAKEN // 2)

    def refused() -> str:
        text = product.vigil("models", "list", "--json").stdout
        return text if "may be taken" in text else ""

    text = wait_for(refused, what="refusal", every_s=0.2)
    assert "needs at least" in text and "limits.memory_bytes_max" in text


def test_a_call_that_would_not_fit_is_refused(product: Product, stub: Stub) -> None:
    """One that asks its model for 6.4 GB gets RESOURCE_EXHAUSTED with both figures, and it is no fault of the model."""
    request = infer_request("filling", {"shape": np.array([40_000, 40_000], np.int64)})
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as refusal:
            stub.unary(INFER, request, oip.ModelInferResponse)
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        text = refusal.value.details()
        assert "6400000000 bytes was asked for" in text and "bytes may be taken" in text and "limits.memory_reserve_bytes" in text
    answer, _ = stub.unary(INFER, infer_request("filling", {"shape": np.array([2, 3], np.int64)}), oip.ModelInferResponse)
    assert output(answer).shape == (2, 3)


def test_a_flood_of_large_calls_kills_nothing(product: Product, stub: Stub) -> None:
    """60 MiB in each of 40 calls, four at once: some are answered, the others refused with the figures, or cut off unread."""
    request = infer_request("wide", {"x": np.ones((1, 15 * MIB), np.float32)}).SerializeToString()
    codes: list[str] = []
    texts: list[str] = []
    lock = threading.Lock()

    def call(_: int) -> None:
        with product.channel() as channel:
            ask = channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
            try:
                ask(request, timeout=120)
                found, text = "OK", ""
            except grpc.RpcError as error:
                found, text = error.code().name, error.details() or ""
        with lock:
            codes.append(found)
            texts.append(text)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(40)))
    cut = [t for c, t in zip(codes, texts, strict=True) if c == "UNAVAILABLE"]  # with too many of them unread, the ledger ends connections
    assert set(codes) - {"UNAVAILABLE"} == {"OK", "RESOURCE_EXHAUSTED"}, (set(codes), set(texts))
    assert all(re.search("Stream removed|reset by peer|Broken pipe|Socket closed|closed", t) for t in cut), cut
    refusals = [t for c, t in zip(codes, texts, strict=True) if c == "RESOURCE_EXHAUSTED"]
    assert all("bytes" in t and "limits." in t for t in refusals), refusals[:3]
    pids = product.pids()
    assert peak_bytes(pids["gateway_pid"]) + peak_bytes(pids["sidecar_pid"]) < TAKEN + 700 * MIB
