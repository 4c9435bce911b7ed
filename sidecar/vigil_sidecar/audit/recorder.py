"""What stands between callers and the log: no caller waits for a disk beyond a limit, and nothing is left out in silence.

Whatever got its reply without a record is counted, and the first record that can
be written says how many and between which times (event ``unlogged``). Records that
stand although their callers were told that the log failed are named as superseded
(``undelivered``). A flood of refusals becomes counts (``refusals_aggregated``).
"""

from __future__ import annotations

import _thread
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.errors import AuditClosed, AuditError

__all__ = ["AGGREGATED", "POLICIES", "UNLOGGED", "Recorder"]

POLICIES = ("refuse", "degrade", "continue")
UNLOGGED, AGGREGATED = 0, -1
"""In place of a sequence: the entry has no record, or is part of a count."""
_WATCH_S = 0.05
_LOOK_S = 0.5
_FLUSH_S = 1.0
_RANGES_MAX = 32
"""Ranges in one record of superseded ones; more get further records."""
_CLOSE_S = 5.0


@dataclass(slots=True)
class _Count:
    """How often something happened, and between which times (UTC nanoseconds)."""

    count: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def add(self, count: int = 1) -> None:
        now_ns = time.time_ns()
        self.first_ns, self.last_ns, self.count = self.first_ns or now_ns, now_ns, self.count + count

    def merge(self, other: _Count) -> None:
        """Put an earlier count in front of this one."""
        if other.count:
            self.first_ns, self.last_ns = other.first_ns, max(self.last_ns, other.last_ns)
            self.count += other.count


@dataclass(slots=True)
class _Debt:
    """What the log has still to be told."""

    answers: int = 0
    refusals: int = 0
    events: int = 0
    span: _Count = field(default_factory=_Count)
    cause: str = ""
    standing: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Job:
    """Entries on their way through the writing thread; ``state`` is waiting, taken, done or abandoned."""

    entries: Sequence[Entry]
    ready: _thread.LockType
    state: str = "waiting"
    sequences: range = range(0)
    error: AuditError | None = None


class Recorder:
    """Appends to one log for callers. Every method may be called from any thread.

    With policy ``refuse`` the caller writes by itself, and one whose write hangs
    stays in it: whoever carries its calls looks at ``hung`` and ends them. With
    ``degrade`` and ``continue`` a thread writes, and callers wait for it no longer
    than the limit.
    """

    def __init__(
        self, log: AuditWriter, policy: str, limit_s: float, refusals_per_s: int, describe: Callable[[str, dict[str, str]], bytes]
    ) -> None:
        """``limit_s`` is how long a disk may hold one write; ``describe`` encodes the payload of the log's own events."""
        self.log, self.policy, self.enabled = log, policy, True
        self._limit_s, self._rate, self._describe = limit_s, refusals_per_s, describe
        log.lock_wait_s = limit_s
        self.position_prefix = log.position_prefix
        self.unlogged_total = 0
        self._hang = self.end_error = ""
        self._lock = threading.Lock()
        self._debt = _Debt()
        self._tokens, self._refilled_s = float(refusals_per_s), time.monotonic()
        self._aggregates: dict[tuple[int, int], _Count] = {}
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._stopping = threading.Event()
        threading.Thread(target=self._watch, name="audit-watch", daemon=True).start()
        if policy != "refuse":
            threading.Thread(target=self._work, name="audit-write", daemon=True).start()

    @property
    def failure(self) -> str | None:
        """Why nothing can be recorded at present; None when all is well."""
        return self._hang or self.log.failure

    @property
    def hung(self) -> str:
        """Why callers must not wait for the disk; empty when they may."""
        return self._hang

    def position(self, sequence: int) -> str:
        """LOG/BOOT/SEQ of a record of this run; ``unlogged`` or ``aggregated`` in place of SEQ for what has none."""
        if sequence > 0:
            return self.position_prefix + str(sequence)
        return self.position_prefix + ("unlogged" if sequence == UNLOGGED else "aggregated")

    def append(self, entries: Sequence[Entry]) -> Sequence[int]:
        """Record entries as one group; returns their sequences, ``UNLOGGED`` or ``AGGREGATED``.

        Raises:
            AuditError: with policy ``refuse``, the log cannot be written; no answer may leave.
        """
        if not self.enabled:
            return range(len(entries))
        for e in entries:
            if e.kind == layout.KIND_REFUSAL and not self._take_token():
                return self._append_some(entries)
        return self._append(entries)

    def append_or_fail(self, entry: Entry) -> int:
        """Record what must not happen without its record; raises ``AuditError`` whatever the policy."""
        sequence = self.append([entry])[0]
        if self.enabled and sequence == UNLOGGED:
            raise AuditError(f"the audit log cannot be written: {self.failure}")
        return sequence

    def _append(self, entries: Sequence[Entry]) -> Sequence[int]:
        if self._hang:
            return self._without(entries, AuditError(f"the audit log cannot be written: {self._hang}"))
        try:
            return self._write(entries) if self.policy == "refuse" else self._hand_over(entries)
        except AuditClosed:
            raise
        except AuditError as error:
            return self._without(entries, error)

    # Writing.

    def _write(self, entries: Sequence[Entry]) -> Sequence[int]:
        """Append, before it what the log has still to be told. Any number of threads."""
        told, debt = self._told()
        try:
            sequences = self.log.append([*told, *entries] if told else entries)
        except AuditError as error:
            if len(error.standing) < len(told):
                self._owe(debt)
            if mine := error.standing[len(told) :]:
                self._stands(mine)
            raise
        sequences = sequences[len(told) :]
        if self._hang and self.policy == "refuse":  # meanwhile the callers were told that the log failed
            self._stands(sequences)
            raise AuditError(f"the audit log cannot be written: {self._hang}", standing=sequences)
        return sequences

    def _hand_over(self, entries: Sequence[Entry]) -> Sequence[int]:
        job = _Job(entries, _thread.allocate_lock())
        job.ready.acquire()
        self._jobs.put(job)
        # SR-028
        if not job.ready.acquire(timeout=self._limit_s):
            with self._lock:
                abandoned = job.state != "done"
                if abandoned:
                    job.state = "abandoned" if job.state == "taken" else "dropped"
            if abandoned:
                self._hang = self._hang or self._hang_text(self._limit_s)
                raise AuditError(f"the audit log cannot be written: {self._hang}")
        if job.error is not None:
            raise job.error
        return job.sequences

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                if job.state == "dropped":
                    continue
                job.state = "taken"
            try:
                sequences = self._write(job.entries)
                job.sequences = range(sequences[0], sequences[0] + len(sequences))
            except AuditError as error:
                job.error = error
            with self._lock:
                late, job.state = job.state == "abandoned", "done"
            if late and job.error is None:  # its record stands after all
                self._uncount(job.entries)
            job.ready.release()

    # What is owed.

    def _without(self, entries: Sequence[Entry], error: AuditError) -> Sequence[int]:
        """Count entries that get no record; with policy ``refuse`` their calls are refused."""
        with self._lock:
            debt = self._debt
            for e in entries:
                if e.kind == layout.KIND_ANSWER and self.policy != "refuse":
                    debt.answers += 1
                elif e.kind in (layout.KIND_ANSWER, layout.KIND_REFUSAL):
                    # SR-044
                    debt.refusals += 1
                else:
                    debt.events += 1
            debt.span.add(len(entries))
            debt.cause = str(error)
            self.unlogged_total += len(entries)
        if self.policy == "refuse":
            raise error
        return [UNLOGGED] * len(entries)

    def _uncount(self, entries: Sequence[Entry]) -> None:
        with self._lock:
            for e in entries:
                if e.kind == layout.KIND_ANSWER:
                    self._debt.answers -= 1
                elif e.kind == layout.KIND_REFUSAL:
                    self._debt.refusals -= 1
                else:
                    self._debt.events -= 1
            self._debt.span.count -= len(entries)
            self.unlogged_total -= len(entries)

    def _stands(self, sequences: Sequence[int]) -> None:
        with self._lock:
            self._debt.standing.append((sequences[0], sequences[-1]))

    def _told(self) -> tuple[list[Entry], _Debt | None]:
        """Records of what is owed, and what they state."""
        if not self._debt.span.count and not self._debt.standing:
            return [], None
        with self._lock:
            debt, self._debt = self._debt, _Debt()
        told = []
        if debt.span.count:
            fields = {
                "answers": str(debt.answers), "refusals": str(debt.refusals), "events": str(debt.events),
                "first_ns": str(debt.span.first_ns), "last_ns": str(debt.span.last_ns), "policy": self.policy,
            }  # fmt: skip
            told.append(self._counted(events.UNLOGGED, debt.span, debt.cause, fields, 0))
        for at in range(0, len(debt.standing), _RANGES_MAX):
            ranges = debt.standing[at : at + _RANGES_MAX]
            fields = {"sequences": ",".join(f"{a}-{b}" for a, b in ranges)}
            text = "the callers of these records were told that the log failed (UNAVAILABLE)"
            entry = Entry(layout.KIND_SYSTEM, events.UNDELIVERED, status_code=14, payload=self._describe(text, fields))
            entry.batch_size = sum(b - a + 1 for a, b in ranges)
            told.append(entry)
        return told, debt

    def _counted(self, event: int, count: _Count, text: str, fields: dict[str, str], code: int) -> Entry:
        return Entry(
            layout.KIND_SYSTEM, event, status_code=code, latency_ns=max(0, count.last_ns - count.first_ns),
            batch_size=min(count.count, 0xFFFFFFFF), payload=self._describe(text, fields),
        )  # fmt: skip

    def _owe(self, debt: _Debt | None) -> None:
        """Owe again what could not be told."""
        if debt is None:
            return
        with self._lock:
            now = self._debt
            now.answers, now.refusals, now.events = now.answers + debt.answers, now.refusals + debt.refusals, now.events + debt.events
            now.span.merge(debt.span)
            now.cause = now.cause or debt.cause
            now.standing[:0] = debt.standing

    # Floods.

    def _take_token(self) -> bool:
        with self._lock:
            if self._tokens < 1:
                now_s = time.monotonic()
                self._tokens = min(self._rate, self._tokens + (now_s - self._refilled_s) * self._rate)
                self._refilled_s = now_s
                if self._tokens < 1:
                    return False
            self._tokens -= 1
            return True

    def _append_some(self, entries: Sequence[Entry]) -> Sequence[int]:
        """Append all but the refusals, which are counted."""
        kept = [e for e in entries if e.kind != layout.KIND_REFUSAL]
        sequences = deque(self._append(kept) if kept else ())
        with self._lock:
            for e in entries:
                if e.kind == layout.KIND_REFUSAL:
                    self._aggregates.setdefault((e.event_id, e.status_code), _Count()).add()
        return [AGGREGATED if e.kind == layout.KIND_REFUSAL else sequences.popleft() for e in entries]

    def _flush(self) -> None:
        with self._lock:
            found, self._aggregates = self._aggregates, {}
        entries = []
        for (event, code), count in found.items():
            fields = {"event": f"DIA-{event}", "first_ns": str(count.first_ns), "last_ns": str(count.last_ns)}
            entries.append(self._counted(events.REFUSALS_AGGREGATED, count, events.NAMES.get(event, ""), fields, code))
        if not entries:
            return
        try:
            if self._hang:
                raise AuditError(self._hang)
            self._write(entries)
        except AuditError:
            with self._lock:
                for key, count in found.items():
                    self._aggregates.setdefault(key, _Count()).merge(count)

    # Watching.

    def _watch(self) -> None:
        """Notice a hanging write, and a file that was deleted or replaced; write counts of refusals."""
        threading.Thread(target=self._look, name="audit-look", daemon=True).start()
        while not self._stopping.wait(_WATCH_S):
            held_s = self.log.held_s()
            self._hang = self._hang_text(held_s) if held_s > self._limit_s else ""

    @staticmethod
    def _hang_text(held_s: float) -> str:
        return f"the disk hangs: it has held a write for {held_s:.1f} s (audit.write_timeout_ms)"

    def _look(self) -> None:
        flushed_s = 0.0
        while not self._stopping.wait(_LOOK_S):
            self.log.look()
            if self._aggregates and time.monotonic() - flushed_s >= _FLUSH_S:
                flushed_s = time.monotonic()
                self._flush()

    def try_again(self, entry: Entry) -> None:
        """Try to write an event while nothing else may be written; nothing happens when it fails."""
        try:
            if not self._hang:
                self._write([entry])
        except AuditError:
            pass

    def close(self) -> None:
        """Write what is owed, and close the log; a disk that hangs is waited for five seconds."""
        self._stopping.set()
        self._jobs.put(None)

        last = threading.Thread(target=self._end, name="audit-close", daemon=True)
        last.start()
        last.join(_CLOSE_S)

    def _end(self) -> None:
        try:
            self._flush()
            told, _ = self._told()
            if told:
                self.log.append(told)
            self.log.close()
        except (AuditError, OSError) as error:
            self.end_error = str(error)
