"""Makes what is loaded follow what the files say. The files are the one truth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from vigil_safety import events_gen as events
from vigil_safety.monitor import Monitor
from vigil_sidecar.registry.bringer import RETRY_S, Bringer
from vigil_sidecar.registry.commands import Commander
from vigil_sidecar.registry.control import ModelControl
from vigil_sidecar.registry.judgement import judge
from vigil_sidecar.registry.loader import Loader
from vigil_sidecar.registry.memory import ModelMemory
from vigil_sidecar.registry.options import ModelOptions
from vigil_sidecar.registry.registry import Model, Registry
from vigil_sidecar.registry.repository import MODEL_NAME, FolderView, list_models, look
from vigil_sidecar.registry.version import LoadedVersion, ModelEvent
from vigil_sidecar.registry.views import refresh_views
from vigil_sidecar.settings_gen import Settings

__all__ = ["Reconciler"]

_COLD_S = 5.0
"""A start waits this long at most for files that are still being written or empty."""


class Reconciler:
    """One thread that owns all changes of the registry.

    ``mark``, ``load`` and ``unload`` may be called from any thread. A look at a model
    never waits for a file: what is still being written is looked at again later.
    Where ``control`` is not live, a model that was looked at to its end is looked at
    again only when someone asked for it.
    """

    def __init__(
        self, control: ModelControl, settings: Settings, registry: Registry, loader: Loader, monitor: Monitor,
        read_options: Callable[[Path, str], ModelOptions], observe: Callable[[ModelEvent], None],
        failed: Callable[[str, Exception], None],
    ) -> None:  # fmt: skip
        self.control, self._settings, self._registry = control, settings, registry
        self._monitor, self._observe, self._failed = monitor, observe, failed
        self._memory: dict[str, ModelMemory] = {}
        self._due: dict[str, float] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._ignored: set[str] = set()
        self._still: set[str] = set()
        self._looks = 0
        self._cold_until = time.monotonic() + _COLD_S
        self.first_pass = threading.Event()
        self._bringer = Bringer(settings, loader, read_options, observe, self.mark, self.first_pass)
        self.problems: dict[str, str] = {}
        """By model, what keeps it from recovering; empty when nothing does."""
        self._commander = Commander(control, registry, self._bringer, monitor, self._memory, self.problems, observe, self._forget)
        self.passed: Callable[[str], None] = lambda checkpoint: None
        """Hears of the checkpoints of its supervision: look, load, loaded."""
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)

    def start(self) -> None:
        """Start the thread; ``first_pass`` is set once every model present was looked at."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def mark(self, name: str, forget_refusals: bool = False, delay_s: float = 0.0, asked: bool = False) -> None:
        """Look at a model soon; ``asked``: even if files do not decide (``models.control``)."""
        with self._wake:
            if asked:
                self._still.discard(name)
            if forget_refusals and name in self._memory:
                self._memory[name].refused.clear()
            due = time.monotonic() + delay_s
            self._due[name] = min(due, self._due.get(name, due))
            self._wake.notify()

    def mark_all(self) -> None:
        """Look at every model soon."""
        for name in {*self._names(), *self._registry.models}:
            self.mark(name)

    def command(self, name: str, source: str | None, timeout_s: float) -> str | None:
        """Load a model as ``source`` says (``ModelControl``), or unload it where that is None.

        Returns why it failed, "" when it is done, None when it is not done yet.
        """
        end_s = time.monotonic() + timeout_s
        command = self._commander.accept(name, source, end_s)
        if command is None:
            return None
        self.mark(name, asked=True)
        return command.problem if command.done.wait(max(0.0, end_s - time.monotonic()) + RETRY_S) else None

    def _names(self) -> list[str]:
        """Names of model folders; what cannot be one is told once."""
        names, ignored = list_models(self.control.root, self._settings.models_count_max)
        for name, reason in ignored:
            if name not in self._ignored and len(self._ignored) < self._settings.models_count_max:
                self._ignored.add(name)
                self._observe(ModelEvent(events.REPOSITORY_ENTRY_IGNORED, name, reason=reason))
        return [n for n in dict.fromkeys((*names, *self.control.known())) if self.control.wanted(n)]

    def wait_looked(self, name: str, timeout_s: float) -> bool:
        """Wait until a look at the model, started after this call, left nothing pending."""
        self.mark(name)
        end = time.monotonic() + timeout_s
        with self._wake:
            start = self._looks
            while time.monotonic() < end:
                if self._looks >= start + 2 and name not in self._due:
                    return True
                self._wake.wait(0.02)
        return False

    def _run(self) -> None:
        self.mark_all()
        interval_s = self._settings.models_poll_interval_s if self.control.mode == "poll" else self._settings.models_rescan_interval_s
        rescan = time.monotonic() + interval_s
        while True:
            self.passed("look")
            with self._wake:
                if self._stopping:
                    return
                now = time.monotonic()
                ready = [n for n, due in self._due.items() if due <= now]
                if not ready:
                    self._looks += 1
                    if not self.first_pass.is_set() and (not self._due or now > self._cold_until):
                        self._registry.starting = False
                        self.first_pass.set()
                    next_due = min([*self._due.values(), rescan])
                    self._wake.wait(max(0.001, min(next_due - now, 0.5)))
                    now = time.monotonic()
                for name in ready:
                    del self._due[name]
            for name in ready:
                self.passed("load")  # it may copy, hash and load, each for as long as the file is large
                try:
                    self._look_to_its_end(name)
                except Exception as error:  # one model's trouble must not stop the others
                    self._failed(name, error)
                    self.mark(name, delay_s=1.0)
                self.passed("loaded")
            with self._wake:
                self._looks += bool(ready)
            if now >= rescan:
                rescan = now + interval_s
                if self.control.live:
                    self.mark_all()

    # One look at one model.

    def _look_to_its_end(self, name: str) -> None:
        if (command := self._commander.current(name)) is not None:
            self._commander.obey(command, self._failed)
        elif self.control.live:
            self._look(name)
            return
        elif name in self._still:
            return
        elif self.control.wanted(name):
            self._look(name)
        with self._wake:
            if name not in self._due:  # else something is pending, or was asked for meanwhile
                self._still.add(name)

    def _look(self, name: str) -> None:
        if name not in self._registry.models and not self._admissible(name):
            self._names()
            return
        memory = self._memory.setdefault(name, ModelMemory())
        folder = self.control.folder(name)
        try:
            view = look(folder)
        except FileNotFoundError:
            view = FolderView({}, None, "", (None, None), ())
            if name not in self._registry.models:
                return
        except OSError as error:  # what cannot be read is not gone: nothing changes but that it is told
            self._tell_once(memory, name, f"the model's folder cannot be read: {error.strerror}")
            return
        memory.view = view
        model = self._registry.models.get(name) or Model(name)
        if name not in self._registry.models:
            self._registry.models = {**self._registry.models, name: model}
        if view.versions:
            self._monitor.add(f"model/{name}")  # an empty folder is no model yet, and promises nothing
        if model.serving is None and not folder.is_dir():
            self._forget(model)
            return
        memory.told.intersection_update(view.ignored)  # what is over may come again, and is told again
        for entry in view.ignored:
            self._tell_once(memory, name, entry)
        if not self._bringer.config_settled(folder, memory, view):
            self.mark(name, delay_s=RETRY_S)
            if model.serving is not None or not view.versions:
                return
        self._bringer.read_config(model, memory, folder, view)
        self._tell_deleted(model, memory, view)
        memory.pending.clear()
        wanted = self._wanted(model, memory, view)
        if wanted is not None:
            self._try(model, memory, view, wanted)
        self._keep_by_policy(model, memory, view)
        self.problems[model.name] = judge(model, memory, view, self._monitor, self._observe)
        refresh_views(model, memory, view)
        self._registry.notify()

    def _admissible(self, name: str) -> bool:
        """Whether a folder of this name may be a model (``list_models`` tells the reasons)."""
        return (
            MODEL_NAME.fullmatch(name) is not None
            and self.control.folder(name).is_dir()
            and len(self._registry.models) < self._settings.models_count_max
        )

    def _forget(self, model: Model) -> None:
        """A model whose folder is gone and which serves nothing is no model."""
        self._registry.models = {n: m for n, m in self._registry.models.items() if n != model.name}
        self._memory.pop(model.name, None)
        self._monitor.remove(f"model/{model.name}")
        self.problems.pop(model.name, None)
        self._registry.notify()

    def _tell_once(self, memory: ModelMemory, name: str, reason: str) -> None:
        if reason not in memory.told and len(memory.told) < 1000:
            memory.told.add(reason)
            self._observe(ModelEvent(events.REPOSITORY_ENTRY_IGNORED, name, reason=reason))

    def _tell_deleted(self, model: Model, memory: ModelMemory, view: FolderView) -> None:
        serving = model.serving
        if serving is None or serving.number in view.versions:
            memory.deleted_told = 0
        elif memory.deleted_told != serving.number:
            memory.deleted_told = serving.number
            self._observe(ModelEvent(events.SERVING_FILES_DELETED, model.name, serving.number, serving.digest, "goes on serving"))

    def _wanted(self, model: Model, memory: ModelMemory, view: FolderView) -> int | None:
        """The version that should serve and does not yet; None when all is as it should be."""
        serving = model.serving
        good = [n for n in view.versions if not memory.is_refused(view.versions, n)]
        if model.options.policy.kind == "specific":
            good = [n for n in good if n in model.options.policy.versions]
        if view.chosen is not None and view.chosen in good:
            return view.chosen
        if serving is None:
            return max(good, default=None)
        if view.chosen is not None or view.chosen_problem:
            return None
        return max((n for n in good if n >= serving.number), default=None)

    def _try(self, model: Model, memory: ModelMemory, view: FolderView, number: int) -> LoadedVersion | None:
        """Bring a version to service; returns it, or None when it must wait or was refused."""
        version = self._bringer.load(model, memory, view, number, self.control.folder(model.name))
        if version is not None and model.serving is not version:
            self._bringer.switch(model, version)
        elif version is None and memory.is_refused(view.versions, number) and model.serving is None:
            self.mark(model.name)  # the next best one
        return version

    def _keep_by_policy(self, model: Model, memory: ModelMemory, view: FolderView) -> None:
        """Load what the policy keeps beside the serving version, and retire the rest."""
        if model.serving is None:
            return
        keep = model.options.policy.keeps(list(view.versions)) if model.options.policy != ModelOptions().policy else set()
        for number in sorted(keep):
            if number != model.serving.number and not memory.is_refused(view.versions, number):
                self._bringer.load(model, memory, view, number, self.control.folder(model.name))
        keep.add(model.serving.number)
        for number, version in list(model.loaded.items()):
            if number not in keep:
                model.loaded = {n: v for n, v in model.loaded.items() if n != number}
                memory.read.pop(number, None)
                version.retire()
