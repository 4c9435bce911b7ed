"""Pipelines by the name that a model's vigil.toml gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vigil_sidecar.errors import CandidateRefused
from vigil_sidecar.pipelines.detection import DetectionPipeline
from vigil_sidecar.pipelines.face_detection import FaceDetection
from vigil_sidecar.pipelines.text_detection import TextDetection

__all__ = ["PIPELINES", "make_pipeline"]

PIPELINES: dict[str, Callable[[Mapping[str, Any]], DetectionPipeline]] = {
    "text-detection": TextDetection,
    "face-detection": FaceDetection,
}


def make_pipeline(name: str, options: Mapping[str, Any]) -> DetectionPipeline:
    """A pipeline; raises ``CandidateRefused`` for an unknown name or option value."""
    if name not in PIPELINES:
        raise CandidateRefused(f"unknown pipeline '{name}'; known are {', '.join(PIPELINES)}")
    try:
        return PIPELINES[name](options)
    except (TypeError, ValueError) as error:
        raise CandidateRefused(f"pipeline '{name}': {error}") from None
