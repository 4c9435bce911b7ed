"""What a loaded version has done, as Triton's statistics extension counts it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Durations", "VersionStatistics"]

_SIZES_MAX = 4096
"""Sizes of batches that are told apart; a size beyond them is counted in the sums only."""


class Durations(NamedTuple):
    """How often, and how long together, ns."""

    times: int = 0
    ns: int = 0

    def plus(self, times: int, ns: int) -> Durations:
        """With some more."""
        return Durations(self.times + times, self.ns + ns)


class VersionStatistics:
    """Sums over batches and requests. Any thread may write; whoever reads may be a batch behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.success, self.fail, self.queue = Durations(), Durations(), Durations()
        self.inputs, self.infer, self.outputs = Durations(), Durations(), Durations()
        self.inferences, self.executions, self.last_ms = 0, 0, 0
        self.sizes: dict[int, tuple[Durations, Durations, Durations]] = {}
        """By rows of a batch: making its inputs, running it, making the answers."""

    def executed(self, rows: int, jobs: int, times_ns: tuple[int, int, int, int]) -> None:
        """A batch was run. ``times_ns``: before its inputs were made, before and after the run, after the answers were made."""
        begin, start, end, answered = times_ns
        parts = (start - begin, end - start, answered - end)
        with self._lock:
            self.inputs, self.infer, self.outputs = (
                d.plus(jobs, jobs * ns) for d, ns in zip((self.inputs, self.infer, self.outputs), parts, strict=True)
            )
            self.executions += 1
            self.inferences += rows
            self.last_ms = time.time_ns() // 1_000_000
            if rows in self.sizes or len(self.sizes) < _SIZES_MAX:
                before = self.sizes.get(rows, (Durations(), Durations(), Durations()))
                first, second, third = (d.plus(1, ns) for d, ns in zip(before, parts, strict=True))
                self.sizes[rows] = (first, second, third)

    def answered(self, good: Sequence[int], bad: Sequence[int], start_ns: int, end_ns: int) -> None:
        """Requests that arrived at these times were run between two others, all monotonic; the bad ones failed."""
        since_ns = sum(good)
        with self._lock:
            self.success = self.success.plus(len(good), len(good) * end_ns - since_ns)
            self.queue = self.queue.plus(len(good), len(good) * start_ns - since_ns)
            if bad:
                self.fail = self.fail.plus(len(bad), len(bad) * end_ns - sum(bad))

    def refused(self, took_ns: int) -> None:
        """A request was refused before it was run."""
        with self._lock:
            self.fail = self.fail.plus(1, took_ns)
