"""Worker threads of heavy models, so that one blocks neither the reader nor another model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vigil_sidecar.batching.line import Line, Turned
from vigil_sidecar.errors import CallError, LimitHit, Unavailable
from vigil_sidecar.registry.options import QueueOptions
from vigil_sidecar.server.call import Call
from vigil_sidecar.server.parameters import wishes_of
from vigil_sidecar.supervision import Work

__all__ = ["Intake", "ModelWorkers"]

_IDLE_S = 30.0


def _turned_down(turned: Turned[Waiting]) -> CallError:
    if turned.late:
        return Unavailable("Request timeout expired (default_queue_policy.default_timeout_microseconds)")
    text = "Exceeds maximum queue size (default_queue_policy.max_queue_size of config.pbtxt)"
    return LimitHit(text, metadata={"limit": "max_queue_size"})


class _Frame:
    """Calls that came together. Any thread."""

    def __init__(self, left: int, progress: Callable[[], None] | None, done: Callable[[], None] | None) -> None:
        self._left, self._progress, self._done = left, progress, done
        self._lock = threading.Lock()

    def answered(self, count: int) -> None:
        """So many more of them have their answer: ``done`` is called with the last one, ``progress`` before."""
        with self._lock:
            self._left -= count
            tell = self._progress if self._left else self._done
        if tell is not None:
            tell()


class Waiting(NamedTuple):
    """A call that waits, and the frame that it came with."""

    call: Call
    frame: _Frame


class Intake(NamedTuple):
    """How workers take calls: the largest batch, how they wait for each other, and how many batches run at once."""

    largest: int
    queue: QueueOptions | None
    instances: int = 1


class _Worker:
    """The calls of one model, and the threads that run them."""

    def __init__(
        self, model: str, process: Callable[[Sequence[Call]], None], queue_max: int, intake: Callable[[str], Intake],
        refuse: Callable[[Call, CallError], None],
    ) -> None:  # fmt: skip
        self._model, self._process, self._max, self._intake, self._refuse = model, process, queue_max, intake, refuse
        self._line: Line[Waiting] = Line()
        self._condition = threading.Condition()
        self.stopped = False
        self._threads: dict[int, threading.Thread] = {}
        self._since_ns: dict[int, int] = {}
        """By a thread's place, since when it is at a batch."""

    def busy(self) -> list[Work]:
        """What its threads are at, for supervision."""
        found = []
        for place, since_ns in self._since_ns.copy().items():
            thread = self._threads.get(place)
            if thread is not None:
                found.append(Work(f"worker/{self._model}" + (f"#{place + 1}" if place else ""), thread.ident or 0, since_ns))
        return found

    def put(self, calls: Sequence[Call], progress: Callable[[], None] | None, done: Callable[[], None] | None) -> bool:
        """Queue calls; ``done`` is called once the last of them is answered, ``progress`` before. False when the worker has ended."""
        if not calls:
            if done is not None:
                done()
            return True
        intake = self._intake(self._model)
        queue, frame, now_ns = intake.queue, _Frame(len(calls), progress, done), time.monotonic_ns()
        wishes = [wishes_of(c.message) for c in calls] if queue is not None and queue.asks else None
        with self._condition:
            if self.stopped:
                return False
            if self._line.unanswered + len(calls) > self._max:
                raise LimitHit(f"{self._max} calls wait for this model", metadata={"limit": "worker_queue"})
            self._start(intake.instances)
            for i, call in enumerate(calls):
                priority, timeout_us = wishes[i] if wishes is not None else (0, 0)
                self._line.put(Waiting(call, frame), now_ns, queue, priority, timeout_us)
            self._condition.notify(len(calls))
            return True

    def _start(self, instances: int) -> None:
        """Have as many threads as there are instances, at least one; raises ``LimitHit`` when none can be started."""
        for place in range(instances):
            if place in self._threads:
                continue
            name = f"model-{self._model}" + (f"#{place + 1}" if place else "")
            thread = threading.Thread(target=self._run, args=(place,), name=name, daemon=True)
            try:
                thread.start()  # it waits for the lock that is held here
            except (RuntimeError, MemoryError) as error:
                if self._threads:
                    return
                text = f"no thread can be started for this model: {error}"
                raise LimitHit(text, metadata={"limit": "threads"}) from None
            self._threads[place] = thread

    def _gather(self, intake: Intake, queue: QueueOptions) -> None:
        """Wait, under the lock, until a batch is large enough, its oldest call has waited, or somebody must be turned away."""
        enough = queue.enough(intake.largest)
        while self._line:
            now_ns = time.monotonic_ns()
            self._line.expire(now_ns)
            end_ns = self._line.oldest_ns() + queue.delay_us * 1000 if self._line else 0
            if self._line.unanswered > len(self._line) or len(self._line) >= enough or end_ns <= now_ns:
                return
            expiry_ns = self._line.next_expiry_ns()
            self._condition.wait((min(end_ns, expiry_ns + 1) if expiry_ns else end_ns) / 1e9 - now_ns / 1e9)

    def _take(self) -> tuple[list[Waiting], list[Turned[Waiting]]]:
        """The next batch, or calls that are turned away; under the lock. Another thread may have been quicker: then nothing."""
        intake = self._intake(self._model)
        size = intake.largest
        if intake.queue is not None:
            self._gather(intake, intake.queue)
            self._line.expire(time.monotonic_ns())
            size = intake.queue.take(len(self._line), intake.largest) if self._line else 0
        if turned := self._line.turned():
            return [], turned
        # One batch at a time: its answers need not wait for calls behind them, nor their inputs be in memory.
        return self._line.take(size), []

    def _is_surplus(self, place: int) -> bool:
        return place >= self._intake(self._model).instances and len(self._threads) > 1

    def _run(self, place: int) -> None:
        try:
            while True:
                with self._condition:
                    while not (surplus := self._is_surplus(place)) and not self._line.unanswered:
                        if not self._condition.wait(_IDLE_S) and not self._line.unanswered:
                            return
                    if surplus:
                        self._condition.notify()  # what woke this one is for another
                        return
                    taken, turned = self._take()
                self._since_ns[place] = time.monotonic_ns()
                self._answer(taken, turned)
                self._since_ns.pop(place, None)
        finally:
            with self._condition:
                self._since_ns.pop(place, None)
                self._threads.pop(place, None)
                # With calls left, another one starts with the next call, which finds this worker going on.
                self.stopped = not self._threads and not self._line.unanswered

    def _answer(self, taken: list[Waiting], turned: list[Turned[Waiting]]) -> None:
        try:
            for t in turned:
                self._refuse(t.item.call, _turned_down(t))
            if taken:
                self._process([w.call for w in taken])  # answers every call and never raises
        finally:
            counts: dict[_Frame, int] = {}
            for w in (*taken, *(t.item for t in turned)):
                counts[w.frame] = counts.get(w.frame, 0) + 1
            for frame, count in counts.items():
                frame.answered(count)


class ModelWorkers:
    """Workers by model, started when needed and ended when idle. Any thread may call."""

    def __init__(
        self, process: Callable[[Sequence[Call]], None], queue_max: int, intake: Callable[[str], Intake],
        refuse: Callable[[Call, CallError], None],
    ) -> None:  # fmt: skip
        """``intake`` says how many calls of a model are worth taking together; ``refuse`` answers one that is not run."""
        self._process, self._max, self._intake, self._refuse = process, queue_max, intake, refuse
        self._lock = threading.Lock()
        self._workers: dict[str, _Worker] = {}

    def busy(self) -> list[Work]:
        """What the workers are at, for supervision."""
        return [work for worker in list(self._workers.values()) for work in worker.busy()]

    def submit(
        self, model: str, calls: Sequence[Call], progress: Callable[[], None] | None = None, done: Callable[[], None] | None = None
    ) -> None:
        """Give calls to the model's worker; raises ``LimitHit`` when its queue is full."""
        while True:
            worker = self._workers.get(model)
            if worker is None or worker.stopped:
                with self._lock:
                    worker = self._workers.get(model)
                    if worker is None or worker.stopped:
                        worker = self._workers[model] = _Worker(model, self._process, self._max, self._intake, self._refuse)
            if worker.put(calls, progress, done):
                return
