"""Structure of a message before it is decoded: two bytes on the wire may become hundreds in memory."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from vigil_sidecar.errors import ContractViolation

__all__ = ["measure"]

NESTED_MAX = 16384
VALUES_MAX = 1 << 20
DEPTH_MAX = 32
_PLAIN_BYTES = 4096
"""A message this small cannot become large."""


def measure(kind: type[Message], data: bytes) -> None:
    """Raise ``ContractViolation`` for more nested messages or values than the gateway lets through.

    Malformed bytes are left to the decoder.
    """
    if len(data) > _PLAIN_BYTES:
        try:
            _walk(kind.DESCRIPTOR, data, 0, len(data), [0, 0], 0)
        except IndexError:
            return


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number and the place behind it; ``IndexError`` at the end."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


def _walk(descriptor: Any, data: bytes, at: int, end: int, counts: list[int], depth: int) -> None:
    if depth > DEPTH_MAX:
        raise ContractViolation(f"messages are nested deeper than {DEPTH_MAX}", [("", f"nested deeper than {DEPTH_MAX}")])
    fields = descriptor.fields_by_number
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            _, at = _varint(data, at)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            size, at = _varint(data, at)
            field = fields.get(tag >> 3)
            nested = field is not None and field.message_type is not None
            counts[not nested] += 1
            limit = NESTED_MAX if nested else VALUES_MAX
            if counts[not nested] > limit:
                name = field.name if field is not None else ""
                what = f"makes more than {limit} {'messages' if nested else 'values'} in one message"
                raise ContractViolation(f"contract violation: {name} {what}", [(name, what)])
            if nested and at + size <= end:
                _walk(field.message_type, data, at, at + size, counts, depth + 1)
            at += size
        else:
            return
