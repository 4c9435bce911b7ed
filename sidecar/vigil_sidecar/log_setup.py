"""Opens the sidecar's audit log as the settings say."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from vigil_sidecar.audit.clock_daemon import ClockDaemon
from vigil_sidecar.audit.disk import DISK
from vigil_sidecar.audit.keys import KeyFile, hash_key
from vigil_sidecar.audit.prune import Retention
from vigil_sidecar.audit.writer import AuditWriter
from vigil_sidecar.injection.files import recover_log
from vigil_sidecar.injection.injector import Injector
from vigil_sidecar.server.payloads import system_payload
from vigil_sidecar.settings_gen import Settings

__all__ = ["open_log"]


def open_log(settings: Settings, clock: ClockDaemon, injector: Injector | None, report: Callable[[str], None]) -> AuditWriter:
    """The log's writer; with an injector its disk and clock can fail. Raises ``AuditError``."""
    data = Path(settings.data_dir)
    faulty = injector.clock(clock.status) if injector else None
    recover_log(data / "audit" / "sidecar")
    return AuditWriter(
        data / "audit" / "sidecar", "sidecar", clock=faulty.status if faulty else clock.status, durability=settings.audit_durability,
        sync_interval_ms=settings.audit_sync_interval_ms, segment_bytes=settings.audit_segment_bytes,
        describe=system_payload, report=report, keys=KeyFile(data / "keys", "sidecar"),
        checkpoint_records=settings.audit_checkpoint_records, checkpoint_interval_s=settings.audit_checkpoint_interval_s,
        hash_key=hash_key(data / "keys") if settings.audit_hashes == "keyed" else b"",
        retention=Retention(
            settings.audit_retention_bytes, settings.audit_retention_s, settings.audit_kept_bytes_max,
            Path(settings.audit_archive_dir) if settings.audit_archive_dir else None,
        ),
        disk=injector.disk if injector else DISK, time_ns=faulty.time_ns if faulty else time.time_ns,
    )  # fmt: skip
