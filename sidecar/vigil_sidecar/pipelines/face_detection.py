"""Face detection by centre points (Xu et al., "CenterFace: Joint Face Detection and Alignment", 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from vigil_sidecar.engine.contract import Contract
from vigil_sidecar.errors import OutputViolation
from vigil_sidecar.pipelines.detection import Array, DetectedBox, fit_to_multiple, probability_map, require_image_input

__all__ = ["FaceDetection"]

_STRIDE = 4
_LANDMARKS = 5


class FaceDetection:
    """Input [1,3,H,W], RGB 0..255, sides multiples of 32.

    Outputs at a quarter of the size: heat map [1,1], logarithm of the box size
    [1,2] (height, width), offset of the centre [1,2] (y, x), landmarks [1,10] (y, x each).
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._side_max = int(options.get("side_max", 640))
        self._threshold = float(options.get("threshold", 0.35))
        self._overlap_max = float(options.get("overlap_max", 0.3))
        self._boxes_max = int(options.get("boxes_max", 1000))
        self._input = "input.1"

    def check(self, contract: Contract) -> None:
        """One picture in, four maps out."""
        require_image_input(contract, 4)
        channels = [t.shape[1] if len(t.shape) == 4 else -1 for t in contract.outputs]
        if [c for c in channels if c != -1] not in ([1, 2, 2, 10], []):
            require_image_input(contract, -1)
        self._input = contract.inputs[0].name

    def prepare(self, image: Array) -> dict[str, Array]:
        """See the class for the form."""
        height, width = image.shape[:2]
        size = fit_to_multiple(width, height, 1, self._side_max, 32)
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        return {self._input: np.ascontiguousarray(resized.astype(np.float32).transpose(2, 0, 1)[None])}

    def boxes(self, outputs: Sequence[Array], width: int, height: int, min_confidence: float) -> list[DetectedBox]:
        """Boxes after suppression of overlaps, most confident first."""
        if not all(np.isfinite(o).all() for o in outputs):
            raise OutputViolation("an output map is not finite")
        heat, size, offset, marks = (o[0] for o in outputs)
        heat = probability_map(heat, "heat map")
        rows, columns = heat.shape[1:]
        to_x, to_y = width / (columns * _STRIDE), height / (rows * _STRIDE)
        ys, xs = np.nonzero(heat[0] > max(self._threshold, min_confidence))
        if len(ys) == 0:
            return []
        confidence = heat[0, ys, xs]
        order = np.argsort(-confidence)[: self._boxes_max]
        ys, xs, confidence = ys[order], xs[order], confidence[order]
        h, w = (np.exp(np.minimum(size[i, ys, xs], 10.0)) * _STRIDE for i in (0, 1))
        top = np.maximum(0, (ys + offset[0, ys, xs] + 0.5) * _STRIDE - h / 2)
        left = np.maximum(0, (xs + offset[1, ys, xs] + 0.5) * _STRIDE - w / 2)
        rectangles = np.stack([left, top, w, h], axis=1)
        kept = cv2.dnn.NMSBoxes(rectangles.tolist(), confidence.tolist(), 0.0, self._overlap_max)
        found = []
        for i in np.asarray(kept).ravel().tolist():
            x, y, bw, bh = rectangles[i]
            x0, x1 = (float(np.clip(v * to_x, 0, width)) for v in (x, x + bw))
            y0, y1 = (float(np.clip(v * to_y, 0, height)) for v in (y, y + bh))
            points = tuple(
                (
                    float(np.clip((x + marks[2 * k + 1, ys[i], xs[i]] * bw) * to_x, 0, width)),
                    float(np.clip((y + marks[2 * k, ys[i], xs[i]] * bh) * to_y, 0, height)),
                )
                for k in range(_LANDMARKS)
            )
            found.append(DetectedBox(x0, y0, x1, y1, float(confidence[i]), "face", (), points))
        return sorted(found, key=lambda b: -b.confidence)
