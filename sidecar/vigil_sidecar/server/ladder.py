"""What the gateway needs to know of the models' ladders, and the gate that checks them at loading."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from vigil.link.v1 import link_pb2 as link

from vigil_sidecar.engine.contract import TensorSpec
from vigil_sidecar.engine.datatypes import FLOATS, NUMPY, encode_bytes
from vigil_sidecar.errors import CandidateRefused, OutputViolation
from vigil_sidecar.registry.options import Constant
from vigil_sidecar.registry.registry import Model
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.open_inference import check_output

__all__ = ["Ladders", "check_ladder"]

Array = np.ndarray[Any, Any]
_CONSTANT_BYTES_MAX = 4 << 20
"""Of one model, all outputs of one row."""


def _refuse(name: str, text: str) -> CandidateRefused:
    return CandidateRefused(f"vigil.toml: ladder.outputs.{name}: {text}")


def _shape(spec: TensorSpec, constant: Constant, batched: bool) -> tuple[int, ...]:
    open_shape = spec.shape[1:] if batched else spec.shape
    if constant.shape is None:
        if -1 in open_shape:
            raise _refuse(spec.name, f"the graph leaves {list(open_shape)} open; give its shape")
        return open_shape
    fits = len(constant.shape) == len(open_shape) and all(w in (-1, s) for w, s in zip(open_shape, constant.shape, strict=True))
    if not fits:
        raise _refuse(spec.name, f"shape {list(constant.shape)} is not of the graph's form {list(open_shape)}")
    return constant.shape


def _array(spec: TensorSpec, constant: Constant, shape: tuple[int, ...]) -> Array:
    count = int(np.prod(shape, dtype=np.int64))
    values = constant.values * count if constant.fill else constant.values
    if len(values) != count:
        raise _refuse(spec.name, f"{len(values)} values, shape {list(shape)} has {count}")
    texts = [isinstance(v, str) for v in values]
    if any(texts) != (spec.datatype == "BYTES" and count > 0) or any(texts) != all(texts):
        raise _refuse(spec.name, f"the values do not fit {spec.datatype}")
    if spec.datatype == "BYTES":
        return np.array(values, dtype=object).reshape(shape)
    dtype = NUMPY[spec.datatype]
    if spec.datatype not in FLOATS:
        limits = (0, 1) if spec.datatype == "BOOL" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        for v in values:
            if isinstance(v, float) or not limits[0] <= int(v) <= limits[1]:
                raise _refuse(spec.name, f"{v!r} is outside {spec.datatype}")
    with np.errstate(over="ignore"):  # what became infinite is refused as such
        return np.array(values, dtype=dtype).reshape(shape)


def _constants(version: LoadedVersion) -> list[link.ConstantOutput]:
    """The constant outputs as bytes; raises ``CandidateRefused`` unless they are of the graph's form, and plausible."""
    ladder = version.options.ladder
    if ladder is None or not ladder.outputs:
        return []
    unknown, missing = ladder.outputs.keys() - version.outputs.keys(), version.outputs.keys() - ladder.outputs.keys()
    if unknown or missing:
        name = min(unknown or missing)
        raise _refuse(name, "the graph has no such output" if unknown else "is missing; constants are given for all outputs or none")
    out, size = [], 0
    for name, spec in version.outputs.items():
        shape = _shape(spec, ladder.outputs[name], version.max_batch_size > 0)
        bytes_wanted = int(np.prod(shape, dtype=np.int64)) * (4 if spec.datatype == "BYTES" else NUMPY[spec.datatype].itemsize)
        size += bytes_wanted
        if size > _CONSTANT_BYTES_MAX:
            raise _refuse(name, f"all constants together have {size} bytes, the limit is {_CONSTANT_BYTES_MAX}")
        array = _array(spec, ladder.outputs[name], shape)
        try:
            check_output(name, array, version)
        except OutputViolation as error:
            raise _refuse(name, error.text) from None
        raw = encode_bytes(array.ravel().tolist()) if spec.datatype == "BYTES" else array.tobytes()
        out.append(link.ConstantOutput(name=name, datatype=spec.datatype, shape=shape, raw=raw))
    return out


def check_ladder(version: LoadedVersion, models: dict[str, Model]) -> None:
    """Raise ``CandidateRefused`` unless the version's ladder fits its graph, and its fallback model, if it is there already."""
    ladder = version.options.ladder
    if ladder is None:
        return
    _constants(version)
    if ladder.boxes is not None and version.options.pipeline is None:
        raise CandidateRefused("vigil.toml: ladder.boxes answer Detect, and the model has no [pipeline]")
    if ladder.fallback_model == version.model:
        raise CandidateRefused("vigil.toml: ladder.fallback_model is the model itself")
    other = models.get(ladder.fallback_model)
    if other is not None and other.serving is not None and version.options.pipeline is None:
        difference = other.serving.session.contract.difference(version.session.contract)
        if difference is not None:
            raise CandidateRefused(f"vigil.toml: ladder.fallback_model '{ladder.fallback_model}' has another contract: {difference}")


def _message(version: LoadedVersion) -> link.Ladder:
    ladder = version.options.ladder
    assert ladder is not None
    out = link.Ladder(
        model=version.model, last_good_ms=ladder.last_good_ms, fallback_model=ladder.fallback_model, outputs=_constants(version),
        constant_boxes=ladder.boxes is not None, max_batch_size=version.max_batch_size, finite_inputs=version.options.finite_inputs,
    )  # fmt: skip
    for spec in version.inputs.values():
        out.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    for x_min, y_min, x_max, y_max, confidence, label in ladder.boxes or ():
        out.boxes.add(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max, confidence=confidence, label=label)
    return out


class Ladders:
    """The ladders of all models, made anew only when some serving version changed. One thread calls."""

    def __init__(self) -> None:
        self._of: tuple[LoadedVersion, ...] | None = None
        self._message = link.Ladders()

    def message(self, models: Iterable[Model]) -> link.Ladders:
        """The same object until something changed."""
        serving = tuple(v for v in [m.serving for m in models] if v is not None and v.options.ladder is not None)
        if serving != self._of:
            self._message = link.Ladders(ladders=[_message(v) for v in serving])
            self._of = serving
        return self._message
