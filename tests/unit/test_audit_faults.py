"""Faults of disk and key files: the writer hears them, promises nothing meanwhile, and its log stays one that verifies."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.harness.product import ROOT
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit import sealer as sealing
from vigil_sidecar.audit.disk import Disk
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.notes import NoteError, Verifier, open_note
from vigil_sidecar.audit.verify import Report, read_records, verify_folder
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.errors import AuditError

EIO = OSError(5, "Input/output error")


class FaultyDisk(Disk):
    """Fails the next calls of one operation, as often as it is told, and counts rewritten bytes."""

    def __init__(self) -> None:
        self.failing, self.times, self.after, self.writes = "", 0, 0, list[tuple[int, int]]()

    def fail(self, operation: str, times: int = 1, after: int = 0) -> None:
        self.failing, self.times, self.after = operation, times, after

    def _ask(self, operation: str) -> None:
        if operation == self.failing and self.times > 0:
            self.after -= 1
            if self.after < 0:
                self.times -= 1
                raise EIO

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self._ask("pwrite")
        self.writes.append((offset, len(data)))
        return super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self._ask("fdatasync")
        super().fdatasync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self._ask("rename")
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._ask("sync_folder")
        super().sync_folder(folder)


def answers(count: int) -> list[Entry]:
    return [Entry(layout.KIND_ANSWER, events.ANSWER, payload=b"p" * 40) for _ in range(count)]


def opened(folder: Path, disk: Disk, told: list[str] | None = None, durability: str = "process") -> AuditWriter:
    """A writer whose checkpoints are made by the test."""
    report = (told if told is not None else []).append
    writer = AuditWriter(
        folder / "log", "sidecar", durability=durability, segment_bytes=16 << 10, keys=KeyFile(folder / "keys", "sidecar"),
        checkpoint_interval_s=3600, disk=disk, report=report,
    )  # fmt: skip
    assert writer.sealer is not None
    writer.sealer.stop()
    return writer


def verified(folder: Path) -> Report:
    first = Verifier((folder / "keys" / "audit-sidecar.pub").read_text().split()[0])
    return verify_folder(folder / "log", [first])


@pytest.mark.parametrize("where", ["append", "checkpoint"])
def test_after_a_failed_force_everything_is_written_again(tmp_path: Path, where: str) -> None:
    """The kernel may forget pages that it failed to write: before anything is promised again, the segment is written anew."""
    disk = FaultyDisk()
    writer = opened(tmp_path, disk, durability="power")
    writer.append(answers(3))
    disk.fail("fdatasync")
    assert writer.sealer is not None
    with pytest.raises((AuditError, OSError)):
        writer.append(answers(1)) if where == "append" else writer.sealer.seal()
    assert writer.failure == "Input/output error"
    used = writer._offset
    disk.writes.clear()
    writer.append(answers(1))
    assert disk.writes[0] == (0, used) and writer.failure is None
    writer.close()
    assert verified(tmp_path).exit_code == 0


@pytest.mark.parametrize("operation", ["rename", "sync_folder", "fdatasync", "pwrite"])
def test_a_segment_that_cannot_be_begun_leaves_the_log_whole(tmp_path: Path, operation: str) -> None:
    """Whatever fails while a new segment is made: the call is refused, the next ones go on, no stray segment stays."""
    disk = FaultyDisk()
    writer = opened(tmp_path, disk)
    refused = 0
    disk.fail(operation, 2)
    for _ in range(120):
        try:
            writer.append(answers(1))
        except AuditError:
            refused += 1
    assert 1 <= refused <= 2
    writer.close()
    report = verified(tmp_path)
    assert report.exit_code == 0 and report.segments > 2 and report.kinds["answer"] == 120 - refused, report


def test_a_rotation_whose_key_file_cannot_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record stands, so only the new key signs from there on; the file is changed when it can be, and rotating goes on."""
    writer = opened(tmp_path, FaultyDisk())
    assert writer.sealer is not None
    switch = KeyFile.switch

    def broken(self: KeyFile, key: object) -> None:
        raise EIO

    monkeypatch.setattr(KeyFile, "switch", broken)
    with pytest.raises(OSError, match="Input/output"):
        writer.sealer.rotate()
    writer.append(answers(2))
    writer.sealer.seal()
    assert verified(tmp_path).rotations == 1 and verified(tmp_path).intact
    monkeypatch.setattr(KeyFile, "switch", switch)
    writer.sealer.rotate()
    writer.close()
    opened(tmp_path, FaultyDisk()).close()
    report = verified(tmp_path)
    assert report.exit_code == 0 and report.rotations == 2, report


@pytest.mark.parametrize(("force", "rotations"), [(1, 0), (2, 1)], ids=["checkpoint before", "key record"])
def test_a_rotation_whose_record_is_written_but_not_forced(tmp_path: Path, force: int, rotations: int) -> None:
    """As above: whether the record counts is decided by its being in the log."""
    disk = FaultyDisk()
    writer = opened(tmp_path, disk, durability="power")
    assert writer.sealer is not None
    writer.sealer._fdatasync = lambda fd: None  # type: ignore[assignment] # the fault is to meet the record
    disk.fail("fdatasync", after=force - 1)
    with pytest.raises(AuditError, match="forced"):
        writer.sealer.rotate()
    writer.append(answers(1))
    writer.close()
    opened(tmp_path, FaultyDisk()).close()
    report = verified(tmp_path)
    assert report.exit_code == 0 and report.rotations == rotations, report


def test_a_checkpoint_that_fails_is_told(tmp_path: Path) -> None:
    """Silence would look like health."""
    told: list[str] = []
    disk = FaultyDisk()
    writer = opened(tmp_path, disk, told)
    disk.fail("fdatasync")
    assert writer.sealer is not None
    writer.sealer._try()
    assert told == ["no checkpoint was signed: [Errno 5] Input/output error"]
    writer.close()


def test_no_checkpoint_comes_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a disk hangs others write on: a checkpoint that verifiers would call late is not made."""
    writer = opened(tmp_path, FaultyDisk())
    assert writer.sealer is not None
    monkeypatch.setattr(sealing, "LAG_MAX", 5)
    writer.sealer._fdatasync = lambda fd: writer.append(answers(9)) and None  # type: ignore[assignment,func-returns-value]
    with pytest.raises(AuditError, match="9 others came"):
        writer.sealer.seal()


def test_an_orderly_stop_is_no_crash(tmp_path: Path) -> None:
    """A restart after an orderly stop has no record of a recovery; one after a kill has."""
    for _ in range(3):
        writer = opened(tmp_path, FaultyDisk())
        writer.append(answers(2))
        writer.close()
        with pytest.raises(AuditError, match="closed"):
            writer.append(answers(1))
    found = [r.header.event_id for r in read_records(tmp_path / "log")]
    assert found.count(events.LOG_RECOVERED) == 0 and found.count(events.LOG_CLOSED) == 3


VECTORS = json.loads((ROOT / "tests" / "vectors" / "notes.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["notes"], ids=lambda v: v["name"])
def test_notes_of_odd_forms(vector: dict) -> None:  # type: ignore[type-arg]
    """Taken or refused as Go's verifier, which rests on x/mod/sumdb/note, does it."""
    try:
        found: object = len(open_note(base64.b64decode(vector["note"]), [Verifier(VECTORS["trusted"])])[1])
    except NoteError:
        found = "refused"
    assert found == vector["trusted_signatures"]
