"""What the page needs of the project's YAML sources, as one TypeScript module."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["web_tables"]

_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def _constant(name: str, kind: str, doc: str, value: Any) -> str:
    return f"/** {doc} */\nexport const {name}: {kind} = {json.dumps(value, indent=1, ensure_ascii=False)};\n"


_MESSAGE = re.compile(r"^message (\w+) \{$(.*?)^\}$", re.M | re.S)
_FIELD = re.compile(r"((?:^ +//.*\n)+) +[\w.<>, ]*? (\w+) = \d+", re.M)


def _field_docs(proto: str) -> dict[str, dict[str, str]]:
    """Comments of each message's fields, by their names in TypeScript."""
    docs: dict[str, dict[str, str]] = {}
    for message, body in _MESSAGE.findall(proto):
        docs[message] = {}
        for comment, name in _FIELD.findall(body):
            lines = [line.strip().removeprefix("//").strip() for line in comment.splitlines()]
            docs[message][re.sub(r"_(\w)", lambda m: m[1].upper(), name)] = " ".join(filter(None, lines))
    return docs


def web_tables(
    header: str, digest: str, layout: Mapping[str, Any], events: Mapping[str, Any], machine: Mapping[str, Any], kinds: Mapping[str, Any],
    supervision: Mapping[str, Any], payloads: str,
) -> str:  # fmt: skip
    """The module's text; ``digest`` is that of the contract, ``payloads`` the text of audit.proto."""
    fields, offset = [], 0
    for f in layout["fields"]:
        size = f.get("size") or _SIZES[f["type"]]
        fields.append({"name": f["name"], "type": f["type"], "offset": offset, "size": size, "doc": f["doc"]})
        offset += size
    arrows = []
    for start, table in machine["transitions"].items():
        for event, steps in table.items():
            arrows += [[start, s["to"], event] for s in steps if s["to"] != start and [start, s["to"], event] not in arrows]
    parts = [
        f"// {header}\n",
        _constant("CONTRACT_DIGEST", "string", "SHA-256 of the contract that this code was generated from.", digest),
        "/** One field of an audit record's header; little-endian. */\n"
        "export interface LayoutField {\n  name: string;\n  type: string;\n  offset: number;\n  size: number;\n  doc: string;\n}\n",
        _constant("RECORD_FIELDS", "readonly LayoutField[]", "The header of an audit record (docs/audit-format.md).", fields),
        _constant("RECORD_HEADER_BYTES", "number", "Its size.", offset),
        _constant("RECORD_VERSION", "number", "Its version.", layout["version"]),
        _constant(
            "RECORD_KINDS", "Record<number, { name: string; message: string; doc: string }>", "Kinds of records, by number.",
            {n: {k: v[k] for k in ("name", "message", "doc")} for n, v in layout["kinds"].items()},
        ),
        _constant(
            "PAYLOAD_FIELDS", "Record<string, Record<string, string>>", "What the fields of records' payloads are, by message.",
            _field_docs(payloads),
        ),
        _constant(
            "EVENTS", "Record<number, { name: string; class: string; doc: string }>", "Diagnostic events (docs/events.md).",
            {n: {k: e[k] for k in ("name", "class", "doc")} for n, e in events["events"].items()},
        ),
        _constant(
            "STATES", "Record<string, { rank: number; doc: string }>", "States of the safety machine.",
            {n: {"rank": s["rank"], "doc": s["doc"]} for n, s in machine["states"].items()},
        ),
        _constant("ARROWS", "readonly (readonly [string, string, string])[]", "Changes of state: from, to, event.", arrows),
        _constant(
            "FAULTS", "Record<string, { group: string; by: string; doc: string; unit?: string; magnitude?: number; duration_ms: number }>",
            "Faults that can be injected.",
            {n: {f: k[f] for f in ("group", "by", "doc", "unit", "magnitude", "duration_ms") if f in k} for n, k in kinds["kinds"].items()},
        ),
        _constant(
            "PARTS", "Record<string, { process: string; doc: string }>", "Supervised parts.",
            {n: {"process": e["process"], "doc": e["doc"]} for n, e in supervision["entities"].items()},
        ),
    ]  # fmt: skip
    return "\n".join(parts)
