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

from vigil_sidecar.errors import SettingsError

__all__ = ["ModelControl"]

_REASONS_MAX = 4096
_REPOSITORY = ""
"""In place of a folder: the model as it lies in the repository."""


def _sync(folder: Path) -> None:
    """Make a folder's entries last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class ModelControl:
    """Which models are wanted, and from which folder.

    Modes: ``watch`` (file notification), ``poll`` (a look each so often), ``none`` (one
    look at the start), ``explicit`` (models that clients load). ``commit`` and ``restore``
    are the reconciler's thread's; any thread may call the rest.
    """

    def __init__(self, root: Path, data: Path, mode: str = "watch", at_start: Sequence[str] = ()) -> None:
        """``at_start`` are models that ``explicit`` loads without being asked; ``*`` is all.

        Raises ``SettingsError`` when what clients decided before cannot be read.
        """
        self.root, self.mode = root, mode
        self.explicit, self.live = mode == "explicit", mode in ("watch", "poll")
        self.reasons: dict[str, str] = {}
        """Why a model is not loaded that clients loaded or tried to."""
        self._data, self._at_start = data, tuple(at_start)
        self._entries: dict[str, str | None] = {}
        """By model its folder ("" for the repository's), or None where a client unloaded it."""
        self._made: set[str | None] = set()
        """Folders that are made and not in use yet."""
        self._lock = threading.Lock()
        if self.explicit:
            self._entries = self._read()
            self._sweep()

    def _read(self) -> dict[str, str | None]:
        path = self._data / "models.json"
        try:
            found = json.loads(path.read_text())["models"]
            if all(f is None or (isinstance(f, str) and "/" not in f) for f in found.values()):
                return dict(found)
            why = "it names a folder that cannot be one"
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"{type(error).__name__}"
        raise SettingsError(f"{path} says which models clients loaded and cannot be read ({why}); move it away to start without it")

    def _sweep(self) -> None:
        """Delete folders that nothing names: what was overridden before, loads that were not finished."""
        with self._lock:
            used = {*self._entries.values(), *self._made}
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
        if name in self._entries:
            return self._entries[name] is not None
        return name in self._at_start or "*" in self._at_start

    def known(self) -> list[str]:
        """Models that clients loaded and did not unload."""
        return sorted(n for n, f in self._entries.items() if f is not None)

    def place(self, name: str, source: str) -> Path:
        """Where a model's files are, of a source: a folder that ``override`` made, or "" for the repository's."""
        return self._data / source if source else self.root / name

    def folder(self, name: str) -> Path:
        """Where the model's files are."""
        return self.place(name, self._entries.get(name) or _REPOSITORY)

    def entry(self, name: str) -> tuple[str | None, ...]:
        """What is kept of a model, for ``restore``."""
        return (self._entries[name],) if name in self._entries else ()

    def commit(self, name: str, source: str | None) -> None:
        """A model is as ``source`` says from now on, also after a restart. Raises ``OSError``, and then nothing changed."""
        self._keep({**self._entries, name: source})
        with self._lock:
            self._made.discard(source)
        self._sweep()

    def restore(self, name: str, entry: tuple[str | None, ...]) -> None:
        """Take a commit back, on the disk too if that can be."""
        entries = {n: f for n, f in self._entries.items() if n != name} | ({name: entry[0]} if entry else {})
        try:
            self._keep(entries)
        except OSError:
            self._entries = entries

    def _keep(self, entries: dict[str, str | None]) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        temporary = self._data / "models.json.partial"
        _write(temporary, json.dumps({"models": entries}, indent=1).encode())
        temporary.rename(self._data / "models.json")
        _sync(self._data)
        self._entries = entries

    def override(self, name: str, config: str, files: Mapping[str, bytes]) -> str:
        """Make a folder of a configuration and, where given, files in place of the repository's.

        The model's vigil.toml stays the repository's: it holds the gates, which are the integrator's. Returns
        the source for ``commit``, which is deleted by ``discard``. Raises ``OSError``.
        """
        self._data.mkdir(parents=True, exist_ok=True)
        with self._lock:
            taken = [f.name.split(".")[-2] for f in self._data.glob(f"{name}.*.d")]
            folder = self._data / f"{name}.{1 + max((int(n) for n in taken if n.isdigit()), default=0)}.d"
            folder.mkdir()
            self._made.add(folder.name)
        try:
            _write(folder / "config.pbtxt", config.encode())
            self._take_from((self.root / name).resolve(), folder, files)
            for path, content in files.items():
                (folder / path).parent.mkdir(exist_ok=True)
                _write(folder / path, content)
            for made in (*(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()), folder, self._data):
                _sync(made)
        except OSError:
            self.discard(folder.name)
            raise
        return folder.name

    def discard(self, source: str | None) -> None:
        """Delete a folder that ``override`` made and nothing uses."""
        with self._lock:
            self._made.discard(source)
        self._sweep()

    @staticmethod
    def _take_from(repository: Path, folder: Path, files: Mapping[str, bytes]) -> None:
        if not repository.is_dir():
            return
        given = {path.split("/")[0] for path in files}
        for entry in os.scandir(repository):
            version = entry.name == "latest" or entry.name.isdigit()
            if entry.name in {"config.pbtxt", *given} or entry.name.startswith(".") or (files and version):
                continue
            target = os.readlink(entry.path) if entry.name == "latest" and entry.is_symlink() else entry.path
            (folder / entry.name).symlink_to(target)
