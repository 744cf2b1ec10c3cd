"""How things are shown on a terminal: names made safe, columns that line up, times and durations for people."""

from __future__ import annotations

import math
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime

GAP = "  "  # between two columns


def printable(text: str) -> str:
    """The text without anything that could move the cursor, or break a line; undecodable bytes are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """How many cells a printable text takes: East Asian wide characters two, combining ones none (UAX #11)."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def columns() -> float:
    """The width of the terminal; unlimited where the output goes to a file or a program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else math.inf


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, each column as wide as its widest cell."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(cell + " " * (w - width(cell)) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def wrapped(items: Iterable[str], room: float) -> list[str]:
    """``INBOX, Notes, …`` in lines of at most `room` cells; an item is never broken."""
    lines: list[str] = []
    for item in items:
        if lines and width(lines[-1]) + width(item) + 3 <= room:  # ", " before it, and perhaps "," after it
            lines[-1] += f" {item},"
        else:
            lines.append(f"{item},")
    if lines:
        lines[-1] = lines[-1].removesuffix(",")
    return lines


def when(milliseconds: int | None) -> str:
    """A unix time in ms, in the machine's time zone."""
    return "-" if milliseconds is None else f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M:%S}"


def duration(seconds: float) -> str:
    """``3 d 4 h``: the two largest units that matter; what is short to one decimal place."""
    if seconds < 0.9995:
        return f"{_short(max(0.0, seconds) * 1000)} ms"
    if seconds < 9.95:
        return f"{_short(seconds)} s"
    left = round(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if number < 9.95 else f"{number:.0f}"
