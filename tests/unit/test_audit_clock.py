"""Clock events and keyed hashes in the log."""

from __future__ import annotations

import hmac
import json
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.product import ROOT
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.clock import UNKNOWN_UNCERTAINTY, ClockStatus, ClockWatch
from vigil_sidecar.audit.clock_daemon import ClockDaemon, parse_chrony, parse_ptp4l
from vigil_sidecar.audit.entry import ZERO32, Entry
from vigil_sidecar.audit.keys import hash_key
from vigil_sidecar.audit.verify import read_records, verify_folder
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.errors import AuditError

SYNCHRONISED, FREE = ClockStatus(1000, 1, 1), ClockStatus(0, 1, 2)
S = 1_000_000_000


@given(passed=st.integers(1, 3600 * S), jump=st.integers(-3600 * S, 3600 * S))
def test_only_a_jump_beyond_slewing_is_a_step(passed: int, jump: int) -> None:
    """What a daemon's slewing explains is none, more is one, with its size and sign."""
    watch = ClockWatch()
    assert watch.look(10**18, S, SYNCHRONISED) == (0, "")
    step, words = watch.look(10**18 + passed + jump, S + passed, SYNCHRONISED)
    assert step == (jump if abs(jump) > 50_000_000 + passed / 10 else 0) and not words


def test_a_change_of_status_is_told_once() -> None:
    """Losing the source is told when it happens, and not again."""
    watch = ClockWatch()
    watch.look(S, S, SYNCHRONISED)
    assert watch.look(2 * S, 2 * S, FREE) == (0, "synchronised (kernel), now free-running (kernel)")
    assert watch.look(3 * S, 3 * S, FREE) == (0, "")


def test_a_step_is_an_event_of_its_own(tmp_path: Path) -> None:
    """Before the first record that the stepped clock dates stands the step; order and chain stay."""
    shift = 0
    writer = AuditWriter(tmp_path / "log", "sidecar", durability="process", time_ns=lambda: time.time_ns() + shift)
    first = writer.append([Entry(layout.KIND_ANSWER, events.ANSWER)])
    shift = -90 * S
    second = writer.append([Entry(layout.KIND_ANSWER, events.ANSWER)] * 2)
    writer.close()
    assert second == range(first[0] + 2, first[0] + 4)
    records = list(read_records(tmp_path / "log"))
    step = next(r for r in records if r.header.event_id == events.CLOCK_STEPPED)
    assert step.header.sequence == second[0] - 1 and step.header.time_ns < records[0].header.time_ns
    assert verify_folder(tmp_path / "log").intact


def test_keyed_hashes_need_the_key(tmp_path: Path) -> None:
    """With a key the four hashes of what a caller sent or got are HMACs of the plain ones, and the flag says so; nothing else changes."""
    key = hash_key(tmp_path / "keys")
    assert len(key) == 32 and key == hash_key(tmp_path / "keys")
    assert stat.S_IMODE((tmp_path / "keys" / "audit-hash.key").stat().st_mode) == 0o600
    writer = AuditWriter(tmp_path / "log", "sidecar", durability="process", hash_key=key)
    plain = [bytes([i]) * 32 for i in range(1, 5)]
    writer.append(
        [
            Entry(
                layout.KIND_ANSWER,
                events.ANSWER,
                request_id_hash=plain[0],
                input_hash=plain[1],
                output_hash=plain[2],
                model_digest=plain[3],
            )
        ]
    )
    writer.close()
    h = next(r.header for r in read_records(tmp_path / "log") if r.header.kind == layout.KIND_ANSWER)
    keyed = [hmac.digest(key, p, "sha256") for p in plain]
    assert (h.request_id_hash, h.input_hash, h.output_hash) == tuple(keyed[:3])
    assert h.model_digest == plain[3] and h.tenant_hash == ZERO32 and h.flags == layout.FLAG_KEYED


@pytest.mark.parametrize("content", ["", "zz", "00" * 31])
def test_a_broken_hash_key_is_named(tmp_path: Path, content: str) -> None:
    """Hashes under a wrong key would be worth nothing years later."""
    (tmp_path / "audit-hash.key").write_text(content)
    (tmp_path / "audit-hash.key").chmod(0o600)
    with pytest.raises(AuditError, match="64 hex digits"):
        hash_key(tmp_path)


def test_a_hash_key_that_others_read_is_refused(tmp_path: Path) -> None:
    """As with the signing key."""
    hash_key(tmp_path)
    (tmp_path / "audit-hash.key").chmod(0o644)
    with pytest.raises(AuditError, match="others may read"):
        hash_key(tmp_path)


def test_keyed_vector_of_the_page() -> None:
    """The page's example is what the writer computes."""
    plain = json.loads((ROOT / "tests" / "vectors" / "hashes.json").read_text())["tensors"][0]["sha256"]
    keyed = hmac.digest(bytes(range(32)), bytes.fromhex(plain), "sha256").hex()
    assert keyed in (ROOT / "docs" / "audit-format.md").read_text()


VECTORS = json.loads((ROOT / "tests" / "vectors" / "clock.json").read_text())


@pytest.mark.parametrize(("name", "parse"), [("chrony", parse_chrony), ("ptp4l", parse_ptp4l)])
def test_daemons_words(name: str, parse: Callable[[str], ClockStatus | None]) -> None:
    """What daemons print is read as the shared vectors say; the gateway reads the same."""
    assert len(VECTORS[name]) >= 5
    for text, want in VECTORS[name]:
        assert parse(text) == (want and ClockStatus(want[2] if want[2] is not None else UNKNOWN_UNCERTAINTY, want[0], want[1])), text


@pytest.mark.parametrize("script", [None, "echo; exit 1", "echo nonsense", "exec /bin/sleep 60"])
def test_silent_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    """A named daemon that is silent, hangs or is not installed makes the status unknown; with auto the kernel is asked then."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in ("chronyc", "pmc") if script else ():
        (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / program).chmod(0o755)
    for source, number in (("auto", None), ("kernel", None), ("chrony", 2), ("ptp4l", 3)):
        clock = ClockDaemon(source, ptp4l_socket=str(tmp_path))
        if number is None:
            assert clock.status().source <= 1
        else:
            assert clock.status() == ClockStatus(UNKNOWN_UNCERTAINTY, number, 0)
        clock.close()
