"""What a log does to flash, simulated: the real writer's operations against a naive log's, on two devices.

What is simulated. *The file system*: pages of 4 KiB; a file's pages are taken in
turn from the free ones; dirty pages go to the device when they are forced; a
change of size or name, or a removal, costs one page of a journal ring when it is
forced. *Raw NAND*: each page of the file system is one page of the device; one
that was programmed can be programmed again only after its block (64 pages) was
erased and what is still needed of it written back. *A page-mapped FTL*: pages go
to the open block wherever they belong; greedy garbage collection takes the block
with the fewest valid pages, the least worn of several; a tenth of the blocks is spare.
Not simulated: program and erase times, read disturb, bad blocks, static wear levelling.

The naive log appends each record, forces it (its size changes), rewrites the one
page of an index file, forces that, and removes its oldest file when it is full.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, Protocol

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import Disk
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.prune import Retention
from vigil_sidecar.audit.writer import AuditWriter

__all__ = ["wear"]

PAGE, BLOCK_PAGES, DEVICE_PAGES, JOURNAL_PAGES = 4096, 64, 8192, 256
RECORDS, PER_SECOND, SYNCS_PER_SECOND, CHECKPOINT_S = 400_000, 1000, 10, 10
SEGMENT, KEPT_SEGMENTS = 1 << 20, 20
PAYLOAD = b"p" * 50


class Device(Protocol):
    erases: list[int]
    programmed: int

    def write(self, page: int) -> None: ...
    def trim(self, page: int) -> None: ...


class RawNand:
    """File system pages are device pages."""

    def __init__(self) -> None:
        self.erases, self.programmed = [0] * (DEVICE_PAGES // BLOCK_PAGES), 0
        self._used, self._valid = bytearray(DEVICE_PAGES), bytearray(DEVICE_PAGES)

    def write(self, page: int) -> None:
        """Program a page, erasing its block first when it was programmed before."""
        if self._used[page]:
            block = page // BLOCK_PAGES
            first, last = block * BLOCK_PAGES, (block + 1) * BLOCK_PAGES
            self._valid[page] = 0
            self.erases[block] += 1
            self.programmed += sum(self._valid[first:last])
            self._used[first:last] = self._valid[first:last]
        self._used[page] = self._valid[page] = 1
        self.programmed += 1

    def trim(self, page: int) -> None:
        """The file system needs it no more."""
        self._valid[page] = 0


class Ftl:
    """A page-mapped flash translation layer with greedy garbage collection."""

    def __init__(self) -> None:
        blocks = DEVICE_PAGES // BLOCK_PAGES * 11 // 10
        self.erases, self.programmed = [0] * blocks, 0
        self._where: dict[int, tuple[int, int]] = {}
        self._pages: list[list[int | None]] = [[] for _ in range(blocks)]
        self._valid = [0] * blocks
        self._free, self._open = deque(range(1, blocks)), 0

    def _put(self, page: int) -> None:
        if len(self._pages[self._open]) == BLOCK_PAGES:
            self._open = self._free.popleft()
        self.trim(page)
        self._pages[self._open].append(page)
        self._where[page] = self._open, len(self._pages[self._open]) - 1
        self._valid[self._open] += 1
        self.programmed += 1

    def write(self, page: int) -> None:
        """Put a page into the open block; collect garbage when few blocks are free."""
        self._put(page)
        while len(self._free) < 3:
            closed = (b for b in range(len(self._pages)) if b != self._open and len(self._pages[b]) == BLOCK_PAGES)
            victim = min(closed, key=lambda b: (self._valid[b], self.erases[b]))
            moved = [p for p in self._pages[victim] if p is not None]
            for p in moved:
                self._put(p)
            self._pages[victim], self._valid[victim] = [], 0
            self.erases[victim] += 1
            self._free.append(victim)

    def trim(self, page: int) -> None:
        """Forget where a page is."""
        if page in self._where:
            block, at = self._where.pop(page)
            self._pages[block][at] = None
            self._valid[block] -= 1


class FileSystem:
    """Pages of files on several devices at once; a journal ring for changes of size and name."""

    def __init__(self, *devices: Device) -> None:
        self.devices, self._journal, self._journaled = devices, 0, False
        self._free = deque(range(JOURNAL_PAGES, DEVICE_PAGES))
        self._files: dict[int, dict[int, int]] = {}
        self._dirty: dict[int, OrderedDict[int, None]] = {}
        self._size: dict[int, int] = {}

    def allocate(self, file: int, size: int) -> None:
        """Give a file its pages."""
        pages = self._files.setdefault(file, {})
        for at in range((size + PAGE - 1) // PAGE):
            if at not in pages:
                pages[at] = self._free.popleft()
        self._size[file], self._journaled = max(size, self._size.get(file, 0)), True

    def write(self, file: int, offset: int, size: int) -> None:
        """Make pages dirty; a file that grows gets more."""
        if offset + size > self._size.get(file, 0):
            self.allocate(file, offset + size)
        self._dirty.setdefault(file, OrderedDict()).update((p, None) for p in range(offset // PAGE, (offset + size - 1) // PAGE + 1))

    def named(self) -> None:
        """A file was made, renamed or removed."""
        self._journaled = True

    def force(self, file: int) -> None:
        """Dirty pages of a file, and what the journal has, go to the devices."""
        for at in self._dirty.pop(file, ()):
            for device in self.devices:
                device.write(self._files[file][at])
        if self._journaled:
            for device in self.devices:
                if self._journal % BLOCK_PAGES == 0:  # what the ring's next block held was written to its place long ago
                    for page in range(self._journal, self._journal + BLOCK_PAGES):
                        device.trim(page)
                device.write(self._journal)
            self._journal, self._journaled = (self._journal + 1) % JOURNAL_PAGES, False

    def remove(self, file: int) -> None:
        """Free a file's pages."""
        for page in self._files.pop(file, {}).values():
            self._free.append(page)
            for device in self.devices:
                device.trim(page)
        self._dirty.pop(file, None)
        self._size.pop(file, None)
        self._journaled = True


class WatchedDisk(Disk):
    """The real file system, and a simulated one that does the same."""

    def __init__(self, simulated: FileSystem) -> None:
        self.simulated, self.current = simulated, 0

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self.simulated.named()
        return fd

    def allocate(self, fd: int, size: int) -> None:
        super().allocate(fd, size)
        self.simulated.allocate(os.fstat(fd).st_ino, size)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.current = os.fstat(fd).st_ino
        self.simulated.write(self.current, offset, len(data))
        return super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self.simulated.force(os.fstat(fd).st_ino)

    fsync = fdatasync

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.simulated.named()

    def unlink(self, path: Path) -> None:
        if path.exists():
            self.simulated.remove(path.stat().st_ino)
        super().unlink(path)

    def sync_folder(self, folder: Path) -> None:
        self.simulated.force(-1)


def ours(folder: Path, fs: FileSystem) -> None:
    """The real writer with durability ``interval``, its clock made of counted records."""
    disk = WatchedDisk(fs)
    keys = KeyFile(folder / "keys", "sidecar")
    writer = AuditWriter(
        folder / "log", "sidecar", durability="process", segment_bytes=SEGMENT, keys=keys, checkpoint_records=1 << 30,
        checkpoint_interval_s=86400, retention=Retention(KEPT_SEGMENTS * SEGMENT), disk=disk,
    )  # fmt: skip
    assert writer.sealer is not None
    batch = [Entry(layout.KIND_ANSWER, events.ANSWER, trace_id=os.urandom(16), payload=PAYLOAD)] * (PER_SECOND // SYNCS_PER_SECOND)
    for i in range(RECORDS // len(batch)):
        writer.append(batch)
        fs.force(disk.current)
        if i % (SYNCS_PER_SECOND * CHECKPOINT_S) == 0:
            writer.sealer.seal()
            fs.write(-2, 0, 512)  # the latest checkpoint beside the key: a new file of one page, forced and renamed
            fs.named()
            fs.force(-2)
            fs.remove(-2)
            writer.sealer.prune()
    writer.close()


def naive(fs: FileSystem) -> None:
    """Append, force, rewrite the index, force."""
    size, files, at = layout.HEADER_BYTES + len(PAYLOAD), deque([1]), 0
    for _ in range(RECORDS):
        if at + size > SEGMENT:
            files.append(files[-1] + 1)
            at = 0
            if len(files) > KEPT_SEGMENTS:
                fs.remove(files.popleft())
        fs.write(files[-1], at, size)
        fs.force(files[-1])
        fs.write(0, 0, PAGE)
        fs.force(0)
        at += size


def told(device: Device) -> dict[str, float]:
    mean = statistics.fmean(device.erases)
    return {
        "bytes_per_record": round(device.programmed * PAGE / RECORDS), "erases": sum(device.erases),
        "max_to_mean": round(max(device.erases) / mean, 2), "variation": round(statistics.pstdev(device.erases) / mean, 2),
    }  # fmt: skip


def wear(table: Any, out: Path) -> None:
    """Both logs on both devices."""
    folder = out / "wear"
    nand, ftl = (RawNand(), RawNand()), (Ftl(), Ftl())
    ours(folder, FileSystem(nand[0], ftl[0]))
    naive(FileSystem(nand[1], ftl[1]))
    shutil.rmtree(folder)
    shown = {"nand": told(nand[0]), "nand_naive": told(nand[1]), "ftl": told(ftl[0]), "ftl_naive": told(ftl[1])}
    names = {"nand": "simulated raw NAND", "ftl": "simulated page-mapped FTL"}
    for key, name in names.items():
        mine, other = shown[key], shown[key + "_naive"]
        table.add(f"{name}: bytes written per record (naive {other['bytes_per_record']})", mine["bytes_per_record"], None, shown)
        table.add(f"{name}: erases / those of a naive log", mine["erases"] / other["erases"], None, shown, at_most=True)
    mine, other = shown["nand"], shown["nand_naive"]
    table.add(f"{names['nand']}: max / mean wear (naive {other['max_to_mean']})", mine["max_to_mean"], 1.3, shown, at_most=True)
    table.add(f"{names['nand']}: variation of wear (naive {other['variation']})", mine["variation"], 0.4, shown, at_most=True)
