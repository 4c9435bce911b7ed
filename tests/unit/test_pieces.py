"""Large frames of the link in pieces: what does not add up, and what was damaged."""

from __future__ import annotations

import socket
import struct

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from vigil.link.v1 import link_pb2 as link

from vigil_sidecar.audit.tensor_hash import uvarint
from vigil_sidecar.server.frames import FrameReader, LinkDamage


def _chunk_body(stream: int, data: bytes, last: bool, size: int) -> bytes:
    return link.Chunk(stream=stream, last=last, size=size).SerializeToString() + b"\x12" + uvarint(len(data)) + data


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([(1, 300_000, False, 200_000)], "above the 200000 bytes that it said"),
        ([(1, 200_000, False, 500_000), (1, 200_000, True, 500_000)], "has 400000 bytes, it said 500000"),
        ([(1, 200_000, True, 1 << 40)], "above 67108864 bytes"),
        ([(1, 1_000, True, 0)], "above the 0 bytes that it said"),
    ],
)
def test_pieces_that_do_not_add_up_are_damage(chunks: list[tuple[int, int, bool, int]], text: str) -> None:
    """A frame in pieces has the size that its pieces say, and no place is taken for more than the limit."""
    a, b = socket.socketpair(socket.AF_UNIX)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    reader = FrameReader(b, 1 << 26)
    for stream, length, last, size in chunks:
        inner = _chunk_body(stream, bytes(length), last, size)
        body = b"\x4a" + uvarint(len(inner)) + inner
        head = b"VGL1" + struct.pack("<I", len(body))
        a.sendall(head + struct.pack("<I", google_crc32c.value(head)) + body)
    with pytest.raises(LinkDamage, match=text):
        reader.read()
    a.close()
    b.close()


@given_settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_chunk_is_damage_or_another_frame(data: st.DataObject) -> None:
    """Whatever a large chunk's first bytes become, reading ends with ``LinkDamage`` or with a frame, and nothing else."""
    inner = _chunk_body(3, bytes(140_000), True, 140_000)
    body = bytearray(b"\x4a" + uvarint(len(inner)) + inner)
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, 16))] = data.draw(st.integers(0, 255))
    a, b = socket.socketpair(socket.AF_UNIX)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    head = b"VGL1" + struct.pack("<I", len(body))
    a.sendall(head + struct.pack("<I", google_crc32c.value(head)) + bytes(body))
    a.close()
    try:
        FrameReader(b, 1 << 26).read()
    except LinkDamage:
        pass
    b.close()
