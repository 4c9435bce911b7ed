"""Forms batches of jobs, runs them, and gives each job its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vigil_sidecar.batching.job import Job, JobResult
from vigil_sidecar.errors import CallError, InferenceFailed

__all__ = ["Outcome", "form_batches", "run_batch"]

_PATHS = re.compile(r"/\S+")
"""Places in ONNX Runtime's own sources, which callers need not see."""


class Outcome(NamedTuple):
    """A job's result or error, the batch's rows, and the job's first row in it."""

    job: Job
    result: JobResult | CallError
    batch_size: int
    batch_row: int


def form_batches(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Groups of jobs that may run together, none larger than its model's largest batch."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        if job.rows == 0 or job.rows >= job.version.max_batch_size:
            yield [job]
            continue
        group = groups.setdefault(job.key, [])
        if sum(j.rows for j in group) + job.rows > job.version.max_batch_size:
            yield groups.pop(job.key)
            group = groups.setdefault(job.key, [])
        group.append(job)
    yield from groups.values()


def _finish(job: Job, arrays: Sequence[Any], size: int, row: int, checked: bool = False) -> Outcome:
    try:
        return Outcome(job, job.finish(arrays, True) if checked else job.finish(arrays), size, row)
    except CallError as error:
        return Outcome(job, error, size, row)
    except Exception as error:  # a post-processing library may raise anything: it is this job's failure only
        text = f"the model's outputs could not be turned into an answer: {type(error).__name__}"
        return Outcome(job, InferenceFailed(text), size, row)


def _failure(error: Exception) -> InferenceFailed:
    text = _PATHS.sub("", str(error).split("\n")[0])[:300]
    return InferenceFailed(f"ONNX Runtime failed on this request: {text}")


def _run_alone(job: Job) -> Outcome:
    size = max(1, job.rows)
    try:
        arrays = job.version.session.run(job.feeds, job.outputs)
    except Exception as error:  # whatever the native run raises is this request's failure
        return Outcome(job, _failure(error), size, 0)
    return _finish(job, arrays, size, 0)


def run_batch(jobs: list[Job]) -> list[Outcome]:
    """Run jobs of one key together; when that fails, one by one, so that a bad one fails alone.

    Invariant: the sum of ``rows`` is the first axis of every output, otherwise
    the batch counts as failed.
    """
    if len(jobs) == 1:
        return [_run_alone(jobs[0])]
    version, names = jobs[0].version, jobs[0].outputs
    rows = sum(j.rows for j in jobs)
    try:
        feeds = {n: np.concatenate([j.feeds[n] for j in jobs]) for n in jobs[0].feeds}
        arrays = version.session.run(feeds, names)
        if any(a.ndim == 0 or a.shape[0] != rows for a in arrays):
            return [_run_alone(j) for j in jobs]
    except Exception:  # some job is bad: find out which by running each alone
        return [_run_alone(j) for j in jobs]
    outcomes, at = [], 0
    plausible = jobs[0].plausible
    checked = plausible is not None and plausible(version, arrays)
    for job in jobs:
        outcomes.append(_finish(job, [a[at : at + job.rows] for a in arrays], rows, at, checked))
        at += job.rows
    return outcomes
