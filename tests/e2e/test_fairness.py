"""Flows of calls: rates, shares, priorities, deadlines; and a refusal that is found everywhere by its trace id."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip

from tests.harness import graphs, otlp
from tests.harness.calls import INFER, Stub, details, infer_request
from tests.harness.product import ROOT, Product, wait_for
from vigil_sidecar.audit.verify import read_records

X = np.array([[1, 2, 3, 4]], np.float32)
FAST = infer_request("m", {"x": X})


TEXTS: list[str] = []
"""Of errors, for who looks why a test failed."""


def slow(turns: int) -> oip.ModelInferRequest:
    return infer_request("spin", {"n": np.array([turns], np.int64)})


def ask(stub: Stub, request: oip.ModelInferRequest, *metadata: tuple[str, str], timeout_s: float = 60) -> str:
    """The code that a call ends with."""
    try:
        stub.unary(INFER, request, oip.ModelInferResponse, metadata=metadata, timeout_s=timeout_s)
    except grpc.RpcError as error:
        TEXTS.append(f"{dict(metadata)}: {error.details()}")
        return str(error.code().name)
    return "OK"


def tenant(name: str) -> tuple[str, str]:
    return ("vigil-tenant", name)


@pytest.fixture(scope="module")
def seen() -> Iterator[tuple[otlp.Receiver, int]]:
    with otlp.receiver() as running:
        yield running


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory, seen: tuple[otlp.Receiver, int]) -> Iterator[Product]:
    product = Product(
        tmp_path_factory.mktemp("ruled"),
        {
            "trace.otlp_endpoint": f"127.0.0.1:{seen[1]}",
            "flow.rules": "tenant=slow class=* rate=0.5 burst=2,tenant=other rate=1000",
            "flow.class_from": "tracestate",
            "flow.class_key": "vigil",
        },
    )
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        yield product


def test_rates_are_kept_by_flow(ruled: Product) -> None:
    """Two at once and one in two seconds for each class of the tenant; others, and calls that infer nothing, are not touched."""
    stub = Stub(ruled.channel())
    for state in ("vigil=night", "a=b, vigil=day", ""):
        codes = [ask(stub, FAST, tenant("slow"), ("tracestate", state)) for _ in range(3)]
        assert codes == ["OK", "OK", "RESOURCE_EXHAUSTED"], state
    assert [ask(stub, FAST, tenant("other")) for _ in range(20)] == ["OK"] * 20
    assert [ask(stub, FAST) for _ in range(20)] == ["OK"] * 20
    for _ in range(5):
        stub.unary(
            "/inference.GRPCInferenceService/ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse, metadata=(tenant("slow"),)
        )


def test_a_refusal_is_found_by_its_trace(ruled: Product, seen: tuple[otlp.Receiver, int]) -> None:
    """In the error, the header, the log, the exemplar of the metric, the span and the record; RetryInfo says when a token comes."""
    trace, state = "7bf92f3577b34da6a3ce929d0e0e4736", ("tracestate", "vigil=found")
    stub = Stub(ruled.channel())
    assert [ask(stub, FAST, tenant("slow"), state) for _ in range(2)] == ["OK", "OK"]
    with pytest.raises(grpc.RpcError) as error:
        parent = ("traceparent", f"00-{trace}-00f067aa0ba902b7-01")
        stub.unary(INFER, FAST, oip.ModelInferResponse, metadata=(tenant("slow"), state, parent))
    told = details(error.value)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.value.details() == "calls of this flow come faster than 0.5 a second (flow.rules)"
    assert told["info"]["trace_id"] == trace and told["info"]["limit"] == "flow.rules"
    assert 0.5 < told["delay_s"] <= 2
    position = dict(error.value.trailing_metadata())["vigil-audit-position"]
    record = next(r for r in read_records(ruled.data / "audit" / "gateway") if r.header.sequence == int(position.split("/")[2]))
    assert record.header.trace_id.hex() == trace and record.header.event_id == 2043

    def span() -> bool:
        with seen[0].lock:
            return any(s.trace_id.hex() == trace and s.name == INFER for _, s in seen[0].spans)

    wait_for(span, 20, "the span")
    lines = [json.loads(line) for line in ruled.log.read_text().splitlines() if trace in line]
    assert [line["limit"] for line in lines if line["msg"] == "call refused"] == ["flow.rules"]
    scrape = urllib.request.Request(
        f"http://127.0.0.1:{ruled.ports['metrics']}/metrics", headers={"Accept": "application/openmetrics-text"}
    )
    with urllib.request.urlopen(scrape, timeout=5) as answer:
        assert re.search(rf'trace_id="{trace}"', answer.read().decode())


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """Forty places, and a model that takes its time."""
    product = Product(
        tmp_path_factory.mktemp("narrow"),
        {"limits.calls_in_flight_max": 40, "flow.rules": "tenant=first priority=1,tenant=* class=*", "link.spin_us_max": 0},
    )
    graphs.spinning(product.models / "spin" / "1" / "model.onnx")
    with product:
        yield product


def flood(product: Product, name: str, callers: int, turns: int) -> tuple[Callable[[], None], list[str]]:
    """Callers that ask one call after the other; what ends them, and the codes of their calls."""
    ended, codes = threading.Event(), []

    def caller() -> None:
        stub = Stub(product.channel())
        while not ended.is_set():
            codes.append(ask(stub, slow(turns), tenant(name)))

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for t in threads:
        t.start()

    def end() -> None:
        ended.set()
        for t in threads:
            t.join(60)

    return end, codes


def test_who_floods_makes_room(narrow: Product) -> None:
    """All places are a tenant's; another still gets one for each of its calls, and the flood loses them."""
    end, codes = flood(narrow, "greedy", 60, 2)
    try:
        wait_for(lambda: "RESOURCE_EXHAUSTED" in codes and codes.count("OK") > 60, 60, "the places are full, and the pace is known")
        stub = Stub(narrow.channel())
        assert [ask(stub, slow(1), tenant("modest")) for _ in range(10)] == ["OK"] * 10, [t for t in TEXTS if "modest" in t]
    finally:
        end()
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}


def test_turns_are_shared(narrow: Product) -> None:
    """Few callers beside many, each one call at a time: the few get far more than their part of the callers."""
    stub = Stub(narrow.channel())
    ask(stub, slow(1))
    end_many, many = flood(narrow, "many", 32, 5)
    end_few, few = flood(narrow, "few", 4, 5)
    try:
        wait_for(lambda: len(many) + len(few) > 200, 60, "enough calls")
    finally:
        end_many()
        end_few()
    assert set(many + few) == {"OK"}
    assert len(few) > 0.25 * len(many), (len(few), len(many))  # 4 of 36 callers would be 0.125


def test_what_would_be_late_is_refused_at_once(narrow: Product) -> None:
    """Under a load that takes longer than the deadline, calls are refused with figures instead of waiting in vain."""
    stub = Stub(narrow.channel())
    end, _ = flood(narrow, "busy", 38, 40)
    try:
        texts = []

        def refused() -> bool:
            try:
                stub.unary(INFER, slow(1), oip.ModelInferResponse, metadata=(tenant("busy"),), timeout_s=0.05)
            except grpc.RpcError as error:
                texts.append(error.details())
                return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "would not be answered in time" in error.details()
            return False

        wait_for(refused, 60, "a refusal")
    finally:
        end()
    figures = r"\d+ calls are before this one, at [\d.]+ a second: about \S+, \S+ until its answer if they are uneven, and it has \d+ms"
    assert re.search(figures + r" \(deadline\)$", texts[-1])


def test_priorities_go_first(narrow: Product) -> None:
    """Of calls that wait together, those of the rule with priority 1 are served before the others."""
    stub = Stub(narrow.channel())
    order: list[str] = []
    with ThreadPoolExecutor(40) as pool:
        blocker = [pool.submit(ask, stub, slow(200), tenant("z")) for _ in range(2)]
        wait_for(lambda: in_flight(narrow) >= 2, 20, "the model is busy")

        def one(name: str) -> None:
            if ask(stub, slow(1), tenant(name)) == "OK":
                order.append(name)

        later = [pool.submit(one, "later") for _ in range(12)]
        wait_for(lambda: in_flight(narrow) >= 14, 20, "others wait")
        first = [pool.submit(one, "first") for _ in range(12)]
        for f in [*blocker, *later, *first]:
            f.result()
    assert order.count("first") == order.count("later") == 12
    assert sum(map(order.index, ["first"])) == 0, order


def in_flight(product: Product) -> int:
    text = urllib.request.urlopen(f"http://127.0.0.1:{product.ports['metrics']}/metrics", timeout=10).read().decode()
    found = re.search(r"^vigil_queue_depth (\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found.group(1))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"VIGIL_FLOW_RULES": "tenant=a,rate=x"}, "flow.rules"),
        ({"VIGIL_FLOW_RULES": "tenant=a rate=-1"}, 'flow.rules: "tenant=a rate=-1": rate = "-1" is no number from 0 to 1e+09'),
        ({"VIGIL_FLOW_CLASS_FROM": "trace_id", "VIGIL_FLOW_CLASS_KEY": "33"}, "flow.class_key"),
        ({"VIGIL_FLOW_CLASS_FROM": "trace_id", "VIGIL_FLOW_CLASS_KEY": "8abc"}, 'flow.class_key = "8abc"'),
        ({"VIGIL_FLOW_CLASS_FROM": "header"}, "flow.class_key is empty"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, settings: dict[str, str], text: str) -> None:
    done = subprocess.run(
        [str(ROOT / "bin" / "vigil-gateway")],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2 and text in done.stderr, done.stderr
