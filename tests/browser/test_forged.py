"""Records and proofs that are not what they should be, as the page finds them out."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect
from vigil.audit.v1 import audit_pb2
from vigil.audit.v1 import service_pb2 as audit

from tests.browser.conftest import Watched, url_of
from tests.browser.views import is_live, pin, serious, shoot, upload, verified
from tests.browser.wire import altering
from tests.harness import graphs
from tests.harness.calls import Stub, infer_request, own_address
from tests.harness.product import ROOT, Product, wait_for
from tests.harness.swaps import X
from vigil_sidecar.audit import layout_gen as layout

FACE = ROOT / "build" / "pictures" / "astronaut.png"


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


def _renamed(reply: Any) -> None:
    """Another source in the payload, with a checksum that fits."""
    import google_crc32c

    raw = bytearray(reply.raw)
    payload = audit_pb2.CallPayload.FromString(bytes(raw[layout.HEADER_BYTES :]))
    payload.source_id = "?" * len(payload.source_id)
    raw[layout.HEADER_BYTES :] = payload.SerializeToString()
    fresh = google_crc32c.value(bytes(raw[: layout.CRC_OFFSET] + raw[layout.HEADER_BYTES :])).to_bytes(4, "little")
    raw[layout.CRC_OFFSET : layout.HEADER_BYTES] = fresh
    reply.raw = bytes(raw)


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

    page.goto(url_of(product, "audit"))
    page.route("**/vigil.audit.v1.AuditService/Get", altering(audit.GetResponse, _renamed))
    page.goto(url_of(product, f"audit?position={position}"))
    expect(page.locator('[aria-label="Fields of the payload"]', has_text="?")).to_be_visible()
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


def test_nothing_is_verified_before_it_is_shown(product: Product, watched: Watched) -> None:
    """A server that holds the record back, and gives the proof at once, gets no verdict for what it shows later."""
    page = watched.page
    record_of(page, product)
    position = page.url.split("position=")[1]
    held: list[Route] = []
    page.route("**/vigil.audit.v1.AuditService/Get", lambda route: held.append(route))
    page.goto(url_of(product, "audit"))
    page.goto(url_of(product, f"audit?position={position}"))
    button = page.get_by_role("button", name="Verify in this browser")
    expect(button).to_be_disabled()
    wait_for(lambda: held or page.wait_for_timeout(50), 20, "Get is asked")
    altering(audit.GetResponse, _renamed)(held[0])
    expect(page.locator('[aria-label="Fields of the payload"]', has_text="????")).to_be_visible()
    assert page.locator("[data-verdict]").count() == 0
    assert verified(page) == "forged"
    page.unroute("**/vigil.audit.v1.AuditService/Get")


def test_a_verdict_stays_with_its_record(product: Product, watched: Watched) -> None:
    """A proof that comes late, when another record is open, says nothing of that one."""
    page = watched.page
    record_of(page, product)
    held: list[Route] = []
    page.route("**/vigil.audit.v1.AuditService/Prove", lambda route: held.append(route))
    page.get_by_role("button", name="Verify in this browser").click()
    wait_for(lambda: held or page.wait_for_timeout(50), 20, "Prove is asked")
    page.goto(url_of(product, "audit?position=sidecar%2F1"))
    expect(page.locator('section[aria-label="Record sidecar/1"] tbody tr').first).to_be_visible()
    held[0].continue_()
    page.wait_for_timeout(1500)
    assert page.locator("[data-verdict]").count() == 0
    page.unroute("**/vigil.audit.v1.AuditService/Prove")
