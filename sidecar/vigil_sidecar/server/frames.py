"""Frames on the link: a 12-byte header and one message (docs/link.md)."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence

import google_crc32c
from google.protobuf.message import DecodeError
from vigil.link.v1.link_pb2 import Chunk, Frame, Heartbeat, Replies, Reply

from vigil_sidecar.audit.tensor_hash import uvarint
from vigil_sidecar.errors import VigilError
from vigil_sidecar.server.call import Reply as Answer

__all__ = ["CHUNK_BYTES", "FrameReader", "LinkDamage", "call_crc", "encode_frame", "encode_frames", "encode_reply", "replies_frame"]

MAGIC = b"VGL1"
CHUNK_BYTES = 256 * 1024
_CHUNK_STREAMS_MAX = 4096
_HEADER = struct.Struct("<4sI")
_CRC = struct.Struct("<I")
_WHOLE_HEADER = struct.Struct("<4sII")
_RECEIVE_BYTES = 1 << 20
"""More than one piece may have, so that a frame rarely needs a second read."""
_TAIL = struct.Struct("<QI")
HEADER_BYTES = 12
_COPY_BYTES_MAX = 4096
_RESTS_MAX = 4096
_CHUNK_HEAD_BYTES = 64
"""More than stands before a chunk's data: a tag and a length, three varints with their tags, a tag and a length."""
_rests: dict[tuple[str, int, str, bool], bytes] = {}


def _tag(field: int, wire: int) -> int:
    return field << 3 | wire


_ID_AND_CRC = struct.Struct("<BQBI")
_ID_TAG, _CRC_TAG = _tag(Reply.ID_FIELD_NUMBER, 1), _tag(Reply.CRC_FIELD_NUMBER, 5)
_POSITION_TAG = bytes([_tag(Reply.AUDIT_POSITION_FIELD_NUMBER, 2)])
_MESSAGE_TAG = bytes([_tag(Reply.MESSAGE_FIELD_NUMBER, 2)])
_CHUNK_TAG = _tag(Frame.CHUNK_FIELD_NUMBER, 2)
_DATA_TAG = bytes([_tag(Chunk.DATA_FIELD_NUMBER, 2)])
_REPLIES_TAG = bytes([_tag(Replies.REPLIES_FIELD_NUMBER, 2)])
_FRAME_REPLIES_TAG = bytes([_tag(Frame.REPLIES_FIELD_NUMBER, 2)])


def _uvarint(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and what follows it; raises ``LinkDamage`` where there is none."""
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    raise LinkDamage("frame is not a vigil.link.v1.Frame")


class LinkDamage(VigilError):
    """Bytes on the link are not a frame. The link must be closed and opened anew."""


def heartbeat_crc(beat: Heartbeat) -> int:
    """CRC-32C of a heartbeat: count, monotonic time, readiness, supervision's status and cycles, announced pause (docs/link.md)."""
    supervision = beat.supervision
    packed = struct.pack(
        "<QQ?BQI", beat.count, beat.monotonic_ns, beat.ready, supervision.status, supervision.cycles, beat.pause_ms
    )  # fmt: skip
    crc: int = google_crc32c.value(packed)
    return crc


def call_crc(message: bytes, call_id: int, number: int) -> int:
    """CRC-32C over a message, then its call id and its method or code."""
    tail = _TAIL.pack(call_id, number)
    crc: int
    if len(message) < _COPY_BYTES_MAX:
        crc = google_crc32c.value(message + tail)
    else:
        crc = google_crc32c.extend(google_crc32c.value(message), tail)
    return crc


def encode_frame(frame: Frame) -> bytes:
    """A frame with its header."""
    body = frame.SerializeToString()
    head = _HEADER.pack(MAGIC, len(body))
    return head + _CRC.pack(google_crc32c.value(head)) + body


def _rest(r: Answer) -> bytes:
    """The encoded fields that many replies share."""
    key = (r.model_version, r.batch_size, r.safety_state, r.stand_in)
    found = _rests.get(key)
    if found is None:
        if len(_rests) >= _RESTS_MAX:
            _rests.clear()
        found = Reply(
            model_version=r.model_version, batch_size=r.batch_size, safety_state=r.safety_state, stand_in=r.stand_in
        ).SerializeToString()  # fmt: skip
        _rests[key] = found
    return found


def encode_reply(call_id: int, r: Answer) -> tuple[bytes, bytes]:
    """A reply as an element of ``Replies.replies``: all but its message, and the message, which comes last.

    Encoded by hand because a message object for each reply costs several times
    as much; a test compares it with ``Reply(...)``. Fields may stand in any order.
    """
    message, code = r.message, r.code
    head = _ID_AND_CRC.pack(_ID_TAG, call_id, _CRC_TAG, call_crc(message, call_id, code)) + _rest(r)
    if r.audit_position:
        position = r.audit_position.encode()
        head += _POSITION_TAG + uvarint(len(position)) + position
    if code or r.more or r.text or r.status:
        head += Reply(code=code, text=r.text, status=r.status, more=r.more).SerializeToString()
    size = len(message)
    if size:
        head += _MESSAGE_TAG + uvarint(size)
    return _REPLIES_TAG + uvarint(len(head) + size) + head, message


def replies_frame(replies: Sequence[tuple[bytes, bytes]], credits: Sequence[int]) -> list[bytes]:
    """A Frame of encoded replies as its consecutive parts: large answers are placed between heads, not copied into them."""
    parts: list[bytes] = [b""]
    for reply in replies:
        parts += reply
    parts.append(Replies(credits=credits).SerializeToString())
    parts[0] = _FRAME_REPLIES_TAG + uvarint(sum(map(len, parts)))
    return parts


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
                yield _piece(pending, stream, CHUNK_BYTES - room, left == 0, size)
                pending, room = [], CHUNK_BYTES


def _piece(data: Sequence[memoryview], stream: int, size: int, last: bool, whole: int) -> bytes:
    """A frame with one chunk, encoded by hand: its data, which comes last, is copied once instead of five times."""
    head = Chunk(stream=stream, last=last, size=whole).SerializeToString() + _DATA_TAG + uvarint(size)
    head = bytes([_CHUNK_TAG]) + uvarint(len(head) + size) + head
    start = _HEADER.pack(MAGIC, len(head) + size)
    return b"".join((start, _CRC.pack(google_crc32c.value(start)), head, *data))


class FrameReader:
    """Reads frames from a socket and puts chunks together. One thread reads.

    Frames that follow each other closely are waited for awake: a thread that
    sleeps between them pays for falling asleep, for being woken and for cold
    caches on every call. At most ``spin_ns`` is spent on a wait, and only when the
    wait before ended within that time, so a quiet link costs nothing; and only while
    ``lone`` is set: where several calls share a frame, they are under way at once,
    and others have more use for the processor.
    """

    def __init__(self, sock: socket.socket, frame_bytes_max: int, heard: Callable[[], None] = lambda: None, spin_ns: int = 0) -> None:
        """``heard`` is called for each piece that comes."""
        self._sock, self._max, self._heard = sock, frame_bytes_max, heard
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._chunks: dict[int, tuple[bytearray, int]] = {}
        """By stream: what has come of the frame, and how many bytes it said that it has."""
        self._spin_ns, self._spins, self.lone = spin_ns, False, False
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self._poll = poll.poll

    def _need(self, size: int) -> bool:
        """Have at least ``size`` bytes in the buffer; False at the end of the link."""
        while self._end - self._start < size:
            if self._start == self._end:
                self._start = self._end = 0
            elif self._start + size > _RECEIVE_BYTES:
                rest = self._buffer[self._start : self._end]
                self._start, self._end = 0, len(rest)
                self._buffer[: self._end] = rest
            received = self._receive()
            if not received:
                return False
            self._end += received
        return True

    def _receive(self) -> int:
        if not self._spin_ns or not self.lone:
            return self._sock.recv_into(self._view[self._end :])
        end = time.monotonic_ns() + self._spin_ns
        if self._spins:
            while not self._poll(0) and time.monotonic_ns() < end:
                pass
        received = self._sock.recv_into(self._view[self._end :])
        self._spins = time.monotonic_ns() < end
        return received

    def read(self) -> Frame | None:
        """The next whole frame; None at the end of the link. Raises ``LinkDamage``."""
        while True:
            body = self._read_one()
            self._heard()
            if body is None:
                return None
            if len(body) <= CHUNK_BYTES // 2 or body[0] != _CHUNK_TAG:
                frame = self._parse(body)
                if not frame.HasField("chunk"):
                    return frame
                whole = self._join(frame.chunk, frame.chunk.data)
            else:
                whole = self._join(*self._chunk(body))
            if whole is not None:
                return whole

    def _read_one(self) -> memoryview | None:
        """The body of the next frame, valid until the one after it is read."""
        if not self._need(HEADER_BYTES):
            if self._start != self._end:
                raise LinkDamage("the link ended within a frame")
            return None
        at = self._start
        magic, size, crc = _WHOLE_HEADER.unpack_from(self._buffer, at)
        if magic != MAGIC:
            raise LinkDamage(f"frame starts with {magic!r}, expected {MAGIC!r}")
        if crc != google_crc32c.value(bytes(self._view[at : at + 8])):
            raise LinkDamage("frame header is damaged")
        if size > 2 * CHUNK_BYTES:
            raise LinkDamage(f"frame of {size} bytes, the limit is {2 * CHUNK_BYTES} a piece")
        if not self._need(HEADER_BYTES + size):
            raise LinkDamage("the link ended within a frame")
        at = self._start + HEADER_BYTES
        self._start = at + size
        return self._view[at : at + size]

    def _chunk(self, body: memoryview) -> tuple[Chunk, memoryview]:
        """A large chunk whose data comes last, as both ends write it: what it says, and its data where it was received."""
        start = min(len(body), _CHUNK_HEAD_BYTES)
        at = bytes(body[1:start])
        length, inner = _uvarint(at, 0)
        place = inner
        while True:
            if place >= len(at):
                raise LinkDamage("frame is not a vigil.link.v1.Frame")
            if at[place] == _DATA_TAG[0]:
                break
            _, place = _uvarint(at, place + 1)
        size, data = _uvarint(at, place + 1)
        if 1 + inner + length != len(body) or 1 + data + size != len(body):
            raise LinkDamage("frame is not a vigil.link.v1.Frame")
        try:
            return Chunk.FromString(at[inner:place]), body[1 + data :]
        except DecodeError:
            raise LinkDamage("frame is not a vigil.link.v1.Frame") from None

    def _parse(self, body: memoryview | bytearray) -> Frame:
        try:
            frame = Frame()
            frame.ParseFromString(body)  # type: ignore[arg-type] # any buffer works, and saves a copy
        except DecodeError:
            raise LinkDamage("frame is not a vigil.link.v1.Frame") from None
        if frame.WhichOneof("body") is None:
            raise LinkDamage("frame has no body")
        return frame

    def _join(self, chunk: Chunk, data: bytes | memoryview) -> Frame | None:
        found = self._chunks.get(chunk.stream)
        if found is None:
            if len(self._chunks) >= _CHUNK_STREAMS_MAX:
                raise LinkDamage(f"more than {_CHUNK_STREAMS_MAX} frames in pieces")
            if chunk.size > self._max:
                raise LinkDamage(f"frame in pieces is above {self._max} bytes")
            found = bytearray(), chunk.size
        parts, size = found
        if len(parts) + len(data) > size:
            raise LinkDamage(f"frame in pieces is above the {size} bytes that it said")
        parts += data
        if not chunk.last:
            self._chunks[chunk.stream] = parts, size
            return None
        self._chunks.pop(chunk.stream, None)
        if len(parts) != size:
            raise LinkDamage(f"frame in pieces has {len(parts)} bytes, it said {size}")
        return self._parse(parts)
