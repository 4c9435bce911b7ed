"""The gate of the safety requirements finds each kind of hole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.mutants import verdict_of
from tests.harness.traceability import holes, load, marks

Spec = dict[str, Any]


@pytest.fixture(scope="module")
def sound() -> tuple[Spec, dict[str, list[str]], dict[str, str]]:
    spec = load()
    return spec, marks(), {t: "passed" for r in spec["requirements"] for t in r["tests"]}


def test_nothing_is_missing_but_results(sound: tuple[Spec, dict[str, list[str]], dict[str, str]]) -> None:
    """What the files say is whole: whether the tests passed is asked when all have run."""
    spec, found, results = sound
    assert holes(results, spec, found) == []
    assert len(holes({}, spec, found)) >= len(spec["requirements"])


def _first(spec: Spec) -> dict[str, Any]:
    first: dict[str, Any] = spec["requirements"][0]
    return first


CHANGES: dict[str, tuple[Callable[[Spec, dict[str, list[str]], dict[str, str]], Any], str]] = {
    "dangling mark": (lambda s, f, r: f.update({"SR-999": ["x.py:1"]}), "SR-999: marked at x.py:1, and no requirement"),
    "unmarked": (lambda s, f, r: f.pop("SR-001"), "SR-001: no place in the code is marked"),
    "no test": (lambda s, f, r: _first(s).update(tests=[]), "SR-001: no test verifies it"),
    "unknown test": (lambda s, f, r: _first(s).update(tests=["tests/x.py::test_x"]), "test tests/x.py::test_x did not run"),
    "failed test": (lambda s, f, r: r.update({_first(s)["tests"][0]: "failed"}), "failed"),
    "skipped test": (lambda s, f, r: r.update({_first(s)["tests"][0]: "skipped"}), "skipped"),
    "one failed variant": (lambda s, f, r: r.update({_first(s)["tests"][0] + "[x]": "failed"}), "failed"),
    "no design": (lambda s, f, r: _first(s).update(design="docs/safety.md#nowhere"), "there is no such heading"),
    "no document": (lambda s, f, r: _first(s).update(design="docs/none.md#machines"), "there is no such file"),
    "unknown goal": (lambda s, f, r: _first(s).update(goal="SG-99"), "goal SG-99 is not stated"),
    "idle goal": (lambda s, f, r: s["goals"].update({"SG-7": "x"}), "goal SG-7: no requirement follows"),
    "twice": (lambda s, f, r: s["requirements"].append(_first(s)), "SR-001: is there twice"),
    "odd id": (lambda s, f, r: _first(s).update(id="SR-1"), "is no id of a requirement"),
    "asil": (lambda s, f, r: _first(s).update(asil="E"), "asil E is none of"),
    "missing field": (lambda s, f, r: _first(s).pop("rationale"), "missing or unknown"),
    "stale mutant": (lambda s, f, r: _first(s)["mutant"].update(find="no such code"), "has what is to be changed 0 times"),
    "idle mutant": (lambda s, f, r: _first(s)["mutant"].update(replace=_first(s)["mutant"]["find"]), "it changes nothing"),
    "too few": (lambda s, f, r: s.update(requirements=s["requirements"][:39]), "39 requirements, at least 40"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_hole_is_found(sound: tuple[Spec, dict[str, list[str]], dict[str, str]], name: str) -> None:
    spec, found, results = copy.deepcopy(sound)
    change, text = CHANGES[name]
    change(spec, found, results)
    assert any(text in hole for hole in holes(results, spec, found)), holes(results, spec, found)


@pytest.mark.parametrize(
    ("go", "code", "out", "verdict"),
    [
        (True, 0, "=== RUN   TestX\n--- PASS: TestX (0.00s)\nPASS\nok  \tvigil\t0.1s\n", "passed"),
        (True, 1, "=== RUN   TestX\n    x_test.go:3: no\n--- FAIL: TestX (0.00s)\nFAIL\n", "failed"),
        (True, 2, "=== RUN   TestX\npanic: close of closed channel\n", "failed"),
        (True, 2, "panic: in init\n", "shows nothing"),
        (True, 0, "=== RUN   TestX\npanic: recovered\n--- PASS: TestX (0.00s)\nPASS\n", "passed"),
        (True, 2, "./x.go:3:2: undefined: y\nFAIL\tvigil [build failed]\n", "shows nothing"),
        (True, 0, "testing: warning: no tests to run\nPASS\n", "shows nothing"),
        (True, 0, "--- SKIP: TestX (0.00s)\nPASS\n", "shows nothing"),
        (False, 0, ".\n1 passed in 0.10s\n", "passed"),
        (False, 1, "F\nFAILED tests/x.py::test_x - assert 1 failed\n1 failed in 0.10s\n", "failed"),
        (False, 1, ".E\nERROR tests/x.py::test_x - 1 failed\n1 passed, 1 error in 0.10s\n", "shows nothing"),
        (False, 2, "ERROR tests/x.py - SyntaxError\n1 error in 0.10s\n", "shows nothing"),
        (False, 4, "ERROR: not found: tests/x.py::test_x\nno tests ran in 0.01s\n", "shows nothing"),
        (False, 0, "s\nSKIPPED [1] tests/x.py:3: root\n1 skipped in 0.01s\n", "shows nothing"),
        (False, 124, "", "failed"),
    ],
)
def test_a_mutant_is_noticed_by_a_failed_test_only(go: bool, code: int, out: str, verdict: str) -> None:
    """What cannot be built, found or run shows nothing about a requirement."""
    assert verdict in verdict_of(go, code, out)
