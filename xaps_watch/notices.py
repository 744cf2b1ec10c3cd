"""Log lines that come by the thousand when a disk goes away: the first at once, the others as a number."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from xaps_watch.logs import fields

WINDOW = 10.0  # seconds


@dataclass(slots=True)
class _Group:
    level: int
    until: float
    more: int = 0
    last: str = ""


class Notices:
    """One line for the first notice of a kind, then at most one in ten seconds that counts the rest."""

    def __init__(self, log: logging.Logger, monotonic: Callable[[], float]) -> None:
        self._log = log
        self._monotonic = monotonic
        self._groups: dict[str, _Group] = {}

    def tell(self, level: int, what: str, path: str, **facts: object) -> None:
        group = self._groups.get(what)
        if group is None:
            self._log.log(level, "%s %s", what, fields(path=path, **facts))
            self._groups[what] = _Group(level, self._monotonic() + WINDOW)
        else:
            group.more += 1
            group.last = path

    def flush(self) -> None:
        """Tell what was counted, where its time has come."""
        now = self._monotonic()
        for what, group in list(self._groups.items()):
            if group.until > now:
                continue
            del self._groups[what]
            if group.more:
                self._log.log(group.level, "%s %s", what, fields(more=group.more, last=group.last))
                self._groups[what] = _Group(group.level, now + WINDOW)

    def next_due(self) -> float:
        """Monotonic; +inf if there is nothing to flush."""
        return min((group.until for group in self._groups.values()), default=float("inf"))
