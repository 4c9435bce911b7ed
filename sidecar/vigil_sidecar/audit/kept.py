"""Kept records: what pruning takes out of a log and must not be lost, each with a proof (docs/audit-format.md).

A file ``kept-CLASS-SEQUENCE.proofs`` holds, for one pruned segment and one class
of events, C2SP tlog-proofs one after another, each after a line with its length.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vigil_safety import events_gen as events

__all__ = ["KEPT_CLASSES", "KeptDamaged", "KeptProof", "encode_kept", "kept_class", "kept_name", "list_kept", "read_kept"]

KEPT_CLASSES = ("audit", "clock", "model", "safety", "security")
_NAME = re.compile(r"kept-([a-z]+)-([0-9]{20})\.proofs")
_LEFT_OUT = frozenset({events.CHECKPOINT, events.ANCHORED, events.PRUNED})
"""Events of the log itself that are worth nothing once what they stand for is gone."""
_FILE_BYTES_MAX = 1 << 30
_LENGTH_DIGITS_MAX = 7


class KeptDamaged(Exception):
    """A file of kept records is not what its writer makes; the text says why."""


class KeptProof(NamedTuple):
    """One proof as it stands in a file."""

    file: str
    offset: int
    kept_class: str
    proof: bytes


def kept_class(event_id: int) -> str:
    """The class under which a record of this event is kept; empty when it is not."""
    found = events.CLASSES.get(event_id, "")
    return found if found in KEPT_CLASSES and event_id not in _LEFT_OUT else ""


def kept_name(of_class: str, first_sequence: int) -> str:
    """File name of the kept records of one class out of the segment that starts with this sequence."""
    return f"kept-{of_class}-{first_sequence:020d}.proofs"


def encode_kept(proofs: Sequence[bytes]) -> bytes:
    """The bytes of a file."""
    return b"".join(b"%d\n%b" % (len(p), p) for p in proofs)


def list_kept(folder: Path) -> list[Path]:
    """Files of kept records, by class and then by sequence."""
    return sorted(Path(e.path) for e in os.scandir(folder) if _NAME.fullmatch(e.name))


def read_kept(folder: Path) -> Iterator[KeptProof]:
    """Every kept proof, file by file; raises ``KeptDamaged`` and ``OSError``."""
    for path in list_kept(folder):
        if not path.is_file() or path.is_symlink() or path.stat().st_size > _FILE_BYTES_MAX:
            raise KeptDamaged(f"{path.name} is no regular file of at most {_FILE_BYTES_MAX} bytes")
        match = _NAME.fullmatch(path.name)
        assert match is not None
        with path.open("rb") as file:
            at = 0
            while line := file.readline(_LENGTH_DIGITS_MAX + 1):
                number = line[:-1]
                if not line.endswith(b"\n") or not number.isdigit() or number.startswith(b"0"):
                    raise KeptDamaged(f"{path.name}, byte {at}: no length of a proof")
                proof = file.read(int(number))
                if len(proof) < int(number):
                    raise KeptDamaged(f"{path.name}, byte {at}: the proof is cut off")
                yield KeptProof(path.name, at, match[1], proof)
                at += len(line) + len(proof)
