"""The operations by which a log changes its files: the seam at which tests fail, record and cut them off."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["DISK", "Disk"]


class Disk:
    """The real file system. Every method may be called from any thread and raises ``OSError``."""

    def create(self, path: Path) -> int:
        """A new, empty file for reading and writing; one of this name is emptied."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)

    def open(self, path: Path) -> int:
        """An existing file for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def allocate(self, fd: int, size: int) -> None:
        """Make room, so that later writes need none."""
        os.posix_fallocate(fd, 0, size)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write at a place; returns how many bytes were written."""
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        """Force the file's data to disk."""
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Force the file's data and size to disk."""
        os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file its name."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """Force the folder's entries to disk."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


DISK = Disk()
