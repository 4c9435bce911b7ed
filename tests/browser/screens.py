"""Pictures of the page for the documents: ``python -m tests.browser.screens`` writes docs/screens."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright
from vigil.perception.v1 import perception_pb2 as perception

from tests.browser.conftest import unpacked, url_of
from tests.browser.views import is_live
from tests.harness.calls import Stub
from tests.harness.graphs import rescaled
from tests.harness.product import ROOT, Product

SCREENS = ROOT / "docs" / "screens"


def sign(number: int) -> bytes:
    """A picture of our own, with words to find on it."""
    picture = Image.new("RGB", (640, 480), (38, 50, 62))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((60, 90, 580, 390), fill=(240, 240, 232))
    pen.text((100, 130), "LINE 7", fill=(20, 30, 40), font=ImageFont.load_default(size=90))
    pen.text((100, 270), f"PART {number:04d}", fill=(150, 30, 30), font=ImageFont.load_default(size=64))
    packed = io.BytesIO()
    picture.save(packed, "PNG")
    return packed.getvalue()


def main() -> None:
    """Starts the product, feeds it, and takes the pictures."""
    where, end = unpacked(), threading.Event()
    shutil.rmtree(SCREENS, ignore_errors=True)
    SCREENS.mkdir(parents=True)
    product = Product(Path(tempfile.mkdtemp()), {"safety.injection": "true", "audit.checkpoint_interval_s": "1"})
    product.accounted = False
    shutil.copytree(ROOT / "models" / "text-detection", product.models / "text-detection")
    with product, sync_playwright() as driver:

        def feed() -> None:
            stub, number = Stub(product.channel()), 0
            while not end.wait(0.15):
                number += 1
                stub.detect("line-7", "text-detection", perception.Frame(encoded=sign(number)))

        feeding = threading.Thread(target=feed)
        feeding.start()
        browser = driver.chromium.launch(executable_path=where["executable"], env=dict(os.environ) | where["env"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url_of(product))
        is_live(page)
        time.sleep(20)
        one = product.models / "text-detection" / "1" / "model.onnx"
        rescaled(one, 0.99, product.models / "text-detection" / "2" / "model.onnx")
        time.sleep(20)
        for view in ("live", "look?source=line-7", "models", "safety", "audit"):
            page.goto(url_of(product, view))
            page.wait_for_timeout(2500)
            page.screenshot(path=SCREENS / f"{view.partition('?')[0]}.png")
        browser.close()
        end.set()
        feeding.join()


if __name__ == "__main__":
    main()
