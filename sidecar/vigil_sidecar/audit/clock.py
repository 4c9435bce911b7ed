"""One immutable reading of the clock's quality, refreshed at most once a second."""

from __future__ import annotations

import ctypes
import time
from typing import NamedTuple

__all__ = ["UNKNOWN_UNCERTAINTY", "ClockReader", "ClockStatus"]

UNKNOWN_UNCERTAINTY = (1 << 64) - 1
_STA_UNSYNC = 0x40
_REFRESH_NS = 1_000_000_000


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
