"""The table of methods: full name, request, function. The one place where services are wired."""

from __future__ import annotations

from typing import Any, NamedTuple

from inference import grpc_service_pb2 as oip
from vigil.audit.v1 import service_pb2 as audit
from vigil.models.v1 import models_pb2 as models
from vigil.perception.v1 import perception_pb2 as perception
from vigil.safety.v1 import safety_pb2 as safety

from vigil_sidecar.server.dispatch import StreamMethod, UnaryMethod
from vigil_sidecar.server.forms import InferForms
from vigil_sidecar.server.perception import Perception
from vigil_sidecar.server.processor import BatchMethod
from vigil_sidecar.server.repository import Repository
from vigil_sidecar.server.services import AuditReports, Metadata, Models, SafetyReports

__all__ = ["Parts", "batch_methods", "missing_methods", "stream_methods", "unary_methods"]

_OIP = "/inference.GRPCInferenceService/"
_PERCEPTION = "/vigil.perception.v1.PerceptionService/"
_MODELS = "/vigil.models.v1.ModelsService/"
_LIVE = "/vigil.live.v1.LiveService/"
_AUDIT = "/vigil.audit.v1.AuditService/"
_SAFETY = "/vigil.safety.v1.SafetyService/"


class Parts(NamedTuple):
    """The services' implementations."""

    perception: Perception
    metadata: Metadata
    models: Models
    safety: SafetyReports
    audit: AuditReports
    repository: Repository


def batch_methods(parts: Parts) -> dict[str, BatchMethod]:
    """Methods whose calls are batched."""

    def names(request: Any) -> tuple[str, str]:
        return request.model_name, request.model_version

    def detect_names(request: Any) -> tuple[str, str]:
        return request.model, request.model_version

    forms = InferForms()
    return {
        _OIP + "ModelInfer": BatchMethod(oip.ModelInferRequest, names, forms.job, forms.recognise, forms.quick_job),
        _PERCEPTION + "Detect": BatchMethod(perception.DetectRequest, detect_names, parts.perception.job),
    }


def unary_methods(parts: Parts) -> dict[str, UnaryMethod]:
    """Calls that are answered one by one."""
    meta, mod = parts.metadata, parts.models
    injecting = {_SAFETY + "Inject": UnaryMethod(safety.InjectRequest, parts.safety.inject, control=True)} if parts.safety.injector else {}
    return injecting | {
        _OIP + "ServerLive": UnaryMethod(oip.ServerLiveRequest, meta.live),
        _OIP + "ServerReady": UnaryMethod(oip.ServerReadyRequest, meta.ready),
        _OIP + "ModelReady": UnaryMethod(oip.ModelReadyRequest, meta.model_ready),
        _OIP + "ServerMetadata": UnaryMethod(oip.ServerMetadataRequest, meta.server),
        _OIP + "ModelMetadata": UnaryMethod(oip.ModelMetadataRequest, meta.model),
        _OIP + "ModelConfig": UnaryMethod(oip.ModelConfigRequest, meta.config),
        _OIP + "ModelStatistics": UnaryMethod(oip.ModelStatisticsRequest, meta.statistics),
        _OIP + "RepositoryIndex": UnaryMethod(oip.RepositoryIndexRequest, parts.repository.index),
        _OIP + "RepositoryModelLoad": UnaryMethod(oip.RepositoryModelLoadRequest, parts.repository.load, control=True, slow=True),
        _OIP + "LogSettings": UnaryMethod(oip.LogSettingsRequest, meta.log_settings, control=True),
        _OIP + "RepositoryModelUnload": UnaryMethod(oip.RepositoryModelUnloadRequest, parts.repository.unload, control=True, slow=True),
        _MODELS + "ListModels": UnaryMethod(models.ListModelsRequest, mod.list),
        _MODELS + "GetModel": UnaryMethod(models.GetModelRequest, mod.get),
        _MODELS + "ActivateVersion": UnaryMethod(models.ActivateVersionRequest, mod.activate, control=True, slow=True),
        _MODELS + "ReloadModel": UnaryMethod(models.ReloadModelRequest, mod.reload, control=True, slow=True),
        _PERCEPTION + "ListSources": UnaryMethod(perception.ListSourcesRequest, parts.perception.sources),
        _SAFETY + "Get": UnaryMethod(safety.GetRequest, parts.safety.get),
        _SAFETY + "History": UnaryMethod(safety.HistoryRequest, parts.safety.history),
        _SAFETY + "Reset": UnaryMethod(safety.ResetRequest, parts.safety.reset, control=True),
        _AUDIT + "Checkpoint": UnaryMethod(audit.CheckpointRequest, parts.audit.checkpoint),
        _AUDIT + "RotateKey": UnaryMethod(audit.RotateKeyRequest, parts.audit.rotate_key, control=True),
    }


def stream_methods(parts: Parts) -> dict[str, StreamMethod]:
    """Server streams."""
    return {
        _PERCEPTION + "Watch": StreamMethod(perception.WatchRequest, parts.perception.watch),
        _SAFETY + "Watch": StreamMethod(safety.WatchRequest, parts.safety.watch),
    }


def missing_methods(injection: bool = False) -> dict[str, str]:
    """Declared methods that are not built yet, with what to use instead."""
    reads = "the gateway reads both logs for callers; ask it"
    cuda = "CUDA shared memory is not offered; use system shared memory or raw_input_contents"
    shared = "the gateway reads and writes shared memory for callers; ask it"
    inject = {} if injection else {_SAFETY + "Inject": "faults are injected only where safety.injection is on"}
    return inject | {
        _OIP + "ModelStreamInfer": "ModelStreamInfer is answered by the gateway; use ModelInfer here",
        _LIVE + "Watch": "LiveService is answered by the gateway; ask it",
        _OIP + "TraceSetting": "TraceSetting is answered by the gateway; ask it",
        **{_AUDIT + name: reads for name in ("Search", "Get", "Prove", "VerifyRange")},
        **{_OIP + f"SystemSharedMemory{x}": shared for x in ("Status", "Register", "Unregister")},
        **{_OIP + f"CudaSharedMemory{x}": cuda for x in ("Status", "Register", "Unregister")},
    }
