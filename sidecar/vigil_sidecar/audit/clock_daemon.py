"""What the daemon that disciplines the clock says of it: chrony (chronyc) or ptp4l (pmc), asked beside the writer."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vigil_sidecar.audit.clock import UNKNOWN_UNCERTAINTY, ClockReader, ClockStatus

__all__ = ["ClockDaemon", "parse_chrony", "parse_ptp4l"]

_POLL_S, _ANSWER_S = 5.0, 1.0
_CHRONY, _PTP4L = 2, 3
_SYNCHRONISED, _FREE_RUNNING, _UNKNOWN = 1, 2, 0
_NO_REFERENCE = ("00000000", "7F7F0101")
"""Reference ids of chronyd without a source: none, and its own clock (``local``)."""


class _Source(NamedTuple):
    command: list[str]
    parse: Callable[[str], ClockStatus | None]


def parse_chrony(text: str) -> ClockStatus | None:
    """``chronyc -c tracking``: the bound is |system time| + root dispersion + root delay / 2 (chronyc(1)); None when it says nothing."""
    fields = text.strip().split(",")
    try:
        reference, offset, delay, dispersion, leap = fields[0], float(fields[4]), float(fields[10]), float(fields[11]), fields[13]
    except (IndexError, ValueError):
        return None
    if leap == "Not synchronised" or reference in _NO_REFERENCE:
        return ClockStatus(UNKNOWN_UNCERTAINTY, _CHRONY, _FREE_RUNNING)
    return ClockStatus(math.ceil((abs(offset) + dispersion + delay / 2) * 1e9), _CHRONY, _SYNCHRONISED)


def parse_ptp4l(text: str) -> ClockStatus | None:
    """``pmc 'GET PORT_DATA_SET'``: synchronised while a port is SLAVE; None when it says nothing.

    The bound stays unknown: ptp4l knows how well it follows its master, not how
    well the system clock follows the clock of the network card.
    """
    states = re.findall(r"^\s*portState\s+(\S+)", text, re.MULTILINE)
    if not states:
        return None
    return ClockStatus(UNKNOWN_UNCERTAINTY, _PTP4L, _SYNCHRONISED if "SLAVE" in states else _FREE_RUNNING)


class ClockDaemon:
    """Asks the daemon every five seconds in a thread of its own; ``latest`` is an immutable snapshot, None without a daemon.

    With ``auto`` the first of ptp4l and chrony that answers is taken, and None when
    none does; a source that was named and does not answer is of unknown status.
    """

    def __init__(self, source: str, chrony_at: str = "", ptp4l_socket: str = "/var/run/ptp4l") -> None:
        self.latest: ClockStatus | None = None
        self.passed: Callable[[], None] = lambda: None
        """Called each time that the daemon was asked."""
        self._sources: list[_Source] = []
        self._named = source in ("chrony", "ptp4l")
        self._stop, self._kernel = threading.Event(), ClockReader()
        self._scratch = tempfile.TemporaryDirectory(prefix="vigil-clock-")
        if source in ("auto", "ptp4l") and shutil.which("pmc") and (self._named or Path(ptp4l_socket).exists()):
            command = ["pmc", "-u", "-b", "0", "-i", f"{self._scratch.name}/pmc", "-s", ptp4l_socket, "GET PORT_DATA_SET"]
            self._sources.append(_Source(command, parse_ptp4l))
        if source in ("auto", "chrony") and shutil.which("chronyc"):
            host, _, port = chrony_at.rpartition(":")
            self._sources.append(_Source(["chronyc", "-n", *(["-h", host, "-p", port] if host else []), "-c", "tracking"], parse_chrony))
        number = {"chrony": _CHRONY, "ptp4l": _PTP4L}.get(source, 0)
        self._silent = ClockStatus(UNKNOWN_UNCERTAINTY, number, _UNKNOWN) if self._named else None
        self.latest = self._silent
        if self._sources:
            self.latest = self._ask()
            threading.Thread(target=self._run, name="clock", daemon=True).start()

    @property
    def asks(self) -> bool:
        """Whether a thread asks a daemon."""
        return bool(self._sources)

    def status(self) -> ClockStatus:
        """What is known now: the daemon's word, else the kernel's. The writer's lock guards it, as it does ``ClockReader``."""
        return self.latest or self._kernel.status()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._scratch.cleanup()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            self.latest = self._ask()
            self.passed()

    def _ask(self) -> ClockStatus | None:
        for source in self._sources:
            try:
                done = subprocess.run(source.command, capture_output=True, text=True, errors="replace", timeout=_ANSWER_S, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue
            status = source.parse(done.stdout) if done.returncode == 0 else None
            if status is not None:
                return status
        return self._silent
