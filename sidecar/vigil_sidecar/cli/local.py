"""Verbs that need no gateway: settings, audit logs, doctor."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vigil.audit.v1 import audit_pb2

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.verify import LogDamaged, Record, read_records, verify_folder
from vigil_sidecar.cli.client import CommandFailed
from vigil_sidecar.cli.options import read_settings
from vigil_sidecar.cli.supervisor import gateway_binary
from vigil_sidecar.settings_gen import SPECS

__all__ = ["audit_tail", "audit_verify", "config_show", "doctor", "explain"]

_PAYLOADS: dict[int, Any] = {
    layout.KIND_ANSWER: audit_pb2.CallPayload, layout.KIND_REFUSAL: audit_pb2.CallPayload,
    layout.KIND_MODEL: audit_pb2.ModelPayload, layout.KIND_STATE: audit_pb2.StatePayload,
    layout.KIND_SYSTEM: audit_pb2.SystemPayload,
}  # fmt: skip


def config_show(args: argparse.Namespace) -> int:
    """vigil config show"""
    settings, origin = read_settings(args)
    rows = [{"key": s.key, "value": getattr(settings, s.name), "origin": origin[s.key]} for s in SPECS]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['key']:36} {json.dumps(row['value']):24} {row['origin']}")
    return 0


def _folders(args: argparse.Namespace) -> list[Path]:
    if args.dir:
        root = Path(args.dir)
        inner = [root / n for n in ("gateway", "sidecar") if (root / n).is_dir()]
        return inner or [root]
    settings, _ = read_settings(args)
    return [Path(settings.data_dir) / "audit" / n for n in ("gateway", "sidecar")]


def audit_verify(args: argparse.Namespace) -> int:
    """vigil audit verify [DIR]: 0 intact, 1 could not read, 4 damaged, 5 not a log"""
    worst = 0
    reports = []
    for folder in _folders(args):
        try:
            report = verify_folder(folder)
        except FileNotFoundError as error:
            print(f"vigil: {error}; give the folder of a log", file=sys.stderr)
            worst = max(worst, 5)
            continue
        except OSError as error:
            print(f"vigil: {folder}: {error.strerror}", file=sys.stderr)
            worst = max(worst, 1)
            continue
        reports.append(report.to_json())
        if not report.intact:
            worst = max(worst, 4)
        if args.json:
            continue
        if report.damage is None:
            kinds = ", ".join(f"{n} {k}" for k, n in sorted(report.kinds.items()))
            print(
                f"{folder}: intact, {report.records} records ({report.first_sequence}..{report.last_sequence}; {kinds}) "
                f"of {report.boots} runs; not signed; head {report.head}"
            )
        else:
            d = report.damage
            print(f"{folder}: DAMAGED at record {d.sequence} ({d.file}, byte {d.offset}): {d.reason}")
    if args.json:
        print(json.dumps(reports))
    return worst


def explain(record: Record, log: str) -> dict[str, Any]:
    """One record in words."""
    h = record.header
    payload = _PAYLOADS[h.kind].FromString(record.payload)
    fields = {f.name: getattr(payload, f.name) for f, _ in payload.ListFields() if f.name not in ("violations", "fields")}
    if h.kind in (layout.KIND_ANSWER, layout.KIND_REFUSAL) and payload.violations:
        fields["violations"] = [v.field for v in payload.violations]
    if h.kind == layout.KIND_SYSTEM:
        fields |= dict(payload.fields)
    return {
        "position": f"{log}/{h.boot_id.hex()}/{h.sequence}",
        "time": datetime.fromtimestamp(h.time_ns / 1e9, UTC).isoformat(timespec="microseconds"),
        "kind": layout.KIND_NAMES[h.kind], "event": f"DIA-{h.event_id}", "name": NAMES[h.event_id],
        "trace_id": h.trace_id.hex() if any(h.trace_id) else "", "status_code": h.status_code,
        "model_version": h.model_version, "model_digest": h.model_digest.hex() if any(h.model_digest) else "",
        "input_hash": h.input_hash.hex() if any(h.input_hash) else "", "output_hash": h.output_hash.hex() if any(h.output_hash) else "",
        "batch_size": h.batch_size, "batch_row": h.batch_row, "latency_us": h.latency_ns // 1000, **fields,
    }  # fmt: skip


def audit_tail(args: argparse.Namespace) -> int:
    """vigil audit tail"""
    for folder in _folders(args):
        last: list[Record] = []
        try:
            for record in read_records(folder):
                if args.trace and record.header.trace_id.hex() != args.trace:
                    continue
                last.append(record)
                if len(last) > args.lines:
                    last.pop(0)
        except OSError as error:
            raise CommandFailed(f"{folder}: {error.strerror or error}; give the folder of a log") from None
        except LogDamaged as damaged:
            print(f"vigil: {folder}: {damaged}; `vigil audit verify` says more", file=sys.stderr)
        for record in last:
            shown = explain(record, folder.name)
            if args.json:
                print(json.dumps(shown))
            else:
                rest = "  ".join(f"{k}={v}" for k, v in list(shown.items())[5:] if v not in ("", 0))
                print(f"{shown['time']} {folder.name}/{record.header.sequence} {shown['event']} {shown['name']} {rest}")
    return 0


def _check_port(host: str, port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{error.strerror}; stop what uses it, or give another port"
    return None


def _check_data(folder: Path) -> str | None:
    probe = folder if folder.exists() else folder.parent
    while not probe.exists():
        probe = probe.parent
    if not os.access(probe, os.W_OK):
        return f"{probe} cannot be written; give --data-dir another folder"
    free = shutil.disk_usage(probe).free
    return f"only {free >> 20} MiB are free" if free < 1 << 30 else None


def _check_models(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"{folder} does not exist; run `make setup` for the demonstration models, or give --models DIR"
    found = [m.name for m in folder.iterdir() if m.is_dir() and any(m.glob("[1-9]*/model.onnx"))]
    return None if found else f"{folder} holds no NAME/VERSION/model.onnx"


def doctor(args: argparse.Namespace) -> int:
    """vigil doctor"""
    settings, _ = read_settings(args)
    checks: list[tuple[str, str | None]] = []
    ok = sys.version_info >= (3, 11)
    checks.append(("Python 3.11 or newer", None if ok else f"this is {sys.version.split()[0]}"))
    try:
        gateway_binary()
        checks.append(("vigil-gateway", None))
    except CommandFailed as error:
        checks.append(("vigil-gateway", str(error)))
    for name in ("onnxruntime", "grpc", "cv2", "PIL"):
        start = time.monotonic()
        try:
            __import__(name)
            checks.append((f"package {name} ({time.monotonic() - start:.1f} s)", None))
        except ImportError as error:
            checks.append((f"package {name}", f"{error}; run `make setup`"))
    checks.append((f"models in {settings.models_dir}", _check_models(Path(settings.models_dir))))
    checks.append((f"data folder {settings.data_dir}", _check_data(Path(settings.data_dir))))
    checks.append(("memfd_create", None if hasattr(os, "memfd_create") else "the kernel has no memfd; Linux 3.17 or newer is needed"))
    for spec in SPECS:
        if spec.key.endswith("_port") and getattr(settings, spec.name):
            port = getattr(settings, spec.name)
            checks.append((f"{spec.key} {port}", _check_port(settings.listen_host, port)))
    if args.json:
        print(json.dumps([{"check": c, "ok": p is None, "problem": p} for c, p in checks]))
    else:
        for check, problem in checks:
            print(f"{'ok  ' if problem is None else 'FAIL'} {check}{'' if problem is None else ': ' + problem}")
    return 0 if all(p is None for _, p in checks) else 1
