"""Proof that a model can serve: golden runs, for recovery under a lease, and now and then while all is well."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vigil_safety.monitor import Change, Monitor
from vigil_sidecar.errors import CallError
from vigil_sidecar.registry.registry import Registry
from vigil_sidecar.registry.version import LoadedVersion

__all__ = ["PREFIX", "Prober"]

PREFIX = "model/"
"""Of a model's subject."""
_TURN_S = 0.02
_LATE_S = 0.5
"""Between two looks while nothing is to be recovered."""


class _Lease:
    """The right of one round of probes to speak; it ends, whether they do or not."""

    __slots__ = ("ends_s",)

    def __init__(self, ends_s: float) -> None:
        self.ends_s = ends_s


class Prober:
    """Tells model machines that they may recover, and probes them. ``start_probes`` may be called by any thread.

    One probe of a model runs at a time, on a thread of its own: one that never
    returns holds nobody up, its lease ends, and no further probe of that model starts.
    """

    def __init__(
        self, registry: Registry, monitor: Monitor, problem: Callable[[str], str | None], lease_ms: int, interval_s: float,
        alive: Callable[[], None], begin: Callable[[LoadedVersion], None], ended: Callable[[], None],
    ) -> None:  # fmt: skip
        """``problem`` says what still keeps a model from recovering, empty when nothing does, None when that is not known yet.

        ``interval_s`` is between probes in Normal, 0 for none; ``alive`` hears of each turn,
        ``begin`` and ``ended`` of each golden run, on its thread.
        """
        self._registry, self._monitor, self._problem, self._alive = registry, monitor, problem, alive
        self._begin, self._ended = begin, ended
        self._lease_s, self._interval_s = lease_ms / 1000, interval_s
        self._lock = threading.Lock()
        self._leases: dict[str, _Lease] = {}
        self._running: set[str] = set()
        self._probed_s: dict[str, float] = {}
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it; a probe under way is not waited for."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(5)

    def start_probes(self, change: Change) -> None:
        """Grant a lease: the action of the table."""
        if change.subject.startswith(PREFIX):
            with self._lock:
                self._leases[change.subject] = _Lease(time.monotonic() + self._lease_s)
            self._wake.set()

    def lease_ends_s(self, subject: str) -> float:
        """When the lease of a subject's probes ends, ``time.monotonic``; 0 without one."""
        with self._lock:
            lease = self._leases.get(subject)
        return lease.ends_s if lease is not None else 0.0

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._alive()
            states = {s: x.state for s, x in self._monitor.all().items() if s.startswith(PREFIX)}
            for subject, state in states.items():
                self._turn(subject, state)
            busy = any(s in ("DEGRADED", "RECOVERING") for s in states.values())
            self._wake.wait(_TURN_S if busy else _LATE_S)
            self._wake.clear()

    def _turn(self, subject: str, state: str) -> None:
        name, monitor = subject.removeprefix(PREFIX), self._monitor
        if state == "DEGRADED":
            if self._problem(name) == "":
                monitor.event(subject, "ready", "nothing keeps it from serving", known=True)
        elif state == "RECOVERING":
            with self._lock:
                lease = self._leases.get(subject)
            if lease is None or time.monotonic() >= lease.ends_s:
                monitor.event(subject, "lease_expired", f"{self._lease_s:g} s were not enough for the probes (safety.lease_ms)", known=True)
            else:
                self._launch(subject, lease)
        elif state == "NORMAL" and self._interval_s:
            now_s = time.monotonic()
            if now_s - self._probed_s.setdefault(subject, now_s) >= self._interval_s:
                self._probed_s[subject] = now_s
                self._launch(subject, None)

    def _launch(self, subject: str, lease: _Lease | None) -> None:
        if subject not in self._running:
            self._running.add(subject)
            threading.Thread(target=self._probe, args=(subject, lease), name="probe", daemon=True).start()

    def _probe(self, subject: str, lease: _Lease | None) -> None:
        """Probe once, or, under a lease, until the machine has heard enough."""
        try:
            while True:
                wrong = self._golden(subject.removeprefix(PREFIX))
                with self._lock:
                    current = lease is None or (self._leases.get(subject) is lease and time.monotonic() < lease.ends_s)
                if wrong is None or not current:
                    return
                event, reason = ("probe_bad", wrong) if wrong else ("probe_good", "a golden run gave what it should")
                state = self._monitor.event(subject, event, reason, known=True)
                if state != "RECOVERING":
                    return
        finally:
            self._running.discard(subject)
            self._wake.set()

    def _golden(self, name: str) -> str | None:
        """What is wrong with the serving version's golden run; None when there is none to ask."""
        try:
            version = self._registry.lease(name, "")
        except CallError:
            return None
        self._begin(version)
        try:
            return version.golden.check(version.session)
        except Exception as error:  # a native failure is a bad probe
            return f"the golden run failed: {str(error).splitlines()[0][:300] if str(error) else type(error).__name__}"
        finally:
            self._ended()
            version.release()
