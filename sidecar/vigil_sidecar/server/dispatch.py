"""Which function serves which method; shared by the link and the direct server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.recorder import UNLOGGED, Recorder
from vigil_sidecar.errors import (
    AuditError,
    CallError,
    ContractViolation,
    DeadlineExceeded,
    Forbidden,
    InternalFault,
    LimitHit,
    Unavailable,
    Unimplemented,
)
from vigil_sidecar.registry.registry import Registry
from vigil_sidecar.server.call import Call, Reply
from vigil_sidecar.server.measure import measure
from vigil_sidecar.server.payloads import call_payload
from vigil_sidecar.server.processor import BatchMethod, BatchObserver, Processor
from vigil_sidecar.server.revalidation import Revalidation
from vigil_sidecar.server.status import error_reply
from vigil_sidecar.server.workers import Intake, ModelWorkers

__all__ = ["Dispatcher", "StreamMethod", "UnaryMethod"]

_CONTROL_THREADS = 4
_CONTROL_QUEUE_MAX = 256
_TENANT_BYTES_MAX = 256
_INLINE_BYTES_MAX = 1 << 20
"""A light model's frame above this goes to its worker: the reader must stay free."""


class UnaryMethod(NamedTuple):
    """A call that is not batched. ``control`` ones leave a record of their answer."""

    request: type[Message]
    serve: Callable[[Any, Call], Message]
    control: bool = False
    slow: bool = False
    """It may take a minute: others do not wait behind it."""


class StreamMethod(NamedTuple):
    """A server stream; ``serve`` replies until the caller goes."""

    request: type[Message]
    serve: Callable[[Call, Any], None]


class _Unrecorded(Unavailable):
    """The log failed; the recorder counted the call."""


class Dispatcher:
    """Takes calls and sees to it that each gets a final reply. Any thread may call."""

    def __init__(
        self, registry: Registry, audit: Recorder, processor: Processor, batch: dict[str, BatchMethod],
        unary: dict[str, UnaryMethod], streams: dict[str, StreamMethod], missing: dict[str, str],
        revalidation: Revalidation, observer: BatchObserver, inline_run_s: float, queue_max: int, streams_max: int,
    ) -> None:  # fmt: skip
        self._registry, self._audit, self._processor = registry, audit, processor
        self._batch, self._unary, self._streams, self._missing = batch, unary, streams, missing
        self._revalidation, self._observer, self._inline_s = revalidation, observer, inline_run_s
        self._workers = ModelWorkers(processor.process, queue_max, self._intake, self._refuse)
        self.busy = self._workers.busy
        self._control = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="control")
        self._loads = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="loads")
        self._reads = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="reads")
        self._control_waiting = threading.BoundedSemaphore(_CONTROL_QUEUE_MAX)
        self._stream_places = threading.BoundedSemaphore(streams_max)
        self.methods = sorted({*batch, *unary, *streams, *missing})

    def is_stream(self, method: str) -> bool:
        """Whether the method is a server stream."""
        return method in self._streams

    def _intake(self, model: str) -> Intake:
        """One batch of a model, at least of one call; a pipeline's calls are decoded and run one by one."""
        found = self._registry.models.get(model)
        serving = found.serving if found is not None else None
        if serving is None:
            return Intake(1, None)
        options = serving.options
        return Intake(max(1, serving.max_batch_size) if options.pipeline is None else 1, options.queue, options.instances)

    def submit_lane(
        self, model: str, calls: Sequence[Call], progress: Callable[[], None], done: Callable[[], None], go_on: Callable[[], None]
    ) -> None:
        """Calls of one model's lane; ``progress`` is called when some are answered, ``done`` when all are. Light models run at once.

        ``go_on`` is called, before anything else, when these calls wait for more of the lane.
        """
        found = self._registry.models.get(model)
        serving = found.serving if found is not None else None
        small = sum(len(c.message) for c in calls) <= _INLINE_BYTES_MAX
        # What has a ladder must not hold the reader either: others are stood in for through it.
        # And how long a run takes was measured with one length, or is not to be waited for by the next.
        o = serving.options if serving is not None else None
        plain = o is None or (o.pipeline is None and o.ladder is None and o.queue is None and o.ragged is None and o.instances == 1)
        light = serving is None or (plain and serving.run_s <= self._inline_s)
        if light and small:
            try:
                self._processor.process(calls)
            finally:
                done()
            return
        if serving is not None and (serving.options.queue is not None or serving.options.instances > 1):
            go_on()
        try:
            self._workers.submit(model, calls, progress, done)
        except LimitHit as error:
            for call in calls:
                self._refuse(call, error)
            done()

    def submit(self, call: Call) -> None:
        """One call of any method."""
        method = call.method
        if len(call.context.tenant.encode()) > _TENANT_BYTES_MAX:
            text = f"contract violation: vigil-tenant has {len(call.context.tenant.encode())} bytes, the limit is {_TENANT_BYTES_MAX}"
            self._refuse(call, ContractViolation(text, [("vigil-tenant", text)]))
        elif method in self._batch:
            self._submit_batch(call)
        elif method in self._unary:
            if not self._control_waiting.acquire(blocking=False):
                self._refuse(call, LimitHit(f"{_CONTROL_QUEUE_MAX} control calls wait", metadata={"limit": "control_queue"}))
                return
            slow, control = self._unary[method].slow, self._unary[method].control
            pool = self._loads if slow else self._control if control else self._reads
            pool.submit(self._serve_unary, call, self._unary[method])
        elif method in self._streams:
            if not self._stream_places.acquire(blocking=False):
                self._refuse(call, LimitHit("too many streams (limits.watchers_max)", metadata={"limit": "limits.watchers_max"}))
                return
            threading.Thread(target=self._serve_stream, args=(call, self._streams[method]), name="stream", daemon=True).start()
        else:
            self._refuse(call, Unimplemented(self._missing.get(method, f"{method} is not offered")))

    def _submit_batch(self, call: Call) -> None:
        try:
            measure(self._batch[call.method].request, call.message)
            request = self._batch[call.method].request.FromString(call.message)
            model = self._batch[call.method].model(request)[0]
        except DecodeError:
            model = ""
        except ContractViolation as error:
            self._refuse(call, error)
            return
        try:
            if model in self._registry.models:
                self._workers.submit(model, [call])
            else:
                self._processor.process([call])
        except LimitHit as error:
            self._refuse(call, error)

    def _parse(self, call: Call, request: type[Message]) -> Message:
        try:
            message = request.FromString(call.message)
        except DecodeError:
            text = f"the message is not a {request.DESCRIPTOR.full_name}"
            raise ContractViolation(text, [("", text)]) from None
        if self._revalidation.due(call):
            self._revalidation.check(call, message)
        return message

    def _serve_unary(self, call: Call, method: UnaryMethod) -> None:
        self._control_waiting.release()
        try:
            if call.cancelled or call.expired():
                raise DeadlineExceeded("the deadline passed, or the caller went away, before the call was served")
            # SR-049
            if method.control and not call.context.control:
                raise Forbidden("control calls are answered on loopback listeners only (setting control.allow_remote)")
            message = method.serve(self._parse(call, method.request), call)
            reply = Reply(message=message.SerializeToString())
            if method.control:
                self._record(call, reply, None)
            call.reply(call, reply)
        except CallError as error:
            self._refuse(call, error)
        except Exception as error:  # a fault of ours; the caller gets a clean error
            self._observer.fault(call, error)
            self._refuse(call, InternalFault("internal error; the log has the detail"))

    def _serve_stream(self, call: Call, method: StreamMethod) -> None:
        try:
            method.serve(call, self._parse(call, method.request))
            call.reply(call, Reply())
        except CallError as error:
            self._refuse(call, error)
        except Exception as error:  # a fault of ours; the caller gets a clean error
            self._observer.fault(call, error)
            self._refuse(call, InternalFault("internal error; the log has the detail"))
        finally:
            self._stream_places.release()

    def _record(self, call: Call, reply: Reply, error: CallError | None) -> None:
        """Write the record of a call that was not batched, and put its position into the reply."""
        entry = Entry(
            layout.KIND_ANSWER if error is None else layout.KIND_REFUSAL,
            events.CONTROL_ANSWER if error is None else error.event,
            status_code=reply.code,
            trace_id=call.context.trace_id,
            span_id=call.context.span_id,
            latency_ns=time.monotonic_ns() - call.context.arrival_ns,
            payload=call_payload(call.method, call.subject, error=error, reason=call.reason),
        )
        try:
            reply.audit_position = self._audit.position(self._audit.append([entry])[0]) if self._audit.enabled else ""
        except AuditError:
            raise _Unrecorded("the audit log cannot be written; no answer leaves without its record") from None

    def _refuse(self, call: Call, error: CallError) -> None:
        if isinstance(error, _Unrecorded):
            self._leave_unrecorded(call, error)
            return
        reply = error_reply(error, call.context)
        if "limit" in error.metadata:
            self._observer.limit_hit(error.metadata["limit"])
        try:
            self._record(call, reply, error)
        except _Unrecorded as failure:
            self._leave_unrecorded(call, failure)
            return
        call.reply(call, reply)

    def _leave_unrecorded(self, call: Call, failure: _Unrecorded) -> None:
        """Answer a call that the log counts, and does not try again to record."""
        reply = error_reply(failure, call.context)
        reply.audit_position = self._audit.position(UNLOGGED)
        call.reply(call, reply)

    def close(self) -> None:
        """Take no more control calls."""
        self._control.shutdown(wait=False, cancel_futures=True)
        self._loads.shutdown(wait=False, cancel_futures=True)
        self._reads.shutdown(wait=False, cancel_futures=True)
