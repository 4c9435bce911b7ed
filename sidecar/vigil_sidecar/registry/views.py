"""What `vigil models list` tells of each version. Used by the reconciler's thread only."""

from __future__ import annotations

import time

from vigil_sidecar.registry.memory import ModelMemory
from vigil_sidecar.registry.registry import Model
from vigil_sidecar.registry.repository import FolderView
from vigil_sidecar.registry.version import VersionView

__all__ = ["refresh_views", "set_view"]


def set_view(model: Model, number: int, digest: str, state: str, reason: str, size: int) -> None:
    """Tell a version's state, with the time since which it is so."""
    old = model.views.get(number)
    if old is not None and (old.digest, old.state, old.reason) == (digest, state, reason):
        return
    model.views[number] = VersionView(number, digest, state, reason, time.time_ns() // 1000, size)


def refresh_views(model: Model, memory: ModelMemory, view: FolderView) -> None:
    """Tell the state of every version that is or was there."""
    serving = model.serving
    for number in {*view.versions, *model.views}:
        loaded, refusal = model.loaded.get(number), memory.refused.get(number)
        refused_now = refusal is not None and memory.is_refused(view.versions, number)
        if loaded is not None:
            reason = "" if number in view.versions else "files deleted"
            if refused_now and refusal is not None:
                reason = f"the file was replaced by one that was refused: {refusal.reason}"
            state = "serving" if loaded is serving else "standby"
            set_view(model, number, loaded.digest, state, reason, loaded.size)
        elif refused_now and refusal is not None:
            set_view(model, number, refusal.digest, "refused", refusal.reason, refusal.signature.size)
        elif number not in view.versions:
            if number in model.views and model.views[number].state != "retired":
                set_view(model, number, model.views[number].digest, "retired", "files deleted", 0)
        elif number in memory.pending:
            set_view(model, number, "", "loading", "", view.versions[number].size)
        else:
            set_view(model, number, "", "retired", "on disk, not loaded", view.versions[number].size)
