"""What a caller of the writer says about one event."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace

__all__ = ["SAFETY_CODES", "ZERO8", "ZERO16", "ZERO32", "Entry"]

ZERO8, ZERO16, ZERO32 = bytes(8), bytes(16), bytes(32)
SAFETY_CODES = {"STARTING": 1, "NORMAL": 2, "DEGRADED": 3, "RECOVERING": 4, "SAFE_STOP": 5}


@dataclass(slots=True)
class Entry:
    """The fields of a record that its writer does not know by itself (layout: proto/audit_record.yaml)."""

    kind: int
    event_id: int
    safety_state: int = 0
    quality: int = 0
    status_code: int = 0
    trace_id: bytes = ZERO16
    span_id: bytes = ZERO8
    latency_ns: int = 0
    batch_size: int = 0
    batch_row: int = 0
    request_id_hash: bytes = ZERO32
    tenant_hash: bytes = ZERO32
    model_digest: bytes = ZERO32
    model_version: int = 0
    input_hash: bytes = ZERO32
    output_hash: bytes = ZERO32
    payload: bytes = b""

    def with_keyed_hashes(self, key: bytes) -> Entry:
        """The same with the hashes of what a caller sent or got as HMACs."""

        def keyed(value: bytes) -> bytes:
            return hmac.digest(key, value, "sha256") if value != ZERO32 else value

        return replace(
            self, request_id_hash=keyed(self.request_id_hash), tenant_hash=keyed(self.tenant_hash),
            input_hash=keyed(self.input_hash), output_hash=keyed(self.output_hash),
        )  # fmt: skip
