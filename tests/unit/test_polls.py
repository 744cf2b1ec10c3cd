from __future__ import annotations

from collections import Counter

from xaps_watch.lookout import NO_MEMORY, NOTHING, Memory
from xaps_watch.polls import LIMIT, Polls
from xaps_watch.watches import Mailbox

INTERVAL = 30.0
EMPTY = Memory(1, 1, b"", 0, settled=True)


def test_each_is_looked_into_once_an_interval_and_evenly() -> None:
    polls, looks, most = Polls(INTERVAL), Counter[str](), 0
    for number in range(1000):
        polls.start(Mailbox(str(number)), "nfs4", at=0.0, now=0.0)
    steps = 4000
    for step in range(steps):
        now = step * 0.05
        due = polls.due(now)
        for mailbox, _ in due:
            looks[mailbox.path] += 1
            polls.answered(mailbox, EMPTY, now, now)
        most = max(most, len(due)) if now > INTERVAL else 0
    rounds = steps * 0.05 / INTERVAL
    assert set(looks.values()) <= {int(rounds), int(rounds) + 1}
    assert most <= 2 * 1000 * 0.25 / INTERVAL
    assert polls.reported_to() >= steps * 0.05 - INTERVAL - 1.0


def test_until_something_is_remembered_the_times_of_files_count() -> None:
    polls, mailbox = Polls(INTERVAL), Mailbox("inbox")
    assert polls.start(mailbox, LIMIT, at=5.0, now=100.0)
    assert not polls.start(mailbox, LIMIT, at=9.0, now=100.0)
    assert polls.due(100.0) == [(mailbox, 5.0)]
    assert polls.due(100.0 + INTERVAL / 2) == []
    assert polls.due(101.0 + INTERVAL) == [(mailbox, 5.0)]  # the answer was lost
    polls.answered(mailbox, EMPTY, 140.0, 140.0)
    assert polls.reported_to() == 140.0
    assert polls.due(140.0 + INTERVAL) == [(mailbox, NOTHING)]


def test_one_that_is_no_longer_polled_is_no_longer_due() -> None:
    polls, mailbox, other = Polls(INTERVAL), Mailbox("inbox"), Mailbox("work")
    polls.start(mailbox, LIMIT, 0.0, 0.0)
    polls.start(other, "nfs4", 0.0, 0.0)
    assert polls.why() == {"limit": 1, "nfs4": 1}
    assert list(polls.for_want_of_room()) == [mailbox]
    polls.stop(mailbox)
    polls.answered(mailbox, NO_MEMORY, 1.0, 1.0)
    assert mailbox not in polls
    assert [due for due, _ in polls.due(1.0)] == [other]
    polls.stop(other)
    assert (polls.next_due(), polls.reported_to(), len(polls)) == (NOTHING, NOTHING, 0)
