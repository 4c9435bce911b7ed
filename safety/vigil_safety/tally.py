"""Counters that outlive restarts: one small JSON file, replaced as a whole at each count. Standard library only."""

from __future__ import annotations

import json
import threading
from pathlib import Path

__all__ = ["DEGRADED", "EXPIRED", "RESTARTED", "STOPPED", "Tally"]

DEGRADED, STOPPED, RESTARTED, EXPIRED = "degraded", "stopped", "restarted", "expired"
_BYTES_MAX = 1 << 20
_NAMES_MAX = 4096


class Tally:
    """Counts by what and subject (``degraded model/m``). Any thread may call.

    The file is ``{"version": 1, "counts": {NAME: N}}``. It is renamed into place, so that a
    kill leaves the old or the new one; it is not forced to disk, so that a power cut may
    lose the last counts, which stand in the audit log too. One that cannot be read is put
    aside as ``.unreadable`` and counting starts anew; ``problem`` says so, and why a count
    could not be written.
    """

    def __init__(self, path: Path) -> None:
        """Read what was counted."""
        self._path, self._lock = path, threading.Lock()
        self._counts: dict[str, int] = {}
        self.problem = ""
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(_BYTES_MAX))
            counts = found["counts"]
            if found["version"] != 1 or not all(isinstance(n, str) and type(c) is int and c >= 0 for n, c in counts.items()):
                raise ValueError("not of version 1")
            self._counts = counts
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.problem = f"{path} cannot be read ({type(error).__name__}: {error}); counting starts anew"
            try:
                path.replace(path.with_suffix(".unreadable"))
            except OSError:
                pass  # the next count replaces it

    def count(self, what: str, subject: str) -> None:
        """Count once more."""
        name = f"{what} {subject}"
        with self._lock:
            if name not in self._counts and len(self._counts) >= _NAMES_MAX:
                return
            self._counts[name] = self._counts.get(name, 0) + 1
            partial = self._path.with_suffix(".partial")
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_text(json.dumps({"version": 1, "counts": dict(sorted(self._counts.items()))}, indent=1))
                partial.rename(self._path)
                self.problem = ""
            except OSError as error:
                self.problem = f"{self._path} cannot be written: {error.strerror}"

    def of(self, what: str, subject: str) -> int:
        """How often that was."""
        return self._counts.get(f"{what} {subject}", 0)

    def all(self) -> dict[str, int]:
        """A copy of all counts."""
        with self._lock:
            return dict(self._counts)
