"""From calls to replies: decode, batch, run, record, answer."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message

from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import SAFETY_CODES, ZERO32, Entry
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.batching.batcher import Outcome, form_batches, run_batch
from vigil_sidecar.batching.job import Job
from vigil_sidecar.errors import AuditError, CallError, ContractViolation, DeadlineExceeded, InternalFault, Unavailable
from vigil_sidecar.registry.registry import Registry
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.call import Call, Reply
from vigil_sidecar.server.measure import measure
from vigil_sidecar.server.payloads import call_payload
from vigil_sidecar.server.revalidation import Revalidation
from vigil_sidecar.server.status import error_reply

__all__ = ["BatchMethod", "BatchObserver", "Processor"]


class BatchMethod(NamedTuple):
    """A method whose calls are batched: its request, the model it names, and how to make a job."""

    request: type[Message]
    model: Callable[[Any], tuple[str, str]]
    job: Callable[[Call, Any, LoadedVersion], Job]


class BatchObserver(Protocol):
    """Told of each batch and each finished call, for metrics and traces."""

    def batch(self, outcomes: Sequence[Outcome], start_ns: int, end_ns: int) -> None:
        """A batch was run between the two monotonic times."""

    def finished(self, call: Call, code: int, model: str, version: str) -> None:
        """A call got its final status."""

    def limit_hit(self, limit: str) -> None:
        """A named limit refused a call."""

    def fault(self, call: Call, error: Exception) -> None:
        """Vigil itself failed on a call; the detail is for the log only."""


class _Done(NamedTuple):
    call: Call
    outcome: Outcome | None
    error: CallError | None
    model: str
    version: LoadedVersion | None
    request_id: str


class Processor:
    """Stateless between calls; ``process`` may run in several threads at once."""

    def __init__(
        self, registry: Registry, audit: AuditWriter, methods: dict[str, BatchMethod], revalidation: Revalidation,
        observer: BatchObserver, model_state: Callable[[str], str],
    ) -> None:  # fmt: skip
        self._registry, self._audit, self._methods = registry, audit, methods
        self._revalidation, self._observer, self._model_state = revalidation, observer, model_state
        self._payloads: dict[tuple[str, str], bytes] = {}

    def process(self, calls: Sequence[Call]) -> None:
        """Answer every call, whatever happens; never raises."""
        answered: set[int] = set()
        try:
            self._process(calls, answered)
        except Exception as error:  # a fault of ours: those without a reply get a clean error
            for call in calls:
                if call.id not in answered:
                    self._observer.fault(call, error)
                    call.reply(call, error_reply(InternalFault("internal error; the log has the detail"), call.context))

    def _process(self, calls: Sequence[Call], answered: set[int]) -> None:
        done: list[_Done] = []
        jobs: list[Job] = []
        leased: dict[tuple[str, str], LoadedVersion] = {}
        try:
            for call in calls:
                self._prepare(call, leased, jobs, done)
            for batch in form_batches(jobs):
                start_ns = time.monotonic_ns()
                outcomes = self._run(batch, done)
                if outcomes:
                    self._observer.batch(outcomes, start_ns, time.monotonic_ns())
                for o in outcomes:
                    error = o.result if isinstance(o.result, CallError) else None
                    done.append(_Done(o.job.call, o, error, o.job.version.model, o.job.version, o.job.request_id))
            self._record_and_reply(done, answered)
        finally:
            for version in leased.values():
                version.release()

    def _prepare(self, call: Call, leased: dict[tuple[str, str], LoadedVersion], jobs: list[Job], done: list[_Done]) -> None:
        name, version = "", None
        try:
            self._check_alive(call)
            method = self._methods[call.method]
            if not call.context.validated:
                measure(method.request, call.message)
            try:
                request = method.request.FromString(call.message)
            except DecodeError:
                text = f"the message is not a {method.request.DESCRIPTOR.full_name}"
                raise ContractViolation(text, [("", text)]) from None
            self._revalidation.check(call, request)
            name, number = method.model(request)
            version = leased.get((name, number))
            if version is None:
                version = self._registry.lease(name, number)
                leased[name, number] = version
            jobs.append(method.job(call, request, version))
        except CallError as error:
            done.append(_Done(call, None, error, name, version, ""))
        except Exception as error:  # a fault of ours must not take the neighbours with it
            self._observer.fault(call, error)
            done.append(_Done(call, None, InternalFault("internal error; the log has the detail"), name, version, ""))

    def _check_alive(self, call: Call) -> None:
        if call.expired():
            raise DeadlineExceeded("the deadline passed before the call was computed")
        if call.cancelled:
            error = CallError("the caller went away")
            error.code, error.event, error.reason = 1, events.CANCELLED, "CANCELLED"
            raise error

    def _run(self, batch: list[Job], done: list[_Done]) -> list[Outcome]:
        alive = []
        for job in batch:
            try:
                self._check_alive(job.call)
                alive.append(job)
            except CallError as error:
                done.append(_Done(job.call, None, error, job.version.model, job.version, job.request_id))
        try:
            return run_batch(alive) if alive else []
        except Exception as error:  # a fault of ours in one batch must not lose its calls
            for job in alive:
                self._observer.fault(job.call, error)
                fault = InternalFault("internal error; the log has the detail")
                done.append(_Done(job.call, None, fault, job.version.model, job.version, job.request_id))
            return []

    def _entry(self, d: _Done, state: str) -> Entry:
        context, version, outcome = d.call.context, d.version, d.outcome
        error = d.error
        entry = Entry(
            layout.KIND_ANSWER if error is None else layout.KIND_REFUSAL,
            events.ANSWER if error is None else error.event,
            SAFETY_CODES.get(state, 0) if version is not None else 0,
            1 if error is None else 0,
            0 if error is None else error.code,
            context.trace_id,
            context.span_id,
            time.monotonic_ns() - context.arrival_ns,
        )
        if version is not None:
            entry.model_digest, entry.model_version = version.digest_bytes, version.number
        if d.request_id:
            entry.request_id_hash = hashlib.sha256(d.request_id.encode()).digest()
        if context.tenant:
            entry.tenant_hash = hashlib.sha256(context.tenant.encode()).digest()
        if outcome is not None:
            entry.batch_size, entry.batch_row = outcome.batch_size, outcome.batch_row
            entry.input_hash = outcome.job.input_hash
            entry.output_hash = ZERO32 if isinstance(outcome.result, CallError) else outcome.result.output_hash
        if error is None and outcome is not None and not outcome.job.source_id:
            key = (d.call.method, d.model)
            payload = self._payloads.get(key)
            if payload is None:
                payload = call_payload(d.call.method, d.model)
                if len(self._payloads) < 4096:
                    self._payloads[key] = payload
            entry.payload = payload
        else:
            source = outcome.job.source_id if outcome is not None else ""
            entry.payload = call_payload(d.call.method, d.model, d.request_id, source, error)
        return entry

    def _record_and_reply(self, done: list[_Done], answered: set[int]) -> None:
        if not done:
            return
        states = {name: self._model_state(name) for name in {d.model for d in done}}
        try:
            sequences = self._audit.append([self._entry(d, states[d.model]) for d in done])
        except AuditError:
            for d in done:
                refusal = Unavailable("the audit log cannot be written; no answer leaves without its record")
                answered.add(d.call.id)
                self._send(d, error_reply(refusal, d.call.context), states[d.model])
            return
        enabled = self._audit.enabled
        for d, sequence in zip(done, sequences, strict=True):
            position = self._audit.position(sequence) if enabled else ""
            if d.error is not None or d.outcome is None or isinstance(d.outcome.result, CallError):
                reply = error_reply(d.error or InternalFault("internal error"), d.call.context)
            else:
                reply = Reply(message=d.outcome.result.encode(position), batch_size=d.outcome.batch_size)
            reply.audit_position = position
            answered.add(d.call.id)
            self._send(d, reply, states[d.model])

    def _send(self, d: _Done, reply: Reply, state: str) -> None:
        if d.version is not None:
            reply.model_version = d.version.text
            reply.safety_state = state
        if d.error is not None and "limit" in d.error.metadata:
            self._observer.limit_hit(d.error.metadata["limit"])
        d.call.reply(d.call, reply)
        self._observer.finished(d.call, reply.code, d.model, reply.model_version)
