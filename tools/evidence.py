"""Writes the sources of the evidence site: requirements as sphinx-needs, tests with their latest results, and what else was shown.

``make evidence`` runs this and then Sphinx. Nothing is measured here: what was not run before
is said to be missing, with the command that brings it.
"""

from __future__ import annotations

import hashlib
import html
import json
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "evidence" / "source"
RESULTS = ROOT / "build" / "test-results" / "results.json"
CAMPAIGN = ROOT / "build" / "campaign"
COVERAGE = ROOT / "build" / "coverage" / "coverage.json"
sys.path.insert(0, str(ROOT))

from tests.harness.traceability import holes, load, marks  # noqa: E402

CONF = """
project = "Vigil: evidence"
extensions = ["sphinx_needs", "myst_parser"]
html_theme = "alabaster"
html_extra_path = ["extra"]
suppress_warnings = ["myst.xref_missing", "misc.highlighting_failure"]
needs_id_regex = "^[A-Za-z0-9_-]{3,}"
needs_types = [
    {"directive": "goal", "title": "Safety goal", "prefix": "SG", "color": "#d5e5f5", "style": "node"},
    {"directive": "requirement", "title": "Requirement", "prefix": "SR", "color": "#d8ead8", "style": "node"},
    {"directive": "testcase", "title": "Test", "prefix": "T", "color": "#f3ead0", "style": "node"},
]
needs_fields = {name: {"schema": {"type": "string"}} for name in ("asil", "allocation", "design", "code", "mutant")}
needs_links = {
    "verified_by": {"incoming": "verifies", "outgoing": "verified by"},
    "derived_from": {"incoming": "leads to", "outgoing": "derived from"},
}
"""


def _test_id(name: str) -> str:
    return "T-" + hashlib.sha256(name.encode()).hexdigest()[:10]


def _status(test: str, results: dict[str, str]) -> str:
    of = [r for n, r in results.items() if n == test or n.startswith(test + "[")]
    return "not run" if not of else "passed" if all(r == "passed" for r in of) else "failed"


def _need(kind: str, title: str, body: str, **options: str) -> str:
    lines = [f".. {kind}:: {title}"] + [f"   :{k}: {v}" for k, v in options.items() if v]
    return "\n".join([*lines, "", *(f"   {line}" for line in body.split("\n")), "", ""])


def _table(kind: str, columns: str) -> str:
    return f".. needtable::\n   :types: {kind}\n   :columns: {columns}\n   :style: table\n\n"


def _heading(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


def requirements(results: dict[str, str]) -> None:
    """Goals, requirements and tests, linked."""
    spec, places = load(), marks()
    goals = "".join(_need("goal", i, text, id=i) for i, text in spec["goals"].items())
    parts = [_heading("Safety goals and requirements"), "ASIL attributes are assumptions for an integrator's own analysis.\n\n", goals]
    tests: dict[str, list[str]] = {}
    for r in spec["requirements"]:
        for t in r["tests"]:
            tests.setdefault(t, []).append(r["id"])
        m = r["mutant"]
        change = f"- {m['find'].strip()}\n+ {m['replace'].strip()}".replace("\n", "\n   ")
        mutant = f"Mutant of ``{m['file']}``:\n\n.. code-block:: diff\n\n   {change}"
        parts.append(
            _need(
                "requirement", r["title"], f"{r['text']}\n\nRationale: {r['rationale']}\n\n{mutant}", id=r["id"], asil=r["asil"],
                allocation=r["allocation"], design=r["design"], code=", ".join(places.get(r["id"], [])), derived_from=r["goal"],
                verified_by=", ".join(_test_id(t) for t in r["tests"]),
            )
        )  # fmt: skip
    (OUT / "requirements.rst").write_text("".join(parts))
    cases = [_heading("Tests that verify requirements")]
    cases += [_need("testcase", t, f"``{t}``", id=_test_id(t), status=_status(t, results)) for t in sorted(tests)]
    (OUT / "tests.rst").write_text("".join(cases))
    missing = holes(results, spec, places)
    table = _table("requirement", "id, title, derived_from, asil, allocation, design, code, verified_by")
    words = "Nothing is missing.\n\n" if not missing else "Missing:\n\n" + "".join(f"* {m}\n" for m in missing) + "\n"
    status = _table("testcase", "id, title, status")
    (OUT / "traceability.rst").write_text(
        _heading("Traceability") + words + _heading("From goal to test", "-") + table + _heading("Latest results", "-") + status
    )


def shown(results: dict[str, str]) -> None:
    """Results by what was tried: crashes, forgeries, faults."""
    groups = {
        "crashes and power cuts": "tests/fault/test_crash.py",
        "forgeries": "tests/e2e/test_forgeries.py",
        "damaged logs": "tests/fault/test_fuzz_logs.py",
        "pruned logs": "tests/e2e/test_pruning.py",
        "failing disks": "tests/fault/test_failing_disk.py",
        "hanging disks": "tests/fault/test_hanging_disk.py",
        "log failures": "tests/fault/test_log_failures.py",
        "kills and hangs": "tests/fault/test_processes.py",
        "safety states": "tests/fault/test_safety.py",
        "ladders": "tests/fault/test_ladder.py",
        "quick campaign": "tests/fault/test_campaign.py",
        "link": "tests/fault/test_link.py",
        "watchdogs": "tests/fault/test_watchdogs.py",
        "state machine": "tests/unit/test_safety_core.py",
        "contract rules": "gateway-go/internal/rules",
    }
    rows = [".. list-table::\n   :header-rows: 1\n\n   * - what\n     - where\n     - passed\n     - failed\n     - skipped\n"]
    for what, where in groups.items():
        count = Counter(r for n, r in results.items() if n.startswith(where))
        rows.append(f"   * - {what}\n     - ``{where}``\n     - {count['passed']}\n     - {count['failed']}\n     - {count['skipped']}\n")
    total = Counter(results.values())
    text = (
        f"All tests of the latest run: {total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped (``make test``).\n\n"
    )
    (OUT / "results.rst").write_text(_heading("What was tried") + text + "".join(rows) + "\n")


def campaign() -> None:
    """The latest campaign's report, or how to get one."""
    extra = OUT / "extra"
    extra.mkdir(parents=True, exist_ok=True)
    text = _heading("Fault injection campaign")
    if (CAMPAIGN / "campaign.json").is_file():
        found: dict[str, Any] = json.loads((CAMPAIGN / "campaign.json").read_text())
        for name in ("campaign.html", "campaign.json"):
            shutil.copy(CAMPAIGN / name, extra / name)
        c, about = found["coverage"], found["about"]
        made, missed, alarms = about["injections of each kind"], ", ".join(found["undetected"]), ", ".join(found["false_alarms"])
        text += f"Detected {c['successes']} of {c['trials']} injections, 95 % bounds {c['low']} to {c['high']}; {made} of each kind, "
        text += f"finished {about['finished']}. Not detected at least once: {missed or 'none'}. False alarms: {alarms or 'none'}. "
        text += "`The report <campaign.html>`__, `its data <campaign.json>`__.\n\n"
    else:
        text += "No campaign was run here. ``make campaign ARGS=--quick`` injects each kind once, ``make campaign`` 1,000 times.\n\n"
    text += "The coverage is that of these faults as they were injected here; no hardware metric follows from it.\n"
    (OUT / "campaign.rst").write_text(text)


def coverage() -> None:
    """Which code the tests within one process ran."""
    text = _heading("Code coverage")
    if COVERAGE.is_file():
        found: dict[str, dict[str, float]] = json.loads(COVERAGE.read_text())
        text += "Python: lines and branches that unit and conformance tests run within their own process; the sidecar as a process, under\n"
        text += "``tests/e2e`` and ``tests/fault``, is not counted. Go: statements that Go's own tests or ``tests/e2e`` run.\n\n"
        rows = "".join(f"   * - ``{name}``\n     - {percent} %\n" for packages in found.values() for name, percent in packages.items())
        text += ".. list-table::\n\n" + rows
    else:
        text += "It was not measured here: ``make coverage``.\n"
    (OUT / "coverage.rst").write_text(text)


def pages() -> None:
    """The project's own pages that explain what the evidence is about."""
    for name in ("safety", "state-machine", "fault-injection", "performance", "audit-format", "safety-concept"):
        shutil.copy(ROOT / "docs" / f"{name}.md", OUT / f"{name}.md")
    for picture in (ROOT / "docs").glob("*.svg"):
        shutil.copy(picture, OUT / picture.name)


def index() -> None:
    """What this is, what it rests on, and how to repeat it."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip() or "not a git checkout"
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    machine = yaml.safe_load((ROOT / "safety" / "machine.yaml").read_text())
    facts = {
        "commit": commit + (" with changes" if changed else ""),
        "made": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}Z",
        "safety table": f"version {machine['version']}", "python": platform.python_version(), "machine": platform.machine(),
        **{p: metadata.version(p) for p in ("onnxruntime", "grpcio", "protobuf", "numpy")},
    }  # fmt: skip
    files = (
        "bin/vigil-gateway", "bin/auditverify", "safety/machine.yaml", "safety/kinds.yaml", "safety/requirements/requirements.yaml",
        "proto/audit_record.yaml", "requirements/runtime.lock", "gateway-go/go.sum",
    )  # fmt: skip
    for name in files:
        path = ROOT / name
        facts[name] = "SHA-256 " + hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "not there"
    rows = "".join(f"   * - {k}\n     - ``{html.unescape(v)}``\n" for k, v in facts.items())
    commands = {
        "make test": "every test but the long ones, and the traceability gate",
        "make test-full": "the long runs and the mutants too",
        "make campaign": "the full fault injection campaign",
        "make bench": "times and speed",
        "make coverage": "which code is run",
        "make evidence": "this site",
    }
    pages = (
        "requirements", "traceability", "tests", "results", "campaign", "coverage", "safety-concept", "safety", "state-machine",
        "fault-injection", "performance", "audit-format",
    )  # fmt: skip
    text = _heading("Vigil: evidence")
    text += "What was required, where it stands in the code, and what shows that it holds. Nothing here claims a certification or a "
    text += "hardware metric; times are those of the machine that ran the commands.\n\n"
    text += ".. toctree::\n   :maxdepth: 1\n\n" + "".join(f"   {p}\n" for p in pages) + "\n"
    text += _heading("What it rests on", "-") + ".. list-table::\n\n" + rows + "\n"
    text += _heading("How to repeat it", "-") + "".join(f"* ``{k}``: {v}\n" for k, v in commands.items())
    (OUT / "index.rst").write_text(text)


def main() -> int:
    """Write everything; 1 without results of a test run."""
    if not RESULTS.is_file():
        print("there are no test results yet; run make test first", file=sys.stderr)
        return 1
    results: dict[str, str] = json.loads(RESULTS.read_text())
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    (OUT / "conf.py").write_text(CONF)
    requirements(results)
    shown(results)
    campaign()
    coverage()
    pages()
    index()
    return 0


if __name__ == "__main__":
    sys.exit(main())
