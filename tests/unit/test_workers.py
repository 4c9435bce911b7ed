"""Workers of heavy models: a batch at a time, answers as they are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from vigil_sidecar.errors import CallerGone, DeadlineExceeded
from vigil_sidecar.registry.options import QueueOptions
from vigil_sidecar.server.call import Call, CallContext, check_alive
from vigil_sidecar.server.workers import Intake, ModelWorkers


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

    workers = ModelWorkers(process, 100, lambda model: Intake(2, None), lambda call, error: None)
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


def queued(options: QueueOptions, frames: Sequence[int], largest: int = 8) -> tuple[list[list[int]], list[tuple[int, str]]]:
    """Which batches are formed of frames of so many calls that come while the first batch runs, and what is refused."""
    batches: list[list[int]] = []
    refused: list[tuple[int, str]] = []
    gate, ended = threading.Event(), [threading.Event() for _ in frames]

    def process(taken: Sequence[Call]) -> None:
        gate.wait(10)
        batches.append([c.id for c in taken])

    workers = ModelWorkers(process, 100, lambda model: Intake(largest, options), lambda call, error: refused.append((call.id, error.text)))
    at = 0
    for count, end in zip(frames, ended, strict=True):
        workers.submit("m", calls(at, count), None, end.set)
        at += count
        time.sleep(0.05)
    gate.set()
    assert all(e.wait(10) for e in ended)
    return batches, refused


def test_calls_wait_for_each_other() -> None:
    """The largest batch, or a preferred one, is formed at once; a smaller one when its oldest call has waited."""
    start = time.monotonic()
    assert queued(QueueOptions(delay_us=300_000), (3, 5)) == ([[0, 1, 2, 3, 4, 5, 6, 7]], [])
    assert queued(QueueOptions(delay_us=300_000), (3, 2)) == ([[0, 1, 2, 3, 4]], [])
    assert time.monotonic() - start > 0.3, "the second waited for its delay"
    assert queued(QueueOptions(delay_us=10_000_000, preferred=(4,)), (3, 1)) == ([[0, 1, 2, 3]], [])
    assert queued(QueueOptions(delay_us=200_000, preferred=(2, 4)), (7,))[0] == [[0, 1, 2, 3], [4, 5], [6]]


def test_queues_have_their_limits() -> None:
    """Beyond max_queue_size calls are refused, and those that waited too long; the others are answered, each frame has its end."""
    batches, refused = queued(QueueOptions(size_max=2), (1, 5, 1), largest=1)
    assert batches == [[0], [1], [2]] and [i for i, _ in refused] == [3, 4, 5, 6]
    assert all(text.startswith("Exceeds maximum queue size") for _, text in refused)
    batches, refused = queued(QueueOptions(timeout_us=60_000), (1, 2, 1), largest=1)
    assert [i for i, _ in refused] == [1, 2] and batches == [[0], [3]]
    assert all(text.startswith("Request timeout expired") for _, text in refused)


@pytest.mark.parametrize("waiting", range(1, 20))
@pytest.mark.parametrize("preferred", [(), (4,), (3, 8), (1, 2, 4, 8, 16)])
def test_how_many_are_taken(waiting: int, preferred: tuple[int, ...]) -> None:
    """Never more than wait or than the largest batch, at least one, and the largest preferred size that there is."""
    options, largest = QueueOptions(preferred=preferred), 8
    taken = options.take(waiting, largest)
    assert 1 <= taken <= min(waiting, largest)
    if fitting := [p for p in preferred if p <= min(waiting, largest)]:
        assert taken == max(fitting)
    else:
        assert taken == min(waiting, largest)
    assert options.enough(largest) == (min(preferred) if preferred else largest)
