"""Workers of heavy models: a batch at a time, answers as they are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference.grpc_service_pb2 import ModelInferRequest

from tests.harness.product import wait_for
from vigil_sidecar.batching.line import Line
from vigil_sidecar.errors import CallerGone, DeadlineExceeded, LimitHit
from vigil_sidecar.registry.options import QueueOptions, QueuePolicy
from vigil_sidecar.server.call import Call, CallContext, check_alive
from vigil_sidecar.server.parameters import wishes_of
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
    batches, refused = queued(QueueOptions(default=QueuePolicy(size_max=2)), (1, 5, 1), largest=1)
    assert batches == [[0], [1], [2]] and [i for i, _ in refused] == [3, 4, 5, 6]
    assert all(text.startswith("Exceeds maximum queue size") for _, text in refused)
    batches, refused = queued(QueueOptions(default=QueuePolicy(timeout_us=60_000)), (1, 2, 1), largest=1)
    assert [i for i, _ in refused] == [1, 2] and batches == [[0], [3]]
    assert all(text.startswith("Request timeout expired") for _, text in refused)


def test_instances_run_at_once() -> None:
    """As many batches as there are instances run at the same time; each frame ends once, with its last call, whichever thread had it."""
    inside, told = threading.Barrier(3), list[str]()
    ended = [threading.Event() for _ in range(2)]

    def process(taken: Sequence[Call]) -> None:
        inside.wait(10)  # fails unless three are here together
        if any(c.id == 0 for c in taken):
            time.sleep(0.1)  # the first call ends last

    def end(frame: int) -> None:
        told.append(f"done {frame}")
        ended[frame].set()

    workers = ModelWorkers(process, 100, lambda model: Intake(1, None, 3), lambda call, error: None)
    workers.submit("m", calls(0, 2), lambda: told.append("progress 0"), lambda: end(0))
    workers.submit("m", calls(2, 1), lambda: told.append("progress 1"), lambda: end(1))
    assert all(e.wait(10) for e in ended)
    assert sorted(told) == ["done 0", "done 1", "progress 0"] and told.index("progress 0") < told.index("done 0")
    workers.submit("m", calls(3, 3), None, (again := threading.Event()).set)
    assert again.wait(10)
    assert {w.part for w in workers.busy()} <= {"worker/m", "worker/m#2", "worker/m#3"}


def test_a_thread_that_cannot_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that no thread can run are refused at once, and the next ones find another."""
    workers = ModelWorkers(lambda taken: None, 100, lambda model: Intake(1, None), lambda call, error: None)
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
        with pytest.raises(LimitHit, match="no thread can be started"):
            workers.submit("m", calls(0, 2))
    workers.submit("m", calls(2, 1), None, (end := threading.Event()).set)
    assert end.wait(10)


def test_threads_beyond_the_instances_end() -> None:
    """A version with fewer instances has fewer threads, also while calls keep coming."""
    instances, together = [3], threading.Barrier(3)

    def process(taken: Sequence[Call]) -> None:
        if instances[0] == 3:
            together.wait(10)  # fails unless three are here together

    workers = ModelWorkers(process, 100, lambda model: Intake(1, None, instances[0]), lambda call, error: None)

    def threads() -> int:
        return sum(t.name.startswith("model-shrinking") for t in threading.enumerate())

    workers.submit("shrinking", calls(0, 3), None, (end := threading.Event()).set)
    assert end.wait(10) and threads() == 3
    instances[0] = 1
    workers.submit("shrinking", calls(3, 30), None, (end := threading.Event()).set)
    assert end.wait(10)
    wait_for(lambda: threads() == 1, what="one thread")


def asking(first: int, wishes: Sequence[tuple[int, int]]) -> list[Call]:
    """Calls with a priority and a timeout in microseconds."""
    out = []
    for i, (priority, timeout_us) in enumerate(wishes):
        request = ModelInferRequest(model_name="m", raw_input_contents=[b"x" * 300])
        if priority:
            request.parameters["priority"].uint64_param = priority
        if timeout_us:
            request.parameters["timeout"].int64_param = timeout_us
        assert wishes_of(request.SerializeToString()) == (priority, timeout_us)
        out.append(Call(first + i, "m", request.SerializeToString(), CallContext(), lambda call, reply: None))
    return out


def test_priorities_and_timeouts_of_calls() -> None:
    """Level 1 goes first, one without a level where the default is; a call may ask for less time than its level gives, where it may."""
    options = QueueOptions(levels=3, default_level=2, default=QueuePolicy(override=True), policies={3: QueuePolicy(timeout_us=1)})
    taken, refused = list[int](), list[int]()
    gate, end = threading.Event(), threading.Event()

    def process(batch: Sequence[Call]) -> None:
        gate.wait(10)
        taken.extend(c.id for c in batch)

    workers = ModelWorkers(process, 100, lambda model: Intake(1, options), lambda call, error: refused.append(call.id))
    workers.submit("m", asking(0, [(2, 0)]))
    time.sleep(0.05)
    workers.submit("m", asking(1, [(2, 0), (0, 0), (1, 0), (9, 0), (1, 1000), (3, 0), (1, 10**9)]), None, end.set)
    time.sleep(0.05)
    gate.set()
    assert end.wait(10)
    assert taken == [0, 3, 7, 1, 2, 4] and sorted(refused) == [5, 6]


@pytest.mark.parametrize("message", [b"", b"\x22", b"\x22\x05ab", b"\x08\x01", b"\xff" * 12, b"\x22\x02\x0a\x09", bytes(40)])
def test_what_cannot_be_read_wishes_nothing(message: bytes) -> None:
    """It is refused where it is decoded."""
    assert wishes_of(message) == (0, 0)


POLICIES = st.builds(QueuePolicy, st.integers(0, 4), st.integers(0, 30), st.booleans(), st.booleans())
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4), st.integers(0, 30)),
        st.tuples(st.just("take"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 20), st.just(0)),
    ),
    max_size=40,
)


@given(POLICIES, st.dictionaries(st.integers(1, 3), POLICIES), STEPS)
def test_every_call_is_taken_or_turned_away_once(
    default: QueuePolicy, policies: dict[int, QueuePolicy], steps: list[tuple[str, int, int]]
) -> None:
    """In any history; and what is taken is never of a lower level than what still waits in time, nor late where it is refused for that."""
    options = QueueOptions(levels=3, default_level=2, default=default, policies=policies)
    line, now_us, put = Line[int](), 0, dict[int, tuple[int, int]]()
    gone = list[int]()
    for what, number, timeout_us in steps:
        if what == "wait":
            now_us += number
        elif what == "put":
            level = options.level(number)
            policy = options.policy(level)
            limit = min(timeout_us, policy.timeout_us or timeout_us) if policy.override and timeout_us else policy.timeout_us
            put[len(put)] = (level, now_us + limit if limit else 0)
            line.put(len(put) - 1, now_us * 1000, options, number, timeout_us)
        else:
            line.expire(now_us * 1000)
            turned = line.turned()
            gone += [t.item for t in turned]
            for t in turned:
                level, until = put[t.item]
                assert (0 < until < now_us and not options.policy(level).delay) if t.late else options.policy(level).size_max
            taken = line.take(number)
            gone += taken
            waiting = [i for i in put if i not in gone]
            for i in taken:
                level, until = put[i]
                late = 0 < until < now_us
                assert not late or options.policy(level).delay
                assert all(put[w][0] >= level for w in waiting)
                if late:  # behind those in time of its own level
                    assert not any(put[w][0] == level and not 0 < put[w][1] < now_us for w in waiting)
    line.expire(10**12)
    gone += line.take(len(put)) + [t.item for t in line.turned()]
    assert sorted(gone) == sorted(put) and len(line) == line.unanswered == 0


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
