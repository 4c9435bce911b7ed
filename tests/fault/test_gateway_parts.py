"""The gateway supervises its own parts: a listener that stands still is noticed, told, and in the end replaced with its process."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from vigil.audit.v1.audit_pb2 import SystemPayload

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request
from tests.harness.product import Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import read_records

X = {"x": np.ones((1, 4), np.float32)}


def product_with(folder: Path, settings: dict[str, Any]) -> Product:
    graphs.scale(2.0, folder / "models" / "m" / "1" / "model.onnx")
    return Product(folder, {"safety.injection": True, "safety.backoff_ms": 200} | settings)


def test_a_listener_that_stands_still_is_told(tmp_path: Path) -> None:
    """It expires, the whole is Degraded and says so, and recovers; nothing is killed."""
    with product_with(tmp_path, {"supervisor.restart_after_ms": 60000}) as product:
        stub = Stub(product.channel())
        wait_for(lambda: stub.infer(infer_request("m", X)), what="an answer")
        before = product.pids()
        product.vigil("safety", "inject", "gateway_edge")

        def subject() -> Any:
            return next(s for s in Stub(product.channel()).state().subjects if s.subject == "gateway")

        assert wait_for(lambda: (s := subject()).degraded and s, what="the gateway degraded", every_s=0.1).degraded == 1
        wait_for(lambda: Stub(product.channel()).state().state == 2, what="NORMAL again", every_s=0.1)
        stub.infer(infer_request("m", X))
        assert product.pids() == before
    said = [r for r in read_records(product.data / "audit" / "gateway") if r.header.event_id == events.SUPERVISION_EXPIRED]
    assert [dict(SystemPayload.FromString(r.payload).fields) for r in said] == [{"what": "gateway/edge_native"}]
    counts = json.loads((product.data / "safety" / "gateway-counts.json").read_text())["counts"]
    assert counts["expired gateway/edge_native"] == 1


def test_a_gateway_whose_listener_stays_so_is_replaced(tmp_path: Path) -> None:
    settings = {"supervisor.restart_after_ms": 500, "supervisor.gateway_timeout_s": 1.0}
    with product_with(tmp_path, settings) as product:
        stub = Stub(product.channel())
        wait_for(lambda: stub.infer(infer_request("m", X)), what="an answer")
        before = product.pids()["gateway_pid"]
        product.vigil("safety", "inject", "gateway_edge", "--magnitude", "120000")
        wait_for(lambda: product.pids()["gateway_pid"] != before, 30, "another gateway", 0.1)
        wait_for(lambda: stub.infer(infer_request("m", X)), what="an answer of the other")


def test_listeners_whose_places_are_all_taken_are_no_fault(tmp_path: Path) -> None:
    """Callers that hold every connection keep others out; the gateway is neither Degraded nor killed, and serves when they go."""
    settings = {"limits.connections_max": 8, "supervisor.gateway_timeout_s": 1.0}
    with product_with(tmp_path, settings) as product:
        wait_for(lambda: Stub(product.channel()).infer(infer_request("m", X)), what="an answer")
        before = product.pids()["gateway_pid"]
        held = [socket.create_connection(("127.0.0.1", product.ports[p])) for p in ("grpc", "http") for _ in range(24)]
        time.sleep(8)  # longer than all deadlines of supervision together
        assert product.pids()["gateway_pid"] == before
        for connection in held:
            connection.close()
        wait_for(lambda: Stub(product.channel()).infer(infer_request("m", X)), what="an answer")
    records = read_records(product.data / "audit" / "gateway")
    assert [r.payload for r in records if r.header.event_id == events.SUPERVISION_EXPIRED] == []
