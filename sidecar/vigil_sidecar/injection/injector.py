"""Brings about faults in this sidecar, where the setting ``safety.injection`` allows it."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
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
from vigil_sidecar.registry.repository import MODEL_NAME
from vigil_sidecar.registry.version import Runnable
from vigil_sidecar.supervision import Supervision

__all__ = ["DELAY_MS", "Injection", "Injector"]

DELAY_MS = 50
"""Between the reply to a caller and the fault: the reply must have left."""
_CYCLE_S = 0.05
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


class Injector:
    """Owns the active faults and the seams. ``inject`` may be called from any thread."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self.faults = Faults()
        self.disk = FaultyDisk(self.faults)
        self.record: Callable[[Injection], None] = lambda injection: None
        """Writes the record with which a fault begins."""
        self.failed: Callable[[str, Exception], None] = lambda kind, error: None
        """Hears of a fault that could not be brought about, or not be undone."""
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
        if self.faults.of(name) is not None:
            raise _refuse("kind", f"a fault {name} acts already")
        threading.Thread(target=self._run, args=(injection,), name=f"inject-{name}", daemon=True).start()
        return injection

    def _run(self, injection: Injection) -> None:
        time.sleep(DELAY_MS / 1000)
        kind = injection.kind
        self.record(injection)
        if not self.faults.begin(kind.name, injection.model, injection.magnitude):
            return
        act: Callable[[Injection], Any] = getattr(self, "_" + kind.name, self._wait)
        try:
            act(injection)
        except Exception as error:  # a fault that cannot be brought about must not look like one that was
            self.failed(kind.name, error)
        finally:
            self.faults.end(kind.name)

    def _wait(self, injection: Injection) -> None:
        """The fault acts at its seam: for a time, or once (then whoever meets it ends it)."""
        if injection.duration_ms:
            time.sleep(injection.duration_ms / 1000)
        elif fault := self.faults.of(injection.kind.name):
            fault.over.wait(_ONCE_S)

    # Process.

    def _sidecar_spin(self, injection: Injection) -> None:
        _keep_lock(injection.magnitude / 1000)

    def _sidecar_native_hang(self, injection: Injection) -> None:
        self._native.usleep(ctypes.c_uint(int(injection.magnitude * 1000)))

    def _sidecar_memory(self, injection: Injection) -> None:
        source = self._serving_file(injection.model)
        with self._another_version(injection.model) as place:
            partial = place.with_suffix(".new")
            partial.write_bytes(source.read_bytes() + _LARGE_TAG + os.urandom(8))
            os.truncate(partial, partial.stat().st_size + _LARGE_BYTES - 8)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            with _limited(resource.RLIMIT_AS, pages * resource.getpagesize()):
                partial.rename(place)
                self._wait(injection)

    def _sidecar_files(self, injection: Injection) -> None:
        source = self._serving_file(injection.model)
        with self._another_version(injection.model) as place:
            shutil.copyfile(source, place.with_suffix(".new"))
            with _limited(resource.RLIMIT_NOFILE, _lowest_free_descriptor()):
                place.with_suffix(".new").rename(place)
                self._wait(injection)

    # Files.

    def _serving_file(self, model: str) -> Path:
        folder = self._models / model
        latest = folder / "latest"
        if latest.exists():
            return latest.resolve() / "model.onnx"
        return max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)) / "model.onnx"

    @contextmanager
    def _another_version(self, model: str) -> Iterator[Path]:
        """The place of the file of a version that is not there yet; its folder is gone again at the end."""
        folder = self._models / model
        number = max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) + 1
        place = folder / str(number)
        place.mkdir()
        try:
            yield place / "model.onnx"
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @staticmethod
    def _appear(place: Path, source: Path, size: int | None = None) -> None:
        """Let a file appear at once, whole or cut."""
        partial = place.with_suffix(".new")
        partial.write_bytes(source.read_bytes()[:size])
        partial.rename(place)

    def _file_corrupt(self, injection: Injection) -> None:
        with self._another_version(injection.model) as place:
            partial = place.with_suffix(".new")
            partial.write_bytes(os.urandom(1024))
            partial.rename(place)
            self._wait(injection)

    def _file_truncated(self, injection: Injection) -> None:
        source = self._serving_file(injection.model)
        with self._another_version(injection.model) as place:
            self._appear(place, source, random.randint(1, source.stat().st_size * 3 // 4))
            self._wait(injection)

    def _file_permissions(self, injection: Injection) -> None:
        source = self._serving_file(injection.model)
        with self._another_version(injection.model) as place:
            partial = place.with_suffix(".new")
            shutil.copyfile(source, partial)
            partial.chmod(0)
            partial.rename(place)
            self._wait(injection)

    def _file_folder(self, injection: Injection) -> None:
        with self._another_version(injection.model) as place:
            place.mkdir()
            self._wait(injection)

    def _file_overwritten(self, injection: Injection) -> None:
        path = self._serving_file(injection.model)
        before = path.read_bytes()
        try:
            path.write_bytes(os.urandom(len(before)))
            self._wait(injection)
        finally:
            path.write_bytes(before)

    def _file_vanished(self, injection: Injection) -> None:
        folder = self._serving_file(injection.model).parent
        hidden = folder.with_name(f".{folder.name}.hidden")
        folder.rename(hidden)
        try:
            self._wait(injection)
        finally:
            hidden.rename(folder)

    def _config_bad(self, injection: Injection) -> None:
        path = self._models / injection.model / "vigil.toml"
        before = path.read_bytes() if path.exists() else None
        try:
            path.write_text("no_such_key = 1\n")
            self._wait(injection)
        finally:
            if before is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(before)

    # Log, supervision.

    def _log_deleted(self, injection: Injection) -> None:
        path = self.log_file()
        hidden = path.with_name("." + path.name)
        path.rename(hidden)
        try:
            self._wait(injection)
        finally:
            hidden.rename(path)

    def _supervision_many(self, injection: Injection) -> None:
        end = time.monotonic() + injection.duration_ms / 1000
        while time.monotonic() < end:
            for _ in range(_SIGNS):
                self._indicate("prober")
            time.sleep(_CYCLE_S)

    def _supervision_order(self, injection: Injection) -> None:
        self._indicate("registry", "loaded")
