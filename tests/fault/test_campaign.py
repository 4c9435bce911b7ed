"""Every kind of fault, injected into the running product under load: noticed as stated, harmless magnitudes not; and off by default."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from xml.etree import ElementTree

import grpc
import pytest
from vigil.safety.v1 import safety_pb2 as safety

from tests.harness import graphs
from tests.harness.calls import Stub, details
from tests.harness.injecting import MODEL, injected_product
from tests.harness.product import Product, wait_for
from vigil_safety import events_gen as events
from vigil_safety.kinds import KINDS
from vigil_sidecar.audit.reader import read_records

INJECT = "/vigil.safety.v1.SafetyService/Inject"


def test_without_the_setting_there_is_no_injection(tmp_path: Path) -> None:
    """UNIMPLEMENTED from gateway and sidecar, by the tool too; the state says that it is off, and no log says that it is on."""
    product = Product(tmp_path)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        for port in ("grpc", "sidecar_grpc"):
            stub = Stub(product.channel(port))
            for kind in ("sidecar_kill", "model_nan", "load_burst"):
                with pytest.raises(grpc.RpcError) as error:
                    stub.unary(INJECT, safety.InjectRequest(kind=kind, model="m"), safety.InjectResponse)
                assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED and "safety.injection" in error.value.details()
        assert not Stub(product.channel()).state().injection
        for arguments in (("safety", "inject", "model_nan", "--model", "m"), ("safety", "inject", "load_burst", "--model", "m"),
                          ("safety", "campaign", "--model", "m", "--quick")):  # fmt: skip
            done = product.vigil(*arguments, check=False)
            assert done.returncode == 1 and "safety.injection is on" in done.stderr
    ids = {r.header.event_id for log in ("gateway", "sidecar") for r in read_records(product.data / "audit" / log)}
    assert not ids & {events.INJECTION_ENABLED, events.FAULT_INJECTED}


def test_what_cannot_be_injected_is_named(tmp_path: Path) -> None:
    with injected_product(tmp_path) as product:
        stub = Stub(product.channel())
        assert stub.state().injection
        for request, field in (
            (safety.InjectRequest(kind="meteorite"), "kind"),
            (safety.InjectRequest(kind="load_burst"), "kind"),
            (safety.InjectRequest(kind="model_nan"), "model"),
            (safety.InjectRequest(kind="model_nan", model="../x"), "model"),
            (safety.InjectRequest(kind="model_nan", model=MODEL, magnitude=-1), "magnitude"),
            (safety.InjectRequest(kind="model_nan", model=MODEL, duration_ms=600_001), "duration_ms"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                stub.unary(INJECT, request, safety.InjectResponse)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and details(error.value)["fields"] == [field]
        stub.unary(INJECT, safety.InjectRequest(kind="model_slow", model=MODEL, duration_ms=3000, magnitude=0.1), safety.InjectResponse)
        with pytest.raises(grpc.RpcError, match="acts already"):
            for _ in range(1000):
                stub.unary(
                    INJECT, safety.InjectRequest(kind="model_slow", model=MODEL, duration_ms=3000, magnitude=0.1), safety.InjectResponse
                )
        assert product.vigil("safety", "inject", "meteorite", check=False).returncode == 2


def test_a_kill_during_a_fault_of_files_loses_nothing(tmp_path: Path) -> None:
    """The sidecar that is started next puts back what was put aside; an orderly stop does so itself. Two such faults exclude each other."""
    product = injected_product(tmp_path)
    folder = product.models / MODEL

    def mine() -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    before = mine()
    for kind, killed in (("file_overwritten", True), ("config_bad", True), ("file_corrupt", True), ("file_vanished", False)):
        with product:
            stub = Stub(product.channel())
            stub.unary(INJECT, safety.InjectRequest(kind=kind, model=MODEL, duration_ms=600_000), safety.InjectResponse)
            wait_for(lambda: mine() != before, what=f"{kind} began")
            with pytest.raises(grpc.RpcError, match="another that changes files"):
                stub.unary(INJECT, safety.InjectRequest(kind="file_truncated", model=MODEL), safety.InjectResponse)
            if killed:
                old = product.pids()["sidecar_pid"]
                os.kill(old, signal.SIGKILL)
                wait_for(lambda old=old: product.pids()["sidecar_pid"] != old, 60, "another sidecar")
                wait_for(lambda: mine() == before, 30, f"{kind} undone")
        assert mine() == before, kind


def campaign(product: Product, *more: str) -> dict[str, dict[str, object]]:
    done = product.vigil("safety", "campaign", "--model", MODEL, "--quick", "--json", *more, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == int(bool(found["undetected"] or found["false_alarms"])), done.stderr[-2000:]
    return found


def test_quick_campaign(tmp_path: Path) -> None:
    """Each kind once, and once with a magnitude that must trip nothing. What a busy machine upset is tried once more, by itself."""
    with injected_product(tmp_path) as product:
        found = campaign(product)
        kinds = {k["kind"]: k for k in found["kinds"]}
        assert kinds.keys() == KINDS.keys() and len(kinds) >= 30
        again = [*found["undetected"], *found["false_alarms"]]
        if again:
            second = campaign(product, "--kinds", ",".join(again))
            assert (second["undetected"], second["false_alarms"]) == ([], []), second["kinds"]
        assert set(found["not_made"]) <= {"file_permissions"}
        whole = [k for n, k in kinds.items() if n not in [*again, "file_permissions"]]
        assert all(k["as_expected"]["successes"] == 1 and k["as_expected"]["low"] > 0 for k in whole)
        assert all(k["longest_wait_ms"]["worst"] < 20_000 for k in whole)
        states = {s for k in whole for s in k["states_after"]}
        assert states <= {"NORMAL", "STARTING", "DEGRADED", "RECOVERING"}
        page = Path(found["report"]).read_text()
        assert all(f"<b>{name}</b>" in page for name in KINDS) and "<script" not in page
        ElementTree.fromstring(page.removeprefix("<!doctype html>").replace('<meta charset="utf-8">', "").replace("<br>", ""))
        for log in ("gateway", "sidecar"):
            ids = [r.header.event_id for r in read_records(product.data / "audit" / log)]
            assert events.INJECTION_ENABLED in ids and events.FAULT_INJECTED in ids
