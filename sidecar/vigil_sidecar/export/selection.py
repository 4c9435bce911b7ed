"""Which records are meant: by time, trace, model, event, tenant."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vigil_sidecar.audit.find import find_by_trace, records_from
from vigil_sidecar.audit.reader import Record
from vigil_sidecar.export.words import model_of

__all__ = ["Selection", "select"]


@dataclass(frozen=True)
class Selection:
    """Every field that is set must match. Times are UTC nanoseconds; ``tenant_hashes`` are plain and keyed."""

    from_ns: int = 0
    to_ns: int = 1 << 63
    trace_id: bytes = b""
    model: str = ""
    event: int = 0
    tenant_hashes: frozenset[bytes] = frozenset()

    @classmethod
    def of_tenant(cls, tenant: str, key: bytes = b"") -> frozenset[bytes]:
        """Hashes under which a tenant's records stand, given the key of keyed hashes."""
        digest = hashlib.sha256(tenant.encode()).digest()
        return frozenset({digest, hmac.digest(key, digest, "sha256")} if key else {digest})

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    def matches(self, record: Record) -> bool:
        """Whether a record is meant."""
        h = record.header
        return (
            self.from_ns <= h.time_ns < self.to_ns
            and (not self.trace_id or h.trace_id == self.trace_id)
            and (not self.event or h.event_id == self.event)
            and (not self.tenant_hashes or h.tenant_hash in self.tenant_hashes)
            and (not self.model or model_of(record) == self.model)
        )

    def words(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "from_ns": self.from_ns, "to_ns": self.to_ns, "trace_id": self.trace_id.hex(), "model": self.model,
            "event": self.event, "tenant_hashes": sorted(t.hex() for t in self.tenant_hashes),
        }  # fmt: skip


def select(folder: Path, selection: Selection, after: int = 0) -> Iterator[Record]:
    """The selected records of a log behind sequence ``after``, in order.

    A trace is found by the segments' indexes where there are any; segments that end
    before the time are passed over. Records are checked by themselves (CRC, layout),
    not against the chain: that is for verification. Raises ``LogDamaged``, ``OSError``.
    """
    found = find_by_trace(folder, selection.trace_id) if selection.trace_id else records_from(folder, selection.from_ns, after)
    for record in found:
        if record.header.sequence > after and selection.matches(record):
            yield record
