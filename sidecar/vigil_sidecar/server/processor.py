"""From calls to replies: decode, batch, run, record, answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message

from vigil_safety import events_gen as events
from vigil_safety.table import worst
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import SAFETY_CODES, ZERO32, Entry
from vigil_sidecar.audit.recorder import UNLOGGED, Recorder
from vigil_sidecar.batching.batcher import form_batches, no_memory, run_batch
from vigil_sidecar.batching.job import Job, JobResult
from vigil_sidecar.errors import AuditError, CallError, ContractViolation, InternalFault, Resting, Unavailable
from vigil_sidecar.registry.registry import Registry
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.call import Call, Reply, check_alive
from vigil_sidecar.server.forms import Recognised
from vigil_sidecar.server.measure import measure
from vigil_sidecar.server.payloads import call_payload, stand_in_payload
from vigil_sidecar.server.revalidation import Revalidation
from vigil_sidecar.server.status import error_reply

__all__ = ["BatchMethod", "BatchObserver", "Processor"]

_PAYLOADS_MAX = 4096
_SAFE_STOP = "SAFE_STOP"
_RULE = 3
"""Quality "rule" in a record."""


class BatchMethod(NamedTuple):
    """A method whose calls are batched: its request, the model it names, and how to make a job.

    ``recognise`` and ``quick_job`` do both for messages of a known form without
    decoding them (``forms``); None from either means that the message must be decoded.
    """

    request: type[Message]
    model: Callable[[Any], tuple[str, str]]
    job: Callable[[Call, Any, LoadedVersion], Job]
    recognise: Callable[[bytes], Recognised | None] = lambda message: None
    quick_job: Callable[[Call, Recognised, LoadedVersion], Job | None] = lambda call, found, version: None


class BatchObserver(Protocol):
    """Told of each batch and of failures, for metrics and traces."""

    def begin(self, version: LoadedVersion) -> None:
        """This thread runs a batch of a version; ``batch`` follows on it, or ``ended``."""

    def ended(self) -> None:
        """The run that this thread began has ended without a batch."""

    def batch(self, jobs: Sequence[Job], start_ns: int, end_ns: int) -> None:
        """A batch was run between the two monotonic times."""

    def limit_hit(self, limit: str) -> None:
        """A named limit refused a call."""

    def fault(self, call: Call, error: Exception) -> None:
        """Vigil itself failed on a call; the detail is for the log only."""


class _Refused(NamedTuple):
    """A call that did not become a job, or whose job was not run."""

    call: Call
    error: CallError
    model: str
    version: LoadedVersion | None
    request_id: str = ""
    source_id: str = ""


def _named(request: Message | None) -> tuple[str, str]:
    """Request id and source id of a decoded request, as far as it has them."""
    request_id = getattr(request, "request_id", "") or getattr(request, "id", "")
    return str(request_id), str(getattr(request, "source_id", ""))


def _nowhere(sequence: int) -> str:
    """The position of a record in a log that is switched off."""
    return ""


_INTERNAL = "internal error; the log has the detail"


class Processor:
    """Stateless between calls; ``process`` may run in several threads at once."""

    def __init__(
        self, registry: Registry, audit: Recorder, methods: dict[str, BatchMethod], revalidation: Revalidation,
        observer: BatchObserver, model_state: Callable[[str], str],
        rests: Callable[[str], Resting | None],
    ) -> None:  # fmt: skip
        """``rests`` is the error of a model that has a ladder and must not answer; None when it may."""
        self._registry, self._audit, self._methods = registry, audit, methods
        self._revalidation, self._observer, self._model_state = revalidation, observer, model_state
        self._rests = rests
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
                    call.reply(call, error_reply(InternalFault(_INTERNAL), call.context))

    def _process(self, calls: Sequence[Call], answered: set[int]) -> None:
        refused: list[_Refused] = []
        jobs: list[Job] = []
        done: list[Job] = []
        leased: dict[tuple[str, str], LoadedVersion] = {}
        try:
            for call in calls:
                self._prepare(call, leased, jobs, refused)
            for batch in form_batches(jobs):
                start_ns = time.monotonic_ns()
                self._observer.begin(batch[0].version)
                ran = self._run(batch, refused)
                if ran:
                    end_ns = time.monotonic_ns()
                    self._observer.batch(ran, start_ns, end_ns)
                    good = [j.call.context.arrival_ns for j in ran if isinstance(j.result, JobResult)]
                    bad = [j.call.context.arrival_ns for j in ran if not isinstance(j.result, JobResult)] if len(good) < len(ran) else []
                    ran[0].version.statistics.answered(good, bad, start_ns, end_ns)
                    done += ran
                else:
                    self._observer.ended()
            self._record_and_reply(done, refused, answered)
        finally:
            for version in leased.values():
                version.release()

    def _prepare(self, call: Call, leased: dict[tuple[str, str], LoadedVersion], jobs: list[Job], refused: list[_Refused]) -> None:
        name, version, request = "", None, None
        try:
            if call.cancelled or call.context.deadline_ns:
                check_alive(call)
            method = self._methods[call.method]
            due = self._revalidation.due(call)
            if not due:
                found = method.recognise(call.message)
                if found is not None:
                    name = found.model
                    version = leased.get((name, found.version)) or self._lease(name, found.version, leased)
                    job = method.quick_job(call, found, version)
                    if job is not None:
                        jobs.append(job)
                        return
            request = self._decode(call, method)
            if due:
                self._revalidation.check(call, request)
            name, number = method.model(request)
            version = leased.get((name, number)) or self._lease(name, number, leased)
            jobs.append(method.job(call, request, version))
        except CallError as error:
            refused.append(_Refused(call, error, name, version, *_named(request)))
        except MemoryError as error:
            refused.append(_Refused(call, no_memory(error), name, version, *_named(request)))
        except Exception as error:  # a fault of ours must not take the neighbours with it
            self._observer.fault(call, error)
            refused.append(_Refused(call, InternalFault(_INTERNAL), name, version, *_named(request)))

    def _lease(self, name: str, number: str, leased: dict[tuple[str, str], LoadedVersion]) -> LoadedVersion:
        version = self._registry.lease(name, number)
        if version.options.ladder is not None and (why := self._rests(name)):
            version.release()
            raise why
        leased[name, number] = version
        return version

    @staticmethod
    def _decode(call: Call, method: BatchMethod) -> Message:
        if not call.context.validated:
            measure(method.request, call.message)
        try:
            return method.request.FromString(call.message)
        except DecodeError:
            text = f"the message is not a {method.request.DESCRIPTOR.full_name}"
            raise ContractViolation(text, [("", text)]) from None

    def _run(self, batch: list[Job], refused: list[_Refused]) -> list[Job]:
        alive = batch
        if any(j.call.cancelled or j.call.context.deadline_ns for j in batch):
            alive = []
            for job in batch:
                try:
                    check_alive(job.call)
                    alive.append(job)
                except CallError as error:
                    refused.append(_Refused(job.call, error, job.version.model, job.version, job.request_id, job.source_id))
        try:
            if alive:
                run_batch(alive)
            return alive
        except Exception as error:  # a fault of ours in one batch must not lose its calls
            for job in alive:
                self._observer.fault(job.call, error)
                job.result = InternalFault(_INTERNAL)
            return alive

    def _entry(self, job: Job, state: int, now_ns: int) -> Entry:
        """The record of a job that was run."""
        call, version, result = job.call, job.version, job.result
        context = call.context
        if isinstance(result, JobResult):
            kind, event, quality, code, output_hash = layout.KIND_ANSWER, events.ANSWER, 1, 0, result.output_hash
            if context.stands_for:
                event, quality, payload = events.STAND_IN_ANSWER, _RULE, stand_in_payload(call, job, version.model)
            else:
                payload = b"" if job.source_id else self._payload(call.method, version.model)
        else:
            error = result if result is not None else InternalFault(_INTERNAL)
            kind, event, quality, code, output_hash = layout.KIND_REFUSAL, error.event, 0, error.code, ZERO32
            payload = call_payload(call.method, version.model, job.request_id, job.source_id, error)
        return Entry(
            kind, event, state, quality, code, context.trace_id, context.span_id, now_ns - context.arrival_ns,
            job.batch_size, job.batch_row, sha256(job.request_id.encode()).digest() if job.request_id else ZERO32,
            sha256(context.tenant.encode()).digest() if context.tenant else ZERO32,
            version.digest_bytes, version.number, job.input_hash, output_hash,
            payload or call_payload(call.method, version.model, job.request_id, job.source_id),
        )  # fmt: skip

    def _refused_entry(self, r: _Refused, state: int, now_ns: int) -> Entry:
        context, version = r.call.context, r.version
        entry = Entry(
            layout.KIND_REFUSAL, r.error.event, state if version is not None else 0, 0, r.error.code,
            context.trace_id, context.span_id, now_ns - context.arrival_ns,
            payload=call_payload(r.call.method, r.model, r.request_id, r.source_id, r.error),
        )  # fmt: skip
        if version is not None:
            entry.model_digest, entry.model_version = version.digest_bytes, version.number
        if r.request_id:
            entry.request_id_hash = sha256(r.request_id.encode()).digest()
        if context.tenant:
            entry.tenant_hash = sha256(context.tenant.encode()).digest()
        return entry

    def _payload(self, method: str, model: str) -> bytes:
        """Payload of an answer of which nothing but method and model needs words."""
        found = self._payloads.get((method, model))
        if found is None:
            found = call_payload(method, model)
            if len(self._payloads) < _PAYLOADS_MAX:
                self._payloads[method, model] = found
        return found

    def _record_and_reply(self, done: list[Job], refused: list[_Refused], answered: set[int]) -> None:
        if not done and not refused:
            return
        states = {name: self._model_state(name) for name in {j.version.model for j in done} | {r.model for r in refused}}
        asked = {j.call.context.stands_for for j in done} - {""}
        states |= {name: worst(["DEGRADED", self._model_state(name)]) for name in asked}
        for job in done:  # with a ladder nothing of a model leaves that stopped being Normal while it ran
            if job.version.options.ladder is not None and isinstance(job.result, JobResult) and (why := self._rests(job.version.model)):
                job.result = why
            elif isinstance(job.result, CallError) and states[job.version.model] == _SAFE_STOP:
                job.result.stand_in = False  # it may be what stopped the model: a stop is for a person to end
        codes = {name: SAFETY_CODES.get(state, 0) for name, state in states.items()}
        now_ns = time.monotonic_ns()
        entries = [self._refused_entry(r, codes[r.model], now_ns) for r in refused]
        entries += [self._entry(j, codes[j.call.context.stands_for or j.version.model], now_ns) for j in done]
        try:
            sequences = self._audit.append(entries)
        except AuditError:
            gone = Unavailable("the audit log cannot be written; no answer leaves without its record")
            gone.stand_in = True  # the gateway may have a record of what stands in
            for call in [r.call for r in refused] + [j.call for j in done]:
                answered.add(call.id)
                reply = error_reply(gone, call.context)
                reply.audit_position = self._audit.position(UNLOGGED)
                call.reply(call, reply)
            return
        position = self._audit.position if self._audit.enabled else _nowhere
        for r, sequence in zip(refused, sequences, strict=False):
            reply = error_reply(r.error, r.call.context)
            if r.version is not None:
                r.version.statistics.refused(now_ns - r.call.context.arrival_ns)
                reply.model_version, reply.safety_state = r.version.text, states[r.model]
            self._send(r.call, r.error, reply, position(sequence), answered)
        for job, sequence in zip(done, sequences[len(refused) :], strict=True):
            self._answer(job, states[job.call.context.stands_for or job.version.model], position(sequence), answered)

    def _answer(self, job: Job, state: str, position: str, answered: set[int]) -> None:
        call, result = job.call, job.result
        if isinstance(result, JobResult):
            message = result.answer if isinstance(result.answer, bytes) else result.answer(position)
            # SR-009
            call.reply(call, Reply(0, "", message, b"", False, position, job.version.text, job.batch_size, state))
            answered.add(call.id)
            return
        error = result if result is not None else InternalFault(_INTERNAL)
        reply = error_reply(error, call.context)
        reply.model_version, reply.safety_state = job.version.text, state
        self._send(call, error, reply, position, answered)

    def _send(self, call: Call, error: CallError, reply: Reply, position: str, answered: set[int]) -> None:
        if "limit" in error.metadata:
            self._observer.limit_hit(error.metadata["limit"])
        reply.audit_position = position
        call.reply(call, reply)
        answered.add(call.id)
