"""Pictures of benchmark tables."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["bars"]

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
