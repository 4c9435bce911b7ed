"""Which code the tests run: lines and branches of the Python packages, statements of the Go packages.

``make coverage`` leaves ``build/coverage/coverage.json``. The gateway is also measured as a process,
under ``tests/e2e``. The sidecar is not: measuring slows it down so much that its watchers would see faults.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

__all__ = ["go", "main", "python"]

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "coverage"
PACKAGES = ("sidecar/vigil_sidecar", "safety/vigil_safety")
_MEASURED = "-coverpkg=./internal/...,./audit/...,./cmd/..."
_BLOCK = re.compile(r"^vigil/gateway/(\S+)/[^/]+\.go:\S+ (\d+) (\d+)$")


def python() -> dict[str, float]:
    """Percent of lines and branches, by package, that unit and conformance tests run."""
    data, report = OUT / "python.data", OUT / "python.json"
    tool = [sys.executable, "-m", "coverage"]
    run = [*tool, "run", "--branch", f"--data-file={data}", f"--source={','.join(PACKAGES)}"]
    subprocess.run([*run, "-m", "pytest", "tests/unit", "tests/conformance"], cwd=ROOT, check=True)
    subprocess.run([*tool, "json", "-q", f"--data-file={data}", "-o", str(report)], cwd=ROOT, check=True)
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, file in json.loads(report.read_text())["files"].items():
        s, package = file["summary"], str(Path(name).parent)
        found[package][0] += s["covered_lines"] + s["covered_branches"]
        found[package][1] += s["num_statements"] + s["num_branches"]
    return {name: round(100 * done / most, 1) for name, (done, most) in sorted(found.items()) if most}


def _product(source: Path, profile: Path) -> None:
    """Run the end-to-end tests with programs that count, and put back those that do not."""
    counts = OUT / "e2e"
    shutil.rmtree(counts, ignore_errors=True)
    counts.mkdir(parents=True)
    build = ["go", "build", "-trimpath", "-o", "../bin/"]
    environment = os.environ | {"CGO_ENABLED": "0"}
    try:
        subprocess.run([*build, "-cover", _MEASURED, "./cmd/..."], cwd=source, env=environment, check=True)
        tests = [sys.executable, "-m", "pytest", "-m", "not long", "tests/e2e"]
        subprocess.run(tests, cwd=ROOT, env=os.environ | {"GOCOVERDIR": str(counts)}, check=True)
    finally:
        subprocess.run([*build, "./cmd/..."], cwd=source, env=environment, check=True)
    subprocess.run(["go", "tool", "covdata", "textfmt", f"-i={counts}", f"-o={profile}"], cwd=source, check=True)


def go() -> dict[str, float]:
    """Percent of statements, by package, that Go's tests or the product's run; generated code apart."""
    profiles, source = [OUT / "go.out", OUT / "e2e.out"], ROOT / "gateway-go"
    run = ["go", "test", "-count=1", _MEASURED, f"-coverprofile={profiles[0]}", "./..."]
    subprocess.run(run, cwd=source, check=True, stdout=subprocess.DEVNULL)
    _product(source, profiles[1])
    blocks: dict[str, tuple[str, int, bool]] = {}
    for line in (line for profile in profiles for line in profile.read_text().splitlines()):
        if found := _BLOCK.match(line):
            place, count = line.split(" ")[0], int(found[2])
            blocks[place] = (found[1], count, int(found[3]) > 0 or blocks.get(place, ("", 0, False))[2])
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for package, count, run_ in blocks.values():
        sums[package][0] += count * run_
        sums[package][1] += count
    return {f"gateway-go/{name}": round(100 * done / most, 1) for name, (done, most) in sorted(sums.items())}


def main() -> int:
    """Measure, print, and leave the figures where ``make evidence`` finds them."""
    OUT.mkdir(parents=True, exist_ok=True)
    figures = {"python": python(), "go": go()}
    (OUT / "coverage.json").write_text(json.dumps(figures, indent=1) + "\n")
    for packages in figures.values():
        for name, percent in packages.items():
            print(f"{percent:6.1f} %  {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
