"""Reading a log folder record by record, as a verifier does: every field and the chain checked, one record in memory."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.notes import NoteError, open_note, parse_checkpoint
from vigil_sidecar.audit.trust import Forged

__all__ = [
    "Damage",
    "LogDamaged",
    "Record",
    "follow",
    "list_segments",
    "read_records",
    "records_of",
    "segment_header",
    "torn_bytes",
    "written_now",
]

_RECORD = struct.Struct(layout.RECORD_FORMAT)
_SEGMENT = struct.Struct(layout.SEGMENT_FORMAT)
_CHUNK_BYTES = 1 << 20
_TORN_TRIES, _TORN_WAIT_S, _WRITTEN_S = 20, 0.005, 2.0
_SEGMENT_BYTES_MAX = 1 << 30
"""As large as ``audit.segment_bytes`` may be."""


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
    if header.header_bytes != layout.SEGMENT_HEADER_BYTES:
        raise LogDamaged(name, 12, sequence, f"header of {header.header_bytes} bytes, expected {layout.SEGMENT_HEADER_BYTES}")
    if not _LOG_NAME.fullmatch(header.log_name):
        raise LogDamaged(name, 80, sequence, "the log's name is not of small letters, digits and hyphens")
    if google_crc32c.value(data[: layout.SEGMENT_CRC_OFFSET]) != header.crc32c or any(data[_SEGMENT.size :]):
        raise LogDamaged(name, layout.SEGMENT_CRC_OFFSET, sequence, "segment header is damaged")
    return header


def _crc(head: bytes, payload: bytes) -> int:
    crc: int = google_crc32c.extend(google_crc32c.value(head), payload)
    return crc


def _check(head: bytes, payload: bytes, fields: layout.RecordHeader) -> str | None:
    # SR-042
    if _crc(head[: layout.CRC_OFFSET], payload) != fields.crc32c:
        return "CRC-32C does not match: the record was changed"
    if fields.event_id not in NAMES:
        return f"event {fields.event_id} is not in the catalogue"
    if fields.kind not in layout.KIND_NAMES:
        return f"unknown kind {fields.kind}"
    return None


def _record(file: BinaryIO, name: str, at: int, sequence: int, instance: bytes, leaf: bytes) -> Record | None:
    """The record at the file's place, checked against the one before; None at the end."""
    head = file.read(layout.HEADER_BYTES)
    if not any(head):
        while rest := file.read(_CHUNK_BYTES):
            if any(rest):
                raise LogDamaged(name, at, sequence, "bytes behind the last record")
        return None
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
    if reason is None and fields.instance != instance:
        reason = "record of another log"
    if reason is None and fields.previous_leaf_hash != leaf:
        reason = "does not chain to the record before"
    if reason is not None:
        raise LogDamaged(name, at, sequence, reason)
    return Record(name, at, fields, payload, hashlib.sha256(b"\0" + head + payload).digest())


def _fresh(file: BinaryIO) -> bool:
    """Whether a file was written just now."""
    return abs(time.time() - os.fstat(file.fileno()).st_mtime) <= _WRITTEN_S


def written_now(folder: Path) -> bool:
    """Whether the last segment was written just now: what looks damaged may be in the making."""
    with list_segments(folder)[-1].open("rb") as file:
        return _fresh(file)


def _wait_and_seek(file: BinaryIO, at: int) -> None:
    time.sleep(_TORN_WAIT_S)
    file.seek(0, os.SEEK_END)  # a seek within the buffer would keep what is in it
    file.seek(at)


def _records(file: BinaryIO, name: str, header: layout.SegmentHeader, leaf: bytes, tries: int) -> Iterator[Record]:
    """A segment's records. At a fault, a file that was written just now is read again: a record in the making can be seen in part."""
    at, sequence, left = layout.SEGMENT_HEADER_BYTES, header.first_sequence, tries
    while True:
        try:
            record = _record(file, name, at, sequence, header.instance, leaf)
        except LogDamaged:
            if left == 0 or not _fresh(file):
                raise
            left -= 1
            _wait_and_seek(file, at)
            continue
        if record is None:
            return
        yield record
        leaf, left = record.leaf, tries
        at, sequence = at + record.header.length, sequence + 1


def segment_header(path: Path) -> layout.SegmentHeader:
    """A segment's header; raises ``LogDamaged``."""
    with path.open("rb") as file:
        return _segment_header(file, path.name, 0)


def records_of(path: Path, places: Sequence[int] | None) -> Iterator[Record]:
    """A segment's records, or those at these places: each checked by itself, not against the others. Raises ``LogDamaged``."""
    with path.open("rb") as file:
        if places == []:
            return
        _segment_header(file, path.name, 0)
        for at in places if places is not None else _all_places(file, path.name):
            file.seek(at)
            for left in range(_TORN_TRIES, -1, -1):
                try:
                    record = _record_at(file, path.name, at)
                    break
                except LogDamaged:
                    if left == 0 or not _fresh(file):
                        raise
                    _wait_and_seek(file, at)
            yield record


def _record_at(file: BinaryIO, name: str, at: int) -> Record:
    head = file.read(layout.HEADER_BYTES)
    if len(head) < layout.HEADER_BYTES:
        raise LogDamaged(name, at, 0, "record is cut off")
    fields = layout.RecordHeader(*_RECORD.unpack(head))
    if fields.magic != layout.MAGIC or fields.version != layout.VERSION or fields.length < layout.HEADER_BYTES:
        raise LogDamaged(name, at, 0, "no record here: wrong magic or version")
    payload = file.read(fields.length - layout.HEADER_BYTES)
    reason = _check(head, payload, fields)
    if reason is not None:
        raise LogDamaged(name, at, fields.sequence, reason)
    return Record(name, at, fields, payload, hashlib.sha256(b"\0" + head + payload).digest())


def _all_places(file: BinaryIO, name: str) -> Iterator[int]:
    at = layout.SEGMENT_HEADER_BYTES
    while True:
        file.seek(at)
        if not any(file.read(layout.HEADER_BYTES)):
            return
        yield at
        file.seek(at)  # again: it may have been in the making
        at += max(8, struct.unpack_from("<H", file.read(8).ljust(8, b"\0"), 6)[0])


_LOG_NAME = re.compile(rb"[a-z0-9-]{1,31}\0+")
_SEGMENT_NAME = re.compile(r"segment-[0-9]{20}\.vlog")


def list_segments(folder: Path) -> list[Path]:
    """The segments in order; raises ``OSError`` when the folder cannot be read or one is no regular file."""
    found = sorted(Path(e.path) for e in os.scandir(folder) if _SEGMENT_NAME.fullmatch(e.name))
    for path in found:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        if path.stat().st_size > _SEGMENT_BYTES_MAX:
            raise OSError(errno.EFBIG, f"has more than {_SEGMENT_BYTES_MAX} bytes, which no writer makes", str(path))
    return found


def follow(folder: Path, opened: Callable[[layout.SegmentHeader], None]) -> Iterator[Record]:
    """Every record in order; ``opened`` is told of each segment. Raises ``LogDamaged`` at the first fault, ``OSError``.

    A log may begin behind its first record: whether it was pruned is for ``opened`` to judge.
    """
    leaf, sequence, instance = bytes(32), 1, None
    segments = list_segments(folder)
    for index, path in enumerate(segments):
        with path.open("rb") as file:
            header = _segment_header(file, path.name, sequence)
            if index == 0 and header.first_sequence > 1:
                leaf, sequence = header.previous_leaf_hash, header.first_sequence
            if header.first_sequence != sequence or path.name != f"segment-{sequence:020d}.vlog":
                raise LogDamaged(path.name, 0, sequence, f"segment starts at {header.first_sequence}, expected {sequence}")
            if header.previous_leaf_hash != leaf or instance not in (None, header.instance):
                raise LogDamaged(path.name, 0, sequence, "segment does not continue the one before")
            try:
                opened(header)
            except Forged as forged:
                raise LogDamaged(path.name, 0, sequence, str(forged)) from None
            instance = header.instance
            for record in _records(file, path.name, header, leaf, _TORN_TRIES if index == len(segments) - 1 else 0):
                yield record
                leaf, sequence = record.leaf, record.header.sequence + 1


def read_records(folder: Path) -> Iterator[Record]:
    """Every record of the log in order; raises ``LogDamaged`` at the first fault."""
    return follow(folder, lambda header: None)


def torn_bytes(folder: Path, damage: Damage, header: layout.SegmentHeader | None, sealed: bool) -> int:
    """Bytes of a torn tail at the place of damage; 0 when it is none.

    A power cut tears the end of the last segment only. It may lose a record that
    was not forced to disk and keep a later one; but what a checkpoint covers was
    forced. So whole records behind the place are honest, unless one of them is a
    checkpoint that covers it. In a log without any checkpoint every one counts.
    """
    path = list_segments(folder)[-1]
    if path.name != damage.file or damage.offset < layout.SEGMENT_HEADER_BYTES or header is None:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(layout.MAGIC, damage.offset)
        while at >= 0:
            after = at + 1
            if at + layout.HEADER_BYTES <= len(data):
                fields = layout.RecordHeader(*_RECORD.unpack_from(data, at))
                mine = fields.instance == header.instance and fields.version == layout.VERSION and fields.sequence >= damage.sequence
                whole = mine and layout.HEADER_BYTES <= fields.length <= len(data) - at
                payload = data[at + layout.HEADER_BYTES : at + fields.length] if whole else b""
                if whole and _crc(data[at : at + layout.CRC_OFFSET], payload) == fields.crc32c:
                    if at == damage.offset or not sealed or (fields.kind == layout.KIND_CHECKPOINT and _covers(payload, damage.sequence)):
                        return 0
                    after = at + fields.length
            at = data.find(layout.MAGIC, after)
        end = len(data)
        while end > damage.offset:
            start = max(damage.offset, end - _CHUNK_BYTES)
            used = data[start:end].rstrip(b"\0")
            if used:
                return start + len(used) - damage.offset
            end = start
    return 0


def _covers(payload: bytes, sequence: int) -> bool:
    try:
        return parse_checkpoint(open_note(payload, ())[0]).size >= sequence
    except NoteError:
        return False
