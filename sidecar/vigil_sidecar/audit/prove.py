"""Proofs of inclusion (C2SP tlog-proof) made from a log's folder, and their check."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import google_crc32c

from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.notes import Checkpoint, NoteError, Verifier, open_note, parse_checkpoint
from vigil_sidecar.audit.reader import read_records
from vigil_sidecar.audit.tree import CompactRange, inclusion_ranges, root_from_inclusion

__all__ = ["NotProven", "check_proof", "make_proof"]

_RECORD = struct.Struct(layout.RECORD_FORMAT)
_TITLE = "c2sp.org/tlog-proof@v1"
_PROOF_BYTES_MAX = 1 << 20


class NotProven(Exception):
    """No proof can be made, or the one given proves nothing; the text says why."""


def make_proof(folder: Path, sequence: int) -> bytes:
    """A proof, with the record in it, that a record is under the first checkpoint that covers it.

    Reads the log twice, in bounded memory. Raises ``NotProven``, or ``LogDamaged``.
    """
    found, note, size = b"", b"", 0
    for record in read_records(folder):
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
    if not found:
        raise NotProven(f"record {sequence} is not in the log")
    if not note:
        raise NotProven(f"no checkpoint covers record {sequence} yet; wait for the next one (audit.checkpoint_interval_s)")
    ranges = inclusion_ranges(sequence - 1, size)
    roots: dict[tuple[int, int], bytes] = {}
    order, tree = iter(sorted(ranges)), CompactRange()
    current = next(order, None)
    for record in read_records(folder):
        if current is None:
            break
        at = record.header.sequence - 1
        if current[0] <= at < current[1]:
            tree.append(record.leaf)
        if at == current[1] - 1:
            roots[current] = tree.root()
            current, tree = next(order, None), CompactRange()
    lines = [_TITLE, "extra " + base64.b64encode(found).decode(), f"index {sequence - 1}"]
    lines += [base64.b64encode(roots[r]).decode() for r in ranges]
    return ("\n".join(lines) + "\n\n").encode() + note


def _decode(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise NotProven(f"{what} is not base64") from None


def check_proof(proof: bytes, trusted: Sequence[Verifier]) -> tuple[layout.RecordHeader, bytes, Checkpoint, bool]:
    """The proven record's header and payload, the checkpoint, and whether a trusted key signed it; raises ``NotProven``."""
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
        text, signed = open_note(note, trusted)
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
    return header, record[layout.HEADER_BYTES :], head, any(k.name == head.origin for k in signed)
