"""Records in words: header fields and decoded payloads, as people and tables want them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import DecodeError
from vigil.audit.v1 import audit_pb2

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import Record

__all__ = ["detail", "explain", "model_of", "plain", "position", "time_text"]

_PAYLOADS: dict[int, Any] = {
    layout.KIND_ANSWER: audit_pb2.CallPayload, layout.KIND_REFUSAL: audit_pb2.CallPayload,
    layout.KIND_MODEL: audit_pb2.ModelPayload, layout.KIND_STATE: audit_pb2.StatePayload,
    layout.KIND_SYSTEM: audit_pb2.SystemPayload,
}  # fmt: skip


def plain(value: Any) -> str:
    """A value for the terminal: what callers wrote must not end lines or move the cursor."""
    text = str(value)
    return text if text.isprintable() else json.dumps(text)


def time_text(time_ns: int) -> str:
    """UTC in ISO 8601, microseconds."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="microseconds")


def position(record: Record, log: str) -> str:
    """LOG/BOOT/SEQ."""
    return f"{log}/{record.header.boot_id.hex()}/{record.header.sequence}"


def detail(record: Record) -> dict[str, Any]:
    """What a record's payload says; its bytes in hex when it cannot be read."""
    h = record.header
    try:
        payload = _PAYLOADS[h.kind].FromString(record.payload) if h.kind in _PAYLOADS else None
    except DecodeError:
        return {"payload": record.payload.hex()}
    if payload is None:
        lines = record.payload.decode("utf-8", "replace").split("\n")
        return {"note": " ".join(x for x in lines if x and not x.startswith("\u2014"))}
    fields = {f.name: getattr(payload, f.name) for f, _ in payload.ListFields() if f.name not in ("violations", "fields")}
    if h.kind in (layout.KIND_ANSWER, layout.KIND_REFUSAL) and payload.violations:
        fields["violations"] = [v.field for v in payload.violations]
    if h.kind == layout.KIND_SYSTEM:
        fields |= dict(payload.fields)
    if h.kind == layout.KIND_STATE:
        fields |= {
            "actions": list(payload.actions), "parameters": dict(payload.parameters),
            "counters": {n: list(c.times_ms) for n, c in payload.counters.items()},
        }  # fmt: skip
    return fields


def model_of(record: Record) -> str:
    """The model that a record is about; empty when it is about none."""
    if record.header.kind not in (layout.KIND_ANSWER, layout.KIND_REFUSAL, layout.KIND_MODEL):
        return ""
    try:
        return str(_PAYLOADS[record.header.kind].FromString(record.payload).model)
    except DecodeError:
        return ""


def explain(record: Record, log: str) -> dict[str, Any]:
    """One record in words."""
    h = record.header
    return {
        "position": position(record, log), "time": time_text(h.time_ns),
        "kind": layout.KIND_NAMES[h.kind], "event": f"DIA-{h.event_id}", "name": NAMES[h.event_id],
        "trace_id": h.trace_id.hex() if any(h.trace_id) else "", "status_code": h.status_code,
        "model_version": h.model_version, "model_digest": h.model_digest.hex() if any(h.model_digest) else "",
        "input_hash": h.input_hash.hex() if any(h.input_hash) else "", "output_hash": h.output_hash.hex() if any(h.output_hash) else "",
        "batch_size": h.batch_size, "batch_row": h.batch_row, "latency_us": h.latency_ns // 1000, "detail": detail(record),
    }  # fmt: skip
