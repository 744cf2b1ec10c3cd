"""A clock that isn't set back, for times that are compared with those of files."""

from __future__ import annotations

from collections.abc import Callable

from xaps_watch.lookout import EVERYTHING, NOTHING, SLACK


class SteadyClock:
    """Unix time that is never set back.

    What the wall clock was set back by is added up; `wall` takes it off again, for comparison with the times of files:
    no file that came after the steady time has an earlier time than that.
    """

    def __init__(self, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._offset = wall() - monotonic()
        self._set_back = 0.0

    def now(self) -> float:
        wall = self._wall()
        offset = wall - self._monotonic()
        if offset < self._offset:
            self._set_back += self._offset - offset
        self._offset = offset
        return wall + self._set_back

    def steady(self, wall: float) -> float:
        """The steady time for a wall-clock time that was noted before; one in the future can't be relied on."""
        now = self.now()
        return EVERYTHING if wall + self._set_back > now + SLACK and wall != NOTHING else wall + self._set_back

    def wall(self, steady: float) -> float:
        self.now()  # the clock may have been set since the last look at it
        return steady - self._set_back
