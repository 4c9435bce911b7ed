"""What a look at a model's files means for its safety machine. Used by the reconciler's thread only."""

from __future__ import annotations

from collections.abc import Callable

from vigil_safety import events_gen as events
from vigil_safety.monitor import Monitor
from vigil_sidecar.registry.memory import ModelMemory
from vigil_sidecar.registry.registry import Model
from vigil_sidecar.registry.repository import FolderView
from vigil_sidecar.registry.version import ModelEvent

__all__ = ["judge"]


def judge(model: Model, memory: ModelMemory, view: FolderView, monitor: Monitor, observe: Callable[[ModelEvent], None]) -> str:
    """Tell the model's safety machine whether the version that was chosen serves; returns what keeps it from recovering."""
    subject, serving = f"model/{model.name}", model.serving
    state = monitor.status(subject).state
    problem = view.chosen_problem or (
        f"chosen version {view.chosen} does not exist" if view.chosen is not None and view.chosen not in view.versions else ""
    )
    if not problem and model.options.policy.kind == "specific" and view.chosen not in (None, *model.options.policy.versions):
        problem = f"chosen version {view.chosen} is excluded by version_policy"
    if not problem and view.chosen is not None and memory.is_refused(view.versions, view.chosen):
        problem = f"chosen version {view.chosen} was refused: {memory.refused[view.chosen].reason}"
    if serving is None:
        if view.versions and all(memory.is_refused(view.versions, n) for n in view.versions) and state != "DEGRADED":
            monitor.event(subject, "fault", "no version passes its checks")
    elif problem and state == "STARTING":
        observe(ModelEvent(events.CHOSEN_VERSION_BAD, model.name, view.chosen or 0, "", problem))
        monitor.event(subject, "fault", f"{problem}; version {serving.number} serves")
    elif state == "STARTING":
        monitor.event(subject, "ready", f"version {serving.number} serves")
    elif problem and state == "NORMAL" and "version_policy" in problem:
        observe(ModelEvent(events.CHOSEN_VERSION_BAD, model.name, view.chosen or 0, "", problem))
        monitor.event(subject, "fault", f"{problem}; version {serving.number} serves")
    return problem or ("no version serves" if serving is None else "")
