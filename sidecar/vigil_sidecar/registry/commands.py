"""Loading and unloading on a client's command: made aside, then all of it takes effect, or nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vigil_safety import events_gen as events
from vigil_safety.monitor import Monitor
from vigil_sidecar.registry.bringer import Bringer
from vigil_sidecar.registry.control import ModelControl
from vigil_sidecar.registry.judgement import judge
from vigil_sidecar.registry.memory import ModelMemory
from vigil_sidecar.registry.registry import Model, Registry
from vigil_sidecar.registry.repository import FolderView, look
from vigil_sidecar.registry.version import LoadedVersion, ModelEvent
from vigil_sidecar.registry.views import refresh_views

__all__ = ["Command", "Commander"]


@dataclass
class Command:
    """A load, or an unload where ``source`` is None, that is under way. ``aside`` is the model as it will be."""

    name: str
    source: str | None
    end_s: float
    aside: Model
    memory: ModelMemory = field(default_factory=ModelMemory)
    done: threading.Event = field(default_factory=threading.Event)
    problem: str = ""

    def expired(self) -> bool:
        """Whether what it waits for has had its time."""
        return time.monotonic() > self.end_s


class Commander:
    """One command a model at a time. ``accept`` may be called from any thread, the rest by the reconciler's only."""

    def __init__(
        self, control: ModelControl, registry: Registry, bringer: Bringer, monitor: Monitor, memory: dict[str, ModelMemory],
        problems: dict[str, str], observe: Callable[[ModelEvent], None], forget: Callable[[Model], None],
    ) -> None:  # fmt: skip
        """``memory`` and ``problems`` are the reconciler's; ``forget`` takes a model out of the registry."""
        self._control, self._registry, self._bringer, self._monitor = control, registry, bringer, monitor
        self._memory, self._problems, self._observe, self._forget = memory, problems, observe, forget
        self._commands: dict[str, Command] = {}
        self._lock = threading.Condition()

    def accept(self, name: str, source: str | None, end_s: float) -> Command | None:
        """Note what a client wants, after other commands for the model; None when they take until ``end_s`` (monotonic)."""
        with self._lock:
            if not self._lock.wait_for(lambda: name not in self._commands, max(0.0, end_s - time.monotonic())):
                self._control.discard(source)
                return None
            return self._commands.setdefault(name, Command(name, source, end_s, Model(name)))

    def current(self, name: str) -> Command | None:
        """The command for a model, if there is one."""
        return self._commands.get(name)

    def end(self, command: Command, problem: str) -> None:
        """Tell whoever waits; after a failed load, what was made for it goes."""
        name, model = command.name, self._registry.models.get(command.name)
        if problem:
            kept = list(model.loaded.values()) if model is not None else []
            for version in command.aside.loaded.values():
                if version not in kept:
                    version.retire()
            self._control.discard(command.source)
            if model is None or model.serving is None:
                self._control.explain(name, problem)
        with self._lock:
            self._commands.pop(name, None)
            self._lock.notify_all()
        command.problem = problem
        command.done.set()

    def unloaded(self, model: Model) -> list[LoadedVersion]:
        """Take everything out of a model; returns what is to be retired once nobody can find it."""
        if model.serving is not None:
            reason = "a client asked for it"
            self._observe(ModelEvent(events.MODEL_UNLOADED, model.name, model.serving.number, model.serving.digest, reason))
        loaded, model.serving, model.loaded = list(model.loaded.values()), None, {}
        return loaded

    def obey(self, command: Command, failed: Callable[[str, Exception], None]) -> None:
        """Take a command a step further; whatever happens, it ends, or the model is looked at again."""
        try:
            problem = self._unload(command) if command.source is None else self._make(command)
        except Exception as error:
            failed(command.name, error)
            problem = f"failed to {'unload' if command.source is None else 'load'} '{command.name}': {type(error).__name__}"
        if problem is None:
            self._bringer.again(command.name)
        else:
            self.end(command, problem)

    def _unload(self, command: Command) -> str:
        name, model = command.name, self._registry.models.get(command.name)
        if not self._control.wanted(name) and model is None:
            return ""
        try:
            self._control.commit(name, None)
        except OSError as error:
            return f"failed to unload '{name}', that cannot be kept: {error.strerror}"
        self._control.explain(name, "unloaded")
        if model is not None:
            retired = self.unloaded(model)
            self._forget(model)
            for version in retired:
                version.retire()
        return ""

    def _make(self, command: Command) -> str | None:
        """Load aside what a command wants, and let it take effect; None while files are not settled."""
        name, aside, memory = command.name, command.aside, command.memory
        folder, model = self._control.place(name, command.source or ""), self._registry.models.get(name)
        try:
            view = memory.view = look(folder)
        except FileNotFoundError:
            return f"failed to load '{name}', failed to poll from model repository"
        except OSError as error:
            return f"failed to load '{name}', its folder cannot be read: {error.strerror}"
        if not self._bringer.config_settled(folder, memory, view):
            return f"load failed for model '{name}': its files are still being written" if command.expired() else None
        if model is not None and not aside.loaded:
            aside.loaded = dict(model.loaded)
        self._bringer.read_config(aside, memory, folder, view)
        memory.pending.clear()
        for number in sorted(wanted_versions(aside, view)):
            if not memory.is_refused(view.versions, number):
                self._bringer.load(aside, memory, view, number, folder, model)
        if memory.pending and not command.expired():
            return None
        return failure(command, view) or self._commit(command, view)

    def _commit(self, command: Command, view: FolderView) -> str:
        """What was made aside takes effect: first the disk, then the record of the switch, then callers see it."""
        name, aside, before = command.name, command.aside, self._control.entry(command.name)
        wanted = wanted_versions(aside, view)
        model = self._registry.models.get(name) or Model(name)
        version = aside.loaded[view.chosen if view.chosen in wanted else max(wanted)]
        try:
            self._control.commit(name, command.source)
        except OSError as error:
            return f"failed to load '{name}', what was asked for cannot be kept: {error.strerror}"
        new = {n: v for n, v in aside.loaded.items() if n in wanted}
        made = [v for v in aside.loaded.values() if v not in model.loaded.values()]
        old = [v for v in (*model.loaded.values(), *made) if v not in new.values()]
        self._monitor.add(f"model/{name}")
        try:
            if model.serving is not version:
                self._bringer.switch(model, version)  # it does not happen without its record
        except Exception:
            self._control.restore(name, before)
            if model.serving is None:
                self._monitor.remove(f"model/{name}")
            raise
        model.options, model.loaded = aside.options, new
        self._registry.models = {**self._registry.models, name: model}
        for v in old:
            v.retire()
        self._memory[name] = command.memory
        self._control.explain(name, "")
        self._problems[name] = judge(model, command.memory, view, self._monitor, self._observe)
        refresh_views(model, command.memory, view)
        self._registry.notify()
        return ""


def wanted_versions(model: Model, view: FolderView) -> set[int]:
    """What the version policy and ``latest`` want loaded."""
    found = model.options.policy.keeps(list(view.versions))
    if view.chosen in view.versions and (model.options.policy.kind != "specific" or view.chosen in found):
        found.add(view.chosen)
    return found


def failure(command: Command, view: FolderView) -> str:
    """Why a load that was made aside is not what was asked for, in Triton's words; empty when it is."""
    model, memory, name = command.aside, command.memory, command.name
    wanted = wanted_versions(model, view)
    refused = [n for n in sorted(wanted) if memory.is_refused(view.versions, n)]
    if memory.config_problem and not refused:
        why = memory.config_problem
    elif refused:
        why = " ".join(f"version {n} is at UNAVAILABLE state: {memory.refused[n].reason};" for n in refused)
    elif view.chosen_problem:
        why = view.chosen_problem
    elif not wanted:
        why = f"at least one version must be available under the version policy of model '{name}'"
    elif any(n not in model.loaded or memory.read.get(n) != view.versions[n] for n in wanted):
        why = "its files are still being written"
    else:
        return ""
    return f"load failed for model '{name}': {why}"
