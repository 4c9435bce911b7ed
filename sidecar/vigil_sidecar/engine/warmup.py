"""Before a version serves: every batch size run once, rows proved independent, speed measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vigil_sidecar.engine.contract import Contract, TensorSpec
from vigil_sidecar.engine.datatypes import NUMPY
from vigil_sidecar.engine.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, Golden, make_golden
from vigil_sidecar.engine.samples import WarmupSample, sample_feeds
from vigil_sidecar.engine.session import Session
from vigil_sidecar.errors import CandidateRefused

__all__ = ["Warmth", "warm_up"]

Array = np.ndarray[Any, Any]
_FREE_DIMENSION_TRIES = (1, 32, 64, 16, 128)
_GOLDEN_SEED = 11


class Warmth(NamedTuple):
    """What warming up found: largest batch (0: not batched), the seconds it takes, largest difference (-1: unknown), a golden run."""

    max_batch_size: int
    run_s: float
    batch_difference: float
    golden: Golden


def _sample(spec: TensorSpec, rows: int | None, free: int, rng: np.random.Generator) -> Array:
    shape = [free if d < 0 else d for d in spec.shape]
    if rows is not None:
        shape[0] = rows
    if spec.datatype == "BYTES":
        return np.full(shape, "0", dtype=object)
    dtype = NUMPY[spec.datatype]
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    if dtype.kind == "b":
        return np.zeros(shape, dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def _feeds(contract: Contract, rows: int | None, free: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {s.name: _sample(s, rows, free, rng) for s in contract.inputs}


def _first_axis_is_free(contract: Contract) -> bool:
    tensors = (*contract.inputs, *contract.outputs)
    return bool(tensors) and all(t.shape and t.shape[0] == -1 for t in tensors)


def _difference(whole: Array, alone: Array) -> float | None:
    """Largest relative difference of two results; None when it is beyond tolerance."""
    if whole.dtype.kind != "f":
        return 0.0 if np.array_equal(whole, alone) else None
    if whole.shape != alone.shape or not np.allclose(whole, alone, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE, equal_nan=True):
        return None
    with np.errstate(invalid="ignore"):
        scale = np.maximum(np.abs(alone), 1.0)
        gap = np.nan_to_num(np.abs(whole - alone) / scale, nan=0.0, posinf=0.0)
    return float(gap.max()) if gap.size else 0.0


def _rows_are_independent(session: Session, free: int) -> float | None:
    """Run three rows together and each alone; None when a row's result depends on its neighbours."""
    contract, worst = session.contract, 0.0
    together = _feeds(contract, 3, free, 7)
    whole = session.run(together)
    if any(w.ndim == 0 or w.shape[0] != 3 for w in whole):
        return None
    for row in range(3):
        alone = session.run({n: np.ascontiguousarray(a[row : row + 1]) for n, a in together.items()})
        for w, a in zip(whole, alone, strict=True):
            gap = _difference(w[row : row + 1], a)
            if gap is None:
                return None
            worst = max(worst, gap)
    return worst


def _free_dimension(session: Session, rows: int | None, sizes: Sequence[int]) -> int:
    error: Exception | None = None
    for free in sizes:
        try:
            session.run(_feeds(session.contract, rows, free, 1))
            return free
        except Exception as failure:  # any native failure: try the next size
            error = failure
    reason = str(error).split("\n")[0][:300]
    raise CandidateRefused(f"warm-up failed: {reason} (if the graph takes only certain inputs, name some: model_warmup in config.pbtxt)")


def warm_up(
    session: Session,
    configured_batch: int | None,
    default_batch: int,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
    free_sizes: Sequence[int] = _FREE_DIMENSION_TRIES,
    samples: Sequence[WarmupSample] = (),
) -> Warmth:
    """Run every batch size that the batcher can form.

    ``configured_batch`` is ``max_batch_size`` of config.pbtxt, None without a
    file: then rows are checked for independence, since a free first axis may
    as well be time. ``samples`` are inputs to run instead of made-up ones.

    Raises:
        CandidateRefused: a run failed or the budget was spent.
    """
    deadline = clock() + budget_s

    def in_time(done: str) -> None:
        if clock() > deadline:
            raise CandidateRefused(f"not warm within {budget_s} s (models.warmup_budget_s): {done}")

    contract = session.contract
    gap: float | None = None
    if samples:
        return _by_samples(session, configured_batch or 0, samples, clock, in_time)
    if configured_batch is None:
        if not _first_axis_is_free(contract):
            free = _free_dimension(session, None, free_sizes)
            in_time("one run took longer")
            return _alone(session, None, free, clock, in_time)
        free = _free_dimension(session, 1, free_sizes)
        try:
            gap = _rows_are_independent(session, free)
        except Exception:  # the graph takes no batch of three: it is not batched
            gap = None
        largest = default_batch if gap is not None else 0
    else:
        _check_batched(contract, configured_batch)
        free = _free_dimension(session, 1 if configured_batch > 0 else None, free_sizes)
        largest = configured_batch
        gap = _rows_are_independent(session, free) if configured_batch > 2 else 0.0
    in_time("the first runs took longer")
    if largest == 0:
        return _alone(session, 1 if _first_axis_is_free(contract) else None, free, clock, in_time)
    for rows in range(1, largest + 1):
        session.run(_feeds(contract, rows, free, rows))
        in_time(f"{rows} of {largest} batch sizes ran")
    golden = make_golden(session, _feeds(contract, 1, free, _GOLDEN_SEED))
    return Warmth(largest, _timed(session, largest, free, clock), -1.0 if gap is None else gap, golden)


def _check_batched(contract: Contract, configured_batch: int) -> None:
    if configured_batch > 0 and not _first_axis_is_free(contract):
        raise CandidateRefused(f"config.pbtxt says max_batch_size {configured_batch}, but the graph's first axis is not free")


def _by_samples(
    session: Session, largest: int, samples: Sequence[WarmupSample], clock: Callable[[], float], in_time: Callable[[str], None]
) -> Warmth:
    """Every sample as often as it says, and the first one in every batch size."""
    contract, gap = session.contract, 0.0  # -1: rows depend on each other
    _check_batched(contract, largest)
    for sample in samples:
        if sample.batch_size > max(1, largest):
            raise CandidateRefused(
                f"config.pbtxt: model_warmup '{sample.name}' has the batch_size {sample.batch_size}, max_batch_size is {largest}"
            )
        feeds = sample_feeds(sample, contract, sample.batch_size if largest else None)
        for _ in range(sample.count):
            session.run(feeds)
            in_time(f"sample '{sample.name}' ran")
    alone = sample_feeds(samples[0], contract, 1 if largest else None)
    results = session.run(alone)
    for rows in range(2, largest + 1):
        whole = session.run(sample_feeds(samples[0], contract, rows))
        in_time(f"{rows} of {largest} batch sizes ran")
        for w, a in zip(whole, results, strict=True):
            found = _difference(w[:1], a) if w.ndim and w.shape[0] == rows else None
            gap = -1.0 if found is None or gap < 0 else max(gap, found)
    feeds = sample_feeds(samples[0], contract, largest or None)
    session.run(feeds)
    start = clock()
    session.run(feeds)
    return Warmth(largest, clock() - start, gap, make_golden(session, alone))


def _alone(session: Session, rows: int | None, free: int, clock: Callable[[], float], in_time: Callable[[str], None]) -> Warmth:
    """What a model that is not batched takes."""
    run_s = _timed(session, rows, free, clock)
    in_time("two runs took longer")
    return Warmth(0, run_s, 0.0, make_golden(session, _feeds(session.contract, rows, free, _GOLDEN_SEED)))


def _timed(session: Session, rows: int | None, free: int, clock: Callable[[], float]) -> float:
    feeds = _feeds(session.contract, rows, free, 3)
    session.run(feeds)
    start = clock()
    session.run(feeds)
    return clock() - start
