"""Frames on the link: a 12-byte header and one message (docs/link.md)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Sequence

import google_crc32c
from google.protobuf.message import DecodeError
from vigil.link.v1.link_pb2 import Chunk, Frame, Replies, Reply

from vigil_sidecar.audit.tensor_hash import uvarint
from vigil_sidecar.errors import VigilError

__all__ = ["CHUNK_BYTES", "FrameReader", "LinkDamage", "call_crc", "encode_frame", "encode_frames", "replies_frame"]

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


def _length_delimited(field: int, size: int) -> bytes:
    """Tag and length of a field of wire type 2 (Protocol Buffers encoding)."""
    return uvarint(field << 3 | 2) + uvarint(size)


def replies_frame(replies: Sequence[tuple[Reply, bytes]], credits: Sequence[int]) -> list[bytes]:
    """A Frame of replies as its consecutive parts: large answers are placed between heads, not copied into them.

    Equal to ``Frame(replies=Replies(...))`` with each message in its reply; fields
    may stand in any order in the encoding.
    """
    parts: list[bytes] = []
    total = 0
    for reply, message in replies:
        head = reply.SerializeToString()
        if message:
            head += _length_delimited(Reply.MESSAGE_FIELD_NUMBER, len(message))
        lead = _length_delimited(Replies.REPLIES_FIELD_NUMBER, len(head) + len(message)) + head
        parts += [lead, message]
        total += len(lead) + len(message)
    tail = Replies(credits=credits).SerializeToString()
    return [_length_delimited(Frame.REPLIES_FIELD_NUMBER, total + len(tail)), *parts, tail]


def encode_frames(parts: Sequence[bytes], stream: int) -> Iterator[bytes]:
    """A frame given as its parts, with its header; or the chunks of a large one under this stream number."""
    size = sum(map(len, parts))
    if size <= CHUNK_BYTES:
        head = _HEADER.pack(MAGIC, size)
        yield b"".join((head, _CRC.pack(google_crc32c.value(head)), *parts))
        return
    left, pending, room = size, [], CHUNK_BYTES
    for part in parts:
        view = memoryview(part)
        while view:
            taken = view[:room]
            pending.append(taken)
            view, room, left = view[len(taken) :], room - len(taken), left - len(taken)
            if room == 0 or left == 0:
                yield encode_frame(Frame(chunk=Chunk(stream=stream, data=b"".join(pending), last=left == 0)))
                pending, room = [], CHUNK_BYTES


class FrameReader:
    """Reads frames from a socket and puts chunks together. One thread reads."""

    def __init__(self, sock: socket.socket, frame_bytes_max: int, heard: Callable[[], None] = lambda: None) -> None:
        """``heard`` is called for each piece that comes."""
        self._sock, self._max, self._heard = sock, frame_bytes_max, heard
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
            self._heard()
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

    def _parse(self, body: bytes | bytearray) -> Frame:
        try:
            frame = Frame()
            frame.ParseFromString(body)  # type: ignore[arg-type] # any buffer works, and saves a copy
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
        return self._parse(parts)
