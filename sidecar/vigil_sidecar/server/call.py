"""A call on its way through the sidecar, and its reply, whatever it came over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vigil_sidecar.audit.entry import ZERO8, ZERO16
from vigil_sidecar.errors import CallerGone, DeadlineExceeded

__all__ = ["Call", "CallContext", "Reply", "check_alive"]


@dataclass(slots=True)
class CallContext:
    """What a call brings along. Times are of ``time.monotonic_ns``; ``deadline_ns`` 0 means none."""

    trace_id: bytes = ZERO16
    span_id: bytes = ZERO8
    sampled: bool = False
    deadline_ns: int = 0
    tenant: str = ""
    control: bool = True
    arrival_ns: int = field(default_factory=time.monotonic_ns)
    validated: bool = False
    """Whether rules of the same contract were already run by the gateway."""
    stands_for: str = ""
    """The model that the caller asked for, when the one called stands in for it."""
    asked_before: bool = False
    """That model was given the call before."""
    local: bool = True
    """The caller is on this machine, or the gateway speaks for it."""


@dataclass(slots=True)
class Reply:
    """An answer (``code`` 0) or an error. ``status`` is a serialised google.rpc.Status with details."""

    code: int = 0
    text: str = ""
    message: bytes = b""
    status: bytes = b""
    more: bool = False
    audit_position: str = ""
    model_version: str = ""
    batch_size: int = 0
    safety_state: str = ""
    stand_in: bool = False
    """Of an error: the service failed, not the caller, so a stand-in may answer."""


@dataclass(slots=True)
class Call:
    """One call. ``cancelled`` is set by whoever carries it when the caller has gone."""

    id: int
    method: str
    message: bytes
    context: CallContext
    reply: Callable[[Call, Reply], None]
    cancelled: bool = False
    subject: str = ""
    """The model that a control call is about, for its record."""
    reason: str = ""
    """Why, as the caller of a control call said, for its record."""
    on_cancel: Callable[[], None] | None = None
    credit: threading.Semaphore | None = None
    """Of a stream over the link: how many messages more its reader takes."""

    def cancel(self) -> None:
        """Mark as cancelled and wake a stream that waits."""
        self.cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return 0 < self.context.deadline_ns < time.monotonic_ns()


def check_alive(call: Call) -> None:
    """Raise ``DeadlineExceeded`` or ``CallerGone`` when nobody waits for the answer any more."""
    if call.expired():
        # SR-029
        raise DeadlineExceeded("the deadline passed before the call was computed")
    if call.cancelled:
        raise CallerGone("the caller went away")
