"""Pruning of a log: the oldest segments go, and what remains still proves that it is the same log."""

from __future__ import annotations

import base64
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import Disk
from vigil_sidecar.audit.entry import ZERO32, Entry
from vigil_sidecar.audit.find import build_index, index_missing
from vigil_sidecar.audit.kept import KEPT_CLASSES, encode_kept, kept_class, kept_name, list_kept
from vigil_sidecar.audit.notes import NoteError, open_note, parse_checkpoint, prune_text
from vigil_sidecar.audit.segment import list_segments, read_header, write_all
from vigil_sidecar.audit.tree import CompactRange, Subtrees

__all__ = ["Pruner", "Retention"]

_HEAD = struct.Struct("<4sHHHHI")
_PREVIOUS_LEAF_AT = layout.CRC_OFFSET - 4 - len(ZERO32)
"""Where a record has the leaf hash of the one before."""
_YIELD_RECORDS = 1024


class Retention(NamedTuple):
    """How much of a log stays: bytes and seconds (0: no limit) of segments, bytes of each class of kept records; and the archive."""

    bytes_max: int
    age_s: float = 0.0
    kept_bytes_max: int = 16 << 20
    archive: Path | None = None


class Log(Protocol):
    """What pruning needs of a writer."""

    def append(self, entries: Sequence[Entry]) -> range:
        """Write entries as one group, forced to disk when they are of the log's own."""


class _Segment(NamedTuple):
    path: Path
    first: int
    size: int
    created_ns: int
    tree: CompactRange


class _Place(NamedTuple):
    """A record by its fixed offsets, unchecked: the writer reads what it wrote."""

    sequence: int
    kind: int
    event: int
    record: bytes


def _walk(segment: _Segment) -> Iterator[_Place]:
    data, at, sequence = segment.path.read_bytes(), layout.SEGMENT_HEADER_BYTES, segment.first
    while at + layout.HEADER_BYTES <= len(data):
        magic, _, length, kind, _, event = _HEAD.unpack_from(data, at)
        if magic != layout.MAGIC or length < layout.HEADER_BYTES:
            return
        yield _Place(sequence, kind, event, data[at : at + length])
        at, sequence = at + length, sequence + 1
        if sequence % _YIELD_RECORDS == 0:
            time.sleep(0)  # serving goes first


class Pruner:
    """Prunes one log. Only the thread that seals may call.

    Order, so that a cut between any two steps leaves a log that verifies: copy to
    the archive; write the kept records; record the cut; sign a checkpoint over
    that record; take the segments away, oldest first.
    """

    def __init__(
        self, folder: Path, retention: Retention, log: Log, origin: str, disk: Disk, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._folder, self._retention, self._log, self._origin, self._disk = folder, retention, log, origin, disk
        self._now_ns = now_ns

    def run(self, sealed: int, seal: Callable[[], bytes]) -> int:
        """Prune what may go, given that a published checkpoint covers ``sealed`` records; returns how many segments went.

        ``seal`` signs a checkpoint now. Raises ``OSError`` or ``AuditError``: then
        the next call goes on where this one ended.
        """
        segments = self._segments()
        count = self._due(segments, sealed)
        if not count:
            return 0
        for i, segment in enumerate(segments[:count]):
            if self._retention.archive is not None:
                self._copy(segment.path, self._retention.archive)
            self._keep(segments[i:])
        cut = segments[count]
        text = prune_text(self._origin, cut.first - 1, cut.tree.root())
        self._log.append([Entry(layout.KIND_PRUNE, events.PRUNED, payload=text.encode())])
        seal()
        for segment in segments[:count]:
            self._disk.unlink(segment.path)
            segment.path.with_suffix(".index").unlink(missing_ok=True)
            self._disk.sync_folder(self._folder)  # else a later one could be gone after a cut, and this one not
        self._drop_kept()
        return count

    def index(self) -> None:
        """Write the indexes of finished segments that have none; raises ``OSError``."""
        for segment in index_missing(self._folder):
            build_index(segment, self._disk)

    def _segments(self) -> list[_Segment]:
        found = []
        for path in list_segments(self._folder):
            with path.open("rb") as file:
                header = read_header(file.read(layout.SEGMENT_HEADER_BYTES))
            if header is None:
                raise OSError(5, f"{path.name} has no valid header")
            tree = CompactRange.decode(header.first_sequence - 1, header.tree_range)
            found.append(_Segment(path, header.first_sequence, path.stat().st_size, header.created_ns, tree))
        return found

    def _due(self, segments: list[_Segment], sealed: int) -> int:
        """How many of the oldest segments go: all of their records are under a checkpoint, and the last segment stays."""
        total, count = sum(s.size for s in segments), 0
        oldest_ns = self._now_ns() - int(self._retention.age_s * 1e9)
        for segment, later in pairwise(segments):
            aged = self._retention.age_s > 0 and later.created_ns < oldest_ns
            if later.first - 1 > sealed or (total <= self._retention.bytes_max and not aged):
                break
            total, count = total - segment.size, count + 1
        return count

    def _copy(self, path: Path, archive: Path) -> None:
        target = archive / self._folder.name / path.name
        if target.exists() and target.stat().st_size == path.stat().st_size:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        with path.open("rb") as source, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        partial.rename(target)
        self._disk.sync_folder(target.parent)

    def _keep(self, segments: list[_Segment]) -> None:
        """Write the kept records of the first of these segments, each with a proof to the first checkpoint over all of them."""
        first = segments[0]
        wanted = [p for p in _walk(first) if kept_class(p.event)]
        if not wanted:
            return
        note, size, leaves = self._leaves(segments, wanted[-1].sequence)
        subtrees, files = Subtrees(first.tree, leaves), {c: list[bytes]() for c in KEPT_CLASSES}
        for p in wanted:
            lines = ["c2sp.org/tlog-proof@v1", "extra " + base64.b64encode(p.record).decode(), f"index {p.sequence - 1}"]
            lines += [base64.b64encode(h).decode() for h in subtrees.path(p.sequence - 1, size)]
            files[kept_class(p.event)].append(("\n".join(lines) + "\n\n").encode() + note)
        for of_class, proofs in files.items():
            if proofs:
                self._write(self._folder / kept_name(of_class, first.first), encode_kept(proofs))

    @staticmethod
    def _leaves(segments: list[_Segment], sequence: int) -> tuple[bytes, int, list[bytes]]:
        """The first checkpoint over a record, its size, and the leaf hashes up to there: each stands in the record behind."""
        leaves: list[bytes] = []
        for segment in segments:
            for p in _walk(segment):
                if p.sequence > segments[0].first:
                    leaves.append(p.record[_PREVIOUS_LEAF_AT : _PREVIOUS_LEAF_AT + len(ZERO32)])
                if p.kind != layout.KIND_CHECKPOINT or p.sequence <= sequence:
                    continue
                note = p.record[layout.HEADER_BYTES :]
                try:
                    size = parse_checkpoint(open_note(note, ())[0]).size
                except NoteError:
                    continue
                if size >= sequence:
                    return note, size, leaves
        raise OSError(5, f"record {sequence} is under no checkpoint")

    def _write(self, path: Path, data: bytes) -> None:
        partial = path.with_suffix(".partial")
        fd = self._disk.create(partial)
        try:
            write_all(self._disk, fd, data, 0)
            self._disk.fsync(fd)
        finally:
            os.close(fd)
        self._disk.rename(partial, path)
        self._disk.sync_folder(self._folder)

    def _drop_kept(self) -> None:
        """Each class has room of its own, so that many events of one do not push out another's."""
        room = dict.fromkeys(KEPT_CLASSES, self._retention.kept_bytes_max)
        for path in reversed(list_kept(self._folder)):
            of_class = path.name.split("-")[1]
            room[of_class] = room.get(of_class, 0) - path.stat().st_size
            if room[of_class] < 0:
                self._disk.unlink(path)
