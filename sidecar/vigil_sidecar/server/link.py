"""The sidecar's end of the link: one gateway at a time, a plain reader thread, heartbeats."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vigil.contract_digest import CONTRACT_DIGEST
from vigil.link.v1 import link_pb2 as link

from vigil_sidecar.audit.entry import ZERO8, ZERO16
from vigil_sidecar.errors import VigilError
from vigil_sidecar.server.call import Call, CallContext, Reply
from vigil_sidecar.server.connection import Connection
from vigil_sidecar.server.dispatch import Dispatcher
from vigil_sidecar.server.frames import FrameReader, LinkDamage, call_crc, encode_reply, heartbeat_crc, replies_frame
from vigil_sidecar.server.lifeline import hold_lifelines
from vigil_sidecar.supervision import Work

__all__ = ["PROTOCOL_VERSION", "LinkBusy", "LinkConfig", "LinkServer"]

PROTOCOL_VERSION = 4
STREAM_CREDIT = 64
"""Messages of a stream that may be under way to the gateway unread (docs/link.md)."""
_CREDIT_WAIT_S = 0.25
_SEND_TIMEOUT_S = 5.0
_HANDSHAKE_TIMEOUT_S = 2.0
_DRAIN_POLL_S = 0.01
_FRAME_BYTES_WANTED = 8 << 20
"""Bounds a frame of several replies; one reply may be larger."""


class LinkBusy(VigilError):
    """Another sidecar owns the socket. Stop it, or give another data folder."""


class LinkConfig(NamedTuple):
    """What the link needs to know of the settings."""

    path: Path
    instance: str
    boot_id: str
    frame_bytes_max: int
    heartbeat_interval_s: float
    heartbeat_timeout_s: float
    spin_ns: int


class _Replies:
    """Encoded replies of a frame's calls, until they are sent together. Any thread, as several may answer calls of one frame."""

    def __init__(self, connection: Connection) -> None:
        self.ready: list[tuple[bytes, bytes]] = []
        self._connection, self._sending = connection, threading.Lock()

    def send(self, credits: tuple[int, ...] = ()) -> None:
        """Send those that are ready, in frames that are not too large, and give lanes their credit back.

        What cannot be sent, as when there is no memory, ends the connection: then the gateway fails its calls, and none waits for ever.
        """
        with self._sending:
            ready = self.ready[:]
            del self.ready[: len(ready)]
            try:
                self._send(ready, credits)
            except BaseException:
                self._connection.close()
                raise

    def _send(self, ready: list[tuple[bytes, bytes]], credits: tuple[int, ...]) -> None:
        part: list[tuple[bytes, bytes]] = []
        size = 0
        for one in ready:
            if part and size + len(one[1]) > _FRAME_BYTES_WANTED:
                self._connection.send(*replies_frame(part, ()))
                part, size = [], 0
            part.append(one)
            size += len(one[1])
        if part or credits:
            self._connection.send(*replies_frame(part, credits))


class LinkServer:
    """Listens on the Unix socket. ``heartbeat`` fills in the sidecar's own status."""

    def __init__(
        self, config: LinkConfig, dispatcher: Dispatcher, heartbeat: Callable[[link.Heartbeat], None],
        notice: Callable[[str, str], None], anchor: Callable[[bytes], None], ladders: Callable[[], link.Ladders | None],
        news: threading.Event, connect: Callable[[socket.socket], Connection] = Connection,
    ) -> None:  # fmt: skip
        """``notice(what, text)`` hears of ``up``, ``lost``, ``damage`` and ``expired``; ``anchor`` of the gateway's checkpoints.

        ``ladders`` gives the same object until they change, and None as long as not all are known. The next
        heartbeat is sent at once when ``news`` is set.
        """
        self._config, self._dispatcher = config, dispatcher
        self._heartbeat, self._notice, self._anchor, self._ladders = heartbeat, notice, anchor, ladders
        self._news, self._connect = news, connect
        self._methods = dispatcher.methods
        self._connection: Connection | None = None
        self._claims = threading.Lock()
        self._claimed: Connection | None = None
        self._stopping = threading.Event()
        self._beats, self._pause_ms, self._beating = 0, 0, threading.Lock()
        self._validated = False
        config.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_fd = os.open(config.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LinkBusy(f"another sidecar serves {config.path}; stop it, or give --data-dir another folder") from None
        config.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(config.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # A socket's path has at most 107 bytes; by way of the open folder any depth works.
            self._listener.bind(f"/proc/self/fd/{folder}/{config.path.name}")
        except OSError as error:
            raise LinkBusy(f"socket {config.path}: {error.strerror}; give --data-dir another folder") from None
        finally:
            os.close(folder)
        os.chmod(config.path, 0o600)
        self._listener.listen(4)
        self._lifelines: list[str] = []

    def start(self) -> str:
        """Start accepting, and the heartbeat. Says why the gateway will hear of this process's death late, if so."""
        late = ""
        try:
            self._lifelines = hold_lifelines(self._config.path.parent)
        except OSError as error:
            late = str(error)
        threading.Thread(target=self._accept, name="link-accept", daemon=True).start()
        threading.Thread(target=self._beat, name="link-heartbeat", daemon=True).start()
        return late

    def drain(self, timeout_s: float) -> bool:
        """Ask the gateway for no new calls, and wait until the last unary one under way is answered, at most this long."""
        connection = self._connection
        if connection is None:
            return True
        connection.send_first(link.Frame(drain=link.Drain()).SerializeToString())
        end = time.monotonic() + timeout_s
        while connection.open and not connection.drained.wait(_DRAIN_POLL_S):
            if time.monotonic() > end:
                return False
        return True

    def stop(self) -> None:
        """End the link."""
        self._stopping.set()
        self._news.set()
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        self._config.path.unlink(missing_ok=True)

    def busy(self) -> list[Work]:
        """The frame that the reader is at, for supervision."""
        connection = self._connection
        since_ns = connection.since_ns if connection is not None and connection.open else 0
        return [Work("reader", connection.thread, since_ns)] if connection is not None and since_ns else []

    @property
    def connected(self) -> bool:
        """Whether a gateway is connected."""
        return self._connection is not None and self._connection.open

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), name="link-reader", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(_HANDSHAKE_TIMEOUT_S)
        seconds = int(_SEND_TIMEOUT_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        connection = self._connect(sock)
        reader = FrameReader(sock, self._config.frame_bytes_max, connection.heard, self._config.spin_ns)
        try:
            reason = self._greet(reader, connection)
            if reason:
                connection.send(link.Frame(reject=link.Reject(reason=reason)).SerializeToString())
                self._notice("damage", f"handshake refused: {reason}")
                return
            sock.settimeout(None)
            self._connection = connection
            self._notice("up", "gateway connected")
            self._read_loop(reader, connection)
            self._notice("lost", "the gateway closed the link")
        except LinkDamage as damage:
            self._notice("damage", str(damage))
        except Exception as error:  # whatever breaks this link, the next one must find a listener
            self._notice("lost", f"{type(error).__name__}: {error}")
        finally:
            connection.close()
            connection.cancel_all()
            sock.close()
            if self._connection is connection:
                self._connection = None

    def _greet(self, reader: FrameReader, connection: Connection) -> str:
        frame = reader.read()
        if frame is None or frame.WhichOneof("body") != "hello":
            return "the first frame must be hello"
        hello = frame.hello
        if hello.protocol_version != PROTOCOL_VERSION:
            return f"protocol version {hello.protocol_version}, this sidecar speaks {PROTOCOL_VERSION}"
        with self._claims:
            if self._claimed is not None and self._claimed.open:
                return "another gateway is connected"
            self._claimed = connection
        self._validated = hello.contract_digest == CONTRACT_DIGEST
        welcome = link.Welcome(
            protocol_version=PROTOCOL_VERSION, contract_digest=CONTRACT_DIGEST, instance=self._config.instance,
            boot_id=self._config.boot_id, frame_bytes_max=self._config.frame_bytes_max, pid=os.getpid(),
            methods=self._methods, lifelines=self._lifelines,
        )  # fmt: skip
        connection.send(link.Frame(welcome=welcome).SerializeToString())
        return ""

    def _read_loop(self, reader: FrameReader, connection: Connection) -> None:
        connection.thread = threading.get_ident()
        while True:
            connection.heard()
            connection.since_ns, connection.reading = 0, True
            frame = reader.read()
            connection.since_ns, connection.reading = time.monotonic_ns(), False
            if frame is None:
                return
            body = frame.WhichOneof("body")
            if body == "calls":
                reader.lone = len(frame.calls.calls) == 1
                self._take(connection, frame.calls)
                frame = None  # what it holds must not stay until the next one has come
            elif body == "cancel":
                for call_id in frame.cancel.ids:
                    call = connection.calls.get(call_id)
                    if call is not None:
                        call.cancel()
            elif body == "stream_credit":
                call = connection.calls.get(frame.stream_credit.id)
                if call is not None and call.credit is not None:
                    call.credit.release(min(frame.stream_credit.count, STREAM_CREDIT))
            elif body == "drained":
                connection.drained.set()
            elif body == "heartbeat":
                connection.beat(frame.heartbeat)
                if frame.heartbeat.checkpoint:
                    self._anchor(frame.heartbeat.checkpoint)
            else:
                raise LinkDamage(f"unexpected frame {body}")

    def _take(self, connection: Connection, calls: link.Calls) -> None:
        now_ns = time.monotonic_ns()
        lane, model = calls.lane, calls.model
        replies = _Replies(connection)
        under_way, buffered = connection.calls, bool(model)

        def reply(call: Call, answer: Reply) -> None:
            if answer.more and call.credit is not None:
                while not call.credit.acquire(timeout=_CREDIT_WAIT_S):  # the reader is slow: its queue is here, where the oldest can go
                    if call.cancelled:
                        return
            encoded = encode_reply(call.id, answer)
            if buffered:
                replies.ready.append(encoded)
            else:
                connection.send(*replies_frame([encoded], ()))
            if not answer.more:
                under_way.pop(call.id, None)

        good, methods, validated = [], self._methods, self._validated
        for c in calls.calls:
            message = c.message  # each access makes a copy
            call_id, method = c.id, c.method
            # SR-014
            if c.crc != call_crc(message, call_id, method) or method >= len(methods):
                raise LinkDamage(f"call {call_id} is damaged: its CRC-32C does not match")
            x = c.context
            timeout_us = x.timeout_us
            context = CallContext(
                x.trace_id or ZERO16, x.span_id or ZERO8, x.sampled,
                now_ns + timeout_us * 1000 if timeout_us else 0, x.tenant, x.control, now_ns, validated, x.stands_for,
                x.asked_before,
            )  # fmt: skip
            call = under_way[call_id] = Call(call_id, methods[method], message, context, reply)
            if not model and self._dispatcher.is_stream(call.method):
                call.credit = threading.Semaphore(STREAM_CREDIT)
            good.append(call)

        given = False

        def go_on() -> None:
            nonlocal given
            given = True
            replies.send((lane,))

        def done() -> None:
            replies.send(() if given else (lane,))

        if model:
            self._dispatcher.submit_lane(model, good, replies.send, done, go_on)
        else:
            for call in good:
                self._dispatcher.submit(call)
            done()

    def _beat(self) -> None:
        while not self._stopping.is_set():
            self._news.wait(self._config.heartbeat_interval_s)
            self._news.clear()
            connection = self._connection
            if connection is None or not connection.open:
                continue
            if connection.reading and time.monotonic() - connection.last_heard > self._config.heartbeat_timeout_s:
                self._notice("expired", f"the gateway was silent for {self._config.heartbeat_timeout_s} s")
                connection.last_heard = time.monotonic()
            self._send_beat(connection)

    def _send_beat(self, connection: Connection) -> None:
        with self._beating:
            beat = link.Heartbeat(count=self._beats + 1, monotonic_ns=time.monotonic_ns(), pause_ms=self._pause_ms)
            try:
                ladders = self._ladders()
                if ladders is not None and ladders is not connection.ladders_sent:
                    connection.send(link.Frame(ladders=ladders).SerializeToString())
                    connection.ladders_sent = ladders
                self._heartbeat(beat)
            except Exception as error:  # a beat that cannot be made must not end the heart
                self._notice("damage", f"heartbeat: {error}")
                return
            if beat.checkpoint == connection.checkpoint_sent:
                beat.ClearField("checkpoint")
            else:
                connection.checkpoint_sent = beat.checkpoint
            beat.crc = heartbeat_crc(beat)
            self._beats += 1
            connection.send_first(link.Frame(heartbeat=beat).SerializeToString())

    @contextmanager
    def pausing(self, pause_ms: int) -> Iterator[None]:
        """Announce that nothing may be heard for so long, since what is done here lets nothing else run. Any thread."""
        with self._beating:
            self._pause_ms += pause_ms
        try:
            if pause_ms and (connection := self._connection) is not None and connection.open:
                self._send_beat(connection)
            yield
        finally:
            with self._beating:
                self._pause_ms -= pause_ms
            self._news.set()
