"""Stops that outlive a restart: one small JSON file, replaced as a whole and forced to disk."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import NamedTuple

__all__ = ["LatchFile", "Stop"]

_BYTES_MAX = 1 << 20


class Stop(NamedTuple):
    """Why a subject is stopped, and since when (UTC microseconds)."""

    reason: str
    since_us: int


def _sound(stop: Stop) -> bool:
    return isinstance(stop.reason, str) and type(stop.since_us) is int and 0 <= stop.since_us < 1 << 53


class LatchFile:
    """The latched subjects of one process. Any thread may call.

    The file is ``{"version": 1, "stops": {SUBJECT: {"reason": TEXT, "since_us": N}}}``.
    One that is there but cannot be read stops everything: ``unreadable`` says why.
    """

    def __init__(self, path: Path) -> None:
        """Read what was kept; a file that is not there means no stop."""
        self._path, self._lock = path, threading.Lock()
        self.stops: dict[str, Stop] = {}
        self.unreadable = ""
        self._dirty = False
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(_BYTES_MAX))
            if found["version"] != 1:
                raise ValueError(f"version {found['version']}")
            self.stops = {n: Stop(s["reason"], s["since_us"]) for n, s in found["stops"].items()}
            if odd := [n for n, s in self.stops.items() if not _sound(s)]:
                raise ValueError(f"the stop of {odd[0]!r}")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.stops = {}
            self.unreadable = f"{path} cannot be read ({type(error).__name__}: {error}): what it kept is unknown"

    def keep(self, subject: str, stop: Stop) -> None:
        """Remember a stop; raises ``OSError`` when it could not be forced to disk."""
        with self._lock:
            self.stops[subject] = stop
            self._write()

    def drop(self, subject: str) -> None:
        """Forget a stop; raises ``OSError``: it would come back with the next start."""
        with self._lock:
            self.stops.pop(subject, None)
            self.unreadable = ""
            self._write()

    def retry(self) -> bool:
        """Write what could not be written before; whether there was something, and it is written now. Raises ``OSError``."""
        with self._lock:
            if not self._dirty:
                return False
            self._write()
            return True

    def _write(self) -> None:
        self._dirty = True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        stops = {n: s._asdict() for n, s in sorted(self.stops.items())}
        partial = self._path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump({"version": 1, "stops": stops}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        # SR-035
        partial.rename(self._path)
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._dirty = False
