"""``make demo``: Vigil's main job on real input, every line checked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

from demo.swaps import Swapper
from tests.harness import graphs
from tests.harness.account import account
from tests.harness.load import Load
from tests.harness.product import ROOT, Product, wait_for
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.notes import Verifier
from vigil_sidecar.audit.verify import verify_folder, verify_folders
from vigil_sidecar.pipelines.text_detection import TextDetection

OUT = ROOT / "build" / "demo"
PICTURES = ROOT / "build" / "pictures"
IN_FLIGHT = 64


class Lines:
    """The table at the end: what was checked, whether it held, the figures."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, bool | None, str]] = []
        self._start = time.monotonic()

    def step(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {text}", flush=True)

    def figure(self, what: str, figures: str) -> None:
        """A figure that is shown, not judged."""
        self.rows.append((what, None, figures))
        print(f"          --   {what}: {figures}", flush=True)

    def check(self, what: str, held: bool, figures: str = "") -> None:
        self.rows.append((what, held, figures))
        print(f"          {'ok  ' if held else 'FAIL'} {what}{': ' + figures if figures else ''}", flush=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def in_process(path: Path, feeds: dict[str, Any]) -> Any:
    """What ONNX Runtime itself computes: the expected numbers."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options).run(None, feeds)[0]


def prepare(product: Product) -> dict[str, Path]:
    """Fill the model repository and make the versions that will come."""
    shutil.rmtree(OUT, ignore_errors=True)
    for name in ("text-detection", "face-detection"):
        shutil.copytree(ROOT / "models" / name, product.models / name)
    stock = OUT / "stock"
    graphs.scale(2.0, stock / "tiny-a.onnx")
    graphs.scale(3.0, stock / "tiny-b.onnx")
    graphs.other_contract(stock / "tiny-other.onnx")
    packaged = ROOT / "models" / "text-detection" / "1" / "model.onnx"
    shutil.copy(packaged, stock / "text-a.onnx")
    graphs.rescaled(packaged, 0.5, stock / "text-b.onnx")
    (product.models / "tiny" / "1").mkdir(parents=True)
    shutil.copy(stock / "tiny-a.onnx", product.models / "tiny" / "1" / "model.onnx")
    return {p.stem: p for p in stock.glob("*.onnx")}


def detect(product: Product, lines: Lines) -> int:
    lines.step("detect: real pictures through PerceptionService.Detect")
    calls = 0
    for model, names, least in (
        ("text-detection", ["page.png", "text.png", "motorcycle_left.png"], {"page.png": 3}),
        ("face-detection", ["astronaut.png", "grace_hopper.jpg"], {"astronaut.png": 1, "grace_hopper.jpg": 1}),
    ):
        done = product.vigil("detect", *[str(PICTURES / n) for n in names], "--model", model, "--out", str(OUT), "--json")
        for result in json.loads(done.stdout):
            calls += 1
            name = Path(result["image"]).name
            count = len(result["boxes"])
            inside = all(
                0 <= b["x_min"] <= b["x_max"] <= result["width"] and 0 <= b["y_min"] <= b["y_max"] <= result["height"]
                for b in result["boxes"]
            )
            drawn = Path(result["picture"]).is_file()
            lines.check(
                f"{model} on {name}", count >= least.get(name, 0) and inside and drawn, f"{count} boxes, {Path(result['picture']).name}"
            )
    return calls


def swap(product: Product, lines: Lines, stock: dict[str, Path]) -> int:
    lines.step(f"swap: {IN_FLIGHT} calls in flight on two models, 20 swaps by changing files, and bad versions in between")
    tiny_in = {"x": np.array([[1, -2, 3, 0.5]], np.float32)}
    page = np.asarray(Image.open(PICTURES / "page.png").convert("RGB"))
    text_in = TextDetection({"side_min": 1, "side_max": 192}).prepare(page)
    tiny = {digest(stock[k]): in_process(stock[k], tiny_in) for k in ("tiny-a", "tiny-b")}
    text = {digest(stock[k]): in_process(stock[k], text_in) for k in ("text-a", "text-b")}
    swapper = Swapper(product, stock)
    with (
        Load(product, "tiny", IN_FLIGHT * 3 // 4, tiny_in, tiny) as tiny_load,
        Load(product, "text-detection", IN_FLIGHT // 4, text_in, text) as text_load,
    ):
        time.sleep(1)
        times = swapper.run()
        refusals = swapper.throw_in_bad_versions()
        time.sleep(0.5)
    a, b = tiny_load.stop() if not tiny_load.result else tiny_load.result, text_load.result or text_load.stop()
    lines.check("swaps seen", len(times) == 20, f"{len(times)}; from the file's change to the switch {min(times):.2f}..{max(times):.2f} s")
    failed = a["error_count"] + b["error_count"]
    lines.check(
        "no failed call",
        failed == 0,
        f"{a['total'] + b['total']} answers, {failed} errors {[e['text'] for e in (a['errors'] + b['errors'])[:2]] or ''}",
    )
    wrong = a["wrong_count"] + b["wrong_count"]
    used = len(a["answers"]), len(b["answers"])
    lines.check(
        "every answer's numbers are those of the digest it names",
        wrong == 0 and min(used) >= 2,
        f"{used[0]} and {used[1]} version:digest pairs answered {(a['wrong'] + b['wrong'])[:2] or ''}",
    )
    for what, reason in refusals.items():
        lines.check(f"bad version refused: {what}", bool(reason), reason[:90])
    lines.figure("latency while swapping", f"tiny p50 {a['p50_ms']:.1f} ms, p99 {a['p99_ms']:.1f} ms, longest {a['max_ms']:.0f} ms")
    return a["total"] + b["total"]


def kill(product: Product, lines: Lines, stock: dict[str, Path]) -> int:
    lines.step("kill: SIGKILL to the sidecar under load")
    serving = product.models / "tiny" / str(product.listed("tiny")["serving_version"]) / "model.onnx"
    feeds = {"x": np.array([[1, 2, 3, 4]], np.float32)}
    expected = {digest(serving): in_process(serving, feeds)}
    before = product.pids()
    with Load(product, "tiny", IN_FLIGHT, feeds, expected) as load:
        time.sleep(0.5)
        killed_at = time.time()
        os.kill(before["sidecar_pid"], 9)
        wait_for(lambda: product.pids()["sidecar_pid"] != before["sidecar_pid"], 60, "the sidecar is restarted")
        ready_at = time.time()
        time.sleep(1)
        result = load.stop()
    codes = result["error_codes"]
    lines.check(
        "callers got a clear status", set(codes) == {"UNAVAILABLE"}, f"{codes}: {result['errors'][0]['text'] if result['errors'] else ''}"
    )
    first = min((e["at"] for e in result["errors"]), default=killed_at) - killed_at
    lines.check(
        "at once, nobody hung",
        bool(codes) and result["error_slowest_s"] < 2,
        f"first after {first * 1000:.0f} ms, slowest error took {result['error_slowest_s'] * 1000:.0f} ms",
    )
    lines.check(
        "service returned by itself",
        result["last_at"] > ready_at,
        f"ready again after {ready_at - killed_at:.1f} s; longest gap between answers {result['longest_gap_s']:.1f} s",
    )
    lines.check("answers right before and after", result["wrong_count"] == 0, f"{result['total']} answers")
    timeline(product, killed_at)
    return result["total"]


def timeline(product: Product, since: float) -> None:
    print("          timeline (seconds after the kill):")
    rows = []
    for line in product.log.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("msg") in ("safety state changed", "link up", "link lost", "sidecar listens", "sidecar ready"):
            text = entry["time"].rstrip("Z")[:26]
            at = time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone + float("0" + text[19:] if "." in text else 0)
            if at >= since - 0.05:
                what = (
                    f"{entry['subject']}: {entry['before']} -> {entry['after']} ({entry['reason']})" if "subject" in entry else entry["msg"]
                )
                rows.append((at - since, entry["component"], what))
    for at, component, what in sorted(rows):
        print(f"            {at:7.3f}  {component:8} {what}")


def audit(product: Product, lines: Lines, answers: int) -> None:
    lines.step("audit: verify, count, and flip one byte in a copy")
    folders = [product.data / "audit" / n for n in ("gateway", "sidecar")]
    keys = [Verifier(x) for f in sorted((product.data / "keys").glob("*.pub")) for x in f.read_text().split()]
    python = verify_folders(folders, keys)
    go = product.auditverify()
    lines.check(
        "both logs verify with their keys, says vigil audit verify",
        all(r.intact and r.sealed for r in python),
        "; ".join(f"{r.records} records, {r.sealed} sealed" for r in python),
    )
    lines.check(
        "and so does auditverify (Go)",
        [r["head"] for r in go] == [r.head for r in python],
        f"heads {go[0]['head'][:12]}, {go[1]['head'][:12]}",
    )
    recorded = python[1].kinds.get("answer", 0)
    # Answers that a killed process had recorded but could not deliver are the only difference allowed.
    lines.check(
        "as many records as answers", answers <= recorded <= answers + IN_FLIGHT, f"{answers} answers received, {recorded} recorded"
    )
    found = account(product.data / "audit", product.replies.positions)
    lines.check(
        "each reply of the loads has exactly one final record",
        found.wrong == [] and product.replies.missing == [],
        f"{found.recorded} replies, {found.superseded} records superseded",
    )
    copy = OUT / "forged" / "sidecar"
    shutil.copytree(folders[1], copy)
    victim = sorted(copy.glob("segment-*.vlog"))[0]
    data = bytearray(victim.read_bytes())
    data[layout.SEGMENT_HEADER_BYTES + 20 * 400 + 17] ^= 1
    victim.write_bytes(data)
    forged = verify_folder(copy, keys)
    d = forged.damage
    lines.check(
        "a flipped byte is found and named",
        not forged.intact and d is not None,
        f"record {d.sequence} ({d.file}, byte {d.offset}): {d.reason}" if d else "",
    )


def main() -> int:
    lines = Lines()
    product = Product(OUT)
    stock = prepare(product)
    try:
        lines.step("start: gateway and sidecar with three models")
        product.start()
        ports = product.ports
        lines.figure("ready", f"grpc {ports['grpc']}, http {ports['http']}, metrics {ports['metrics']}")
        answers = detect(product, lines)
        answers += swap(product, lines, stock)
        answers += kill(product, lines, stock)
        lines.step("stop: SIGTERM")
        lines.check("drained and ended with 0", product.stop() == 0)
        audit(product, lines, answers)
    except AssertionError as error:
        lines.check("the demonstration ran to its end", False, str(error))
    finally:
        if product.process is not None and product.process.poll() is None:
            product.stop()
    held = all(row[1] is not False for row in lines.rows)
    width = max(len(r[0]) for r in lines.rows)
    print("\n" + "=" * 78)
    for what, ok, figures in lines.rows:
        mark = "--  " if ok is None else "ok  " if ok else "FAIL"
        print(f"{mark}  {what:{width}}  {figures}")
    print("=" * 78)
    print(
        f"pictures    {OUT.relative_to(ROOT)}/*.png\naudit logs  {(product.data / 'audit').relative_to(ROOT)}/\nprocess log {product.log.relative_to(ROOT)}"
    )
    print("next        make run, then: .venv/bin/vigil detect PICTURE --model face-detection --out .   |   .venv/bin/vigil models list")
    print("every line held" if held else "NOT every line held")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
