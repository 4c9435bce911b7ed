"""The safety state machine as one SVG: states, numbered arrows, and what each arrow's events are."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

__all__ = ["picture"]

_PLACES = {"STARTING": (150, 90), "NORMAL": (560, 90), "RECOVERING": (930, 250), "DEGRADED": (560, 410), "SAFE_STOP": (150, 410)}
_COLOURS = {"STARTING": "#d9e6f2", "NORMAL": "#d5ead9", "RECOVERING": "#e3def2", "DEGRADED": "#f6e3c5", "SAFE_STOP": "#f0cfcb"}
_WIDTH, _HALF_WIDTH, _HALF_HEIGHT, _LINE, _LEGEND = 1080, 78, 26, 18, 500
_WRAP = 150


def _edge(x: float, y: float, dx: float, dy: float, ox: float, oy: float) -> tuple[float, float]:
    """Where a line from beside a state's middle in a direction leaves its box."""
    across = (_HALF_WIDTH - math.copysign(ox, dx * ox)) / abs(dx) if dx else math.inf
    down = (_HALF_HEIGHT - math.copysign(oy, dy * oy)) / abs(dy) if dy else math.inf
    return x + ox + dx * min(across, down), y + oy + dy * min(across, down)


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) > _WRAP:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


def _arrow(number: int, start: str, end: str, both: bool) -> str:
    """A numbered line; two in opposite directions stand apart."""
    (x1, y1), (x2, y2) = _PLACES[start], _PLACES[end]
    length = math.hypot(x2 - x1, y2 - y1)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    aside = 14 if both else 0
    ox, oy = -uy * aside, ux * aside
    ax, ay = _edge(x1, y1, ux, uy, ox, oy)
    bx, by = _edge(x2, y2, -ux, -uy, ox, oy)
    at = 0.36 if abs(ux) > 0.01 and abs(uy) > 0.01 else 0.5
    mx, my = ax + (bx - ax) * at, ay + (by - ay) * at
    return (
        f'<line x1="{ax:.1f}" y1="{ay:.1f}" x2="{bx:.1f}" y2="{by:.1f}" stroke="#445" stroke-width="1.5" '
        f'marker-end="url(#tip)"/><circle cx="{mx:.1f}" cy="{my:.1f}" r="11" fill="#fff" stroke="#445"/>'
        f'<text x="{mx:.1f}" y="{my + 4.5:.1f}" text-anchor="middle" font-size="13">{number}</text>'
    )


def picture(initial: str, ranks: Mapping[str, int], arrows: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """The whole machine. ``arrows`` gives the events that lead from one state to another."""
    shapes, legend = [], list[str]()
    for number, ((start, end), events) in enumerate(arrows.items(), 1):
        shapes.append(_arrow(number, start, end, (end, start) in arrows))
        text = f"{number}  {start} → {end}: {', '.join(events)}"
        for i, line in enumerate(_wrapped(text)):
            y = _LEGEND + len(legend) * _LINE
            legend.append(f'<text x="{20 if i == 0 else 44}" y="{y}" font-size="12.5">{html.escape(line)}</text>')
    for name, (x, y) in _PLACES.items():
        shapes.append(
            f'<rect x="{x - _HALF_WIDTH}" y="{y - _HALF_HEIGHT}" width="{2 * _HALF_WIDTH}" height="{2 * _HALF_HEIGHT}" rx="12" '
            f'fill="{_COLOURS[name]}" stroke="#445"/><text x="{x}" y="{y - 1}" text-anchor="middle" font-size="15">{name}</text>'
            f'<text x="{x}" y="{y + 16}" text-anchor="middle" font-size="11" fill="#556">rank {ranks[name]}</text>'
        )
    x, y = _PLACES[initial]
    shapes.append(f'<line x1="{x}" y1="{y - 70}" x2="{x}" y2="{y - 27}" stroke="#445" stroke-width="1.5" marker-end="url(#tip)"/>')
    height = _LEGEND + len(legend) * _LINE + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" role="img" '
        'aria-label="Safety state machine"><defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
        f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="#445"/></marker></defs><rect width="{_WIDTH}" height="{height}" '
        f'fill="#fff"/>\n{chr(10).join([*shapes, *legend])}\n</svg>\n'
    )
