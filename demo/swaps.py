"""Changing models by changing files, in every way that must work, and in ways that must be refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.harness.calls import Stub
from tests.harness.product import Product, wait_for

__all__ = ["Swapper"]


class Swapper:
    """Swaps between two files of one contract and waits until the product serves the new one."""

    def __init__(self, product: Product, stock: dict[str, Path]) -> None:
        self._product, self._stock = product, stock
        self._stub = Stub(product.channel())
        self._number = {"tiny": 1, "text-detection": 1}

    def _serving(self, model: str) -> str:
        return str(self._stub.models()[model].serving_digest)

    def _folder(self, model: str, number: int) -> Path:
        return self._product.models / model / str(number)

    def _copied(self, model: str, source: Path) -> None:
        """A new version folder, its file copied in pieces."""
        self._number[model] += 1
        folder = self._folder(model, self._number[model])
        folder.mkdir()
        data = source.read_bytes()
        with (folder / "model.onnx").open("wb") as file:
            for at in range(0, len(data), max(1, len(data) // 4)):
                file.write(data[at : at + max(1, len(data) // 4)])
                file.flush()
                time.sleep(0.02)

    def _moved(self, model: str, source: Path) -> None:
        """A version folder made elsewhere and moved in."""
        self._number[model] += 1
        made = self._product.folder / "staging"
        made.mkdir()
        shutil.copy(source, made / "model.onnx")
        made.rename(self._folder(model, self._number[model]))

    def _replaced(self, model: str, source: Path) -> None:
        """model.onnx of the serving version replaced by rename."""
        file = self._folder(model, self._number[model]) / "model.onnx"
        shutil.copy(source, file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)

    def _written_over(self, model: str, source: Path) -> None:
        """model.onnx of the serving version written over in place."""
        (self._folder(model, self._number[model]) / "model.onnx").write_bytes(source.read_bytes())

    def _linked(self, model: str, source: Path) -> None:
        """latest flipped to the version that holds this file (rename over the link)."""
        wanted = hashlib.sha256(source.read_bytes()).hexdigest()
        for number in range(self._number[model], 0, -1):
            file = self._folder(model, number) / "model.onnx"
            if file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == wanted:
                link = self._product.models / model / ".new-latest"
                os.symlink(str(number), link)
                link.rename(self._product.models / model / "latest")
                return
        raise AssertionError("no version holds this file")

    def _unlinked(self, model: str) -> None:
        (self._product.models / model / "latest").unlink(missing_ok=True)

    def run(self) -> list[float]:
        """Twenty swaps; returns the seconds from the file's change until the new version served."""
        ways: list[Callable[[str, Path], None]] = [self._copied, self._moved, self._replaced, self._written_over, self._linked]
        names = {"tiny": ("tiny-a", "tiny-b"), "text-detection": ("text-a", "text-b")}
        times = []
        for i in range(20):
            model = "tiny" if i % 2 == 0 else "text-detection"
            a, b = (self._stock[n] for n in names[model])
            serving = self._serving(model)
            source = b if hashlib.sha256(a.read_bytes()).hexdigest() == serving else a
            way = ways[(i // 2) % len(ways)]
            wanted = hashlib.sha256(source.read_bytes()).hexdigest()
            start = time.monotonic()
            way(model, source)
            wait_for(lambda m=model, w=wanted: self._serving(m) == w, 30, f"{model} by {way.__name__}")
            times.append(time.monotonic() - start)
            if way == self._linked:
                self._unlinked_to_highest(model)
        return times

    def _unlinked_to_highest(self, model: str) -> None:
        """Take the link away again; the highest version serves."""
        highest = hashlib.sha256((self._folder(model, self._number[model]) / "model.onnx").read_bytes()).hexdigest()
        self._unlinked(model)
        wait_for(lambda: self._serving(model) == highest, 30, "the highest version serves")

    def throw_in_bad_versions(self) -> dict[str, str]:
        """Bad versions of the small model, each with the reason it was refused for; the half-copied one is finished later."""
        good = self._stock["tiny-b"].read_bytes()
        serving = self._serving("tiny")
        bad = {
            "truncated": good[: len(good) * 2 // 3],
            "garbage": os.urandom(4096),
            "of another contract": self._stock["tiny-other"].read_bytes(),
        }
        reasons = {}
        for what, data in bad.items():
            self._number["tiny"] += 1
            number = self._number["tiny"]
            self._folder("tiny", number).mkdir()
            (self._folder("tiny", number) / "model.onnx").write_bytes(data)
            reasons[what] = wait_for(lambda n=number: self._reason(n), 20, f"{what} is refused")
        reasons["half-copied (not loaded before it was whole)"] = self._half_copied(serving)
        return reasons

    def _reason(self, number: int) -> str:
        for v in self._stub.models()["tiny"].versions:
            if v.version == number and v.state == 4:
                return str(v.reason)
        return ""

    def _half_copied(self, serving: str) -> str:
        """Keep the file open, half written, for a second; then finish it and see it served."""
        source = self._stock["tiny-a"]
        if hashlib.sha256(source.read_bytes()).hexdigest() == serving:
            source = self._stock["tiny-b"]
        data = source.read_bytes()
        self._number["tiny"] += 1
        folder = self._folder("tiny", self._number["tiny"])
        folder.mkdir()
        with (folder / "model.onnx").open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            time.sleep(1.0)
            untouched = self._serving("tiny") == serving and not self._reason(self._number["tiny"])
            file.write(data[len(data) // 2 :])
        wanted = hashlib.sha256(data).hexdigest()
        wait_for(lambda: self._serving("tiny") == wanted, 20, "the finished file serves")
        return "left alone while open, served once whole" if untouched else ""
