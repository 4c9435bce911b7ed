"""Shows that each safety requirement's test can fail: its mutant is put into a copy of the project, and the test is run there.

``python -m tests.harness.mutants [SR-NNN ...]``; 0 when every mutant was noticed. Noticed means
that the mutated project was built and that a test of the requirement ran and failed. A mutant that
cannot be built, a test that is not there or skipped, and one that fails without a mutant are errors.
A test that does not end in time counts as noticing: without its mutant it ends.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.harness.traceability import ROOT, load

__all__ = ["findings", "verdict_of"]

_COPY = ROOT / "build" / "mutants"
_TEST_S, _SETUP_S = 300, 1200
_TIMEOUT = 124


class _NotBuilt(Exception):
    """A mutant that shows nothing."""


def _run(command: Sequence[str], folder: Path, timeout_s: float) -> tuple[int, str]:
    """Exit code and output of a command; 124 when it did not end in time. What it started ends with it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    environment["PATH"] = f"{_COPY}/.venv/bin:{environment['PATH']}"
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=timeout_s)
        return process.returncode, out
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        return _TIMEOUT, out


def verdict_of(go: bool, code: int, out: str) -> str:
    """What a run of one test showed: ``passed``, ``failed``, or why it showed nothing."""
    if code == _TIMEOUT:
        return "failed"
    if go:
        ran = re.search(r"^\s*--- (PASS|FAIL|SKIP): ", out, re.MULTILINE)
        stopped = re.search(r"^=== RUN .*^(panic|fatal error): ", out, re.MULTILINE | re.DOTALL)
        if code and (stopped or (ran and ran[1] == "FAIL")):
            return "failed"
        return "passed" if ran and ran[1] == "PASS" and code == 0 else f"exit code {code}, which shows nothing: {out[-300:]}"
    counts = {what for _, what in re.findall(r"(\d+) (passed|failed|skipped)", (out.strip().splitlines() or [""])[-1])}
    if code == 1 and "failed" in counts:
        return "failed"
    return "passed" if code == 0 and counts == {"passed"} else f"exit code {code}, which shows nothing: {out[-300:]}"


def _test(name: str) -> str:
    """Run one test in the copy, as requirements name it."""
    if name.startswith("gateway-go/"):
        package, test = name.removeprefix("gateway-go/").split(" ")
        code, out = _run(
            ["go", "test", "-v", "-count=1", "-timeout", "60s", "-run", f"^{test}$", f"./{package}"], _COPY / "gateway-go", _TEST_S
        )
        return verdict_of(True, code, out)
    python = ["python", "-m", "pytest", "-x", "--no-header", "-p", "no:cacheprovider", name]
    return verdict_of(False, *_run(python, _COPY, _TEST_S))


def _build(what: str) -> None:
    code, out = _run(["make", "-s", "setup"], _COPY, _SETUP_S)
    if code:
        raise _NotBuilt(f"{what} cannot be built: {out[-300:]}")


def _import(path: Path) -> None:
    """A mutated module has to be one that loads: what merely stops the product from starting shows nothing."""
    module = ".".join(path.relative_to(_COPY / path.relative_to(_COPY).parts[0]).with_suffix("").parts)
    code, out = _run(["python", "-c", f"import {module}"], _COPY, _TEST_S)
    if code:
        raise _NotBuilt(f"{module} cannot be imported: {out[-300:]}")


def _prepare() -> None:
    shutil.rmtree(_COPY, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(_COPY)], check=True)
    for listed in (["git", "diff", "--name-only", "--diff-filter=d", "HEAD"], ["git", "ls-files", "--others", "--exclude-standard"]):
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split():
            (_COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, _COPY / name)
    _build("the copy in build/mutants")


def _noticed_by(r: Mapping[str, Any]) -> str:
    """Which of the requirement's tests notices its mutant; empty when none does. The copy is whole again afterwards."""
    path, m = _COPY / r["mutant"]["file"], r["mutant"]
    before = path.read_text()
    gateway = m["file"].startswith("gateway-go/")
    path.write_text(before.replace(m["find"], m["replace"]))
    try:
        if gateway:
            _build(f"the mutant of {r['id']}")
        elif path.suffix == ".py":
            _import(path)
        for test in r["tests"]:
            verdict = _test(test)
            if verdict == "failed":
                return str(test)
            if verdict != "passed":
                raise _NotBuilt(f"{test} under the mutant of {r['id']} {verdict}")
        return ""
    finally:
        path.write_text(before)
        if gateway:
            _build("the copy without the mutant")


def findings(only: Sequence[str] = ()) -> list[str]:
    """Requirements whose mutant no test of theirs noticed, and tests that show nothing."""
    _prepare()
    out = []
    chosen = [r for r in load()["requirements"] if not only or r["id"] in only]
    for test in sorted({t for r in chosen for t in r["tests"]}):
        if (verdict := _test(test)) != "passed":
            out.append(f"{test} {verdict} without a mutant")
    for r in chosen:
        try:
            text = f"noticed by {name}" if (name := _noticed_by(r)) else "SURVIVES"
        except _NotBuilt as error:
            text = f"SHOWS NOTHING: {error}"
        print(f"{r['id']} {text}", flush=True)
        if not text.startswith("noticed"):
            out.append(f"{r['id']} {text}")
    return out


if __name__ == "__main__":
    found = findings(sys.argv[1:])
    print("\n".join(found) or "every mutant was noticed")
    sys.exit(bool(found))
