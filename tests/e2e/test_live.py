"""LiveService: all that a screen shows on one stream, through the real product."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from vigil.contract_digest import CONTRACT_DIGEST
from vigil.live.v1 import live_pb2 as live
from vigil.models.v1 import models_pb2 as models
from vigil.perception.v1 import perception_pb2 as perception

from tests.harness import graphs
from tests.harness.calls import Stub, infer_request, own_address
from tests.harness.product import ROOT, Product, wait_for
from tests.harness.swaps import X, serves

FACE = (ROOT / "build" / "pictures" / "astronaut.png").read_bytes()
STAGES = ["STAGE_STAGING", "STAGE_WARMING", "STAGE_LOADED", "STAGE_SERVING"]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    running = Product(tmp_path_factory.mktemp("live"))
    shutil.copytree(ROOT / "models" / "face-detection", running.models / "face-detection")
    graphs.scale(2.0, running.models / "m" / "1" / "model.onnx")
    with running:
        yield running


@pytest.fixture(scope="module")
def stub(product: Product) -> Stub:
    return Stub(product.channel())


class Screen:
    """Reads one stream on a thread of its own."""

    def __init__(self, channel: grpc.Channel, resume: str = "", sources: list[tuple[str, bool]] | None = None, tenant: str = "") -> None:
        call = channel.unary_stream(
            "/vigil.live.v1.LiveService/Watch",
            request_serializer=live.WatchRequest.SerializeToString,
            response_deserializer=live.WatchResponse.FromString,
        )
        request = live.WatchRequest(resume=resume, sources=[live.WatchedSource(source_id=s, frames=f) for s, f in sources or []])
        self.call = call(request, timeout=120, metadata=[("vigil-tenant", tenant)] if tenant else None)
        self.messages: list[Any] = []
        self.error: grpc.StatusCode | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for message in self.call:
                self.messages.append(message)
        except grpc.RpcError as error:
            self.error = error.code()

    def of(self, kind: str) -> list[Any]:
        return [getattr(m, kind) for m in self.messages if m.WhichOneof("of") == kind]

    def hello(self) -> Any:
        return wait_for(lambda: self.of("hello"), 20, "hello")[0]

    def stages(self, model: str, version: int) -> list[str]:
        told = [e.model for e in self.of("event") if e.WhichOneof("of") == "model"]
        return [models.Stage.Name(m.stage) for m in told if m.model == model and m.version == version]

    def close(self) -> None:
        self.call.cancel()
        self._thread.join(10)


def test_hello_says_what_a_client_has_to_know(stub: Stub) -> None:
    """The contract, the state of the whole, and what this listener answers come first."""
    screen = Screen(stub.channel)
    hello = screen.hello()
    assert screen.messages[0].WhichOneof("of") == "hello"
    assert hello.contract_digest == CONTRACT_DIGEST and hello.server_version.count(".") == 2
    assert (hello.control, hello.reads, hello.frames) == (True, True, True)
    assert {"sidecar", "model/m"} <= {s.subject for s in hello.state.subjects}
    assert abs(hello.time_us / 1e6 - time.time()) < 5
    screen.close()


def test_figures_are_those_of_the_calls(stub: Stub) -> None:
    """Answers, errors and latencies of each model are counted once, and shown each second."""
    screen = Screen(stub.channel)
    screen.hello()
    wait_for(lambda: screen.of("figures"), 10, "figures")
    before = time.monotonic()
    for _ in range(50):
        stub.infer(infer_request("m", {"x": X}))
    took_us = (time.monotonic() - before) * 1e6
    with pytest.raises(grpc.RpcError):
        stub.infer(infer_request("m", {"y": X}))
    with pytest.raises(grpc.RpcError):
        stub.infer(infer_request("nobody's", {"y": X}))

    def seen(model: str, what: str) -> int:
        return sum(getattr(m, what) for f in screen.of("figures") for m in f.models if m.model == model)

    wait_for(lambda: seen("", "errors") >= 2, 10, "the calls")
    assert (seen("m", "answers"), seen("m", "errors"), seen("", "answers"), seen("", "errors")) == (50, 1, 50, 2)
    assert seen("nobody's", "errors") == 0, "names that clients invent are not told of"
    busy = [m for f in screen.of("figures") for m in f.models if m.model == "m" and m.answers]
    assert all(0 < m.p50_us <= m.p90_us <= m.p99_us <= m.max_us < took_us for m in busy)
    assert all(m.batch_rows >= 1 for m in busy)
    last = screen.of("figures")[-1]
    parts = {(p.process, p.name): p.status for p in last.parts}
    assert parts["sidecar", "registry"] == "OK" and parts["gateway", "link_reader"] == "OK"
    assert 0 <= last.heartbeat_age_ms < 5000 and 900 <= last.interval_ms < 5000 and last.streams >= 1
    screen.close()


def test_a_swap_is_told_step_by_step_and_resumed_without_loss(product: Product, stub: Stub) -> None:
    """Each step comes once and in order; whoever resumes at any event gets exactly those after it."""
    screen = Screen(stub.channel)
    start = screen.hello().resume
    graphs.scale(3.0, product.models / "m" / "2" / "model.onnx")
    serves(stub, 3.0)
    wait_for(lambda: "STAGE_RETIRED" in screen.stages("m", 1), 20, "the old version is retired")
    assert screen.stages("m", 2) == STAGES
    assert screen.stages("m", 1) == ["STAGE_DRAINING", "STAGE_RETIRED"]
    (product.models / "m" / "3").mkdir()
    (product.models / "m" / "3" / "model.onnx").write_bytes(b"no graph")
    wait_for(lambda: "STAGE_REFUSED" in screen.stages("m", 3), 20, "a bad one is refused")
    refusal = next(e.model for e in screen.of("event") if e.model.version == 3 and e.model.stage == models.STAGE_REFUSED)
    assert refusal.reason and len(refusal.digest) == 64
    all_of_it = [e.resume for e in screen.of("event")]
    assert len(set(all_of_it)) == len(all_of_it)
    for i, place in enumerate([start, *all_of_it]):
        again = Screen(stub.channel, resume=place)
        again.hello()
        wait_for(lambda again=again: again.of("figures"), 10, "what was missed comes before figures")
        assert [e.resume for e in again.of("event")] == all_of_it[i:]
        again.close()
    screen.close()


def test_versions_tell_their_gates(stub: Stub) -> None:
    """A version that was loaded says what it passed, how long that took, and what memory it took."""
    wait_for(lambda: stub.models()["face-detection"].serving_version, 20, "serves")
    model = stub.models()["face-detection"]
    version = next(v for v in model.versions if v.version == model.serving_version)
    assert [g.name for g in version.gates] == ["loaded", "contract", "warm-up", "pipeline and ladder", "memory"]
    assert all(g.found for g in version.gates) and sum(g.took_us for g in version.gates) > 1000
    assert 0 < version.memory_bytes < 1 << 30
    retired = [v for v in stub.models()["m"].versions if v.version == 1]
    assert all(not v.gates for v in retired)


def test_outputs_come_with_their_pictures_where_they_are_asked_for(stub: Stub) -> None:
    """Two screens of one source get its outputs, one with the picture; another source's never."""
    plain, full = Screen(stub.channel, sources=[("cam", False)]), Screen(stub.channel, sources=[("cam", True), ("quiet", True)])
    plain.hello(), full.hello()
    time.sleep(0.5)
    sent = []
    for _ in range(3):
        sent.append(stub.detect("cam", "face-detection", perception.Frame(encoded=FACE)).capture_time_us)
        stub.detect("other", "face-detection", perception.Frame(encoded=FACE))
        wait_for(lambda: len(full.of("output")) >= len(sent) and len(plain.of("output")) >= len(sent), 20, "outputs")
    for screen in (plain, full):
        assert [o.watched.output.capture_time_us for o in screen.of("output")] == sent
        assert {o.source_id for o in screen.of("output")} == {"cam"}
    assert all(o.watched.frame.encoded == FACE for o in full.of("output"))
    assert not any(o.watched.HasField("frame") for o in plain.of("output"))
    plain.close(), full.close()


def test_a_slow_screen_gets_what_is_and_how_much_it_missed(stub: Stub) -> None:
    """Pictures do not pile up for a reader that does not read; answers and misses add up."""
    call = stub.channel.unary_stream(
        "/vigil.perception.v1.PerceptionService/Watch",
        request_serializer=perception.WatchRequest.SerializeToString,
        response_deserializer=perception.WatchResponse.FromString,
    )(perception.WatchRequest(source_id="slow", frames=True), timeout=120)
    time.sleep(0.5)
    sent = [stub.detect("slow", "face-detection", perception.Frame(encoded=FACE)).capture_time_us for _ in range(60)]
    got, dropped = [], 0
    for message in call:
        got.append(message.output.capture_time_us)
        dropped += message.dropped
        assert message.frame.encoded == FACE
        if got[-1] == sent[-1]:
            break
    call.cancel()
    assert len(got) + dropped == len(sent) and dropped > 0
    assert got == [t for t in sent if t in set(got)]


def test_sources_are_those_of_the_tenant(stub: Stub) -> None:
    """Whoever asks learns of the own tenant's sources only, the latest first."""

    def listed(tenant: str = "") -> list[str]:
        reply, _ = stub.unary(
            "/vigil.perception.v1.PerceptionService/ListSources", perception.ListSourcesRequest(), perception.ListSourcesResponse,
            metadata=[("vigil-tenant", tenant)] if tenant else None,
        )  # fmt: skip
        return [s.source_id for s in reply.sources]

    stub.detect("first", "face-detection", perception.Frame(encoded=FACE))
    stub.detect("second", "face-detection", perception.Frame(encoded=FACE))
    assert listed()[:2] == ["second", "first"]
    assert listed("somebody") == []


def test_a_hidden_source_stays_hidden(stub: Stub) -> None:
    """A screen of one tenant gets nothing of the same name of another."""
    screen = Screen(stub.channel, sources=[("shared", True)], tenant="a")
    screen.hello()
    time.sleep(0.5)
    stub.detect("shared", "face-detection", perception.Frame(encoded=FACE))
    wait_for(lambda: len(screen.of("figures")) > 2, 20, "figures")
    assert screen.of("output") == []
    screen.close()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (live.WatchRequest(resume="another/7"), grpc.StatusCode.OUT_OF_RANGE),
        (live.WatchRequest(resume="x" * 65), grpc.StatusCode.INVALID_ARGUMENT),
        (live.WatchRequest(sources=[live.WatchedSource(source_id="")]), grpc.StatusCode.INVALID_ARGUMENT),
        (live.WatchRequest(sources=[live.WatchedSource(source_id=str(i)) for i in range(17)]), grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["resume of another run", "long resume", "nameless source", "17 sources"],
)
def test_bad_requests_are_refused(stub: Stub, request_: Any, code: grpc.StatusCode) -> None:
    """What cannot be followed is refused in words."""
    call = stub.channel.unary_stream(
        "/vigil.live.v1.LiveService/Watch",
        request_serializer=live.WatchRequest.SerializeToString,
        response_deserializer=live.WatchResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as error:
        list(call(request_, timeout=20))
    assert error.value.code() == code, error.value.details()


def test_the_sidecars_death_and_return_are_on_the_stream(product: Product, stub: Stub) -> None:
    """A kill is an event within the stream, which goes on; outputs come again by themselves."""
    screen = Screen(stub.channel, sources=[("survivor", True)])
    screen.hello()
    os.kill(product.pids()["sidecar_pid"], signal.SIGKILL)

    def reached(state: int) -> bool:
        moves = [e.transition for e in screen.of("event") if e.WhichOneof("of") == "transition"]
        return any(t.subject == "sidecar" and t.to == state for t in moves)

    wait_for(lambda: reached(3), 20, "DEGRADED")
    wait_for(lambda: reached(2), 40, "NORMAL again")
    wait_for(lambda: any(f.heartbeat_age_ms == -1 for f in screen.of("figures")) or screen.of("figures"), 10, "figures")
    serves(stub, 3.0)

    def came() -> bool:
        stub.detect("survivor", "face-detection", perception.Frame(encoded=FACE))
        return bool(screen.of("output"))

    wait_for(came, 30, "an output after the restart", every_s=0.2)
    assert all(e.state.state for e in screen.of("event") if e.WhichOneof("of") == "transition")
    screen.close()
    assert screen.error == grpc.StatusCode.CANCELLED


@pytest.mark.skipif(not own_address(), reason="this machine has no address but loopback")
def test_pictures_stay_on_this_machine(tmp_path: Any) -> None:
    """On another listener a screen gets states and boxes, and no picture, unless the setting says so."""
    host = own_address()
    for allowed in (False, True):
        running = Product(tmp_path / str(allowed), {"listen.host": host, "perception.frames_remote": str(allowed).lower()})
        graphs.scale(2.0, running.models / "m" / "1" / "model.onnx")
        with running:
            channel = grpc.insecure_channel(f"{host}:{running.ports['grpc']}")
            plain = Screen(channel, sources=[("cam", False)])
            hello = plain.hello()
            assert (hello.control, hello.reads, hello.frames) == (False, False, allowed)
            full = Screen(channel, sources=[("cam", True)])
            if allowed:
                full.hello()
            else:
                wait_for(lambda full=full: full.error, 20, "a refusal")
                assert full.error == grpc.StatusCode.PERMISSION_DENIED
            plain.close(), full.close()
            channel.close()


def test_whoever_watches_a_source_sees_its_stand_ins(tmp_path: Any) -> None:
    """While the sidecar is away, watchers with pictures get the last good answer, marked, with the present picture."""
    product = Product(tmp_path, {"supervisor.backoff_ms": 60_000})
    shutil.copytree(ROOT / "models" / "face-detection", product.models / "face-detection")
    config = product.models / "face-detection" / "vigil.toml"
    config.write_text(config.read_text() + "\n[ladder]\nlast_good_ms = 60000\n")
    with product:
        stub = Stub(product.channel())
        call = stub.channel.unary_stream(
            "/vigil.perception.v1.PerceptionService/Watch",
            request_serializer=perception.WatchRequest.SerializeToString,
            response_deserializer=perception.WatchResponse.FromString,
        )(perception.WatchRequest(source_id="cam", frames=True), timeout=120)
        time.sleep(0.5)
        good = stub.detect("cam", "face-detection", perception.Frame(encoded=FACE))
        first = next(call)
        assert first.output.capture_time_us == good.capture_time_us and first.output.quality.kind == perception.QUALITY_KIND_NORMAL
        os.kill(product.pids()["sidecar_pid"], signal.SIGKILL)
        given = stub.detect("cam", "face-detection", perception.Frame(encoded=FACE))
        assert given.quality.kind == perception.QUALITY_KIND_CACHE
        second = next(call)
        assert second.output == given and second.frame.encoded == FACE and second.dropped == 0
        call.cancel()


def test_a_recovering_subject_tells_its_probes(tmp_path: Any) -> None:
    """While golden runs prove a model: how many were good, how many are needed, and when their lease ends."""
    product = Product(
        tmp_path, {"safety.backoff_ms": 0, "safety.probe_interval_s": 0, "safety.good_probes_min": 500, "safety.lease_ms": 60_000}
    )
    graphs.with_nan(product.models / "log" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        with pytest.raises(grpc.RpcError):
            stub.infer(infer_request("log", {"x": -X}))

        def probes() -> Any:
            return next((s.probes for s in stub.state().subjects if s.subject == "model/log" and s.HasField("probes")), None)

        seen = wait_for(probes, 20, "probes under way", every_s=0)
        assert seen.needed == 500 and 0 <= seen.good <= 500
        assert time.time() < seen.lease_ends_us / 1e6 < time.time() + 61
        wait_for(lambda: all(s.state == 2 for s in stub.state().subjects), 60, "NORMAL again")
        assert probes() is None


def test_play_feeds_a_source_at_its_pace(product: Product, stub: Stub, tmp_path: Any) -> None:
    """A folder's pictures, over and over; a broken one counts and does not end it; what it cannot do is told in a line."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(FACE)
    (folder / "b.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture")
    screen = Screen(stub.channel, sources=[("played", True)])
    screen.hello()
    time.sleep(0.5)
    begin = time.monotonic()
    done = product.vigil("play", str(folder), "--source", "played", "--fps", "5", "--count", "8", "--json", *target(product))
    took = time.monotonic() - begin
    told = json.loads(done.stdout)
    assert (told["answered"], told["failed"], told["degraded"], told["model"]) == (4, 4, 0, "face-detection")
    assert "b.jpg" in done.stderr and done.stderr.count("b.jpg") == 1 and took > 1.3
    wait_for(lambda: sum(1 + o.watched.dropped for o in screen.of("output")) == 4, 10, "outputs")
    screen.close()
    for arguments, text in (
        (["play", str(tmp_path / "missing"), "--source", "x"], "No such file"),
        (["play", str(tmp_path), "--source", "x"], "has no picture"),
        (["play", str(folder), "--source", "x", "--fps", "0"], "--fps is 0"),
        (["play", str(folder), "--source", "x", "--count", "0"], "--count is 0"),
        (["play", str(folder), "--source", "x", "--model", "nope", "--count", "1"], "unknown model"),
    ):
        failed = product.vigil(*arguments, *target(product), check=False)
        assert failed.returncode == 1 and text in failed.stderr and "Traceback" not in failed.stderr, failed


def target(product: Product) -> list[str]:
    return ["--target", f"127.0.0.1:{product.ports['grpc']}"]


def test_the_page_can_be_taken_away(tmp_path: Any) -> None:
    """With web.page off the web port has its front page only, and every call."""
    product = Product(tmp_path, {"web.page": "false"})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        address = f"http://127.0.0.1:{product.ports['http']}"
        with urllib.request.urlopen(address + "/", timeout=10) as answer:
            assert b"This port speaks gRPC-Web" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + "/page.js", timeout=10)
