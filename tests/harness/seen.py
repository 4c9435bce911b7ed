"""What the logs of tested products hold: events and header fields, for the gate that every one is produced by a test."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import LogDamaged, list_segments, records_of

__all__ = ["FOLDER", "note_seen", "seen"]

FOLDER = Path(__file__).resolve().parents[2] / "build" / "test-results" / "seen"
_UNKNOWN = (1 << 64) - 1
"""Of an uncertainty: all ones."""


def note_seen(audit: Path) -> None:
    """Note the events, and the fields that are not at their default, of both logs of a product that the present test ran."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[0]
    if not test:
        return
    events: set[int] = set()
    fields: set[str] = set()
    for log in ("gateway", "sidecar"):
        for segment in list_segments(audit / log) if (audit / log).is_dir() else []:
            try:
                for record in records_of(segment, None):
                    events.add(record.header.event_id)
                    for name, value in zip(record.header._fields, record.header, strict=True):
                        if name not in fields and (any(value) if isinstance(value, bytes) else value not in (0, _UNKNOWN)):
                            fields.add(name)
                    if record.payload:
                        fields.add("payload")
            except (LogDamaged, OSError):
                continue  # tests damage logs
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{uuid.uuid4()}.json").write_text(json.dumps({"test": test, "events": sorted(events), "fields": sorted(fields)}))


def seen() -> dict[str, tuple[set[int], set[str]]]:
    """Events and fields by test file, of the run that ended."""
    found: dict[str, tuple[set[int], set[str]]] = {}
    for file in FOLDER.glob("*.json"):
        one = json.loads(file.read_text())
        events, fields = found.setdefault(one["test"], (set(), set()))
        events.update(one["events"])
        fields.update(one["fields"])
    return found


def all_fields() -> list[str]:
    """Every header field that means something."""
    return [name for name, *_ in layout.FIELDS if name != "reserved"]
