"""Runs every check: linters, Go tests, Python tests; prints the skips and the count last."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.harness import mutants, seen, traceability

ROOT = Path(__file__).resolve().parents[1]
GATEWAY = ROOT / "gateway-go"
PYTHON_SOURCES = ["sidecar", "safety", "tests", "demo", "tools"]
REPORT = ROOT / "build" / "test-results"


class Outcome:
    """Counts over all suites."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self.results: dict[str, str] = {}
        """Of each test by its name: passed, failed or skipped."""


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def lint(outcome: Outcome) -> None:
    """Each linter is one test."""
    bin_folder = ROOT / ".venv" / "bin"
    steps = [
        ("ruff check", [bin_folder / "ruff", "check", "--quiet", *PYTHON_SOURCES], ROOT),
        ("ruff format", [bin_folder / "ruff", "format", "--check", "--quiet", *PYTHON_SOURCES], ROOT),
        ("mypy strict", [bin_folder / "mypy"], ROOT),
        ("import-linter", [bin_folder / "lint-imports"], ROOT),
        ("go vet", ["go", "vet", "./..."], GATEWAY),
        (
            "gofmt",
            ["bash", "-c", 'test -z "$("$(go env GOROOT)"/bin/gofmt -l cmd conformance internal audit leakcheck web/embed.go)"'],
            GATEWAY,
        ),
        ("staticcheck", ["bash", "-c", "go tool staticcheck $(go list ./... | grep -v /gen/)"], GATEWAY),
        ("goroutines and channels that leak", ["go", "run", "./leakcheck/cmd/leakcheck", "./..."], GATEWAY),
        ("contract: lint, format, breaking, generated code", ["bash", "tools/generate.sh", "--check"], ROOT),
        ("TypeScript", ["node", "node_modules/typescript/bin/tsc", "-p", "."], GATEWAY / "web"),
    ]
    for name, command, folder in steps:
        start = time.monotonic()
        done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True)
        if done.returncode == 0:
            outcome.passed += 1
            print(f"ok    {name} ({time.monotonic() - start:.1f} s)", flush=True)
        else:
            outcome.failed.append(f"lint: {name}")
            print(f"FAIL  {name}\n{done.stdout[-6000:]}{done.stderr[-6000:]}", flush=True)


def go_tests(outcome: Outcome) -> None:
    """All Go packages, with the race detector where a C compiler is found."""
    race = shutil.which("cc") is not None or shutil.which("gcc") is not None
    command = ["go", "test", "-json", "-timeout", "600s", *(["-race"] if race else []), "./..."]
    environment = os.environ | {"CGO_ENABLED": "1" if race else "0"}
    if not race:
        outcome.skipped.append("go test -race: no C compiler here")
    done = subprocess.run(command, cwd=GATEWAY, capture_output=True, text=True, env=environment)
    output: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            print(line)
            continue
        name = f"{event.get('Package', '').removeprefix('vigil/gateway/')} {event.get('Test', '')}".strip()
        if event["Action"] == "output":
            output.setdefault(name, []).append(event["Output"])
        if "Test" not in event and event["Action"] != "fail":
            continue
        if event["Action"] in ("pass", "fail", "skip"):
            outcome.results[f"gateway-go/{name}"] = {"pass": "passed", "fail": "failed", "skip": "skipped"}[event["Action"]]
        if event["Action"] == "pass":
            outcome.passed += 1
        elif event["Action"] == "skip":
            outcome.skipped.append(f"{name}: {' '.join(output.get(name, [])).strip()[-200:]}")
        elif event["Action"] == "fail":
            outcome.failed.append(name)
            print(f"FAIL  {name}\n{''.join(output.get(name, []))[-4000:]}")
    if done.returncode != 0 and not outcome.failed:
        outcome.failed.append("go test")
        print(done.stderr[-4000:])


def python_tests(outcome: Outcome, full: bool) -> None:
    """pytest; its own summary is shown."""
    report = REPORT / "pytest.xml"
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *([] if full else ["-m", "not long"])]
    code = subprocess.run(command, cwd=ROOT).returncode
    if not report.exists():
        outcome.failed.append(f"pytest ended with {code}")
        return
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        place = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        outcome.results[place] = "passed"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed.append(name)
            outcome.results[place] = "failed"
        elif (skip := case.find("skipped")) is not None:
            outcome.skipped.append(f"{name}: {skip.get('message')}")
            outcome.results[place] = "skipped"
        else:
            outcome.passed += 1
    if code not in (0, 1):
        outcome.failed.append(f"pytest ended with {code}")


def completeness(outcome: Outcome) -> None:
    """Every event and header field was brought about by its test, through the whole product."""
    found = seen.holes()
    outcome.failed += found
    outcome.passed += not found
    if not found:
        print("ok    every event and header field was produced by its test (docs/events.md)")


def requirements(outcome: Outcome, full: bool) -> None:
    """Every safety requirement has its design, code and passed tests; with ``full`` also a mutant that they notice."""
    traceability.keep(outcome.results)
    found = traceability.holes(outcome.results)
    if full and not found:
        found = mutants.findings()
    outcome.failed += [f"requirement {x}" for x in found]
    outcome.passed += not found
    if not found:
        print("ok    every safety requirement is traced (safety/requirements)")


def main() -> int:
    arguments = sys.argv[1:]
    start = time.monotonic()
    REPORT.mkdir(parents=True, exist_ok=True)
    (REPORT / "pytest.xml").unlink(missing_ok=True)
    outcome = Outcome()
    say("linters")
    lint(outcome)
    if "--lint-only" not in arguments:
        say("Go tests")
        go_tests(outcome)
        say("Python tests")
        shutil.rmtree(seen.FOLDER, ignore_errors=True)
        python_tests(outcome, "--full" in arguments)
        completeness(outcome)
        requirements(outcome, "--full" in arguments)
    say(f"{time.monotonic() - start:.0f} s")
    for name in outcome.failed:
        print(f"FAILED {name}")
    print("skipped:" if outcome.skipped else "skipped: none")
    for name in outcome.skipped:
        print(f"  {name}")
    print(f"{outcome.passed} passed, {len(outcome.failed)} failed, {len(outcome.skipped)} skipped", flush=True)
    return 1 if outcome.failed or outcome.passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
