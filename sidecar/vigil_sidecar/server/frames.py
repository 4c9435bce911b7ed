"""Frames on the link: a 12-byte header and one message (docs/link.md)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import google_crc32c
from google.protobuf.message import DecodeError
from vigil.link.v1.link_pb2 import Chunk, Frame

from vigil_sidecar.errors import VigilError

__all__ = ["CHUNK_BYTES", "FrameReader", "LinkDamage", "call_crc", "encode_frame", "encode_frames"]

MAGIC = b"VGL1"
CHUNK_BYTES = 256 * 1024
_CHUNK_STREAMS_MAX = 4096
_HEADER = struct.Struct("<4sI")
_CRC = struct.Struct("<I")
_TAIL = struct.Struct("<QI")
HEADER_BYTES = 12


class LinkDamage(VigilError):
    """Bytes on the link are not a frame. The link must be closed and opened anew."""


def call_crc(message: bytes, call_id: int, number: int) -> int:
    """CRC-32C over a message, then its call id and its method or code."""
    crc: int = google_crc32c.extend(google_crc32c.value(message), _TAIL.pack(call_id, number))
    return crc


def encode_frame(frame: Frame) -> bytes:
    """A frame with its header."""
    body = frame.SerializeToString()
    head = _HEADER.pack(MAGIC, len(body))
    return head + _CRC.pack(google_crc32c.value(head)) + body


def encode_frames(frame: Frame, stream: int) -> Iterator[bytes]:
    """A frame, or the chunks of a large one under this stream number."""
    body = frame.SerializeToString()
    if len(body) <= CHUNK_BYTES:
        head = _HEADER.pack(MAGIC, len(body))
        yield head + _CRC.pack(google_crc32c.value(head)) + body
        return
    for at in range(0, len(body), CHUNK_BYTES):
        part = body[at : at + CHUNK_BYTES]
        yield encode_frame(Frame(chunk=Chunk(stream=stream, data=part, last=at + CHUNK_BYTES >= len(body))))


class FrameReader:
    """Reads frames from a socket and puts chunks together. One thread reads."""

    def __init__(self, sock: socket.socket, frame_bytes_max: int) -> None:
        self._sock, self._max = sock, frame_bytes_max
        self._buffer = bytearray()
        self._chunks: dict[int, bytearray] = {}

    def _need(self, size: int) -> bool:
        while len(self._buffer) < size:
            part = self._sock.recv(max(65536, min(size - len(self._buffer), 1 << 20)))
            if not part:
                return False
            self._buffer += part
        return True

    def read(self) -> Frame | None:
        """The next whole frame; None at the end of the link. Raises ``LinkDamage``."""
        while True:
            frame = self._read_one()
            if frame is None or frame.WhichOneof("body") != "chunk":
                return frame
            whole = self._join(frame.chunk)
            if whole is not None:
                return whole

    def _read_one(self) -> Frame | None:
        if not self._need(HEADER_BYTES):
            if self._buffer:
                raise LinkDamage("the link ended within a frame")
            return None
        magic, size = _HEADER.unpack_from(self._buffer)
        (crc,) = _CRC.unpack_from(self._buffer, 8)
        if magic != MAGIC:
            raise LinkDamage(f"frame starts with {bytes(magic)!r}, expected {MAGIC!r}")
        if crc != google_crc32c.value(bytes(self._buffer[:8])):
            raise LinkDamage("frame header is damaged")
        if size > 2 * CHUNK_BYTES:
            raise LinkDamage(f"frame of {size} bytes, the limit is {2 * CHUNK_BYTES} a piece")
        if not self._need(HEADER_BYTES + size):
            raise LinkDamage("the link ended within a frame")
        body = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + size])
        del self._buffer[: HEADER_BYTES + size]
        return self._parse(body)

    def _parse(self, body: bytes) -> Frame:
        try:
            frame = Frame.FromString(body)
        except DecodeError:
            raise LinkDamage("frame is not a vigil.link.v1.Frame") from None
        if frame.WhichOneof("body") is None:
            raise LinkDamage("frame has no body")
        return frame

    def _join(self, chunk: Chunk) -> Frame | None:
        parts = self._chunks.get(chunk.stream)
        if parts is None:
            if len(self._chunks) >= _CHUNK_STREAMS_MAX:
                raise LinkDamage(f"more than {_CHUNK_STREAMS_MAX} frames in pieces")
            parts = self._chunks[chunk.stream] = bytearray()
        parts += chunk.data
        if len(parts) > self._max:
            raise LinkDamage(f"frame in pieces is above {self._max} bytes")
        if not chunk.last:
            return None
        del self._chunks[chunk.stream]
        return self._parse(bytes(parts))
