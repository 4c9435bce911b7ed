"""Which faults are active, and the seams of the sidecar at which they act: sessions, disk, clock."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vigil_sidecar.audit.clock import ClockStatus
from vigil_sidecar.audit.disk import Disk
from vigil_sidecar.registry.version import Runnable

__all__ = ["Active", "Faults", "FaultyClock", "FaultyDisk", "FaultySession"]

Array = np.ndarray[Any, Any]


class Active(NamedTuple):
    """A fault that acts now. ``over`` is set when it ends, so that who is held by it can go on."""

    model: str
    magnitude: float
    over: threading.Event


class Faults:
    """The faults that act now, by kind. Any thread may call; without any, a look costs one lookup."""

    def __init__(self) -> None:
        self._active: dict[str, Active] = {}
        self._lock = threading.Lock()

    def begin(self, kind: str, model: str, magnitude: float) -> bool:
        """Let a fault act; False when one of its kind does already."""
        with self._lock:
            if kind in self._active:
                return False
            self._active[kind] = Active(model, magnitude, threading.Event())
            return True

    def end(self, kind: str) -> None:
        """End it, and let go who is held by it."""
        with self._lock:
            fault = self._active.pop(kind, None)
        if fault is not None:
            fault.over.set()

    def of(self, kind: str, model: str = "") -> Active | None:
        """The active fault of a kind, and of a model where one is given."""
        fault = self._active.get(kind)
        return fault if fault is not None and model in ("", fault.model) else None

    def take(self, kind: str) -> Active | None:
        """The fault of a kind that acts once: whoever takes it ends it."""
        fault = self._active.get(kind)
        if fault is not None:
            self.end(kind)
        return fault

    def wait(self, kind: str, timeout_s: float) -> bool:
        """Wait until a fault has ended, at most this long; whether it has."""
        fault = self._active.get(kind)
        return fault is None or fault.over.wait(timeout_s)

    def any(self) -> bool:
        """Whether some fault acts."""
        return bool(self._active)


def _nan(array: Array, magnitude: float) -> Array:
    changed = array.copy()
    changed.reshape(-1)[:1] = np.nan
    return changed


_OUTPUTS: dict[str, Callable[[Array, float], Array]] = {
    "model_nan": _nan,
    "model_constant": lambda a, m: np.full_like(a, 0.5),
    "model_shape": lambda a, m: a[..., :-1].copy(),
    "model_out_of_range": lambda a, m: (a + m).astype(a.dtype),
    "model_drift": lambda a, m: (a * (1 + m)).astype(a.dtype),
}
"""What each kind makes of an output of floats."""


class FaultySession:
    """A session whose runs fail as the active faults of its model say."""

    def __init__(self, model: str, inner: Runnable, faults: Faults) -> None:
        self._model, self._inner, self._faults = model, inner, faults
        self.contract, self.providers = inner.contract, inner.providers

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> list[Any]:
        """Compute, or fail."""
        faults, model = self._faults, self._model
        if not faults.any():
            return self._inner.run(feeds, outputs)
        if faults.of("model_crash", model) and faults.take("model_crash"):
            ctypes.string_at(0)
        if hang := faults.of("model_hang", model):
            hang.over.wait()
        if slow := faults.of("model_slow", model):
            time.sleep(slow.magnitude / 1000)
        if faults.of("model_error", model):
            raise RuntimeError("injected: the run fails")
        arrays = self._inner.run(feeds, outputs)
        for kind, change in _OUTPUTS.items():
            if fault := faults.of(kind, model):
                arrays = [change(a, fault.magnitude) if a.dtype.kind == "f" and a.size and a.ndim else a for a in arrays]
        return arrays

    def close(self) -> None:
        """Free it."""
        self._inner.close()


class FaultyDisk(Disk):
    """The log's disk, which fills, fails, slows down or hangs."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write, or fail."""
        if self._faults.any():
            if self._faults.of("log_full"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if slow := self._faults.of("log_slow"):
                time.sleep(slow.magnitude / 1000)
            if hung := self._faults.of("log_hung"):
                hung.over.wait()
        return super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        """Force to disk, or fail."""
        if self._faults.of("log_error"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fdatasync(fd)


class FaultyClock:
    """The log's wall clock and what is known of it."""

    def __init__(self, faults: Faults, status: Callable[[], ClockStatus]) -> None:
        self._faults, self._status = faults, status
        self._frozen_ns = 0

    def time_ns(self) -> int:
        """The time, stepped or frozen."""
        now_ns = time.time_ns()
        if self._faults.of("clock_freeze") is None:
            self._frozen_ns = 0
        else:
            self._frozen_ns = now_ns = self._frozen_ns or now_ns
        for kind, sign in (("clock_forward", 1), ("clock_back", -1)):
            if step := self._faults.of(kind):
                now_ns += sign * int(step.magnitude * 1e6)
        return now_ns

    def status(self) -> ClockStatus:
        """The status, or the other one."""
        status = self._status()
        if self._faults.of("clock_status") is not None:
            return status._replace(status=2 if status.status == 1 else 1)
        return status
