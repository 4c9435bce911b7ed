"""Workers of heavy models: a batch at a time, answers as they are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from vigil_sidecar.errors import CallerGone, DeadlineExceeded
from vigil_sidecar.server.call import Call, CallContext, check_alive
from vigil_sidecar.server.workers import ModelWorkers


def calls(first: int, count: int) -> list[Call]:
    return [Call(i, "m", b"", CallContext(), lambda call, reply: None) for i in range(first, first + count)]


def test_nothing_is_computed_for_nobody() -> None:
    """A deadline that passed, and a caller that went away, end a call before it is computed; others go on."""
    for change, error in (({"deadline_ns": 1}, DeadlineExceeded), ({}, CallerGone), ({"deadline_ns": time.monotonic_ns() + 10**12}, None)):
        call = Call(1, "m", b"", CallContext(**change), lambda call, reply: None, cancelled=error is CallerGone)
        if error is None:
            check_alive(call)
        else:
            with pytest.raises(error):
                check_alive(call)


def test_a_batch_at_a_time() -> None:
    """Calls are taken a batch at a time, over frames; progress is told after each, the end of each frame once, in order."""
    told: list[object] = []
    gate, finished = threading.Event(), threading.Event()

    def process(taken: Sequence[Call]) -> None:
        gate.wait(10)
        told.append([c.id for c in taken])

    workers = ModelWorkers(process, 100, lambda model: 2)
    workers.submit("m", calls(0, 1), lambda: told.append("progress 0"), lambda: told.append("done 0"))
    workers.submit("m", calls(1, 4), lambda: told.append("progress 1"), lambda: told.append("done 1"))
    workers.submit("m", calls(5, 1), None, finished.set)
    gate.set()
    assert finished.wait(10)
    expected = {
        "first alone": [[0], "done 0", [1, 2], "progress 1", [3, 4], "done 1", [5]],
        "first with the next": [[0, 1], "done 0", "progress 1", [2, 3], "progress 1", [4, 5], "done 1"],
    }
    assert told in expected.values(), told
