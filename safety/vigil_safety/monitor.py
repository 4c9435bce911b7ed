"""Keeps one machine per subject and tells listeners of each change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from vigil_safety.core import MachineState, initial, step
from vigil_safety.table import machine_table, worst

__all__ = ["Change", "Monitor", "Status"]


class Change(NamedTuple):
    """One change of one subject's state."""

    subject: str
    before: str
    after: str
    event: str
    reason: str
    time_us: int
    actions: tuple[str, ...]


class Status(NamedTuple):
    """State of a subject, why, and since when (UTC microseconds)."""

    state: str
    reason: str
    since_us: int


class Monitor:
    """Machines by subject. All methods may be called from any thread.

    ``listener`` is called with each change, outside the lock, in order of the
    changes of one subject as long as that subject's events come from one thread.
    """

    def __init__(self, now_ms: Callable[[], int], now_us: Callable[[], int], listener: Callable[[Change], None]):
        self._now_ms, self._now_us, self._listener = now_ms, now_us, listener
        self._lock = threading.Lock()
        self._machines: dict[str, MachineState] = {}
        self._status: dict[str, Status] = {}

    def add(self, subject: str) -> None:
        """Start a subject's machine; nothing happens when it runs already."""
        with self._lock:
            if subject not in self._machines:
                self._machines[subject] = initial(machine_table())
                self._status[subject] = Status(machine_table().initial, "", self._now_us())

    def remove(self, subject: str) -> None:
        """Forget a subject."""
        with self._lock:
            self._machines.pop(subject, None)
            self._status.pop(subject, None)

    def event(self, subject: str, event: str, reason: str = "") -> str:
        """Feed one event; returns the state after it."""
        self.add(subject)
        change = None
        with self._lock:
            before = self._machines[subject]
            after, actions = step(machine_table(), before, event, self._now_ms())
            self._machines[subject] = after
            if after.name != before.name:
                now_us = self._now_us()
                self._status[subject] = Status(after.name, reason, now_us)
                change = Change(subject, before.name, after.name, event, reason, now_us, actions)
        if change is not None:
            self._listener(change)
        return after.name

    def status(self, subject: str) -> Status:
        """Status of one subject; STARTING when it is unknown."""
        with self._lock:
            return self._status.get(subject, Status(machine_table().initial, "", 0))

    def all(self) -> dict[str, Status]:
        """Status of every subject."""
        with self._lock:
            return dict(self._status)

    def whole(self) -> str:
        """State of the whole."""
        return worst([s.state for s in self.all().values()])
