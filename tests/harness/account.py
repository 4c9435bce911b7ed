"""The account: every reply that a caller received has exactly one final record, or is in a count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vigil.audit.v1.audit_pb2 import CallPayload, SystemPayload

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import Record, read_records

__all__ = ["Account", "account"]

_FINAL = (layout.KIND_ANSWER, layout.KIND_REFUSAL)
_CODES = ("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
          "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
          "DATA_LOSS", "UNAUTHENTICATED")  # fmt: skip


@dataclass
class Account:
    """What two logs and a caller's replies say of each other."""

    wrong: list[str] = field(default_factory=list)
    """Replies whose position has no final record, two owners, or another status."""
    without_position: int = 0
    """Replies that named none: the transport ended before one came."""
    recorded: int = 0
    """Replies with a final record of their own."""
    unlogged: Counter[str] = field(default_factory=Counter)
    """Replies at ``LOG/BOOT/unlogged``, by log."""
    aggregated: Counter[str] = field(default_factory=Counter)
    stated: Counter[str] = field(default_factory=Counter)
    """Answers, refusals and events without a record, as the logs state them, by log."""
    stated_calls: Counter[str] = field(default_factory=Counter)
    stated_aggregated: Counter[str] = field(default_factory=Counter)
    final: int = 0
    """Final records that nothing supersedes."""
    superseded: int = 0


def _fields(record: Record) -> dict[str, str]:
    return dict(SystemPayload.FromString(record.payload).fields)


def account(audit: Path, replies: Iterable[tuple[str, str]]) -> Account:
    """Hold replies, each a position and the name of its status (empty: not told), against both logs below ``audit``."""
    found, final = Account(), {}
    by_span: dict[tuple[bytes, bytes], list[str]] = {}
    counts: dict[tuple[bytes, bytes], str] = {}
    superseded: set[str] = set()
    for log in ("sidecar", "gateway"):
        for r in read_records(audit / log):
            h = r.header
            position = f"{log}/{h.boot_id.hex()}/{h.sequence}"
            if h.kind in _FINAL:
                final[position] = r
                span = (h.trace_id, h.span_id)
                if (log == "gateway" or h.event_id == events.STAND_IN_ANSWER) and CallPayload.FromString(r.payload).handed_over:
                    counts[span] = position
                if log == "sidecar":
                    by_span.setdefault(span, []).append(position)
            elif h.event_id == events.UNLOGGED:
                fields = _fields(r)
                found.stated[log] += h.batch_size
                found.stated_calls[log] += int(fields["answers"]) + int(fields["refusals"])
            elif h.event_id == events.REFUSALS_AGGREGATED:
                found.stated_aggregated[log] += h.batch_size
            elif h.event_id == events.UNDELIVERED:
                superseded.update(f"{log}/{h.boot_id.hex()}/{s}" for s in _sequences(_fields(r)["sequences"]))
    for span, position in counts.items():  # of a call's records in the sidecar's log only this one, or none, says what its caller got
        superseded.update(p for p in by_span.get(span, ()) if p != position)
    owners: set[str] = set()
    for position, code in replies:
        log, _, rest = position.partition("/")
        if not position:
            found.without_position += 1
        elif rest.endswith("/unlogged"):
            found.unlogged[log] += 1
        elif rest.endswith("/aggregated"):
            found.aggregated[log] += 1
        elif position not in final:
            found.wrong.append(f"{position} ({code}): no final record")
        elif position in superseded:
            found.wrong.append(f"{position} ({code}): superseded, yet its caller has it")
        elif position in owners:
            found.wrong.append(f"{position} ({code}): two replies have it")
        elif code and _CODES[final[position].header.status_code] != code:
            found.wrong.append(f"{position} ({code}): the record says {_CODES[final[position].header.status_code]}")
        else:
            owners.add(position)
    found.recorded, found.superseded = len(owners), len(superseded & final.keys())
    found.final = len(final) - found.superseded
    return found


def _sequences(text: str) -> Iterable[int]:
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        yield from range(int(first), int(last or first) + 1)
