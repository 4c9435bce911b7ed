"""Keeps one machine per subject, tells listeners of each change, and has its actions carried out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vigil_safety.core import MachineState, Table, initial, step, stopped
from vigil_safety.latch import Stop

__all__ = ["Change", "Monitor", "Status"]


class Change(NamedTuple):
    """One change of one subject's state: all that the step was computed from, and what came of it."""

    subject: str
    before: str
    after: str
    event: str
    reason: str
    time_us: int
    actions: tuple[str, ...]
    now_ms: int = 0
    counters: Mapping[str, tuple[int, ...]] = {}
    """What was counted before the step."""
    by: str = ""
    """Who reset a stop."""


class Status(NamedTuple):
    """State of a subject, why, and since when (UTC microseconds)."""

    state: str
    reason: str
    since_us: int


class Monitor:
    """Machines by subject. All methods may be called from any thread, but for listener and actions themselves.

    ``listener`` hears each change, in their order, while no other change happens. Then
    ``actions`` that the step requested and that have a function here are carried out;
    one that raises is the event ``action_failed``.
    """

    def __init__(
        self, table: Table, now_ms: Callable[[], int], now_us: Callable[[], int], listener: Callable[[Change], None],
        actions: Mapping[str, Callable[[Change], None]] | None = None, kept: Mapping[str, Stop] | None = None,
        failed: Callable[[str, str], None] = lambda subject, text: None,
    ) -> None:  # fmt: skip
        """``kept`` are stops that outlived a restart: a machine that is added is in its own. ``failed`` hears of actions that failed."""
        self.table = table
        self._now_ms, self._now_us, self._listener, self._actions = now_ms, now_us, listener, dict(actions or {})
        self._kept = kept if kept is not None else dict[str, Stop]()
        self._failed = failed
        self._order, self._lock = threading.RLock(), threading.Lock()
        self._machines: dict[str, MachineState] = {}
        self._status: dict[str, Status] = {}
        self._timeouts: frozenset[str] = frozenset()

    def add(self, subject: str) -> None:
        """Start a subject's machine, in Safe stop when one was kept; nothing happens when it runs already."""
        with self._lock:
            self._add(subject)

    def _add(self, subject: str) -> None:
        if subject not in self._machines:
            stop = self._kept.get(subject)
            self._machines[subject] = initial(self.table) if stop is None else stopped(self.table)
            reason, since_us = stop or ("", self._now_us())
            self._status[subject] = Status(self._machines[subject].name, reason, since_us)

    def remove(self, subject: str, latched: bool = False) -> None:
        """Forget a subject, but, unless ``latched``, none that is stopped safely: that stays until it is reset."""
        with self._lock:
            if latched or (subject in self._machines and self._machines[subject].name != self.table.latched):
                self._machines.pop(subject, None)
                self._status.pop(subject, None)

    def event(self, subject: str, event: str, reason: str = "", by: str = "", known: bool = False) -> str:
        """Feed one event; returns the state after it. With ``known`` nothing happens to a subject that is not there."""
        with self._order:
            change = None
            with self._lock:
                if known and subject not in self._machines:
                    return self.table.initial
                self._add(subject)
                before = self._machines[subject]
                now_ms = self._now_ms()
                after, actions = step(self.table, before, event, now_ms)
                self._machines[subject] = after
                counting = bool(after.counters.get("timeouts"))
                if counting != (subject in self._timeouts):
                    self._timeouts = self._timeouts | {subject} if counting else self._timeouts - {subject}
                if after.name != before.name:
                    now_us = self._now_us()
                    self._status[subject] = Status(after.name, reason, now_us)
                    change = Change(subject, before.name, after.name, event, reason, now_us, actions, now_ms, before.counters, by)
            if change is not None:
                self._listener(change)
                for action in actions:
                    self._carry_out(action, change)
        return self.status(subject).state if change is not None else after.name

    def _carry_out(self, action: str, change: Change) -> None:
        work = self._actions.get(action)
        if work is None:
            return
        try:
            work(change)
        except Exception as error:  # whatever it was: the table says what follows
            text = f"{action}: {type(error).__name__}: {error}"
            self._failed(change.subject, text)
            # SR-038
            self.event(change.subject, "action_failed", text)

    def call_good(self, subject: str) -> None:
        """The event ``call_good`` where it can mean anything: after a timeout. Costs nothing else."""
        if subject in self._timeouts:
            self.event(subject, "call_good")

    def status(self, subject: str) -> Status:
        """Status of one subject; STARTING when it is unknown."""
        with self._lock:
            return self._status.get(subject, Status(self.table.initial, "", 0))

    def counted(self, subject: str, counter: str) -> int:
        """How much a counter of a subject's machine has; 0 when it is unknown."""
        with self._lock:
            machine = self._machines.get(subject)
            return len(machine.counters.get(counter, ())) if machine is not None else 0

    def all(self) -> dict[str, Status]:
        """Status of every subject."""
        with self._lock:
            return dict(self._status)

    def whole(self) -> str:
        """State of the whole: the one with the highest rank; STARTING without subjects."""
        return max((s.state for s in self.all().values()), key=lambda s: self.table.ranks[s], default=self.table.initial)
