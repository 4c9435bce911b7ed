"""Header fields and events that need the world to be in a certain way: clocks, tenants, keyed hashes."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip
from vigil.audit.v1 import service_pb2 as audit

from tests.harness import graphs
from tests.harness.account import account
from tests.harness.calls import INFER, Stub, details, infer_request
from tests.harness.product import Product, wait_for
from tests.harness.syscalls import SystemCalls
from vigil_safety import events_gen as events
from vigil_sidecar.audit.reader import Record, read_records

X = np.array([[1, 2, 3, 4]], np.float32)
UNSYNCHRONISED = 0x40
CHRONYD = shutil.which("chronyd", path="/usr/sbin:/usr/bin:/sbin:/usr/local/sbin")
UNKNOWN = (1 << 64) - 1
STEPPED = '''"""Lets the wall clock of Python processes jump: time.time_ns as an operating system whose clock was set would have it."""
import os, time
_real = time.time_ns
def _stepped():
    try:
        with open(os.environ["STEP_FILE"]) as f:
            return _real() + int(f.read() or 0)
    except OSError:
        return _real()
time.time_ns = _stepped
'''


def records(product: Product, log: str, event: int = 0) -> list[Record]:
    return [r for r in read_records(product.data / "audit" / log) if event in (0, r.header.event_id)]


def both(stub: Stub, **options: Any) -> None:
    """One call that the sidecar records, and one that the gateway does."""
    stub.unary(INFER, infer_request("scale", {"x": X}), oip.ModelInferResponse, **options)
    with pytest.raises(grpc.RpcError):
        stub.unary(INFER, oip.ModelInferRequest(), oip.ModelInferResponse, **options)


@pytest.fixture
def calls() -> Iterator[SystemCalls]:
    with SystemCalls() as found:
        yield found


def test_clock_quality_is_in_every_record(tmp_path: Path, calls: SystemCalls) -> None:
    """A synchronised clock has its bound, a free-running one is called that, and each change is an event, in both logs."""
    product = Product(tmp_path, {"clock.source": "kernel"}, calls=calls)
    graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
    calls.clock(0, 1234)
    with product:
        stub = Stub(product.channel())
        both(stub)
        for log in ("gateway", "sidecar"):
            last = records(product, log)[-1].header
            assert (last.clock_source, last.clock_status, last.time_uncertainty_ns) == (1, 1, 1234000), log
        calls.clock(UNSYNCHRONISED, 1234)
        time.sleep(1.1)  # the status is read once a second
        both(stub)
        for log in ("gateway", "sidecar"):
            changed = wait_for(lambda name=log: records(product, name, events.CLOCK_STATUS_CHANGED), 5, "the change is recorded")
            assert changed[0].payload.find(b"synchronised (kernel), now free-running (kernel)") >= 0
            last = records(product, log)[-1].header
            assert (last.clock_source, last.clock_status, last.time_uncertainty_ns) == (1, 2, UNKNOWN), log


def test_a_step_of_the_clock_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar's wall clock jumps an hour ahead, and back: two events with the step, and order by sequence stays."""
    step = tmp_path / "step"
    step.write_text("0")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(STEPPED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("STEP_FILE", str(step))
    product = Product(tmp_path)
    graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        both(stub)
        for text in ("3600000000000", "0"):
            step.with_suffix(".new").write_text(text)
            step.with_suffix(".new").rename(step)
            both(stub)
        assert product.stop() == 0
        found = [int(_fields(r)["step_ns"]) for r in records(product, "sidecar", events.CLOCK_STEPPED)]
        assert len(found) == 2 and abs(found[0] - 3600 * 10**9) < 10**9 and abs(found[1] + 3600 * 10**9) < 10**9
        assert [r["exit_code"] for r in product.auditverify()] == [0, 0]


def _fields(record: Record) -> dict[str, str]:
    from vigil.audit.v1.audit_pb2 import SystemPayload

    return dict(SystemPayload.FromString(record.payload).fields)


@pytest.mark.parametrize("hashes", ["plain", "keyed"])
def test_tenants_are_hashed_and_found(tmp_path: Path, hashes: str) -> None:
    """The header vigil-tenant stands as its hash in the records of both logs, keyed when that is set; a search finds it by name."""
    product = Product(tmp_path, {"audit.hashes": hashes})
    graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        both(stub, metadata=(("vigil-tenant", "plant 7"),))
        both(Stub(product.channel()))
        want = hashlib.sha256(b"plant 7").digest()
        if hashes == "keyed":
            want = hmac.digest(bytes.fromhex((product.data / "keys" / "audit-hash.key").read_text()), want, "sha256")
        for log, number in (("gateway", audit.LOG_GATEWAY), ("sidecar", audit.LOG_SIDECAR)):
            mine = [r for r in records(product, log) if r.header.tenant_hash == want]
            assert len(mine) == 1 and mine[0].header.flags == (hashes == "keyed"), log
            request = audit.SearchRequest(log=number, tenant="plant 7")
            page, _ = stub.unary("/vigil.audit.v1.AuditService/Search", request, audit.SearchResponse)
            assert [r.sequence for r in page.records] == [mine[0].header.sequence]


@pytest.mark.parametrize("port", ["grpc", "sidecar_grpc"])
def test_a_tenant_has_a_limit(product: Product, port: str) -> None:
    """A longer name is refused by the header's name, with value and limit."""
    stub = Stub(product.channel(port))
    stub.unary(INFER, infer_request("scale", {"x": X}), oip.ModelInferResponse, metadata=(("vigil-tenant", "t" * 256),))
    with pytest.raises(grpc.RpcError) as error:
        stub.unary(INFER, infer_request("scale", {"x": X}), oip.ModelInferResponse, metadata=(("vigil-tenant", "t" * 257),))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and details(error.value)["fields"] == ["vigil-tenant"]
    assert "257 bytes, the limit is 256" in error.value.details()


@pytest.mark.parametrize("log", ["gateway", "sidecar"])
def test_a_flood_of_refusals_is_counted(tmp_path: Path, log: str) -> None:
    """Beyond audit.refusals_per_s refusals become counts by kind, with first and last time; every reply is in one or has a record."""
    product = Product(tmp_path, {"audit.refusals_per_s": 10})
    graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
    bad = oip.ModelInferRequest() if log == "gateway" else infer_request("missing", {"x": X})
    with product:
        call = product.channel().unary_unary(INFER)
        futures = [call.future(bad.SerializeToString()) for _ in range(500)]
        for future in futures:
            with pytest.raises(grpc.RpcError):
                future.result()
        stopped = time.time_ns()
        assert product.stop() == 0
        found = account(product.data / "audit", product.replies.positions)
        assert found.wrong == [] and found.recorded + found.aggregated[log] == 500 and found.aggregated[log] > 400
        assert found.stated_aggregated == found.aggregated
        counts = records(product, log, events.REFUSALS_AGGREGATED)
        for r in counts:
            fields = _fields(r)
            assert fields["event"] == f"DIA-{events.CONTRACT_VIOLATION if log == 'gateway' else events.UNKNOWN_MODEL}"
            assert r.header.status_code == (3 if log == "gateway" else 5) and r.header.batch_size > 0
            first, last = int(fields["first_ns"]), int(fields["last_ns"])
            assert first <= last < stopped and abs(r.header.latency_ns - (last - first)) < 10**7


def chronyd(folder: Path, name: str, *lines: str) -> subprocess.Popen[bytes]:
    """A chronyd that does not touch the clock."""
    config = folder / f"{name}.conf"
    config.write_text("\n".join([*lines, f"pidfile {folder / name}.pid", "bindcmdaddress 127.0.0.1", "bindaddress 127.0.0.1"]) + "\n")
    return subprocess.Popen([str(CHRONYD), "-x", "-U", "-d", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.skipif(CHRONYD is None, reason="chronyd is not installed")
def test_what_chrony_says_is_in_every_record(tmp_path: Path) -> None:
    """A real chronyd that follows another: source, status and its bound in both logs; when it dies, the status is unknown, as an event."""
    ntp, follower = udp_port(), udp_port()
    daemons = [
        chronyd(tmp_path, "server", "local stratum 3", "allow 127.0.0.1", f"port {ntp}", "cmdport 0"),
        chronyd(tmp_path, "follower", f"server 127.0.0.1 port {ntp} iburst minpoll -2 maxpoll -2", "port 0", f"cmdport {follower}"),
    ]
    try:
        ask = ["chronyc", "-n", "-h", "127.0.0.1", "-p", str(follower), "-c", "tracking"]
        wait_for(lambda: b"7F000001" in subprocess.run(ask, capture_output=True).stdout, 20, "chronyd follows its server", 0.2)
        product = Product(tmp_path, {"clock.source": "chrony", "clock.chrony_at": f"127.0.0.1:{follower}"})
        graphs.scale(2.0, product.models / "scale" / "1" / "model.onnx")
        with product:
            stub = Stub(product.channel())
            both(stub)
            for log in ("gateway", "sidecar"):
                last = records(product, log)[-1].header
                assert (last.clock_source, last.clock_status) == (2, 1) and 0 < last.time_uncertainty_ns < 10**8, log
            daemons[1].kill()
            time.sleep(8)  # asked every five seconds, with a limit of one
            both(stub)
            for log in ("gateway", "sidecar"):
                assert b"synchronised (chrony), now unknown (chrony)" in records(product, log, events.CLOCK_STATUS_CHANGED)[-1].payload, log
                assert records(product, log)[-1].header.time_uncertainty_ns == UNKNOWN
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()


def test_a_tenant_that_is_no_text_harms_nobody(product: Product) -> None:
    """A header that no message can hold is refused by name, with a record; the link to the sidecar and all other calls go on."""
    before = len(records(product, "gateway", events.LINK_LOST))
    for _ in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", product.ports["http"], timeout=10)
        connection.putrequest("POST", INFER)
        connection.putheader("Content-Type", "application/proto")
        connection.putheader("vigil-tenant", b"caf\xe9")
        body = infer_request("scale", {"x": X}).SerializeToString()
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        assert answer.status == 400 and "vigil-tenant is not UTF-8" in told["message"]
        assert answer.headers["vigil-audit-position"].startswith("gateway/")
        Stub(product.channel()).infer(infer_request("scale", {"x": X}))
    assert len(records(product, "gateway", events.LINK_LOST)) == before
