"""A log taken apart and put together again, as an attacker does who may recompute everything but signatures."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.notes import Signer, checkpoint_text, open_note, origin_of, parse_checkpoint, sign_note
from vigil_sidecar.audit.segment import leaf_hash, segment_name
from vigil_sidecar.audit.tree import CompactRange
from vigil_sidecar.audit.verify import read_records

__all__ = ["Log", "Rec", "load", "save", "save_unchained"]

_RECORD, _SEGMENT = struct.Struct(layout.RECORD_FORMAT), struct.Struct(layout.SEGMENT_FORMAT)


@dataclass
class Rec:
    """One record; ``fixed`` fields are written as they are instead of computed."""

    header: layout.RecordHeader
    payload: bytes
    fixed: dict[str, int] = field(default_factory=dict)

    def set(self, **fields: object) -> None:
        """Change header fields."""
        self.header = self.header._replace(**fields)  # type: ignore[arg-type]


@dataclass
class Log:
    """All records, how many each segment has, and the headers of segments."""

    records: list[Rec]
    counts: list[int]
    headers: list[layout.SegmentHeader]
    size: int
    begin: CompactRange = field(default_factory=CompactRange)
    """Tree of the records that were pruned before the first one."""
    leaf: bytes = bytes(32)
    kept: dict[str, bytes] = field(default_factory=dict)
    """Files of kept records."""
    edit_header: Callable[[int, layout.SegmentHeader], layout.SegmentHeader] = lambda index, header: header
    edit_bytes: Callable[[int, bytearray], None] = lambda index, data: None

    @property
    def origin(self) -> str:
        """Origin of its checkpoints."""
        return origin_of(self.headers[0].log_name.rstrip(b"\0").decode(), self.headers[0].instance)

    def of_kind(self, kind: int) -> list[int]:
        """Indices of the records of a kind."""
        return [i for i, r in enumerate(self.records) if r.header.kind == kind]

    def remove(self, start: int, stop: int) -> None:
        """Take records out of the log and of their segments."""
        for _ in range(start, stop):
            self.counts[self.segment_of(start)] -= 1
            del self.records[start]

    def insert(self, at: int, rec: Rec) -> None:
        """Put a record in."""
        self.counts[self.segment_of(min(at, len(self.records) - 1))] += 1
        self.records.insert(at, rec)

    def segment_of(self, index: int) -> int:
        """The segment in which a record stands."""
        for i, count in enumerate(self.counts):
            if index < count:
                return i
            index -= count
        raise IndexError

    def renumber(self) -> None:
        """Sequences without a gap."""
        for i, r in enumerate(self.records):
            r.set(sequence=self.begin.size + i + 1)

    def reseal(self, key: Ed25519PrivateKey, start: int = 0) -> None:
        """Sign all checkpoints from a record on anew, over the records as they are now. Chains on the way."""
        signer, tree, leaf = Signer(self.origin, key), self.begin.copy(), self.leaf
        roots = {tree.size: tree.root()}
        for i, r in enumerate(self.records):
            if r.header.kind == layout.KIND_CHECKPOINT and i >= start:
                size = min(parse_checkpoint(open_note(r.payload, ())[0]).size, tree.size)
                r.payload = sign_note(checkpoint_text(self.origin, size, roots[size]), signer)
            data = encode(r, leaf)
            leaf = leaf_hash(data)
            tree.append(leaf)
            roots[tree.size] = tree.root()


def load(folder: Path) -> Log:
    """Take an honest log apart."""
    records, counts, headers, size = [], [], [], 0
    by_file: dict[str, int] = {}
    for r in read_records(folder):
        records.append(Rec(r.header, r.payload))
        by_file[r.file] = by_file.get(r.file, 0) + 1
    for path in sorted(folder.glob("segment-*.vlog")):
        data = path.read_bytes()
        headers.append(layout.SegmentHeader(*_SEGMENT.unpack_from(data)))
        counts.append(by_file.get(path.name, 0))
        size = len(data)
    begin = CompactRange.decode(headers[0].first_sequence - 1, headers[0].tree_range)
    kept = {p.name: p.read_bytes() for p in folder.glob("kept-*.proofs")}
    return Log(records, counts, headers, size, begin, headers[0].previous_leaf_hash, kept)


def encode(r: Rec, leaf: bytes) -> bytes:
    """A record's bytes with length, chain and CRC computed, but for its fixed fields."""
    length = r.fixed.get("length", layout.HEADER_BYTES + len(r.payload))
    header = r.header._replace(length=length, previous_leaf_hash=leaf, crc32c=0)
    head = _RECORD.pack(*header)[: layout.CRC_OFFSET]
    return head + struct.pack("<I", r.fixed.get("crc32c", google_crc32c.value(head + r.payload))) + r.payload


def save(log: Log, folder: Path) -> None:
    """Write the log with chain, CRCs and segment trees computed anew."""
    folder.mkdir(parents=True)
    for name, content in log.kept.items():
        (folder / name).write_bytes(content)
    leaf, tree, at = log.leaf, log.begin.copy(), 0
    for index, count in enumerate(log.counts):
        first = log.records[at].header.sequence if at < len(log.records) else at + 1
        header = log.headers[index]._replace(first_sequence=first, previous_leaf_hash=leaf, tree_range=tree.encode().ljust(2048, b"\0"))
        header = log.edit_header(index, header)
        body = _SEGMENT.pack(*header)[: layout.SEGMENT_CRC_OFFSET]
        data = bytearray(body + struct.pack("<I", google_crc32c.value(body))).ljust(layout.SEGMENT_HEADER_BYTES, b"\0")
        for r in log.records[at : at + count]:
            record = encode(r, leaf)
            leaf = leaf_hash(record)
            tree.append(leaf)
            data += record
        at += count
        data = data.ljust(log.size, b"\0")
        log.edit_bytes(index, data)
        (folder / segment_name(header.first_sequence)).write_bytes(data)
    _leave_alone(folder)


def save_unchained(source: Path, folder: Path, edit: Callable[[dict[str, bytearray]], None]) -> None:
    """Copy a log's files, changed as bytes."""
    files = {p.name: bytearray(p.read_bytes()) for p in sorted(source.glob("segment-*.vlog"))}
    edit(files)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    _leave_alone(folder)


def _leave_alone(folder: Path) -> None:
    """Nobody writes these files any more: verifiers need not look twice."""
    for path in folder.glob("segment-*.vlog"):
        os.utime(path, (0, 0))


def change_root(note: bytes) -> bytes:
    """A checkpoint's note with another root under the same signature."""
    lines = note.split(b"\n")
    lines[2] = base64.b64encode(os.urandom(32))
    return b"\n".join(lines)
