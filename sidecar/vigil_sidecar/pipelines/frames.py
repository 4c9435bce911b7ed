"""Decoding frames: size known and memory reserved before a pixel is decoded."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vigil_sidecar.errors import FrameRejected, LimitHit

__all__ = ["FrameDecoder", "load_pillow"]

Array = np.ndarray[Any, Any]
_FORMATS = ("JPEG", "PNG")
_BYTES_PER_PIXEL = 7  # RGBA or palette as decoded, and the RGB copy


def load_pillow() -> Any:
    """Pillow, loaded with the first pipeline and not with the sidecar: tensors need no pictures."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked before decoding, with a clearer text
    return Image


class FrameDecoder:
    """Decodes JPEG and PNG within limits. May be called from several threads at once."""

    def __init__(self, side_max: int, pixels_max: int, memory_bytes_max: int) -> None:
        self._side_max, self._pixels_max, self._memory_max = side_max, pixels_max, memory_bytes_max
        self._lock = threading.Lock()
        self._reserved = 0

    def check_size(self, width: int, height: int) -> None:
        """Raise ``FrameRejected`` for a size that is zero or too large."""
        if width < 1 or height < 1:
            raise FrameRejected(f"frame is {width}x{height}, it needs at least one pixel", [("frame", "empty")])
        if max(width, height) > self._side_max:
            raise FrameRejected(
                f"frame is {width}x{height}, the limit is {self._side_max} a side (limits.frame_side_max)",
                [("frame", f"a side above {self._side_max}")],
            )
        if width * height > self._pixels_max:
            raise FrameRejected(
                f"frame has {width * height} pixels, the limit is {self._pixels_max} (limits.frame_pixels_max)",
                [("frame", f"more than {self._pixels_max} pixels")],
            )

    @contextmanager
    def _reserve(self, size: int) -> Iterator[None]:
        with self._lock:
            if self._reserved + size > self._memory_max:
                raise LimitHit(
                    f"decoding needs {size} bytes, {self._memory_max - self._reserved} are free (limits.decode_bytes_max)",
                    metadata={"limit": "limits.decode_bytes_max"},
                )
            self._reserved += size
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size

    def decode(self, data: bytes) -> Array:
        """RGB pixels [height, width, 3] of uint8."""
        image_module = load_pillow()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = image_module.open(io.BytesIO(data), formats=_FORMATS)
        except Exception:  # Pillow's parsers raise many classes on hostile headers
            raise FrameRejected("frame is neither a JPEG nor a PNG picture", [("frame.encoded", "not JPEG or PNG")]) from None
        self.check_size(*image.size)
        with self._reserve(image.size[0] * image.size[1] * _BYTES_PER_PIXEL):
            try:
                return np.asarray(image.convert("RGB"))
            except Exception as error:  # truncated or inconsistent picture
                text = str(error).split("\n")[0][:120]
                raise FrameRejected(f"frame cannot be decoded: {text}", [("frame.encoded", "damaged")]) from None

    def raw(self, width: int, height: int, rgb: bytes) -> Array:
        """RGB pixels of a raw frame; its size must fit."""
        self.check_size(width, height)
        if len(rgb) != 3 * width * height:
            raise FrameRejected(
                f"frame.raw.rgb has {len(rgb)} bytes, {width}x{height} needs {3 * width * height}", [("frame.raw.rgb", "wrong size")]
            )
        return np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
