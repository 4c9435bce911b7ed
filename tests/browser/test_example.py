"""The example page: another origin's own page, with the client package."""

from __future__ import annotations

import base64
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import expect

from tests.browser.conftest import Watched
from tests.harness.product import ROOT, Product

WEB = ROOT / "gateway-go" / "web"


def test_the_example_page_follows_detects_and_verifies(tmp_path: Path, watched: Watched) -> None:
    """Built as its README says, served from an origin that is allowed: state, figures, boxes, and a verdict under the pinned key."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "browser", site)
    command = [
        "node_modules/.bin/esbuild",
        str(ROOT / "examples/browser/page.ts"),
        "--bundle",
        "--format=esm",
        "--alias:@vigil/client=@vigil/client",
    ]
    subprocess.run([*command, f"--outfile={site / 'page.js'}"], cwd=WEB, check=True, timeout=60)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    product = Product(tmp_path / "product", {"web.allowed_origins": here, "audit.checkpoint_interval_s": "0.2"})
    shutil.copytree(ROOT / "models" / "face-detection", product.models / "face-detection")
    with product:
        key = (product.data / "keys" / "audit-sidecar.pub").read_text().strip()
        page = watched.page
        page.goto(f"{here}/index.html?gateway=http://127.0.0.1:{product.ports['http']}&key={quote(key, safe='')}")
        expect(page.locator("#state")).to_have_text("NORMAL")
        face = base64.b64encode((ROOT / "build" / "pictures" / "astronaut.png").read_bytes()).decode()
        page.evaluate("async data => look(await (await fetch('data:image/png;base64,' + data)).blob(), 'face-detection')", face)
        expect(page.locator("#boxes")).to_have_text("1 boxes by face-detection version 1")
        expect(page.locator("#verdict")).to_have_text("verified")
        expect(page.locator("#figures")).to_contain_text("answers in")
        watched.quiet()
    server.shutdown()
