"""Reading a model file once: closed by its writer, stable, hashed, and sealed in memory."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import stat
from pathlib import Path
from typing import NamedTuple

from vigil_sidecar.errors import CandidateRefused

__all__ = ["FileSignature", "StagedFile", "StillWritten", "is_written", "signature_of", "stage"]

_PIECE_BYTES = 1 << 20
_F_SETSIG = 10
_F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE: see fcntl(2)


class StillWritten(Exception):
    """The file is open for writing, or changed while it was read. Try again later."""


class FileSignature(NamedTuple):
    """What stat says of a file: enough to see a change."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class StagedFile(NamedTuple):
    """A sealed copy. ``path`` works while ``fd`` is open; the bytes cannot change any more."""

    fd: int
    path: str
    digest: str
    size: int

    def close(self) -> None:
        """Free the copy."""
        os.close(self.fd)


def signature_of(path: Path) -> FileSignature | None:
    """Signature of a regular file, following links; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return FileSignature(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def is_written(path: Path) -> bool:
    """Whether somebody has a regular file open for writing now, as far as can be told."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and _open_for_writing_elsewhere(fd)
    finally:
        os.close(fd)


def _open_for_writing_elsewhere(fd: int) -> bool:
    """Whether anybody has the file open for writing (a read lease is refused then, fcntl(2)).

    Works on local file systems for the file's owner or CAP_LEASE; elsewhere the
    caller must rely on the file keeping still.
    """
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)  # a broken lease would send SIGIO, which ends the process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        # SR-047
        return error.errno in (errno.EAGAIN, errno.EBUSY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def stage(path: Path, size_max: int) -> StagedFile:
    """Copy and hash the file in pieces into a sealed memfd.

    Raises:
        StillWritten: somebody is writing it.
        CandidateRefused: it cannot be read or is too large.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CandidateRefused(f"model.onnx cannot be read: {error.strerror}") from None
    try:
        before = os.fstat(source)
        if before.st_mode & 0o170000 != 0o100000:
            raise CandidateRefused("model.onnx is not a regular file")
        if before.st_size > size_max:
            raise CandidateRefused(f"model.onnx has {before.st_size} bytes, limit is {size_max} (models.file_bytes_max)")
        if before.st_size == 0 or _open_for_writing_elsewhere(source):
            raise StillWritten
        return _copy(source, before)
    except OSError as error:
        raise CandidateRefused(f"model.onnx cannot be read: {error.strerror}") from None
    finally:
        os.close(source)


def _copy(source: int, before: os.stat_result) -> StagedFile:
    target = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        digest, size = hashlib.sha256(), 0
        while piece := os.read(source, _PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(target, view) :]
        after = os.fstat(source)
        stable = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if not stable or size != before.st_size or _open_for_writing_elsewhere(source):
            raise StillWritten
        # SR-046
        fcntl.fcntl(target, _F_ADD_SEALS, _SEALS)
        return StagedFile(target, f"/proc/self/fd/{target}", digest.hexdigest(), size)
    except BaseException:
        os.close(target)
        raise
