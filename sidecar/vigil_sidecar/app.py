"""The sidecar process: wires settings, log, registry, services and listeners."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vigil.contract_digest import CONTRACT_DIGEST
from vigil.link.v1 import link_pb2 as link

from vigil_safety import events_gen as events
from vigil_safety.table import worst
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.clock_daemon import ClockDaemon
from vigil_sidecar.audit.entry import Entry
from vigil_sidecar.audit.recorder import UNLOGGED, Recorder
from vigil_sidecar.batching import ragged
from vigil_sidecar.batching.job import Job
from vigil_sidecar.errors import AuditError, CallError, CandidateRefused, Resting
from vigil_sidecar.injection.files import recover
from vigil_sidecar.injection.injector import Injector
from vigil_sidecar.injection.wire import connection_maker
from vigil_sidecar.journal import Journal
from vigil_sidecar.log_setup import open_log
from vigil_sidecar.pipelines.catalogue import libraries_loaded
from vigil_sidecar.pipelines.frames import FrameDecoder
from vigil_sidecar.registry.control import ModelControl
from vigil_sidecar.registry.loader import Loader
from vigil_sidecar.registry.options import ModelOptions
from vigil_sidecar.registry.reconciler import Reconciler
from vigil_sidecar.registry.registry import Registry
from vigil_sidecar.registry.version import LoadedVersion
from vigil_sidecar.registry.watcher import Watcher
from vigil_sidecar.safety import Safety
from vigil_sidecar.server.call import Call, Reply
from vigil_sidecar.server.direct import DirectServer
from vigil_sidecar.server.dispatch import Dispatcher
from vigil_sidecar.server.ladder import Ladders, check_ladder
from vigil_sidecar.server.link import LinkConfig, LinkServer
from vigil_sidecar.server.methods import Parts, batch_methods, missing_methods, stream_methods, unary_methods
from vigil_sidecar.server.model_config import read_options
from vigil_sidecar.server.payloads import system_payload
from vigil_sidecar.server.perception import Perception
from vigil_sidecar.server.processor import Processor
from vigil_sidecar.server.repository import Repository
from vigil_sidecar.server.revalidation import Revalidation
from vigil_sidecar.server.services import AuditReports, Metadata, Models, SafetyReports, subject_state, transition_message
from vigil_sidecar.settings_gen import Settings
from vigil_sidecar.streams.sources import SourceOrder, WatchHub
from vigil_sidecar.telemetry.log import get_logger
from vigil_sidecar.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from vigil_sidecar.telemetry.tracing import Tracing

__all__ = ["Sidecar"]

_DIRECT_THREADS = 32
_WORKER_QUEUE_MAX = 4096
_LOG_PROBE_S = 0.2
_ANCHOR_WAIT_S = 1.0
_LIBRARIES_MS = 300
"""OpenCV and Pillow load in about 45 ms from a warm disk."""
_LOG = "log/sidecar"
"""Subject of the log's own state machine."""


def _tracing(endpoint: str) -> Tracing | None:
    """Spans where they are wanted; elsewhere their libraries are not loaded: an eighth of the start, and 8 MB."""
    if not endpoint:
        return None
    from vigil_sidecar.telemetry.tracing import Tracing

    return Tracing(endpoint)


class Sidecar:
    """One sidecar. ``start`` returns when it listens; ``stop`` drains."""

    def __init__(self, settings: Settings) -> None:
        """Open the log and wire everything; raises ``AuditError`` or ``LinkBusy``."""
        self.settings, self.log, self.metrics = settings, get_logger("sidecar"), Metrics()
        self._tracing = _tracing(settings.trace_otlp_endpoint)
        data = Path(settings.data_dir)
        self._clock = ClockDaemon(settings.clock_source, settings.clock_chrony_at, settings.clock_ptp4l_socket)
        self.injector = Injector(Path(settings.models_dir)) if settings.safety_injection else None
        log = open_log(settings, self._clock, self.injector, lambda text: self.log.error("audit", reason=text))
        self.audit = Recorder(
            log, settings.audit_on_failure, settings.audit_write_timeout_ms / 1000, settings.audit_refusals_per_s, system_payload
        )
        self.audit.enabled = settings.audit_enabled
        self.metrics.count_records(lambda: log.records_total)
        self.metrics.count_unlogged(lambda: self.audit.unlogged_total)
        self.metrics.checkpoint_age(lambda: log.checkpoint_age_s)
        self._stopping = threading.Event()
        self._news, self._ladders = threading.Event(), Ladders()
        self._hub = WatchHub(settings.limits_watchers_max, settings.limits_watch_queue_max)
        self.journal = Journal(self.audit, self.metrics, self._hub, self._news, self._model_state)
        self.registry = Registry()
        self.safety = Safety(settings, self.registry, self.journal.state_changed, self.journal.part_expired, self.journal.action_failed)
        self.monitor = self.safety.monitor
        self.journal.follow(self.safety)
        root = Path(settings.models_dir)
        self._loader = loader = Loader(
            settings, self.journal.model_event, self._check_version, self.injector.session if self.injector else None
        )
        control = ModelControl(root, data / "control", settings.models_control, settings.models_load)
        self.reconciler = Reconciler(
            control, settings, self.registry, loader, self.monitor, self._read_options, self.journal.model_event, self.journal.look_failed
        )  # fmt: skip
        self._watcher = Watcher(root, self.reconciler.mark) if control.mode == "watch" else None
        self.dispatcher = self._make_dispatcher()
        instance, boot = log.instance.hex(), log.boot_id.hex()
        self._checkpoint, self._checkpoint_came, self._link_stopped = b"", threading.Event(), threading.Event()
        self._anchors = threading.Thread(target=self._record_anchors, name="anchors", daemon=True)
        config = LinkConfig(
            data / "run" / "sidecar.sock", instance, boot, 2 * settings.limits_message_bytes_max + (16 << 20),
            settings.link_heartbeat_interval_ms / 1000, settings.link_heartbeat_timeout_ms / 1000,
            settings.link_spin_us_max * 1000,
        )  # fmt: skip
        self._link = LinkServer(
            config,
            self.dispatcher,
            self._heartbeat,
            self.journal.link_notice,
            self._anchor,
            self._all_ladders,
            self._news,
            connection_maker(self.injector.faults if self.injector else None),
        )
        loader.pausing, loader.shown = self._link.pausing, self.journal.stage
        self._direct = DirectServer(
            self.dispatcher, settings.limits_message_bytes_max, settings.control_allow_remote, _DIRECT_THREADS,
            self._direct_done, self.monitor.whole, self._lost_to_the_log, self.audit.position(UNLOGGED),
        )  # fmt: skip

    def _enable_injection(self) -> None:
        """Undo what an injection left behind when it was killed; where faults can be injected, say so and be told of each."""
        told = lambda text: self.log.warning("injected fault", what=text)  # noqa: E731
        recover(Path(self.settings.models_dir), told)
        if (injector := self.injector) is None:
            return
        injector.record, injector.log_file, injector.told = self.journal.injected, lambda: self.audit.log.path, told
        injector.failed = lambda kind, error: self.log.error("a fault could not be injected", kind=kind, exc_info=error)
        injector.supervise(self.safety.supervision)
        self.journal.append(Entry(layout.KIND_SYSTEM, events.INJECTION_ENABLED, payload=system_payload("safety.injection is on", {})))
        self.log.warning("faults can be injected here (safety.injection); rely on no answer")

    def _make_dispatcher(self) -> Dispatcher:
        s = self.settings
        decoder = FrameDecoder(s.limits_frame_side_max, s.limits_frame_pixels_max, s.limits_decode_bytes_max)
        order = SourceOrder(s.limits_sources_max, s.limits_source_idle_s, s.limits_capture_skew_max_s, time.monotonic, time.time)
        revalidation = Revalidation(s.link_revalidate, s.link_revalidate_every, self.journal.disagreed)
        parts = Parts(
            Perception(decoder, order, self._hub, s.limits_watch_frame_bytes_max, s.perception_frames_remote),
            Metadata(self.registry, self.ready, ["model_repository(unload_dependents)"] if s.models_control == "explicit" else []),
            Models(s, self.registry, self.reconciler, self.monitor),
            SafetyReports(self.safety, self._hub, self.injector),
            AuditReports(self.audit.log),
            Repository(self.registry, self.reconciler),
        )
        batch = batch_methods(parts)
        processor = Processor(self.registry, self.audit, batch, revalidation, self, self._model_state, self._rests)
        return Dispatcher(
            self.registry, self.audit, processor, batch, unary_methods(parts), stream_methods(parts),
            missing_methods(self.injector is not None),
            revalidation, self, s.models_inline_run_us_max / 1e6, _WORKER_QUEUE_MAX, s.limits_watchers_max,
        )  # fmt: skip

    # Life.

    def start(self) -> tuple[int, int]:
        """Listen and start loading; returns the ports of gRPC and metrics. Raises ``OSError``."""
        s = self.settings
        self._enable_injection()
        self._loader.memory.start()
        metrics_port = self.metrics.serve(s.listen_host, s.listen_sidecar_metrics_port)
        grpc_port = self._direct.start(s.listen_host, s.listen_sidecar_grpc_port)
        if self._watcher is not None:
            self._watcher.start()
        supervision = self.safety.supervision
        supervision.watch(self._link.busy)
        supervision.watch(self.dispatcher.busy)
        if self._clock.asks:
            self._clock.passed = lambda: supervision.indicate("clock")
            supervision.activate("clock")
        self.safety.start(self.reconciler)
        self.reconciler.start()
        if late := self._link.start():
            self.log.warning("the gateway will hear late of this process's death", reason=late)
        self._anchors.start()
        threading.Thread(target=self._follow_readiness, name="readiness", daemon=True).start()
        self.log.info("sidecar listens", grpc=grpc_port, metrics=metrics_port, pid=os.getpid(), contract=CONTRACT_DIGEST[:12])
        return grpc_port, metrics_port

    def write_ports(self, grpc_port: int, metrics_port: int) -> None:
        """Tell the supervisor, atomically, where the sidecar listens."""
        path = Path(self.settings.data_dir) / "run" / "sidecar.json"
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps({"sidecar_grpc": grpc_port, "sidecar_metrics": metrics_port, "sidecar_pid": os.getpid()}))
        temporary.rename(path)

    def stop(self) -> None:
        """Finish running calls and close the log."""
        self.log.info("sidecar stops")
        self._stopping.set()
        if self.injector is not None:
            self.injector.close()
        self._direct.set_ready(False)
        self._direct.stop(self.settings.gateway_drain_timeout_s)
        if not self._link.drain(self.settings.gateway_drain_timeout_s):
            self.log.warning("calls were still running after the drain timeout")
        if self._watcher is not None:
            self._watcher.stop()
        self.reconciler.stop()
        self.safety.stop()
        self._loader.memory.stop()
        self._link.stop()
        self._link_stopped.set()
        self._checkpoint_came.set()
        if self._anchors.is_alive():
            self._anchors.join(_ANCHOR_WAIT_S)
        self.dispatcher.close()
        if self._tracing is not None:
            self._tracing.close()
        self.audit.close()
        self._clock.close()

    def ready(self) -> bool:
        """Whether every model present was looked at, and the log can be written, or need not."""
        return self.reconciler.first_pass.is_set() and (self.audit.policy != "refuse" or self.audit.failure is None)

    def _follow_readiness(self) -> None:
        self.reconciler.first_pass.wait()
        self._direct.set_ready(True)
        self.log.info("sidecar ready", models=len(self.registry.models))
        while not self._stopping.wait(_LOG_PROBE_S):
            if self.audit.failure is not None:  # nobody may call while health says no, so the log is tried here
                again = system_payload("the log can be written again", {})
                self.audit.try_again(Entry(layout.KIND_SYSTEM, events.LOG_RECOVERED, payload=again))
            self._judge_log()
            self.safety.retry()
            self._direct.set_ready(self.ready())

    def _judge_log(self) -> None:
        """Feed the log's state machine; with ``audit.on_failure = continue`` only metrics tell."""
        failure, state = self.audit.failure, self.monitor.status(_LOG).state
        if self.audit.policy == "continue" or not self.audit.enabled:
            return
        if failure is not None:
            self.monitor.event(_LOG, "fault", failure)
        elif state in ("STARTING", "DEGRADED"):
            self.monitor.event(_LOG, "ready", "the log is written")
        elif state == "RECOVERING":
            self.monitor.event(_LOG, "probe_good", "the log is written")

    def _lost_to_the_log(self) -> str:
        """Why a call under way must not wait for its record any longer; empty when it may."""
        return self.audit.hung if self.audit.policy == "refuse" else ""

    # What the parts report.

    def _check_version(self, version: LoadedVersion) -> None:
        if version.options.pipeline is not None:
            from vigil_sidecar.pipelines.catalogue import make_pipeline

            make_pipeline(version.options.pipeline, version.options.pipeline_options).check(version.session.contract)

        if (options := version.options.ragged) is not None:
            if problem := ragged.problem_of(options, version.session.contract, version.max_batch_size):
                raise CandidateRefused(f"vigil.toml: {problem}")
            ragged.check(options, version.session)
        check_ladder(version, self.registry.models)

    def _all_ladders(self) -> link.Ladders | None:
        return self._ladders.message(self.registry.models.copy().values()) if self.reconciler.first_pass.is_set() else None

    def _rests(self, model: str) -> Resting | None:
        status = self.monitor.status(f"model/{model}")
        if status.state in ("STARTING", "NORMAL"):
            return None
        error = Resting(f"model '{model}' is {status.state} ({status.reason}); its ladder answers until it is NORMAL")
        error.stand_in = status.state != self.monitor.table.latched  # a stop is for a person to end
        return error

    def _model_state(self, model: str) -> str:
        state = self.monitor.status(f"model/{model}").state
        return worst([state, self.monitor.status(_LOG).state]) if self.audit.failure is not None else state

    def _heartbeat(self, beat: link.Heartbeat) -> None:
        beat.ready, beat.checkpoint = self.ready(), self.audit.log.checkpoint
        if (free := self._loader.memory.last_free) is not None:
            beat.memory_free = free
        beat.log_failure = self._lost_to_the_log()[:256]
        beat.subjects.extend(subject_state(self.safety, subject, status) for subject, status in self.monitor.all().items())
        report = self.safety.supervision.report
        expired = [f"{n}: {r}"[:256] for n, r in list(report.expired.items())[:16]]
        beat.supervision.MergeFrom(link.Supervision(cycles=report.cycles, status="STATUS_" + report.status, expired=expired))
        beat.models.extend(name for name, model in self.registry.models.copy().items() if model.serving is not None)
        beat.transitions.extend(transition_message(c) for c in self.journal.take_changes())
        beat.model_events.extend(self.journal.take_stages())

    def _anchor(self, note: bytes) -> None:
        """Note the gateway's latest checkpoint: the link's reader never waits for a disk."""
        self._checkpoint = note
        self._checkpoint_came.set()

    def _record_anchors(self) -> None:
        stopping = False
        while not stopping:  # the last one, which came before the gateway went, is recorded too
            self._checkpoint_came.wait(_LOG_PROBE_S)  # after a failure it is tried again
            self._checkpoint_came.clear()
            stopping = self._link_stopped.is_set()
            try:
                if self.audit.failure is None:
                    self.audit.log.anchor(self._checkpoint)
            except AuditError as error:
                self.log.error("the gateway's checkpoint was not recorded", reason=str(error))

    def _read_options(self, folder: Path, model: str) -> ModelOptions:
        """A model's options; its file may be the first that names a pipeline, whose libraries hold everything up while they load."""
        with self._loader.pausing(0 if libraries_loaded() else _LIBRARIES_MS):
            return read_options(folder, model)

    # BatchObserver.

    def begin(self, version: LoadedVersion) -> None:
        """A run begins on this thread."""
        self.safety.begin(version)

    def ended(self) -> None:
        """It ended without a batch."""
        self.safety.supervision.run_ends()

    def batch(self, jobs: Sequence[Job], start_ns: int, end_ns: int) -> None:
        """Metrics, spans and safety of one batch."""
        self.safety.judge(jobs, end_ns - start_ns)
        version, rows = jobs[0].version, jobs[0].batch_size
        self.metrics.batches.observe(version.model, rows, (end_ns - start_ns) / 1e9)
        parents = [(j.call.context.trace_id, j.call.context.span_id) for j in jobs if j.call.context.sampled]
        if parents and self._tracing is not None:
            offset_ns = time.time_ns() - time.monotonic_ns()
            self._tracing.batch(parents, version.model, version.text, rows, start_ns, end_ns, offset_ns)

    def limit_hit(self, limit: str) -> None:
        """A named limit refused a call."""
        self.metrics.limit_hits.labels(limit).inc()

    def fault(self, call: Call, error: Exception) -> None:
        """A fault of Vigil itself: detail to the log under the trace id."""
        self.metrics.faults.inc()
        self.log.error("internal error", method=call.method, trace_id=call.context.trace_id.hex(), exc_info=error)

    def _direct_done(self, call: Call, reply: Reply) -> None:
        quality = "normal" if reply.code == 0 else ""
        self.metrics.direct_requests.labels("", reply.model_version, call.method, str(reply.code), quality).inc()
        if reply.code == CallError.code:
            self.log.error("call failed", method=call.method, trace_id=call.context.trace_id.hex(), text=reply.text)
