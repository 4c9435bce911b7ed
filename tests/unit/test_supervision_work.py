"""What threads are at, real ones, judged at chosen times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from tests.harness.product import wait_for
from vigil_safety.monitor import Monitor
from vigil_safety.supervision import EXPIRED, OK, STOPPED
from vigil_safety.table import machine_table
from vigil_sidecar.server.call import Call
from vigil_sidecar.server.workers import Intake, ModelWorkers
from vigil_sidecar.supervision import Supervision, Work

LIMIT_MS, STOPPED_AFTER_MS = 5000, 2000


class Judged:
    """A supervision that judges when it is told to, and what it told."""

    def __init__(self, busy: Callable[[], list[Work]]) -> None:
        self.told = list[tuple[str, str]]()
        monitor = Monitor(machine_table(), lambda: 0, lambda: 0, lambda change: None)
        self.supervision = Supervision(monitor, STOPPED_AFTER_MS, lambda what, reason: self.told.append((what, reason)))
        self.supervision.watch(busy)

    def at(self, ms: int) -> tuple[list[str], str]:
        """Expired parts and the status of the process, so many ms from now."""
        self.supervision.judge(time.monotonic_ns() // 1_000_000 + ms)
        return sorted(self.supervision.report.expired), self.supervision.report.status


@pytest.fixture
def gates() -> tuple[threading.Event, threading.Event]:
    return threading.Event(), threading.Event()


def test_a_worker_that_does_not_answer_expires(gates: tuple[threading.Event, threading.Event]) -> None:
    """A run within its limit is not counted; what comes after it has the whole limit; the end cures."""
    run, answer = gates
    done = threading.Event()

    def process(calls: Sequence[Call]) -> None:
        judged.supervision.run_begins("m", 60_000)
        run.wait(30)
        judged.supervision.run_ends()
        answer.wait(30)

    workers = ModelWorkers(process, 10, lambda model: Intake(1, None), lambda call, error: None)
    judged = Judged(workers.busy)
    assert judged.at(0) == ([], OK)
    workers.submit("m", [None], None, done.set)  # type: ignore[list-item]
    wait_for(lambda: judged.supervision.running, what="the run")
    assert judged.at(30_000) == ([], OK)
    run.set()
    wait_for(lambda: not judged.supervision.running, what="its end")
    assert judged.at(LIMIT_MS - 1000) == ([], OK)
    assert judged.at(LIMIT_MS + 1000) == (["worker/m"], EXPIRED)
    assert judged.at(LIMIT_MS + 1500) == (["worker/m"], EXPIRED) and [w for w, _ in judged.told] == ["worker/m"]
    answer.set()
    assert done.wait(10)
    wait_for(lambda: not workers.busy(), what="idle")
    assert judged.at(60_000) == ([], OK)


def test_work_that_never_ends_stops_the_process() -> None:
    began_ns = time.monotonic_ns()
    judged = Judged(lambda: [Work("reader", 1, began_ns)])
    assert judged.at(LIMIT_MS + 100) == (["reader"], EXPIRED)
    assert judged.at(LIMIT_MS + 200 + STOPPED_AFTER_MS) == (["reader"], STOPPED)
    assert [what for what, _ in judged.told] == ["reader"] and "taken" in judged.told[0][1]


def test_a_run_that_ends_while_it_is_judged_is_not_counted() -> None:
    """Between the question what a thread is at and the question whether it runs a model."""

    def busy() -> list[Work]:
        judged.supervision.run_ends()
        return [Work("worker/m", threading.get_ident(), time.monotonic_ns() - 9 * 10**9)]

    judged = Judged(busy)
    judged.supervision.run_begins("m", 10_000)
    assert judged.at(0) == ([], OK)


def test_a_pause_of_the_whole_is_held_against_nobody() -> None:
    """As after a frozen container or a virtual machine that stood still: runs, work and parts begin anew, none is told."""
    began_ns = time.monotonic_ns()
    judged = Judged(lambda: [Work("reader", 1, began_ns)])
    supervision = judged.supervision
    supervision.activate("registry")
    supervision.indicate("registry", "look")
    supervision.indicate("registry", "load")
    supervision.run_begins("m", 100)
    supervision.resume(time.monotonic_ns() // 1_000_000 + 3_600_000)
    assert judged.at(3_600_050) == ([], OK) and judged.told == []
    supervision.indicate("registry", "loaded")  # what was under way goes on: this is not out of order
    assert judged.at(3_600_060) == ([], OK) and judged.told == []
    assert judged.at(3_600_200)[0] == ["run/m"]
    assert judged.at(3_600_000 + LIMIT_MS + 100)[0] == ["reader", "run/m"]
