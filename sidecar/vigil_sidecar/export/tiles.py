"""A log as a C2SP tlog-tiles directory (https://c2sp.org/tlog-tiles), for other people's tools."""

from __future__ import annotations

import struct
from pathlib import Path

from vigil_sidecar.audit.notes import open_note, parse_checkpoint
from vigil_sidecar.audit.tree import node_hash

__all__ = ["TileWriter"]

_WIDTH = 256
"""Hashes of a full tile, and entries of a full bundle."""


def _number(n: int) -> str:
    groups = [f"{n % 1000:03d}"]
    while n := n // 1000:
        groups.append(f"x{n % 1000:03d}")
    return "/".join(reversed(groups))


class TileWriter:
    """Takes records in order from the first; holds one open tile a level and one open bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._size = folder, 0
        self._bundle: list[bytes] = []
        self._levels: list[list[bytes]] = []
        self._full: list[int] = []

    def _write(self, path: str, parts: list[bytes]) -> None:
        target = self.folder / "tile" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"".join(parts))

    def add(self, record: bytes, leaf: bytes) -> None:
        """The next record and its leaf hash."""
        self._bundle.append(struct.pack(">H", len(record)) + record)
        self._hash(0, leaf)
        self._size += 1
        if len(self._bundle) == _WIDTH:
            self._write(f"entries/{_number(self._size // _WIDTH - 1)}", self._bundle)
            self._bundle = []

    def _hash(self, level: int, value: bytes) -> None:
        if level == len(self._levels):
            self._levels.append([])
            self._full.append(0)
        hashes = self._levels[level]
        hashes.append(value)
        if len(hashes) == _WIDTH:
            self._write(f"{level}/{_number(self._full[level])}", hashes)
            self._full[level] += 1
            while len(hashes) > 1:
                hashes = [node_hash(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
            self._levels[level] = []
            self._hash(level + 1, hashes[0])

    def close(self, checkpoint: bytes) -> None:
        """Write the partial tiles and the checkpoint, which must be of just the records given."""
        assert parse_checkpoint(open_note(checkpoint, ())[0]).size == self._size
        if self._bundle:
            self._write(f"entries/{_number(self._size // _WIDTH)}.p/{len(self._bundle)}", self._bundle)
        for level, hashes in enumerate(self._levels):
            if hashes:
                self._write(f"{level}/{_number(self._full[level])}.p/{len(hashes)}", hashes)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "checkpoint").write_bytes(checkpoint)
