"""One worker thread per heavy model, so that it blocks neither the reader nor another model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from vigil_sidecar.errors import LimitHit
from vigil_sidecar.server.call import Call

__all__ = ["ModelWorkers"]

_IDLE_S = 30.0


class _Worker:
    def __init__(self, model: str, process: Callable[[Sequence[Call]], None], queue_max: int) -> None:
        self._process, self._max = process, queue_max
        self._queue: deque[tuple[Call, Callable[[], None] | None]] = deque()
        self._condition = threading.Condition()
        self.stopped = False
        self._thread = threading.Thread(target=self._run, name=f"model-{model}", daemon=True)
        self._thread.start()

    def put(self, calls: Sequence[Call], done: Callable[[], None] | None) -> bool:
        """Queue calls; ``done`` is called once the last of them is answered. False when the worker has ended."""
        with self._condition:
            if self.stopped:
                return False
            if len(self._queue) + len(calls) > self._max:
                raise LimitHit(f"{self._max} calls wait for this model", metadata={"limit": "worker_queue"})
            for call in calls[:-1]:
                self._queue.append((call, None))
            self._queue.append((calls[-1], done))
            self._condition.notify()
            return True

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._queue and not self._condition.wait(_IDLE_S) and not self._queue:
                    self.stopped = True
                    return
                taken = list(self._queue)
                self._queue.clear()
            if taken:
                try:
                    self._process([call for call, _ in taken])  # answers every call and never raises
                finally:
                    for _, done in taken:
                        if done is not None:
                            done()


class ModelWorkers:
    """Workers by model, started when needed and ended when idle. Any thread may call."""

    def __init__(self, process: Callable[[Sequence[Call]], None], queue_max: int) -> None:
        self._process, self._max = process, queue_max
        self._lock = threading.Lock()
        self._workers: dict[str, _Worker] = {}

    def submit(self, model: str, calls: Sequence[Call], done: Callable[[], None] | None = None) -> None:
        """Give calls to the model's worker; raises ``LimitHit`` when its queue is full."""
        while True:
            worker = self._workers.get(model)
            if worker is None or worker.stopped:
                with self._lock:
                    worker = self._workers.get(model)
                    if worker is None or worker.stopped:
                        worker = self._workers[model] = _Worker(model, self._process, self._max)
            if worker.put(calls, done):
                return
