"""AuditService: search, single records, proofs and verification of both logs, through the gateway."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as oip
from vigil.audit.v1 import service_pb2 as audit
from vigil.models.v1 import models_pb2 as models

from tests.harness import graphs
from tests.harness.calls import INFER, Stub, details, infer_request, own_address
from tests.harness.product import ROOT, Product, wait_for
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import read_records

X = np.array([[1, 2, 3, 4]], np.float32)
SERVICE = "/vigil.audit.v1.AuditService/"
LOGS = {"gateway": audit.LOG_GATEWAY, "sidecar": audit.LOG_SIDECAR}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("service")
    graphs.scale(2.0, folder / "models" / "scale" / "1" / "model.onnx")
    settings = {
        "audit.segment_bytes": "1048576",
        "audit.checkpoint_interval_s": "0.3",
        "audit.readers_max": "2",
        "audit.read_timeout_s": "20",
    }
    with Product(folder, settings) as running:
        stub = Stub(running.channel())
        good = infer_request("scale", {"x": X})
        futures = [stub.raw(INFER).future(good.SerializeToString()) for _ in range(2500)]
        for future in futures:
            future.result()
        for i in range(20):
            stub.unary(INFER, good, oip.ModelInferResponse, metadata=(("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),))
            with pytest.raises(grpc.RpcError):
                stub.infer(infer_request("missing", {"x": X}, request_id=f"r{i}"))
            with pytest.raises(grpc.RpcError):
                stub.infer(oip.ModelInferRequest(id="x" * 300))
        yield running


def ask(product: Product, method: str, request: Any, **options: Any) -> Any:
    reply = getattr(audit, method + "Response")
    return Stub(product.channel()).unary(SERVICE + method, request, reply, **options)[0]


def refused(product: Product, method: str, request: Any, **options: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    with pytest.raises(grpc.RpcError) as error:
        ask(product, method, request, **options)
    return error.value.code(), error.value.details(), details(error.value)


def pages(product: Product, **fields: Any) -> list[Any]:
    found, token = [], ""
    for _ in range(1000):
        page = ask(product, "Search", audit.SearchRequest(page_token=token, **fields))
        found += page.records
        token = page.next_page_token
        if not token:
            return found
    raise AssertionError("a search without end")


def hexed(value: bytes) -> str:
    return value.hex() if any(value) else ""


@pytest.mark.parametrize("log", LOGS)
def test_search_gives_every_record_as_the_file_has_it(product: Product, log: str) -> None:
    """All pages together are the log, each field as the reader of files sees it; backwards it is the same."""
    time.sleep(0.5)
    before = list(read_records(product.data / "audit" / log))
    found = pages(product, log=LOGS[log], page_size=997)
    assert len(found) >= len(before) > (2000 if log == "sidecar" else 25)
    for shown, record in zip(found, before, strict=False):
        h = record.header
        assert shown.position == f"{log}/{h.boot_id.hex()}/{h.sequence}"
        assert (shown.time_ns, shown.kind, shown.event_id, shown.status_code) == (
            h.time_ns,
            layout.KIND_NAMES[h.kind],
            h.event_id,
            h.status_code,
        )
        for name in ("trace_id", "span_id", "request_id_hash", "tenant_hash", "model_digest", "input_hash", "output_hash"):
            assert getattr(shown, name) == hexed(getattr(h, name)), name
        for name in ("model_version", "safety_state", "quality", "clock_source", "clock_status", "batch_size", "batch_row", "latency_ns"):
            assert getattr(shown, name) == getattr(h, name), name
        kind = shown.WhichOneof("payload")
        if kind in ("call", "model", "state", "system"):
            assert getattr(shown, kind).SerializeToString(deterministic=True) == type(getattr(shown, kind)).FromString(
                record.payload
            ).SerializeToString(deterministic=True)
        else:
            assert shown.note == record.payload.decode()
    backwards = pages(product, log=LOGS[log], page_size=500, newest_first=True)
    positions = [r.position for r in found]
    assert [r.position for r in backwards if r.sequence <= found[-1].sequence] == positions[::-1]


def test_search_by_each_field(product: Product) -> None:
    """Every field narrows, all of them together too."""
    answers = pages(product, log=audit.LOG_SIDECAR, trace_id=TRACE)
    assert len(answers) == 20 and {r.event for r in answers} == {"answer"}
    start, end = answers[3].time_ns, answers[9].time_ns
    within = pages(product, log=audit.LOG_SIDECAR, trace_id=TRACE, from_ns=start, to_ns=end, model="scale", event_ids=[events.ANSWER])
    assert [r.position for r in within] == [r.position for r in answers if start <= r.time_ns < end] != []
    assert not pages(product, log=audit.LOG_SIDECAR, trace_id=TRACE, model="missing")
    unknown = pages(product, log=audit.LOG_SIDECAR, event_ids=[events.UNKNOWN_MODEL], page_size=7)
    assert [r.call.request_id for r in unknown] == [f"r{i}" for i in range(20)]
    assert [r.call.request_id for r in pages(product, log=audit.LOG_SIDECAR, model="missing", newest_first=True)] == [
        f"r{i}" for i in range(20)
    ][::-1]
    assert len(pages(product, log=audit.LOG_GATEWAY, event_ids=[events.CONTRACT_VIOLATION])) == 20
    page = ask(product, "Search", audit.SearchRequest(log=audit.LOG_SIDECAR, event_ids=[events.UNKNOWN_MODEL], page_size=3))
    assert len(page.records) == 3 and page.next_page_token and page.records_read > 0


def test_bad_searches_name_the_field(product: Product) -> None:
    """Field, value and limit; a token belongs to its search."""
    page = ask(product, "Search", audit.SearchRequest(log=audit.LOG_SIDECAR, page_size=2))
    bad = [
        ({}, "log"), ({"log": 7}, "log"), ({"page_size": 1001}, "page_size"), ({"trace_id": "XYZ"}, "trace_id"),
        ({"event_ids": [1001, 9]}, "event_ids[1]"), ({"from_ns": 5, "to_ns": 5}, "from_ns"), ({"page_token": "AAAA"}, "page_token"),
        ({"page_token": page.next_page_token, "model": "other"}, "page_token"),
        ({"page_token": page.next_page_token, "log": 1}, "page_token"),
    ]  # fmt: skip
    for fields, field in bad:
        request = audit.SearchRequest(**({"log": audit.LOG_SIDECAR} if fields and "log" not in fields else {}) | fields)
        code, text, told = refused(product, "Search", request)
        assert code == grpc.StatusCode.INVALID_ARGUMENT and told["fields"] == [field], (fields, text)


def test_get_and_prove(product: Product, tmp_path: Path) -> None:
    """A call's position leads to its record, byte for byte, and to a proof that holds offline."""
    _, meta = Stub(product.channel()).unary(INFER, infer_request("scale", {"x": X}), oip.ModelInferResponse)
    position = meta["vigil-audit-position"]
    got = ask(product, "Get", audit.GetRequest(position=position))
    assert got.record.position == position and got.record.event == "answer"
    assert hashlib.sha256(b"\0" + got.raw).digest() == got.leaf_hash
    log, _, sequence = position.split("/")
    assert ask(product, "Get", audit.GetRequest(position=f"{log}/{sequence}")) == got
    wait_for(lambda: _covered(product, int(sequence)), what="a checkpoint over the record")
    reply = ask(product, "Prove", audit.ProveRequest(position=position))
    proof = tmp_path / "proof"
    proof.write_bytes(reply.proof)
    key = product.data / "keys" / "audit-sidecar.pub"
    done = subprocess.run([str(ROOT / "bin" / "auditverify"), "proof", str(proof), "--key", str(key)], capture_output=True, text=True)
    assert done.returncode == 0 and sequence in done.stdout, done
    assert base64.b64decode(reply.proof.split(b"\n")[1].removeprefix(b"extra ")) == got.raw


def _covered(product: Product, sequence: int) -> bool:
    note = ask(product, "Checkpoint", audit.CheckpointRequest(log=audit.LOG_SIDECAR)).note
    return int(note.split("\n")[1]) >= sequence


def test_positions_that_are_not_there(product: Product) -> None:
    """Each kind of absence has its code and words."""
    boot = ask(product, "Search", audit.SearchRequest(log=audit.LOG_SIDECAR, page_size=1)).records[0].position.split("/")[1]
    for method, kind in (("Get", audit.GetRequest), ("Prove", audit.ProveRequest)):
        for position, code in {
            "sidecar": "INVALID_ARGUMENT", "sidecar/x": "INVALID_ARGUMENT", "sidecar/0": "INVALID_ARGUMENT",
            "../1": "NOT_FOUND", "other/5": "NOT_FOUND", f"sidecar/{boot}/unlogged": "NOT_FOUND",
            f"sidecar/{'0' * 32}/5": "NOT_FOUND",
        }.items():  # fmt: skip
            found, text, _ = refused(product, method, kind(position=position))
            assert found.name == code, (method, position, text)
    assert refused(product, "Get", audit.GetRequest(position="sidecar/99999999"))[0].name == "NOT_FOUND"
    code, text, _ = refused(product, "Prove", audit.ProveRequest(position="sidecar/99999999"))
    assert code.name == "FAILED_PRECONDITION" and "not in the log" in text


def verified(product: Product, **fields: Any) -> tuple[list[Any], Any]:
    call = product.channel().unary_stream(
        SERVICE + "VerifyRange",
        request_serializer=audit.VerifyRangeRequest.SerializeToString, response_deserializer=audit.VerifyRangeResponse.FromString,
    )(audit.VerifyRangeRequest(**fields), timeout=30)  # fmt: skip
    replies = list(call)
    assert [r.WhichOneof("of") for r in replies[:-1]] == ["progress"] * (len(replies) - 1)
    return [r.progress for r in replies[:-1]], replies[-1].verdict


def test_verify_range(product: Product) -> None:
    """The whole log and parts of it; without a key nothing is called verified; a change is found where it is."""
    keys = (product.data / "keys" / "audit-sidecar.pub").read_text().split("\n")[:1]
    _, verdict = verified(product, log=audit.LOG_SIDECAR, from_sequence=100, to_sequence=2000, trusted_keys=keys)
    assert verdict.exit_code == 0 and verdict.sealed_sequence >= 2000 and verdict.first_sequence <= 100, verdict
    _, verdict = verified(product, log=audit.LOG_SIDECAR, trusted_keys=keys)
    assert verdict.exit_code in (0, 3) and verdict.last_sequence > 2500, verdict
    _, verdict = verified(product, log=audit.LOG_SIDECAR, from_sequence=1)
    assert verdict.exit_code == 6 and "no signature by a trusted key" in verdict.verdict
    with pytest.raises(grpc.RpcError) as error:
        verified(product, log=audit.LOG_SIDECAR, trusted_keys=["vigil+x"])
    assert details(error.value)["fields"] == ["trusted_keys[0]"]
    with pytest.raises(grpc.RpcError) as error:
        verified(product, log=audit.LOG_SIDECAR, from_sequence=5, to_sequence=4)
    assert details(error.value)["fields"] == ["from_sequence"]


def test_a_changed_log_is_told(product: Product) -> None:
    """A byte of a finished segment is changed and put back: VerifyRange names the place, Get says DATA_LOSS."""
    segment = sorted((product.data / "audit" / "sidecar").glob("segment-*.vlog"))[0]
    record = next(r for r in read_records(segment.parent) if r.header.sequence == 50)
    place = record.offset + 120
    with segment.open("r+b") as file:
        file.seek(place)
        old = file.read(1)
        file.seek(place)
        file.write(bytes([old[0] ^ 1]))
    try:
        keys = (product.data / "keys" / "audit-sidecar.pub").read_text().split("\n")[:1]
        _, verdict = verified(product, log=audit.LOG_SIDECAR, trusted_keys=keys)
        assert (verdict.exit_code, verdict.damaged_sequence, verdict.damaged_file, verdict.damaged_offset) == (
            4,
            50,
            segment.name,
            record.offset,
        )
        code, text, _ = refused(product, "Get", audit.GetRequest(position="sidecar/50"))
        assert code.name == "DATA_LOSS" and segment.name in text and str(product.folder) not in text
    finally:
        with segment.open("r+b") as file:
            file.seek(place)
            file.write(old)


def test_readers_are_limited_and_end_with_their_callers(product: Product) -> None:
    """Calls beyond audit.readers_max are refused by that name; a reading process ends with its call."""
    gateway = product.pids()["gateway_pid"]
    codes: list[grpc.StatusCode] = []
    lock = threading.Lock()

    def one() -> None:
        try:
            pages(product, log=audit.LOG_SIDECAR, model="missing", page_size=1)
            code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
            assert details(error)["info"]["limit"] == "audit.readers_max"
        with lock:
            codes.append(code)

    threads = [threading.Thread(target=one) for _ in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes and len(codes) == 12
    wait_for(lambda: not children(gateway), what="no reading process left")


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_killed_reading_process_harms_nothing(product: Product) -> None:
    """The reading process has the lowest priority; killed, its caller gets an error, and the next call works."""
    gateway, seen, stop = product.pids()["gateway_pid"], [], threading.Event()

    def hunt() -> None:
        while not stop.is_set() and not seen:
            for pid in children(gateway):
                try:
                    nices = {int((t / "stat").read_text().rsplit(")", 1)[1].split()[16]) for t in Path(f"/proc/{pid}/task").iterdir()}
                    if nices == {19}:
                        seen.append(pid)
                        os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue

    hunter = threading.Thread(target=hunt)
    hunter.start()
    outcomes = []
    for _ in range(200):
        try:
            verified(product, log=audit.LOG_SIDECAR)
        except grpc.RpcError as error:
            outcomes.append(error.code())
        if seen:
            break
    stop.set()
    hunter.join()
    assert seen and outcomes == [grpc.StatusCode.INTERNAL]
    assert verified(product, log=audit.LOG_SIDECAR)[1].exit_code == 6


def test_logs_are_read_without_a_sidecar(product: Product) -> None:
    """When the sidecar is gone its log can still be read; the direct listener says who reads."""
    channel = product.channel("sidecar_grpc")
    with pytest.raises(grpc.RpcError) as error:
        Stub(channel).unary(SERVICE + "Search", audit.SearchRequest(log=audit.LOG_SIDECAR), audit.SearchResponse)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED and "gateway" in error.value.details()
    os.kill(product.pids()["sidecar_pid"], signal.SIGKILL)
    assert pages(product, log=audit.LOG_SIDECAR, trace_id=TRACE)


@pytest.mark.skipif(not own_address(), reason="this machine has no address but loopback")
@pytest.mark.parametrize("allowed", ["false", "true"])
def test_remote_control_and_reading_are_settings(tmp_path: Path, allowed: str) -> None:
    """On an address that is not loopback both are refused by their setting's name, streams too, or allowed by it."""
    graphs.scale(2.0, tmp_path / "models" / "scale" / "1" / "model.onnx")
    settings = {"listen.host": "0.0.0.0", "audit.read_remote": allowed, "control.allow_remote": allowed}
    with Product(tmp_path, settings) as product:
        local = Stub(product.channel())
        remote = Stub(grpc.insecure_channel(f"{own_address()}:{product.ports['grpc']}"))
        remote.infer(infer_request("scale", {"x": X}))
        search, reload = audit.SearchRequest(log=audit.LOG_SIDECAR), models.ReloadModelRequest(name="scale")
        stream = remote.channel.unary_stream(
            SERVICE + "VerifyRange", audit.VerifyRangeRequest.SerializeToString, audit.VerifyRangeResponse.FromString
        )
        rotate = audit.RotateKeyRequest(log=audit.LOG_GATEWAY, reason="a test")  # which the gateway answers by itself
        calls = [
            ("audit.read_remote", lambda s: s.unary(SERVICE + "Search", search, audit.SearchResponse)),
            ("control.allow_remote", lambda s: s.unary("/vigil.models.v1.ModelsService/ReloadModel", reload, models.ReloadModelResponse)),
            ("control.allow_remote", lambda s: s.unary(SERVICE + "RotateKey", rotate, audit.RotateKeyResponse)),
        ]
        for setting, call in calls:
            call(local)
            if allowed == "true":
                call(remote)
                continue
            with pytest.raises(grpc.RpcError) as error:
                call(remote)
            assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED and setting in error.value.details()
            assert details(error.value)["info"]["event"] == f"DIA-{events.CONTROL_FORBIDDEN}"
        if allowed == "true":
            assert list(stream(audit.VerifyRangeRequest(log=audit.LOG_SIDECAR)))
        else:
            with pytest.raises(grpc.RpcError) as error:
                list(stream(audit.VerifyRangeRequest(log=audit.LOG_SIDECAR)))
            assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_a_reading_process_has_hard_limits() -> None:
    """A gibibyte of memory, the first that the kernel ends, and gone with whoever started it."""
    child = subprocess.Popen([str(ROOT / "bin" / "vigil-gateway"), "read-log"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        proc = Path(f"/proc/{child.pid}")
        wait_for(lambda: (proc / "oom_score_adj").read_text().strip() == "1000", 10, "it is the first to go")
        assert re.search(r"Max data size\s+1073741824\s+1073741824", (proc / "limits").read_text())
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(10) == 1
    finally:
        child.kill()
        child.wait()
