"""Open Inference Protocol: a request's tensors checked against the model, an answer's tensors encoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from inference.grpc_service_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse

from vigil_sidecar.audit.tensor_hash import Tensor, tensor_hash, uvarint
from vigil_sidecar.batching.job import Job, JobResult
from vigil_sidecar.batching.ragged import complete, length_of
from vigil_sidecar.engine.contract import TensorSpec
from vigil_sidecar.engine.datatypes import FLOATS, ITEM_BYTES, NUMPY, encode_bytes, from_raw, to_raw
from vigil_sidecar.errors import LimitHit, OutputViolation, SemanticViolation, Unimplemented
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.call import Call

__all__ = ["answer_head", "bounded", "check_output", "check_shape", "finite", "id_field", "infer_job", "not_finite", "plausible"]

Array = np.ndarray[Any, Any]
_ELEMENTS_MAX = 1 << 31
_NAME_MAX = 256
_ANSWER_BYTES_MAX = 128 << 20
"""What the link carries as one answer (docs/link.md)."""
CACHE_MAX = 1024
_FEW = 32
_PIECE = 16384
_ID_TAG = bytes([ModelInferResponse.ID_FIELD_NUMBER << 3 | 2])
RAW_TAG = bytes([ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def refuse(field: str, text: str) -> SemanticViolation:
    """The error for a field, to be raised."""
    return SemanticViolation(text, [(field, text)])


def element_count(name: str, shape: Sequence[int]) -> int:
    """Elements of a shape; raises for negative or huge dimensions."""
    count = 1
    for d in shape:
        if d < 0:
            raise refuse(name, f"input '{name}': shape {list(shape)} has the negative dimension {d}")
        count *= d
        if count > _ELEMENTS_MAX or d > _ELEMENTS_MAX:
            raise refuse(name, f"input '{name}': shape {list(shape)} has more than {_ELEMENTS_MAX} elements")
    return count


def _numbers(values: Sequence[Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Typed contents as an array, a piece at a time: all at once would keep the interpreter for 20 ms a MB."""
    array = np.empty(len(values), dtype)
    for at in range(0, len(values), _PIECE):
        array[at : at + _PIECE] = values[at : at + _PIECE]
    return array


def _typed_raw(contents: InferTensorContents, name: str, datatype: str, count: int) -> bytes:
    """Raw form of typed contents, so that both forms are one from here on."""
    wanted = _CONTENTS.get(datatype)
    if wanted is None:
        raise refuse(name, f"input '{name}': {datatype} has no typed contents, use raw_input_contents")
    for field, _ in contents.ListFields():
        if field.name != wanted:
            raise refuse(name, f"input '{name}': {datatype} belongs in {wanted}, found {field.name}")
    values = getattr(contents, wanted)
    if len(values) != count:
        raise refuse(name, f"input '{name}': {wanted} has {len(values)} elements, the shape has {count}")
    if datatype == "BYTES":
        return encode_bytes(values)
    dtype = NUMPY[datatype]
    wide = np.int64 if datatype in ("INT8", "INT16") else np.uint64 if datatype in ("UINT8", "UINT16") else dtype
    array = _numbers(values, wide)
    if array.dtype != dtype:
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise refuse(name, f"input '{name}': a value is outside {datatype} ({limits.min}..{limits.max})")
        array = array.astype(dtype)
    return array.tobytes()


def _check_shape(spec: TensorSpec, shape: Sequence[int]) -> None:
    wanted = spec.shape
    if len(shape) != len(wanted) or any(w not in (-1, s) for w, s in zip(wanted, shape, strict=True)):
        text = f"unexpected shape for input '{spec.name}': expected {list(wanted)}, got {list(shape)}"
        raise refuse(spec.name, text)


def _raw_inputs(request: ModelInferRequest, version: LoadedVersion) -> list[Tensor]:
    tensors: list[Tensor] = []
    raw = request.raw_input_contents
    seen: set[str] = set()
    if raw and len(raw) != len(request.inputs):
        raise refuse("raw_input_contents", f"raw_input_contents has {len(raw)} items, the request has {len(request.inputs)} inputs")
    for i, tensor in enumerate(request.inputs):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        spec = version.inputs.get(name)
        if spec is None:
            raise refuse(name[:_NAME_MAX], f"unexpected inference input '{name}' for model '{version.model}'")
        if name in seen:
            raise refuse(name, f"input '{name}' is given twice")
        seen.add(name)
        if tensor.parameters and "shared_memory_region" in tensor.parameters:
            raise Unimplemented(f"input '{name}': shared memory is not offered; send the tensor's contents")
        if datatype != spec.datatype:
            text = f"inference input '{name}' data-type is '{datatype}', but model '{version.model}' expects '{spec.datatype}'"
            raise refuse(name, text)
        count = version.known_shapes.get((name, shape))
        if count is None:
            count = element_count(name, shape)
            _check_shape(spec, shape)
            if len(version.known_shapes) < CACHE_MAX:
                version.known_shapes[name, shape] = count
        if raw:
            if tensor.HasField("contents"):
                raise refuse(name, f"input '{name}': contents and raw_input_contents exclude each other")
            data = raw[i]
        else:
            data = _typed_raw(tensor.contents, name, datatype, count)
        size = ITEM_BYTES.get(datatype)
        if size is not None and len(data) != size * count:
            text = f"input '{name}': shape {list(shape)} of {datatype} needs {size * count} bytes, got {len(data)}"
            raise refuse(name, text)
        tensors.append((name, datatype, shape, data))
    missing = version.inputs.keys() - seen
    if missing and (ragged := version.options.ragged) is not None:
        missing = missing - {ragged.mask}
    if missing:
        raise refuse(min(missing), f"expected {len(version.inputs)} inputs but got {len(seen)}: '{min(missing)}' is missing")
    return tensors


def _wanted_outputs(request: ModelInferRequest, version: LoadedVersion) -> tuple[str, ...]:
    if not request.outputs:
        return tuple(version.outputs)
    names: list[str] = []
    for output in request.outputs:
        if output.name not in version.outputs:
            raise refuse(output.name[:_NAME_MAX], f"unexpected inference output '{output.name}' for model '{version.model}'")
        if output.name in names:
            raise refuse(output.name, f"output '{output.name}' is asked for twice")
        if "shared_memory_region" in output.parameters:
            raise Unimplemented(f"output '{output.name}': the parameter 'shared_memory_region' is not offered; leave it out")
        names.append(output.name)
    return tuple(names)


def not_finite(name: str) -> SemanticViolation:
    """The error for an input with NaN or infinity."""
    return refuse(name, f"input '{name}' has a number that is not finite")


def finite(array: Array) -> bool:
    """Whether every number is finite. For a few numbers NumPy's own way in costs several times the work."""
    if array.size <= _FEW:
        # SR-001
        return all(map(math.isfinite, array.ravel().tolist()))
    return bool(np.isfinite(array).all())


def plausible(version: LoadedVersion, arrays: Sequence[Array]) -> bool:
    """Whether a whole batch passes ``check_output``; then its jobs need not be checked one by one."""
    low, high, check = version.options.output_min, version.options.output_max, version.options.finite_outputs
    for array in arrays:
        if array.dtype.kind != "f" or not array.size:
            continue
        if (check and not finite(array)) or (low is not None and array.min() < low) or (high is not None and array.max() > high):
            return False
    return True


def check_shape(name: str, shape: tuple[int, ...], version: LoadedVersion) -> None:
    """Raise ``OutputViolation`` unless an output has the shape that the graph declares."""
    wanted = version.outputs[name].shape
    if len(shape) != len(wanted) or any(w not in (-1, s) for w, s in zip(wanted, shape, strict=True)):
        # SR-003
        raise OutputViolation(f"output '{name}' of model '{version.model}' has the shape {list(shape)}, the graph declares {list(wanted)}")


def check_output(name: str, array: Array, version: LoadedVersion) -> None:
    """Raise ``OutputViolation`` unless the array is finite and within the model's limits."""
    if array.dtype.kind != "f":
        return
    if version.options.finite_outputs and not finite(array):
        raise OutputViolation(f"output '{name}' of model '{version.model}' is not finite")
    low, high = version.options.output_min, version.options.output_max
    if low is not None and array.size and float(array.min()) < low:
        raise OutputViolation(f"output '{name}' of model '{version.model}' has {float(array.min())}, the least plausible is {low}")
    # SR-002
    if high is not None and array.size and float(array.max()) > high:
        raise OutputViolation(f"output '{name}' of model '{version.model}' has {float(array.max())}, the most plausible is {high}")


def answer_head(version: LoadedVersion, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> bytes:
    """An answer without id and contents. Fields may stand in any order, so the rest is appended to it."""
    found = version.answer_heads.get((names, shapes))
    if found is not None:
        return found
    head = ModelInferResponse(model_name=version.model, model_version=version.text)
    head.parameters["vigil_model_digest"].string_param = version.digest
    for name, shape in zip(names, shapes, strict=True):
        head.outputs.add(name=name, datatype=version.outputs[name].datatype, shape=shape)
    encoded = head.SerializeToString()
    if len(version.answer_heads) < CACHE_MAX:
        version.answer_heads[names, shapes] = encoded
    return encoded


def id_field(request_id: str) -> bytes:
    """The encoded field ``id`` of an answer; empty without one."""
    if not request_id:
        return b""
    data = request_id.encode()
    return _ID_TAG + uvarint(len(data)) + data


def bounded(message: bytes) -> bytes:
    """The answer, unless it has more bytes than one may have: then raises ``LimitHit``."""
    if len(message) > _ANSWER_BYTES_MAX:
        raise LimitHit(
            f"the answer has {len(message)} bytes, the limit is {_ANSWER_BYTES_MAX}; ask for fewer rows or outputs",
            metadata={"limit": "answer_bytes"},
        )
    return message


class Finish:
    """Turns this request's share of the outputs, checked one by one, into an answer."""

    __slots__ = ("names", "request_id", "version")

    def __init__(self, request_id: str, version: LoadedVersion, names: tuple[str, ...]) -> None:
        self.request_id, self.version, self.names = request_id, version, names

    def __call__(self, arrays: Sequence[Array]) -> JobResult:
        version = self.version
        tensors: list[Tensor] = []
        parts = [answer_head(version, self.names, tuple([a.shape for a in arrays])), id_field(self.request_id)]
        for name, array in zip(self.names, arrays, strict=True):
            check_shape(name, array.shape, version)
            check_output(name, array, version)
            datatype = version.outputs[name].datatype
            raw = to_raw(array, datatype)
            parts += [RAW_TAG, uvarint(len(raw)), raw]
            tensors.append((name, datatype, array.shape, raw))
        return JobResult(tensor_hash(tensors), bounded(b"".join(parts)))


def infer_job(call: Call, request: ModelInferRequest, version: LoadedVersion) -> Job:
    """A checked job of a ModelInfer request; raises ``SemanticViolation``."""
    tensors = _raw_inputs(request, version)
    names = _wanted_outputs(request, version) if request.outputs else version.output_names
    feeds: dict[str, Array] = {}
    for name, datatype, shape, raw in tensors:
        array = from_raw(raw, datatype, tuple(shape), math.prod(shape), name)
        if version.options.finite_inputs and datatype in FLOATS and not finite(array):
            raise not_finite(name)
        feeds[name] = array
    rows = length = 0
    if version.max_batch_size > 0 and len(tensors) == 1:
        rows = tensors[0][2][0]
    elif version.max_batch_size > 0:
        firsts = {a.shape[0] for a in feeds.values()}
        if len(firsts) != 1:
            raise refuse("inputs", f"inputs have different first dimensions {sorted(firsts)}")
        rows = firsts.pop()
    limit = version.options.max_batch_size
    if limit and rows > limit:
        raise refuse("inputs", f"inference request batch-size must be <= {limit} for '{version.model}', got {rows}")
    shapes = {n: a.shape[1:] for n, a in feeds.items()}
    if (ragged := version.options.ragged) is not None:
        length = length_of(ragged, feeds)
        complete(ragged, version.session.contract, feeds)
        shapes |= {n: (*s[: a - 1], -1, *s[a:]) for n, a in ragged.inputs.items() for s in (shapes[n],)} | {ragged.mask: ()}
    key = (version, names, tuple(sorted(shapes.items())))
    finish = Finish(request.id, version, names)
    return Job(call, version, rows, names, key, tensor_hash(tensors), request.id, finish, feeds=feeds, length=length)
