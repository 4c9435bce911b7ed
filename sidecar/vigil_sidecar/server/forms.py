"""Calls whose message differs from an earlier one only in id and tensor bytes: recognised without decoding them.

Most callers send one form of request over and over. The first such request is
decoded and checked in full (``open_inference``); what was found out about
everything but the id and the raw bytes is kept under exactly those bytes, the
*head*. A later message with the same head has the same meaning, so only its raw
bytes are looked at: their lengths, that they are finite, and that they hold what
the shape says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from inference.grpc_service_pb2 import ModelInferRequest

from vigil_sidecar.audit.tensor_hash import tensor_prefix, uvarint
from vigil_sidecar.batching.job import Job, JobResult
from vigil_sidecar.engine.datatypes import FLOATS, ITEM_BYTES, NUMPY
from vigil_sidecar.errors import LimitHit, OutputViolation
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.server.call import Call
from vigil_sidecar.server.classification import FinishClasses, classes_wanted
from vigil_sidecar.server.open_inference import (
    CACHE_MAX,
    RAW_TAG,
    Finish,
    answer_head,
    bounded,
    check_shape,
    finite,
    id_field,
    infer_job,
    not_finite,
    plausible,
)

__all__ = ["InferForms", "Recognised", "TensorForm"]

_HEAD_BYTES_MAX = 1024
_HEADS_MAX = 4096
_NAME_TAG, _VERSION_TAG, _ID_TAG = 0x0A, 0x12, 0x1A
_COPY_BYTES_MAX = 4096
"""Tensors up to here are copied out of their message; above, a view costs less."""


class _Input(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """Of one row where rows are batched, else of the whole tensor."""
    finite: bool


class _OutputSlice(NamedTuple):
    prefix: bytes
    """What the hash of this output begins with (docs/audit-format.md)."""
    lead: bytes
    """Field tag and length before the raw bytes in the answer."""


class TensorForm:
    """Requests of one version with equal names, types and row shapes. Any thread may use it."""

    def __init__(self, version: LoadedVersion, names: tuple[str, ...], inputs: Sequence[_Input], batched: bool) -> None:
        self.version, self.names, self.inputs, self.batched = version, names, inputs, batched
        self._answers: dict[object, tuple[bytes, list[_OutputSlice]]] = {}

    def stack(self, jobs: Sequence[Job]) -> Mapping[str, Any]:
        """Feeds of all jobs as one; raises ``SemanticViolation`` when a number is not finite."""
        feeds = {}
        for i, t in enumerate(self.inputs):
            raw = jobs[0].raws[i] if len(jobs) == 1 else b"".join([j.raws[i] for j in jobs])
            array = np.frombuffer(raw, t.dtype)
            # SR-007
            if t.finite and not finite(array):
                raise not_finite(t.name)
            feeds[t.name] = array.reshape((-1, *t.shape) if self.batched else t.shape)
        return feeds

    def answer(self, jobs: Sequence[Job], arrays: Sequence[Any]) -> bool:
        """Set the result of every job; False when an output of the batch violates a limit or has another shape than declared."""
        try:
            return plausible(self.version, arrays) and self._answer(jobs, arrays)
        except OutputViolation:  # of a shape not seen before: whose it is, is found out one by one
            return False

    def _answer(self, jobs: Sequence[Job], arrays: Sequence[Any]) -> bool:
        whole = [a.tobytes() for a in arrays]
        if not self.batched:
            self._answer_one(jobs[0], self._plan(0, tuple([a.shape for a in arrays])), whole)
            return True
        total = jobs[0].batch_size
        if any(a.ndim == 0 or a.shape[0] != total for a in arrays):
            return False
        row_shapes = tuple([a.shape[1:] for a in arrays])
        widths = [len(w) // total for w in whole]
        for job in jobs:
            at, rows = job.batch_row, job.rows
            raws = whole if rows == total else [w[at * n : (at + rows) * n] for w, n in zip(whole, widths, strict=True)]
            self._answer_one(job, self._plan(rows, row_shapes), raws)
        return True

    def _answer_one(self, job: Job, plan: tuple[bytes, list[_OutputSlice]], raws: Sequence[bytes]) -> None:
        head, slices = plan
        request_id = job.request_id
        if len(raws) == 1:  # the common case, and the order of names does not matter
            raw = raws[0]
            digest = hashlib.sha256(slices[0].prefix + raw).digest()
            message = head + slices[0].lead + raw
        else:
            hasher = hashlib.sha256()
            parts = [head]
            for i in sorted(range(len(raws)), key=lambda i: self.names[i].encode()):
                hasher.update(slices[i].prefix + raws[i])
            for one, raw in zip(slices, raws, strict=True):
                parts += [one.lead, raw]
            digest, message = hasher.digest(), b"".join(parts)
        try:
            job.result = JobResult(digest, bounded(id_field(request_id) + message if request_id else message))
        except LimitHit as error:
            job.result = error

    def _plan(self, rows: int, shapes: tuple[tuple[int, ...], ...]) -> tuple[bytes, list[_OutputSlice]]:
        """Head of an answer, and what stands before each output, for this number of rows (0: shapes are whole)."""
        found = self._answers.get((rows, shapes))
        if found is not None:
            return found
        full = tuple([(rows, *s) for s in shapes]) if self.batched else shapes
        slices = []
        for name, shape in zip(self.names, full, strict=True):
            check_shape(name, shape, self.version)
            datatype = self.version.outputs[name].datatype
            size = ITEM_BYTES[datatype] * int(np.prod(shape, dtype=np.int64))
            slices.append(_OutputSlice(tensor_prefix(name, datatype, shape, size), RAW_TAG + uvarint(size)))
        made = (answer_head(self.version, self.names, full), slices)
        if len(self._answers) < CACHE_MAX:
            self._answers[rows, shapes] = made
        return made


class _Plan(NamedTuple):
    """What is known of messages with one head."""

    form: TensorForm
    rows: int
    places: tuple[tuple[int, int], ...]
    """Where each raw tensor begins and ends, counted from the end of the message."""
    between: tuple[tuple[int, bytes], ...]
    """What stands before each but the first raw tensor: its tag and length, at a place counted from the end."""
    prefixes: tuple[tuple[int, bytes], ...]
    """Index of each tensor in the order of the hash, and what its hash begins with."""


class Recognised(NamedTuple):
    """A message whose head is known: the model and version that it names, its head and its id."""

    model: str
    version: str
    head: bytes
    request_id: bytes


def _id_place(message: bytes) -> tuple[int, int]:
    """Where the field ``id`` begins and ends (equal without one); (0, 0) when the message is not of the usual form.

    Looks at the lengths of name, version and id only when each has one byte.
    """
    at = 0
    for tag in (_NAME_TAG, _VERSION_TAG):
        if message[at] == tag:
            if message[at + 1] > 0x7F:
                return 0, 0
            at += 2 + message[at + 1]
        elif tag == _NAME_TAG:
            return 0, 0
    if message[at] != _ID_TAG:
        return at, at
    if message[at + 1] > 0x7F:
        return 0, 0
    return at, at + 2 + message[at + 1]


class InferForms:
    """Known heads of ModelInfer requests. Any thread may use it."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, str]] = {}
        self._tails: dict[int, tuple[int, ...]] = {}
        """How many bytes from the end the first raw tensor begins, by the message's size without its id."""

    def recognise(self, message: bytes) -> Recognised | None:
        """What the message names, when its head is known."""
        try:
            start, end = _id_place(message)
        except IndexError:
            return None
        size = len(message) - end + start
        for tail in self._tails.get(size, ()):
            head = message[:start] + message[end:-tail] if end > start else message[:-tail]
            known = self._known.get(head)
            if known is not None:
                return Recognised(known[0], known[1], head, message[start + 2 : end])
        return None

    def quick_job(self, call: Call, found: Recognised, version: LoadedVersion) -> Job | None:
        """The job of a recognised message, or None when this version has not seen its head yet."""
        plan = version.plans.get(found.head)
        if plan is None:
            return None
        message = call.message
        for place, expected in plan.between:
            if message[place : place + len(expected)] != expected:
                return None
        form, raws = plan.form, self._raws(plan, message)
        if len(raws) == 1:
            prefix, raw = plan.prefixes[0][1], raws[0]
            if isinstance(raw, bytes):
                digest = hashlib.sha256(prefix + raw).digest()
            else:
                hasher = hashlib.sha256(prefix)
                hasher.update(raw)
                digest = hasher.digest()
        else:
            hasher = hashlib.sha256()
            for i, prefix in plan.prefixes:
                hasher.update(prefix)
                hasher.update(raws[i])
            digest = hasher.digest()
        try:
            request_id = found.request_id.decode()
        except UnicodeDecodeError:
            return None
        return Job(
            call, version, plan.rows, form.names, form, digest, request_id, Finish(request_id, version, form.names), "", None, form, raws
        )  # fmt: skip

    @staticmethod
    def _raws(plan: _Plan, message: bytes) -> list[bytes | memoryview]:
        if len(message) <= _COPY_BYTES_MAX:
            return [message[start : end or None] for start, end in plan.places]
        view = memoryview(message)
        return [view[start : end or None] for start, end in plan.places]

    def job(self, call: Call, request: ModelInferRequest, version: LoadedVersion) -> Job:
        """A checked job of a decoded request; its head is kept, if it can be. Raises ``SemanticViolation``."""
        job = infer_job(call, request, version)
        if request.outputs and (counts := classes_wanted(request, version)):
            job.finish = FinishClasses(job.request_id, version, job.outputs, counts, version.max_batch_size > 0)
            return job
        if version.options.ragged is not None:  # its neighbours are told apart by arrays, not by bytes
            return job
        message = call.message
        try:
            start, end = _id_place(message)
        except IndexError:
            return job
        tail, places, between = self._layout(request)
        split = len(message) - tail
        if not tail or end == 0 or end > split or split - (end - start) > _HEAD_BYTES_MAX:
            return job
        head = message[:start] + message[end:split]
        plan = version.plans.get(head)
        if plan is None:
            form = self._form(job)
            if form is None or not self._is_head(head, request):
                return job
            if any(message[p : p + len(b)] != b for p, b in between):
                return job
            prefixes = tuple(
                (i, tensor_prefix(t.name, t.datatype, tuple(t.shape), len(request.raw_input_contents[i])))
                for i, t in sorted(enumerate(request.inputs), key=lambda x: x[1].name.encode())
            )
            plan = _Plan(form, job.rows, places, between, prefixes)
            if len(version.plans) >= CACHE_MAX:
                version.plans.clear()
            version.plans[head] = plan
        if head not in self._known:
            self._keep(head, len(message) - (end - start), tail, request)
        job.key, job.form, job.raws, job.feeds = plan.form, plan.form, self._raws(plan, message), None
        return job

    @staticmethod
    def _layout(request: ModelInferRequest) -> tuple[int, tuple[tuple[int, int], ...], tuple[tuple[int, bytes], ...]]:
        """Bytes from the first raw tensor to the end, each tensor's place, and what stands between them."""
        places: list[tuple[int, int]] = []
        between: list[tuple[int, bytes]] = []
        at = 0
        for raw in reversed(request.raw_input_contents):
            places.append((-(at + len(raw)), -at))
            at += len(raw)
            lead = bytes([ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2]) + uvarint(len(raw))
            between.append((-(at + len(lead)), lead))
            at += len(lead)
        if not places or not all(request.raw_input_contents):
            return 0, (), ()
        return -places[-1][0], tuple(reversed(places)), tuple(reversed(between[:-1]))

    @staticmethod
    def _is_head(head: bytes, request: ModelInferRequest) -> bool:
        """Whether the request is exactly what the head says, plus id and raw bytes."""
        count = len(request.raw_input_contents)
        first = len(request.raw_input_contents[0])
        lead = bytes([ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2]) + uvarint(first)
        if not head.endswith(lead) or count != len(request.inputs):
            return False
        try:
            alone = ModelInferRequest.FromString(head[: -len(lead)])
        except DecodeError:
            return False
        whole = ModelInferRequest()
        whole.CopyFrom(request)
        whole.ClearField("id")
        whole.ClearField("raw_input_contents")
        # Encoded anew it must be the same bytes: no field twice, none unknown, none that hides behind its default.
        return bool(alone == whole) and alone.SerializeToString(deterministic=True) == head[: -len(lead)]

    @staticmethod
    def _form(job: Job) -> TensorForm | None:
        """The form of a job whose tensors all have elements of one size; None for others."""
        version = job.version
        assert job.feeds is not None
        types = {n: version.inputs[n].datatype for n in job.feeds}
        fixed = [*types.values(), *(version.outputs[n].datatype for n in job.outputs)]
        if "BOOL" in types.values() or any(t not in ITEM_BYTES for t in fixed):
            return None
        batched = job.rows > 0
        shapes = tuple([(n, a.shape[1:] if batched else a.shape) for n, a in job.feeds.items()])
        found: TensorForm | None = version.forms.get((job.outputs, batched, shapes))
        if found is None:
            if len(version.forms) >= CACHE_MAX:
                return None
            strict = version.options.finite_inputs
            inputs = [_Input(n, NUMPY[types[n]], s, strict and types[n] in FLOATS) for n, s in shapes]
            found = TensorForm(version, job.outputs, inputs, batched)
            version.forms[job.outputs, batched, shapes] = found
        return found

    def _keep(self, head: bytes, size: int, tail: int, request: ModelInferRequest) -> None:
        if len(self._known) >= _HEADS_MAX or len(self._tails) >= _HEADS_MAX:
            self._known.clear()
            self._tails.clear()
        self._known[head] = (request.model_name, request.model_version)
        tails = self._tails.get(size, ())
        if tail not in tails:
            self._tails[size] = (tail, *tails)[:4]
