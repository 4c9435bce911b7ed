"""One immutable reading of the clock's quality, refreshed at most once a second."""

from __future__ import annotations

import ctypes
import time
from typing import NamedTuple

__all__ = ["UNKNOWN_UNCERTAINTY", "ClockReader", "ClockStatus", "ClockWatch"]

UNKNOWN_UNCERTAINTY = (1 << 64) - 1
_STA_UNSYNC = 0x40
_REFRESH_NS = 1_000_000_000
_STEP_NS = 50_000_000
_SLEW = 0.1
"""Daemons slew a clock by less than a tenth (chrony by 83,333 ppm at most): more is a step."""
_STATUS_NAMES = {0: "unknown", 1: "synchronised", 2: "free-running"}
_SOURCE_NAMES = {0: "unknown", 1: "kernel", 2: "chrony", 3: "ptp4l"}


class ClockStatus(NamedTuple):
    """Uncertainty in ns; source 1 is the kernel; status 1 synchronised, 2 free-running."""

    uncertainty_ns: int
    source: int
    status: int


class _Timex(ctypes.Structure):
    # struct timex of adjtimex(2); only the first fields are read.
    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 176),
    ]


class ClockReader:
    """Reads adjtimex(2). Not for use from several threads at once (the writer's lock guards it)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._read_ns = -_REFRESH_NS
        self._status = ClockStatus(UNKNOWN_UNCERTAINTY, 0, 0)

    def status(self) -> ClockStatus:
        """The present status, at most a second old."""
        now_ns = time.monotonic_ns()
        if now_ns - self._read_ns >= _REFRESH_NS:
            self._read_ns = now_ns
            self._status = self._read()
        return self._status

    def _read(self) -> ClockStatus:
        timex = _Timex()
        if self._libc.adjtimex(ctypes.byref(timex)) < 0:
            return ClockStatus(UNKNOWN_UNCERTAINTY, 0, 0)
        if timex.status & _STA_UNSYNC:
            return ClockStatus(UNKNOWN_UNCERTAINTY, 1, 2)
        return ClockStatus(int(timex.maxerror) * 1000, 1, 1)


class ClockWatch:
    """Notices steps of the wall clock and changes of its status. Not for several threads at once."""

    def __init__(self) -> None:
        self._time_ns = self._monotonic_ns = 0
        self._status: ClockStatus | None = None

    def look(self, time_ns: int, monotonic_ns: int, status: ClockStatus) -> tuple[int, str]:
        """The step since the last look in ns (0 when there was none), and words for a change of status (empty without one).

        A step is a jump of the wall clock against the monotonic one by more than
        50 ms and a tenth of the time between the two looks.
        """
        step, words, before = 0, "", self._status
        if before is not None:
            passed = monotonic_ns - self._monotonic_ns
            jump = time_ns - self._time_ns - passed
            if abs(jump) > _STEP_NS + passed * _SLEW:
                step = jump
            if (before.source, before.status) != (status.source, status.status):
                words = f"{_told(before)}, now {_told(status)}"
        self._time_ns, self._monotonic_ns, self._status = time_ns, monotonic_ns, status
        return step, words


def _told(status: ClockStatus) -> str:
    return f"{_STATUS_NAMES[status.status]} ({_SOURCE_NAMES[status.source]})"
