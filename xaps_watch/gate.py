"""Whether pushes may go at all. Pure: the clock and the chance are arguments.

Open: up to `limit` pushes in flight. After a failure that concerns them all (the network, a 5xx, the credentials)
the gate closes for a time that doubles with each failure; then one push goes as a probe. When it is answered, the
number allowed in flight doubles with each round trip, so that what waited goes out paced.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_BACKOFF = 1.0  # seconds
LONGEST_BACKOFF = 120.0


class Gate:
    def __init__(self, limit: int, chance: Callable[[], float]) -> None:
        """`limit`: pushes in flight at the most; `chance` gives a number in [0, 1), for the jitter."""
        self.limit = limit
        self.in_flight = 0
        self.failures = 0  # since the last answer
        self.why: str | None = None  # it is closed
        self._chance = chance
        self._allowed = limit
        self._opens_at = 0.0

    def room(self, now: float) -> int:
        """How many more pushes may go now."""
        if now < self._opens_at:
            return 0
        return max(0, self._allowed - self.in_flight)

    def opens_at(self, now: float) -> float | None:
        """When (monotonic) a closed gate opens; None while it is open."""
        return self._opens_at if now < self._opens_at else None

    def answered(self) -> bool:
        """A push was answered by a server that works. True if this ends an outage."""
        recovered = self.failures > 0
        self.failures, self.why = 0, None
        self._opens_at = 0.0
        self._allowed = min(self.limit, self._allowed + 1)  # each answer adds one: doubled a round trip
        return recovered

    def failed(self, now: float, why: str, retry_after: float | None = None) -> float:
        """A push failed in a way that all would. Returns the seconds for which the gate is closed.

        The failures of the pushes that were in flight together count once. `retry_after` (seconds) is obeyed where
        it asks for more than the backoff's own time.
        """
        if now < self._opens_at and retry_after is None:
            return self._opens_at - now
        if now >= self._opens_at:
            self.failures += 1
        longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(self.failures - 1, 16))
        wait = longest * (0.5 + 0.5 * self._chance())  # many servers that lost Apple together don't come back together
        return self.hold(now, why, max(wait, retry_after or 0.0))

    def hold(self, now: float, why: str, seconds: float) -> float:
        """Close the gate for a time of one's own choice. Returns the seconds for which it is closed."""
        self.failures = max(self.failures, 1)
        self.why = why
        self._opens_at = max(self._opens_at, now + seconds)
        self._allowed = 1
        return self._opens_at - now

    def open(self) -> None:
        """What kept it closed has changed (such as new credentials): try at once, with a probe."""
        self._opens_at = 0.0
