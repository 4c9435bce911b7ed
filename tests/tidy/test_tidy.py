"""Style as a test: sizes, names, docstrings, imports, texts."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.harness.product import ROOT

LINES_MAX, FUNCTION_MAX = 400, 70
TRACKED = [Path(p) for p in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()]
GENERATED = re.compile(r"(^|/)gen/|_gen\.|\.pb\.|_pb2|/web/src/gen/")
SOURCES = [p for p in TRACKED if p.suffix in (".py", ".go", ".ts") and not GENERATED.search(str(p)) and (ROOT / p).exists()]
PYTHON = [p for p in SOURCES if p.suffix == ".py"]
GO = [p for p in SOURCES if p.suffix == ".go"]
TEXTS = [p for p in TRACKED if p.suffix in (".py", ".go", ".md", ".yaml", ".proto", ".toml", ".sh", "") and (ROOT / p).is_file()]


def test_files_are_read_in_one_sitting() -> None:
    """No source file is longer than 400 lines."""
    long = {str(p): n for p in SOURCES if (n := len((ROOT / p).read_text().splitlines())) > LINES_MAX}
    assert not long


def test_functions_fit_on_a_screen() -> None:
    """No Python function is longer than 70 lines, and no Go function either."""
    long = []
    for p in PYTHON:
        for node in ast.walk(ast.parse((ROOT / p).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= FUNCTION_MAX:
                long.append(f"{p}:{node.name}")
    for p in GO:
        start, name = 0, ""
        for i, line in enumerate((ROOT / p).read_text().splitlines()):
            if line.startswith("func "):
                start, name = i, line
            elif line == "}" and name:
                if i - start >= FUNCTION_MAX:
                    long.append(f"{p}: {name}")
                name = ""
    assert not long


@pytest.mark.parametrize("word", ["utils", "helpers", "manager", "common"])
def test_names_say_something(word: str) -> None:
    """No file or folder has a name that says nothing."""
    assert not [p for p in SOURCES if word in p.stem.lower() or word in [q.lower() for q in p.parts]]


def test_public_things_have_docstrings() -> None:
    """Every public module, class and function of the product has a docstring."""
    bare = []
    for p in PYTHON:
        if p.parts[0] not in ("sidecar", "safety"):
            continue
        tree = ast.parse((ROOT / p).read_text())
        if tree.body and not ast.get_docstring(tree):
            bare.append(str(p))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    bare.append(f"{p}:{node.name}")
                bare += [
                    f"{p}:{node.name}.{f.name}"
                    for f in node.body
                    if isinstance(f, ast.FunctionDef) and not f.name.startswith("_") and not ast.get_docstring(f)
                    and not any(isinstance(d, ast.Name) and d.id == "property" for d in f.decorator_list)
                ]  # fmt: skip
        bare += [
            f"{p}:{f.name}" for f in tree.body if isinstance(f, ast.FunctionDef) and not f.name.startswith("_") and not ast.get_docstring(f)
        ]
    assert not bare


PROGRAMS = ("cmd", "bench", "conformance", "crashtool", "floodtool", "tilescheck")
"""Folders of gateway-go that hold programs, and no library."""


def test_libraries_do_not_exit_or_read_the_environment() -> None:
    """Only the command-line modules, and main packages in Go, exit or look at the environment."""
    guilty = []
    for p in PYTHON:
        if (
            p.parts[0] in ("sidecar", "safety")
            and "cli" not in p.parts
            and re.search(r"sys\.exit|os\._exit|os\.environ", (ROOT / p).read_text())
        ):
            guilty.append(str(p))
    for p in GO:
        library = p.parts[0] != "examples" and p.parts[1] not in PROGRAMS and "_test" not in p.name
        if library and re.search(r"os\.Exit|os\.Getenv|os\.Environ\(|log\.Fatal", (ROOT / p).read_text()):
            guilty.append(str(p))
    assert not guilty


def test_go_generated_code_is_imported_by_edges_only() -> None:
    """audit, auditlog, safety and settings import no generated contract."""
    guilty = [
        str(p) for p in GO
        if any(part in p.parts for part in ("audit", "auditlog", "safety", "settings", "telemetry"))
        and re.search(r'"vigil/gateway/gen/(vigil|inference)', (ROOT / p).read_text())
    ]  # fmt: skip
    assert not guilty


def test_every_go_package_with_tests_looks_for_leaks() -> None:
    """goleak at the end of each."""
    tested = {p.parent for p in TRACKED if p.name.endswith("_test.go") and "testdata" not in p.parts}
    looking = {p.parent for p in TRACKED if p.name.endswith("_test.go") and "goleak.VerifyTestMain" in (ROOT / p).read_text()}
    assert {str(p) for p in tested - looking} <= {"gateway-go/leakcheck"}  # which runs the go command for its fixtures


def test_no_unfinished_words() -> None:
    """Nothing is left to be done in words."""
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    assert not [str(p) for p in TEXTS if words.search((ROOT / p).read_text(errors="replace"))]


def test_links_between_pages_lead_somewhere() -> None:
    """Relative links of the documentation exist."""
    broken = []
    for p in TRACKED:
        if p.suffix == ".md" and (ROOT / p).exists():
            for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / p).read_text()):
                if not (ROOT / p.parent / target).exists():
                    broken.append(f"{p} -> {target}")
    assert not broken


def test_every_dependency_is_locked_by_hash() -> None:
    """Each locked Python package has a hash."""
    for lock in ("tools", "dev"):
        text = (ROOT / "requirements" / f"{lock}.lock").read_text()
        for block in re.split(r"\n(?=[a-z0-9])", text)[1:]:
            assert "--hash=sha256:" in block, block.splitlines()[0]
