"""The link's sending end with the faults that AUTOSAR's end-to-end protection names."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from vigil.link.v1 import link_pb2 as link

from vigil_sidecar.injection.faults import Faults
from vigil_sidecar.server.connection import Connection
from vigil_sidecar.server.frames import HEADER_BYTES, encode_frame, heartbeat_crc

__all__ = ["FaultyConnection", "connection_maker"]

_FOREIGN = 1 << 40
"""Added to an id, or a count, to make one that nobody gave."""


def connection_maker(faults: Faults | None) -> Callable[[socket.socket], Connection]:
    """What makes a connection of a socket: a plain one where no faults are injected."""
    return Connection if faults is None else lambda sock: FaultyConnection(sock, faults)


class FaultyConnection(Connection):
    """Changes, drops, repeats, holds back or adds what is sent while a fault says so."""

    def __init__(self, sock: socket.socket, faults: Faults) -> None:
        super().__init__(sock)
        self._faults = faults
        self._held = b""

    def put(self, data: bytes) -> None:
        """Send a whole frame, or what the active fault makes of it."""
        faults = self._faults
        if not faults.any() and not self._held:
            super().put(data)
            return
        if late := faults.of("link_delay"):
            time.sleep(late.magnitude / 1000)
        if faults.take("link_close"):
            self.close()
            return
        if faults.take("link_length"):
            super().put(data[:4] + bytes([data[4] ^ 1]) + data[5:])
            return
        frame = link.Frame.FromString(data[HEADER_BYTES:])
        body = frame.WhichOneof("body")
        if body == "heartbeat":
            self._heartbeat(data, frame)
        elif body == "replies" and frame.replies.replies and not frame.replies.replies[0].code:
            self._replies(data, frame)
        else:
            super().put(data)

    def _heartbeat(self, data: bytes, frame: link.Frame) -> None:
        if self._faults.take("link_loss"):
            return
        if self._faults.take("link_reorder"):
            self._held = data
            return
        super().put(data)
        if self._held:
            held, self._held = self._held, b""
            super().put(held)
        if self._faults.take("link_repeat"):
            super().put(data)
        if self._faults.take("link_insert"):
            frame.heartbeat.count += _FOREIGN
            frame.heartbeat.crc = heartbeat_crc(frame.heartbeat)
            super().put(encode_frame(frame))

    def _replies(self, data: bytes, frame: link.Frame) -> None:
        reply = frame.replies.replies[0]
        if reply.message and self._faults.take("link_corrupt"):
            reply.message = bytes([reply.message[0] ^ 0x10]) + reply.message[1:]
            data = encode_frame(frame)
        elif self._faults.take("link_address"):
            reply.id += _FOREIGN
            data = encode_frame(frame)
        super().put(data)
