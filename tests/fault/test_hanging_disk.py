"""A disk that hangs: one operation after another of a log's life is held, while callers call; nobody waits for it, nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from vigil.audit.v1.audit_pb2 import SystemPayload

from tests.fault.test_failing_disk import FailingDisk, fast, opened
from tests.harness.product import ROOT
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.disk import Disk
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.notes import Verifier
from vigil_sidecar.audit.recorder import Recorder
from vigil_sidecar.audit.verify import read_records, verify_folder
from vigil_sidecar.errors import AuditError
from vigil_sidecar.server.payloads import system_payload

__all__ = ["fast"]

LIMIT_S = 0.03
END_S = 20.0
"""When a wait is called endless: far above every limit."""


class HeldDisk(FailingDisk):
    """The real file system, but its operation number ``at`` does not return before ``free``."""

    def __init__(self, at: int) -> None:
        super().__init__(at, "held")
        self.held, self.free = threading.Event(), threading.Event()

    def _next(self, path: str = "") -> bool:
        self.count += 1
        if self.count == self._at:
            self.held.set()
            assert self.free.wait(4 * END_S)
        return False


class Life:
    """A log's life with callers; what each caller was told, by the trace of its record."""

    def __init__(self, folder: Path, disk: HeldDisk, policy: str) -> None:
        self.disk, self.policy, self.told = disk, policy, dict[bytes, str]()
        self._pool = ThreadPoolExecutor(12)
        start = self._pool.submit(opened, folder, disk)
        if not start.done() and self._until(lambda: start.done() or disk.held.is_set()) and not start.done():
            disk.free.set()  # nobody is served yet: a supervisor limits the start
        writer = start.result(END_S)
        assert writer.sealer is not None
        self.log = Recorder(writer, policy, LIMIT_S, 1 << 20, system_payload)
        for turn in range(36):
            self._step(self._caller(turn), True)
            if turn % 8 == 5:
                self._step(lambda: self._quietly(writer.sealer.seal), False)
                self._step(writer.sealer.prune, False)
            if turn == 20:
                self._step(lambda: self._quietly(writer.sealer.rotate), False)
        end = self._pool.submit(self.log.close)
        if self._until(lambda: end.done() or (disk.held.is_set() and not disk.free.is_set())) and not end.done():
            disk.free.set()
        end.result(END_S)
        self._pool.shutdown()

    def _until(self, true: Callable[[], bool]) -> bool:
        end = time.monotonic() + END_S
        while not true():
            assert time.monotonic() < end, f"endless, operation {self.disk.count}"
            time.sleep(0.0005)
        return True

    @staticmethod
    def _quietly(work: Callable[[], Any]) -> None:
        try:
            work()
        except (AuditError, OSError):
            pass

    def _caller(self, turn: int) -> Callable[[], None]:
        entries = [
            Entry(layout.KIND_ANSWER, events.ANSWER, trace_id=bytes([1, turn, i]) + threading.get_ident().to_bytes(8) + bytes(5))
            for i in range(1 + turn % 3)
        ]  # fmt: skip

        def call() -> None:
            try:
                sequences = self.log.append(entries)
            except AuditError:
                self.told.update({e.trace_id: "refused" for e in entries})
            else:
                self.told.update({e.trace_id: "recorded" if s else "unlogged" for e, s in zip(entries, sequences, strict=True)})

        return call

    def _step(self, work: Callable[[], Any], is_call: bool) -> None:
        """Do one thing; if the disk holds it, or what runs beside it, let others call meanwhile."""
        one = self._pool.submit(work)
        self._until(lambda: one.done() or (self.disk.held.is_set() and not self.disk.free.is_set()))
        if self.disk.held.is_set() and not self.disk.free.is_set():
            waiting: list[Future[None]] = [one] if is_call and self.policy != "refuse" else []
            waiting += [self._pool.submit(self._caller(100 + i)) for i in range(3)]
            # With refuse, one caller may be in the disk's hands: its carrier looks at `hung` and ends the call.
            self._until(lambda: all(f.done() for f in waiting) or (self.policy == "refuse" and bool(self.log.hung)))
            self._until(lambda: sum(not f.done() for f in waiting) <= (self.policy == "refuse"))
            assert not self.disk.free.is_set()
            self.disk.free.set()
            for f in waiting:
                f.result(END_S)
            self._until(lambda: not self.log.hung)
        one.result(END_S)


def judge(folder: Path, life: Life, at: int) -> None:
    """What holds, whichever operation hung."""
    opened(folder, Disk()).close()
    report = verify_folder(folder / "log", [Verifier((folder / "keys" / "audit-sidecar.pub").read_text().split()[0])])
    assert report.exit_code == 0, (at, report)
    records = list(read_records(folder / "log"))
    present = {r.header.trace_id: r.header.sequence for r in records}
    stated, ranges = 0, list[tuple[int, int]]()
    for r in records:
        if r.header.event_id == events.UNLOGGED:
            stated += r.header.batch_size
        if r.header.event_id == events.UNDELIVERED:
            said = SystemPayload.FromString(r.payload).fields["sequences"]
            ranges += [(int(a), int(b)) for a, b in (x.split("-") for x in said.split(","))]
    kept = [t for t, word in life.told.items() if word == "recorded"]
    lost = [t for t in kept if t not in present]
    assert len(lost) <= report.pruned and lost == kept[: len(lost)], (at, lost)
    if report.pruned == 0 or not life.log.unlogged_total:
        assert stated == life.log.unlogged_total, (at, stated, life.log.unlogged_total)
    for trace, word in life.told.items():
        if trace in present and word == "refused":
            assert any(a <= present[trace] <= b for a, b in ranges), (at, present[trace], ranges)
    unlogged = [t for t, word in life.told.items() if word != "recorded"]
    standing = [t for t in unlogged if t in present and life.told[t] == "unlogged"]
    late = len(unlogged) - life.log.unlogged_total  # their records stand after all: where an early one was pruned, out of sight
    assert len(standing) <= late <= len(standing) + (3 if report.pruned else 0), (at, late, len(standing))


@pytest.mark.parametrize("policy", ["refuse", "continue"])
def test_each_operation_hangs_once(fast: Path, policy: str) -> None:
    """Whichever operation hangs: callers hear something meanwhile, the account is complete, the log verifies with its first key."""
    disk = HeldDisk(0)
    life = Life(fast / "0", disk, policy)
    judge(fast / "0", life, 0)
    assert set(life.told.values()) == {"recorded"}
    spared = 0
    for at in range(1, disk.count + 1):
        held = HeldDisk(at)
        life = Life(fast / str(at), held, policy)
        assert held.held.is_set(), at
        judge(fast / str(at), life, at)
        spared += life.log.unlogged_total
        shutil.rmtree(fast / str(at))
    print(f"{disk.count} operations hung, policy {policy}; {spared} records left out and stated")
    assert spared > 50


def test_kept_records_before_a_rotation_are_proven_by_the_old_key(fast: Path) -> None:
    """No checkpoint between an event and a change of the key, the key record in the next segment, and only the first one pruned."""
    writer = opened(fast, Disk())
    assert writer.sealer is not None
    log = fast / "log"

    def fill(segments: int) -> None:
        while len(list(log.glob("segment-*"))) < segments:
            writer.append([Entry(layout.KIND_ANSWER, events.ANSWER)])

    fill(2)
    writer.sealer.seal()
    second = max(log.glob("segment-*"))
    writer.append([Entry(layout.KIND_MODEL, events.VERSION_SWITCHED)])
    fill(3)
    writer.sealer.rotate()
    while second.exists():
        writer.append([Entry(layout.KIND_ANSWER, events.ANSWER)])
        writer.sealer.prune()
        writer.sealer.seal()
    writer.close()
    report = verify_folder(fast / "log", [Verifier((fast / "keys" / "audit-sidecar.pub").read_text().split()[0])])
    assert report.exit_code == 0 and report.rotations == 1 and report.pruned > 0, report
    command = [str(ROOT / "bin" / "auditverify"), str(fast / "log"), "--key", str(fast / "keys" / "audit-sidecar.pub")]
    assert subprocess.run(command, capture_output=True).returncode == 0
