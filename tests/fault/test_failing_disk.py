"""A disk that fails: one operation after another of a log's life fails once, in each way; nothing acknowledged is lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import Disk
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.kept import read_kept
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.notes import Verifier
from vigil_sidecar.audit.prune import Retention
from vigil_sidecar.audit.verify import read_records, verify_folder
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.errors import AuditError

SEGMENT = 12 << 10
WAYS = ("EIO", "ENOSPC", "short")


class FailingDisk(Disk):
    """The real file system, but its operation number ``at`` fails once; short: it writes less than it is given."""

    def __init__(self, at: int, way: str) -> None:
        self.count, self._at, self._way = 0, at, way

    def _next(self, path: str = "") -> bool:
        self.count += 1
        if self.count != self._at or self._way == "short":
            return self.count == self._at
        number = getattr(errno, self._way)
        raise OSError(number, os.strerror(number), path)

    def create(self, path: Path) -> int:
        self._next(str(path))
        return super().create(path)

    def allocate(self, fd: int, size: int) -> None:
        self._next()
        super().allocate(fd, size)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        short = self._next()
        return super().pwrite(fd, data[: len(data) // 2] if short and len(data) > 1 else data, offset)

    def fdatasync(self, fd: int) -> None:
        self._next()
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._next()
        super().fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self._next(str(source))
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._next(str(path))
        super().unlink(path)

    def sync_folder(self, folder: Path) -> None:
        self._next(str(folder))
        super().sync_folder(folder)


def opened(folder: Path, disk: Disk) -> AuditWriter:
    writer = AuditWriter(
        folder / "log", "sidecar", durability="power", segment_bytes=SEGMENT, keys=KeyFile(folder / "keys", "sidecar"),
        checkpoint_interval_s=3600, disk=disk, retention=Retention(3 * SEGMENT, kept_bytes_max=1 << 20),
    )  # fmt: skip
    assert writer.sealer is not None
    writer.sealer._stopping.set()  # the test says when checkpoints are made
    writer.sealer.wake()
    writer.sealer._thread.join()
    return writer


def live(folder: Path, disk: FailingDisk) -> tuple[list[bytes], int]:
    """Traces of the records that were acknowledged, and how many appends failed."""
    rng, acknowledged, failed = random.Random(4), list[bytes](), 0
    writer = None
    for _ in range(3):
        try:
            writer = opened(folder, disk)
            break
        except AuditError:  # the start failed, as it should: it is tried again, as a supervisor does
            failed += 1
    assert writer is not None and writer.sealer is not None
    for turn in range(60):
        entries = [Entry(layout.KIND_ANSWER, events.ANSWER, trace_id=rng.randbytes(16), payload=bytes(turn)) for _ in range(1 + turn % 3)]
        try:
            writer.append(entries)
            acknowledged += [e.trace_id for e in entries]
        except AuditError:
            failed += 1
        if turn % 9 == 4:
            try:
                writer.sealer.seal()
            except (AuditError, OSError):
                failed += 1
            writer.sealer.prune()
        if turn == 30:
            try:
                writer.sealer.rotate()
            except (AuditError, OSError):
                failed += 1
    try:
        writer.close()
    except (AuditError, OSError):
        failed += 1
        os.close(writer._lock_fd)
    return acknowledged, failed


@pytest.fixture
def fast() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("way", WAYS)
def test_each_operation_fails_once(fast: Path, way: str) -> None:
    """Whichever operation fails: the log goes on or refuses, opens again, verifies with its first key, and has what it acknowledged."""
    disk = FailingDisk(0, way)
    everything, failed = live(fast / "0", disk)
    assert failed == 0 and verify_folder(fast / "0" / "log").pruned > 0
    refused = 0
    for at in range(1, disk.count + 1):
        folder = fast / str(at)
        acknowledged, failed = live(folder, FailingDisk(at, way))
        refused += failed
        opened(folder, Disk()).close()
        report = verify_folder(folder / "log", [Verifier((folder / "keys" / "audit-sidecar.pub").read_text().split()[0])])
        assert report.exit_code == 0, (at, report)
        present = {r.header.trace_id for r in read_records(folder / "log")}
        first = next(i for i, t in enumerate(acknowledged) if t in present)
        lost = [t for t in acknowledged[first:] if t not in present]
        assert not lost, (at, len(lost))
        assert first == 0 or report.pruned >= first, (at, first, report.pruned)  # only what was pruned by right is gone
        assert report.pruned == 0 or list(read_kept(folder / "log")), at
        assert len(acknowledged) >= len(everything) - 6, at  # one failure refuses one group, not all that follow
        shutil.rmtree(folder)
    print(f"{disk.count} operations failed with {way}; {refused} times somebody was told")
    assert refused == 0 if way == "short" else refused > disk.count // 3
