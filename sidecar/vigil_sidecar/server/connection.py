"""One gateway's connection: frames out, in order and the urgent ones first; what is known of the other end."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque

from vigil.link.v1 import link_pb2 as link

from vigil_sidecar.server.call import Call
from vigil_sidecar.server.frames import LinkDamage, encode_frames, heartbeat_crc

__all__ = ["Connection"]


class Connection:
    """One gateway. Replies may come from any thread; chunks of a large one interleave with others'."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.open = True
        self.calls: dict[int, Call] = {}
        self.last_heard = time.monotonic()
        self.reading = False
        """Whether the reader waits for the gateway; else silence is this side's own, as when a small model runs in the reader."""
        self.thread, self.since_ns = 0, 0
        """The reader's thread, and since when it is at a frame."""
        self._lock = threading.Lock()
        self._urgent: deque[bytes] = deque()
        self.checkpoint_sent = b""
        self.ladders_sent: link.Ladders | None = None
        self._stream = self._beats = 0
        self.drained = threading.Event()
        """The gateway said that no unary call waits for this sidecar."""

    def heard(self) -> None:
        """Note a sign of life: any piece of any frame is one."""
        self.last_heard = time.monotonic()

    def beat(self, beat: link.Heartbeat) -> None:
        """Check a heartbeat of the gateway; raises ``LinkDamage``."""
        if beat.crc != heartbeat_crc(beat):
            raise LinkDamage("heartbeat does not match its CRC-32C")
        if beat.count != self._beats + 1:
            raise LinkDamage(f"heartbeat {beat.count} came after {self._beats}")
        self._beats = beat.count

    def send(self, *parts: bytes) -> None:
        """Send a frame given as its parts; a gateway that takes nothing for five seconds is cut off."""
        with self._lock:
            self._stream += 1
            stream = self._stream
        for piece in encode_frames(parts, stream):
            with self._lock:
                if not self._send_locked(piece):
                    return

    def send_first(self, frame: bytes) -> None:
        """Send a small frame before everything that waits: at once, or between two pieces of what is being sent."""
        self._urgent.append(b"".join(encode_frames((frame,), 0)))
        if self._lock.acquire(blocking=False):
            try:
                self._send_locked(b"")
            finally:
                self._lock.release()

    def _send_locked(self, piece: bytes) -> bool:
        """Send a piece, then what is urgent; False when the connection is over. The lock is held."""
        if not self.open:
            return False
        try:
            if piece:
                self.put(piece)
            while self._urgent:
                self.put(self._urgent.popleft())
        except OSError:
            self.close()
        return self.open

    def put(self, data: bytes) -> None:
        """Send a whole frame or piece; the lock is held. Raises ``OSError``."""
        self.sock.sendall(data)

    def close(self) -> None:
        """End the connection and cancel its calls."""
        self.open = False
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def cancel_all(self) -> None:
        """Cancel what is under way."""
        for call in list(self.calls.values()):
            call.cancel()
