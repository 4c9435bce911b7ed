"""Loading and unloading on a client's command: all of it, or nothing changes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from vigil_safety import events_gen as events
from vigil_sidecar.registry.control import ModelControl
from vigil_sidecar.registry.memory import ModelMemory
from vigil_sidecar.registry.options import ModelOptions
from vigil_sidecar.registry.registry import Model, Registry
from vigil_sidecar.registry.version import ModelEvent
from vigil_sidecar.registry.views import refresh_views

__all__ = ["Command", "Commander"]


@dataclass
class Command:
    """A load that is under way, and what to come back to if it fails."""

    name: str
    source: str
    begun: bool = False
    before: str | None = None
    """The source as it was; None: the model was not loaded."""
    memory: ModelMemory | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    done: threading.Event = field(default_factory=threading.Event)
    problem: str = ""


class Commander:
    """``accept`` and ``drop`` may be called from any thread, the rest by the reconciler's only."""

    def __init__(
        self, control: ModelControl, registry: Registry, memory: dict[str, ModelMemory],
        observe: Callable[[ModelEvent], None], forget: Callable[[Model], None],
    ) -> None:  # fmt: skip
        self._control, self._registry, self._memory = control, registry, memory
        self._observe, self._forget = observe, forget
        self._commands: dict[str, Command] = {}
        self._lock = threading.Condition()

    def accept(self, name: str, source: str, timeout_s: float) -> Command | None:
        """Note that a client wants a model loaded, after other loads of it; None when they take longer than this."""
        with self._lock:
            if not self._lock.wait_for(lambda: name not in self._commands, timeout_s):
                self._control.discard(source)
                return None
            return self._commands.setdefault(name, Command(name, source))

    def drop(self, name: str, timeout_s: float) -> bool:
        """Want a model no longer; False when a load of it takes longer than this. Raises ``OSError`` when that cannot be kept."""
        with self._lock:
            if not self._lock.wait_for(lambda: name not in self._commands, timeout_s):
                return False
            before = self._control.source(name)
            if before is None:
                return True  # as it is already: nothing is kept of names that nobody loaded
            self._control.use(name, None)
            try:
                self._control.keep()
            except OSError:
                self._control.use(name, before)
                raise
            self._control.explain(name, "unloaded")
            return True

    def begin(self, name: str) -> None:
        """Before a look: what is there now is noted, and what was asked for counts from here."""
        command = self._commands.get(name)
        if command is None or command.begun:
            return
        model, memory = self._registry.models.get(name), self._memory.get(name)
        command.begun, command.before, command.memory = True, self._control.source(name), copy.deepcopy(memory)
        if model is not None:
            command.options = model.options
        if memory is not None:
            memory.refused.clear()
        self._control.use(name, command.source)

    def conclude(self, name: str) -> None:
        """A look left nothing pending: the end of a load that was asked for."""
        command = self._commands.get(name)
        if command is None or not command.begun:
            return
        problem = self._failure(name)
        if not problem:
            try:
                self._control.keep()
                self._control.explain(name, "")
            except OSError as error:
                problem = f"failed to load '{name}', what was asked for cannot be kept: {error.strerror}"
        if problem:
            self._undo(command, problem)
        with self._lock:
            del self._commands[name]
            self._lock.notify_all()
        command.problem = problem
        command.done.set()

    def _undo(self, command: Command, problem: str) -> None:
        name, model = command.name, self._registry.models.get(command.name)
        self._control.use(name, command.before)
        if command.before is None:
            self._control.explain(name, problem)
            self.release(name)
        elif model is not None and command.memory is not None:
            model.options, self._memory[name] = command.options, command.memory
            if command.memory.view is not None:
                refresh_views(model, command.memory, command.memory.view)
        self._control.sweep()

    def release(self, name: str) -> None:
        """Let go of a model that is not wanted: its versions are retired when their last lease ends."""
        model = self._registry.models.get(name)
        if model is None:
            return
        if model.serving is not None:
            self._observe(ModelEvent(events.MODEL_UNLOADED, name, model.serving.number, model.serving.digest, "a client asked for it"))
        loaded, model.serving, model.loaded = list(model.loaded.values()), None, {}
        self._forget(model)
        for version in loaded:
            version.retire()

    def _failure(self, name: str) -> str:
        """Why a load did not do what was asked, in Triton's words; empty when it did."""
        model, memory = self._registry.models.get(name), self._memory.get(name)
        if model is None or memory is None or memory.view is None or not self._control.folder(name).is_dir():
            return f"failed to load '{name}', failed to poll from model repository"
        view, versions = memory.view, list(memory.view.versions)
        wanted = model.options.policy.keeps(versions) | {n for n in versions if n == view.chosen}
        refused = [n for n in sorted(wanted) if memory.is_refused(view.versions, n)]
        if refused:
            why = " ".join(f"version {n} is at UNAVAILABLE state: {memory.refused[n].reason};" for n in refused)
        elif memory.config_problem:
            why = memory.config_problem
        elif model.serving is None or not wanted:
            why = f"at least one version must be available under the version policy of model '{name}'"
        else:
            return ""
        return f"load failed for model '{name}': {why}"
