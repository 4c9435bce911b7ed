"""Brings versions of files to service: settled, read, through every gate. Used by the reconciler's thread only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from vigil_safety import events_gen as events
from vigil_sidecar.engine.staging import FileSignature, StillWritten, is_written
from vigil_sidecar.errors import CandidateRefused
from vigil_sidecar.registry.loader import Loader
from vigil_sidecar.registry.memory import ModelMemory, Refusal
from vigil_sidecar.registry.options import ModelOptions
from vigil_sidecar.registry.registry import Model
from vigil_sidecar.registry.repository import CONFIG_FILES, FolderView
from vigil_sidecar.registry.version import LoadedVersion, ModelEvent, ModelStage
from vigil_sidecar.registry.views import set_view
from vigil_sidecar.settings_gen import Settings

__all__ = ["RETRY_S", "Bringer"]

RETRY_S = 0.05
"""After so long a model is looked at again whose files are still being written."""
_EMPTY_S = 5.0
"""An empty file that stays so is refused, not waited for."""


class Bringer:
    """What the reconciler and commands of clients have in common."""

    def __init__(
        self, settings: Settings, loader: Loader, read_options: Callable[[Path, str], ModelOptions],
        observe: Callable[[ModelEvent], None], mark: Callable[..., None], started: threading.Event,
    ) -> None:  # fmt: skip
        """``mark(name, delay_s=...)`` has a model looked at again; ``started`` is set once every model was looked at."""
        self._settings, self._loader, self._read_options = settings, loader, read_options
        self._observe, self._mark, self._started = observe, mark, started

    def again(self, name: str) -> None:
        """Have a model looked at again soon."""
        self._mark(name, delay_s=RETRY_S)

    def config_settled(self, folder: Path, memory: ModelMemory, view: FolderView) -> bool:
        """Whether the model's files of settings keep still: a half-written one must not take effect."""
        if memory.config == view.config:
            return True
        now, settle_s = time.monotonic(), self._settings.models_settle_ms / 1000
        seen, since = memory.config_seen
        if seen != view.config:
            memory.config_seen, since = (view.config, now), now
        written = max((s.mtime_ns for s in view.config if s is not None), default=0) / 1e9
        cold = not self._started.is_set() and time.time() - written > settle_s
        return (cold or now - since >= settle_s) and not any(is_written(folder / n) for n in CONFIG_FILES)

    def read_config(self, model: Model, memory: ModelMemory, folder: Path, view: FolderView) -> None:
        """Take the options that the files say, or note why they cannot be taken."""
        if memory.config == view.config:
            return
        first = memory.config is None
        try:
            model.options, memory.config_problem = self._read_options(folder, model.name), ""
        except CandidateRefused as error:
            memory.config_problem = str(error)
        except Exception as error:  # a parser gave up: never serve with options that nobody wrote
            memory.config_problem = f"config.pbtxt or vigil.toml cannot be understood: {type(error).__name__}"
        memory.config = view.config
        if memory.config_problem:
            memory.read.clear()
            return
        memory.refused.clear()
        if not first:
            memory.read.clear()

    def _settled(self, memory: ModelMemory, number: int, signature: FileSignature) -> bool:
        now = time.monotonic()
        seen, since = memory.first_seen.get(number, (None, now))
        if seen != signature:
            memory.first_seen[number], since = (signature, now), now
        settle_s = self._settings.models_settle_ms / 1000
        cold = not self._started.is_set() and time.time() - signature.mtime_ns / 1e9 > settle_s
        return cold or now - since >= settle_s

    def load(
        self, model: Model, memory: ModelMemory, view: FolderView, number: int, folder: Path, real: Model | None = None
    ) -> LoadedVersion | None:
        """Load a version of ``folder`` into ``model``; None when it must wait or was refused.

        ``real`` is the model that callers see where ``model`` is one made aside: it is not changed.
        """
        serving = (real or model).serving
        signature, loaded = view.versions[number], model.loaded.get(number)
        if loaded is not None and memory.read.get(number) == signature:
            return loaded
        memory.pending.add(number)
        if not self._settled(memory, number, signature):
            self._mark(model.name, delay_s=RETRY_S)
            return None
        set_view(model, number, "", "loading", "", signature.size)
        digest = ""
        try:
            if memory.config_problem:
                raise CandidateRefused(memory.config_problem)
            staged = self._loader.stage(model.name, number, folder / str(number) / "model.onnx")
            try:
                digest = staged.digest
                if loaded is not None and loaded.digest == digest and loaded.options == model.options:
                    memory.read[number] = signature
                    memory.pending.discard(number)
                    self._loader.shown(ModelStage("STAGE_LOADED", model.name, number, digest, "the file is as it was"))
                    return loaded
                known = memory.refused.get(number)
                if known is not None and known.digest == digest:
                    memory.refused[number] = known._replace(signature=signature)
                    memory.pending.discard(number)
                    self._loader.shown(ModelStage("STAGE_REFUSED", model.name, number, digest, known.reason))
                    return None
                version = self._loader.load(model.name, number, staged, model.options, serving)
            finally:
                staged.close()
        except StillWritten:
            since = memory.first_seen[number][1]
            if signature.size == 0 and time.monotonic() - since > _EMPTY_S:
                memory.pending.discard(number)
                memory.refused[number] = Refusal(signature, "", "model.onnx is empty")
                self._observe(ModelEvent(events.VERSION_REFUSED, model.name, number, "", "model.onnx is empty"))
                return None
            if signature.size > 0:
                memory.first_seen.pop(number, None)
            self._mark(model.name, delay_s=RETRY_S)
            return None
        except CandidateRefused as error:
            memory.pending.discard(number)
            memory.refused[number] = Refusal(signature, digest, str(error))
            self._observe(ModelEvent(events.VERSION_REFUSED, model.name, number, digest, str(error)))
            return None
        memory.read[number] = signature
        memory.pending.discard(number)
        memory.refused.pop(number, None)
        self._observe(ModelEvent(events.VERSION_LOADED, model.name, number, digest, "passed every gate"))
        model.loaded = {**model.loaded, number: version}
        if loaded is None or (real is not None and loaded in real.loaded.values()):
            return version
        if model.serving is loaded:
            self.switch(model, version)  # retires the old one, even if its record fails now and is made later
        else:
            loaded.retire()
        return version

    def switch(self, model: Model, version: LoadedVersion) -> None:
        """Let a version serve; raises when that cannot be recorded, and then it does not."""
        old = model.serving
        self._observe(
            ModelEvent(
                events.VERSION_SWITCHED, model.name, version.number, version.digest, "",
                old.number if old else 0, old.digest if old else "", model.generation + 1,
            )
        )  # fmt: skip
        model.serving = version
        model.generation += 1
        if old is not None and old not in model.loaded.values():
            old.retire()
