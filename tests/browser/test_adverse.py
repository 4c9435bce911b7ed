"""What may go wrong before a page: forgeries, cuts, stalls, restarts, hostile text, wrong clocks, other origins, stops."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from playwright.sync_api import BrowserContext, Page, Route, expect
from vigil.audit.v1 import audit_pb2
from vigil.audit.v1 import service_pb2 as audit
from vigil.live.v1 import live_pb2 as live
from vigil.perception.v1 import perception_pb2 as perception

from tests.browser.conftest import Watched, url_of
from tests.browser.doorway import Doorway
from tests.browser.views import becomes, events_shown, is_live, pin, serious, shoot, upload, verified, whole
from tests.harness import graphs
from tests.harness.calls import Stub, infer_request, own_address
from tests.harness.product import ROOT, Product, wait_for
from tests.harness.swaps import X
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.writer import AuditWriter

FACE = ROOT / "build" / "pictures" / "astronaut.png"
HOSTILE = '"><img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
FETCH = """async url => {
  try {
    const answer = await fetch(url, {method: "POST", headers: {"content-type": "application/json"}, body: "{}"});
    return answer.status;
  } catch (error) {
    return String(error);
  }
}"""
ALONE = "delete window.SharedWorker"
"""A browser without shared workers: then a page's requests can be altered on their way."""


def framed(message: Message) -> bytes:
    """A message as gRPC-Web frames it."""
    data = message.SerializeToString()
    return bytes(1) + len(data).to_bytes(4, "big") + data


def unframed(body: bytes, kind: type[Any]) -> tuple[Any, bytes]:
    """The first message of a gRPC-Web body, and what follows it."""
    end = 5 + int.from_bytes(body[1:5], "big")
    return kind.FromString(body[5:end]), body[end:]


def altering(kind: type[Any], alter: Callable[[Any], None]) -> Callable[[Route], None]:
    """A handler that changes an answer on its way to the page."""

    def handle(route: Route) -> None:
        answer = route.fetch()
        message, rest = unframed(answer.body(), kind)
        alter(message)
        route.fulfill(response=answer, body=framed(message) + rest)

    return handle


def record_of(page: Page, product: Product) -> None:
    """Look at a picture, and go to the answer's record."""
    page.goto(url_of(product, "look"))
    is_live(page)
    upload(page, FACE)
    page.locator("dl.facts-list a").click()
    expect(page.locator('section[aria-label^="Record sidecar/"] tbody tr').first).to_be_visible()
    wait_for(lambda: verified(page) == "unsigned", 20, "a checkpoint covers it", every_s=0.3)
    pin(page, product)
    assert verified(page) == "verified"


def _flip_record(at: int) -> Callable[[Any], None]:
    def alter(reply: Any) -> None:
        lines = reply.proof.split(b"\n")
        raw = bytearray(base64.b64decode(lines[1].removeprefix(b"extra ")))
        raw[at] ^= 1
        lines[1] = b"extra " + base64.b64encode(raw)
        reply.proof = b"\n".join(lines)

    return alter


def _resealed(reply: Any) -> None:
    """Another output, with a checksum that fits: only the tree and the signature tell."""
    import google_crc32c

    lines = reply.proof.split(b"\n")
    raw = bytearray(base64.b64decode(lines[1].removeprefix(b"extra ")))
    raw[200] ^= 1
    raw[layout.CRC_OFFSET : layout.HEADER_BYTES] = google_crc32c.value(
        bytes(raw[: layout.CRC_OFFSET] + raw[layout.HEADER_BYTES :])
    ).to_bytes(4, "little")  # fmt: skip
    lines[1] = b"extra " + base64.b64encode(raw)
    reply.proof = b"\n".join(lines)


def _root(reply: Any) -> None:
    head, blank, note = reply.proof.partition(b"\n\n")
    lines = note.split(b"\n")
    lines[2] = base64.b64encode(bytes(32))
    reply.proof = head + blank + b"\n".join(lines)


FORGERIES = {
    "a byte of the record": (_flip_record(150), "record"),
    "an output with a fitting checksum": (_resealed, "inclusion"),
    "the root that is signed": (_root, "signature"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_proof_that_was_altered_on_its_way_is_forged(product: Product, watched: Watched, what: str) -> None:
    """Whatever is changed between log and page, the page itself finds it, and says which step failed."""
    page = watched.page
    record_of(page, product)
    alter, step = FORGERIES[what]
    page.route("**/vigil.audit.v1.AuditService/Prove", altering(audit.ProveResponse, alter))
    assert verified(page) == "forged"
    expect(page.locator(".verdict li.bad", has_text=step).first).to_be_visible()
    shoot(page, "forged")
    assert serious(page) == []
    page.unroute("**/vigil.audit.v1.AuditService/Prove")
    assert verified(page) == "verified"
    watched.quiet()


def test_a_record_that_is_shown_otherwise_than_it_is_written_is_forged(product: Product, watched: Watched) -> None:
    """A server that shows one record and proves another is found out: the bytes that are shown are compared with the proven ones."""
    page = watched.page
    record_of(page, product)
    position = page.url.split("position=")[1]

    def alter(reply: Any) -> None:
        raw = bytearray(reply.raw)
        _, start = raw[:10], layout.HEADER_BYTES
        payload = audit_pb2.CallPayload.FromString(bytes(raw[start:]))
        payload.source_id = payload.source_id[:-1] + "?"
        raw[start:] = payload.SerializeToString()
        import google_crc32c

        fresh = google_crc32c.value(bytes(raw[: layout.CRC_OFFSET] + raw[layout.HEADER_BYTES :])).to_bytes(4, "little")
        raw[layout.CRC_OFFSET : layout.HEADER_BYTES] = fresh
        reply.raw = bytes(raw)

    page.goto(url_of(product, "audit"))
    page.route("**/vigil.audit.v1.AuditService/Get", altering(audit.GetResponse, alter))
    page.goto(url_of(product, f"audit?position={position}"))
    expect(page.locator("pre", has_text="?").first).to_be_visible()
    assert verified(page) == "forged"
    expect(page.locator(".verdict li.bad")).to_contain_text("shown")


def test_another_record_than_asked_for_is_forged(product: Product, watched: Watched) -> None:
    """A proof that holds, of another record, does not prove the one that was asked for."""
    page = watched.page
    record_of(page, product)
    other, _ = Stub(product.channel()).unary(
        "/vigil.audit.v1.AuditService/Prove", audit.ProveRequest(position="sidecar/1"), audit.ProveResponse
    )
    page.route("**/vigil.audit.v1.AuditService/Prove", altering(audit.ProveResponse, lambda reply: reply.CopyFrom(other)))
    assert verified(page) == "forged"
    expect(page.locator(".verdict li.bad", has_text="place")).to_contain_text("was asked for")


@pytest.mark.skipif(not own_address(), reason="this machine has no address but loopback")
def test_where_the_page_is_no_secure_context_a_library_verifies(tmp_path: Path, watched: Watched) -> None:
    """Over plain HTTP from another machine there is no WebCrypto: the same verdict, by the library."""
    host = own_address()
    more = {"listen.host": host, "audit.read_remote": "true", "audit.checkpoint_interval_s": "0.2"}
    product = Product(tmp_path, more)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        import grpc

        stub = Stub(grpc.insecure_channel(f"{host}:{product.ports['grpc']}"))
        stub.infer(infer_request("m", {"x": X}))
        page = watched.page
        page.goto(f"http://{host}:{product.ports['http']}/#/audit")
        is_live(page)
        assert page.evaluate("[isSecureContext, typeof crypto.subtle]") == [False, "undefined"]
        page.locator('section[aria-label="Search the logs"] tbody tr', has_text="1001").locator("a").click()
        expect(page.locator('section[aria-label^="Record sidecar/"] tbody tr').first).to_be_visible()
        wait_for(lambda: verified(page) == "unsigned", 20, "a checkpoint covers it", every_s=0.3)
        pin(page, product)
        assert verified(page) == "verified"
        expect(page.locator(".verdict")).to_contain_text("noble")
        page.route("**/vigil.audit.v1.AuditService/Prove", altering(audit.ProveResponse, _root))
        assert verified(page) == "forged"
        page.goto(f"http://{host}:{product.ports['http']}/#/models")
        expect(page.locator(".notice", has_text="control.allow_remote")).to_be_visible()
        expect(page.get_by_role("button", name="Look again")).to_be_disabled()


def test_a_dead_connection_is_shown_within_two_seconds(product: Product, watched: Watched) -> None:
    """A gateway that says nothing (SIGSTOP): no good news stays on the page; afterwards all goes on, and no event is lost or doubled."""
    page = watched.page
    page.goto(url_of(product))
    is_live(page)
    becomes(page, "NORMAL", 60)
    page.evaluate(
        "() => { window.staleAfter = 0; const t0 = performance.now(); const look = () => "
        "document.querySelector('[data-connection=stale]') ? (window.staleAfter = performance.now() - t0) : setTimeout(look, 20); look(); }"
    )
    os.kill(product.pids()["gateway_pid"], signal.SIGSTOP)
    try:
        expect(page.locator("[data-connection=stale]")).to_be_visible(timeout=10_000)
        assert 0 < page.evaluate("window.staleAfter") < 3300, "two seconds after the last figures, which were up to a second old"
        assert whole(page) == "UNKNOWN"
        expect(page.get_by_role("alert")).to_contain_text("What is shown is old")
        shoot(page, "stale")
        assert serious(page) == []
    finally:
        os.kill(product.pids()["gateway_pid"], signal.SIGCONT)
    is_live(page, 30)
    rows = events_shown(page)
    assert len(set(rows)) == len(rows)


def test_events_of_a_cut_are_neither_lost_nor_doubled(product: Product, watched: Watched, context: BrowserContext) -> None:
    """The stream is cut while a version is swapped in: afterwards the page has each step once."""
    page = watched.page
    page.add_init_script(ALONE)
    folder = product.models / "cut"
    graphs.scale(2.0, folder / "1" / "model.onnx")
    page.goto(url_of(product, "models"))
    is_live(page)
    wait_for(lambda: page.locator('section[aria-label="cut"]').count() == 1, 20, "the model is there", every_s=0.2)
    context.set_offline(True)
    page.route("**/vigil.live.v1.LiveService/Watch", lambda route: route.abort())
    os.kill(product.pids()["gateway_pid"], signal.SIGSTOP)  # an open stream outlives set_offline: it has to be given up
    expect(page.locator("[data-connection=stale]")).to_be_visible(timeout=10_000)
    page.wait_for_timeout(6000)
    os.kill(product.pids()["gateway_pid"], signal.SIGCONT)
    graphs.scale(3.0, folder / "2" / "model.onnx")
    wait_for(lambda: product.listed("cut")["serving_version"] == 2, 20, "version 2 serves")
    assert page.locator('[data-swap="cut/2"]').count() == 0
    context.set_offline(False)
    page.unroute("**/vigil.live.v1.LiveService/Watch")
    is_live(page, 30)
    expect(page.locator('[data-swap="cut/2"] li.done')).to_have_count(4)
    page.goto(url_of(product, "live"))
    steps = [r for r in events_shown(page) if "cut v2" in r]
    assert len(steps) == 4, steps
    shutil.rmtree(folder)


def test_a_gateway_that_restarts_is_followed_again(tmp_path: Path, watched: Watched) -> None:
    """SIGKILL of the gateway: live again by itself, with a word that events may be missing, and none twice."""
    product = Product(tmp_path)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        door = Doorway(lambda: product.pids()["http"])  # the port is another one after a restart here
        page = watched.page
        page.goto(f"http://127.0.0.1:{door.port}/#/live")
        is_live(page)
        os.kill(product.pids()["gateway_pid"], signal.SIGKILL)
        expect(page.locator(".notice", has_text="may be missing")).to_be_visible(timeout=60_000)
        is_live(page, 60)
        becomes(page, "NORMAL", 60)
        rows = events_shown(page)
        assert len(set(rows)) == len(rows)
        door.close()


def test_all_pages_of_a_browser_share_one_stream(product: Product, context: BrowserContext) -> None:
    """Eight pages over HTTP/1.1, which allows six connections: all are live, and the gateway has one stream."""
    pages = [context.new_page() for _ in range(8)]
    for page in pages:
        page.goto(url_of(product))
    for page in pages:
        is_live(page)
        expect(page.locator("[data-figure=Heartbeat]")).to_contain_text("ms ago")
    stub = Stub(product.channel())
    call = stub.channel.unary_stream(
        "/vigil.live.v1.LiveService/Watch", request_serializer=live.WatchRequest.SerializeToString,
        response_deserializer=live.WatchResponse.FromString,
    )(live.WatchRequest(), timeout=30)  # fmt: skip
    streams = next(m.figures.streams for m in call if m.WhichOneof("of") == "figures")
    call.cancel()
    assert streams == 2, "this one, and that of all pages"
    pages[0].close()
    for page in pages[1:]:
        is_live(page)


def test_hostile_text_is_text(product: Product, watched: Watched) -> None:
    """Names of sources, models and requests that are HTML stand there as they are, and nothing of them runs."""
    stub = Stub(product.channel())
    source = HOSTILE[:128]
    stub.detect(source, "face-detection", perception.Frame(encoded=FACE.read_bytes()))
    with pytest.raises(Exception, match=r"unknown|no model|not"):
        stub.infer(infer_request(HOSTILE[:200], {"x": X}, request_id=HOSTILE))
    page = watched.page
    page.goto(url_of(product, "look"))
    is_live(page)
    option = page.locator("option", has_text="onerror")
    expect(option).to_have_count(1)
    page.get_by_label("Source").select_option(source)
    stub.detect(source, "face-detection", perception.Frame(encoded=FACE.read_bytes()))
    expect(page.get_by_role("heading", name=source)).to_be_visible()
    page.goto(url_of(product, "audit"))
    for log in ("1", "2"):
        page.locator("select[name=log]").select_option(log)
        page.get_by_role("search").get_by_role("button", name="Search").click()
        page.wait_for_timeout(500)
        if page.locator("td.words", has_text="<script>").count():
            break
    expect(page.locator("td.words", has_text="<script>").first).to_be_visible()
    assert page.locator("main img, main script").count() == 0
    assert "owned" not in page.title()
    watched.quiet()


def test_another_contract_is_told_in_words(product: Product, watched: Watched) -> None:
    """A page that was made for another contract than the gateway's says so, rather than showing what it cannot know."""
    page = watched.page
    page.add_init_script(ALONE)
    hello = live.WatchResponse(hello=live.Hello(server_version="9.9.9", contract_digest="f" * 64, time_us=time.time_ns() // 1000))
    page.route(
        "**/vigil.live.v1.LiveService/Watch",
        lambda route: route.fulfill(status=200, headers={"content-type": "application/grpc-web+proto"}, body=framed(hello)),
    )
    page.goto(url_of(product))
    expect(page.get_by_role("alert")).to_contain_text("version 9.9.9")
    expect(page.get_by_role("alert")).to_contain_text("Reload the page")
    assert whole(page) == "UNKNOWN"


def test_a_stream_that_floods_is_borne(product: Product, watched: Watched) -> None:
    """Twenty thousand events at once: the page keeps a bounded number, and still answers."""
    page = watched.page
    page.add_init_script(ALONE)
    body = framed(live.WatchResponse(hello=live.Hello(server_version="0.1.0", contract_digest="f" * 64, time_us=time.time_ns() // 1000)))
    for i in range(20_000):
        event = live.Event(resume=f"x/{i}")
        event.transition.subject, event.transition.event, event.transition.reason = f"model/{i}", "fault", "x" * 200
        event.transition.time_us = time.time_ns() // 1000
        setattr(event.transition, "from", 2)
        event.transition.to = 3
        body += framed(live.WatchResponse(event=event))
    page.route(
        "**/vigil.live.v1.LiveService/Watch",
        lambda route: route.fulfill(status=200, headers={"content-type": "application/grpc-web+proto"}, body=body),
    )
    page.goto(url_of(product))
    expect(page.locator('section[aria-label="What happened last"] tbody tr').first).to_contain_text("model/19999", timeout=60_000)
    assert page.locator("tr").count() < 100
    page.get_by_role("link", name="Safety").click()
    expect(page.locator('section[aria-label="History of this run"] tbody tr')).to_have_count(200)
    assert page.evaluate("performance.memory ? performance.memory.usedJSHeapSize : 0") < 200 << 20


def test_a_clock_that_is_wrong_is_told_and_not_used(product: Product, context: BrowserContext, watched: Watched) -> None:
    """The device is two hours behind: a banner says so, ages are right, and a picture from here is not refused as old or new."""
    page = watched.page
    page.add_init_script(ALONE)
    page.clock.install(time=time.time() - 7200)
    page.goto(url_of(product))
    is_live(page)
    expect(page.get_by_text(re.compile("clock is (1 h 59 min|2 h) behind"))).to_be_visible()
    since = page.locator('section[aria-label="Subjects"] tbody tr td:nth-child(3)').first.inner_text()
    assert " h" not in since, since
    page.get_by_role("link", name="Look").click()
    upload(page, FACE)
    expect(page.locator(".box rect").first).to_be_visible()
    expect(page.locator("dl.facts-list")).to_contain_text(re.compile(r"\([0-9] s ago\)"))


def test_behind_tls_and_a_path_prefix(product: Product, watched: Watched, own_certificate: Path) -> None:
    """The same page through a proxy that ends TLS and takes a prefix off: stream, calls and worker all work."""
    door = Doorway(lambda: product.ports["http"], "/site/7", own_certificate)
    page = watched.page
    page.goto(f"https://127.0.0.1:{door.port}/site/7/#/look")
    is_live(page)
    upload(page, FACE)
    expect(page.locator(".box rect").first).to_be_visible()
    page.get_by_role("link", name="Models").click()
    expect(page.locator('section[aria-label="face-detection"]')).to_be_visible()
    assert all(u.startswith((f"https://127.0.0.1:{door.port}/site/7/", "blob:")) for u in watched.foreign), watched.foreign
    watched.quiet()
    door.close()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[str]:
    """A page of another origin."""
    (tmp_path / "index.html").write_text("<!doctype html><title>elsewhere</title>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_a_foreign_origin_is_refused(product: Product, context: BrowserContext, elsewhere: str) -> None:
    """A page from elsewhere can neither call the gateway nor show the operator's page in a frame."""
    page = context.new_page()
    page.goto(elsewhere)
    target = f"http://127.0.0.1:{product.ports['http']}"
    found = page.evaluate(FETCH, f"{target}/vigil.safety.v1.SafetyService/Get")
    assert "Failed to fetch" in str(found)
    with page.expect_event("console", timeout=10_000) as told:
        page.evaluate("url => { const f = document.createElement('iframe'); f.src = url; document.body.append(f) }", target)
    assert "frame" in told.value.text.lower() and "Content Security Policy" in told.value.text


def test_a_safe_stop_is_unmistakable_and_reset_with_name_and_reason(tmp_path: Path, watched: Watched) -> None:
    """Latched: red, with why; the reset needs a name and a reason, and both stand in the audit log."""
    product = Product(tmp_path, {"safety.backoff_ms": 0, "safety.probe_interval_s": 0, "safety.rounds_max": 1})
    graphs.with_nan(product.models / "log" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        page = watched.page
        page.goto(url_of(product, "safety"))
        is_live(page)
        for state in ("NORMAL", "NORMAL", "SAFE_STOP"):
            row = page.locator('[data-subject="model/log"]')
            expect(row.locator(f'[data-state="{state}"]')).to_be_visible(timeout=20_000)
            if state == "NORMAL":
                with pytest.raises(Exception, match="not finite"):
                    stub.infer(infer_request("log", {"x": -X}))
        expect(page.get_by_role("alert")).to_contain_text("Stopped safely until a person resets it: model/log")
        assert whole(page) == "SAFE_STOP"
        shoot(page, "stopped")
        assert serious(page) == []
        page.get_by_role("button", name="Reset…").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Your name").fill("A. Tester")
        dialog.get_by_role("button", name="Reset").click()
        expect(dialog).to_be_visible()
        dialog.get_by_label("Reason").fill("the cable was mended")
        shoot(page, "reset")
        dialog.get_by_role("button", name="Reset").click()
        expect(dialog).to_be_hidden()
        becomes(page, "NORMAL")
        found, _ = stub.unary(
            "/vigil.audit.v1.AuditService/Search", audit.SearchRequest(log=audit.LOG_SIDECAR, newest_first=True), audit.SearchResponse
        )
        resets = [r.state for r in found.records if r.state.event == "reset"]
        assert [(r.by, r.reason) for r in resets] == [("A. Tester", "the cable was mended")]
        assert page.locator(".inject").count() == 0, "faults are injected only where that is on"


def test_a_degraded_answer_is_marked(tmp_path: Path, watched: Watched) -> None:
    """The sidecar is away, the ladder gives the last good answer: the picture says so, with how old it is."""
    product = Product(tmp_path, {"supervisor.backoff_ms": 60_000})
    shutil.copytree(ROOT / "models" / "face-detection", product.models / "face-detection")
    config = product.models / "face-detection" / "vigil.toml"
    config.write_text(config.read_text() + "\n[ladder]\nlast_good_ms = 60000\n")
    with product:
        stub = Stub(product.channel())
        page = watched.page
        page.goto(url_of(product, "look?source=cam"))
        is_live(page)
        page.wait_for_timeout(700)
        stub.detect("cam", "face-detection", perception.Frame(encoded=FACE.read_bytes()))
        expect(page.locator('[data-quality="normal"]')).to_be_visible()
        os.kill(product.pids()["sidecar_pid"], signal.SIGKILL)
        stub.detect("cam", "face-detection", perception.Frame(encoded=FACE.read_bytes()))
        expect(page.locator('[data-quality="degraded"]')).to_contain_text("last good answer")
        expect(page.locator(".picture.degraded .mark")).to_contain_text(re.compile(r"DEGRADED: last good answer.*\d+ ms"))
        expect(page.locator(".box rect").first).to_be_visible()
        shoot(page, "degraded")
        assert serious(page) == []


def test_a_hundred_thousand_hits_are_paged(tmp_path: Path, watched: Watched) -> None:
    """A search with 100,000 hits shows a page of them, and exports as many as it says."""
    product = Product(tmp_path)
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        pass
    product.accounted = False
    writer = AuditWriter(product.data / "audit" / "sidecar", "sidecar", durability="process")
    payload = audit_pb2.CallPayload(method="/x/Y", model="m", message="made for a test").SerializeToString()
    for _ in range(200):
        writer.append([Entry(layout.KIND_REFUSAL, events.LIMIT_HIT, status_code=8, payload=payload, latency_ns=1000)] * 500)
    writer.close()
    product.start()
    try:
        page = watched.page
        page.goto(url_of(product, "audit"))
        is_live(page)
        form = page.get_by_role("search")
        form.get_by_label("Event").select_option("2043")
        form.get_by_role("button", name="Search").click()
        rows = page.locator('section[aria-label="Search the logs"] tbody tr')
        expect(rows).to_have_count(100)
        for number in range(2, 5):
            page.get_by_role("button", name="Next page").click()
            expect(page.get_by_text(f"page {number}, 100 records")).to_be_visible()
        page.get_by_role("button", name="Page before").click()
        expect(page.get_by_text("page 3, 100 records")).to_be_visible()
        with page.expect_download(timeout=120_000) as download:
            page.get_by_role("button", name="Export as JSON lines").click()
        target = tmp_path / "export.jsonl"
        download.value.save_as(target)
        assert sum(1 for _ in target.open()) == 100_000
        expect(page.locator("[data-exported='100000']")).to_be_visible()
        expect(rows).to_have_count(100)
    finally:
        product.stop()
