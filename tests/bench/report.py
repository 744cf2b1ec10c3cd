"""What a part of the benchmark found: a table in Markdown and plots in SVG."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import version
from math import ceil, floor, log10
from pathlib import Path

COLOURS = ("#0b6e4f", "#8a8d91", "#c0782b", "#3d6fb4", "#7c4d99")
WIDTH, ROW, LEFT, TOP = 720, 22, 250, 40


@dataclass(frozen=True, slots=True)
class Report:
    """One part's results."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    plots: Mapping[str, str] = field(default_factory=dict)  # SVG, by file name without its ending

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", _row(self.head), _row(["---", *["---:"] * (len(self.head) - 1)])]
        lines += [_row(row) for row in self.rows]
        return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def machine() -> str:
    """Where the figures come from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    release = platform.freedesktop_os_release()["PRETTY_NAME"]
    return (
        f"{os.cpu_count()} × {model}, {release}, Linux {platform.release().split('-')[0]},"
        f" Python {platform.python_version()}, httpx {version('httpx')}"
    )


def bars(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Horizontal bars in groups, on a logarithmic scale. The groups have the same bars."""
    names = list(next(iter(groups.values())))
    values = [value for group in groups.values() for value in group.values()]
    first, last = floor(log10(min(values))), ceil(log10(max(values)))
    scale = (WIDTH - LEFT - 90) / max(1, last - first)
    parts, y = [], TOP
    for group, bars_of_it in groups.items():
        parts.append(_text(12, y + 15, group, "font-weight='bold'"))
        for name, value in bars_of_it.items():
            length = max(2.0, (log10(value) - first) * scale)
            colour = COLOURS[names.index(name) % len(COLOURS)]
            parts.append(f"<rect x='{LEFT}' y='{y + 3}' width='{length:.0f}' height='{ROW - 6}' fill='{colour}'/>")
            parts.append(_text(LEFT - 8, y + 15, name, "text-anchor='end'"))
            parts.append(_text(LEFT + length + 6, y + 15, _short(value)))
            y += ROW
        y += 8
    return _svg(f"{title} ({unit}, logarithmic)", y + 6, parts)


def curves(title: str, x_label: str, xs: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    """Lines on one scale, both axes logarithmic; the last value of each is named."""
    height, parts = 220, []
    first, last = log10(xs[0]), log10(xs[-1])
    at = [LEFT / 3 + (log10(x) - first) / (last - first) * (WIDTH - LEFT - 120) for x in xs]
    top = max(max(values) for values in series.values())
    bottom = floor(log10(max(1e-3, min(min(values) for values in series.values()))))
    span = ceil(log10(top)) - bottom
    for x, label in zip(at, xs, strict=True):
        parts.append(f"<line x1='{x:.0f}' y1='{TOP}' x2='{x:.0f}' y2='{TOP + height}' stroke='#ddd'/>")
        parts.append(_text(x, TOP + height + 16, f"{label:,.0f}", "text-anchor='middle'"))
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        points = [
            (x, TOP + height - (log10(max(1e-3, value)) - bottom) / span * height)
            for x, value in zip(at, values, strict=True)
        ]
        path = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts.append(_text(points[-1][0] + 8, points[-1][1] + 4, f"{name}: {_short(values[-1])}", f"fill='{colour}'"))
    parts.append(_text(at[0], TOP + height + 36, x_label))
    return _svg(f"{title} (both axes logarithmic)", TOP + height + 48, parts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' {attributes}>{escape(text)}</text>"


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' font-family='sans-serif'"
        f" font-size='12'>\n<rect width='{WIDTH}' height='{height:.0f}' fill='white'/>"
    )
    return "\n".join([head, _text(12, 22, title, "font-size='14' font-weight='bold'"), *parts, "</svg>"]) + "\n"
