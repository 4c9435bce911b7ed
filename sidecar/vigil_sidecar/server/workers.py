"""One worker thread per heavy model, so that it blocks neither the reader nor another model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vigil_sidecar.errors import CallError, LimitHit, Unavailable
from vigil_sidecar.registry.options import QueueOptions
from vigil_sidecar.server.call import Call
from vigil_sidecar.supervision import Work

__all__ = ["Intake", "ModelWorkers"]

_IDLE_S = 30.0


def _full() -> CallError:
    text = "Exceeds maximum queue size (default_queue_policy.max_queue_size of config.pbtxt)"
    return LimitHit(text, metadata={"limit": "max_queue_size"})


def _late() -> CallError:
    return Unavailable("Request timeout expired (default_queue_policy.default_timeout_microseconds)")


class Waiting(NamedTuple):
    """A call that waits, and what is to be called when it, and when the last one of its frame, is answered."""

    call: Call
    progress: Callable[[], None] | None
    done: Callable[[], None] | None
    since_ns: int
    refused: CallError | None = None
    """It is not run, but answered with this, in its turn: a frame's replies are one thread's."""


class Intake(NamedTuple):
    """How a worker takes calls: the largest batch, and how they wait for each other."""

    largest: int
    queue: QueueOptions | None


class _Worker:
    def __init__(
        self, model: str, process: Callable[[Sequence[Call]], None], queue_max: int, intake: Callable[[str], Intake],
        refuse: Callable[[Call, CallError], None],
    ) -> None:  # fmt: skip
        self._model, self._process, self._max, self._intake, self._refuse = model, process, queue_max, intake, refuse
        self._queue: deque[Waiting] = deque()
        self._waiting = 0
        """How many of the queue are to be run."""
        self._condition = threading.Condition()
        self.stopped, self.since_ns = False, 0
        self._thread = threading.Thread(target=self._run, name=f"model-{model}", daemon=True)
        self._thread.start()

    @property
    def thread(self) -> int:
        """Its thread's ident."""
        return self._thread.ident or 0

    def put(self, calls: Sequence[Call], progress: Callable[[], None] | None, done: Callable[[], None] | None) -> bool:
        """Queue calls; ``done`` is called once the last of them is answered, ``progress`` before. False when the worker has ended."""
        if not calls:
            if done is not None:
                done()
            return True
        with self._condition:
            if self.stopped:
                return False
            if len(self._queue) + len(calls) > self._max:
                raise LimitHit(f"{self._max} calls wait for this model", metadata={"limit": "worker_queue"})
            queue, now = self._intake(self._model).queue, time.monotonic_ns()
            for i, call in enumerate(calls):
                full = queue is not None and 0 < queue.size_max <= self._waiting
                last = i == len(calls) - 1
                self._queue.append(Waiting(call, None if last else progress, done if last else None, now, _full() if full else None))
                self._waiting += not full
            self._condition.notify()
            return True

    def _refused(self, queue: QueueOptions) -> list[Waiting]:
        """Calls at the head of the queue that are not run: there was no room, or they waited too long."""
        found, limit_ns = list[Waiting](), time.monotonic_ns() - queue.timeout_us * 1000
        while self._queue:
            head = self._queue[0]
            if head.refused is None and not (queue.timeout_us and head.since_ns < limit_ns):
                break
            found.append(self._queue.popleft()._replace(refused=head.refused or _late()))
            self._waiting -= head.refused is None
        return found

    def _gather(self, intake: Intake, queue: QueueOptions) -> None:
        """Wait, under the lock, until a batch is large enough or its oldest call has waited; what is refused waits for nothing."""
        enough, end_ns = queue.enough(intake.largest), self._queue[0].since_ns + queue.delay_us * 1000
        while self._queue[0].refused is None and self._waiting < enough and (left_ns := end_ns - time.monotonic_ns()) > 0:
            self._condition.wait(left_ns / 1e9)

    def _take(self) -> list[Waiting]:
        """The next batch, or calls that are refused; under the lock, with something in the queue."""
        intake = self._intake(self._model)
        size = min(len(self._queue), intake.largest)
        if intake.queue is not None:
            self._gather(intake, intake.queue)
            if found := self._refused(intake.queue):
                return found
            ready = next((i for i, w in enumerate(self._queue) if w.refused is not None), len(self._queue))
            size = intake.queue.take(ready, intake.largest)
        # One batch at a time: its answers need not wait for calls behind them, nor their inputs be in memory.
        taken = [self._queue.popleft() for _ in range(size)]
        self._waiting -= sum(w.refused is None for w in taken)
        return taken

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._queue:
                    if not self._condition.wait(_IDLE_S) and not self._queue:
                        self.stopped = True
                        return
                taken = self._take()
            self.since_ns = time.monotonic_ns()
            try:
                for w in taken:
                    if w.refused is not None:
                        self._refuse(w.call, w.refused)
                if run := [w.call for w in taken if w.refused is None]:
                    self._process(run)  # answers every call and never raises
            finally:
                finished = [w.done for w in taken if w.done is not None]
                for done in finished:
                    done()
                if taken[-1].progress is not None:
                    taken[-1].progress()
                self.since_ns = 0


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
        found = ((model, worker, worker.since_ns) for model, worker in list(self._workers.items()))
        return [Work("worker/" + model, worker.thread, since_ns) for model, worker, since_ns in found if since_ns]

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
