"""What logs cost: verifying, writing, searching among millions, and reading at full speed while serving."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.internal.decoder import _DecodeVarint32
from google.protobuf.internal.encoder import _VarintBytes
from vigil.audit.v1 import reading_pb2
from vigil.audit.v1 import service_pb2 as audit

from tests.harness.calls import infer_request
from tests.harness.product import ROOT, Product
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import DISK
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.find import build_index, find_by_trace
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.segment import list_segments
from vigil_sidecar.audit.writer import AuditWriter

__all__ = ["audit_log", "reading_while_serving", "search_among_many"]

RECORDS = int(os.environ.get("BENCH_RECORDS", "10000000"))
"""In the log that is searched; ten millions take 4 GB of disk while it runs."""
BATCH = 64
X = np.array([[1, 2, 3, 4]], np.float32)
Load = Callable[[int, bytes, int, bytes], dict[str, Any]]


def entries(traces: bool) -> list[Entry]:
    h = os.urandom(32)
    trace = os.urandom(16)
    return [
        Entry(
            layout.KIND_ANSWER, events.ANSWER, trace_id=os.urandom(16) if traces else trace,
            model_digest=h, input_hash=h, output_hash=h, payload=b"p" * 50,
        )
        for _ in range(BATCH)
    ]  # fmt: skip


def audit_log(table: Any, out: Path, rounds: int) -> None:
    """The verifier against plain hashing of the same bytes with one thread, and what a record costs the Python writer within a batch."""
    folder = out / "log"
    keys = KeyFile(folder / "keys", "sidecar")
    writer = AuditWriter(folder / "log", "sidecar", durability="process", segment_bytes=64 << 20, keys=keys)
    records, batch = 300_000, entries(traces=False)
    start = time.perf_counter()
    for _ in range(records // BATCH):
        writer.append(batch)
    cost_us = (time.perf_counter() - start) / records * 1e6
    writer.close()
    files = sorted((folder / "log").glob("*.vlog"))
    command = [str(ROOT / "bin" / "auditverify"), "--key", str(folder / "keys" / "audit-sidecar.pub"), str(folder / "log")]
    ratios, rates = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"GOMAXPROCS": "1"})
        verified = time.perf_counter() - start
        start = time.perf_counter()
        for path in files:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")
        ratios.append((time.perf_counter() - start) / verified)
        rates.append(records / verified / 1e6)
    shown = {"records_per_second_millions": [round(r, 2) for r in rates], "append_us_per_record": round(cost_us, 2)}
    table.add("auditverify / hashing the same bytes, one thread", statistics.median(ratios), 0.50, shown)
    table.add("auditverify, millions of records a second", statistics.median(rates), 1.0, shown)
    table.add("audit writer in Python, µs a record within a batch of 64", cost_us, 4.0, shown, at_most=True)
    command = ["go", "test", "-run", "^$", "-bench", "Append", "-benchtime", "300000x", "./internal/auditlog"]
    said = subprocess.run(command, cwd=ROOT / "gateway-go", check=True, capture_output=True, text=True).stdout
    costs = {name: float(ns) / 1000 for name, ns in re.findall(r"BenchmarkAppend/(\S+?)-\d+\s+\d+\s+([\d.]+) ns/op", said)}
    table.add("audit writer in Go, µs a record within a batch of 64", costs["within_64"], 2.0, costs, at_most=True)
    shutil.rmtree(folder)


def _ask(folder: Path, trace: bytes) -> tuple[audit.SearchResponse, float]:
    """One search by the gateway's reading process, and how long it took from start to end."""
    search = audit.SearchRequest(log=audit.LOG_SIDECAR, trace_id=trace.hex())
    task = reading_pb2.ReadingTask(folder=str(folder), log="sidecar", search=search).SerializeToString()
    start = time.perf_counter()
    child = subprocess.Popen([str(ROOT / "bin" / "vigil-gateway"), "read-log"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(_VarintBytes(len(task)) + task)
    child.stdin.flush()
    data = child.stdout.read()
    took = time.perf_counter() - start
    child.stdin.close()
    assert child.wait() == 0
    size, at = _DecodeVarint32(data, 0)
    reply = reading_pb2.ReadingReply.FromString(data[at : at + size])
    return audit.SearchResponse.FromString(reply.message), took


def search_among_many(table: Any, out: Path) -> None:
    """A trace in a log of millions: how many records are looked at, and how long it takes."""
    folder = out / "many"
    writer = AuditWriter(folder, "sidecar", durability="process", segment_bytes=64 << 20)
    start = time.perf_counter()
    wanted: list[bytes] = []
    for i in range(RECORDS // BATCH):
        batch = entries(traces=True)
        if i % (RECORDS // BATCH // 5) == 1:
            wanted.append(batch[7].trace_id)
        writer.append(batch)
        if i % 2000 == 0 and sys.stderr.isatty():
            print(f"\r  {i * BATCH} of {RECORDS} records are written", end="", file=sys.stderr)
    writer.close()
    wrote = time.perf_counter() - start
    start = time.perf_counter()
    segments = list_segments(folder)
    for segment in segments[:-1]:
        build_index(segment, DISK)
    indexed = time.perf_counter() - start
    looked, times, in_python = [], [], []
    for trace in wanted:
        found, took = _ask(folder, trace)
        assert [r.trace_id for r in found.records] == [trace.hex()]
        looked.append(found.records_read)
        times.append(took * 1000)
        start = time.perf_counter()
        assert len(list(find_by_trace(folder, trace))) == 1
        in_python.append((time.perf_counter() - start) * 1000)
    shown = {
        "records": RECORDS, "segments": len(segments), "looked_at": looked, "ms": [round(t, 1) for t in times],
        "python_ms": [round(t, 1) for t in in_python], "written_s": round(wrote, 1), "indexed_s": round(indexed, 1),
    }  # fmt: skip
    table.add(f"search by trace: records looked at / {RECORDS / 1e6:g} millions there", max(looked) / RECORDS, 0.05, shown, at_most=True)
    table.add("the same, ms from question to answer (a process is started)", statistics.median(times), None, shown)
    shutil.rmtree(folder)


def reading_while_serving(table: Any, p: Product, load: Load, rounds: int) -> None:
    """Calls a second at 32 in flight while the sidecar's log is verified and searched without a pause, against none of that."""
    request, want = infer_request("scale", {"x": X}).SerializeToString(), (X * 2).tobytes()
    stop, passes = threading.Event(), [0]
    channel = p.channel()
    verify = channel.unary_stream(
        "/vigil.audit.v1.AuditService/VerifyRange",
        request_serializer=audit.VerifyRangeRequest.SerializeToString,
        response_deserializer=audit.VerifyRangeResponse.FromString,
    )
    search = channel.unary_unary(
        "/vigil.audit.v1.AuditService/Search",
        request_serializer=audit.SearchRequest.SerializeToString,
        response_deserializer=audit.SearchResponse.FromString,
    )

    def read() -> None:
        while not stop.is_set():
            list(verify(audit.VerifyRangeRequest(log=audit.LOG_SIDECAR), timeout=60))
            search(audit.SearchRequest(log=audit.LOG_SIDECAR, model="none"), timeout=60)
            passes[0] += 1

    alone, beside = [], []
    for turn in range(rounds):
        for reading in (False, True) if turn % 2 else (True, False):
            if not reading:
                alone.append(load(p.ports["grpc"], request, 32, want))
                continue
            stop.clear()
            thread = threading.Thread(target=read)
            thread.start()
            beside.append(load(p.ports["grpc"], request, 32, want))
            stop.set()
            thread.join()
    ratio = statistics.median(b["per_second"] / a["per_second"] for a, b in zip(alone, beside, strict=True))
    shown = {
        "alone": [round(r["per_second"]) for r in alone], "beside": [round(r["per_second"]) for r in beside],
        "p99_us_alone": [round(r["p99_us"]) for r in alone], "p99_us_beside": [round(r["p99_us"]) for r in beside], "passes": passes[0],
    }  # fmt: skip
    table.add("serving while the log is read without a pause / not", ratio, 0.90, shown)
