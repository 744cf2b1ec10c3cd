"""Whether pushes may go: backoff, probe, ramp."""

from __future__ import annotations

from xaps_watch.gate import FIRST_BACKOFF, LONGEST_BACKOFF, Gate


def gate(chance: float = 1.0, limit: int = 100) -> Gate:
    return Gate(limit, lambda: chance)


def test_open_it_lets_as_many_go_as_it_may() -> None:
    opened = gate(limit=3)
    opened.in_flight = 2
    assert opened.room(0.0) == 1


def test_each_failure_doubles_the_wait_up_to_a_ceiling() -> None:
    closed, now, waits = gate(), 0.0, []
    for _ in range(2000):  # two days of outage: no overflow
        waits.append(closed.failed(now, "refused"))
        now += waits[-1]
    assert waits[:4] == [FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF, 8 * FIRST_BACKOFF]
    assert waits[-1] == LONGEST_BACKOFF


def test_jitter_takes_at_most_half() -> None:
    assert gate(chance=0.0).failed(0.0, "refused") == FIRST_BACKOFF / 2


def test_pushes_that_fail_together_count_once() -> None:
    closed = gate()
    for _ in range(50):
        closed.failed(0.0, "cut")
    assert closed.failures == 1
    assert closed.opens_at(0.0) == FIRST_BACKOFF


def test_retry_after_is_obeyed_where_it_asks_for_more() -> None:
    assert gate().failed(0.0, "503", retry_after=77.0) == 77.0
    assert gate().failed(0.0, "503", retry_after=0.0) == FIRST_BACKOFF
    late = gate()
    late.failed(0.0, "cut")
    assert late.failed(0.0, "503", retry_after=77.0) == 77.0


def test_one_probe_goes_first_and_then_twice_as_many_each_round() -> None:
    closed = gate(limit=8)
    closed.failed(0.0, "refused")
    assert closed.room(0.5) == 0
    assert closed.room(1.0) == 1
    rounds = []
    while (room := closed.room(1.0)) < 8:
        rounds.append(room)
        for _ in range(room):
            closed.answered()
    assert rounds == [1, 2, 4]


def test_an_answer_ends_an_outage_once() -> None:
    closed = gate()
    closed.failed(0.0, "refused")
    assert closed.answered() is True
    assert closed.answered() is False
    assert closed.why is None
    assert closed.failed(1.0, "refused") == FIRST_BACKOFF


def test_new_credentials_are_tried_at_once_with_a_probe() -> None:
    closed = gate()
    closed.hold(0.0, "403 BadCertificate", 300.0)
    assert closed.opens_at(1.0) == 300.0
    closed.open()
    assert closed.room(1.0) == 1
