"""One worker thread per heavy model, so that it blocks neither the reader nor another model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vigil_sidecar.errors import LimitHit
from vigil_sidecar.server.call import Call
from vigil_sidecar.supervision import Work

__all__ = ["ModelWorkers"]

_IDLE_S = 30.0


class Waiting(NamedTuple):
    """A call that waits, and what is to be called when it, and when the last one of its frame, is answered."""

    call: Call
    progress: Callable[[], None] | None
    done: Callable[[], None] | None


class _Worker:
    def __init__(self, model: str, process: Callable[[Sequence[Call]], None], queue_max: int, at_once: Callable[[str], int]) -> None:
        self._model, self._process, self._max, self._at_once = model, process, queue_max, at_once
        self._queue: deque[Waiting] = deque()
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
        with self._condition:
            if self.stopped:
                return False
            if len(self._queue) + len(calls) > self._max:
                raise LimitHit(f"{self._max} calls wait for this model", metadata={"limit": "worker_queue"})
            for call in calls[:-1]:
                self._queue.append(Waiting(call, progress, None))
            self._queue.append(Waiting(calls[-1], None, done))
            self._condition.notify()
            return True

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._queue and not self._condition.wait(_IDLE_S) and not self._queue:
                    self.stopped = True
                    return
                # One batch at a time: its answers need not wait for calls behind them, nor their inputs be in memory.
                taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._at_once(self._model)))]
            self.since_ns = time.monotonic_ns()
            try:
                self._process([w.call for w in taken])  # answers every call and never raises
            finally:
                finished = [w.done for w in taken if w.done is not None]
                for done in finished:
                    done()
                if taken[-1].progress is not None:
                    taken[-1].progress()
                self.since_ns = 0


class ModelWorkers:
    """Workers by model, started when needed and ended when idle. Any thread may call."""

    def __init__(self, process: Callable[[Sequence[Call]], None], queue_max: int, at_once: Callable[[str], int]) -> None:
        """``at_once`` says how many calls of a model are worth taking together."""
        self._process, self._max, self._at_once = process, queue_max, at_once
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
                        worker = self._workers[model] = _Worker(model, self._process, self._max, self._at_once)
            if worker.put(calls, progress, done):
                return
