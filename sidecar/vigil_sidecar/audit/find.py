"""Finding records without reading whole logs: an index of trace ids beside each finished segment, and times of segments.

An index only points: every hit is read from the log itself, and what an index
leaves out is found by reading without it. It is no evidence and under no signature.
"""

from __future__ import annotations

import mmap
import struct
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import Disk
from vigil_sidecar.audit.reader import Record, list_segments, records_of, segment_header

__all__ = ["build_index", "find_by_trace", "index_missing", "records_from"]

_INDEX_MAGIC = b"VGLIDX1\0"
_INDEX_HEADER = struct.Struct("<8sII")
_ENTRY = np.dtype([("trace", ">u8"), ("offset", "<u4")])
_WALK = struct.Struct("<4sHH")
_YIELD_RECORDS = 1024
_TRACE_AT = sum(size for _, _, size, _ in layout.FIELDS[: [f[0] for f in layout.FIELDS].index("trace_id")])
_TRACE_PREFIX_BYTES = 8
_CLOCK_MARGIN_NS = 3600 * 10**9
"""A clock may have been set back between two segments."""


def _index_path(segment: Path) -> Path:
    return segment.with_suffix(".index")


def index_missing(folder: Path) -> list[Path]:
    """Finished segments without an index."""
    return [s for s in list_segments(folder)[:-1] if not _index_path(s).exists()]


def build_index(segment: Path, disk: Disk) -> None:
    """Write a finished segment's index: trace ids' first bytes in order, each with its record's place. Raises ``OSError``."""
    traces, offsets = array("Q"), array("L")
    with segment.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, size = layout.SEGMENT_HEADER_BYTES, len(data)
        while at + layout.HEADER_BYTES <= size:
            magic, _, length = _WALK.unpack_from(data, at)
            if magic != layout.MAGIC or length < layout.HEADER_BYTES:
                break
            trace = data[at + _TRACE_AT : at + _TRACE_AT + _TRACE_PREFIX_BYTES]
            if trace != bytes(_TRACE_PREFIX_BYTES):
                traces.append(int.from_bytes(trace, "big"))
                offsets.append(at)
                if len(traces) % _YIELD_RECORDS == 0:
                    time.sleep(0)  # serving goes first
            at += length
    # Sorting plain integers leaves the interpreter to others, sorting a table or making one of tuples does not: a
    # full segment's of 65,536 would silence the process for 0.16 s. Places rise already, so a stable order keeps them so.
    order = np.argsort(np.frombuffer(traces, np.uint64), kind="stable")
    entries = np.empty(len(traces), _ENTRY)
    entries["trace"], entries["offset"] = np.frombuffer(traces, np.uint64)[order], np.frombuffer(offsets, np.dtype("L"))[order]
    table = entries.tobytes()
    path = _index_path(segment)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as out:
        out.write(_INDEX_HEADER.pack(_INDEX_MAGIC, len(entries), google_crc32c.value(table)) + table)
    disk.rename(partial, path)


def _places(segment: Path, trace_id: bytes) -> list[int] | None:
    """Where records with this trace id may stand; None without a sound index."""
    if not any(trace_id[:_TRACE_PREFIX_BYTES]):
        return None  # such are not in an index
    try:
        data = _index_path(segment).read_bytes()
        magic, count, crc = _INDEX_HEADER.unpack_from(data)
        table = np.frombuffer(data, _ENTRY, count, _INDEX_HEADER.size)
    except (OSError, ValueError, struct.error):
        return None
    if magic != _INDEX_MAGIC or crc != google_crc32c.value(data[_INDEX_HEADER.size :]):
        return None
    prefix = np.array(int.from_bytes(trace_id[:_TRACE_PREFIX_BYTES], "big"), ">u8")
    first, last = np.searchsorted(table["trace"], prefix, "left"), np.searchsorted(table["trace"], prefix, "right")
    return [int(o) for o in table["offset"][first:last]]


def _scanned(segment: Path, trace_id: bytes) -> list[int]:
    """Where records with a trace id stand in a segment without an index: its bytes are searched, then where records begin."""
    found, places = set(), []
    with segment.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(trace_id, layout.SEGMENT_HEADER_BYTES)
        while at >= 0:
            found.add(at - _TRACE_AT)
            at = data.find(trace_id, at + 1)
        at, last = layout.SEGMENT_HEADER_BYTES, max(found, default=0)
        while at <= last:  # a payload may hold the same bytes
            magic, _, length = _WALK.unpack_from(data, at)
            if magic != layout.MAGIC or length < layout.HEADER_BYTES:
                break
            if at in found:
                places.append(at)
            at += length
    return places


def find_by_trace(folder: Path, trace_id: bytes) -> Iterator[Record]:
    """Records with a trace id, in order. Segments with an index are not read but at the places that it names."""
    for segment in list_segments(folder):
        places = _places(segment, trace_id)
        for record in records_of(segment, _scanned(segment, trace_id) if places is None else places):
            if record.header.trace_id == trace_id:
                yield record


def records_from(folder: Path, from_ns: int, after: int) -> Iterator[Record]:
    """Records of the segments that may hold a time or something behind a sequence, in order."""
    segments = list_segments(folder)
    begins = [segment_header(s) for s in segments]
    for i, segment in enumerate(segments):
        later = begins[i + 1] if i + 1 < len(segments) else None
        if later is not None and (later.first_sequence - 1 <= after or later.created_ns < from_ns - _CLOCK_MARGIN_NS):
            continue  # a segment is made when the one before is full: what it holds is older
        yield from records_of(segment, None)
