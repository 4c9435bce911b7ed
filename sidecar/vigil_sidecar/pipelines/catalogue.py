"""Pipelines by the name that a model's vigil.toml gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from vigil_sidecar.errors import CandidateRefused
from vigil_sidecar.pipelines.detection import DetectionPipeline
from vigil_sidecar.pipelines.frames import load_pillow

__all__ = ["PIPELINES", "libraries_loaded", "make_pipeline"]

PIPELINES = {
    "text-detection": ("text_detection", "TextDetection"),
    "face-detection": ("face_detection", "FaceDetection"),
}
"""Module and class; loaded with the first model that names it, since OpenCV takes time and memory of every start."""

_COMMON = {"side_max": (32, 8192), "threshold": (0, 1), "boxes_max": (1, 100_000)}
_OPTIONS: dict[str, dict[str, tuple[float, float]]] = {
    "text-detection": {**_COMMON, "side_min": (32, 8192), "unclip_ratio": (0, 10), "size_min": (0, 8192)},
    "face-detection": {**_COMMON, "overlap_max": (0, 1)},
}
"""Keys of a model's ``[pipeline]`` and the least and largest value of each."""


def make_pipeline(name: str, options: Mapping[str, Any]) -> DetectionPipeline:
    """A pipeline; raises ``CandidateRefused`` for an unknown name or option value."""
    if name not in PIPELINES:
        raise CandidateRefused(f"unknown pipeline '{name}'; known are {', '.join(PIPELINES)}")
    known = _OPTIONS[name]
    for key, value in options.items():
        if key not in known:
            raise CandidateRefused(f"pipeline '{name}': unknown key '{key}'; known are {', '.join(known)}")
        low, high = known[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise CandidateRefused(f"pipeline '{name}': {key} = {value!r}: allowed is {low:g}..{high:g}")
    try:
        return _made(name)(options)
    except (TypeError, ValueError) as error:
        raise CandidateRefused(f"pipeline '{name}': {error}") from None


def _made(name: str) -> Callable[[Mapping[str, Any]], DetectionPipeline]:
    module, kind = PIPELINES[name]
    try:
        load_pillow()
        found: Callable[[Mapping[str, Any]], DetectionPipeline] = getattr(import_module(f"vigil_sidecar.pipelines.{module}"), kind)
    except (ImportError, MemoryError) as error:
        vars(sys).pop("OpenCV_LOADER", None)  # OpenCV takes what it left there for a recursion when it is tried again
        raise CandidateRefused(f"pipeline '{name}': its libraries cannot be loaded: {error}") from None
    return found


def libraries_loaded() -> bool:
    """Whether what pipelines need is in this process already: loading it lets nothing else run for a moment."""
    return all(f"vigil_sidecar.pipelines.{module}" in sys.modules for module, _ in PIPELINES.values())
