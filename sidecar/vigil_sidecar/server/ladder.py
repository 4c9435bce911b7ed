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
_CONSTANT_BYTES_MAX = 1 << 20
"""Of one model, all outputs of one row."""
_ANSWER_BYTES_MAX = 16 << 20
"""Of an answer of as many rows as a batch may have."""
_ALL_BYTES_MAX = 32 << 20
"""Of all models."""


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
    values = constant.values
    if not constant.fill and len(values) != count:
        raise _refuse(spec.name, f"{len(values)} values, shape {list(shape)} has {count}")
    texts = [isinstance(v, str) for v in values]
    if any(texts) != (spec.datatype == "BYTES" and count > 0) or any(texts) != all(texts):
        raise _refuse(spec.name, f"the values do not fit {spec.datatype}")
    if spec.datatype == "BYTES":
        return np.full(shape, values[0], object) if constant.fill else np.array(values, dtype=object).reshape(shape)
    dtype = NUMPY[spec.datatype]
    if spec.datatype not in FLOATS:
        limits = (0, 1) if spec.datatype == "BOOL" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        for v in values:
            if isinstance(v, float) or not limits[0] <= int(v) <= limits[1]:
                raise _refuse(spec.name, f"{v!r} is outside {spec.datatype}")
    with np.errstate(over="ignore"):  # what became infinite is refused as such
        return np.full(shape, values[0], dtype) if constant.fill else np.array(values, dtype=dtype).reshape(shape)


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
    version.stand_in = told = _message(version)
    size = sum(len(o.raw) for o in told.outputs)
    if size * max(1, version.max_batch_size) > _ANSWER_BYTES_MAX:
        text = f"a batch of {version.max_batch_size} rows of {size} bytes is larger than {_ANSWER_BYTES_MAX}"
        raise CandidateRefused(f"vigil.toml: ladder.outputs: {text}")
    others = [m.serving.stand_in for n, m in models.items() if n != version.model and m.serving is not None]
    if told.ByteSize() + sum(t.ByteSize() for t in others if t is not None) > _ALL_BYTES_MAX:
        raise CandidateRefused(f"vigil.toml: ladder: those of all models together have more than {_ALL_BYTES_MAX} bytes")
    if ladder.boxes is not None and version.options.pipeline is None:
        raise CandidateRefused("vigil.toml: ladder.boxes answer Detect, and the model has no [pipeline]")
    if ladder.fallback_model == version.model:
        raise CandidateRefused("vigil.toml: ladder.fallback_model is the model itself")
    other = models.get(ladder.fallback_model)
    if other is not None and (problem := _unfit(version, other.serving)):
        raise CandidateRefused(f"vigil.toml: ladder.fallback_model '{ladder.fallback_model}' {problem}")


def _unfit(version: LoadedVersion, other: LoadedVersion | None) -> str:
    """Why a version cannot stand in for another; empty when it can, or is not there."""
    if other is None:
        return ""
    if version.options.pipeline is not None:
        return "" if other.options.pipeline is not None else "has no [pipeline]"
    difference = other.session.contract.difference(version.session.contract)
    return f"has another contract: {difference}" if difference is not None else ""


def _message(version: LoadedVersion) -> link.Ladder:
    ladder = version.options.ladder
    assert ladder is not None
    out = link.Ladder(
        model=version.model, last_good_ms=ladder.last_good_ms, fallback_model=ladder.fallback_model, outputs=_constants(version),
        constant_boxes=ladder.boxes is not None, max_batch_size=version.max_batch_size, finite_inputs=version.options.finite_inputs,
        version=version.text, digest=version.digest,
    )  # fmt: skip
    for spec in version.inputs.values():
        out.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    for x_min, y_min, x_max, y_max, confidence, label in ladder.boxes or ():
        out.boxes.add(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max, confidence=confidence, label=label)
    return out


class Ladders:
    """The ladders of all models, made anew only when some serving version changed. One thread calls."""

    def __init__(self) -> None:
        self._of: tuple[tuple[str, LoadedVersion | None], ...] | None = None
        self._message = link.Ladders()

    def message(self, models: Iterable[Model]) -> link.Ladders:
        """The same object until something changed."""
        serving = tuple((m.name, m.serving) for m in models)
        if serving != self._of:
            by_name = dict(serving)
            made = link.Ladders(waiting=[n for n, v in serving if v is None])
            for version in by_name.values():
                if version is None or version.stand_in is None:
                    continue
                one = made.ladders.add()
                one.CopyFrom(version.stand_in)
                other = by_name.get(one.fallback_model)
                if other is None or _unfit(version, other):  # it may come, or come to fit, later
                    one.fallback_model = ""
                elif version.options.pipeline is not None:
                    one.fallback_detects_only = other.session.contract.difference(version.session.contract) is not None
            self._message, self._of = made, serving
        return self._message
