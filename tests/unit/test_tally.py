"""Counters that outlive restarts, in Python and in Go alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vigil_safety.tally import DEGRADED, EXPIRED, Tally


def test_counts_outlive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "safety" / "counts.json"
    first = Tally(path)
    for _ in range(3):
        first.count(DEGRADED, "model/m")
    first.count(EXPIRED, "registry")
    second = Tally(path)
    assert (second.of(DEGRADED, "model/m"), second.of(EXPIRED, "registry"), second.of(EXPIRED, "model/m")) == (3, 1, 0)
    second.count(DEGRADED, "model/m")
    assert json.loads(path.read_text()) == {"version": 1, "counts": {"degraded model/m": 4, "expired registry": 1}}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 2, "counts": {}}', '{"version": 1, "counts": {"a": -1}}', "\xff"])
def test_what_cannot_be_read_is_put_aside_and_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "counts.json"
    path.write_bytes(content.encode("latin-1"))
    tally = Tally(path)
    assert "cannot be read" in tally.problem and (tmp_path / "counts.unreadable").read_bytes() == content.encode("latin-1")
    tally.count(DEGRADED, "sidecar")
    assert Tally(path).all() == {"degraded sidecar": 1}


def test_what_cannot_be_written_is_told_and_still_counted(tmp_path: Path) -> None:
    (tmp_path / "safety").write_text("a file where a folder should be")
    tally = Tally(tmp_path / "safety" / "counts.json")
    tally.count(DEGRADED, "sidecar")
    assert "cannot be" in tally.problem and tally.of(DEGRADED, "sidecar") == 1


def test_names_are_bounded(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "counts.json")
    for i in range(4100):
        tally.count(DEGRADED, f"model/{i}")
    assert len(tally.all()) == 4096
