"""Datatypes: Open Inference spelling, NumPy and ONNX Runtime."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from vigil_sidecar.errors import SemanticViolation

__all__ = ["FLOATS", "ITEM_BYTES", "NUMPY", "ORT_TO_OIP", "decode_bytes", "encode_bytes", "from_raw", "to_raw"]

NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_), "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"), "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
ITEM_BYTES = {name: dtype.itemsize for name, dtype in NUMPY.items()}
FLOATS = frozenset({"FP16", "FP32", "FP64"})
ORT_TO_OIP = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64", "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32",
    "tensor(int64)": "INT64", "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}  # fmt: skip
_LENGTH = struct.Struct("<I")


def decode_bytes(raw: bytes | memoryview, count: int, name: str) -> list[str]:
    """Elements of a BYTES tensor: each a 4-byte little-endian length and its bytes, which must be UTF-8.

    ONNX Runtime's Python interface takes strings only, so other bytes are refused by name.
    """
    out: list[str] = []
    at, view = 0, memoryview(raw)
    while at < len(view):
        if at + 4 > len(view):
            raise SemanticViolation(f"input '{name}': BYTES element {len(out)} has no whole length", [(name, "cut off")])
        (size,) = _LENGTH.unpack_from(view, at)
        at += 4
        if size > len(view) - at:
            raise SemanticViolation(
                f"input '{name}': BYTES element {len(out)} says {size} bytes, {len(view) - at} are left", [(name, "cut off")]
            )
        try:
            out.append(str(view[at : at + size], "utf-8"))
        except UnicodeDecodeError:
            raise SemanticViolation(f"input '{name}': BYTES element {len(out)} is not UTF-8", [(name, "not UTF-8")]) from None
        at += size
        if len(out) > count:
            break
    if len(out) != count:
        raise SemanticViolation(f"input '{name}': {len(out)} BYTES elements, shape has {count}", [(name, "wrong count")])
    return out


def encode_bytes(items: Sequence[str | bytes]) -> bytes:
    """Raw form of BYTES elements."""
    parts = []
    for item in items:
        data = item.encode() if isinstance(item, str) else bytes(item)
        parts += [_LENGTH.pack(len(data)), data]
    return b"".join(parts)


def from_raw(raw: bytes | memoryview, datatype: str, shape: tuple[int, ...], count: int, name: str) -> np.ndarray[Any, Any]:
    """Array of a tensor from its raw little-endian bytes; a view where the type allows it."""
    if datatype == "BYTES":
        return np.array(decode_bytes(raw, count, name), dtype=object).reshape(shape)
    if datatype == "BOOL" and len(raw) and max(raw) > 1:
        raise SemanticViolation(f"input '{name}': BOOL bytes must be 0 or 1", [(name, "not 0 or 1")])
    return np.frombuffer(raw, dtype=NUMPY[datatype]).reshape(shape)


def to_raw(array: np.ndarray[Any, Any], datatype: str) -> bytes:
    """Raw little-endian bytes of an array."""
    if datatype == "BYTES":
        return encode_bytes([x if isinstance(x, (str, bytes)) else str(x) for x in array.ravel().tolist()])
    return array.tobytes()
