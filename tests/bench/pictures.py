"""Pictures of benchmark tables."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["bars", "flame"]

_ROW, _LEFT, _WIDTH = 26, 430, 420


def bars(file: Path, title: str, rows: list[dict[str, Any]]) -> None:
    """Each row's ratio as a bar on a logarithmic scale from 0.1 to 100, its goal as a stroke; the table says the same in numbers."""

    def at(ratio: float) -> float:
        return _LEFT + _WIDTH * (math.log10(min(100.0, max(0.1, ratio))) + 1) / 3

    height = 60 + _ROW * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 90}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="20" font-size="15">{escape(title)}</text>',
    ]
    for ratio in (0.1, 1, 10, 100):
        out.append(f'<line x1="{at(ratio)}" x2="{at(ratio)}" y1="32" y2="{height - 8}" stroke="#bbb"/>')
        out.append(f'<text x="{at(ratio)}" y="{30}" text-anchor="middle" fill="#666">{ratio:g}</text>')
    for i, row in enumerate(rows):
        y = 40 + _ROW * i
        colour = "#2a7" if row["held"] else "#c50"
        left, right = sorted((at(1.0), at(row["ratio"])))
        out.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(row["what"])}</text>')
        out.append(f'<rect x="{left}" y="{y}" width="{max(1.0, right - left)}" height="16" fill="{colour}"/>')
        out.append(f'<text x="{_LEFT + _WIDTH + 8}" y="{y + 13}">{row["ratio"]:.2f}</text>')
        if row["goal"] is not None:
            out.append(f'<line x1="{at(row["goal"])}" x2="{at(row["goal"])}" y1="{y - 2}" y2="{y + 18}" stroke="black" stroke-width="2"/>')
    file.write_text("\n".join(out) + "\n</svg>\n")


_LINE, _WIDE, _LEAST, _LETTER = 17, 1200, 1.5, 6.6


def flame(file: Path, title: str, stacks: Counter[tuple[str, ...]]) -> None:
    """A flame graph: outermost frames at the bottom, as wide as their samples; what is narrower than a pixel and a half is left out."""
    total = max(1, sum(stacks.values()))
    depth = 0
    boxes: list[tuple[int, float, float, str]] = []

    def draw(part: list[tuple[tuple[str, ...], int]], level: int, left: float) -> None:
        nonlocal depth
        groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for stack, count in part:
            if len(stack) > level:
                groups.setdefault(stack[level], []).append((stack, count))
        for name, inner in sorted(groups.items()):
            width = _WIDE * sum(c for _, c in inner) / total
            if width >= _LEAST:
                depth = max(depth, level + 1)
                boxes.append((level, left, width, name))
                draw(inner, level + 1, left)
            left += width

    draw(sorted(stacks.items()), 0, 0.0)
    height = 34 + _LINE * depth
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {height}" font-family="monospace" font-size="11">',
        f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="white"/>',
        f'<text x="6" y="18" font-size="14" font-family="sans-serif">{escape(title)}</text>',
    ]
    for level, left, width, name in boxes:
        y = height - _LINE * (level + 1) - 4
        hue = 10 + zlib.crc32(name.encode()) % 45
        letters = int((width - 4) / _LETTER)
        shown = name if len(name) <= letters else name[-letters:] if letters > 3 else ""
        out.append(
            f"<g><title>{escape(name)}: {100 * width / _WIDE:.1f} %</title>"
            f'<rect x="{left:.1f}" y="{y}" width="{width - 0.4:.1f}" height="{_LINE - 1}" fill="hsl({hue},85%,72%)"/>'
            + (f'<text x="{left + 2:.1f}" y="{y + 12}">{escape(shown)}</text>' if shown else "")
            + "</g>"
        )
    file.write_text("\n".join(out) + "\n</svg>\n")
