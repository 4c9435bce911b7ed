"""Drives the core from lines: events in, steps out. The Go core's ``vigil-gateway simulate`` gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, cast

from vigil_safety.core import MachineState, Table, initial, step

__all__ = ["SimulationError", "simulate"]

_LINE_BYTES_MAX = 64 << 10
_FIELDS = {"time_ms", "event", "subject"}


class SimulationError(ValueError):
    """A line is no event; the text names it and says why."""


def _parsed(table: Table, line: bytes, last: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
        ok = isinstance(found, dict) and set(found) <= _FIELDS and isinstance(found.get("subject", ""), str)
        ok = ok and isinstance(found.get("event", ""), str) and type(found.get("time_ms", 0)) is int
    except ValueError:
        ok = False
    if not ok:
        shown = line[:80].decode("utf-8", "replace")
        raise SimulationError(f'not an event ({{"time_ms": N, "event": NAME, "subject": TEXT}}): {shown}')
    if "time_ms" not in found:
        raise SimulationError("time_ms is missing")
    if found["time_ms"] < last:
        raise SimulationError(f"time_ms {found['time_ms']} comes after {last}: time does not go back")
    if found.get("event") not in table.events:
        raise SimulationError(f'unknown event "{found.get("event", "")}"; known are {", ".join(sorted(table.events))}')
    return cast("dict[str, Any]", found)


def simulate(table: Table, lines: Iterable[bytes]) -> Iterator[str]:
    """One step a line for one event a line (safety/events.schema.json); raises ``SimulationError``.

    Blank lines and those that begin with # are passed over. Each subject has its own machine.
    """
    machines: dict[str, MachineState] = {}
    last = 0
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            if len(raw.rstrip(b"\n")) > _LINE_BYTES_MAX:
                raise SimulationError(f"too long, the limit is {_LINE_BYTES_MAX} bytes")
            event = _parsed(table, line, last)
        except SimulationError as error:
            raise SimulationError(f"line {number}: {error}") from None
        last, subject = event["time_ms"], event.get("subject", "")
        before = machines.get(subject) or initial(table)
        after, actions = step(table, before, event["event"], last)
        machines[subject] = after
        out = {"time_ms": last, "subject": subject, "event": event["event"], "from": before.name, "to": after.name, "actions": actions}
        yield json.dumps(out, separators=(",", ":"), ensure_ascii=False)
