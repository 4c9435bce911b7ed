"""What a detection pipeline is: picture to feeds, outputs to boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vigil_sidecar.engine.contract import Contract
from vigil_sidecar.errors import CandidateRefused, OutputViolation

__all__ = ["Array", "DetectedBox", "DetectionPipeline", "check_boxes", "fit_to_multiple", "probability_map"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DetectedBox:
    """A box in pixels of the frame; corners and landmarks as (x, y)."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float
    confidence: float
    label: str
    quadrilateral: tuple[tuple[float, float], ...] = ()
    landmarks: tuple[tuple[float, float], ...] = ()


class DetectionPipeline(Protocol):
    """Stateless; every method may be called from several threads at once."""

    def check(self, contract: Contract) -> None:
        """Raise ``CandidateRefused`` when a graph cannot be driven by this pipeline."""

    def prepare(self, image: Array) -> Mapping[str, Array]:
        """Feeds with a first axis of 1 for an RGB image [height, width, 3] of uint8."""

    def boxes(self, outputs: Sequence[Array], width: int, height: int, min_confidence: float) -> list[DetectedBox]:
        """Boxes from the graph's outputs of this row (first axis 1), clipped to the frame."""


_ROUNDING = 1e-5
"""A graph's sigmoid may be so far outside 0..1: single precision sums in another order on each processor."""


def probability_map(values: Array, what: str) -> Array:
    """The map within 0..1; raises ``OutputViolation`` when it is further outside than rounding takes it."""
    if not np.isfinite(values).all():
        raise OutputViolation(f"the {what} is not finite")
    low, high = float(values.min()), float(values.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise OutputViolation(f"the {what} is not within 0..1, but {low:.7g}..{high:.7g}")
    return values if low >= 0 and high <= 1 else np.clip(values, 0, 1)


def fit_to_multiple(width: int, height: int, side_min: int, side_max: int, multiple: int) -> tuple[int, int]:
    """Size of the network's input: the shorter side enlarged to ``side_min``, the longer at most ``side_max``.

    Both are multiples of ``multiple``; the aspect is nearly kept.
    """
    scale = min(max(1.0, side_min / min(width, height)), side_max / max(width, height))
    return (
        max(multiple, round(width * scale / multiple) * multiple),
        max(multiple, round(height * scale / multiple) * multiple),
    )


def require_image_input(contract: Contract, outputs: int) -> None:
    """The graph takes one FP32 picture [N, 3, H, W] and has this many outputs."""
    if len(contract.inputs) != 1 or contract.inputs[0].datatype != "FP32" or len(contract.inputs[0].shape) != 4:
        raise CandidateRefused(f"the pipeline needs one FP32 input [N,3,H,W], the graph has {[str(t) for t in contract.inputs]}")
    if len(contract.outputs) != outputs:
        raise CandidateRefused(f"the pipeline needs {outputs} outputs, the graph has {len(contract.outputs)}")


def check_boxes(boxes: Sequence[DetectedBox], width: int, height: int) -> None:
    """Raise ``OutputViolation`` unless every box is finite, ordered, inside the frame, its confidence 0..1."""
    for i, b in enumerate(boxes):
        values = (b.x_min, b.y_min, b.x_max, b.y_max, b.confidence)
        if not all(map(math.isfinite, values)):
            raise OutputViolation(f"box {i} is not finite")
        if not 0.0 <= b.confidence <= 1.0:
            raise OutputViolation(f"box {i} has confidence {b.confidence}, allowed is 0..1")
        # SR-004
        if not (0 <= b.x_min <= b.x_max <= width and 0 <= b.y_min <= b.y_max <= height):
            raise OutputViolation(f"box {i} lies outside the frame of {width}x{height}")
