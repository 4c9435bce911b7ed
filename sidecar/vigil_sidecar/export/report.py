"""A readable report of an export: one HTML file with its pictures in it, no script, nothing fetched."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from vigil_safety.events_gen import NAMES
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.reader import Record
from vigil_sidecar.export.words import detail, model_of, time_text

__all__ = ["ReportForm"]

_BINS = 120
_EVENTS_MAX = 500
_WIDTH, _HEIGHT, _LEFT = 900, 160, 60
_STATES = {1: "STARTING", 2: "NORMAL", 3: "DEGRADED", 4: "RECOVERING", 5: "SAFE_STOP"}
_STATE_COLOURS = {0: "#bbb", 1: "#8ab4d8", 2: "#3b8f5a", 3: "#d8973c", 4: "#7a6bb0", 5: "#b5382f"}
_CLOCKS = {0: "unknown", 1: "synchronised", 2: "free-running"}
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.25em .6em;border-bottom:1px solid #eee;vertical-align:top}code,pre{font:13px/1.4 ui-monospace,monospace}
pre{background:#f5f5f5;padding:.8em;overflow-x:auto}.good{color:#276b41}.bad{color:#a12b23}figure{margin:1em 0}svg{max-width:100%}
figcaption{color:#555;font-size:.9em}td.n{text-align:right}
"""


class _Span:
    """Counts of one thing in equal parts of time; the parts double in length when time goes on."""

    def __init__(self) -> None:
        self.start_ns, self.bin_ns = 0, 10**9
        self.bins: list[Counter[str]] = []
        self.latency: list[list[int]] = []

    def add(self, time_ns: int, what: str, latency_ns: int) -> None:
        if not self.bins:
            self.start_ns = time_ns
        at = max(0, (time_ns - self.start_ns) // self.bin_ns)
        while at >= _BINS:
            self.bins = [sum(self.bins[i : i + 2], Counter()) for i in range(0, len(self.bins), 2)]
            self.latency = [sorted(chain(*self.latency[i : i + 2]))[::2] for i in range(0, len(self.latency), 2)]
            self.bin_ns *= 2
            at = (time_ns - self.start_ns) // self.bin_ns
        while len(self.bins) <= at:
            self.bins.append(Counter())
            self.latency.append([])
        self.bins[at][what] += 1
        if latency_ns and len(self.latency[at]) < 1000:
            self.latency[at].append(latency_ns)


def _axis(most: float, unit: str, span: _Span) -> str:
    seconds = span.bin_ns * max(1, len(span.bins)) / 1e9
    return (
        f'<text x="{_LEFT - 6}" y="12" text-anchor="end" font-size="11">{most:g}</text>'
        f'<text x="{_LEFT - 6}" y="{_HEIGHT}" text-anchor="end" font-size="11">0 {unit}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT + 16}" font-size="11">{time_text(span.start_ns)[:19]}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 16}" text-anchor="end" font-size="11">+{seconds:g} s</text>'
        f'<line x1="{_LEFT}" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}" stroke="#999"/>'
    )


def _svg(inner: str, label: str) -> str:
    box = f"0 0 {_WIDTH} {_HEIGHT + 22}"
    return f'<figure><svg viewBox="{box}" role="img" aria-label="{label}">{inner}</svg><figcaption>{label}</figcaption></figure>'


def _rates(span: _Span) -> str:
    """Answers and refusals a second, stacked."""
    if not span.bins:
        return "<p>No calls.</p>"
    seconds = span.bin_ns / 1e9
    most = max(1e-9, *(sum(b.values()) / seconds for b in span.bins))
    wide, bars = (_WIDTH - _LEFT) / len(span.bins), []
    for i, b in enumerate(span.bins):
        y = float(_HEIGHT)
        for what, colour in (("answer", "#3b6fa0"), ("refusal", "#c0583b")):
            tall = b[what] / seconds / most * (_HEIGHT - 14)
            y -= tall
            if tall:
                bars.append(
                    f'<rect x="{_LEFT + i * wide:.1f}" y="{y:.1f}" width="{max(1, wide - 1):.1f}" height="{tall:.1f}" fill="{colour}"/>'
                )
    return _svg("".join(bars) + _axis(round(most, 1), "/s", span), "Answers (blue) and refusals (red) a second")


def _latencies(span: _Span) -> str:
    points = [(i, sorted(x)) for i, x in enumerate(span.latency) if x]
    if not points:
        return ""
    most = max(x[min(len(x) - 1, int(len(x) * 0.99))] for _, x in points) / 1e6
    wide, lines = (_WIDTH - _LEFT) / len(span.latency), []
    for part, colour in ((0.5, "#3b6fa0"), (0.99, "#c0583b")):
        tall = (_HEIGHT - 14) / max(most, 1e-9) / 1e6
        at = [(i, x[min(len(x) - 1, int(len(x) * part))]) for i, x in points]
        path = " ".join(f"{_LEFT + (i + 0.5) * wide:.1f},{_HEIGHT - ns * tall:.1f}" for i, ns in at)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return _svg("".join(lines) + _axis(round(most, 3), "ms", span), "Time from arrival to record: median (blue) and 99 of 100 (red)")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    top = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


class ReportForm:
    """Counts as records go by; ``finish`` writes the page. Not for several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self._span = path, _Span()
        self._events: Counter[tuple[str, int]] = Counter()
        self._models: Counter[tuple[str, int, str]] = Counter()
        self._clock: Counter[tuple[str, int]] = Counter()
        self._notable: list[tuple[int, str, Record]] = []
        self._left_out = 0
        self._states: list[tuple[int, int]] = []

    def add(self, log: str, records: Sequence[Record]) -> None:
        """Count a group."""
        for r in records:
            h = r.header
            self._events[log, h.event_id] += 1
            self._clock[log, h.clock_status] += 1
            if h.kind in (layout.KIND_ANSWER, layout.KIND_REFUSAL):
                self._span.add(h.time_ns, layout.KIND_NAMES[h.kind], h.latency_ns if h.kind == layout.KIND_ANSWER else 0)
                if h.model_version:
                    self._models[model_of(r), h.model_version, h.model_digest.hex()] += 1
            elif h.kind in (layout.KIND_MODEL, layout.KIND_STATE, layout.KIND_SYSTEM, layout.KIND_KEY, layout.KIND_PRUNE):
                if len(self._notable) < _EVENTS_MAX:
                    self._notable.append((h.time_ns, log, r))
                else:
                    self._left_out += 1
            if h.kind == layout.KIND_STATE:
                self._states.append((h.time_ns, h.safety_state))

    def close(self) -> None:
        """Nothing is open; ``finish`` writes."""

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the page."""
        parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Vigil audit export</title>", f"<style>{_STYLE}</style>"]
        parts.append(f"<h1>Vigil audit export</h1><p>Made {html.escape(manifest['made'])} by {html.escape(manifest['made_by'])}.</p>")
        parts += ["<h2>Verification</h2>", self._verdicts(manifest)]
        parts += ["<h2>What is in it</h2>", self._contents(manifest), "<h2>Answers over time</h2>", _rates(self._span)]
        parts += [_latencies(self._span), "<h2>Models that answered</h2>"]
        models = [(m, v, d, n) for (m, v, d), n in sorted(self._models.items())]
        parts.append(_table(("model", "version", "SHA-256", "calls"), models) if models else "<p>None.</p>")
        parts += ["<h2>States</h2>", self._timeline(), "<h2>Clock</h2>"]
        parts.append(_table(("log", "status", "records"), [(log, _CLOCKS.get(c, c), n) for (log, c), n in sorted(self._clock.items())]))
        parts += ["<h2>Events</h2>", self._counts(), "<h2>Swaps, states and events of the log, in order</h2>", self._notables()]
        self.path.write_text("".join(parts), encoding="utf-8")

    @staticmethod
    def _verdicts(manifest: dict[str, Any]) -> str:
        rows = []
        for log in manifest["logs"]:
            report = log["verification"]
            good = "good" if report["exit_code"] == 0 else "bad"
            note = report["damage"]["reason"] if report["damage"] else f"{report['sealed']} records are under a trusted signature"
            rows.append(
                f"<li><b>{html.escape(log['log'])}</b>: <span class={good}>{html.escape(report['verdict'])}</span>; {html.escape(note)}"
            )
        words = "This is what the program that made the export found. Do not believe it: repeat it, with keys that you got from elsewhere."
        return f"<ul>{''.join(rows)}</ul><p>{words}</p><pre>{html.escape(manifest['verify_with'])}</pre>"

    @staticmethod
    def _contents(manifest: dict[str, Any]) -> str:
        head = ("log", "records in the log", "exported", "first", "last", "pruned before", "without a proof")
        rows = [
            [log[k] for k in ("log", "records", "exported", "first_sequence", "last_sequence", "pruned", "unproven")]
            for log in manifest["logs"]
        ]
        return _table(head, rows)

    def _timeline(self) -> str:
        if not self._states:
            return "<p>No change of state.</p>"
        first, last = self._states[0][0], max(self._states[-1][0], self._states[0][0] + 1)
        ends = [*(t for t, _ in self._states[1:]), last]
        wide = _WIDTH - _LEFT
        bars = "".join(
            f'<rect x="{_LEFT + (t - first) / (last - first) * wide:.1f}" y="20" height="40" fill="{_STATE_COLOURS.get(s, "#bbb")}" '
            f'width="{max(1.5, (end - t) / (last - first) * wide):.1f}"><title>{_STATES.get(s, s)} {time_text(t)}</title></rect>'
            for (t, s), end in zip(self._states, ends, strict=True)
        )
        legend = " ".join(f'<span style="color:{_STATE_COLOURS[k]}">&#9632; {v}</span>' for k, v in _STATES.items())
        return _svg(bars, "State after each change, over all subjects") + f"<p>{legend}</p>"

    def _counts(self) -> str:
        rows = [(log, f"DIA-{e}", NAMES.get(e, ""), n) for (log, e), n in sorted(self._events.items())]
        return _table(("log", "event", "name", "records"), rows)

    def _notables(self) -> str:
        rows = []
        for time_ns, log, r in sorted(self._notable, key=lambda x: x[0]):
            told = "  ".join(f"{k}={v}" for k, v in detail(r).items() if v not in ("", 0))
            rows.append((time_text(time_ns), f"{log}/{r.header.sequence}", NAMES.get(r.header.event_id, ""), told))
        more = f"<p>{self._left_out} more are in the tables.</p>" if self._left_out else ""
        return _table(("time (UTC)", "record", "event", "what"), rows) + more
