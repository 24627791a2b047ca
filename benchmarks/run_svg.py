"""Bars on a logarithmic scale, as SVG that is readable on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, LEFT, ROW, TOP = 760, 300, 26, 64
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.h{font-weight:600;font-size:15px}.s{font-size:11px;fill:#777}"
    ".b{fill:#9aa5b1}.o{fill:#2f6feb}.g{stroke:#8884;stroke-width:1}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.s{fill:#999}.b{fill:#5b6673}.o{fill:#6ea8fe}}"
)


def plot(title: str, below: str, bars: Sequence[tuple[str, float]]) -> str:
    """Draw one bar for each (name, value), the smallest first; ours, whose names begin with FastLLM, stand out."""
    bars = sorted(bars, key=lambda bar: bar[1])
    low = 10.0 ** math.floor(math.log10(min(value for _, value in bars)))
    high = 10.0 ** math.ceil(math.log10(max(value for _, value in bars)))
    room = WIDTH - LEFT - 80

    def at(value: float) -> float:
        return LEFT + room * math.log(value / low) / math.log(high / low)

    height = TOP + ROW * len(bars) + 28
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="h" x="12" y="24">{escape(title)}</text><text class="s" x="12" y="42">{escape(below)}</text>',
    ]
    tick = low
    while tick <= high:
        x = at(tick)
        lines.append(f'<line class="g" x1="{x:.0f}" x2="{x:.0f}" y1="{TOP - 8}" y2="{height - 22}"/>')
        lines.append(f'<text class="s" x="{x:.0f}" y="{height - 6}" text-anchor="middle">{tick:,.0f}</text>')
        tick *= 10
    for number, (name, value) in enumerate(bars):
        y = TOP + ROW * number
        kind = "o" if name.startswith("FastLLM") else "b"
        lines.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        lines.append(f'<rect class="{kind}" x="{LEFT}" y="{y + 2}" width="{at(value) - LEFT:.1f}" height="{ROW - 8}"/>')
        lines.append(f'<text x="{at(value) + 6:.1f}" y="{y + 15}">{value:,.0f}</text>')
    return "\n".join([*lines, "</svg>", ""])
