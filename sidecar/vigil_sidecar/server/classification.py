"""Triton's classification extension: an output as its largest values, with their indices and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from inference.grpc_service_pb2 import ModelInferRequest, ModelInferResponse

from vigil_sidecar.audit.tensor_hash import Tensor, tensor_hash, uvarint
from vigil_sidecar.batching.job import JobResult
from vigil_sidecar.engine.datatypes import encode_bytes, to_raw
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.open_inference import RAW_TAG, bounded, check_output, check_shape, id_field, refuse

__all__ = ["FinishClasses", "classes_wanted", "classify"]

Array = np.ndarray[Any, Any]
_COUNT_MAX = 1 << 31
PARAMETER = "classification"


def classes_wanted(request: ModelInferRequest, version: LoadedVersion) -> dict[str, int]:
    """By output, how many classes are asked for; raises ``SemanticViolation`` for what cannot be."""
    out = {}
    for output in request.outputs:
        if PARAMETER not in output.parameters:
            continue
        value = output.parameters[PARAMETER]
        count = value.int64_param
        if value.WhichOneof("parameter_choice") != "int64_param" or not 1 <= count < _COUNT_MAX:
            raise refuse(output.name, f"output '{output.name}': classification must be an int64 from 1 to {_COUNT_MAX - 1}")
        if version.outputs[output.name].datatype == "BYTES":
            raise refuse(output.name, f"class result not available for output '{output.name}' due to unsupported type 'BYTES'")
        out[output.name] = count
    return out


def classify(array: Array, count: int, batched: bool, labels: Sequence[str] = ()) -> Array:
    """Texts VALUE:INDEX or VALUE:INDEX:LABEL of the largest values, the largest first, equal ones by index.

    Of each row where ``batched`` (then the shape is [rows, count]), else of all values ([count]). Fewer when there
    are fewer values. Numbers are written as C's %f, whole ones as they are.
    """
    rows = array.shape[0] if batched else 1
    flat = array.reshape(rows, math.prod(array.shape[1:]) if batched else array.size)
    falling = -flat if flat.dtype.kind == "f" else ~flat  # of whole numbers the complement falls without overflow
    order = np.argsort(falling, axis=1, kind="stable")[:, :count]
    out = np.empty(order.shape, dtype=object)
    for row, indices in enumerate(order.tolist()):
        for i, index in enumerate(indices):
            value = flat[row, index]
            text = f"{value:f}" if flat.dtype.kind == "f" else str(int(value))
            out[row, i] = f"{text}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
    return out if batched else out[0]


class FinishClasses:
    """Turns this request's share of the outputs, checked as any, into an answer of which some are classes."""

    __slots__ = ("batched", "counts", "names", "request_id", "version")

    def __init__(self, request_id: str, version: LoadedVersion, names: tuple[str, ...], counts: Mapping[str, int], batched: bool) -> None:
        self.request_id, self.version, self.names, self.counts, self.batched = request_id, version, names, counts, batched

    def __call__(self, arrays: Sequence[Array]) -> JobResult:
        version, tensors = self.version, list[Tensor]()
        response = ModelInferResponse(model_name=version.model, model_version=version.text)
        response.parameters["vigil_model_digest"].string_param = version.digest
        parts = list[bytes]()
        for name, array in zip(self.names, arrays, strict=True):
            check_shape(name, array.shape, version)
            check_output(name, array, version)
            datatype = version.outputs[name].datatype
            if name in self.counts:
                array = classify(array, self.counts[name], self.batched, version.options.labels.get(name, ()))
                datatype, raw = "BYTES", encode_bytes(array.ravel().tolist())
            else:
                raw = to_raw(array, datatype)
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            parts += [RAW_TAG, uvarint(len(raw)), raw]
            tensors.append((name, datatype, array.shape, raw))
        return JobResult(tensor_hash(tensors), bounded(b"".join([response.SerializeToString(), id_field(self.request_id), *parts])))
