"""The log's writer: groups records into one ``pwrite``, chains them, forces them to disk."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import google_crc32c

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.clock import ClockReader, ClockStatus, ClockWatch
from vigil_sidecar.audit.disk import DISK, Disk
from vigil_sidecar.audit.entry import ZERO32, Entry
from vigil_sidecar.audit.guard import check_head, was_on_disk
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.notes import NOTE_BYTES_MAX, origin_of
from vigil_sidecar.audit.prune import Pruner, Retention
from vigil_sidecar.audit.sealer import Sealer
from vigil_sidecar.audit.segment import create_segment, find_end, last_key_note, list_segments, segment_name, write_all
from vigil_sidecar.audit.tree import CompactRange
from vigil_sidecar.errors import AuditClosed, AuditError

__all__ = ["AuditWriter"]

_PACK = struct.Struct(layout.RECORD_FORMAT[:-1]).pack
"""Packs a header but for its last field, the CRC-32C over what is packed here and the payload."""
_CRC = struct.Struct("<I").pack
_FORCED = frozenset({layout.KIND_MODEL, layout.KIND_STATE, layout.KIND_SYSTEM, layout.KIND_KEY, layout.KIND_PRUNE})
_PLACE_S = 0.4
_PAYLOAD_BYTES_MAX = layout.RECORD_BYTES_MAX - layout.HEADER_BYTES


class AuditWriter:
    """One writer of one log folder. Every method may be called from any thread.

    ``append`` returns after ``write`` has returned (and, with durability
    ``power``, after ``fdatasync``). When writing fails, nothing advances: the
    next append tries the same place again.
    """

    def __init__(
        self,
        folder: Path,
        log_name: str,
        *,
        durability: str = "interval",
        sync_interval_ms: int = 100,
        segment_bytes: int = 16 << 20,
        keys: KeyFile | None = None,
        checkpoint_records: int = 4096,
        checkpoint_interval_s: float = 10.0,
        retention: Retention | None = None,
        hash_key: bytes = b"",
        time_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], ClockStatus] | None = None,
        disk: Disk = DISK,
        report: Callable[[str], None] = lambda text: None,
        describe: Callable[[str, dict[str, str]], bytes] = lambda text, fields: text.encode(),
    ) -> None:
        """Open or create the log; after a crash its end is found and a torn tail cut.

        With ``keys`` checkpoints are signed; a log without them can only be found intact,
        and is never pruned. Without ``retention`` nothing is pruned either.
        With ``hash_key`` the hashes of what callers sent and got are HMACs.
        ``report`` hears why a checkpoint could not be made.

        Raises:
            AuditError: the folder cannot be used, or another writer has it.
        """
        self.log_name, self.boot_id, self.enabled = log_name, os.urandom(16), True
        self.position_prefix = f"{log_name}/{self.boot_id.hex()}/"
        self._disk = disk
        self._folder, self._durability, self._segment_bytes = folder, durability, segment_bytes
        self._describe, self._clock, self._watch = describe, clock or ClockReader().status, ClockWatch()
        self._hash_key, self._time_ns, self._now = hash_key, time_ns, (0, 0)
        self.lock = threading.RLock()
        """Whoever holds it, appends alone."""
        self._sync_lock = threading.Lock()
        self._dirty = threading.Event()
        self._closed = self._closing = False
        self.records_total = 0
        self.lock_wait_s = threading.TIMEOUT_MAX
        """How long an append waits for the one before; more is an ``AuditError``."""
        self._began_s = self._sync_began_s = self._placed_s = 0.0
        self.failure: str | None = None
        self._sync_failed = False
        self._tree, self._leaves = CompactRange(), list[bytes]()
        self._checkpoint_records = checkpoint_records
        self._anchored, self._late = b"", list[Entry]()
        self.sealer: Sealer | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._open(keys)
            except BaseException:
                os.close(self._lock_fd)  # whoever tries again must not find this one in the way
                raise
        except BlockingIOError:
            raise AuditError(f"audit log {folder}: another process writes it; give --data-dir another folder") from None
        except OSError as error:
            raise AuditError(f"audit log {folder}: {error.strerror}; give --data-dir a folder that can be written") from None
        if keys is not None:
            origin = origin_of(log_name, self.instance)
            pruner = Pruner(folder, retention, self, origin, disk) if retention is not None else None
            self.sealer = Sealer(self, keys, origin, checkpoint_interval_s, disk.fdatasync, report, pruner)
        if durability == "interval":
            self._syncer = threading.Thread(target=self._sync_loop, args=(sync_interval_ms / 1000,), name="audit-sync", daemon=True)
            self._syncer.start()

    def _open(self, keys: KeyFile | None) -> None:
        segments = list_segments(self._folder)
        if not segments:
            self.instance, self._sequence, self._leaf = os.urandom(16), 1, ZERO32
            self._new_segment()
            self._system(events.LOG_OPENED, "new log", {})
            return
        end = find_end(segments[-1])
        if end is None:
            raise AuditError(f"audit log {segments[-1].name}: no valid segment header; move the folder away to start a new log")
        if end.followers and was_on_disk(end, keys, self.log_name):
            raise AuditError(
                f"audit log {end.segment.name}: record {end.next_sequence} (byte {end.offset}) is damaged, although it was on disk "
                "before later ones; keep the folder as evidence, and move it away to start a new log"
            )
        if keys is not None:
            origin = origin_of(self.log_name, end.instance)
            keys.settle(origin, lambda: last_key_note(self._folder))
            check_head(self._folder, end, keys, origin)
        self.instance, self._sequence, self._leaf, self._tree = end.instance, end.next_sequence, end.leaf, end.tree
        self.path = end.segment
        self._fd = self._disk.open(end.segment)
        self._offset, self._size = end.offset, os.fstat(self._fd).st_size
        if end.torn_bytes:
            write_all(self._disk, self._fd, bytes(end.torn_bytes), end.offset)
        # SR-043
        if end.torn_bytes or end.last_event != events.LOG_CLOSED:
            found = {
                "segment": end.segment.name, "torn_bytes": str(end.torn_bytes), "last_sequence": str(end.next_sequence - 1),
                "records_dropped": str(end.followers),
            }  # fmt: skip
            self._system(events.LOG_RECOVERED, "the writer before did not close the log", found)
        self._system(events.LOG_OPENED, "log continued", {})

    def _new_segment(self) -> None:
        self._fd = create_segment(
            self._folder, self._segment_bytes, self.log_name, self.instance, self._fold(), self._leaf, time.time_ns(), self._disk
        )
        self.path = self._folder / segment_name(self._sequence)
        self._offset, self._size = layout.SEGMENT_HEADER_BYTES, self._segment_bytes

    def _fold(self) -> CompactRange:
        """The tree of all records written so far. The lock is held."""
        self._tree.extend(self._leaves)
        self._leaves.clear()
        return self._tree

    def head(self) -> tuple[int, bytes, int]:
        """Number of records, root hash, and a new descriptor of the file that ends them; raises ``AuditError``."""
        with self.lock:
            if self._closed:
                raise AuditClosed("the audit log is closed")
            tree = self._fold()
            return tree.size, tree.root(), os.dup(self._fd)

    def count(self) -> int:
        """Number of records written, over all runs."""
        return self._sequence - 1

    def anchor(self, note: bytes) -> None:
        """Put the other log's latest checkpoint into this one, once; raises ``AuditError``."""
        if note and note != self._anchored and len(note) <= NOTE_BYTES_MAX:
            self.append([Entry(layout.KIND_ANCHOR, events.ANCHORED, payload=note)])
            self._anchored = note  # after a failure the next heartbeat brings it again

    @property
    def checkpoint(self) -> bytes:
        """The latest signed checkpoint; empty before the first."""
        return self.sealer.latest if self.sealer is not None else b""

    @property
    def checkpoint_age_s(self) -> float:
        """Seconds since the latest checkpoint, or since the start."""
        return time.monotonic() - self.sealer.latest_s if self.sealer is not None else 0.0

    def _system(self, event: int, text: str, fields: dict[str, str]) -> None:
        self.append([Entry(layout.KIND_SYSTEM, event, payload=self._describe(text, fields))])

    def position(self, sequence: int) -> str:
        """LOG/BOOT/SEQ of a record of this run."""
        return self.position_prefix + str(sequence)

    def append(self, entries: Sequence[Entry]) -> range:
        """Write the entries as one group; returns their sequences.

        Raises:
            AuditError: the log could not be written; the caller must refuse.
        """
        if not self.enabled:
            return range(len(entries))
        if not self.lock.acquire(timeout=self.lock_wait_s):
            raise AuditError("the audit log cannot be written: the disk holds the write before")
        try:
            if self._closed or (self._closing and entries[-1].kind != layout.KIND_CHECKPOINT):
                raise AuditClosed("the audit log is closed")
            self._closing = self._closing or entries[0].event_id == events.LOG_CLOSED
            sequences, forced = self._append_and_force(entries)
        finally:
            self._began_s = 0.0
            self.lock.release()
        if not forced:
            self._dirty.set()
        if self.sealer is not None and (len(self._leaves) >= self._checkpoint_records or self._sealed_at_once(entries)):
            self.sealer.wake()
        return sequences

    def _append_and_force(self, entries: Sequence[Entry]) -> tuple[range, bool]:
        """Write entries and, where that is promised, force them to disk. The lock is held."""
        before = self._sequence
        try:
            self._check_place()
            if self._sync_failed:
                self._force_again()
            happened, self._late = [*self._late, *self._clock_events()], list[Entry]()
            if entries[-1].kind == layout.KIND_KEY:  # nothing comes between it and the checkpoint before (Sealer.rotate)
                happened, self._late = [], happened
            before += len(happened)
            sequences = self._append([*happened, *entries])[-len(entries) :]
        except OSError as error:
            self.failure = error.strerror
            standing = range(before, max(before, self._sequence))
            raise AuditError(f"the audit log cannot be written: {error.strerror}", standing=standing) from error
        self.failure = None
        forced = self._durability == "power" or (self._durability == "interval" and self._promised(entries))
        if forced:
            try:
                self._disk.fdatasync(self._fd)
            except OSError as error:
                self.failure, self._sync_failed = error.strerror, True
                raise AuditError(f"the audit log cannot be forced to disk: {error.strerror}", standing=sequences) from error
        return sequences, forced

    @staticmethod
    def _promised(entries: Sequence[Entry]) -> bool:
        """Whether an entry is of a kind that is forced to disk at once (docs/audit-format.md)."""
        return any(e.kind in _FORCED for e in entries)

    @staticmethod
    def _sealed_at_once(entries: Sequence[Entry]) -> bool:
        return any(e.kind in (layout.KIND_STATE, layout.KIND_KEY) for e in entries)

    def _check_place(self) -> None:
        """At most every 0.4 s: the file that is written must still be the one that readers find."""
        self._began_s = now_s = time.monotonic()
        if now_s - self._placed_s < _PLACE_S:
            return
        try:
            found = os.stat(self.path)
        except OSError:
            found = None
        own = os.fstat(self._fd)
        if found is None or (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            raise OSError(5, "its file was deleted or replaced; restart with a new data folder, or put the folder back")
        self._placed_s = now_s

    def held_s(self) -> float:
        """How long the disk has held the write, or the forcing, that is under way; 0 when there is none."""
        began = [at for at in (self._began_s, self._sync_began_s) if at]
        return time.monotonic() - min(began) if began else 0.0

    def look(self) -> None:
        """Notice a file that was deleted or replaced, also while nothing is written."""
        if not self._closed and self.lock.acquire(timeout=self.lock_wait_s):
            try:
                if not self._closed:
                    self._check_place()
            except OSError as error:
                self.failure = error.strerror
            finally:
                self._began_s = 0.0
                self.lock.release()

    def _clock_events(self) -> list[Entry]:
        """Records of what happened to the clock since the last append; they come before what is dated by it."""
        clock = self._clock()
        self._now = time_ns, monotonic_ns = self._time_ns(), time.monotonic_ns()
        step_ns, words = self._watch.look(time_ns, monotonic_ns, clock)
        found = []
        # SR-025
        if step_ns:
            text = self._describe("the wall clock was stepped", {"step_ns": str(step_ns)})
            found.append(Entry(layout.KIND_SYSTEM, events.CLOCK_STEPPED, payload=text))
        if words:
            found.append(Entry(layout.KIND_SYSTEM, events.CLOCK_STATUS_CHANGED, payload=self._describe(words, {})))
        return found

    def _append(self, entries: Sequence[Entry]) -> range:
        (time_ns, monotonic_ns), clock = self._now, self._clock()
        flags = layout.FLAG_KEYED if self._hash_key else 0
        sequence, leaf, size = self._sequence, self._leaf, 0
        parts: list[bytes] = []
        leaves: list[bytes] = []
        sha256, crc_value = hashlib.sha256, google_crc32c.value
        for e in entries:
            payload = e.payload[:_PAYLOAD_BYTES_MAX]
            if flags:
                e = e.with_keyed_hashes(self._hash_key)
            length = layout.HEADER_BYTES + len(payload)
            if self._offset + size + length > self._size:
                self._commit(b"".join(parts), sequence, leaf, leaves)
                parts, leaves, size = [], [], 0
                self._rotate()  # on failure the records before are committed; callers hear of none of them
            head = _PACK(
                layout.MAGIC, layout.VERSION, length, e.kind, flags, e.event_id, self.instance, self.boot_id,
                sequence, time_ns, monotonic_ns, clock.uncertainty_ns, clock.source, clock.status,
                e.safety_state, e.quality, e.status_code, e.trace_id, e.span_id, e.latency_ns,
                e.batch_size, e.batch_row, e.request_id_hash, e.tenant_hash, e.model_digest,
                e.model_version, e.input_hash, e.output_hash, leaf, 0,
            )  # fmt: skip
            record = head + _CRC(crc_value(head + payload)) + payload
            leaf = sha256(b"\0" + record).digest()
            parts.append(record)
            leaves.append(leaf)
            size += length
            sequence += 1
        first = sequence - len(entries)
        self._commit(b"".join(parts), sequence, leaf, leaves)
        return range(first, sequence)

    def _commit(self, data: bytes, next_sequence: int, leaf: bytes, leaves: list[bytes]) -> None:
        write_all(self._disk, self._fd, data, self._offset)
        self.records_total += next_sequence - self._sequence
        self._offset += len(data)
        self._sequence, self._leaf = next_sequence, leaf
        self._leaves += leaves

    def not_forced(self, error: OSError) -> None:
        """Note that data could not be forced to disk: the next append must bring that about before it promises anything."""
        self.failure, self._sync_failed = error.strerror, True

    def _force_again(self) -> None:
        """Write the segment's bytes once more and force them. The lock is held.

        After a failed force the kernel may call pages clean that never reached the
        disk, so that forcing alone would succeed and promise nothing.
        """
        write_all(self._disk, self._fd, os.pread(self._fd, self._offset, 0), 0)
        self._disk.fdatasync(self._fd)
        self._sync_failed = False

    def _rotate(self) -> None:
        with self._sync_lock:
            try:
                self._disk.fdatasync(self._fd)
            except OSError as error:
                self.not_forced(error)
                raise
            old = self._fd
            self._new_segment()
            os.close(old)
        if self.sealer is not None:
            self.sealer.rotated()

    def _sync_loop(self, interval_s: float) -> None:
        while not self._closed:
            self._dirty.wait()
            self._dirty.clear()
            with self._sync_lock:
                if self._closed:
                    return
                self._sync_began_s = time.monotonic()
                try:
                    self._disk.fdatasync(self._fd)
                except OSError as error:
                    self.not_forced(error)
                finally:
                    self._sync_began_s = 0.0
            time.sleep(interval_s)

    def close(self) -> None:
        """Write the closing record and the last checkpoint, and force everything to disk."""
        if not self._closed:
            self._system(events.LOG_CLOSED, "closed", {})
            if self.sealer is not None:
                self.sealer.stop()
            with self.lock, self._sync_lock:
                self._closed = True
                self._dirty.set()
                self._disk.fdatasync(self._fd)
                os.close(self._fd)
                os.close(self._lock_fd)
