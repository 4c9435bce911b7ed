"""What tests do on the page as a person would, and what they read from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from tests.browser.conftest import HERE, SCREENS
from tests.harness.product import Product

VIEWS = ("live", "look", "models", "safety", "audit")


def is_live(page: Page, timeout_s: float = 20) -> None:
    """The stream is up."""
    expect(page.locator("[data-connection=live]")).to_be_visible(timeout=timeout_s * 1000)


def whole(page: Page) -> str:
    """State of the whole as the page says it."""
    return str(page.locator(".whole .badge").get_attribute("data-state"))


def becomes(page: Page, state: str, timeout_s: float = 30) -> None:
    """The whole becomes so."""
    expect(page.locator(f'.whole .badge[data-state="{state}"]')).to_be_visible(timeout=timeout_s * 1000)


def shoot(page: Page, name: str) -> None:
    """A picture of the whole page, in light and dark, for whoever wants to see."""
    page.evaluate("scrollTo(0, 0)")
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        page.wait_for_timeout(250)
        page.screenshot(path=SCREENS / f"{name}-{theme}.png", full_page=True)
    page.evaluate("document.documentElement.dataset.theme = 'light'")


def serious(page: Page) -> list[str]:
    """What axe-core finds, that is serious or critical, in light and in dark."""
    source = (HERE / "node_modules" / "axe-core" / "axe.min.js").read_text()
    page.evaluate(source + "; undefined")
    found: list[str] = []
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        result: Any = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})")
        assert result["passes"], "axe looked at nothing"
        found += [
            f"{theme}: {v['id']}: {v['nodes'][0]['target']} {v['nodes'][0].get('failureSummary', '')}"
            for v in result["violations"]
            if v["impact"] in ("serious", "critical")
        ]
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    return found


def events_shown(page: Page) -> list[str]:
    """Rows of the table of events on Live, the latest first."""
    return page.locator('section[aria-label="What happened last"] tbody tr').all_inner_texts()


def pin(page: Page, product: Product, which: Callable[[str], str] = lambda text: text) -> None:
    """Paste the verifier keys of both logs, as they were got by another way than the page."""
    keys = "\n".join(which((product.data / "keys" / f"audit-{log}.pub").read_text().strip()) for log in ("gateway", "sidecar"))
    box = page.get_by_label("Verifier keys")
    if not box.is_visible():
        page.locator(".verify summary").first.click()
    box.fill(keys)


def verified(page: Page) -> str:
    """Press Verify; the verdict of this check, or "" when there was none."""
    box = page.locator(".verify")
    before = int(str(box.get_attribute("data-checks")))
    box.get_by_role("button", name="Verify in this browser").click()
    expect(box).to_have_attribute("data-checks", str(before + 1))
    verdict = page.locator("[data-verdict]")
    return str(verdict.get_attribute("data-verdict")) if verdict.count() else ""


def upload(page: Page, picture: Path | dict[str, Any]) -> None:
    """Choose a picture on Look."""
    page.get_by_label("Picture to look at").set_input_files(picture)  # type: ignore[arg-type]
