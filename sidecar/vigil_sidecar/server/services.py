"""Calls that are not batched: metadata, models, safety. Each is a function of message and call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import metadata

from inference import grpc_service_pb2 as oip
from vigil.audit.v1 import service_pb2 as audit_pb2
from vigil.models.v1 import models_pb2 as models
from vigil.safety.v1 import safety_pb2 as safety

from vigil_safety.monitor import Change, Monitor, Status
from vigil_safety.table import machine_table
from vigil_safety.tally import DEGRADED, EXPIRED, RESTARTED, STOPPED, Tally
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.errors import AuditError, NotStopped, SemanticViolation, Unavailable, Unimplemented, UnknownModel
from vigil_sidecar.injection.injector import DELAY_MS, Injector
from vigil_sidecar.registry.reconciler import Reconciler
from vigil_sidecar.registry.registry import Registry
from vigil_sidecar.registry.repository import MODEL_NAME, read_latest, restore_latest, write_latest
from vigil_sidecar.registry.version import ModelView
from vigil_sidecar.safety import Safety
from vigil_sidecar.server.call import Call, Reply
from vigil_sidecar.server.model_configuration import configuration, statistics
from vigil_sidecar.settings_gen import Settings
from vigil_sidecar.streams.sources import WatchHub
from vigil_sidecar.telemetry.log import LEVELS

__all__ = ["AuditReports", "Metadata", "Models", "SafetyReports", "subject_state", "system_state", "transition_message", "wait_s"]

_ACTIVATE_WAIT_S = 60.0
_WAIT_S = 0.25
_HISTORY_DEFAULT = 100
_LOG_SETTINGS = {
    "log_info": ("info", "bool_param"), "log_warning": ("warning", "bool_param"), "log_error": ("error", "bool_param"),
    "log_verbose_level": ("debug", "uint32_param"),
}  # fmt: skip
"""Triton's names: the level that it means, and its kind."""


def wait_s(call: Call) -> float:
    """How long a call that changes something may take: until its deadline, at most a minute."""
    if call.context.deadline_ns == 0:
        return _ACTIVATE_WAIT_S
    return min(_ACTIVATE_WAIT_S, max(0.0, (call.context.deadline_ns - time.monotonic_ns()) / 1e9 - 0.05))


class Metadata:
    """What the Open Inference Protocol tells about server and models."""

    def __init__(self, registry: Registry, ready: Callable[[], bool], more: Sequence[str] = ()) -> None:
        """``more`` are extensions that depend on settings."""
        self._registry, self._ready, self._more = registry, ready, more

    def live(self, request: oip.ServerLiveRequest, call: Call) -> oip.ServerLiveResponse:
        """The process answers, so it lives."""
        return oip.ServerLiveResponse(live=True)

    def ready(self, request: oip.ServerReadyRequest, call: Call) -> oip.ServerReadyResponse:
        """Every model was looked at once."""
        return oip.ServerReadyResponse(ready=self._ready())

    def model_ready(self, request: oip.ModelReadyRequest, call: Call) -> oip.ModelReadyResponse:
        """An unknown model is not ready, which is no error."""
        try:
            self._registry.lease(request.name, request.version).release()
        except (UnknownModel, Unavailable):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    def server(self, request: oip.ServerMetadataRequest, call: Call) -> oip.ServerMetadataResponse:
        """Name, version and the extensions that work."""
        return oip.ServerMetadataResponse(
            name="vigil",
            version=metadata.version("vigil-sidecar"),
            extensions=[
                "classification",
                "model_repository",
                *self._more,
                "model_configuration",
                "system_shared_memory",
                "binary_tensor_data",
                "statistics",
                "trace",
                "logging",
            ],
        )

    def log_settings(self, request: oip.LogSettingsRequest, call: Call) -> oip.LogSettingsResponse:
        """Which lines of the log are written, by Triton's names; changes last until the process ends."""
        for name, value in request.settings.items():
            choice, known = value.WhichOneof("parameter_choice"), _LOG_SETTINGS.get(name)
            if known is None or choice != known[1]:
                text = f"'{name}' cannot be changed so; there are " + ", ".join(f"{n} ({k[1][:-6]})" for n, k in _LOG_SETTINGS.items())
                raise SemanticViolation(text, [(f"settings[{name}]", text)])
        for name, value in request.settings.items():
            level, choice = _LOG_SETTINGS[name]
            LEVELS[level] = bool(getattr(value, choice))
        response = oip.LogSettingsResponse()
        response.settings["log_file"].string_param, response.settings["log_format"].string_param = "", "json"
        for name, (level, choice) in _LOG_SETTINGS.items():
            setattr(response.settings[name], choice, LEVELS[level])
        return response

    def model(self, request: oip.ModelMetadataRequest, call: Call) -> oip.ModelMetadataResponse:
        """Contract of a model."""
        version = self._registry.lease(request.name, request.version)
        try:
            response = oip.ModelMetadataResponse(name=request.name, platform="onnxruntime_onnx")
            loaded = self._registry.models[request.name].loaded
            response.versions.extend(str(n) for n in sorted(loaded))
            for t in version.session.contract.inputs:
                response.inputs.add(name=t.name, datatype=t.datatype, shape=t.shape)
            for t in version.session.contract.outputs:
                response.outputs.add(name=t.name, datatype=t.datatype, shape=t.shape)
            return response
        finally:
            version.release()

    def config(self, request: oip.ModelConfigRequest, call: Call) -> oip.ModelConfigResponse:
        """A version's configuration, completed from its graph."""
        version = self._registry.lease(request.name, request.version)
        try:
            return oip.ModelConfigResponse(config=configuration(version))
        finally:
            version.release()

    def statistics(self, request: oip.ModelStatisticsRequest, call: Call) -> oip.ModelStatisticsResponse:
        """Statistics of one version, of all loaded ones of a model, or of all."""
        if request.name:
            self._registry.lease(request.name, request.version).release()
        models = [self._registry.models[request.name]] if request.name else [m for _, m in sorted(self._registry.models.copy().items())]
        loaded = [v for m in models for _, v in sorted(m.loaded.copy().items())]
        return oip.ModelStatisticsResponse(model_stats=[statistics(v) for v in loaded if request.version in ("", v.text)])


class Models:
    """ModelsService."""

    def __init__(self, settings: Settings, registry: Registry, reconciler: Reconciler, monitor: Monitor) -> None:
        self._settings, self._registry = settings, registry
        self._reconciler, self._monitor = reconciler, monitor

    def list(self, request: models.ListModelsRequest, call: Call) -> models.ListModelsResponse:
        """Every model by name."""
        return models.ListModelsResponse(models=[self._message(v) for v in self._registry.all()])

    def get(self, request: models.GetModelRequest, call: Call) -> models.GetModelResponse:
        """One model."""
        return models.GetModelResponse(model=self._message(self._registry.get(request.name)))

    def activate(self, request: models.ActivateVersionRequest, call: Call) -> models.ActivateVersionResponse:
        """Write the link, then wait until the version serves or is refused."""
        view = self._registry.get(request.name)
        folder = self._reconciler.control.folder(view.name)
        if not (folder / str(request.version) / "model.onnx").is_file():
            known = ", ".join(str(v.version) for v in view.versions) or "none"
            raise SemanticViolation(
                f"model '{view.name}' has no version {request.version}; it has {known}", [("version", "does not exist")]
            )
        policy = view.options.policy
        if policy.kind == "specific" and request.version not in policy.versions:
            allowed = ", ".join(map(str, policy.versions))
            text = f"version_policy of model '{view.name}' allows the versions {allowed}, not {request.version}; change its config.pbtxt"
            raise SemanticViolation(text, [("version", "excluded by version_policy")])
        call.subject, call.reason = f"{view.name} version {request.version}", request.reason
        self._reconciler.mark(view.name, asked=True)
        self._reconciler.wait_looked(view.name, wait_s(call))
        view = self._registry.get(request.name)
        self._refuse_if_refused(view, request.version)
        before = read_latest(folder)
        try:
            write_latest(folder, request.version)
        except OSError as error:
            raise Unavailable(f"the link 'latest' of model '{view.name}' cannot be written: {error.strerror}") from None
        end = time.monotonic() + wait_s(call)
        self._reconciler.mark(view.name, asked=True)
        while time.monotonic() < end and not call.cancelled:
            view = self._registry.get(request.name)
            if view.serving is not None and view.serving.number == request.version:
                return models.ActivateVersionResponse(model=self._message(view))
            try:
                self._refuse_if_refused(view, request.version)
            except SemanticViolation:
                restore_latest(folder, before)  # files and calls agree on what was not chosen, too
                self._reconciler.mark(view.name, asked=True)
                raise
            with self._registry.changed:
                self._registry.changed.wait(0.02)
        raise Unavailable(f"version {request.version} of model '{view.name}' is still being loaded; look again later")

    def _refuse_if_refused(self, view: ModelView, number: int) -> None:
        for v in view.versions:
            if v.version == number and v.state == "refused":
                raise SemanticViolation(f"version {number} of model '{view.name}' was refused: {v.reason}", [("version", v.reason)])

    def reload(self, request: models.ReloadModelRequest, call: Call) -> models.ReloadModelResponse:
        """Look again, forgetting refusals."""
        call.subject, call.reason = request.name, request.reason
        if MODEL_NAME.fullmatch(request.name) is None or not self._reconciler.control.folder(request.name).is_dir():
            self._registry.get(request.name)
        self._reconciler.mark(request.name, forget_refusals=True, asked=True)
        if not self._reconciler.wait_looked(request.name, wait_s(call)):
            raise Unavailable(f"model '{request.name}' is still being loaded; look again later")
        return models.ReloadModelResponse(model=self._message(self._registry.get(request.name)))

    def _message(self, view: ModelView) -> models.Model:
        status = self._monitor.status(f"model/{view.name}")
        message = models.Model(
            name=view.name, generation=view.generation, pipeline=view.options.pipeline or "tensor",
            safety_state=status.state, safety_reason=status.reason,
        )  # fmt: skip
        model = self._registry.models.get(view.name)
        loaded = model.loaded if model is not None else {}
        for v in view.versions:
            state = models.VersionState.Value(f"VERSION_STATE_{v.state.upper()}")
            one = message.versions.add(
                version=v.version, digest=v.digest, state=state, reason=v.reason, since_us=v.since_us, size_bytes=v.size
            )  # fmt: skip
            if (held := loaded.get(v.version)) is not None:
                one.memory_bytes = held.memory_bytes
                for gate in held.gates:
                    one.gates.add(name=gate.name, found=gate.found, took_us=gate.took_us)
        serving = view.serving
        if serving is not None:
            message.serving_version, message.serving_digest = serving.number, serving.digest
            message.max_batch_size, message.batch_difference = serving.max_batch_size, serving.batch_difference
            message.runs_inline = serving.run_s * 1e6 <= self._settings.models_inline_run_us_max
            message.providers.extend(serving.session.providers)
            for t in serving.inputs.values():
                message.inputs.add(name=t.name, datatype=t.datatype, shape=t.shape)
            for t in serving.outputs.values():
                message.outputs.add(name=t.name, datatype=t.datatype, shape=t.shape)
        return message


def count_of(tally: Tally, subject: str) -> dict[str, int]:
    """What was counted of a subject over all restarts, by the fields of ``SubjectState``."""
    return {what: tally.of(what, subject) for what in (DEGRADED, STOPPED, RESTARTED, EXPIRED)}


def subject_state(keeper: Safety, subject: str, status: Status) -> safety.SubjectState:
    """One subject, with what was counted of it, and how its probes go while it recovers."""
    message = safety.SubjectState(
        subject=subject, state="STATE_" + status.state, reason=status.reason, since_us=status.since_us,
        **count_of(keeper.tally, subject),  # type: ignore[arg-type]
    )  # fmt: skip
    good, needed, ends_us = keeper.probes(subject)
    if needed:
        message.probes.good, message.probes.needed, message.probes.lease_ends_us = good, needed, ends_us
    return message


def system_state(keeper: Safety) -> safety.SystemState:
    """The state of the whole and of each subject."""
    message = safety.SystemState(state="STATE_" + keeper.monitor.whole(), table_digest=machine_table().digest)
    message.subjects.extend(subject_state(keeper, s, x) for s, x in sorted(keeper.monitor.all().items()))
    return message


def transition_message(change: Change) -> safety.Transition:
    """A change as a message."""
    message = safety.Transition(
        subject=change.subject, to="STATE_" + change.after,
        event=change.event, reason=change.reason, time_us=change.time_us,
    )  # fmt: skip
    setattr(message, "from", safety.State.Value("STATE_" + change.before))
    return message


class SafetyReports:
    """SafetyService of the sidecar: its models."""

    def __init__(self, keeper: Safety, hub: WatchHub, injector: Injector | None = None) -> None:
        self.injector = injector
        """Only where faults may be injected."""
        self._safety, self._monitor, self._hub = keeper, keeper.monitor, hub

    def get(self, request: safety.GetRequest, call: Call) -> safety.GetResponse:
        """The present state."""
        state = system_state(self._safety)
        state.injection = self.injector is not None
        return safety.GetResponse(state=state)

    def inject(self, request: safety.InjectRequest, call: Call) -> safety.InjectResponse:
        """Have a fault begin."""
        if self.injector is None:
            raise Unimplemented("faults are injected only where safety.injection is on")
        call.subject, call.reason = request.model, request.kind
        done = self.injector.inject(request.kind, request.model, request.duration_ms, request.magnitude)
        begins_us = time.time_ns() // 1000 + DELAY_MS * 1000
        return safety.InjectResponse(
            inject_delay_ms=DELAY_MS, duration_ms=done.duration_ms, magnitude=done.magnitude, begins_us=begins_us
        )  # fmt: skip

    def history(self, request: safety.HistoryRequest, call: Call) -> safety.HistoryResponse:
        """The latest changes of this run, oldest first."""
        wanted = [c for c in self._safety.history.copy() if not request.subjects or c.subject in request.subjects]
        return safety.HistoryResponse(transitions=[transition_message(c) for c in wanted[-(request.limit or _HISTORY_DEFAULT) :]])

    def reset(self, request: safety.ResetRequest, call: Call) -> safety.ResetResponse:
        """End latched stops."""
        subjects = self._safety.reset(request.subject, request.reason, request.by)
        if not subjects:
            what = f"subject '{request.subject}' is not" if request.subject else "nothing is"
            raise NotStopped(f"{what} stopped safely; vigil safety status shows the states")
        return safety.ResetResponse(subjects=subjects, state=system_state(self._safety))

    def watch(self, call: Call, request: safety.WatchRequest) -> None:
        """The present state, then each change; only the gateway can go on where a watcher was."""
        if request.resume:
            raise SemanticViolation("resume is answered by the gateway only", [("resume", "not known here")])
        subscription = self._hub.subscribe("safety")
        call.on_cancel = subscription.close
        try:
            first = safety.WatchResponse(state=system_state(self._safety))
            call.reply(call, Reply(message=first.SerializeToString(), more=True))
            while not call.cancelled and not call.expired():
                item = subscription.get(_WAIT_S)
                if item is None or (request.subjects and item[0].subject not in request.subjects):
                    continue
                news = safety.WatchResponse(state=system_state(self._safety), transition=transition_message(item[0]))
                call.reply(call, Reply(message=news.SerializeToString(), more=True))
        finally:
            self._hub.unsubscribe("safety", subscription)


class AuditReports:
    """AuditService for the sidecar's log. Any thread may call."""

    def __init__(self, log: AuditWriter) -> None:
        self._log = log

    @staticmethod
    def _own(log: int) -> None:
        if log != audit_pb2.LOG_SIDECAR:
            text = "the sidecar answers for LOG_SIDECAR; ask the gateway for LOG_GATEWAY"
            raise SemanticViolation(text, [("log", text)])

    def checkpoint(self, request: audit_pb2.CheckpointRequest, call: Call) -> audit_pb2.CheckpointResponse:
        """The latest signed checkpoint."""
        self._own(request.log)
        return audit_pb2.CheckpointResponse(note=self._log.checkpoint.decode())

    def rotate_key(self, request: audit_pb2.RotateKeyRequest, call: Call) -> audit_pb2.RotateKeyResponse:
        """Take a new signing key."""
        self._own(request.log)
        call.reason = request.reason
        if self._log.sealer is None:
            raise Unavailable("the log is not signed")
        try:
            return audit_pb2.RotateKeyResponse(verifier_key=self._log.sealer.rotate())
        except (AuditError, OSError) as error:
            raise Unavailable(f"the key was not rotated: {error}") from None
