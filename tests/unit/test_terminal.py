"""What is shown on a terminal: widths, lines, durations."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xaps_watch.terminal import aligned, duration, printable, width, wrapped


@pytest.mark.parametrize(
    ("text", "cells"), [("abc", 3), ("", 0), ("日本", 4), ("e\N{COMBINING ACUTE ACCENT}", 1), ("ﾊﾝｶｸ", 4), ("📫", 2)]
)
def test_width(text: str, cells: int) -> None:
    assert width(text) == cells


@given(st.text())
def test_printable_text_can_not_break_a_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


def test_columns_line_up_by_cells() -> None:
    assert aligned([("USER", "N"), ("日本", "1"), ("a", "2")]) == ["USER  N", "日本  1", "a     2"]


@given(st.lists(st.text("ab日", min_size=1, max_size=9), max_size=20), st.integers(1, 40))
def test_wrapped_lines_hold_every_item_and_keep_the_room(items: list[str], room: int) -> None:
    lines = wrapped(items, room)
    assert " ".join(lines) == ", ".join(items)
    assert all(width(line) <= room or line.count(",") - line.endswith(",") == 0 for line in lines)


def test_wrapped_without_a_terminal_is_one_line() -> None:
    assert wrapped(map(str, range(1000)), math.inf) == [", ".join(map(str, range(1000)))]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 ms"),
        (-1.0, "0 ms"),
        (0.0025, "2.5 ms"),
        (0.043, "43 ms"),
        (0.999, "999 ms"),
        (0.9996, "1 s"),
        (1.0, "1 s"),
        (2.5, "2.5 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (3600.0, "1 h"),
        (3661.0, "1 h 1 min"),
        (86400.0 * 3 + 60, "3 d"),
        (86400.0 * 3 + 7200, "3 d 2 h"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
