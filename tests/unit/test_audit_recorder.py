"""What callers get while the log fails or hangs, and what the log says of it afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vigil.audit.v1.audit_pb2 import SystemPayload

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import Disk
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.reader import Record, read_records
from vigil_sidecar.audit.recorder import AGGREGATED, UNLOGGED, Recorder
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.errors import AuditError
from vigil_sidecar.server.payloads import system_payload

LIMIT_S = 0.2


class HangingDisk(Disk):
    """Holds writes while it is told to, or fails them."""

    def __init__(self) -> None:
        self.free, self.failing = threading.Event(), False
        self.free.set()

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.free.wait(30)
        if self.failing:
            raise OSError(28, "No space left on device")
        return super().pwrite(fd, data, offset)


@pytest.fixture
def disk() -> Iterator[HangingDisk]:
    found = HangingDisk()
    yield found
    found.free.set()


def recorder(folder: Path, disk: Disk, policy: str, rate: int = 1000) -> Recorder:
    return Recorder(
        AuditWriter(folder, "sidecar", durability="process", disk=disk, describe=system_payload), policy, LIMIT_S, rate, system_payload
    )


def answer() -> Entry:
    return Entry(layout.KIND_ANSWER, events.ANSWER)


def refusal() -> Entry:
    return Entry(layout.KIND_REFUSAL, events.LIMIT_HIT, status_code=8)


def said(folder: Path, event: int) -> list[tuple[Record, dict[str, str]]]:
    found = [r for r in read_records(folder) if r.header.event_id == event]
    return [(r, dict(SystemPayload.FromString(r.payload).fields)) for r in found]


def until(true: object, timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


@pytest.mark.parametrize("policy", ["refuse", "degrade", "continue"])
def test_what_a_full_disk_left_out_is_stated(tmp_path: Path, disk: HangingDisk, policy: str) -> None:
    log = recorder(tmp_path, disk, policy)
    assert log.append([answer()])[0] > 0
    disk.failing = True
    for _ in range(3):
        if policy == "refuse":
            with pytest.raises(AuditError, match="No space left"):
                log.append([answer()])
        else:
            assert list(log.append([answer(), refusal()])) == [UNLOGGED, UNLOGGED]
    assert "No space left" in (log.failure or "")
    with pytest.raises(AuditError):
        log.append_or_fail(Entry(layout.KIND_MODEL, events.VERSION_SWITCHED))
    disk.failing = False
    assert log.append([answer()])[0] > 0 and log.failure is None
    log.close()
    [(record, fields)] = said(tmp_path, events.UNLOGGED)
    answers, refusals = ("0", "3") if policy == "refuse" else ("3", "3")
    assert (fields["answers"], fields["refusals"], fields["events"], fields["policy"]) == (answers, refusals, "1", policy)
    assert record.header.batch_size == log.unlogged_total == int(answers) + int(refusals) + 1
    assert int(fields["first_ns"]) + record.header.latency_ns == int(fields["last_ns"])
    kinds = [r.header.event_id for r in read_records(tmp_path)]
    assert kinds == [events.LOG_OPENED, events.ANSWER, events.UNLOGGED, events.ANSWER, events.LOG_CLOSED]


@pytest.mark.parametrize("policy", ["refuse", "degrade", "continue"])
def test_no_caller_waits_for_a_disk_that_hangs(tmp_path: Path, disk: HangingDisk, policy: str) -> None:
    log = recorder(tmp_path, disk, policy)
    disk.free.clear()
    got: list[object] = []

    def call() -> None:
        try:
            got.append(log.append([answer()])[0])
        except AuditError as error:
            got.append(error)

    first = threading.Thread(target=call)
    first.start()
    until(lambda: log.hung)
    for _ in range(2):  # nobody else waits: the first is in the disk's hands
        other = threading.Thread(target=call)
        other.start()
        other.join(10 * LIMIT_S)
        assert not other.is_alive()
    if policy != "refuse":
        first.join(10 * LIMIT_S)
        assert got == [UNLOGGED] * 3
    else:
        assert all(isinstance(g, AuditError) and "hangs" in str(g) for g in got) and len(got) == 2
    disk.free.set()
    first.join(5)
    until(lambda: log.failure is None)
    last = log.append([answer()])[0]
    log.close()
    records = list(read_records(tmp_path))
    standing = [r for r in records if r.header.event_id == events.ANSWER]
    assert len(standing) == 2 and standing[-1].header.sequence == last
    [(record, fields)] = said(tmp_path, events.UNLOGGED)
    superseded = said(tmp_path, events.UNDELIVERED)
    if policy == "refuse":  # the first stands, but its caller was told that the log failed
        assert isinstance(got[-1], AuditError) and (record.header.batch_size, fields["refusals"]) == (3, "3")
        assert superseded[0][1]["sequences"] == f"{standing[0].header.sequence}-{standing[0].header.sequence}"
    else:  # the first has its record after all
        assert not superseded and (record.header.batch_size, fields["answers"]) == (2, "2")


def test_a_flood_of_refusals_becomes_counts(tmp_path: Path, disk: HangingDisk) -> None:
    log = recorder(tmp_path, disk, "refuse", rate=50)
    got = [s for _ in range(40) for s in log.append([refusal(), answer(), refusal()])]
    log.close()
    single = [r for r in read_records(tmp_path) if r.header.kind == layout.KIND_REFUSAL]
    counts = said(tmp_path, events.REFUSALS_AGGREGATED)
    assert got.count(AGGREGATED) == sum(r.header.batch_size for r, _ in counts) > 0
    assert len(single) + got.count(AGGREGATED) == 80 and len(single) >= 50
    assert {(r.header.status_code, f["event"]) for r, f in counts} == {(8, f"DIA-{events.LIMIT_HIT}")}
    assert sum(r.header.event_id == events.ANSWER for r in read_records(tmp_path)) == 40


def test_a_deleted_file_is_noticed_within_a_second(tmp_path: Path, disk: HangingDisk) -> None:
    log = recorder(tmp_path, disk, "refuse")
    [segment] = tmp_path.glob("segment-*")
    segment.rename(tmp_path / "elsewhere")
    until(lambda: log.failure)
    assert "deleted or replaced" in str(log.failure)
    (tmp_path / "elsewhere").rename(segment)
    until(lambda: log.append([answer()]) if log.failure is None else log.try_again(answer()))
    log.close()
