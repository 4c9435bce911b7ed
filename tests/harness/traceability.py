"""The gate of the safety requirements: goal, design, code, test and its latest result, without a hole or a name that leads nowhere."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["RESULTS", "holes", "keep", "load", "marks"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "test-results" / "results.json"
"""Result of each test of the latest run, by its name as requirements give it."""
_FILE = ROOT / "safety" / "requirements" / "requirements.yaml"
_ID = re.compile(r"SR-\d{3}")
_MARK = re.compile(r"^\s*(?:#|//) (SR-\d{3})\s*$", re.MULTILINE)
_ASIL = ("QM", "A", "B", "C", "D")
_FIELDS = {"id", "goal", "title", "text", "rationale", "asil", "allocation", "design", "verification", "tests", "mutant"}
_LEAST = 40


class Mutant(dict[str, str]):
    """A change that breaks a requirement: ``file``, ``find`` (there once), ``replace``."""


def load(file: Path = _FILE) -> dict[str, Any]:
    """Goals and requirements as the file has them."""
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


def _code() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = (Path(n) for n in listed.stdout.split("\n") if n.endswith((".py", ".go")))
    return [
        p for p in files if p.parts[0] in ("sidecar", "safety", "gateway-go") and not p.name.endswith("_test.go") and "gen" not in p.parts
    ]


def marks(root: Path = ROOT) -> dict[str, list[str]]:
    """Where each requirement is marked in the code: FILE:LINE."""
    out: dict[str, list[str]] = {}
    for path in _code():
        text = (root / path).read_text()
        for m in _MARK.finditer(text):
            out.setdefault(m.group(1), []).append(f"{path}:{text.count(chr(10), 0, m.start(1)) + 1}")
    return out


def _heading(text: str) -> str:
    """The anchor that renderers give a heading."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _design(place: str) -> str:
    file, _, anchor = place.partition("#")
    path = ROOT / file
    if not path.is_file():
        return f"design {place}: there is no such file"
    anchors = {_heading(line.lstrip("#").strip()) for line in path.read_text().splitlines() if line.startswith("#")}
    return "" if anchor in anchors else f"design {place}: there is no such heading"


def _result(test: str, results: Mapping[str, str]) -> str:
    """What is wrong with a test's latest result; each of its parametrised variants counts."""
    of = [r for n, r in results.items() if n == test or n.startswith(test + "[")]
    if not of:
        return f"test {test} did not run"
    bad = [r for r in of if r != "passed"]
    return f"test {test} {bad[0]}" if bad else ""


def _mutant(m: Mapping[str, str]) -> str:
    path = ROOT / m["file"]
    count = path.read_text().count(m["find"]) if path.is_file() else 0
    if count != 1 or m["find"] == m["replace"]:
        return f"mutant: {m['file']} has what is to be changed {count} times" if count != 1 else "mutant: it changes nothing"
    return ""


def _of_one(r: Mapping[str, Any], goals: Mapping[str, str], found: Mapping[str, list[str]], results: Mapping[str, str]) -> list[str]:
    wrong = [f"fields {sorted(_FIELDS ^ r.keys())} are missing or unknown"] if r.keys() != _FIELDS else []
    if wrong:
        return wrong
    wrong += [] if r["goal"] in goals else [f"goal {r['goal']} is not stated"]
    wrong += [] if r["asil"] in _ASIL else [f"asil {r['asil']} is none of {', '.join(_ASIL)}"]
    wrong += [_design(r["design"])]
    wrong += [] if found.get(r["id"]) else ["no place in the code is marked with it"]
    wrong += [] if r["tests"] else ["no test verifies it"]
    wrong += [_result(t, results) for t in r["tests"]] + [_mutant(r["mutant"])]
    return [w for w in wrong if w]


def holes(results: Mapping[str, str], spec: Mapping[str, Any] | None = None, found: Mapping[str, list[str]] | None = None) -> list[str]:
    """What is missing between goals, requirements, design, code and tests, in words; empty when nothing is."""
    spec, found = spec or load(), marks() if found is None else found
    requirements, goals = spec["requirements"], spec["goals"]
    ids = [r.get("id", "") for r in requirements]
    out = [f"{i}: is there twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    out += [f"{i!r} is no id of a requirement" for i in ids if not _ID.fullmatch(i)]
    out += [f"goal {g}: no requirement follows from it" for g in goals if g not in {r.get("goal") for r in requirements}]
    out += [f"{i}: marked at {', '.join(places)}, and no requirement" for i, places in sorted(found.items()) if i not in ids]
    for r in requirements:
        out += [f"{r['id']}: {w}" for w in _of_one(r, goals, found, results)]
    for scenario in sorted((ROOT / "safety" / "scenarios").glob("*.txt")):
        named = _ID.findall(scenario.read_text())
        out += [] if named else [f"{scenario.name}: names no requirement"]
        out += [f"{scenario.name}: {i} is no requirement" for i in named if i not in ids]
    return out if len(ids) >= _LEAST else [*out, f"{len(ids)} requirements, at least {_LEAST} are wanted"]


def keep(results: Mapping[str, str]) -> None:
    """Keep the results of a run for later reports."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=0) + "\n")
