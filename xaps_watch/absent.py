"""Mailboxes that are not there, or can't be reached: when to look for them again. Pure: the clock is an argument."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

# For how long a mailbox that can't be looked into holds caught_up_to back. Phones renew every 23 hours, and no longer
# name a folder that is gone for good.
HOLD = 86400.0  # seconds


@dataclass(slots=True)
class _Absentee:
    since: float  # mail that appeared later counts when it is back
    error: int
    holds: bool
    delay: float
    due: float


class Absentees:
    """All of them, by path. They are looked for soon at first, then ever more seldom."""

    def __init__(self, first: float, last: float, each: float) -> None:
        """`first` and `last` delay, seconds; `each`: the least time between two looks, which makes many wait longer."""
        self._first, self._last, self._each = first, last, each
        self._absentees: dict[str, _Absentee] = {}
        self._heap: list[tuple[float, str]] = []  # what an absentee's own `due` contradicts is passed over

    def __len__(self) -> int:
        return len(self._absentees)

    def __contains__(self, path: object) -> bool:
        return path in self._absentees

    def error(self, path: str) -> int:
        """errno; 0 if it isn't absent."""
        absentee = self._absentees.get(path)
        return absentee.error if absentee else 0

    def since(self, path: str) -> float:
        """Since when mail in it may be unnoticed; +inf if it isn't absent."""
        absentee = self._absentees.get(path)
        return absentee.since if absentee else float("inf")

    def add(self, path: str, error: int, since: float, now: float, *, holds: bool) -> None:
        """It isn't there (still, or for another reason)."""
        absentee = self._absentees.get(path)
        if absentee is None:
            absentee = self._absentees[path] = _Absentee(since, error, holds, self._first, now + self._first)
        else:
            longest = max(self._last, len(self._absentees) * self._each)
            absentee.delay = min(2 * absentee.delay, longest)
            absentee.error, absentee.due = error, now + absentee.delay
            absentee.since = min(absentee.since, since)
        heapq.heappush(self._heap, (absentee.due, path))

    def remove(self, path: str) -> None:
        """It is back, or no longer wanted."""
        self._absentees.pop(path, None)

    def paths(self) -> list[str]:
        return list(self._absentees)

    def due(self, now: float, most: int) -> list[str]:
        """Whom to look for now; each is to be added or removed after that."""
        paths: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(paths) < most:
            due, path = heapq.heappop(self._heap)
            absentee = self._absentees.get(path)
            if absentee is not None and absentee.due == due:
                paths.append(path)
        return paths

    def next_due(self) -> float:
        """Monotonic; +inf if nobody is absent."""
        return self._heap[0][0] if self._heap else float("inf")

    def held_since(self, now: float) -> float:
        """The unix time since which mail may be unnoticed in one of them; +inf if in none. `now`: unix time."""
        return max(min((a.since for a in self._absentees.values() if a.holds), default=float("inf")), now - HOLD)
