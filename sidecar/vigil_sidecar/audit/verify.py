"""Verification of a log folder. Imports nothing of the writer; streams in bounded memory."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import stat
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import google_crc32c

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.notes import Checkpoint, NoteError, Verifier, open_note, origin_of, parse_checkpoint
from vigil_sidecar.audit.tree import CompactRange
from vigil_sidecar.audit.trust import Anchor, Forged, Seals

__all__ = ["Damage", "LogDamaged", "Record", "Report", "read_records", "verify_folder", "verify_folders"]

_RECORD = struct.Struct(layout.RECORD_FORMAT)
_SEGMENT = struct.Struct(layout.SEGMENT_FORMAT)
_CHUNK_BYTES = 1 << 20
EXIT_VERIFIED, EXIT_UNREADABLE, EXIT_UNSEALED, EXIT_FORGED, EXIT_NO_LOG, EXIT_NO_KEY = 0, 1, 3, 4, 5, 6


class Damage(NamedTuple):
    """Where a log stops being intact, and why."""

    file: str
    offset: int
    sequence: int
    reason: str


class Record(NamedTuple):
    """One record as read: place, header, payload and leaf hash."""

    file: str
    offset: int
    header: layout.RecordHeader
    payload: bytes
    leaf: bytes


@dataclass
class Report:
    """What a verification found.

    ``intact`` says that every record is whole and chained, which anybody who can
    write the folder can bring about. Only ``sealed`` records are covered by the
    signature of a trusted key; ``exit_code`` is the verdict (docs/audit-format.md).
    """

    folder: str
    intact: bool = False
    exit_code: int = EXIT_FORGED
    verdict: str = ""
    log: str = ""
    records: int = 0
    first_sequence: int = 0
    last_sequence: int = 0
    sealed: int = 0
    unsealed: int = 0
    unsealed_s: float = 0.0
    witnessed: int = 0
    unwitnessed_s: float = -1.0
    checkpoints: int = 0
    rotations: int = 0
    torn_bytes: int = 0
    boots: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    segments: int = 0
    head: str = ""
    root: str = ""
    damage: Damage | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        out = asdict(self)
        out["damage"] = self.damage._asdict() if self.damage else None
        return out


class LogDamaged(Exception):
    """The log stops being intact; ``damage`` says where. Records before it were given."""

    def __init__(self, file: str, offset: int, sequence: int, reason: str):
        super().__init__(f"record {sequence} ({file}, byte {offset}): {reason}")
        self.damage = Damage(file, offset, sequence, reason)


def _segment_header(file: BinaryIO, name: str, sequence: int) -> layout.SegmentHeader:
    data = file.read(layout.SEGMENT_HEADER_BYTES)
    if len(data) < layout.SEGMENT_HEADER_BYTES:
        raise LogDamaged(name, 0, sequence, "segment is shorter than its header")
    header = layout.SegmentHeader(*_SEGMENT.unpack_from(data))
    if header.magic.rstrip(b"\0") != layout.SEGMENT_MAGIC:
        raise LogDamaged(name, 0, sequence, "not a segment: wrong magic")
    if header.version != layout.SEGMENT_VERSION or header.record_version != layout.VERSION:
        raise LogDamaged(name, 8, sequence, f"unknown layout version {header.version}/{header.record_version}")
    if google_crc32c.value(data[: layout.SEGMENT_CRC_OFFSET]) != header.crc32c or any(data[_SEGMENT.size :]):
        raise LogDamaged(name, layout.SEGMENT_CRC_OFFSET, sequence, "segment header is damaged")
    return header


def _crc(head: bytes, payload: bytes) -> int:
    crc: int = google_crc32c.extend(google_crc32c.value(head), payload)
    return crc


def _check(head: bytes, payload: bytes, fields: layout.RecordHeader) -> str | None:
    if _crc(head[: layout.CRC_OFFSET], payload) != fields.crc32c:
        return "CRC-32C does not match: the record was changed"
    if fields.event_id not in NAMES:
        return f"event {fields.event_id} is not in the catalogue"
    if fields.kind not in layout.KIND_NAMES:
        return f"unknown kind {fields.kind}"
    return None


def _records(file: BinaryIO, name: str, header: layout.SegmentHeader, leaf: bytes) -> Iterator[Record]:
    at, sequence = layout.SEGMENT_HEADER_BYTES, header.first_sequence
    while True:
        head = file.read(layout.HEADER_BYTES)
        if not any(head):
            while rest := file.read(_CHUNK_BYTES):
                if any(rest):
                    raise LogDamaged(name, at, sequence, "bytes behind the last record")
            return
        if len(head) < layout.HEADER_BYTES:
            raise LogDamaged(name, at, sequence, "record is cut off")
        fields = layout.RecordHeader(*_RECORD.unpack(head))
        if fields.magic != layout.MAGIC or fields.version != layout.VERSION:
            raise LogDamaged(name, at, sequence, "no record here: wrong magic or version")
        if fields.length < layout.HEADER_BYTES:
            raise LogDamaged(name, at, sequence, f"length {fields.length} is shorter than a header")
        payload = file.read(fields.length - layout.HEADER_BYTES)
        if len(payload) < fields.length - layout.HEADER_BYTES:
            raise LogDamaged(name, at, sequence, "record is cut off")
        reason = _check(head, payload, fields)
        if reason is None and fields.sequence != sequence:
            reason = f"sequence is {fields.sequence}, expected {sequence}"
        if reason is None and fields.instance != header.instance:
            reason = "record of another log"
        if reason is None and fields.previous_leaf_hash != leaf:
            reason = "does not chain to the record before"
        if reason is not None:
            raise LogDamaged(name, at, sequence, reason)
        leaf = hashlib.sha256(b"\0" + head + payload).digest()
        yield Record(name, at, fields, payload, leaf)
        at, sequence = at + fields.length, sequence + 1


_SEGMENT_NAME = re.compile(r"segment-[0-9]{20}\.vlog")


def _segments(folder: Path) -> list[Path]:
    """The segments in order; raises ``OSError`` when the folder cannot be read or one is no regular file."""
    found = sorted(Path(e.path) for e in os.scandir(folder) if _SEGMENT_NAME.fullmatch(e.name))
    for path in found:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return found


def _follow(folder: Path, opened: Callable[[layout.SegmentHeader], None]) -> Iterator[Record]:
    leaf, sequence, instance = bytes(32), 1, None
    for path in _segments(folder):
        with path.open("rb") as file:
            header = _segment_header(file, path.name, sequence)
            if header.first_sequence != sequence or path.name != f"segment-{sequence:020d}.vlog":
                raise LogDamaged(path.name, 0, sequence, f"segment starts at {header.first_sequence}, expected {sequence}")
            if header.previous_leaf_hash != leaf or instance not in (None, header.instance):
                raise LogDamaged(path.name, 0, sequence, "segment does not continue the one before")
            try:
                opened(header)
            except Forged as forged:
                raise LogDamaged(path.name, 0, sequence, str(forged)) from None
            instance = header.instance
            for record in _records(file, path.name, header, leaf):
                yield record
                leaf, sequence = record.leaf, record.header.sequence + 1


def read_records(folder: Path) -> Iterator[Record]:
    """Every record of the log in order; raises ``LogDamaged`` at the first fault."""
    return _follow(folder, lambda header: None)


def _torn(folder: Path, damage: Damage) -> int:
    """Bytes of a torn tail at the place of damage; 0 when it is none.

    A crash tears the end of the last segment only, and leaves no whole record
    at or behind the place: else somebody changed the log.
    """
    path = _segments(folder)[-1]
    if path.name != damage.file or damage.offset < layout.SEGMENT_HEADER_BYTES:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(layout.MAGIC, damage.offset)
        while at >= 0:
            if at + layout.HEADER_BYTES <= len(data):
                fields = layout.RecordHeader(*_RECORD.unpack_from(data, at))
                whole = layout.HEADER_BYTES <= fields.length <= len(data) - at
                if whole and _crc(data[at : at + layout.CRC_OFFSET], data[at + layout.HEADER_BYTES : at + fields.length]) == fields.crc32c:
                    return 0
            at = data.find(layout.MAGIC, at + 1)
        end = len(data)
        while end > damage.offset:
            start = max(damage.offset, end - _CHUNK_BYTES)
            used = data[start:end].rstrip(b"\0")
            if used:
                return start + len(used) - damage.offset
            end = start
    return 0


class _Log:
    """One log on its way through verification."""

    def __init__(self, folder: Path, trusted: Sequence[Verifier], wanted: Collection[int] = ()) -> None:
        self.report, self.folder = Report(str(folder)), folder
        self._trusted, self._wanted = trusted, wanted
        self.seals: Seals | None = None
        self.last_time_ns = 0
        self._boots: set[bytes] = set()
        self._boot, self._monotonic_ns = b"", 0

    def _opened(self, header: layout.SegmentHeader) -> None:
        name = header.log_name.rstrip(b"\0").decode("utf-8", "replace")
        if self.seals is None:
            self.report.log = origin_of(name, header.instance)
            self.seals = Seals(self.report.log, self._trusted, CompactRange(), self._wanted)
        if origin_of(name, header.instance) != self.report.log:
            raise Forged("a segment of another log")
        try:
            tree = CompactRange.decode(header.first_sequence - 1, header.tree_range)
        except ValueError as error:
            raise Forged(str(error)) from None
        if tree.root() != self.seals.root():
            raise Forged("the segment's tree is not that of the records before it")

    def _record(self, record: Record) -> None:
        h, report = record.header, self.report
        if h.boot_id != self._boot:
            if h.boot_id in self._boots:
                raise Forged("a run goes on after another one began")
            self._boots.add(h.boot_id)
            self._boot, self._monotonic_ns = h.boot_id, 0
        if h.monotonic_ns < self._monotonic_ns:
            raise Forged("monotonic time runs backwards within a run")
        self._monotonic_ns, self.last_time_ns = h.monotonic_ns, h.time_ns
        assert self.seals is not None
        self.seals.record(h.kind, h.sequence, h.time_ns, record.payload, record.leaf)
        report.first_sequence = report.first_sequence or h.sequence
        report.last_sequence, report.records, report.head = h.sequence, report.records + 1, record.leaf.hex()
        kind = layout.KIND_NAMES[h.kind]
        report.kinds[kind] = report.kinds.get(kind, 0) + 1

    def run(self) -> None:
        """Read all records; the report then says what was found."""
        report = self.report
        report.segments = len(_segments(self.folder))
        try:
            for record in _follow(self.folder, self._opened):
                try:
                    self._record(record)
                except Forged as forged:
                    raise LogDamaged(record.file, record.offset, record.header.sequence, str(forged)) from None
            report.intact = True
        except LogDamaged as broken:
            report.torn_bytes = _torn(self.folder, broken.damage)
            report.intact = report.torn_bytes > 0
            report.damage = None if report.intact else broken.damage
        report.boots = len(self._boots)
        if self.seals is not None:
            report.checkpoints, report.rotations = self.seals.checkpoints, self.seals.rotations
            report.sealed, report.root = self.seals.sealed, self.seals.root().hex()
            report.unsealed = report.records - report.sealed - (1 if self.seals.ends_with_seal and report.sealed else 0)
            report.unsealed_s = max(0, self.last_time_ns - self.seals.sealed_time_ns) / 1e9 if report.sealed else -1.0

    def damaged(self, sequence: int, reason: str) -> None:
        """Note what only another log shows."""
        if self.report.damage is None:
            self.report.intact, self.report.damage = False, Damage("", 0, sequence, reason)

    def judge(self) -> None:
        """The verdict in words and as an exit code."""
        report = self.report
        if not report.intact:
            report.exit_code, report.verdict = EXIT_FORGED, "FORGED OR DAMAGED"
        elif not report.sealed:
            report.exit_code, report.verdict = EXIT_NO_KEY, "intact, but no signature by a trusted key"
        elif report.unsealed or report.torn_bytes:
            torn = f" and {report.torn_bytes} torn bytes" if report.torn_bytes else ""
            report.exit_code = EXIT_UNSEALED
            report.verdict = f"verified but for an unsealed tail of {report.unsealed} records ({report.unsealed_s:.1f} s){torn}"
        else:
            report.exit_code, report.verdict = EXIT_VERIFIED, "verified"


Found = list[tuple[Checkpoint, Anchor, str]]


def _anchors(log: _Log, others: Mapping[str, _Log], trusted: Sequence[Verifier], found: dict[str, Found]) -> None:
    """What a log holds of others.

    An anchor counts when a trusted checkpoint of this log covers it, whoever
    signed the note: this log vouches for what it was given, and one that was cut
    off before a rotation does not name the later key any more. In the unsealed end
    anybody may have put an anchor: there it needs the signature of a known key.
    """
    if log.seals is None:
        return
    for anchor in log.seals.anchors:
        origin = anchor.note.split(b"\n", 1)[0].decode("utf-8", "replace")
        other, covered = others.get(origin), anchor.sequence <= log.seals.sealed
        known = other.seals.known if other is not None and other.seals is not None else []
        try:
            text, signed = open_note(anchor.note, [*trusted, *known])
            head = parse_checkpoint(text)
        except NoteError as error:
            if covered:
                log.damaged(anchor.sequence, f"anchor: {error}")
            continue
        if other is not log and (covered or signed):
            found.setdefault(origin, []).append((head, anchor, log.report.log))


def _compare(log: _Log, anchors: Found, trusted: Sequence[Verifier]) -> None:
    report, most = log.report, max(anchors, key=lambda a: a[0].size)
    if most[0].size > report.records and not (report.damage and report.damage.sequence <= most[0].size):
        reason = f"{most[2]} holds a checkpoint of {most[0].size} records, {report.records} are here: the end was cut off"
        log.damaged(report.last_sequence + 1, reason)
        return
    again = _Log(log.folder, trusted, {head.size for head, _, _ in anchors})
    again.run()
    for head, _, other_name in anchors:
        root = again.seals.roots.get(head.size) if again.seals is not None else None
        if root is not None and root != head.root:
            log.damaged(head.size, f"{other_name} holds another root at {head.size} records")
    report.witnessed = most[0].size
    report.unwitnessed_s = max(0, log.last_time_ns - most[1].time_ns) / 1e9


def _cross_check(logs: Sequence[_Log], trusted: Sequence[Verifier]) -> None:
    """Compare each log with what others anchored of it."""
    by_origin = {log.report.log: log for log in logs if log.seals is not None}
    by_name = {origin.rsplit("/", 1)[0]: log for origin, log in by_origin.items()}
    found: dict[str, Found] = {}
    for log in by_origin.values():
        _anchors(log, by_origin, trusted, found)
    for origin, anchors in found.items():
        if origin in by_origin:
            _compare(by_origin[origin], anchors, trusted)
        elif (log_of_name := by_name.get(origin.rsplit("/", 1)[0])) is not None:
            most = max(anchors, key=lambda a: a[0].size)
            log_of_name.damaged(
                0,
                f"{most[2]} holds a checkpoint of {most[0].size} records of {origin}: that log is not here; "
                "give it too, or it was replaced by this one",
            )


def verify_folders(folders: Sequence[Path], trusted: Sequence[Verifier] = ()) -> list[Report]:
    """Check logs, each by itself and against what the others anchored of it.

    Streams, in bounded memory. Keys that lie inside a log are never trusted.

    Raises:
        FileNotFoundError: there is no segment in a folder.
    """
    logs = []
    for folder in folders:
        if not _segments(folder):
            raise FileNotFoundError(errno.ENOENT, "holds no audit log (segment-*.vlog)", str(folder))
        log = _Log(folder, trusted)
        log.run()
        logs.append(log)
    _cross_check(logs, trusted)
    for log in logs:
        log.judge()
    return [log.report for log in logs]


def verify_folder(folder: Path, trusted: Sequence[Verifier] = ()) -> Report:
    """Check one log; see ``verify_folders``."""
    return verify_folders([folder], trusted)[0]
