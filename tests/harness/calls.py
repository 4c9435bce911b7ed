"""Calls as a client makes them."""

from __future__ import annotations

import socket
import time
from typing import Any

import grpc
import numpy as np
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from inference import grpc_service_pb2 as oip
from vigil.models.v1 import models_pb2 as models
from vigil.perception.v1 import perception_pb2 as perception
from vigil.safety.v1 import safety_pb2 as safety

from vigil_sidecar.engine.datatypes import NUMPY

__all__ = ["Stub", "details", "infer_request", "output", "own_address"]

INFER = "/inference.GRPCInferenceService/ModelInfer"
DETECT = "/vigil.perception.v1.PerceptionService/Detect"


def infer_request(model: str, tensors: dict[str, Any], version: str = "", request_id: str = "") -> oip.ModelInferRequest:
    """A ModelInfer request with raw contents."""
    names = {v: k for k, v in NUMPY.items()}
    request = oip.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in tensors.items():
        array = np.asarray(array)
        request.inputs.add(name=name, datatype=names[array.dtype], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def output(response: oip.ModelInferResponse, index: int = 0) -> np.ndarray[Any, Any]:
    """One output as an array."""
    o = response.outputs[index]
    return np.frombuffer(response.raw_output_contents[index], NUMPY[o.datatype]).reshape(tuple(o.shape))


def details(error: Any) -> dict[str, Any]:
    """Violated fields, ErrorInfo and RetryInfo of an error."""
    out: dict[str, Any] = {"fields": [], "info": {}, "reason": "", "retry": False}
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for packed in Status.FromString(value).details:
                for kind in (BadRequest(), ErrorInfo(), RetryInfo()):
                    if packed.Unpack(kind):
                        if isinstance(kind, BadRequest):
                            out["fields"] = [v.field for v in kind.field_violations]
                        elif isinstance(kind, ErrorInfo):
                            out["info"], out["reason"] = dict(kind.metadata), kind.reason
                        else:
                            out["retry"], out["delay_s"] = True, kind.retry_delay.seconds + kind.retry_delay.nanos / 1e9
    return out


class Stub:
    """Typed calls over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def raw(self, method: str) -> Any:
        """A unary call of bytes."""
        return self.channel.unary_unary(method)

    def unary(self, method: str, request: Any, reply: Any, timeout_s: float = 30.0, **options: Any) -> tuple[Any, dict[str, str]]:
        """One call; the reply and what travelled beside it."""
        call = self.channel.unary_unary(method, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString)
        message, done = call.with_call(request, timeout=timeout_s, **options)
        return message, dict([*done.initial_metadata(), *done.trailing_metadata()])

    def infer(self, request: oip.ModelInferRequest, **options: Any) -> oip.ModelInferResponse:
        """ModelInfer."""
        return self.unary(INFER, request, oip.ModelInferResponse, **options)[0]

    def detect(self, source: str, model: str, frame: perception.Frame, time_us: int | None = None, **fields: Any) -> Any:
        """Detect, with the present time unless told."""
        request = perception.DetectRequest(
            source_id=source, capture_time_us=time.time_ns() // 1000 if time_us is None else time_us, frame=frame, model=model,
            **({"min_confidence": 0.5} | fields),
        )  # fmt: skip
        return self.unary(DETECT, request, perception.DetectResponse)[0].output

    def models(self) -> dict[str, models.Model]:
        """Models by name."""
        reply, _ = self.unary("/vigil.models.v1.ModelsService/ListModels", models.ListModelsRequest(), models.ListModelsResponse)
        return {m.name: m for m in reply.models}

    def state(self) -> safety.SystemState:
        """The safety state."""
        return self.unary("/vigil.safety.v1.SafetyService/Get", safety.GetRequest(), safety.GetResponse)[0].state


def own_address() -> str:
    """An address of this machine that is not loopback; empty when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # sends nothing: the kernel names the address that it would use
            return str(s.getsockname()[0])
        except OSError:
            return ""
