"""What the sidecar's parts report: each event into the audit log, the process log, the metrics and to whoever follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vigil.models.v1 import models_pb2 as models

from vigil_safety import events_gen as events
from vigil_safety.monitor import Change
from vigil_safety.table import machine_table
from vigil_safety.tally import DEGRADED, EXPIRED, STOPPED
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.entry import SAFETY_CODES, Entry
from vigil_sidecar.audit.recorder import Recorder
from vigil_sidecar.errors import AuditError, ContractViolation
from vigil_sidecar.injection.injector import Injection
from vigil_sidecar.registry.version import ModelEvent, ModelStage
from vigil_sidecar.safety import Safety
from vigil_sidecar.server.call import Call
from vigil_sidecar.server.payloads import model_payload, state_payload, system_payload
from vigil_sidecar.streams.sources import WatchHub
from vigil_sidecar.telemetry.log import get_logger
from vigil_sidecar.telemetry.metrics import Metrics

__all__ = ["Journal"]

_TRANSITIONS_MAX = 256
_COUNTED = {"DEGRADED": DEGRADED, "SAFE_STOP": STOPPED}
_STAGES = {
    events.VERSION_LOADED: "STAGE_LOADED", events.VERSION_SWITCHED: "STAGE_SERVING", events.VERSION_RETIRED: "STAGE_RETIRED",
    events.VERSION_REFUSED: "STAGE_REFUSED",
}  # fmt: skip
_SWAP_RESULTS = {
    events.VERSION_SWITCHED: "switched", events.VERSION_REFUSED: "refused",
    events.VERSION_RETIRED: "retired", events.VERSION_LOADED: "loaded",
}  # fmt: skip


class Journal:
    """Tells of events. Any thread may call; nothing may be told before ``follow``."""

    _safety: Safety

    def __init__(
        self, audit: Recorder, metrics: Metrics, hub: WatchHub, news: threading.Event, model_state: Callable[[str], str]
    ) -> None:  # fmt: skip
        """``news`` is set when a heartbeat should go at once; ``model_state`` says how a model is."""
        self.audit, self.metrics, self.log = audit, metrics, get_logger("sidecar")
        self._hub, self._news, self._model_state = hub, news, model_state
        self._pending: list[Change] = []
        self._stages: list[models.ModelEvent] = []
        self._pending_lock = threading.Lock()

    def follow(self, safety: Safety) -> None:
        """Keep history and counts there."""
        self._safety = safety

    def take_changes(self) -> list[Change]:
        """The changes of state since the last time; at most 256 wait."""
        with self._pending_lock:
            taken, self._pending = self._pending, []
        return taken

    def take_stages(self) -> list[models.ModelEvent]:
        """What happened to versions since the last time; at most 256 wait, the latest."""
        with self._pending_lock:
            taken, self._stages = self._stages, []
        return taken

    def stage(self, stage: ModelStage, replaced_version: int = 0) -> None:
        """A step in a version's life, for whoever looks on."""
        message = models.ModelEvent(
            model=stage.model, version=stage.version, digest=stage.digest, stage=stage.stage, reason=stage.reason[:1024],
            time_us=time.time_ns() // 1000, replaced_version=replaced_version,
        )  # fmt: skip
        with self._pending_lock:
            self._stages = [*self._stages[1 - _TRANSITIONS_MAX :], message]
        self._news.set()

    def injected(self, fault: Injection) -> None:
        """A fault is injected."""
        fields = {"model": fault.model, "duration_ms": str(fault.duration_ms), "magnitude": f"{fault.magnitude:g}"}
        self.append(Entry(layout.KIND_SYSTEM, events.FAULT_INJECTED, payload=system_payload(fault.kind.name, fields)))

    def append(self, entry: Entry) -> None:
        """Write an event; when the log fails the event is still logged, and calls are being refused."""
        try:
            self.audit.append([entry])
        except AuditError as error:
            self.log.error("event not recorded", dia=entry.event_id, reason=str(error))

    def model_event(self, event: ModelEvent) -> None:
        """Record and tell. A switch without its record does not happen: that one raises ``AuditError``."""
        digest = bytes.fromhex(event.digest) if event.digest else bytes(32)
        append = self.append if event.event_id != events.VERSION_SWITCHED else self.audit.append_or_fail
        append(
            Entry(
                layout.KIND_MODEL, event.event_id, SAFETY_CODES.get(self._model_state(event.model), 0),
                model_digest=digest, model_version=event.version, payload=model_payload(event),
            )
        )  # fmt: skip
        fields = {k: v for k, v in event._asdict().items() if v not in ("", 0)}
        self.log.info(events.NAMES[event.event_id], dia=f"DIA-{event.event_id}", **{k: v for k, v in fields.items() if k != "event_id"})
        if event.event_id in _STAGES:
            self.stage(ModelStage(_STAGES[event.event_id], event.model, event.version, event.digest, event.reason), event.replaced_version)
        result = _SWAP_RESULTS.get(event.event_id)
        if result:
            self.metrics.swaps.labels(event.model, result).inc()
        if event.event_id == events.VERSION_SWITCHED:
            self._news.set()  # its ladder is another one
            if event.replaced_version:
                self.metrics.model_info.remove(event.model, str(event.replaced_version), event.replaced_digest)
            self.metrics.model_info.labels(event.model, str(event.version), event.digest).set(1)

        elif event.event_id == events.MODEL_UNLOADED:
            self._news.set()
            self.metrics.model_info.remove(event.model, str(event.version), event.digest)

    def look_failed(self, model: str, error: Exception) -> None:
        """A look at a model's folder raised."""
        self.metrics.faults.inc()
        self.log.error("a look at a model failed", model=model, exc_info=error)

    def state_changed(self, change: Change) -> None:
        """A machine changed its state; called in order of the changes."""
        entry = Entry(
            layout.KIND_STATE, events.STATE_CHANGED, SAFETY_CODES[change.after], payload=state_payload(change, self._safety.monitor.table)
        )  # fmt: skip
        self.append(entry)
        for state in machine_table().ranks:
            self.metrics.safety_state.labels(change.subject, state).set(state == change.after)
        with self._pending_lock:
            if len(self._pending) < _TRANSITIONS_MAX:
                self._pending.append(change)
        self._safety.history.append(change)
        if change.after in _COUNTED:
            self._safety.tally.count(_COUNTED[change.after], change.subject)
        self._news.set()
        self._hub.publish("safety", change)
        self.log.warning(
            "safety state changed", subject=change.subject, before=change.before, after=change.after,
            cause=change.event, reason=change.reason,
        )  # fmt: skip

    def part_expired(self, what: str, reason: str) -> None:
        """Supervision found a part that stands still."""
        self.append(Entry(layout.KIND_SYSTEM, events.SUPERVISION_EXPIRED, payload=system_payload(reason, {"what": what})))
        self._safety.tally.count(EXPIRED, f"model/{what[4:]}" if what.startswith("run/") else what)
        self.log.error("supervision expired", what=what, reason=reason)

    def action_failed(self, subject: str, text: str) -> None:
        """An action that a machine asked for could not be carried out."""
        self.append(Entry(layout.KIND_SYSTEM, events.ACTION_FAILED, payload=system_payload(text, {"subject": subject})))
        self.log.error("a safety action failed", subject=subject, reason=text)

    def disagreed(self, call: Call, violation: ContractViolation) -> None:
        """The sidecar's check of a call says other than the gateway's."""
        self.append(
            Entry(
                layout.KIND_SYSTEM, events.REVALIDATION_DISAGREEMENT, trace_id=call.context.trace_id,
                payload=system_payload(violation.text, {"method": call.method}),
            )
        )  # fmt: skip

    def link_notice(self, what: str, text: str) -> None:
        """Something happened to the link: ``what`` is up, lost, damage or expired."""
        event = {
            "up": events.LINK_UP, "lost": events.LINK_LOST, "damage": events.LINK_CORRUPTION, "expired": events.HEARTBEAT_EXPIRED,
        }[what]  # fmt: skip
        self.append(Entry(layout.KIND_SYSTEM, event, payload=system_payload(text, {})))
        self.log.warning("link " + what, reason=text)
