"""The sidecar's safety: its machines, what their actions do here, stops that outlive a restart."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vigil_safety.core import load_table
from vigil_safety.latch import LatchFile, Stop
from vigil_safety.monitor import Change, Monitor
from vigil_safety.table import machine_source
from vigil_safety.tally import Tally
from vigil_sidecar.batching.job import Job, JobResult
from vigil_sidecar.errors import CallError, LimitHit, OutputViolation, SemanticViolation
from vigil_sidecar.registry.prober import PREFIX, Prober
from vigil_sidecar.registry.reconciler import Reconciler
from vigil_sidecar.registry.registry import Registry
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.settings_gen import Settings
from vigil_sidecar.supervision import Supervision

__all__ = ["Safety", "table_parameters"]

_UNREADABLE = "safety/sidecar"
"""Subject that is stopped when what was kept cannot be read."""
_HISTORY_MAX = 1000
_RETRY_S = 1.0
_TEXT_MAX = 512


def table_parameters(settings: Settings) -> dict[str, int]:
    """The parameters of the safety table as the settings give them."""
    restarts = {
        "restarts_max": settings.supervisor_restart_count_max,
        "restarts_window_ms": round(settings.supervisor_restart_window_s * 1000),
    }
    return settings.safety_parameters() | restarts


def _finite_inputs(job: Job) -> bool:
    feeds = job.feeds if job.feeds is not None else job.form.stack([job]) if job.form is not None else {}
    return all(np.isfinite(a).all() for a in feeds.values() if a.dtype.kind == "f")


class Safety:
    """Machines of the sidecar's subjects. Any thread may call."""

    def __init__(
        self, settings: Settings, registry: Registry, told: Callable[[Change], None], expired: Callable[[str, str], None],
        failed: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        """``told`` hears of each change, in order; ``expired(what, reason)`` of what supervision finds.

        ``failed(subject, text)`` hears of actions that could not be carried out.
        """
        self._settings, self._registry, self._failed = settings, registry, failed
        self.tally = Tally(Path(settings.data_dir) / "safety" / "sidecar-counts.json")
        self._latch = LatchFile(Path(settings.data_dir) / "safety" / "sidecar.json")
        actions = {
            "start_probes": self._start_probes, "latch": self._keep, "unlatch": self._drop, "refuse_calls": self._refuse,
        }  # fmt: skip
        table = load_table(machine_source(), table_parameters(settings))
        self.monitor = Monitor(
            table, lambda: time.monotonic_ns() // 1_000_000, lambda: time.time_ns() // 1000, told, actions, self._latch.stops, failed
        )
        self.supervision = Supervision(self.monitor, settings.supervisor_restart_after_ms, expired)
        self.history: deque[Change] = deque(maxlen=_HISTORY_MAX)
        self._prober: Prober | None = None
        self._stops: dict[str, str] = {}
        self._retry_s = 0.0
        # SR-036
        if self._latch.unreadable:
            self._latch.stops[_UNREADABLE] = Stop(self._latch.unreadable, time.time_ns() // 1000)
        for subject, stop in self._latch.stops.items():
            self._stop(subject, stop.reason)
            self.monitor.add(subject)

    def start(self, reconciler: Reconciler) -> None:
        """Start probing."""
        if self.tally.problem:
            self._failed("counters", self.tally.problem)
        parameters = self.monitor.table.parameters
        self._prober = Prober(
            self._registry, self.monitor, lambda name: self.supervision.hung.get(name) or reconciler.problems.get(name),
            parameters["lease_ms"], self._settings.safety_probe_interval_s, lambda: self.supervision.indicate("prober"),
            self.begin, self.supervision.run_ends,
        )  # fmt: skip
        reconciler.passed = lambda checkpoint: self.supervision.indicate("registry", checkpoint)
        self.supervision.activate("registry")
        self.supervision.activate("prober")
        self._prober.start()
        self.supervision.start()

    def stop(self) -> None:
        """Stop probing and judging."""
        self.supervision.stop()
        if self._prober is not None:
            self._prober.stop()

    def reset(self, subject: str, reason: str, by: str) -> list[str]:
        """Reset one latched subject, or with an empty name all; returns those that were."""
        table = self.monitor.table
        latched = [s for s, x in sorted(self.monitor.all().items()) if x.state == table.latched and subject in ("", s)]
        for one in latched:
            self.monitor.event(one, "reset", reason, by)
        return latched

    def probes(self, subject: str) -> tuple[int, int, int]:
        """How the probes of a recovering subject go: good ones, needed ones, and when their lease ends, UTC µs; zeros without probes."""
        ends_s = self._prober.lease_ends_s(subject) if self._prober is not None else 0.0
        if ends_s == 0.0 or self.monitor.status(subject).state != "RECOVERING":
            return 0, 0, 0
        ends_us = time.time_ns() // 1000 + round((ends_s - time.monotonic()) * 1e6)
        return self.monitor.counted(subject, "good"), self.monitor.table.parameters["good_probes_min"], ends_us

    def _limit_ms(self, version: LoadedVersion) -> float:
        return version.options.run_ms_max or self._settings.safety_run_ms_max

    def begin(self, version: LoadedVersion) -> None:
        """This thread runs a batch of a version."""
        self.supervision.run_begins(version.model, math.ceil(self._limit_ms(version)))

    def judge(self, jobs: Sequence[Job], ran_ns: int) -> None:
        """Tell the model's machine how a batch went; before its answers leave, so that they say what follows."""
        self.supervision.run_ends()
        version = jobs[0].version
        subject = PREFIX + version.model
        limit_ms = self._limit_ms(version)
        if ran_ns > limit_ms * 1e6:
            self.monitor.event(subject, "call_timeout", f"a run took {ran_ns / 1e6:.0f} ms, the limit is {limit_ms:g} ms", known=True)
            failed = True
        else:
            failed = False
        for job in jobs:
            result = job.result
            if type(result) is JobResult:
                continue
            if isinstance(result, (SemanticViolation, LimitHit)):  # the caller's own: what it sent, or that it asked for too much
                failed = True
                continue
            failed = True
            if not isinstance(result, OutputViolation):
                if isinstance(result, CallError):
                    result.stand_in = True
                self.monitor.event(subject, "call_error", str(result or "no result")[:_TEXT_MAX], known=True)
            elif _finite_inputs(job):  # else the output is the caller's own
                result.stand_in = True
                self.monitor.event(subject, "implausible", str(result)[:_TEXT_MAX], known=True)
        if not failed:
            self.monitor.call_good(subject)

    def _start_probes(self, change: Change) -> None:
        if self._prober is not None:
            self._prober.start_probes(change)

    def _keep(self, change: Change) -> None:
        self._latch.keep(change.subject, Stop(change.reason, change.time_us))

    def retry(self) -> None:
        """Keep on disk what could not be kept before; whoever calls this calls it now and then."""
        now_s = time.monotonic()
        if now_s >= self._retry_s:
            self._retry_s = now_s + _RETRY_S
            try:
                self._latch.retry()
            except OSError:
                pass  # it was told when it failed first

    def _drop(self, change: Change) -> None:
        self._stops.pop(change.subject, None)
        self._tell_registry()
        model = change.subject.removeprefix(PREFIX) if change.subject.startswith(PREFIX) else ""
        if change.subject == _UNREADABLE or (model and model not in self._registry.models):  # there is nothing left to judge
            self.monitor.remove(change.subject, latched=True)
        self._latch.drop(change.subject)

    def _refuse(self, change: Change) -> None:
        self._stop(change.subject, change.reason)

    def _stop(self, subject: str, reason: str) -> None:
        self._stops[subject] = reason
        self._tell_registry()

    def _tell_registry(self) -> None:
        """What calls are refused: those of a stopped model; all while anything else is stopped."""
        stopped = {s.removeprefix(PREFIX) if s.startswith(PREFIX) else "": r for s, r in self._stops.items()}
        self._registry.stopped = stopped
