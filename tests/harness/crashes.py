"""What a power cut can leave of a log: every file state that its operations allow, from a recording of them."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vigil_sidecar.audit.disk import Disk

__all__ = ["Op", "RecordingDisk", "crash_states", "write_state"]

SECTOR = 512
PENDING_MAX = 7
"""With up to this many unforced writes every subset is tried; of more, as many random ones."""

State = dict[str, bytes]


class Op(NamedTuple):
    """One recorded operation. ``inode`` names a file whatever it is called."""

    kind: str
    inode: int = 0
    name: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""


class Ops(list[Op]):
    """Operations in order; ``before`` is called before each is noted."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def append(self, op: Op) -> None:
        self.before()
        super().append(op)


class RecordingDisk(Disk):
    """The real file system, with every change written down; ``skip`` leaves out the forcing at one place of the code (a mutant)."""

    def __init__(self, skip: str = "") -> None:
        self.ops = Ops()
        self.places: set[str] = set()
        self._skip = skip

    def _skipped(self) -> bool:
        frame = sys._getframe(2)
        place = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}:{sys._getframe(1).f_code.co_name}"
        self.places.add(place)
        return place == self._skip

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self.ops.append(Op("create", os.fstat(fd).st_ino, path.name))
        return fd

    def allocate(self, fd: int, size: int) -> None:
        super().allocate(fd, size)
        self.ops.append(Op("allocate", os.fstat(fd).st_ino, offset=size))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.ops.append(Op("write", os.fstat(fd).st_ino, offset=offset, data=bytes(data)))
        return super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        if not self._skipped():
            self.ops.append(Op("force", os.fstat(fd).st_ino))

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        if not self._skipped():
            self.ops.append(Op("force", os.fstat(fd).st_ino))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.ops.append(Op("rename", name=source.name, target=target.name))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.ops.append(Op("unlink", name=path.name))

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        if not self._skipped():
            self.ops.append(Op("folder"))


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Op] = field(default_factory=list)


@dataclass
class _Disk:
    """Durable content, and what is only in the cache: of data and of names any part may be lost."""

    files: dict[int, _File] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    name_ops: list[Op] = field(default_factory=list)

    def apply(self, op: Op) -> None:
        if op.kind == "create":
            self.files[op.inode] = _File()
            self.name_ops.append(op)
        elif op.kind in ("rename", "unlink"):
            self.name_ops.append(op)
        elif op.kind in ("allocate", "write"):
            self.files[op.inode].pending.append(op)
        elif op.kind == "force":
            file = self.files[op.inode]
            for p in file.pending:
                _put(file.durable, p)
            file.pending = []
            # Forcing a new file makes its name durable on the file systems that we know, but nothing promises it.
        elif op.kind == "folder":
            self.names = _renamed(self.names, self.name_ops)
            self.name_ops = []


def _put(content: bytearray, op: Op, start: int = 0, stop: int | None = None) -> None:
    if op.kind == "allocate":
        content.extend(bytes(max(0, op.offset - len(content))))
        return
    data = op.data[start:stop]
    at = op.offset + start
    content.extend(bytes(max(0, at + len(data) - len(content))))
    content[at : at + len(data)] = data


def _renamed(names: dict[str, int], ops: list[Op]) -> dict[str, int]:
    out = dict(names)
    for op in ops:
        if op.kind == "create":
            out[op.name] = op.inode
        elif op.kind == "rename" and op.name in out:
            out[op.target] = out.pop(op.name)
        elif op.kind == "unlink":
            out.pop(op.name, None)
    return out


def _subsets(count: int, rng: random.Random) -> Iterator[list[bool]]:
    if count <= PENDING_MAX:
        for bits in range(1 << count):
            yield [bool(bits >> i & 1) for i in range(count)]
        return
    yield [True] * count
    yield [False] * count
    for _ in range(1 << PENDING_MAX):
        yield [rng.random() < 0.5 for _ in range(count)]


def _tears(op: Op) -> Iterator[tuple[int, int]]:
    """The parts of a write that may be there alone: up to a sector's end, or from one on."""
    first = SECTOR - op.offset % SECTOR
    for cut in range(first, len(op.data), SECTOR):
        yield 0, cut
        yield cut, len(op.data)


def _states_at(disk: _Disk, rng: random.Random) -> Iterator[State]:
    pending = [(inode, op) for inode, file in disk.files.items() for op in file.pending]
    tried: set[frozenset[tuple[str, int]]] = set()
    for kept_names in _subsets(len(disk.name_ops), rng):
        names = _renamed(disk.names, [op for op, kept in zip(disk.name_ops, kept_names, strict=True) if kept])
        if (variant := frozenset(names.items())) in tried:
            continue
        tried.add(variant)
        visible = set(names.values())
        mine = [(inode, op) for inode, op in pending if inode in visible]
        for keep in _subsets(len(mine), rng):
            chosen = [x for x, kept in zip(mine, keep, strict=True) if kept]
            torn: list[tuple[int, tuple[int, int]]] = [(-1, (0, 0))]
            torn += [(i, part) for i, (_, op) in enumerate(chosen) if op.kind == "write" for part in _tears(op)]
            for which, part in torn:
                content = {inode: bytearray(disk.files[inode].durable) for inode in visible}
                for i, (inode, op) in enumerate(chosen):
                    if i == which:
                        _put(content[inode], op, *part)
                    else:
                        _put(content[inode], op)
                yield {name: bytes(content[inode]) for name, inode in names.items()}


def _each_file_once(ops: list[Op]) -> list[Op]:
    """The operations with a number of its own for every file: an inode is used again once its file is gone."""
    numbers: dict[int, int] = {}
    out = []
    for i, op in enumerate(ops):
        if op.kind == "create":
            numbers[op.inode] = i + 1
        out.append(op._replace(inode=numbers.get(op.inode, op.inode)))
    return out


def crash_states(ops: list[Op], rng: random.Random) -> Iterator[tuple[int, State]]:
    """Distinct states after a cut behind each number of operations, with that number."""
    ops = _each_file_once(ops)
    seen: set[bytes] = set()
    disk = _Disk()
    for done in range(len(ops) + 1):
        for state in _states_at(disk, rng):
            digest = hashlib.sha256()
            for name in sorted(state):
                digest.update(
                    name.encode() + b"\0" + hashlib.sha256(state[name].rstrip(b"\0")).digest() + len(state[name]).to_bytes(8, "little")
                )
            key = digest.digest() + done.to_bytes(4, "little")  # what must be there depends on where the cut was
            if key not in seen:
                seen.add(key)
                yield done, state
        if done < len(ops):
            disk.apply(ops[done])


def write_state(state: State, folder: Path) -> None:
    """Make the folder as the power cut left it."""
    folder.mkdir(parents=True)
    for name, data in state.items():
        used = data.rstrip(b"\0")
        with (folder / name).open("wb") as file:
            file.write(used)
            file.truncate(len(data))
