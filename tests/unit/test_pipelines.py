"""Pipelines and frames on real pictures and hostile ones."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness.product import ROOT
from vigil_sidecar.engine.session import Session
from vigil_sidecar.errors import FrameRejected, LimitHit, OutputViolation
from vigil_sidecar.pipelines.detection import DetectedBox, check_boxes, fit_to_multiple
from vigil_sidecar.pipelines.face_detection import FaceDetection
from vigil_sidecar.pipelines.frames import FrameDecoder
from vigil_sidecar.pipelines.text_detection import TextDetection

PICTURES = ROOT / "build" / "pictures"
MODELS = ROOT / "models"


def decoder(memory: int = 1 << 29) -> FrameDecoder:
    return FrameDecoder(8192, 32 << 20, memory)


def png(width: int, height: int) -> bytes:
    """A PNG that says this size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_face_is_found_where_it_is() -> None:
    """The one face of a known picture is found, with landmarks inside the box."""
    image = decoder().decode((PICTURES / "astronaut.png").read_bytes())
    pipeline = FaceDetection({})
    session = Session(str(MODELS / "face-detection" / "1" / "model.onnx"))
    pipeline.check(session.contract)
    boxes = pipeline.boxes(session.run(pipeline.prepare(image)), 512, 512, 0.5)
    assert len(boxes) == 1
    face = boxes[0]
    assert face.confidence > 0.8
    assert 170 < face.x_min < face.x_max < 290 and 40 < face.y_min < face.y_max < 200
    assert all(face.x_min <= x <= face.x_max and face.y_min <= y <= face.y_max for x, y in face.landmarks)
    check_boxes(boxes, 512, 512)


def test_text_lines_are_found() -> None:
    """Lines of a printed page are found as wide, flat boxes."""
    image = decoder().decode((PICTURES / "page.png").read_bytes())
    pipeline = TextDetection({})
    session = Session(str(MODELS / "text-detection" / "1" / "model.onnx"))
    boxes = pipeline.boxes(session.run(pipeline.prepare(image)), image.shape[1], image.shape[0], 0.5)
    assert len(boxes) >= 3
    assert all(b.x_max - b.x_min > 2 * (b.y_max - b.y_min) for b in boxes)
    assert all(len(b.quadrilateral) == 4 for b in boxes)
    check_boxes(boxes, image.shape[1], image.shape[0])


def test_what_rounding_does_to_a_sigmoid_is_no_violation() -> None:
    """1.0000001 is one, as on a sign with large letters; confidences stay within 0..1."""
    for value in (np.float32(1.0000001), np.float32(1.000009)):
        boxes = TextDetection({}).boxes([np.full((1, 1, 32, 32), value, np.float32)], 32, 32, 0.5)
        assert boxes and all(b.confidence == 1.0 for b in boxes)
        maps = [np.full((1, c, 8, 8), value if c == 1 else 0.0, np.float32) for c in (1, 2, 2, 10)]
        found = FaceDetection({}).boxes(maps, 32, 32, 0.5)
        assert found and all(b.confidence == 1.0 for b in found)
        check_boxes([*boxes, *found], 32, 32)


@pytest.mark.parametrize("bad", [np.nan, 1.5, -0.5, 1.0001])
def test_implausible_maps_are_violations(bad: float) -> None:
    """A map that is not finite or not within 0..1 never becomes boxes."""
    with pytest.raises(OutputViolation):
        TextDetection({}).boxes([np.full((1, 1, 32, 32), bad, np.float32)], 32, 32, 0.5)
    maps = [np.full((1, c, 8, 8), bad if c == 1 else 0.0, np.float32) for c in (1, 2, 2, 10)]
    with pytest.raises(OutputViolation):
        FaceDetection({}).boxes(maps, 32, 32, 0.5)


@pytest.mark.parametrize(
    "box",
    [
        DetectedBox(0, 0, 11, 5, 0.5, ""), DetectedBox(-1, 0, 5, 5, 0.5, ""), DetectedBox(5, 0, 4, 5, 0.5, ""),
        DetectedBox(0, 0, 5, 5, 1.1, ""), DetectedBox(0, 0, float("nan"), 5, 0.5, ""), DetectedBox(0, 0, 5, 5, float("inf"), ""),
    ],
)  # fmt: skip
def test_implausible_boxes_are_violations(box: DetectedBox) -> None:
    """Outside the frame, reversed, not finite, confidence out of range."""
    with pytest.raises(OutputViolation):
        check_boxes([box], 10, 10)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not a picture", "neither a JPEG nor a PNG"), (b"", "neither"), (png(60000, 60000), "8192 a side"),
        (png(8000, 8000), "pixels"), (png(0, 5), "."), (png(64, 64), "cannot be decoded"),
        (b"GIF89a" + bytes(50), "neither"),
    ],
)  # fmt: skip
def test_broken_pictures(data: bytes, reason: str) -> None:
    """Broken pictures, bombs and zero sizes are refused with the limit in the text, before any decoding."""
    with pytest.raises(FrameRejected, match=reason):
        decoder().decode(data)


def test_truncated_picture() -> None:
    """Half a file is not half a picture."""
    data = (PICTURES / "astronaut.png").read_bytes()
    with pytest.raises(FrameRejected, match="cannot be decoded"):
        decoder().decode(data[: len(data) // 2])


def test_decoding_memory_is_reserved() -> None:
    """A picture that needs more memory than is free is refused by the limit's name, and frees nothing it did not take."""
    data = (PICTURES / "astronaut.png").read_bytes()
    small = decoder(1 << 20)
    for _ in range(3):
        with pytest.raises(LimitHit, match=r"limits\.decode_bytes_max"):
            small.decode(data)
    assert decoder(512 * 512 * 7).decode(data).shape == (512, 512, 3)


def test_raw_frames_must_fit() -> None:
    """Raw pixels have exactly three bytes each."""
    assert decoder().raw(2, 1, b"abcdef").shape == (1, 2, 3)
    with pytest.raises(FrameRejected, match="needs 6"):
        decoder().raw(2, 1, b"abcde")


def test_grey_and_alpha_become_rgb(tmp_path: Path) -> None:
    """Every mode of picture becomes three channels."""
    for mode in ("L", "LA", "P", "RGBA", "1", "CMYK"):
        buffer = io.BytesIO()
        Image.new(mode, (5, 4)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
        assert decoder().decode(buffer.getvalue()).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("size", "expected"), [((384, 191), (1472, 736)), ((10, 10), (736, 736)), ((5000, 100), (1600, 32)), ((1, 1), (736, 736))]
)
def test_network_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Sides are multiples of 32, enlarged to the least and bounded by the largest side."""
    assert fit_to_multiple(*size, 736, 1600, 32) == expected
