"""What is due to which device, and when. Pure: no I/O, the clock is an argument.

A push only says «look»: what waits for one device merges into one pending push, so that there is never more than one
entry a device, whatever the outage. The first mail after a quiet time is due at once; later ones within
`min_interval` of that push become due together when it ends, and newer mail never postpones them.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Due:
    """One push to be sent now."""

    device_id: int
    mailboxes: frozenset[str]
    since: float  # unix time: no delivery that it stands for is older
    noticed: float  # monotonic: when the first of them was noticed


@dataclass(slots=True)
class _Entry:
    """What is known of one device that waits for a push, or was pushed to lately."""

    mailboxes: set[str] = field(default_factory=set)  # pending; the three below are about these
    since: float = NEVER
    noticed: float = NEVER
    due: float = NEVER
    not_before: float = -NEVER  # monotonic: end of the interval after the last push, or of the device's backoff
    in_flight: Due | None = None

    def clear(self) -> None:
        self.mailboxes, self.since, self.noticed, self.due = set(), NEVER, NEVER, NEVER


class Coalescer:
    """All devices that wait for a push, or were pushed to within the last `min_interval` seconds."""

    def __init__(self, min_interval: float) -> None:
        self.min_interval = min_interval
        self._entries: dict[int, _Entry] = {}
        # (due, device) for each pending entry that has no push in flight. An entry that became due sooner leaves its
        # later time behind: where the entry's own `due` differs, the one in the heap is stale.
        self._heap: list[tuple[float, int]] = []
        # (end of interval, device) of entries that are kept only so that the next push keeps its distance.
        self._resting: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        """How many devices wait for a push or for the answer to one."""
        return sum(1 for entry in self._entries.values() if entry.mailboxes or entry.in_flight)

    def add(self, device_id: int, mailbox: str, *, now: float, since: float, delay: float = 0.0) -> None:
        """There is something new in a mailbox: to be pushed at once, or `delay` seconds later at the latest."""
        entry = self._entries.get(device_id)
        if entry is None:
            entry = self._entries[device_id] = _Entry()
        self._merge(device_id, entry, (mailbox,), since, now, now + delay)

    def take(self, now: float, limit: int) -> list[Due]:
        """At most `limit` pushes that are due, longest waiting first. done() or again() is to follow for each."""
        self._drop_rested(now)
        taken: list[Due] = []
        while len(taken) < limit and self._heap and self._heap[0][0] <= now:
            due, device_id = heapq.heappop(self._heap)
            entry = self._entries.get(device_id)
            if entry is None or not self._current(entry, due):
                continue
            entry.in_flight = Due(device_id, frozenset(entry.mailboxes), entry.since, entry.noticed)
            entry.not_before = now + self.min_interval
            entry.clear()
            taken.append(entry.in_flight)
        return taken

    def done(self, push: Due) -> None:
        """The push needs no more attention."""
        entry = self._entries[push.device_id]
        entry.in_flight = None
        if entry.mailboxes:
            heapq.heappush(self._heap, (entry.due, push.device_id))
        else:
            self._resting.append((entry.not_before, push.device_id))

    def again(self, push: Due, not_before: float) -> None:
        """The push has to go once more, merged with what came meanwhile, at `not_before` (monotonic)."""
        entry = self._entries[push.device_id]
        entry.in_flight = None
        entry.due, entry.not_before = NEVER, not_before
        self._merge(push.device_id, entry, push.mailboxes, push.since, push.noticed, not_before)

    def forget(self, device_id: int) -> None:
        """The device is gone: nothing of it waits any longer. A push in flight is still to be followed by done()."""
        entry = self._entries.get(device_id)
        if entry is not None:
            entry.clear()
            if entry.in_flight is None:
                del self._entries[device_id]

    def hurry(self) -> None:
        """All that waits becomes due at once: the service is about to stop, or what held it is mended."""
        for entry in self._entries.values():
            entry.not_before = -NEVER
            if entry.mailboxes:
                entry.due = -NEVER
        waiting = sorted(number for number, entry in self._entries.items() if entry.mailboxes and not entry.in_flight)
        self._heap = [(-NEVER, device_id) for device_id in waiting]  # what is sorted is a heap

    def next_due(self) -> float | None:
        """When (monotonic) take() will have something, or None while nothing waits."""
        while self._heap:
            due, device_id = self._heap[0]
            entry = self._entries.get(device_id)
            if entry is not None and self._current(entry, due):
                return due
            heapq.heappop(self._heap)
        return None

    def oldest(self) -> float:
        """Unix time: no delivery older than this is still to be pushed or answered; infinite when none is."""
        waiting = (min(e.since, e.in_flight.since if e.in_flight else NEVER) for e in self._entries.values())
        return min(waiting, default=NEVER)

    def _merge(
        self, device_id: int, entry: _Entry, mailboxes: Iterable[str], since: float, noticed: float, due: float
    ) -> None:
        entry.mailboxes.update(mailboxes)
        entry.since = min(entry.since, since)
        entry.noticed = min(entry.noticed, noticed)
        due = max(due, entry.not_before)
        if due < entry.due:
            entry.due = due
            if entry.in_flight is None:  # else done() or again() will queue it
                heapq.heappush(self._heap, (due, device_id))

    @staticmethod
    def _current(entry: _Entry, due: float) -> bool:
        return entry.due == due and entry.in_flight is None

    def _drop_rested(self, now: float) -> None:
        while self._resting and self._resting[0][0] <= now:
            _, device_id = self._resting.popleft()
            entry = self._entries.get(device_id)
            if entry is not None and not entry.mailboxes and entry.in_flight is None and entry.not_before <= now:
                del self._entries[device_id]
