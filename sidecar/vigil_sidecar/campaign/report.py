"""A campaign's report: one HTML file with its pictures in it, no script, nothing fetched; and the same as JSON."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

__all__ = ["write_report"]

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.25em .5em;border-bottom:1px solid #eee;vertical-align:top;font-size:14px}
code,pre{font:13px/1.4 ui-monospace,monospace}
.good{color:#276b41}.bad{color:#a12b23}.none{color:#777}td.n{text-align:right}svg{max-width:100%}p.note{color:#555}
"""
_WIDTH, _ROW, _LEFT = 1100, 18, 190
_SPAN_MS = (0.01, 10_000.0)


def _x(ms: float) -> float:
    low, high = (math.log10(v) for v in _SPAN_MS)
    at = min(max(math.log10(max(ms, _SPAN_MS[0])), low), high)
    return _LEFT + (at - low) / (high - low) * (_WIDTH - _LEFT - 20)


def _picture(kinds: list[dict[str, Any]]) -> str:
    """Detection times: median to worst of each kind, on a logarithmic axis."""
    rows = [k for k in kinds if k["detection_ms"]["count"]]
    height = _ROW * len(rows) + 40
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Detection times by kind">']
    for decade in range(-2, 5):
        x = _x(10.0**decade)
        parts.append(f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height - 30}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 12}" font-size="11" text-anchor="middle">{10.0**decade:g} ms</text>')
    for i, k in enumerate(rows):
        y, d = i * _ROW + 10, k["detection_ms"]
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" font-size="12" text-anchor="end">{html.escape(k["kind"])}</text>')
        parts.append(f'<line x1="{_x(d["median"]):.1f}" y1="{y}" x2="{_x(d["worst"]):.1f}" y2="{y}" stroke="#3b6ea8" stroke-width="3"/>')
        parts.append(f'<circle cx="{_x(d["median"]):.1f}" cy="{y}" r="4" fill="#3b6ea8"/>')
        parts.append(
            f'<line x1="{_x(d["worst"]):.1f}" y1="{y - 5}" x2="{_x(d["worst"]):.1f}" y2="{y + 5}" stroke="#a12b23" stroke-width="2"/>'
        )
    return "".join(parts) + "</svg>"


def _proportion(b: dict[str, Any] | None) -> str:
    if b is None or not b["trials"]:
        return '<span class="none">-</span>'
    return f"{b['successes']}/{b['trials']} <small>[{b['low']:.3f}, {b['high']:.3f}]</small>"


def _times(s: dict[str, Any]) -> str:
    return f"{s['median']:g} / {s['p99']:g} / {s['worst']:g}" if s["count"] else "-"


def _words(counts: dict[str, int]) -> str:
    return html.escape(", ".join(f"{k} {v}" for k, v in sorted(counts.items(), key=lambda x: -x[1]))) or "-"


def _row(k: dict[str, Any]) -> str:
    made = k["as_expected"]
    whole = made["trials"] and made["successes"] == made["trials"]
    colour = "none" if not made["trials"] else "good" if whole else "bad"
    what = "detected" if k["must_be_detected"] else "no effect"
    if not made["trials"]:
        what = html.escape("; ".join(k["not_made"]) or "not made")
    return (
        f"<tr><td><b>{html.escape(k['kind'])}</b><br><small>{html.escape(k['doc'])}</small></td>"
        f'<td class="{colour}">{what} {_proportion(made)}</td><td>{_words(k["mechanisms"])}</td>'
        f"<td>{_times(k['detection_ms'])}</td><td>{_times(k['reaction_ms'])}</td><td>{_times(k['longest_wait_ms'])}</td>"
        f"<td>{_times(k['back_to_normal_ms'])}</td><td>{_words(k['callers'])}</td><td>{_proportion(k['false_alarms_below'])}</td></tr>"
    )


def _names(names: list[str]) -> str:
    return html.escape(", ".join(names)) or "none"


def _page(found: dict[str, Any]) -> str:
    c = found["coverage"]
    rows = "".join(_row(k) for k in found["kinds"])
    groups = "".join(f"<tr><td>{html.escape(g)}</td><td>{_proportion(b)}</td></tr>" for g, b in found["coverage_by_group"].items())
    facts = "".join(f"<tr><td>{html.escape(k)}</td><td><code>{html.escape(str(v))}</code></td></tr>" for k, v in found["about"].items())
    alarms = found["quiet"]
    missed, wrong = ("bad" if found[k] else "good" for k in ("undetected", "false_alarms"))
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Fault injection campaign</title>
<style>{_STYLE}</style></head><body>
<h1>Fault injection campaign</h1>
<p>Detected: <b>{_proportion(c)}</b> of the injections that must be detected, with the exact (Clopper-Pearson) 95 % bounds.
They hold for these faults, injected as they were here: no hardware metric follows from them.</p>
<p>Not detected at least once: <b class="{missed}">{_names(found["undetected"])}</b>. False alarms (a harmless
magnitude, or a kind that must have no effect): <b class="{wrong}">{_names(found["false_alarms"])}</b>.
Latched Safe stop: {_names(found["latched"])}.
Not made here: {_names(found["not_made"])}. Without any fault: {alarms["alarms"]} alarms in
{alarms["seconds"]:g} s of load.</p>
<h2>Times until detection</h2><p class="note">Dot: median, line to the mark: worst.</p><figure>{_picture(found["kinds"])}</figure>
<h2>By group</h2><table><tr><th>group</th><th>detected</th></tr>{groups}</table>
<h2>By kind</h2><p class="note">Times in ms, median / 99th percentile / worst. Detection: from the injection's record to the record
of the mechanism. Reaction: from there to the first refused or stand-in answer that a caller got.
Longest wait: of any call then under way. The callers' columns count calls by status and quality.</p>
<table><tr><th>kind</th><th>as expected</th><th>mechanism</th><th>detection</th>
<th>reaction</th><th>longest wait</th><th>back to Normal</th><th>callers saw</th><th>harmless magnitude tripped</th></tr>{rows}</table>
<h2>About this run</h2><table>{facts}</table></body></html>"""


def write_report(folder: Path, found: dict[str, Any]) -> tuple[Path, Path]:
    """Write ``campaign.html`` and ``campaign.json``; returns their paths. Raises ``OSError``."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "campaign.html", folder / "campaign.json"
    data.write_text(json.dumps(found, indent=1) + "\n")
    page.write_text(_page(found))
    return page, data
