"""Proofs of inclusion (C2SP tlog-proof) made from a log's folder, and their check."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.kept import KeptDamaged, read_kept
from vigil_sidecar.audit.notes import Checkpoint, NoteError, Verifier, decode_base64, open_note, parse_checkpoint
from vigil_sidecar.audit.reader import Record, follow, read_records
from vigil_sidecar.audit.tree import CompactRange, Subtrees, inclusion_ranges, root_from_inclusion

__all__ = ["NotProven", "ProofParts", "check_proof", "make_proof", "open_proof", "prove_each"]

_RECORD = struct.Struct(layout.RECORD_FORMAT)
_TITLE = "c2sp.org/tlog-proof@v1"
_PROOF_BYTES_MAX = 1 << 20


class NotProven(Exception):
    """No proof can be made, or the one given proves nothing; the text says why."""


class ProofParts(NamedTuple):
    """A proof that holds by itself: the record is in the tree of the checkpoint. Who signed that is another question."""

    record: bytes
    head: Checkpoint
    note: bytes


def make_proof(folder: Path, sequence: int) -> bytes:
    """A proof, with the record in it, that a record is under the first checkpoint that covers it.

    Reads the log twice, in bounded memory. Raises ``NotProven``, or ``LogDamaged``.
    """
    trees: list[CompactRange] = []

    def opened(header: layout.SegmentHeader) -> None:
        if not trees:
            trees.append(CompactRange.decode(header.first_sequence - 1, header.tree_range))

    found, note, size = b"", b"", 0
    for record in follow(folder, opened):
        if record.header.sequence == sequence:
            found = _RECORD.pack(*record.header) + record.payload
        elif found and record.header.kind == layout.KIND_CHECKPOINT:
            try:
                size = parse_checkpoint(open_note(record.payload, ())[0]).size
            except NoteError:
                continue
            if sequence <= size < record.header.sequence:
                note = record.payload
                break
    base = trees[0] if trees else CompactRange()
    if sequence <= base.size:
        return _kept_proof(folder, sequence)
    if not found:
        raise NotProven(f"record {sequence} is not in the log")
    if not note:
        raise NotProven(f"no checkpoint covers record {sequence} yet; wait for the next one (audit.checkpoint_interval_s)")
    ranges = inclusion_ranges(sequence - 1, size)
    lines = [_TITLE, "extra " + base64.b64encode(found).decode(), f"index {sequence - 1}"]
    roots = _roots(folder, ranges, base)
    lines += [base64.b64encode(roots[r]).decode() for r in ranges]
    return ("\n".join(lines) + "\n\n").encode() + note


def prove_each(folder: Path, wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """Sequence and proof of each wanted record that a checkpoint covers, in order; memory holds about a segment's leaf hashes.

    Raises ``LogDamaged``.
    """
    window = _Window()
    for record in follow(folder, window.opened):
        if record.header.kind == layout.KIND_CHECKPOINT and window.waiting:
            yield from window.covered(record.payload)
        window.take(record, record.header.sequence in wanted)


class _Window:
    """Leaf hashes from the beginning of a segment on, and records that wait for a checkpoint over all of them."""

    def __init__(self) -> None:
        self.base, self.leaves = CompactRange(), list[bytes]()
        self.waiting: list[tuple[int, bytes]] = []

    def opened(self, header: layout.SegmentHeader) -> None:
        """A segment begins: what was before is needed only while something waits."""
        if not self.waiting:
            self.base, self.leaves = CompactRange.decode(header.first_sequence - 1, header.tree_range), []

    def take(self, record: Record, wanted: bool) -> None:
        """The next record."""
        self.leaves.append(record.leaf)
        if wanted:
            self.waiting.append((record.header.sequence, _RECORD.pack(*record.header) + record.payload))

    def covered(self, note: bytes) -> Iterator[tuple[int, bytes]]:
        """Proofs by a checkpoint, if it covers all that wait."""
        try:
            size = parse_checkpoint(open_note(note, ())[0]).size
        except NoteError:
            return
        if size < self.waiting[-1][0] or size > self.base.size + len(self.leaves):
            return
        subtrees = Subtrees(self.base, self.leaves)
        for sequence, record in self.waiting:
            lines = [_TITLE, "extra " + base64.b64encode(record).decode(), f"index {sequence - 1}"]
            lines += [base64.b64encode(h).decode() for h in subtrees.path(sequence - 1, size)]
            yield sequence, ("\n".join(lines) + "\n\n").encode() + note
        self.waiting = []


def _roots(folder: Path, ranges: Sequence[tuple[int, int]], base: CompactRange) -> dict[tuple[int, int], bytes]:
    """Roots of disjoint subtrees in one pass; ``base`` stands for the records that were pruned."""
    roots = {r: Subtrees(base, ()).root(*r) for r in ranges if r[1] <= base.size}
    order = iter(sorted(r for r in ranges if r not in roots))
    current = next(order, None)
    tree = base.suffix(current[0]) if current and current[0] < base.size else CompactRange()
    for record in read_records(folder):
        if current is None:
            break
        at = record.header.sequence - 1
        if current[0] <= at < current[1]:
            tree.append(record.leaf)
        if at == current[1] - 1:
            roots[current] = tree.root()
            current, tree = next(order, None), CompactRange()
    return roots


def _kept_proof(folder: Path, sequence: int) -> bytes:
    """The proof of a record that was kept when its segment was pruned."""
    try:
        for kept in read_kept(folder):
            if layout.RecordHeader(*_RECORD.unpack_from(open_proof(kept.proof).record)).sequence == sequence:
                return kept.proof
    except KeptDamaged as damaged:
        raise NotProven(str(damaged)) from None
    raise NotProven(f"record {sequence} was pruned, and is not among the kept ones; look for its segment in the archive")


def _decode(text: str, what: str) -> bytes:
    try:
        found = decode_base64(text)
    except ValueError:
        found = b""
    if not found or base64.b64encode(found).decode() != text:
        raise NotProven(f"{what} is not base64")
    return found


def open_proof(proof: bytes, trusted: Sequence[Verifier] = ()) -> ProofParts:
    """The parts of a proof, checked against each other; raises ``NotProven``."""
    top, blank, note = proof.partition(b"\n\n")
    lines = top.decode("utf-8", "replace").split("\n")
    if len(proof) > _PROOF_BYTES_MAX or not blank or len(lines) < 3 or lines[0] != _TITLE:
        raise NotProven(f"not a tlog-proof: it needs {_TITLE}, extra, index and a checkpoint")
    number = lines[2].removeprefix("index ")
    if (
        not lines[1].startswith("extra ")
        or number == lines[2]
        or not (number.isascii() and number.isdigit())
        or len(number) > 19
        or str(int(number)) != number
    ):
        raise NotProven("not a proof of a record: extra (the record in base64) and index must come first")
    record, index = _decode(lines[1][6:], "extra"), int(number)
    try:
        text, _ = open_note(note, trusted)
        head = parse_checkpoint(text)
        root = root_from_inclusion(hashlib.sha256(b"\0" + record).digest(), index, head.size, [_decode(x, "a hash") for x in lines[3:]])
    except (NoteError, ValueError) as error:
        raise NotProven(str(error)) from None
    if root != head.root:
        raise NotProven("the record is not in the tree that was signed")
    if len(record) < layout.HEADER_BYTES:
        raise NotProven("the extra data is not a record")
    header = layout.RecordHeader(*_RECORD.unpack_from(record))
    whole = header.magic == layout.MAGIC and header.version == layout.VERSION and header.length == len(record)
    if not whole or google_crc32c.value(record[: layout.CRC_OFFSET] + record[layout.HEADER_BYTES :]) != header.crc32c:
        raise NotProven("the extra data is not a record")
    if header.sequence != index + 1 or not head.origin.endswith("/" + header.instance.hex()):
        raise NotProven("the record does not belong at this place of this log")
    return ProofParts(record, head, note)


def check_proof(proof: bytes, trusted: Sequence[Verifier]) -> tuple[layout.RecordHeader, bytes, Checkpoint, bool]:
    """The proven record's header and payload, the checkpoint, and whether a trusted key signed it; raises ``NotProven``."""
    parts = open_proof(proof, trusted)
    signed = open_note(parts.note, trusted)[1]
    header = layout.RecordHeader(*_RECORD.unpack_from(parts.record))
    return header, parts.record[layout.HEADER_BYTES :], parts.head, any(k.name == parts.head.origin for k in signed)
