"""Text detection by differentiable binarisation, as PP-OCR's graphs do it.

Liao et al., "Real-time Scene Text Detection with Differentiable Binarization",
AAAI 2020. The graph gives a probability map; regions above a threshold are
boxed and widened, because the network learns shrunk regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from vigil_sidecar.engine.contract import Contract
from vigil_sidecar.pipelines.detection import Array, DetectedBox, fit_to_multiple, probability_map, require_image_input

__all__ = ["TextDetection"]


class TextDetection:
    """Input [1,3,H,W], BGR, (x/255 - 0.5)/0.5, sides multiples of 32; output [1,1,H,W] of probabilities."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._side_min = int(options.get("side_min", 736))
        self._side_max = int(options.get("side_max", 1600))
        self._threshold = float(options.get("threshold", 0.3))
        self._unclip_ratio = float(options.get("unclip_ratio", 1.6))
        self._boxes_max = int(options.get("boxes_max", 1000))
        self._size_min = float(options.get("size_min", 3))
        self._input = "x"

    def check(self, contract: Contract) -> None:
        """One picture in, one map out."""
        require_image_input(contract, 1)
        self._input = contract.inputs[0].name

    def prepare(self, image: Array) -> dict[str, Array]:
        """See the class for the form."""
        height, width = image.shape[:2]
        size = fit_to_multiple(width, height, self._side_min, self._side_max, 32)
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        scaled = resized[:, :, ::-1].astype(np.float32) * np.float32(2 / 255) - np.float32(1)
        return {self._input: np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])}

    def boxes(self, outputs: Sequence[Array], width: int, height: int, min_confidence: float) -> list[DetectedBox]:
        """Widened rotated rectangles, most confident first."""
        probabilities = probability_map(outputs[0][0, 0], "probability map")
        rows, columns = probabilities.shape
        mask = cv2.dilate((probabilities > self._threshold).astype(np.uint8), np.ones((2, 2), np.uint8))
        contours = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]
        found = []
        for contour in contours[: self._boxes_max]:
            box = self._box(probabilities, contour, width / columns, height / rows, (width, height))
            if box is not None and box.confidence >= min_confidence:
                found.append(box)
        return sorted(found, key=lambda b: -b.confidence)

    def _box(self, probabilities: Array, contour: Array, scale_x: float, scale_y: float, frame: tuple[int, int]) -> DetectedBox | None:
        centre, (w, h), angle = cv2.minAreaRect(contour)
        if min(w, h) < self._size_min:
            return None
        confidence = _mean_inside(probabilities, cv2.boxPoints((centre, (w, h), angle)))
        # Widening a rectangle by d on all sides and boxing it again is the rectangle with sides + 2d.
        d = w * h * self._unclip_ratio / (2 * (w + h))
        corners = cv2.boxPoints((centre, (w + 2 * d, h + 2 * d), angle))
        xs = np.clip(corners[:, 0] * scale_x, 0, frame[0])
        ys = np.clip(corners[:, 1] * scale_y, 0, frame[1])
        quadrilateral = tuple((float(x), float(y)) for x, y in zip(xs, ys, strict=True))
        return DetectedBox(float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max()), confidence, "text", quadrilateral)


def _mean_inside(probabilities: Array, corners: Array) -> float:
    rows, columns = probabilities.shape
    x0, y0 = np.clip(np.floor(corners.min(axis=0)), 0, [columns - 1, rows - 1]).astype(int)
    x1, y1 = np.clip(np.ceil(corners.max(axis=0)), 0, [columns - 1, rows - 1]).astype(int)
    mask = np.zeros((y1 - y0 + 1, x1 - x0 + 1), np.uint8)
    cv2.fillPoly(mask, [np.round(corners - [x0, y0]).astype(np.int32)], 1)
    return float(min(1.0, max(0.0, cv2.mean(probabilities[y0 : y1 + 1, x0 : x1 + 1], mask)[0])))
