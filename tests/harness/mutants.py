"""Shows that each safety requirement's test can fail: its mutant is put into a copy of the project, and the test is run there.

``python -m tests.harness.mutants [SR-NNN ...]``; 0 when every mutant was noticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.harness.traceability import ROOT, load

__all__ = ["survivors"]

_COPY = ROOT / "build" / "mutants"
_TEST_S, _SETUP_S = 300, 1200


def _run(command: Sequence[str], folder: Path, timeout_s: float) -> int:
    """Exit code of a command; one that does not end in time counts as failed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    environment["PATH"] = f"{_COPY}/.venv/bin:{environment['PATH']}"
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=timeout_s, check=False, env=environment).returncode
    except subprocess.TimeoutExpired:
        return 124


def _test(name: str, built: bool) -> int:
    """Run one test in the copy, as requirements name it."""
    if name.startswith("gateway-go/"):
        package, test = name.removeprefix("gateway-go/").split(" ")
        return _run(["go", "test", "-count=1", "-timeout", "60s", "-run", f"^{test}$", f"./{package}"], _COPY / "gateway-go", _TEST_S)
    if built and _run(["make", "-s", "setup"], _COPY, _SETUP_S):
        return -1
    return _run(["python", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", name], _COPY, _TEST_S)


def _prepare() -> None:
    shutil.rmtree(_COPY, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(_COPY)], check=True)
    for name in subprocess.run(["git", "diff", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split():
        shutil.copy(ROOT / name, _COPY / name)
    if _run(["make", "-s", "setup"], _COPY, _SETUP_S):
        raise SystemExit("the copy in build/mutants cannot be set up")


def _notices(r: Mapping[str, Any]) -> str:
    """Which of the requirement's tests notices its mutant; empty when none does."""
    path, m = _COPY / r["mutant"]["file"], r["mutant"]
    before = path.read_text()
    gateway = m["file"].startswith("gateway-go/")
    for test in r["tests"]:
        path.write_text(before.replace(m["find"], m["replace"]))
        try:
            noticed = _test(test, gateway) not in (0, -1)
        finally:
            path.write_text(before)
        if noticed:
            return str(test)
    return ""


def survivors(only: Sequence[str] = ()) -> list[str]:
    """Requirements whose mutant no test of theirs noticed, or whose tests fail without it."""
    _prepare()
    out = []
    for r in load()["requirements"]:
        if only and r["id"] not in only:
            continue
        noticed = _notices(r)
        print(f"{r['id']} {'noticed by ' + noticed if noticed else 'SURVIVES'}", flush=True)
        if not noticed:
            out.append(r["id"])
    _run(["make", "-s", "setup"], _COPY, _SETUP_S)
    broken = {t for r in load()["requirements"] if not only or r["id"] in only for t in r["tests"][:1] if _test(t, False) != 0}
    return out + [f"{t} fails without a mutant" for t in sorted(broken)]


if __name__ == "__main__":
    found = survivors(sys.argv[1:])
    print("\n".join(found) or "every mutant was noticed")
    sys.exit(bool(found))
