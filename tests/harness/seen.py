"""What the logs of tested products hold: events and header fields, for the gate that every one is produced by a test."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import yaml

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import LogDamaged, list_segments, records_of

__all__ = ["FOLDER", "holes", "note_seen"]

_ROOT = Path(__file__).resolve().parents[2]
FOLDER, PRODUCED = _ROOT / "build" / "test-results" / "seen", _ROOT / "tests" / "produced.yaml"
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


def holes() -> list[str]:
    """What tests/produced.yaml names without a test, or with one whose runs did not bring it about."""
    found: dict[str, tuple[set[int], set[str]]] = {}
    for file in FOLDER.glob("*.json"):
        one = json.loads(file.read_text())
        events, fields = found.setdefault(one["test"], (set(), set()))
        events.update(one["events"])
        fields.update(one["fields"])
    listed = yaml.safe_load(PRODUCED.read_text())
    wanted = {("event", n): listed["events"].get(n) for n in NAMES}
    wanted |= {("field", n): listed["fields"].get(n) for n in (*(name for name, *_ in layout.FIELDS if name != "reserved"), "payload")}
    out = []
    for (kind, name), test in wanted.items():
        told = f"{kind} {name}" + (f" {NAMES[name]}" if kind == "event" else "")
        if test is None:
            out.append(f"{told} has no test in tests/produced.yaml")
        elif name not in found.get(test, (set(), set()))[kind == "field"]:
            out.append(f"{told} was not brought about by {test}")
    return out
