"""Supervises the sidecar's own threads and each run of a model, and says in every heartbeat how they are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from importlib import resources
from typing import NamedTuple

from vigil_safety import supervision as core
from vigil_safety.monitor import Monitor

__all__ = ["Report", "Supervision", "Work"]

_PREFIX = "model/"
_PAUSE_MS = 500
"""Between two cycles: the process stood still."""


class Report(NamedTuple):
    """What a heartbeat says: cycles done, status of the process, and what is expired with its reason."""

    cycles: int
    status: str
    expired: dict[str, str]


class Work(NamedTuple):
    """What a thread is at: the part (``worker/NAME``: one of several), the thread, and since when, CLOCK_MONOTONIC ns."""

    part: str
    thread: int
    since_ns: int


class _Run(NamedTuple):
    model: str
    start_ns: int
    limit_ms: int


class Supervision:
    """One thread judges all each cycle. Everything else may be called from any thread and costs next to nothing.

    A run that does not end is a fault of its model, and stands in ``hung`` until it ends.
    The status is Stopped once a part was expired, or a run late, for ``stopped_after_ms``;
    0 means never.
    """

    def __init__(self, monitor: Monitor, stopped_after_ms: int, told: Callable[[str, str], None]) -> None:
        """``told(what, reason)`` hears of each expiry, once."""
        raw = json.loads(resources.files("vigil_safety").joinpath("supervision_gen.json").read_text())
        self._entities = core.load_supervision(raw, "sidecar")
        self._cycle_s, self._stopped_after_ms = raw["cycle_ms"] / 1000, stopped_after_ms or 1 << 60
        self._monitor, self._told = monitor, told
        self._lock = threading.Lock()
        self._states = {n: core.EntityState() for n, e in self._entities.items() if e.alive or e.successors}
        self._runs: dict[int, _Run] = {}
        self._run_ended_ns: dict[int, int] = {}
        self._resumed_ns = 0
        """When the process last went on after a pause."""
        self._busy: list[Callable[[], Iterable[Work]]] = []
        self._late = dict[str, core.EntityState]()
        """Work that takes too long, by part."""
        self._told_of = dict.fromkeys(self._states, 0)
        """Expiries that were told, by part: they come about at checkpoints too."""
        self._global = core.GlobalState()
        self._stopped = ""
        self.hung: dict[str, str] = {}
        """By model, the run that does not end."""
        self.report = Report(0, core.OK, {})
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="supervision", daemon=True)

    def start(self) -> None:
        """Start judging."""
        self._thread.start()

    def stop(self) -> None:
        """End it: what stops now would else be called dead."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def activate(self, name: str, active: bool = True) -> None:
        """Supervise a part from now on, or no longer."""
        with self._lock:
            state = self._states[name]
            self._states[name] = core.activate(state, _now_ms()) if active else core.deactivate(state)

    def indicate(self, name: str, checkpoint: str = "alive") -> None:
        """A part passes a checkpoint."""
        with self._lock:
            self._states[name] = core.checkpoint(self._entities[name], self._states[name], checkpoint, _now_ms())

    def watch(self, busy: Callable[[], Iterable[Work]]) -> None:
        """Ask each cycle what some threads are at, so that saying so costs them nothing. Before ``start``."""
        self._busy.append(busy)

    def run_begins(self, model: str, limit_ms: int) -> None:
        """This thread runs a model."""
        self._runs[threading.get_ident()] = _Run(model, time.monotonic_ns(), limit_ms)

    def run_ends(self) -> None:
        """This thread's run has ended."""
        thread = threading.get_ident()
        if thread in self._runs:  # whoever no longer finds the run finds its end
            self._run_ended_ns[thread] = time.monotonic_ns()
            self._runs.pop(thread, None)

    def _work(self) -> None:
        last_ms = _now_ms()
        while not self._stopping.wait(self._cycle_s):
            now_ms = _now_ms()
            if now_ms - last_ms > _PAUSE_MS:
                self.resume(now_ms)
            last_ms = now_ms
            self.judge(now_ms)

    def resume(self, now_ms: int) -> None:
        """The process, or the machine, stood still until now: what was not done meanwhile says nothing."""
        self._resumed_ns = now_ms * 1_000_000
        with self._lock:
            for name, state in self._states.items():
                self._states[name] = core.resume(state, now_ms)

    @property
    def running(self) -> bool:
        """Whether a model runs now."""
        return bool(self._runs)

    def judge(self, now_ms: int) -> None:
        """One cycle, at a time of CLOCK_MONOTONIC. Its thread does this."""
        expired = self._judge_parts(now_ms)
        expired |= self._judge_runs(now_ms)
        self.report = Report(self.report.cycles + 1, core.STOPPED if self._stopped else self._global.status, expired)

    def _judge_parts(self, now_ms: int) -> dict[str, str]:
        late = self._late_work(now_ms)
        told = [(n, s.reason) for n, s in late.items() if n not in self._late]
        self._late = late
        with self._lock:
            for name, before in self._states.items():
                after = self._states[name] = core.cycle(self._entities[name], before, now_ms)
                if after.expiries > self._told_of[name]:
                    self._told_of[name] = after.expiries
                    told.append((name, after.reason or before.reason))
            self._global = core.global_status(self._global, [*self._states.values(), *late.values()], now_ms, self._stopped_after_ms)
            expired = {n: s.reason for n, s in (self._states | late).items() if s.status == core.EXPIRED}
        if self._global.status == core.STOPPED:
            self._stopped = self._stopped or "; ".join(f"{n}: {r}" for n, r in expired.items())
        for name, reason in told:
            self._told(name, reason)
        return expired

    def _late_work(self, now_ms: int) -> dict[str, core.EntityState]:
        """Work beyond its deadline, by part; a run within it is judged by its own limit, and is not counted."""
        late = {}
        threads = set()
        for work in (w for busy in self._busy for w in busy()):
            threads.add(work.thread)
            if work.thread in self._runs:
                continue
            entity = self._entities[work.part.partition("/")[0]]
            since_ns = max(work.since_ns, self._run_ended_ns.get(work.thread, 0), self._resumed_ns)
            state = core.EntityState(core.OK, last=entity.deadlines[0].begin, last_ms=since_ns // 1_000_000)
            # SR-051
            if (judged := core.cycle(entity, state, now_ms)).status == core.EXPIRED:
                late[work.part] = judged
        for thread in self._run_ended_ns.copy().keys() - threads:
            self._run_ended_ns.pop(thread, None)
        return late

    def _judge_runs(self, now_ms: int) -> dict[str, str]:
        late: dict[str, str] = {}
        for run in list(self._runs.values()):
            deadline = core.Deadline("begin", "end", run.limit_ms)
            entity = core.Entity("run/" + run.model, None, (deadline,), frozenset(), {})
            state = core.EntityState(core.OK, last="begin", last_ms=max(run.start_ns, self._resumed_ns) // 1_000_000)
            judged = core.cycle(entity, state, now_ms)
            if judged.status == core.EXPIRED:
                late[run.model] = judged.reason
                if now_ms - state.last_ms - run.limit_ms >= self._stopped_after_ms:
                    self._stopped = self._stopped or f"{entity.name}: {judged.reason}"
        # SR-023
        fresh = [m for m in late if m not in self.hung]
        self.hung = late
        for model in fresh:
            self._monitor.event(_PREFIX + model, "fault", "supervision: a run's " + late[model], known=True)
            self._told("run/" + model, late[model])
        return {"run/" + m: r for m, r in late.items()}


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
