"""What may happen between a page and its gateway: silence, cuts, restarts, floods, other contracts, clocks, proxies and origins."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect
from vigil.live.v1 import live_pb2 as live

from tests.browser.conftest import Watched, url_of
from tests.browser.doorway import Doorway
from tests.browser.views import becomes, events_shown, is_live, serious, shoot, upload, whole
from tests.browser.wire import ALONE, framed
from tests.harness import graphs
from tests.harness.calls import Stub
from tests.harness.product import ROOT, Product, wait_for

FACE = ROOT / "build" / "pictures" / "astronaut.png"
STALE_AFTER = """() => {
  window.staleAfter = 0;
  const begin = performance.now();
  const look = () => {
    if (document.querySelector("[data-connection=stale]")) window.staleAfter = performance.now() - begin;
    else setTimeout(look, 20);
  };
  look();
}"""
FETCH = """async url => {
  try {
    const answer = await fetch(url, {method: "POST", headers: {"content-type": "application/json"}, body: "{}"});
    return answer.status;
  } catch (error) {
    return String(error);
  }
}"""


def test_a_dead_connection_is_shown_within_two_seconds(product: Product, watched: Watched) -> None:
    """A gateway that says nothing (SIGSTOP): no good news stays on the page; afterwards all goes on, and no event is lost or doubled."""
    page = watched.page
    page.goto(url_of(product))
    is_live(page)
    becomes(page, "NORMAL", 60)
    page.evaluate(STALE_AFTER)
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


def test_a_gateway_that_is_gone_is_shown_within_two_seconds(tmp_path: Path, watched: Watched) -> None:
    """Killed, and not there again: whoever is refused at once is no fresher than who hears nothing."""
    product = Product(tmp_path, {"supervisor.backoff_ms": 8_000})
    graphs.scale(2.0, product.models / "m" / "1" / "model.onnx")
    with product:
        door = Doorway(lambda: product.pids()["http"])
        page = watched.page
        page.goto(f"http://127.0.0.1:{door.port}/#/live")
        is_live(page)
        page.evaluate(STALE_AFTER)
        os.kill(product.pids()["gateway_pid"], signal.SIGKILL)
        expect(page.locator("[data-connection=stale]")).to_be_visible(timeout=8_000)
        assert 0 < page.evaluate("window.staleAfter") < 3300
        assert whole(page) == "UNKNOWN"
        is_live(page, 60)
        door.close()


def test_a_worker_that_ended_is_no_good_news(product: Product, watched: Watched) -> None:
    """The shared worker says nothing any more, not even that it is there: the page itself says so, and starts another."""
    page = watched.page
    page.add_init_script(
        "const Real = SharedWorker; window.workers = [];"
        "window.SharedWorker = function (...a) { const w = new Real(...a); window.workers.push(w); return w }"
    )
    page.goto(url_of(product))
    is_live(page)
    page.evaluate(STALE_AFTER)
    page.evaluate("window.workers[0].port.close()")
    expect(page.locator("[data-connection=stale]")).to_be_visible(timeout=8_000)
    assert 0 < page.evaluate("window.staleAfter") < 3300
    assert whole(page) == "UNKNOWN"
    is_live(page, 30)
    assert page.evaluate("window.workers.length") == 2


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
