"""Segment files: creating, listing, and finding the end of a log."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import DISK, Disk
from vigil_sidecar.audit.tree import CompactRange

__all__ = [
    "LogEnd",
    "create_segment",
    "find_end",
    "last_key_note",
    "leaf_hash",
    "list_segments",
    "record_bytes",
    "record_crc",
    "segment_name",
    "write_all",
]

_HEADER = struct.Struct(layout.SEGMENT_FORMAT)
_LENGTH = struct.Struct("<4sHH")


class LogEnd(NamedTuple):
    """Where the next record goes, and what is known about the last one."""

    segment: Path
    offset: int
    next_sequence: int
    leaf: bytes
    tree: CompactRange
    instance: bytes
    torn_bytes: int
    last_event: int
    key_note: bytes
    """Payload of the segment's last key record."""
    followers: int
    """Whole records behind the end: a power cut may lose one that was not forced to disk, and keep a later one."""
    later_notes: tuple[bytes, ...]
    """Payloads of the checkpoints among them: what these cover was on disk, so no crash lost it."""


def write_all(disk: Disk, fd: int, data: bytes, offset: int) -> None:
    """Write all of the data: a disk may take less at a time."""
    done = 0
    while done < len(data):
        done += disk.pwrite(fd, data[done:] if done else data, offset + done)


def segment_name(first_sequence: int) -> str:
    """File name of the segment that starts with this sequence."""
    return f"segment-{first_sequence:020d}.vlog"


def list_segments(folder: Path) -> list[Path]:
    """Segments in the order of their sequences."""
    return sorted(folder.glob("segment-*.vlog"))


def leaf_hash(record: bytes | memoryview) -> bytes:
    """RFC 6962 leaf hash: SHA-256 over a zero byte and the record."""
    return hashlib.sha256(b"\0" + record).digest()


def record_bytes(header: layout.RecordHeader, payload: bytes) -> bytes:
    """A record as it stands in the log."""
    return struct.pack(layout.RECORD_FORMAT, *header) + payload


def record_crc(record: bytes | memoryview) -> int:
    """CRC-32C over all bytes but the CRC field itself."""
    crc: int = google_crc32c.value(bytes(record[: layout.CRC_OFFSET]))
    if len(record) > layout.HEADER_BYTES:
        crc = google_crc32c.extend(crc, bytes(record[layout.HEADER_BYTES :]))
    return crc


def create_segment(
    folder: Path, size: int, log_name: str, instance: bytes, tree: CompactRange, leaf: bytes, created_ns: int, disk: Disk = DISK
) -> int:
    """Create, preallocate and sync a segment; returns its descriptor. The name appears only when it is whole."""
    body = _HEADER.pack(
        layout.SEGMENT_MAGIC, layout.SEGMENT_VERSION, layout.VERSION, layout.SEGMENT_HEADER_BYTES, instance,
        tree.size + 1, leaf, created_ns, log_name.encode(), tree.encode(), 0,
    )[: layout.SEGMENT_CRC_OFFSET]  # fmt: skip
    header = body + struct.pack("<I", google_crc32c.value(body))
    final = folder / segment_name(tree.size + 1)
    partial = final.with_suffix(".partial")
    if final.is_symlink() or final.exists():
        raise OSError(errno.EEXIST, f"{final.name} is there already: no log is ever written over")
    fd = disk.create(partial)
    try:
        disk.allocate(fd, size)
        write_all(disk, fd, header, 0)
        disk.fsync(fd)
        disk.rename(partial, final)
        disk.sync_folder(folder)
    except OSError:
        os.close(fd)
        disk.unlink(partial)
        disk.unlink(final)  # the log goes on in the segment before, which must stay the last
        raise
    return fd


def read_header(data: bytes) -> layout.SegmentHeader | None:
    """The segment's header, or None when it is not one."""
    if len(data) < layout.SEGMENT_HEADER_BYTES:
        return None
    header = layout.SegmentHeader(*_HEADER.unpack_from(data))
    if header.magic.rstrip(b"\0") != layout.SEGMENT_MAGIC or header.version != layout.SEGMENT_VERSION:
        return None
    return header if google_crc32c.value(data[: layout.SEGMENT_CRC_OFFSET]) == header.crc32c else None


def find_end(segment: Path, most: int = 1 << 63) -> LogEnd | None:
    """Scan the last segment for the end of the log, or for record ``most``; None when it has no valid header."""
    data = segment.read_bytes()
    header = read_header(data)
    if header is None:
        return None
    view = memoryview(data)
    at, sequence, leaf, event = layout.SEGMENT_HEADER_BYTES, header.first_sequence, header.previous_leaf_hash, 0
    try:
        tree = CompactRange.decode(sequence - 1, header.tree_range)
    except ValueError:
        return None
    key_note = b""
    while at + layout.HEADER_BYTES <= len(data) and sequence <= most:
        magic, version, length = _LENGTH.unpack_from(data, at)
        if magic != layout.MAGIC or version != layout.VERSION:
            break
        if not layout.HEADER_BYTES <= length <= len(data) - at:
            break
        record = view[at : at + length]
        fields = layout.RecordHeader(*struct.unpack_from(layout.RECORD_FORMAT, record))
        if fields.crc32c != record_crc(record) or fields.sequence != sequence or fields.previous_leaf_hash != leaf:
            break
        leaf, sequence, at = leaf_hash(record), sequence + 1, at + length
        if fields.kind not in (layout.KIND_CHECKPOINT, layout.KIND_ANCHOR):  # these may follow the closing record
            event = fields.event_id
        tree.append(leaf)
        if fields.kind == layout.KIND_KEY:
            key_note = bytes(record[layout.HEADER_BYTES :])
    torn = len(data[at:].rstrip(b"\0"))
    return LogEnd(segment, at, sequence, leaf, tree, header.instance, torn, event, key_note, *_followers(data, at + 1))


def last_key_note(folder: Path) -> bytes:
    """Payload of the log's last key record; empty without one."""
    for segment in reversed(list_segments(folder)):
        end = find_end(segment)
        if end is not None and end.key_note:
            return end.key_note
    return b""


def _followers(data: bytes, start: int) -> tuple[int, tuple[bytes, ...]]:
    """How many whole records stand anywhere behind ``start``, and the notes of the checkpoints among them."""
    count, notes = 0, list[bytes]()
    at = data.find(layout.MAGIC, start)
    while at >= 0:
        after = at + 1
        if at + layout.HEADER_BYTES <= len(data):
            _, version, length = _LENGTH.unpack_from(data, at)
            if version == layout.VERSION and layout.HEADER_BYTES <= length <= len(data) - at:
                record = memoryview(data)[at : at + length]
                fields = layout.RecordHeader(*struct.unpack_from(layout.RECORD_FORMAT, record))
                if fields.crc32c == record_crc(record):
                    count, after = count + 1, at + length
                    if fields.kind == layout.KIND_CHECKPOINT:
                        notes.append(bytes(record[layout.HEADER_BYTES :]))
        at = data.find(layout.MAGIC, after)
    return count, tuple(notes)
