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
_TEXT_BYTES, _VIOLATIONS_BYTES, _VIOLATIONS_SHOWN = 600, 2400, 32
"""What fits into the trailers that clients accept (8 KiB): texts outside ASCII take three bytes a byte there, details four for three."""


def _cut(text: str, size: int) -> str:
    """The text in at most so many bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return data.decode() if len(data) <= size else data[: size - 3].decode("utf-8", "ignore") + "\u2026"


def _violations(error: CallError) -> BadRequest:
    """Fields and what is wrong with them, and how many more there are."""
    bad, size = BadRequest(), 0
    for field, text in error.violations[:_VIOLATIONS_SHOWN]:
        field, text = _cut(field, 200), _cut(text, 400)
        size += len(field.encode()) + len(text.encode()) + 8
        if size > _VIOLATIONS_BYTES:
            break
        bad.field_violations.add(field=field, description=text)
    if more := len(error.violations) - len(bad.field_violations):
        bad.field_violations.add(description=f"{more} more fields are violated")
    return bad


def _any(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def error_reply(error: CallError, context: CallContext) -> Reply:
    """The reply that a caller gets for an error."""
    details: list[AnyMessage] = []
    if error.violations:
        details.append(_any(_violations(error)))
    metadata = {"event": f"DIA-{error.event}", "trace_id": context.trace_id.hex(), **error.metadata}
    details.append(_any(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)))
    if error.code in (RESOURCE_EXHAUSTED, UNAVAILABLE):
        details.append(_any(RetryInfo(retry_delay=Duration(nanos=_RETRY_MS * 1_000_000))))
    text = _cut(error.text, _TEXT_BYTES)
    status = Status(code=error.code, message=text, details=details)
    return Reply(code=error.code, text=text, status=status.SerializeToString(), stand_in=error.stand_in)
