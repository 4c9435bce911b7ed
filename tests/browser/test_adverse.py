"""Hostile text, stops, stand-ins and large logs, as the page shows them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from vigil.audit.v1 import audit_pb2
from vigil.audit.v1 import service_pb2 as audit
from vigil.contract_digest import CONTRACT_DIGEST
from vigil.live.v1 import live_pb2 as live
from vigil.perception.v1 import perception_pb2 as perception

from tests.browser.conftest import Watched, url_of
from tests.browser.views import becomes, is_live, serious, shoot, upload, whole
from tests.browser.wire import ALONE, framed
from tests.harness import graphs
from tests.harness.calls import Stub, infer_request
from tests.harness.product import ROOT, Product, wait_for
from tests.harness.swaps import X
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.writer import AuditWriter

FACE = ROOT / "build" / "pictures" / "astronaut.png"
HOSTILE = '"><img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'


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


def test_a_safe_stop_is_unmistakable_and_reset_with_name_and_reason(tmp_path: Path, watched: Watched) -> None:
    """Latched: red, with why; the reset needs a name and a reason, and both stand in the audit log."""
    product = Product(tmp_path, {"safety.backoff_ms": 0, "safety.probe_interval_s": 0, "safety.rounds_max": 1})
    graphs.with_nan(product.models / "log" / "1" / "model.onnx")
    with product:
        stub = Stub(product.channel())
        page = watched.page
        page.goto(url_of(product, "safety"))
        is_live(page)
        row = page.locator('[data-subject="model/log"]')
        for before, state in (("STARTING", "NORMAL"), ("RECOVERING", "NORMAL"), ("NORMAL", "SAFE_STOP")):
            # The change, not the state alone: what is still shown as Normal may have failed meanwhile.
            change = page.locator("tr", has_text="model/log", has=page.locator(f'[data-state="{before}"]'))
            expect(change.filter(has=page.locator(f'[data-state="{state}"]')).first).to_be_visible(timeout=20_000)
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
        expect(page.locator(".looked .mark").first).to_contain_text(re.compile(r"DEGRADED: last good answer.*\d+ ms"))
        expect(page.locator(".picture.degraded .box.stand-in rect").first).to_be_visible()
        shoot(page, "degraded")
        expect(page.locator(".mark.stop")).to_contain_text("NO FRAME")
        expect(page.locator("[data-old=true]")).to_contain_text("of an old answer")
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


def test_a_value_that_cannot_be_shown_is_no_good_news(product: Product, watched: Watched) -> None:
    """A time beyond all dates, in a stop: the page shows the stop, or says that it cannot show it; never the state before."""
    page = watched.page
    page.add_init_script(ALONE)
    hello = live.Hello(server_version="0.1.0", contract_digest=CONTRACT_DIGEST, time_us=time.time_ns() // 1000)
    hello.state.state = 5
    hello.state.subjects.add(subject="sidecar", state=5, reason="x", since_us=(1 << 63) - 1)
    event = live.Event(resume="x/1", state=hello.state)
    event.transition.subject, event.transition.time_us, event.transition.to = "sidecar", (1 << 63) - 1, 5
    body = framed(live.WatchResponse(hello=hello)) + framed(live.WatchResponse(event=event))
    page.route(
        "**/vigil.live.v1.LiveService/Watch",
        lambda route: route.fulfill(status=200, headers={"content-type": "application/grpc-web+proto"}, body=body),
    )
    page.goto(url_of(product))
    expect(page.locator('.machine .on[data-state="SAFE_STOP"]')).to_be_visible()
    expect(page.get_by_text("not a time").first).to_be_visible()
    for view in ("Safety", "Models", "Look", "Audit"):
        page.get_by_role("link", name=view).click()
        page.wait_for_timeout(200)
        assert whole(page) in ("SAFE_STOP", "UNKNOWN")


def test_who_leaves_the_camera_is_not_called_back(product: Product, watched: Watched) -> None:
    """Another view is chosen while the camera starts, and while a picture is looked at: the page stays there, and the camera is off."""
    page = watched.page
    page.add_init_script(
        "const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        "navigator.mediaDevices.getUserMedia = async (c) => { await new Promise(r => setTimeout(r, 1500));"
        "const s = await ask(c); window.tracks = s.getTracks(); return s }"
    )
    page.goto(url_of(product, "look"))
    is_live(page)
    page.get_by_role("button", name="Use this device's camera").click()
    page.get_by_role("link", name="Safety").click()
    ended = "window.tracks && window.tracks.every(t => t.readyState === 'ended')"
    wait_for(lambda: page.evaluate(ended) or page.wait_for_timeout(50), 20, "the camera is off")
    page.wait_for_timeout(1000)
    assert page.url.endswith("#/safety")
    held: list[Any] = []
    page.route("**/vigil.perception.v1.PerceptionService/Detect", lambda route: held.append(route))
    page.get_by_role("link", name="Look").click()
    upload(page, FACE)
    wait_for(lambda: held or page.wait_for_timeout(50), 20, "Detect is asked")
    page.get_by_role("link", name="Safety").click()
    held[0].continue_()
    page.wait_for_timeout(1500)
    assert page.url.endswith("#/safety")
    page.unroute("**/vigil.perception.v1.PerceptionService/Detect")
