"""Payloads of audit records as protobuf messages (vigil.audit.v1)."""

from __future__ import annotations

from vigil.audit.v1.audit_pb2 import CallPayload, ModelPayload, StatePayload, SystemPayload

from vigil_safety.core import Table
from vigil_safety.monitor import Change
from vigil_sidecar.batching.job import Job
from vigil_sidecar.errors import CallError
from vigil_sidecar.registry.version import ModelEvent
from vigil_sidecar.server.call import Call

__all__ = ["call_payload", "model_payload", "stand_in_payload", "state_payload", "system_payload"]

_TEXT_MAX = 1024
_VIOLATIONS_MAX = 32


def call_payload(
    method: str, model: str, request_id: str = "", source_id: str = "", error: CallError | None = None, reason: str = ""
) -> bytes:
    """Payload of an answer or refusal; long texts are cut so that the record stays small."""
    payload = CallPayload(
        method=method[:256], model=model[:256], request_id=request_id[:256], source_id=source_id[:128], reason=reason[:_TEXT_MAX]
    )  # fmt: skip
    if error is not None:
        payload.message = error.text[:_TEXT_MAX]
        for field, text in error.violations[:_VIOLATIONS_MAX]:
            payload.violations.add(field=field[:256], description=text[:256])
    return payload.SerializeToString()


def stand_in_payload(call: Call, job: Job, model: str) -> bytes:
    """Payload of an answer that a model gave in place of another."""
    return CallPayload(
        method=call.method[:256], model=call.context.stands_for[:256], request_id=job.request_id[:256], source_id=job.source_id[:128],
        stand_in=f"model {model}"[:256], handed_over=True,
    ).SerializeToString()  # fmt: skip


def model_payload(event: ModelEvent) -> bytes:
    """Payload of a model event."""
    return ModelPayload(
        model=event.model[:256], version=event.version, digest=event.digest, reason=event.reason[:_TEXT_MAX],
        replaced_version=event.replaced_version, replaced_digest=event.replaced_digest, generation=event.generation,
    ).SerializeToString()  # fmt: skip


def state_payload(change: Change, table: Table) -> bytes:
    """Payload of a change of safety state: all that its step can be computed from again (vigil safety replay)."""
    message = StatePayload(
        subject=change.subject, to=change.after, event=change.event, reason=change.reason[:_TEXT_MAX], table_digest=table.digest,
        now_ms=change.now_ms, actions=change.actions, parameters=table.parameters, by=change.by,
    )  # fmt: skip
    setattr(message, "from", change.before)
    for name, times in change.counters.items():
        message.counters[name].times_ms.extend(times)
    return message.SerializeToString()


def system_payload(text: str, fields: dict[str, str]) -> bytes:
    """Payload of an event of the process or the log."""
    return SystemPayload(text=text[:_TEXT_MAX], fields=fields).SerializeToString()
