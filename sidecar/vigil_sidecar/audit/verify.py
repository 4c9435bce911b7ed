"""Verification of log folders. Imports nothing of the writer; streams: memory grows with runs and anchors only."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vigil_safety.events_gen import LOG_CLOSED, UNLOGGED
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.check_kept import check_kept
from vigil_sidecar.audit.notes import Checkpoint, NoteError, Verifier, open_note, origin_of, parse_checkpoint
from vigil_sidecar.audit.reader import Damage, LogDamaged, Record, follow, list_segments, read_records, torn_bytes, written_now
from vigil_sidecar.audit.tree import CompactRange
from vigil_sidecar.audit.trust import Anchor, Forged, Seals

__all__ = ["Damage", "LogDamaged", "Record", "Report", "read_records", "verify_folder", "verify_folders"]

_PRUNED_TRIES_MAX = 5
EXIT_VERIFIED, EXIT_UNREADABLE, EXIT_UNSEALED, EXIT_FORGED, EXIT_NO_LOG, EXIT_NO_KEY = 0, 1, 3, 4, 5, 6


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
    pruned: int = 0
    kept: int = 0
    kept_unproven: int = 0
    sealed: int = 0
    unsealed: int = 0
    unsealed_s: float = 0.0
    witnessed: int = 0
    unwitnessed_s: float = -1.0
    checkpoints: int = 0
    rotations: int = 0
    unlogged: int = 0
    torn_bytes: int = 0
    boots: int = 0
    closed: bool = False
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


class _Log:
    """One log on its way through verification."""

    def __init__(self, folder: Path, trusted: Sequence[Verifier], wanted: Collection[int] = ()) -> None:
        self.report, self.folder = Report(str(folder)), folder
        self._trusted, self._wanted = trusted, wanted
        self.seals: Seals | None = None
        self.last_time_ns = 0
        self._boots: set[bytes] = set()
        self._header: layout.SegmentHeader | None = None
        self._boot, self._monotonic_ns = b"", 0

    def _opened(self, header: layout.SegmentHeader) -> None:
        self._header = header
        name = header.log_name.rstrip(b"\0").decode("utf-8", "replace")
        try:
            tree = CompactRange.decode(header.first_sequence - 1, header.tree_range)
        except ValueError as error:
            raise Forged(str(error)) from None
        if self.seals is None:
            self.report.log, self.report.pruned = origin_of(name, header.instance), tree.size
            self.seals = Seals(self.report.log, self._trusted, tree.copy(), self._wanted)
            self.report.kept, self.report.kept_unproven = check_kept(self.folder, self.seals, header.instance)
        if origin_of(name, header.instance) != self.report.log:
            raise Forged("a segment of another log")
        if tree.root() != self.seals.root():
            raise Forged("the segment's tree is not that of the records before it")
        self.seals.segment()

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
        if h.kind != layout.KIND_CHECKPOINT:
            report.closed = h.event_id == LOG_CLOSED
        if h.event_id == UNLOGGED:
            report.unlogged += h.batch_size
        kind = layout.KIND_NAMES[h.kind]
        report.kinds[kind] = report.kinds.get(kind, 0) + 1

    def run(self) -> None:
        """Read all records; the report then says what was found. A log that is pruned meanwhile is read again."""
        place = None
        for _ in range(_PRUNED_TRIES_MAX):
            try:
                self._run()
            except FileNotFoundError:
                pass
            else:
                damage = self.report.damage
                if damage is None or damage == place or not written_now(self.folder):
                    return
                place = damage  # it may have been in the making: then it is not there again
            self.__init__(self.folder, self._trusted, self._wanted)  # type: ignore[misc]
        self._run()

    def _run(self) -> None:
        report = self.report
        report.segments = len(list_segments(self.folder))
        try:
            for record in follow(self.folder, self._opened):
                try:
                    self._record(record)
                except Forged as forged:
                    raise LogDamaged(record.file, record.offset, record.header.sequence, str(forged)) from None
            report.intact = True
        except LogDamaged as broken:
            report.torn_bytes = torn_bytes(self.folder, broken.damage, self._header, self.seals is not None and self.seals.checkpoints > 0)
            report.intact = report.torn_bytes > 0
            report.damage = None if report.intact else broken.damage
        report.boots = len(self._boots)
        if self.seals is not None:
            report.checkpoints, report.rotations = self.seals.checkpoints, self.seals.rotations
            report.sealed, report.root = self.seals.sealed, self.seals.root().hex()
            report.unsealed = report.pruned + report.records - report.sealed - (1 if self.seals.ends_with_seal and report.sealed else 0)
            if report.pruned and report.sealed and not self.seals.pruned_by_right():
                self.damaged(report.pruned + 1, "the log begins here, and no signed record says that those before were pruned")
            report.unsealed_s = max(0, self.last_time_ns - self.seals.sealed_time_ns) / 1e9 if report.sealed else -1.0

    def again(self, trusted: Sequence[Verifier]) -> None:
        """Read it once more."""
        self.__init__(self.folder, trusted)  # type: ignore[misc]
        self.run()

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
        except NoteError:
            continue  # what the other side sent was no checkpoint: it witnesses nothing
        if other is not log and (covered or signed):
            found.setdefault(origin, []).append((head, anchor, log.report.log))


def _compare(log: _Log, anchors: Found, trusted: Sequence[Verifier]) -> None:
    report, most = log.report, max(anchors, key=lambda a: a[0].size)
    if most[0].size > report.last_sequence and report.intact:
        log.again(trusted)  # it may be written just now: the others were read later
        report = log.report
    if most[0].size > report.last_sequence and not (report.damage and report.damage.sequence <= most[0].size):
        reason = f"{most[2]} holds a checkpoint of {most[0].size} records, {report.last_sequence} are here: the end was cut off"
        log.damaged(report.last_sequence + 1, reason)
        return
    again = _Log(log.folder, trusted, {head.size for head, _, _ in anchors})
    again.run()
    for head, _, other_name in anchors:
        root = again.seals.roots.get(head.size) if again.seals is not None else None
        if root is not None and root != head.root:
            log.damaged(head.size, f"{other_name} holds another root at {head.size} records")
    report.witnessed = most[0].size
    report.unwitnessed_s = max(0, log.last_time_ns - most[1].time_ns) / 1e9 if most[1].time_ns else -1.0  # kept ones have no time


def _cross_check(logs: Sequence[_Log], trusted: Sequence[Verifier], witnesses: Mapping[str, bytes]) -> None:
    """Compare each log with what others anchored of it, and with what was kept outside; raises ``NoteError``."""
    by_origin: dict[str, _Log] = {}
    for log in logs:
        if log.seals is not None and by_origin.setdefault(log.report.log, log) is not log:
            log.damaged(0, f"the same log as {by_origin[log.report.log].folder}: give each once, and every one that there is")
    by_name = {origin.rsplit("/", 1)[0]: log for origin, log in by_origin.items()}
    found: dict[str, Found] = {}
    for log in by_origin.values():
        _anchors(log, by_origin, trusted, found)
    for name, note in witnesses.items():
        try:
            head = parse_checkpoint(open_note(note, trusted)[0])
        except NoteError as error:
            raise NoteError(f"witness {name}: {error}") from None
        if head.origin.rsplit("/", 1)[0] not in by_name:
            raise NoteError(f"witness {name}: it is of {head.origin}, which is not given")
        found.setdefault(head.origin, []).append((head, Anchor(0, 0, note), f"witness {name}"))
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


def verify_folders(
    folders: Sequence[Path], trusted: Sequence[Verifier] = (), witnesses: Mapping[str, bytes] = MappingProxyType({})
) -> list[Report]:
    """Check logs, each by itself, against what the others anchored of it, and against checkpoints kept outside.

    Streams: memory grows with runs and anchors only. Keys that lie inside a log are never trusted.

    Raises:
        FileNotFoundError: there is no segment in a folder.
        NoteError: a witness is no checkpoint of a log given here.
    """
    logs = []
    for folder in folders:
        if not list_segments(folder):
            raise FileNotFoundError(errno.ENOENT, "holds no audit log (segment-*.vlog)", str(folder))
        log = _Log(folder, trusted)
        log.run()
        logs.append(log)
    _cross_check(logs, trusted, witnesses)
    for log in logs:
        log.judge()
    return [log.report for log in logs]


def verify_folder(folder: Path, trusted: Sequence[Verifier] = ()) -> Report:
    """Check one log; see ``verify_folders``."""
    return verify_folders([folder], trusted)[0]
