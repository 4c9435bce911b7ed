"""Large frames of the link in pieces: what does not add up, and what was damaged."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from vigil.link.v1 import link_pb2 as link

from vigil_sidecar.audit.tensor_hash import uvarint
from vigil_sidecar.server.frames import FrameReader, LinkDamage

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "pieces.json").read_text())


def _chunk_body(stream: int, data: bytes, last: bool, size: int) -> bytes:
    return link.Chunk(stream=stream, last=last, size=size).SerializeToString() + b"\x12" + uvarint(len(data)) + data


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: c["name"])
def test_pieces_that_do_not_add_up_are_damage(case: dict[str, Any]) -> None:
    """A frame in pieces has the size that its pieces say, and no place is taken for more than the limit; Go runs the same table."""
    a, b = socket.socketpair(socket.AF_UNIX)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    reader = FrameReader(b, VECTORS["limit"])
    for p in case["pieces"]:
        inner = _chunk_body(1, bytes(p["bytes"]), p["last"], p["size"])
        body = b"\x4a" + uvarint(len(inner)) + inner
        head = b"VGL1" + struct.pack("<I", len(body))
        a.sendall(head + struct.pack("<I", google_crc32c.value(head)) + body)
    with pytest.raises(LinkDamage, match=case["text"]):
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
