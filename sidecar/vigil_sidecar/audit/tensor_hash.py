"""Hash of inputs and outputs: the encoding pinned in docs/audit-format.md."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

__all__ = ["Tensor", "frame_hash", "tensor_hash", "tensor_prefix", "uvarint"]

Tensor = tuple[str, str, Sequence[int], bytes | memoryview]
"""Name, datatype (Open Inference spelling), shape, raw little-endian bytes."""

_PREFIXES_MAX = 4096
_prefixes: dict[tuple[str, str, tuple[int, ...], int], bytes] = {}


def uvarint(value: int) -> bytes:
    """Unsigned LEB128, as in Protocol Buffers."""
    if value < _SMALL_COUNT:
        return _SMALL[value]
    return _uvarint(value)


def _uvarint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SMALL_COUNT = 4096
_SMALL = [_uvarint(i) for i in range(_SMALL_COUNT)]


def tensor_prefix(name: str, datatype: str, shape: tuple[int, ...], size: int) -> bytes:
    """What stands before a tensor's raw bytes in the hash (docs/audit-format.md)."""
    key = (name, datatype, shape, size)
    found = _prefixes.get(key)
    if found is None:
        name_bytes, type_bytes = name.encode(), datatype.encode()
        found = b"".join(
            [uvarint(len(name_bytes)), name_bytes, uvarint(len(type_bytes)), type_bytes, uvarint(len(shape))]
            + [uvarint(d) for d in shape]
            + [struct.pack("<Q", size)]
        )
        if len(_prefixes) >= _PREFIXES_MAX:
            _prefixes.clear()
        _prefixes[key] = found
    return found


def tensor_hash(tensors: Sequence[Tensor]) -> bytes:
    """SHA-256 over the tensors in ascending order of their names' UTF-8 bytes."""
    if len(tensors) == 1:
        name, datatype, shape, raw = tensors[0]
        digest = hashlib.sha256(tensor_prefix(name, datatype, tuple(shape), len(raw)))
        digest.update(raw)
        return digest.digest()
    digest = hashlib.sha256()
    for name, datatype, shape, raw in sorted(tensors, key=_name_bytes):
        digest.update(tensor_prefix(name, datatype, tuple(shape), len(raw)))
        digest.update(raw)
    return digest.digest()


def _name_bytes(tensor: Tensor) -> bytes:
    return tensor[0].encode()


def frame_hash(frame: bytes, capture_time_us: int, source_id: str) -> bytes:
    """Hash of a typed perception input: frame bytes as received, then time, then source.

    The three are hashed as tensors ``frame`` (UINT8, [size]), ``capture_time_us``
    (INT64, []) and ``source_id`` (BYTES element without its length, []), in this order.
    """
    digest = hashlib.sha256(tensor_prefix("frame", "UINT8", (len(frame),), len(frame)))
    digest.update(frame)
    digest.update(tensor_prefix("capture_time_us", "INT64", (), 8) + struct.pack("<q", capture_time_us))
    source = source_id.encode()
    digest.update(tensor_prefix("source_id", "BYTES", (), len(source)) + source)
    return digest.digest()
