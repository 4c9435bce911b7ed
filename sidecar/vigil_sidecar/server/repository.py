"""Triton's model repository extension: index, load and unload by clients."""

from __future__ import annotations

import re
from collections.abc import Mapping

from google.protobuf import json_format, text_format
from inference import grpc_service_pb2 as oip
from inference.model_config_pb2 import ModelConfig

from vigil_sidecar.errors import SemanticViolation, Unavailable
from vigil_sidecar.registry.reconciler import Reconciler
from vigil_sidecar.registry.registry import Registry
from vigil_sidecar.registry.repository import MODEL_NAME, list_models
from vigil_sidecar.server.call import Call
from vigil_sidecar.server.services import wait_s

__all__ = ["Repository"]

_STATES = {"serving": "READY", "standby": "READY", "loading": "LOADING", "refused": "UNAVAILABLE", "retired": "UNAVAILABLE"}
_FILE = re.compile(r"(?:[1-9][0-9]{0,17}|warmup)/[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}|[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_RESERVED = frozenset(("config.pbtxt", "vigil.toml", "latest", "warmup"))
_LISTED_MAX = 4096
_NOT_EXPLICIT = "explicit model load / unload is not allowed if polling is enabled"
"""Triton's words. models.control says what is enabled."""


class Repository:
    """RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload."""

    def __init__(self, registry: Registry, reconciler: Reconciler) -> None:
        self._registry, self._reconciler, self._control = registry, reconciler, reconciler.control

    def index(self, request: oip.RepositoryIndexRequest, call: Call) -> oip.RepositoryIndexResponse:
        """Every version of every model, in Triton's words for its state; and models that could be loaded."""
        response, loaded = oip.RepositoryIndexResponse(), set()
        self._refuse_other_repository(request.repository_name)
        for view in self._registry.all():
            for v in view.versions:
                loaded.add(view.name)
                state = _STATES[v.state]
                if state == "READY" or not request.ready:
                    response.models.add(name=view.name, version=str(v.version), state=state, reason=v.reason)
        if self._control.explicit and not request.ready:
            reasons = self._control.reasons.copy()
            for name in sorted({*list_models(self._control.root, _LISTED_MAX)[0], *reasons} - loaded):
                response.models.add(name=name, state="UNAVAILABLE" if name in reasons else "", reason=reasons.get(name, ""))
        return response

    def load(self, request: oip.RepositoryModelLoadRequest, call: Call) -> oip.RepositoryModelLoadResponse:
        """Load a model, or load it anew, from the repository or from what the call brings."""
        name = self._begin(request.repository_name, request.model_name, call)
        config, files = _parameters(request.parameters)
        if MODEL_NAME.fullmatch(name) is None:
            raise SemanticViolation(
                f"failed to load '{name}', failed to poll from model repository", [("model_name", "no name of a model")]
            )
        try:
            source = self._control.override(name, _config(config, name), files) if config is not None else ""
        except OSError as error:
            raise Unavailable(f"failed to load '{name}', its override cannot be written: {error.strerror}") from None
        problem = self._reconciler.command(name, source, wait_s(call))
        if problem is None:
            raise Unavailable(f"model '{name}' is still being loaded; look again later")
        if problem:
            raise SemanticViolation(problem, [("model_name", problem)])
        return oip.RepositoryModelLoadResponse()

    def unload(self, request: oip.RepositoryModelUnloadRequest, call: Call) -> oip.RepositoryModelUnloadResponse:
        """Unload a model; one that is not loaded is unloaded already, as in Triton."""
        name = self._begin(request.repository_name, request.model_name, call)
        for key, value in request.parameters.items():
            if key != "unload_dependents" or value.WhichOneof("parameter_choice") != "bool_param":
                raise SemanticViolation(f"unload parameter '{key}' is not known; there is unload_dependents (bool)", [("parameters", key)])
        if MODEL_NAME.fullmatch(name) is not None and (self._control.wanted(name) or name in self._registry.models):
            problem = self._reconciler.command(name, None, wait_s(call))
            if problem is None:
                raise Unavailable(f"model '{name}' is still being loaded; look again later")
            if problem:
                raise Unavailable(problem)
        return oip.RepositoryModelUnloadResponse()

    def _begin(self, repository: str, name: str, call: Call) -> str:
        call.subject = name
        if not self._control.explicit:
            raise Unavailable(f"{_NOT_EXPLICIT} (models.control is {self._control.mode})")
        self._refuse_other_repository(repository)
        return name

    @staticmethod
    def _refuse_other_repository(repository: str) -> None:
        if repository:
            text = "'repository_name' specification is not supported"
            raise SemanticViolation(text, [("repository_name", text)])


def _parameters(given: Mapping[str, oip.ModelRepositoryParameter]) -> tuple[str | None, dict[str, bytes]]:
    """The configuration as JSON, and files by path."""
    config, files = None, {}
    for key, value in sorted(given.items()):
        choice, path = value.WhichOneof("parameter_choice"), key.removeprefix("file:")
        field = f"parameters[{key!r}]"
        if key == "config" and choice == "string_param":
            config = value.string_param
        elif path == key or choice != "bytes_param":
            what = "config (string) and file:PATH (bytes)"
            raise SemanticViolation(f"load parameter '{key}' has no effect; there are {what}", [(field, f"there are {what}")])
        elif _FILE.fullmatch(path) is None or path in _RESERVED:
            allowed = "a file of a version (1/model.onnx), of warmup or beside them, and not config.pbtxt or vigil.toml"
            raise SemanticViolation(f"load parameter '{key}' must be {allowed}", [(field, f"must be {allowed}")])
        else:
            files[path] = value.bytes_param
    if files and config is None:
        text = "override files are given without the parameter 'config', which must be given with them"
        raise SemanticViolation(text, [("parameters", text)])
    return config, files


def _config(text: str, name: str) -> str:
    """JSON of a ModelConfig as the text of config.pbtxt."""
    try:
        config = json_format.Parse(text, ModelConfig(), max_recursion_depth=32)
    except (json_format.ParseError, RecursionError) as error:
        why = str(error).split("\n")[0][:300]
        raise SemanticViolation(
            f"failed to load '{name}', the parameter 'config' is no configuration: {why}", [("parameters", why)]
        ) from None
    return text_format.MessageToString(config)
