"""Mailboxes in which events don't tell everything: when to look into them. Pure: the clock is an argument."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from xaps_watch.lookout import NO_MEMORY, NOTHING, Memory
from xaps_watch.watches import Mailbox

LIMIT = "limit"  # why: the kernel has no room for a watch; otherwise the filesystem


@dataclass(slots=True)
class Poll:
    """What is kept for each."""

    why: str
    at: float  # steady; what appeared before has been reported
    due: float  # monotonic
    memory: Memory = NO_MEMORY


class Polls:
    """All of them, the one that was looked into longest ago first."""

    def __init__(self, interval: float) -> None:
        """`interval`: seconds between two looks."""
        self.interval = interval
        self._polls: dict[Mailbox, Poll] = {}
        self._next = 0.0  # monotonic

    def __len__(self) -> int:
        return len(self._polls)

    def __contains__(self, mailbox: object) -> bool:
        return mailbox in self._polls

    def get(self, mailbox: Mailbox) -> Poll | None:
        return self._polls.get(mailbox)

    def start(self, mailbox: Mailbox, why: str, at: float, now: float) -> bool:
        """Poll it for what appears from `at` on. Whether that is new."""
        if mailbox in self._polls:
            return False
        self._polls[mailbox] = Poll(why, at, now)
        return True

    def stop(self, mailbox: Mailbox) -> None:
        self._polls.pop(mailbox, None)

    def answered(self, mailbox: Mailbox, memory: Memory, asked_at: float, now: float) -> None:
        """It was looked into."""
        poll = self._polls.pop(mailbox, None)
        if poll is not None:
            poll.memory, poll.at, poll.due = memory, asked_at, now + self.interval
            self._polls[mailbox] = poll

    def due(self, now: float) -> list[tuple[Mailbox, float]]:
        """Which to look into now, evenly; where nothing is remembered, with the steady time after which mail counts."""
        if now < self._next:
            return []
        step = min(0.25, self.interval / 4)
        most = max(8, int(2 * len(self._polls) * step / self.interval))
        self._next = now + step
        due = []
        for (mailbox, poll), _ in zip(self._polls.items(), range(most), strict=False):
            if poll.due <= now:
                due.append((mailbox, NOTHING if poll.memory is not NO_MEMORY else poll.at))
                poll.due = now + self.interval  # unless the answer says otherwise
        return due

    def next_due(self) -> float:
        """Monotonic; +inf if none is polled."""
        oldest = next(iter(self._polls.values()), None)
        return max(self._next, oldest.due) if oldest is not None else NOTHING

    def reported_to(self) -> float:
        """Steady: what appeared before this has been reported, in each; +inf if none is polled."""
        oldest = next(iter(self._polls.values()), None)
        return oldest.at if oldest is not None else NOTHING

    def why(self) -> Counter[str]:
        """How many are polled for which reason."""
        return Counter(poll.why for poll in self._polls.values())

    def for_want_of_room(self) -> Iterator[Mailbox]:
        """Those to be watched as soon as there is room."""
        return (mailbox for mailbox, poll in self._polls.items() if poll.why == LIMIT)
