"""Forms batches of jobs, runs them, and gives each job its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from time import monotonic_ns
from typing import Any

import numpy as np

from vigil_sidecar.batching import ragged
from vigil_sidecar.batching.job import Job
from vigil_sidecar.engine.arena import TRIM_BYTES, trim
from vigil_sidecar.engine.memory import is_out_of_memory, lacking, left_text
from vigil_sidecar.errors import CallError, InferenceFailed, LimitHit

__all__ = ["form_batches", "no_memory", "run_batch"]

_PATHS = re.compile(r"/\S+")
"""Places in ONNX Runtime's own sources, which callers need not see."""


def form_batches(jobs: Sequence[Job]) -> list[list[Job]]:
    """Groups of jobs that may run together, none larger than its model's largest batch, nor longer than its budget of lengths."""
    batches: list[list[Job]] = []
    open_groups: dict[object, tuple[list[Job], int, int]] = {}
    for job in jobs:
        rows = job.rows
        most = job.version.max_batch_size
        if rows == 0 or rows >= most:
            batches.append([job])
            continue
        found = open_groups.get(job.key)
        if found is None or found[1] + rows > most or _too_long(job, found[1] + rows, max(found[2], job.length)):
            group = [job]
            batches.append(group)
            open_groups[job.key] = (group, rows, job.length)
        else:
            found[0].append(job)
            open_groups[job.key] = (found[0], found[1] + rows, max(found[2], job.length))
    return batches


def _too_long(job: Job, rows: int, longest: int) -> bool:
    options = job.version.options.ragged
    return options is not None and rows * longest > options.length_max


def _finish(job: Job, arrays: Sequence[Any], size: int, row: int, longest: int = 0) -> None:
    job.batch_size, job.batch_row = size, row
    try:
        if (options := job.version.options.ragged) is not None and longest:
            arrays = ragged.cut(options, job.outputs, arrays, longest, job.length)
        job.result = job.finish(arrays)
    except CallError as error:
        job.result = error
    except MemoryError as error:
        job.result = no_memory(error)
    except Exception as error:  # a post-processing library may raise anything: it is this job's failure only
        text = f"the model's outputs could not be turned into an answer: {type(error).__name__}"
        job.result = InferenceFailed(text)


def no_memory(error: Exception) -> LimitHit:
    """For one request too much was asked of memory: that is a limit, and no fault of the model."""
    text = f"there is not enough memory for this request: {lacking(error)} was asked for{left_text()}"
    return LimitHit(f"{text} (limits.memory_reserve_bytes, limits.memory_bytes_max)", metadata={"limit": "limits.memory_reserve_bytes"})


def _failure(error: Exception) -> CallError:
    if isinstance(error, CallError):
        return error
    # SR-056
    if is_out_of_memory(error):
        return no_memory(error)
    text = _PATHS.sub("", str(error).split("\n")[0])[:300]
    return InferenceFailed(f"ONNX Runtime failed on this request: {text}")


def _feeds(jobs: Sequence[Job]) -> Mapping[str, Any]:
    first = jobs[0]
    if first.form is not None:
        return first.form.stack(jobs)
    assert first.feeds is not None
    if len(jobs) == 1:
        return first.feeds
    if (options := first.version.options.ragged) is not None:
        return ragged.stack(options, [j.feeds for j in jobs if j.feeds is not None], [j.length for j in jobs])
    return {n: np.concatenate([j.feeds[n] for j in jobs if j.feeds is not None]) for n in first.feeds}


def _answered(jobs: Sequence[Job], arrays: Sequence[Any]) -> bool:
    """Whether the form of the jobs has answered them all at once."""
    form = jobs[0].form
    try:
        return form is not None and form.answer(jobs, arrays)
    except MemoryError:  # one by one takes less
        return False


def _run_alone(job: Job) -> None:
    job.batch_size, job.batch_row = max(1, job.rows), 0
    begin_ns = monotonic_ns()
    try:
        feeds = _feeds([job])
        start_ns = monotonic_ns()
        arrays = job.version.session.run(feeds, job.outputs)
    except Exception as error:  # whatever the native run raises is this request's failure
        job.result = _failure(error)
        if isinstance(job.result, LimitHit):
            trim()  # what the nodes before had
        return
    end_ns = monotonic_ns()
    if not _answered([job], arrays):
        _finish(job, arrays, job.batch_size, 0)
    if sum([a.nbytes for a in arrays]) >= TRIM_BYTES:
        del arrays
        trim()
    job.version.statistics.executed(job.batch_size, 1, (begin_ns, start_ns, end_ns, monotonic_ns()))


def _run_acceptable(jobs: Sequence[Job]) -> None:
    good = []
    for job in jobs:
        try:
            _feeds([job])
            good.append(job)
        except CallError as error:
            job.result, job.batch_size = error, max(1, job.rows)
    if 0 < len(good) < len(jobs):
        run_batch(good)
    else:
        for job in good:
            _run_alone(job)


def run_batch(jobs: Sequence[Job]) -> None:
    """Run jobs of one key together; when that fails, one by one, so that a bad one fails alone.

    Every job has a result afterwards. Invariant: the sum of ``rows`` is the first
    axis of every output, otherwise the batch counts as failed.
    """
    if len(jobs) == 1:
        _run_alone(jobs[0])
        return
    rows, version = sum([j.rows for j in jobs]), jobs[0].version
    begin_ns = start_ns = monotonic_ns()
    try:
        feeds = _feeds(jobs)
        start_ns = monotonic_ns()
        arrays = version.session.run(feeds, jobs[0].outputs)
    except CallError:  # some job's tensors must be refused: the others still run together
        _run_acceptable(jobs)
        return
    except Exception as error:  # some job is bad: find out which by running each alone
        arrays = []
        if is_out_of_memory(error):
            trim()
    if not arrays or any(a.ndim == 0 or a.shape[0] != rows for a in arrays):
        for job in jobs:
            _run_alone(job)
        return
    end_ns, at = monotonic_ns(), 0
    for job in jobs:
        job.batch_size, job.batch_row = rows, at
        at += job.rows
    if not _answered(jobs, arrays):
        longest = max(j.length for j in jobs)
        for job in jobs:
            _finish(job, [a[job.batch_row : job.batch_row + job.rows] for a in arrays], rows, job.batch_row, longest)
    version.statistics.executed(rows, len(jobs), (begin_ns, start_ns, end_ns, monotonic_ns()))
