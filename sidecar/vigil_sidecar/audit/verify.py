"""Verification of a log folder. Imports nothing of the writer; streams in bounded memory."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import google_crc32c

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout

__all__ = ["Damage", "LogDamaged", "Record", "Report", "read_records", "verify_folder"]

_RECORD = struct.Struct(layout.RECORD_FORMAT)
_SEGMENT = struct.Struct(layout.SEGMENT_FORMAT)
_CHUNK_BYTES = 1 << 20


class Damage(NamedTuple):
    """Where a log stops being intact, and why."""

    file: str
    offset: int
    sequence: int
    reason: str


class Record(NamedTuple):
    """One record as read: place, header, payload and leaf hash."""

    file: str
    offset: int
    header: layout.RecordHeader
    payload: bytes
    leaf: bytes


@dataclass
class Report:
    """What a verification found. ``intact`` says that every record is whole and chained.

    No signature covers a log of this format version yet, so nothing here says
    more than that: whoever can write the folder can rewrite the whole chain.
    """

    folder: str
    intact: bool = False
    records: int = 0
    first_sequence: int = 0
    last_sequence: int = 0
    boots: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    segments: int = 0
    head: str = ""
    damage: Damage | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        out = asdict(self)
        out["damage"] = self.damage._asdict() if self.damage else None
        return out


class LogDamaged(Exception):
    """The log stops being intact; ``damage`` says where. Records before it were given."""

    def __init__(self, file: str, offset: int, sequence: int, reason: str):
        super().__init__(f"record {sequence} ({file}, byte {offset}): {reason}")
        self.damage = Damage(file, offset, sequence, reason)


def _segment_header(file: BinaryIO, name: str, sequence: int) -> layout.SegmentHeader:
    data = file.read(layout.SEGMENT_HEADER_BYTES)
    if len(data) < layout.SEGMENT_HEADER_BYTES:
        raise LogDamaged(name, 0, sequence, "segment is shorter than its header")
    header = layout.SegmentHeader(*_SEGMENT.unpack_from(data))
    if header.magic.rstrip(b"\0") != layout.SEGMENT_MAGIC:
        raise LogDamaged(name, 0, sequence, "not a segment: wrong magic")
    if header.version != layout.SEGMENT_VERSION or header.record_version != layout.VERSION:
        raise LogDamaged(name, 8, sequence, f"unknown layout version {header.version}/{header.record_version}")
    if google_crc32c.value(data[: layout.SEGMENT_CRC_OFFSET]) != header.crc32c or any(data[_SEGMENT.size :]):
        raise LogDamaged(name, layout.SEGMENT_CRC_OFFSET, sequence, "segment header is damaged")
    return header


def _check(head: bytes, payload: bytes, fields: layout.RecordHeader) -> str | None:
    crc = google_crc32c.value(head[: layout.CRC_OFFSET])
    if payload:
        crc = google_crc32c.extend(crc, payload)
    if crc != fields.crc32c:
        return "CRC-32C does not match: the record was changed"
    if fields.event_id not in NAMES:
        return f"event {fields.event_id} is not in the catalogue"
    if fields.kind not in layout.KIND_NAMES:
        return f"unknown kind {fields.kind}"
    return None


def _records(file: BinaryIO, name: str, header: layout.SegmentHeader, leaf: bytes) -> Iterator[Record]:
    at, sequence = layout.SEGMENT_HEADER_BYTES, header.first_sequence
    while True:
        head = file.read(layout.HEADER_BYTES)
        if not any(head):
            while rest := file.read(_CHUNK_BYTES):
                if any(rest):
                    raise LogDamaged(name, at, sequence, "bytes behind the last record")
            return
        if len(head) < layout.HEADER_BYTES:
            raise LogDamaged(name, at, sequence, "record is cut off")
        fields = layout.RecordHeader(*_RECORD.unpack(head))
        if fields.magic != layout.MAGIC or fields.version != layout.VERSION:
            raise LogDamaged(name, at, sequence, "no record here: wrong magic or version")
        if fields.length < layout.HEADER_BYTES:
            raise LogDamaged(name, at, sequence, f"length {fields.length} is shorter than a header")
        payload = file.read(fields.length - layout.HEADER_BYTES)
        if len(payload) < fields.length - layout.HEADER_BYTES:
            raise LogDamaged(name, at, sequence, "record is cut off")
        reason = _check(head, payload, fields)
        if reason is None and fields.sequence != sequence:
            reason = f"sequence is {fields.sequence}, expected {sequence}"
        if reason is None and fields.instance != header.instance:
            reason = "record of another log"
        if reason is None and fields.previous_leaf_hash != leaf:
            reason = "does not chain to the record before"
        if reason is not None:
            raise LogDamaged(name, at, sequence, reason)
        leaf = hashlib.sha256(b"\0" + head + payload).digest()
        yield Record(name, at, fields, payload, leaf)
        at, sequence = at + fields.length, sequence + 1


def read_records(folder: Path) -> Iterator[Record]:
    """Every record of the log in order; raises ``LogDamaged`` at the first fault."""
    leaf, sequence, instance = bytes(32), 1, None
    for path in sorted(folder.glob("segment-*.vlog")):
        with path.open("rb") as file:
            header = _segment_header(file, path.name, sequence)
            if header.first_sequence != sequence or path.name != f"segment-{sequence:020d}.vlog":
                raise LogDamaged(path.name, 0, sequence, f"segment starts at {header.first_sequence}, expected {sequence}")
            if header.previous_leaf_hash != leaf or instance not in (None, header.instance):
                raise LogDamaged(path.name, 0, sequence, "segment does not continue the one before")
            instance = header.instance
            for record in _records(file, path.name, header, leaf):
                yield record
                leaf, sequence = record.leaf, record.header.sequence + 1


def verify_folder(folder: Path) -> Report:
    """Check every record, the sequence and the chain of one log folder.

    Raises:
        FileNotFoundError: there is no segment in the folder.
    """
    report, boots = Report(str(folder)), set()
    segments = sorted(folder.glob("segment-*.vlog"))
    if not segments:
        raise FileNotFoundError(f"{folder} holds no audit log (segment-*.vlog)")
    report.segments = len(segments)
    try:
        for record in read_records(folder):
            h = record.header
            report.first_sequence = report.first_sequence or h.sequence
            report.last_sequence, report.records, report.head = h.sequence, report.records + 1, record.leaf.hex()
            boots.add(h.boot_id)
            kind = layout.KIND_NAMES[h.kind]
            report.kinds[kind] = report.kinds.get(kind, 0) + 1
        report.intact = True
    except LogDamaged as broken:
        report.damage = broken.damage
    report.boots = len(boots)
    return report
