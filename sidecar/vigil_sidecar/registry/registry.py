"""Models in memory: leases for callers, one atomic reference to swap."""

from __future__ import annotations

import threading

from vigil_sidecar.errors import SemanticViolation, Starting, Unavailable, UnknownModel
from vigil_sidecar.registry.options import ModelOptions
from vigil_sidecar.registry.version import LoadedVersion, ModelView, VersionView

__all__ = ["Model", "Registry"]


class Model:
    """One model. ``serving`` is replaced as one reference; readers take a lease on what they saw."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.serving: LoadedVersion | None = None
        self.loaded: dict[int, LoadedVersion] = {}
        self.views: dict[int, VersionView] = {}
        self.options = ModelOptions()
        self.generation = 0

    def view(self) -> ModelView:
        """A snapshot."""
        return ModelView(self.name, self.serving, tuple(v for _, v in sorted(self.views.copy().items())), self.generation, self.options)


class Registry:
    """All models. Reading methods may be called from any thread; the reconciler alone changes models."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.starting = True
        """Until every model folder was looked at once: what is missing may still come."""
        self.stopped: dict[str, str] = {}
        """Models that are stopped safely, and why; the empty name means all."""
        self.changed = threading.Condition()

    def lease(self, name: str, version: str) -> LoadedVersion:
        """A leased version, the serving one when ``version`` is empty. The caller must release it.

        Raises:
            UnknownModel: it is not loaded. Texts are Triton's.
            Unavailable: the sidecar is starting, so that it may still come, or the model is stopped safely.
            SemanticViolation: the version is no number.
        """
        if self.stopped:
            self._refuse_stopped(name)
        model = self.models.get(name)
        if model is None:
            self._refuse_while_starting(name)
            raise UnknownModel(f"Request for unknown model: '{name}' is not found")
        while True:
            if version == "":
                found = model.serving
                if found is None:
                    self._refuse_while_starting(name)
                    raise UnknownModel(f"Request for unknown model: '{name}' has no available versions")
            else:
                if not (version.isascii() and version.isdigit()):
                    raise SemanticViolation(
                        f"failed to get model version from specified version string '{version}' (details: not a number, "
                        "version should be an integral value > 0)",
                        [("model_version", "not a number")],
                    )
                found = model.loaded.get(int(version))
                if found is None:
                    self._refuse_while_starting(name)
                    raise UnknownModel(f"Request for unknown model: '{name}' version {version} is not at ready state")
            if found.acquire():
                return found

    def _refuse_stopped(self, name: str) -> None:
        for stopped in (name, ""):
            if (reason := self.stopped.get(stopped)) is not None:
                what = f"model '{name}'" if stopped else "the sidecar"
                raise Unavailable(f"{what} is stopped safely ({reason}); a person has to reset it: vigil safety reset")

    def _refuse_while_starting(self, name: str) -> None:
        if self.starting:
            raise Starting(f"the sidecar is starting; model '{name}' may still be loading, try again")

    def get(self, name: str) -> ModelView:
        """A model's snapshot; raises ``UnknownModel``."""
        model = self.models.get(name)
        if model is None:
            raise UnknownModel(f"Request for unknown model: '{name}' is not found")
        return model.view()

    def all(self) -> list[ModelView]:
        """Snapshots of all models by name."""
        return [m.view() for _, m in sorted(self.models.copy().items())]

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        with self.changed:
            self.changed.notify_all()
