"""The kept records of a pruned log, checked: part of the verifier."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.kept import KeptDamaged, KeptProof, kept_class, read_kept
from vigil_sidecar.audit.prove import NotProven, ProofParts, open_proof
from vigil_sidecar.audit.trust import Forged, Seals

__all__ = ["check_kept"]

_RECORD = struct.Struct(layout.RECORD_FORMAT)


class _Kept(NamedTuple):
    place: KeptProof
    parts: ProofParts
    header: layout.RecordHeader


def _opened(folder: Path) -> Iterator[_Kept]:
    for place in read_kept(folder):
        try:
            parts = open_proof(place.proof)
        except NotProven as error:
            raise Forged(f"{place.file}, byte {place.offset}: {error}") from None
        yield _Kept(place, parts, layout.RecordHeader(*_RECORD.unpack_from(parts.record)))


def check_kept(folder: Path, seals: Seals, instance: bytes) -> tuple[int, int]:
    """Check every kept record against its checkpoint, and follow the key rotations among them.

    ``seals`` has seen no record yet. Returns how many are proven by a trusted key,
    and how many are not: from the first that is, each must be. Raises ``Forged``.
    Those that still, or again, stand in the log itself are left out.
    """
    try:
        found = sorted(_opened(folder), key=lambda k: (k.parts.head.size, k.header.sequence))
        found = [k for k in found if k.header.sequence <= seals.begin]
    except KeptDamaged as damaged:
        raise Forged(str(damaged)) from None
    proven, seen = 0, set[int]()
    for _, group in groupby(found, key=lambda k: k.parts.head.size):
        together = list(group)
        for k in together:
            if k.header.kind == layout.KIND_KEY:
                seals.trust(k.parts.record[layout.HEADER_BYTES :])
        for k in together:
            reason = _wrong(k, seals, instance)
            if k.header.sequence in seen:
                reason = "it is there twice"
            seen.add(k.header.sequence)
            if not reason and seals.signed_now(k.parts.note):
                proven += 1
            elif not reason and proven:
                reason = "its checkpoint is not signed by the key that is trusted then"
            if reason:
                raise Forged(f"{k.place.file}, byte {k.place.offset}: kept record {k.header.sequence}: {reason}")
    return proven, len(found) - proven


def _wrong(k: _Kept, seals: Seals, instance: bytes) -> str:
    head, header = k.parts.head, k.header
    if head.origin != seals.origin or header.instance != instance:
        return "it is of another log"
    if header.event_id not in NAMES or kept_class(header.event_id) != k.place.kept_class:
        return f"event {header.event_id} is not of the class {k.place.kept_class}"
    return ""
