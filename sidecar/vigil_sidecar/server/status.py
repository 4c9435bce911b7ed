"""Errors as google.rpc.Status with BadRequest, ErrorInfo and RetryInfo."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from vigil_sidecar.errors import RESOURCE_EXHAUSTED, UNAVAILABLE, CallError
from vigil_sidecar.server.call import CallContext, Reply

__all__ = ["DOMAIN", "error_reply"]

DOMAIN = "vigil"
_RETRY_MS = 50
_VIOLATIONS_SHOWN = 32
"""What fits into the trailers that clients accept (8 KiB)."""


def _any(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def error_reply(error: CallError, context: CallContext) -> Reply:
    """The reply that a caller gets for an error."""
    details: list[AnyMessage] = []
    if error.violations:
        bad = BadRequest()
        for field, text in error.violations[:_VIOLATIONS_SHOWN]:
            bad.field_violations.add(field=field[:256], description=text[:256])
        more = len(error.violations) - _VIOLATIONS_SHOWN
        if more > 0:
            bad.field_violations.add(description=f"{more} more fields are violated")
        details.append(_any(bad))
    metadata = {"event": f"DIA-{error.event}", "trace_id": context.trace_id.hex(), **error.metadata}
    details.append(_any(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)))
    if error.code in (RESOURCE_EXHAUSTED, UNAVAILABLE):
        details.append(_any(RetryInfo(retry_delay=Duration(nanos=_RETRY_MS * 1_000_000))))
    status = Status(code=error.code, message=error.text, details=details)
    return Reply(code=error.code, text=error.text, status=status.SerializeToString(), stand_in=error.stand_in)
