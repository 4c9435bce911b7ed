"""Parameters of an inference request that say how it waits, read without decoding its tensors."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from inference.grpc_service_pb2 import ModelInferRequest

__all__ = ["wishes_of"]

_PARAMETERS = ModelInferRequest.PARAMETERS_FIELD_NUMBER
_LENGTH_DELIMITED = 2
_VARINT_BITS_MAX = 63
_FIELDS_MAX = 256
"""Parameters behind so many fields are not looked for: the link's reader does this."""
_NUMBERS = ("int64_param", "uint64_param")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _VARINT_BITS_MAX:
            raise IndexError


def wishes_of(message: bytes) -> tuple[int, int]:
    """``priority`` and ``timeout`` (microseconds) of an encoded ModelInferRequest; 0 for what it does not say.

    Tensors are stepped over: the work does not grow with their bytes, and ends after 256 fields (parameters come before
    the tensors). A message that cannot be read says nothing here; it is refused where it is decoded.
    """
    found = {"priority": 0, "timeout": 0}
    at = fields = 0
    try:
        while at < len(message) and fields < _FIELDS_MAX:
            fields += 1
            tag, at = _varint(message, at)
            if tag & 7 != _LENGTH_DELIMITED:
                break  # no field of this message is of another kind
            size, at = _varint(message, at)
            if tag >> 3 == _PARAMETERS:
                entry = ModelInferRequest.ParametersEntry.FromString(message[at : at + size])
                kind = entry.value.WhichOneof("parameter_choice")
                if entry.key in found and kind in _NUMBERS:
                    found[entry.key] = max(0, getattr(entry.value, kind))
            at += size
    except (IndexError, DecodeError):
        pass
    return found["priority"], found["timeout"]
