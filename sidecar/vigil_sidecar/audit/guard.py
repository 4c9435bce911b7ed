"""What a writer asks before it goes on with a log: is it still the one that its key signed last?"""

from __future__ import annotations

from pathlib import Path

from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.keys import KeyFile
from vigil_sidecar.audit.notes import NoteError, Signer, Verifier, open_note, origin_of, parse_checkpoint
from vigil_sidecar.audit.segment import LogEnd, find_end, last_key_note, list_segments, read_header
from vigil_sidecar.errors import AuditError

__all__ = ["check_head", "was_on_disk"]

_EVIDENCE = "keep the folder and the keys as evidence; to start a new log, move both away"


def _root_at(folder: Path, size: int) -> bytes | None:
    """Root of the log's first ``size`` records, from the segment that holds the last of them; None when they are not there."""
    for path in reversed(list_segments(folder)):
        header = read_header(path.read_bytes()[: layout.SEGMENT_HEADER_BYTES])
        if header is None or header.first_sequence > size + 1:
            continue
        found = find_end(path, size)
        return found.tree.root() if found is not None and found.tree.size == size else None
    return None


def check_head(folder: Path, end: LogEnd, keys: KeyFile, origin: str) -> None:
    """Raise ``AuditError`` unless the log has the tree of the checkpoint that is kept beside the key.

    Else a restart would sign whatever somebody put into the folder. What was
    forced before the checkpoint was signed is there after any crash.
    """
    note = keys.kept()
    if not note:
        return
    try:
        text, signed = open_note(note, keys.verifiers(origin))
        head = parse_checkpoint(text)
    except NoteError as error:
        raise AuditError(f"audit log {folder}: the checkpoint kept beside its key: {error}; {_EVIDENCE}") from None
    if head.origin != origin:
        raise AuditError(f"audit log {folder}: it is {origin}, but its key signed {head.origin} last; {_EVIDENCE}")
    present = Verifier(Signer(origin, keys.key).verifier_key)
    if present.text not in [k.text for k in signed] and present.text.encode() not in last_key_note(folder):
        raise AuditError(f"audit log {folder}: the key file is not the key that signed it last; put the right one back")
    if not signed:
        raise AuditError(f"audit log {folder}: no published key signed the checkpoint kept beside the key; {_EVIDENCE}")
    if _root_at(folder, head.size) != head.root:
        raise AuditError(f"audit log {folder}: its first {head.size} records are not those that were signed; {_EVIDENCE}")


def was_on_disk(end: LogEnd, keys: KeyFile | None, log_name: str) -> bool:
    """Whether the damaged record was forced to disk: then no crash damaged it.

    So it is when a checkpoint behind it covers it. Without keys nothing can be told, and every hole counts.
    """
    if keys is None:
        return True
    origin = origin_of(log_name, end.instance)
    for note in end.later_notes:
        try:
            text, signed = open_note(note, keys.verifiers(origin))
            if signed and parse_checkpoint(text).size >= end.next_sequence:
                return True
        except NoteError:
            continue
    return False
