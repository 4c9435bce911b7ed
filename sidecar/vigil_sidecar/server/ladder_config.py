"""The table ``[ladder]`` of a model's vigil.toml, read into plain options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vigil_sidecar.errors import CandidateRefused
from vigil_sidecar.registry.options import Constant, LadderOptions
from vigil_sidecar.registry.repository import MODEL_NAME

__all__ = ["read_ladder"]

_AGE_MS_MAX = 3_600_000
_BOXES_MAX = 256
_DIMENSIONS_MAX = 16
_LABEL_MAX = 256
_CORNERS = ("x_min", "y_min", "x_max", "y_max")


def _refuse(text: str) -> CandidateRefused:
    return CandidateRefused(f"vigil.toml: {text}")


def _only(table: Mapping[str, Any], known: tuple[str, ...], path: str) -> None:
    for key in table:
        if key not in known:
            raise _refuse(f"unknown key '{path}.{key}'; known are {', '.join(known)}")


def _constant(name: str, table: Any) -> Constant:
    path = f"ladder.outputs.{name}"
    if not isinstance(table, dict):
        raise _refuse(f"{path} = {table!r} has the wrong type; give values or fill")
    _only(table, ("values", "fill", "shape"), path)
    if ("values" in table) == ("fill" in table):
        raise _refuse(f"{path} needs either values or fill")
    values = table["values"] if "values" in table else [table["fill"]]
    if not isinstance(values, list) or any(not isinstance(v, (int, float, bool, str)) for v in values):
        raise _refuse(f"{path}.values: numbers, strings or booleans are allowed, in one flat list")
    shape = table.get("shape")
    if shape is not None and (
        not isinstance(shape, list) or len(shape) > _DIMENSIONS_MAX or any(type(d) is not int or not 0 <= d < 1 << 31 for d in shape)
    ):
        raise _refuse(f"{path}.shape = {shape!r}: allowed are up to {_DIMENSIONS_MAX} sizes from 0")
    return Constant(tuple(values), "fill" in table, None if shape is None else tuple(shape))


def _box(number: int, table: Any) -> tuple[float, float, float, float, float, str]:
    path = f"ladder.boxes[{number}]"
    if not isinstance(table, dict):
        raise _refuse(f"{path} = {table!r} has the wrong type")
    _only(table, (*_CORNERS, "confidence", "label"), path)
    corners = [table.get(c) for c in _CORNERS]
    confidence, label = table.get("confidence", 1.0), table.get("label", "")
    for name, value in zip((*_CORNERS, "confidence"), (*corners, confidence), strict=True):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
            raise _refuse(f"{path}.{name} = {value!r}: allowed is 0..1 (of the frame)")
    x_min, y_min, x_max, y_max = (float(c) for c in corners if c is not None)
    if x_min > x_max or y_min > y_max:
        raise _refuse(f"{path}: x_min <= x_max and y_min <= y_max must hold")
    if not isinstance(label, str) or len(label) > _LABEL_MAX:
        raise _refuse(f"{path}.label = {label!r}: a text of at most {_LABEL_MAX} characters is allowed")
    return x_min, y_min, x_max, y_max, float(confidence), label


def read_ladder(table: Mapping[str, Any]) -> LadderOptions:
    """Options of a ladder; raises ``CandidateRefused`` naming the field. What the graph decides is checked at loading."""
    _only(table, ("last_good_ms", "fallback_model", "outputs", "boxes"), "ladder")
    age = table.get("last_good_ms", 0)
    if not isinstance(age, (int, float)) or isinstance(age, bool) or not math.isfinite(age) or not 0 <= age <= _AGE_MS_MAX:
        raise _refuse(f"ladder.last_good_ms = {age!r}: allowed is 0..{_AGE_MS_MAX} (ms)")
    fallback = table.get("fallback_model", "")
    if not isinstance(fallback, str) or (fallback and not MODEL_NAME.fullmatch(fallback)):
        raise _refuse(f"ladder.fallback_model = {fallback!r} is no name of a model")
    outputs = table.get("outputs", {})
    if not isinstance(outputs, dict):
        raise _refuse(f"ladder.outputs = {outputs!r} has the wrong type")
    boxes = table.get("boxes")
    if boxes is not None and (not isinstance(boxes, list) or len(boxes) > _BOXES_MAX):
        raise _refuse(f"ladder.boxes: a list of at most {_BOXES_MAX} tables is allowed")
    return LadderOptions(
        math.ceil(age), fallback, {n: _constant(n, t) for n, t in outputs.items()},
        None if boxes is None else tuple(_box(i, b) for i, b in enumerate(boxes)),
    )  # fmt: skip
