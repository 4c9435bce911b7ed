"""Brings about faults in this sidecar, where the setting ``safety.injection`` allows it."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vigil_safety.kinds import BY_SIDECAR, KINDS, Kind
from vigil_sidecar.audit.clock import ClockStatus
from vigil_sidecar.errors import SemanticViolation
from vigil_sidecar.injection.faults import Faults, FaultyClock, FaultyDisk, FaultySession
from vigil_sidecar.injection.files import FileFaults
from vigil_sidecar.registry.repository import MODEL_NAME
from vigil_sidecar.registry.version import Runnable
from vigil_sidecar.supervision import Supervision

__all__ = ["DELAY_MS", "Injection", "Injector"]

DELAY_MS = 50
"""Between the reply to a caller and the fault: the reply must have left."""
_CYCLE_S = 0.05
_CLOSE_S = 5.0
_ONCE_S = 10.0
"""A fault that acts once, and meets nobody, ends."""
_LARGE_BYTES = 64 << 20
_LARGE_TAG = b"\x82\x7d" + b"\x80\x80\x80\x20"
"""Begins an unknown field (2000) of so many bytes: the graph stays what it is, and needs memory."""
_SIGNS = 100
"""More than any supervised part may give in one of its reference times."""


class Injection(NamedTuple):
    """One fault, as it is brought about."""

    kind: Kind
    model: str
    duration_ms: int
    magnitude: float


def _refuse(field: str, text: str) -> SemanticViolation:
    return SemanticViolation(text, [(field, text)])


def _keep_lock(seconds: float) -> None:
    """Compute without giving the interpreter lock back."""
    before, end = sys.getswitchinterval(), time.monotonic() + seconds
    sys.setswitchinterval(seconds + 1)
    try:
        while time.monotonic() < end:
            pass
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _limited(which: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(which)
    resource.setrlimit(which, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


def _lowest_free_descriptor() -> int:
    fd = os.dup(0)
    os.close(fd)
    return fd


def _changes_files(kind: Kind) -> bool:
    return kind.group in ("files", "configuration") or kind.name in ("sidecar_memory", "sidecar_files", "log_deleted")


class Injector:
    """Owns the active faults and the seams. ``inject`` may be called from any thread."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._files = FileFaults(models, lambda text: self.told(text))
        self._lock = threading.Lock()
        self._reserved: set[str] = set()
        self._closed = False
        self.faults = Faults()
        self.disk = FaultyDisk(self.faults)
        self.record: Callable[[Injection], None] = lambda injection: None
        """Writes the record with which a fault begins."""
        self.failed: Callable[[str, Exception], None] = lambda kind, error: None
        """Hears of a fault that could not be brought about, or not be undone."""
        self.told: Callable[[str], None] = lambda text: None
        """Hears of what was done to files, and undone."""
        self.log_file: Callable[[], Path] = lambda: Path()
        self._indicate: Callable[..., None] = lambda name, checkpoint="alive": None
        self._native = ctypes.PyDLL(None)

    def clock(self, status: Callable[[], ClockStatus]) -> FaultyClock:
        """The log's clock."""
        return FaultyClock(self.faults, status)

    def session(self, model: str, inner: Runnable) -> Runnable:
        """A model's session."""
        return FaultySession(model, inner, self.faults)

    def supervise(self, supervision: Supervision) -> None:
        """Stand between the parts and their supervision."""
        self._indicate = supervision.indicate

        def indicate(name: str, checkpoint: str = "alive") -> None:
            if name != "registry" or self.faults.of("supervision_missing") is None:
                self._indicate(name, checkpoint)

        supervision.indicate = indicate  # type: ignore[method-assign]

    def inject(self, name: str, model: str, duration_ms: int, magnitude: float) -> Injection:
        """Have a fault begin in ``DELAY_MS``; raises ``SemanticViolation`` for what cannot be."""
        kind = KINDS.get(name)
        if kind is None or kind.by != BY_SIDECAR:
            known = ", ".join(k.name for k in KINDS.values() if k.by == BY_SIDECAR)
            raise _refuse("kind", f"the sidecar brings about no fault '{name[:64]}'; it does: {known}")
        if kind.about_a_model and not (MODEL_NAME.fullmatch(model) and (self._models / model).is_dir()):
            raise _refuse("model", f"model '{model[:128]}' is not in the repository; {name} needs one")
        if kind.needs == "user" and os.geteuid() == 0:
            raise _refuse("kind", f"{name}: the sidecar runs as root, which reads every file")
        injection = Injection(kind, model, duration_ms or kind.duration_ms, magnitude or kind.magnitude)
        if not self._reserve(injection):
            raise _refuse("kind", f"a fault {name} acts already, or another that changes files")
        threading.Thread(target=self._run, args=(injection,), name=f"inject-{name}", daemon=True).start()
        return injection

    def _reserve(self, injection: Injection) -> bool:
        """One fault of a kind at a time, and one that changes files: each undoes what it did and nothing else."""
        kind = injection.kind
        with self._lock:
            busy = kind.name in self._reserved or (_changes_files(kind) and any(_changes_files(KINDS[n]) for n in self._reserved))
            if not busy and not self._closed:
                self._reserved.add(kind.name)
                return True
        return False

    def close(self) -> None:
        """End every fault and wait until what was changed is undone, at most a few seconds."""
        with self._lock:
            self._closed = True
        end = time.monotonic() + _CLOSE_S
        while self._reserved and time.monotonic() < end:
            for name in list(self._reserved):
                self.faults.end(name)
            time.sleep(_CYCLE_S)

    def _run(self, injection: Injection) -> None:
        time.sleep(DELAY_MS / 1000)
        kind = injection.kind
        self.record(injection)
        self.faults.begin(kind.name, injection.model, injection.magnitude)
        act: Callable[[Injection], Any] = getattr(self, "_" + kind.name, self._wait)
        try:
            act(injection)
        except Exception as error:  # a fault that cannot be brought about must not look like one that was
            self.failed(kind.name, error)
        finally:
            self.faults.end(kind.name)
            with self._lock:
                self._reserved.discard(kind.name)

    def _wait(self, injection: Injection) -> None:
        """The fault acts at its seam: for a time, or once (then whoever meets it ends it)."""
        if injection.duration_ms:
            self.faults.wait(injection.kind.name, injection.duration_ms / 1000)
        else:
            self.faults.wait(injection.kind.name, _ONCE_S)

    # Process.

    def _sidecar_spin(self, injection: Injection) -> None:
        _keep_lock(injection.magnitude / 1000)

    def _sidecar_native_hang(self, injection: Injection) -> None:
        self._native.usleep(ctypes.c_uint(int(injection.magnitude * 1000)))

    def _sidecar_memory(self, injection: Injection) -> None:
        content = self._files.serving(injection.model).read_bytes() + _LARGE_TAG + os.urandom(8)
        with self._files.version(injection.model) as place:
            ready = self._files.prepare(place, content, len(content) + _LARGE_BYTES - 8)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            with _limited(resource.RLIMIT_AS, pages * resource.getpagesize()):
                ready.rename(place)
                self._wait(injection)

    def _sidecar_files(self, injection: Injection) -> None:
        content = self._files.serving(injection.model).read_bytes()
        with self._files.version(injection.model) as place:
            ready = self._files.prepare(place, content)
            with _limited(resource.RLIMIT_NOFILE, _lowest_free_descriptor()):
                ready.rename(place)
                self._wait(injection)

    # Files.

    def _file_corrupt(self, injection: Injection) -> None:
        with self._files.version(injection.model) as place:
            self._files.write(place, os.urandom(1024))
            self._wait(injection)

    def _file_truncated(self, injection: Injection) -> None:
        content = self._files.cut(injection.model)
        with self._files.version(injection.model) as place:
            self._files.write(place, content)
            self._wait(injection)

    def _file_permissions(self, injection: Injection) -> None:
        content = self._files.serving(injection.model).read_bytes()
        with self._files.version(injection.model) as place:
            ready = self._files.prepare(place, content)
            ready.chmod(0)
            ready.rename(place)
            self._wait(injection)

    def _file_folder(self, injection: Injection) -> None:
        with self._files.version(injection.model) as place:
            place.mkdir()
            self._wait(injection)

    def _file_overwritten(self, injection: Injection) -> None:
        path = self._files.serving(injection.model)
        with self._files.aside(injection.model, f"{path.parent.name}/model.onnx", os.urandom(path.stat().st_size)):
            self._wait(injection)

    def _file_vanished(self, injection: Injection) -> None:
        with self._files.aside(injection.model, self._files.serving(injection.model).parent.name, None):
            self._wait(injection)

    def _config_bad(self, injection: Injection) -> None:
        with self._files.aside(injection.model, "vigil.toml", b"no_such_key = 1\n"):
            self._wait(injection)

    # Log, supervision.

    def _log_deleted(self, injection: Injection) -> None:
        path = self.log_file()
        hidden = path.with_name(".injected." + path.name)
        path.rename(hidden)
        try:
            self._wait(injection)
        finally:
            hidden.rename(path)

    def _supervision_many(self, injection: Injection) -> None:
        end = time.monotonic() + injection.duration_ms / 1000
        while time.monotonic() < end and not self.faults.wait("supervision_many", _CYCLE_S):
            for _ in range(_SIGNS):
                self._indicate("prober")

    def _supervision_order(self, injection: Injection) -> None:
        self._indicate("registry", "loaded")
