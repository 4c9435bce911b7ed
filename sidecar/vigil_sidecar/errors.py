"""The error family of the sidecar, and the one table that maps it to status and event."""

from __future__ import annotations

from collections.abc import Sequence

from vigil_safety import events_gen as events

__all__ = [
    "AuditClosed",
    "AuditError",
    "CallError",
    "CandidateRefused",
    "CommandFailed",
    "ContractViolation",
    "DeadlineExceeded",
    "Forbidden",
    "FrameRejected",
    "InferenceFailed",
    "InternalFault",
    "LimitHit",
    "NotStopped",
    "OrderViolation",
    "OutputViolation",
    "Resting",
    "SemanticViolation",
    "SettingsError",
    "Starting",
    "Unavailable",
    "Unimplemented",
    "UnknownModel",
    "VigilError",
]

INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, PERMISSION_DENIED = 3, 4, 5, 7
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 9, 12, 13, 14
CANCELLED = 1


class VigilError(Exception):
    """Root of all errors that Vigil raises on purpose."""


class SettingsError(VigilError):
    """A setting is unknown or impossible. Show the text and stop."""


class AuditError(VigilError):
    """The log cannot be written or read. Calls are refused until it can.

    ``standing`` are the sequences that stand in the log all the same: written, but
    not forced to disk, or not known to be written in time.
    """

    def __init__(self, text: str, standing: Sequence[int] = ()) -> None:
        """Say why, and which records stand."""
        super().__init__(text)
        self.standing = standing


class AuditClosed(AuditError):
    """The log was closed: the process ends. Nothing is to be done."""


class CandidateRefused(VigilError):
    """A model version failed a gate. The text is the reason; nothing changes for callers."""


class CommandFailed(VigilError):
    """What was asked for on the command line failed; the text says what to do next."""


class CallError(VigilError):
    """A call gets an error. ``text`` goes to the caller: no path, no address, no stack."""

    code = INTERNAL
    event = events.INTERNAL_ERROR
    reason = "INTERNAL"
    stand_in = False
    """The service failed, not the caller: what stands in for the model may answer."""

    def __init__(self, text: str, violations: Sequence[tuple[str, str]] = (), metadata: dict[str, str] | None = None):
        super().__init__(text)
        self.text = text
        self.violations = tuple(violations)
        self.metadata = metadata or {}


class ContractViolation(CallError):
    """A field breaks a rule of the contract. ``violations`` names every one."""

    code, event, reason = INVALID_ARGUMENT, events.CONTRACT_VIOLATION, "CONTRACT_VIOLATION"


class SemanticViolation(CallError):
    """A request contradicts itself or the model. Correct the request."""

    code, event, reason = INVALID_ARGUMENT, events.SEMANTIC_VIOLATION, "SEMANTIC_VIOLATION"


class OrderViolation(CallError):
    """A capture time does not increase or lies in the future."""

    code, event, reason = INVALID_ARGUMENT, events.ORDER_VIOLATION, "ORDER_VIOLATION"


class FrameRejected(CallError):
    """A picture cannot be decoded or is too large."""

    code, event, reason = INVALID_ARGUMENT, events.FRAME_REJECTED, "FRAME_REJECTED"


class UnknownModel(CallError):
    """Model or version is not loaded."""

    code, event, reason = NOT_FOUND, events.UNKNOWN_MODEL, "UNKNOWN_MODEL"


class LimitHit(CallError):
    """A named limit was reached. Try again later, or with less."""

    code, event, reason = RESOURCE_EXHAUSTED, events.LIMIT_HIT, "LIMIT_HIT"


class DeadlineExceeded(CallError):
    """The caller's deadline passed; nothing was computed."""

    code, event, reason = DEADLINE_EXCEEDED, events.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"


class CallerGone(CallError):
    """The caller cancelled the call; nothing was computed."""

    code, event, reason = CANCELLED, events.CANCELLED, "CANCELLED"


class OutputViolation(CallError):
    """The model answered with numbers that are not finite or not plausible."""

    code, event, reason = INTERNAL, events.OUTPUT_VIOLATION, "OUTPUT_VIOLATION"


class InferenceFailed(CallError):
    """ONNX Runtime failed on this very request."""

    code, event, reason = INTERNAL, events.INFERENCE_FAILED, "INFERENCE_FAILED"


class Unavailable(CallError):
    """Nothing can take the call now. Try again."""

    code, event, reason = UNAVAILABLE, events.UNAVAILABLE, "UNAVAILABLE"


class Starting(Unavailable):
    """The sidecar has not looked at every model yet."""

    stand_in = True


class Resting(Unavailable):
    """The model has a ladder, and does not answer until it is Normal again."""

    reason, stand_in = "MODEL_DEGRADED", True


class NotStopped(CallError):
    """A reset, but nothing is stopped safely."""

    code, event, reason = FAILED_PRECONDITION, events.SEMANTIC_VIOLATION, "NOT_STOPPED"


class Unimplemented(CallError):
    """The method is not offered; the text names what to use."""

    code, event, reason = UNIMPLEMENTED, events.UNIMPLEMENTED, "UNIMPLEMENTED"


class Forbidden(CallError):
    """A control call came over a listener where it is not allowed."""

    code, event, reason = PERMISSION_DENIED, events.CONTROL_FORBIDDEN, "CONTROL_FORBIDDEN"


class InternalFault(CallError):
    """A fault of Vigil itself. The log has the detail under the trace id."""

    stand_in = True
