"""The link's end in the sidecar against a peer that breaks every rule."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from vigil.contract_digest import CONTRACT_DIGEST
from vigil.link.v1 import link_pb2 as link

from tests.harness import graphs
from tests.harness.calls import infer_request
from tests.harness.product import wait_for
from tests.harness.seen import note_seen
from vigil_safety import events_gen as events
from vigil_sidecar.app import Sidecar
from vigil_sidecar.audit.verify import read_records
from vigil_sidecar.server.call import Reply
from vigil_sidecar.server.frames import (
    FrameReader,
    LinkDamage,
    call_crc,
    encode_frame,
    encode_frames,
    encode_reply,
    heartbeat_crc,
    replies_frame,
)
from vigil_sidecar.server.link import PROTOCOL_VERSION
from vigil_sidecar.settings import load
from vigil_sidecar.telemetry.log import configure

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("link")
    graphs.scale(2.0, folder / "models" / "m" / "1" / "model.onnx")
    configure("error")
    settings, _ = load(
        None, {}, {"models.dir": str(folder / "models"), "data.dir": str(folder / "var"), "listen.sidecar_grpc_port": "0",
                   "listen.sidecar_metrics_port": "0", "link.revalidate": "all"},
    )  # fmt: skip
    running = Sidecar(settings)
    running.start()
    assert running.reconciler.first_pass.wait(30)
    yield running
    running.stop()
    note_seen(folder / "var" / "audit")


HELLO = link.Frame(hello=link.Hello(protocol_version=PROTOCOL_VERSION, contract_digest=CONTRACT_DIGEST))


def raw(sidecar: Sidecar) -> socket.socket:
    """A connection to the link that has said nothing."""
    found = socket.socket(socket.AF_UNIX)
    found.settimeout(10)
    found.connect(str(Path(sidecar.settings.data_dir) / "run" / "sidecar.sock"))
    return found


class Peer:
    """A gateway made by hand."""

    def __init__(self, sidecar: Sidecar, version: int = PROTOCOL_VERSION) -> None:
        self.socket = raw(sidecar)
        self.reader = FrameReader(self.socket, 1 << 28)
        self.send(link.Frame(hello=link.Hello(protocol_version=version, contract_digest=CONTRACT_DIGEST)))
        self.first = self.reader.read()

    def send(self, frame: link.Frame) -> None:
        self.socket.sendall(encode_frame(frame))

    def call(self, call_id: int = 1, damage: bool = False, request_id: str = "") -> link.Frame:
        assert self.first is not None
        message = infer_request("m", {"x": X}, request_id=request_id).SerializeToString()
        method = list(self.first.welcome.methods).index("/inference.GRPCInferenceService/ModelInfer")
        crc = call_crc(message, call_id, method) ^ (1 if damage else 0)
        call = link.Call(id=call_id, method=method, message=message, crc=crc)
        return link.Frame(calls=link.Calls(lane=3, calls=[call], model="m"))

    def until(self, body: str) -> link.Frame | None:
        while True:
            frame = self.reader.read()
            if frame is None or frame.WhichOneof("body") == body:
                return frame

    def ended(self) -> bool:
        """Whether the sidecar closes the link."""
        try:
            return self.until("reject") is None
        except (LinkDamage, ConnectionError):
            return True

    def close(self) -> None:
        self.socket.close()


def fresh(sidecar: Sidecar, version: int = PROTOCOL_VERSION) -> Peer:
    """A peer that is served: the one before may still be on its way out."""
    for _ in range(1000):
        wait_for(lambda: not sidecar._link.connected, 10, "the link is free")
        peer = Peer(sidecar, version)
        if peer.first is None or peer.first.reject.reason != "another gateway is connected":
            break
        peer.close()
    return peer


def works(sidecar: Sidecar) -> None:
    peer = fresh(sidecar)
    peer.send(peer.call())
    frame = peer.until("replies")
    assert frame is not None
    reply = frame.replies.replies[0]
    assert reply.code == 0 and reply.crc == call_crc(reply.message, reply.id, 0)
    assert list(frame.replies.credits) == [3]
    assert reply.audit_position.startswith("sidecar/")
    peer.close()


def header(body: bytes, magic: bytes = b"VGL1", size: int | None = None, crc: int | None = None) -> bytes:
    head = struct.pack("<4sI", magic, len(body) if size is None else size)
    return head + struct.pack("<I", google_crc32c.value(head) if crc is None else crc) + body


DAMAGE: list[tuple[str, Callable[[Peer], bytes]]] = [
    ("wrong magic", lambda p: header(b"x", magic=b"HTTP")),
    ("another version of the framing", lambda p: header(b"x", magic=b"VGL2")),
    ("length damaged", lambda p: header(b"xxxx", crc=7)),
    ("too long", lambda p: header(b"", size=1 << 30)),
    ("not a frame", lambda p: header(b"\xff" * 40)),
    ("empty frame", lambda p: header(b"")),
    ("call damaged on its way", lambda p: encode_frame(p.call(damage=True))),
    ("hello twice", lambda p: encode_frame(link.Frame(hello=link.Hello(protocol_version=PROTOCOL_VERSION)))),
    ("method out of range", lambda p: unknown_method(p)),
    ("heartbeat changed", lambda p: beats(1, crc=7)),
    ("heartbeat repeated", lambda p: beats(1, 2, 2)),
    ("heartbeat lost", lambda p: beats(1, 3)),
    ("heartbeats reordered", lambda p: beats(1, 3, 2)),
    ("heartbeat of another link put in", lambda p: beats(1, 2, 77)),
]  # fmt: skip


def corruptions(sidecar: Sidecar) -> int:
    log = Path(sidecar.settings.data_dir) / "audit" / "sidecar"
    return sum(r.header.event_id == events.LINK_CORRUPTION for r in read_records(log))


def beats(*counts: int, crc: int = 0) -> bytes:
    """Heartbeats with these counts; ``crc`` is what their CRC is off by."""
    made = [link.Heartbeat(count=n, monotonic_ns=time.monotonic_ns(), ready=True) for n in counts]
    for beat in made:
        beat.crc = heartbeat_crc(beat) ^ crc
    return b"".join(encode_frame(link.Frame(heartbeat=beat)) for beat in made)


def unknown_method(peer: Peer) -> bytes:
    call = link.Call(id=1, method=999, crc=call_crc(b"", 1, 999))
    return encode_frame(link.Frame(calls=link.Calls(calls=[call])))


@pytest.mark.parametrize(("what", "data"), DAMAGE, ids=[d[0] for d in DAMAGE])
def test_damage_ends_the_link_and_is_recorded(sidecar: Sidecar, what: str, data: Callable[[Peer], bytes]) -> None:
    """A damaged frame ends this link with an event; the next gateway is served."""
    before = corruptions(sidecar)
    peer = fresh(sidecar)
    peer.socket.sendall(data(peer))
    assert peer.ended()
    peer.close()
    works(sidecar)
    assert corruptions(sidecar) == before + 1


def test_short_frame(sidecar: Sidecar) -> None:
    """A link that ends within a frame is damage, not an end."""
    peer = fresh(sidecar)
    peer.socket.sendall(encode_frame(peer.call())[:-5])
    peer.close()
    works(sidecar)


def test_other_protocol_version_is_refused_in_words(sidecar: Sidecar) -> None:
    """A gateway of another version hears which version is spoken here."""
    peer = fresh(sidecar, version=PROTOCOL_VERSION + 1)
    assert peer.first is not None and f"speaks {PROTOCOL_VERSION}" in peer.first.reject.reason
    peer.close()
    works(sidecar)


def test_second_gateway_is_refused_in_words(sidecar: Sidecar) -> None:
    """While one gateway is connected another is turned away, and the first goes on."""
    first = fresh(sidecar)
    wait_for(lambda: sidecar._link.connected, 5, "connected")
    second = Peer(sidecar)
    assert second.first is not None and second.first.reject.reason == "another gateway is connected"
    second.close()
    first.send(first.call())
    assert first.until("replies") is not None
    first.close()
    works(sidecar)


def test_of_gateways_that_come_together_one_is_served(sidecar: Sidecar) -> None:
    """However many greet at the same time."""
    for _ in range(20):
        wait_for(lambda: not sidecar._link.connected, 10, "the link is free")
        sockets = [raw(sidecar) for _ in range(4)]
        for one in sockets:
            one.sendall(encode_frame(HELLO))
        first = [FrameReader(one, 1 << 28).read() for one in sockets]
        assert [f.WhichOneof("body") for f in first if f is not None].count("welcome") <= 1
        for one in sockets:
            one.close()


def test_heartbeats_come_while_calls_are_worked_on(sidecar: Sidecar) -> None:
    """Heartbeats carry readiness, models and states, with a CRC."""
    peer = fresh(sidecar)
    frame = peer.until("heartbeat")
    assert frame is not None
    beat = frame.heartbeat
    assert beat.ready and list(beat.models) == ["m"]
    assert beat.crc == heartbeat_crc(beat)
    assert {s.subject for s in beat.subjects} == {"model/m", "log/sidecar"}
    peer.close()


def test_cancelled_call_is_not_answered_twice(sidecar: Sidecar) -> None:
    """A cancel for an unknown or finished call is harmless."""
    peer = fresh(sidecar)
    peer.send(link.Frame(cancel=link.Cancel(ids=[1, 2, 3])))
    peer.send(peer.call(9))
    frame = peer.until("replies")
    assert frame is not None and [r.id for r in frame.replies.replies] == [9]
    peer.send(link.Frame(cancel=link.Cancel(ids=[9])))
    time.sleep(0.1)
    peer.close()
    works(sidecar)


@pytest.mark.parametrize("size", [0, 1, 1000, 256 * 1024 - 100, 256 * 1024, 700_000, 3_000_000])
def test_replies_survive_pieces(size: int) -> None:
    """A frame given as parts is the same message as one made whole, below and above the size of a piece."""
    a, b = socket.socketpair(socket.AF_UNIX)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    message = bytes(i % 251 for i in range(size))
    first = Reply(0, "", message, b"", False, "sidecar/ab/7", "3", 2, "NORMAL")
    second = Reply(3, "t", b"", b"details", True)
    parts = replies_frame([encode_reply(5, first), encode_reply(1 << 40, second)], [4, 0])
    whole = link.Frame()
    whole.replies.replies.add(
        id=5, message=message, audit_position="sidecar/ab/7", model_version="3", batch_size=2, safety_state="NORMAL",
        crc=call_crc(message, 5, 0),
    )  # fmt: skip
    whole.replies.replies.add(id=1 << 40, code=3, text="t", status=b"details", more=True, crc=call_crc(b"", 1 << 40, 3))
    whole.replies.credits.extend([4, 0])
    assert link.Frame.FromString(b"".join(parts)) == whole
    reader = FrameReader(b, 1 << 26)
    for piece in encode_frames(parts, 7):
        a.sendall(piece)
        if size > 256 * 1024:
            continue
    assert reader.read() == whole
    a.close()
    b.close()


@pytest.mark.parametrize("spin_ns", [0, 300_000])
def test_reader_takes_frames_however_they_are_cut(spin_ns: int) -> None:
    """Frames arrive whole and in order whether the socket gives them in bytes, in pairs or many at once, awake or asleep."""
    a, b = socket.socketpair(socket.AF_UNIX)
    sizes = [i * 37 % 5000 if i % 20 else 200_000 for i in range(400)]
    frames = [link.Frame(calls=link.Calls(lane=i, calls=[link.Call(id=i, message=bytes([i % 256]) * n)])) for i, n in enumerate(sizes)]
    data = b"".join(encode_frame(f) for f in frames)
    rng = random.Random(3)

    def send() -> None:
        at = 0
        while at < len(data):
            step = rng.choice((1, 11, 13, 4000, 300_000))
            a.sendall(data[at : at + step])
            at += step
            if rng.random() < 0.1:
                time.sleep(0.001)
        a.close()

    thread = threading.Thread(target=send)
    thread.start()
    reader = FrameReader(b, 1 << 26, spin_ns=spin_ns)
    reader.lone = True
    for f in frames:
        assert reader.read() == f
    assert reader.read() is None
    thread.join()
    b.close()


def test_reader_is_awake_only_between_close_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait longer than the limit ends waiting awake until a frame comes soon after another again; calls in company end it too."""
    a, b = socket.socketpair(socket.AF_UNIX)
    reader = FrameReader(b, 1 << 20, spin_ns=500_000_000)
    polls = []
    real = reader._poll
    monkeypatch.setattr(reader, "_poll", lambda timeout: polls.append(timeout) or real(timeout))
    beat = encode_frame(link.Frame(heartbeat=link.Heartbeat(count=1)))
    awake = []
    for lone, pause_s in ((True, 0), (True, 0), (True, 1), (True, 0), (True, 0), (False, 0)):
        timer = threading.Timer(pause_s, a.sendall, (beat,))
        polls.clear()
        reader.lone = lone
        timer.start()
        assert reader.read() is not None
        awake.append(bool(polls))
        timer.join()
    assert awake == [False, True, True, False, True, False]
    a.close()
    b.close()


def test_a_gateway_that_does_not_check_is_told_on(sidecar: Sidecar) -> None:
    """A message that breaks the rules, from a gateway that claims to have run them: refused, and the disagreement is an event."""
    peer = fresh(sidecar)
    peer.send(peer.call(request_id="i" * 300))
    frame = peer.until("replies")
    assert frame is not None and frame.replies.replies[0].code == 3
    log = Path(sidecar.settings.data_dir) / "audit" / "sidecar"
    found = wait_for(lambda: [r for r in read_records(log) if r.header.event_id == events.REVALIDATION_DISAGREEMENT], 10, "the event")
    assert b"id" in found[0].payload
    peer.close()
    works(sidecar)


def test_a_part_that_is_gone_is_told_in_the_heartbeats(sidecar: Sidecar) -> None:
    """The registry's thread has ended: its supervision expires, first borne, then said, and at last the process calls itself stopped."""
    peer = fresh(sidecar)
    seen: list[str] = []
    sent, end = 0, time.monotonic() + 20
    sidecar.reconciler.stop()
    while "STATUS_STOPPED" not in seen and time.monotonic() < end:
        sent += 1
        peer.socket.sendall(beats(sent))
        frame = peer.until("heartbeat")
        assert frame is not None
        status = link.Supervision.Status.Name(frame.heartbeat.supervision.status)
        if status not in seen:
            seen.append(status)
            expired = list(frame.heartbeat.supervision.expired)
            assert (status in ("STATUS_EXPIRED", "STATUS_STOPPED")) == any(x.startswith("registry: 0 signs of life") for x in expired)
    assert seen == ["STATUS_OK", "STATUS_FAILED", "STATUS_EXPIRED", "STATUS_STOPPED"]
    peer.close()
