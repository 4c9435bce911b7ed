"""Who decides which models are loaded: the files, or clients (Triton's model control modes).

What clients asked for is kept in the data folder, so that a restarted sidecar serves
what it served: ``control/models.json`` names the models, and for each the folder that
overrides the repository's, if a client gave one.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["ModelControl"]

_REASONS_MAX = 4096
_REPOSITORY = ""
"""In place of a folder: the model as it lies in the repository."""


class ModelControl:
    """Which models are wanted, and from which folder.

    Modes: ``watch`` (file notification), ``poll`` (a look each so often), ``none`` (one
    look at the start), ``explicit`` (models that clients load). The reconciler's thread
    changes it; any thread may read.
    """

    def __init__(self, root: Path, data: Path, mode: str = "watch", at_start: Sequence[str] = ()) -> None:
        """``at_start`` are models that ``explicit`` loads without being asked; ``*`` is all."""
        self.root, self.mode = root, mode
        self.explicit, self.live = mode == "explicit", mode in ("watch", "poll")
        self.reasons: dict[str, str] = {}
        """Why a model is not loaded that clients loaded or tried to."""
        self._data, self._at_start = data, tuple(at_start)
        self._wanted: dict[str, str | None] = {}
        """By model its folder, or None where a client unloaded it."""
        self._made: set[str | None] = set()
        """Folders that are made and not in use yet."""
        self._lock = threading.Lock()
        if self.explicit:
            self._wanted = self._read()
            self.sweep()

    def _read(self) -> dict[str, str | None]:
        try:
            found = json.loads((self._data / "models.json").read_text())["models"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # never written, or by no one that we know: then what the settings say counts
        if not isinstance(found, dict):
            return {}
        return {str(n): f for n, f in found.items() if f is None or (isinstance(f, str) and "/" not in f)}

    def sweep(self) -> None:
        """Delete folders that nothing names: what was overridden before, loads that were not finished."""
        with self._lock:
            used = {*self._wanted.values(), *self._made}
            gone = [f for f in self._data.glob("*.d") if f.name not in used]
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)

    def explain(self, name: str, reason: str) -> None:
        """Note why a model is not loaded; an empty reason forgets it. At most 4,096 are kept, the latest."""
        with self._lock:
            reasons = {n: r for n, r in self.reasons.items() if n != name}
            if reason:
                reasons[name] = reason
            self.reasons = dict(list(reasons.items())[-_REASONS_MAX:])

    def wanted(self, name: str) -> bool:
        """Whether the model may be loaded."""
        if not self.explicit:
            return True
        if name in self._wanted:
            return self._wanted[name] is not None
        return name in self._at_start or "*" in self._at_start

    def known(self) -> list[str]:
        """Models that clients loaded and did not unload."""
        return sorted(n for n, f in self._wanted.copy().items() if f is not None)

    def source(self, name: str) -> str | None:
        """What ``use`` takes to come back to the present; None where the model is not wanted."""
        return (self._wanted.get(name) or _REPOSITORY) if self.wanted(name) else None

    def folder(self, name: str) -> Path:
        """Where the model's files are."""
        override = self._wanted.get(name)
        return self._data / override if override else self.root / name

    def use(self, name: str, source: str | None) -> None:
        """Let the model be as ``source`` says from now on, without keeping it over a restart."""
        with self._lock:
            self._wanted = {**self._wanted, name: source}
            self._made.discard(source)

    def keep(self) -> None:
        """Make the present state last. Raises ``OSError``."""
        self._data.mkdir(parents=True, exist_ok=True)
        temporary = self._data / "models.json.partial"
        with temporary.open("w") as file:
            json.dump({"models": self._wanted}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._data / "models.json")
        self.sweep()

    def override(self, name: str, config: str, files: Mapping[str, bytes]) -> str:
        """Make a folder of a configuration and, where given, files in place of the repository's.

        The model's vigil.toml stays the repository's: it holds the gates, which are the integrator's. Returns
        the source for ``use``. Raises ``OSError``.
        """
        self._data.mkdir(parents=True, exist_ok=True)
        with self._lock:
            taken = [f.name.split(".")[-2] for f in self._data.glob(f"{name}.*.d")]
            folder = self._data / f"{name}.{1 + max((int(n) for n in taken if n.isdigit()), default=0)}.d"
            folder.mkdir()
            self._made.add(folder.name)
        try:
            (folder / "config.pbtxt").write_text(config)
            self._take_from((self.root / name).resolve(), folder, whole=not files)
            for path, content in files.items():
                (folder / path).parent.mkdir(exist_ok=True)
                with (folder / path).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError:
            self.discard(folder.name)
            raise
        return folder.name

    def discard(self, source: str) -> None:
        """Delete a folder that ``override`` made and nothing uses."""
        with self._lock:
            self._made.discard(source)
        self.sweep()

    @staticmethod
    def _take_from(repository: Path, folder: Path, whole: bool) -> None:
        if not repository.is_dir():
            return
        for entry in os.scandir(repository):
            if entry.name == "config.pbtxt" or entry.name.startswith(".") or not (whole or entry.name == "vigil.toml"):
                continue
            target = os.readlink(entry.path) if entry.name == "latest" and entry.is_symlink() else entry.path
            (folder / entry.name).symlink_to(target)
