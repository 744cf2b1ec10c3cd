"""What is due and when: the promises one by one, and all of them against a model."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from xaps_watch.coalesce import NEVER, Coalescer, Due

INTERVAL = 3.0


def test_the_first_mail_is_due_at_once() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.add(1, "INBOX", now=100.0, since=1000.0)
    assert coalescer.next_due() == 100.0
    assert coalescer.take(100.0, 10) == [Due(1, frozenset({"INBOX"}), since=1000.0, noticed=100.0)]


def test_later_mail_is_due_together_when_the_interval_ends_and_newer_mail_never_postpones_it() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.add(1, "INBOX", now=100.0, since=1000.0)
    (first,) = coalescer.take(100.0, 10)
    coalescer.done(first)
    for tenth in range(29):
        coalescer.add(1, f"folder{tenth % 2}", now=100.1 + tenth / 10, since=1000.0 + tenth)
        assert coalescer.next_due() == 100.0 + INTERVAL
        assert coalescer.take(100.1 + tenth / 10, 10) == []
    (second,) = coalescer.take(100.0 + INTERVAL, 10)
    assert second == Due(1, frozenset({"folder0", "folder1"}), since=1000.0, noticed=100.1)


def test_what_comes_while_a_push_is_in_flight_waits_for_its_end() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.add(1, "INBOX", now=0.0, since=0.0)
    (first,) = coalescer.take(0.0, 10)
    coalescer.add(1, "INBOX", now=1.0, since=1.0)
    assert coalescer.take(1000.0, 10) == []
    assert coalescer.next_due() is None
    coalescer.done(first)
    assert [due.device_id for due in coalescer.take(1000.0, 10)] == [1]


def test_a_push_that_failed_is_merged_with_what_came_meanwhile() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.add(1, "INBOX", now=0.0, since=10.0)
    (first,) = coalescer.take(0.0, 10)
    coalescer.add(1, "Notes", now=1.0, since=11.0)
    coalescer.again(first, not_before=60.0)
    assert coalescer.take(59.0, 10) == []
    assert coalescer.take(60.0, 10) == [Due(1, frozenset({"INBOX", "Notes"}), since=10.0, noticed=0.0)]


def test_newer_mail_does_not_end_a_backoff() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.add(1, "INBOX", now=0.0, since=0.0)
    coalescer.again(coalescer.take(0.0, 10)[0], not_before=60.0)
    coalescer.add(1, "INBOX", now=10.0, since=10.0)
    assert coalescer.next_due() == 60.0


def test_a_change_waits_but_goes_along_with_new_mail() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.add(1, "Notes", now=0.0, since=0.0, delay=30.0)
    assert coalescer.next_due() == 30.0
    coalescer.add(1, "INBOX", now=10.0, since=10.0)
    assert coalescer.take(10.0, 10) == [Due(1, frozenset({"INBOX", "Notes"}), since=0.0, noticed=0.0)]
    assert coalescer.next_due() is None


def test_changes_do_not_postpone_each_other() -> None:
    coalescer = Coalescer(INTERVAL)
    for second in range(25):
        coalescer.add(1, "Notes", now=float(second), since=0.0, delay=30.0)
    assert coalescer.next_due() == 30.0


def test_the_longest_waiting_go_first_and_no_more_than_asked_for() -> None:
    coalescer = Coalescer(INTERVAL)
    for device_id in (3, 1, 2):
        coalescer.add(device_id, "INBOX", now=float(device_id), since=0.0)
    assert [due.device_id for due in coalescer.take(10.0, 2)] == [1, 2]
    assert [due.device_id for due in coalescer.take(10.0, 2)] == [3]


def test_nothing_is_kept_of_devices_whose_interval_is_over() -> None:
    coalescer = Coalescer(INTERVAL)
    for device_id in range(1000):
        coalescer.add(device_id, "INBOX", now=0.0, since=0.0)
    for due in coalescer.take(0.0, 1000):
        coalescer.done(due)
    coalescer.take(INTERVAL, 1)
    assert len(coalescer._entries) == 0


def test_a_stop_makes_everything_due() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.add(1, "INBOX", now=0.0, since=0.0, delay=30.0)
    coalescer.add(2, "INBOX", now=0.0, since=0.0)
    coalescer.again(coalescer.take(0.0, 10)[0], not_before=500.0)
    coalescer.hurry()
    assert {due.device_id for due in coalescer.take(0.1, 10)} == {1, 2}


def test_hurry_again_and_again_takes_no_more_room() -> None:
    coalescer = Coalescer(min_interval=30.0)
    for device in range(3):
        coalescer.add(device, "INBOX", now=0.0, since=0.0, delay=5.0)
    for _ in range(10):
        coalescer.hurry()
    assert len(coalescer._heap) == 3
    assert [due.device_id for due in coalescer.take(0.0, 10)] == [0, 1, 2]


class Model(RuleBasedStateMachine):
    """The coalescer beside a model that remembers every single delivery."""

    in_flight = Bundle("in_flight")
    devices = st.integers(1, 4)
    names = st.sampled_from(["INBOX", "Notes", "Lists"])

    def __init__(self) -> None:
        super().__init__()
        self.coalescer = Coalescer(INTERVAL)
        self.now = 0.0
        self.waiting: dict[int, list[tuple[str, float, float]]] = {}  # device → (mailbox, since, noticed)
        self.flying: dict[int, list[tuple[str, float, float]]] = {}
        self.earliest: dict[int, float] = {}  # device → no push before
        self.latest: dict[int, float] = {}  # device → due at the latest, if nothing is in flight
        self.due_again: dict[int, float] = {}

    @rule(device=devices, name=names, delay=st.sampled_from([0.0, 0.0, 30.0]))
    def add(self, device: int, name: str, delay: float) -> None:
        self.coalescer.add(device, name, now=self.now, since=self.now + 1e9, delay=delay)
        self.waiting.setdefault(device, []).append((name, self.now + 1e9, self.now))
        due = max(self.now + delay, self.earliest.get(device, -NEVER))
        self.latest[device] = min(due, self.latest.get(device, NEVER))

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.5, 3.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=in_flight, device=devices)
    def take_until(self, device: int) -> Due | None:
        """Take one push; whichever it is, it must be right."""
        expected = sorted((due, d) for d, due in self.latest.items() if d not in self.flying and due <= self.now)
        taken = self.coalescer.take(self.now, 1)
        assert [due.device_id for due in taken] == [d for _, d in expected[:1]]
        if not taken:
            return None
        (push,) = taken
        mail = self.waiting.pop(push.device_id)
        assert push.mailboxes == {name for name, _, _ in mail}
        assert push.since == min(since for _, since, _ in mail)
        assert push.noticed == min(noticed for _, _, noticed in mail)
        del self.latest[push.device_id]
        self.flying[push.device_id] = mail
        self.earliest[push.device_id] = self.now + INTERVAL
        return push

    @rule(push=consumes(in_flight))
    def done(self, push: Due | None) -> None:
        if push is not None:
            del self.flying[push.device_id]
            self.coalescer.done(push)

    @rule(push=consumes(in_flight), wait=st.sampled_from([0.0, 1.0, 60.0]))
    def again(self, push: Due | None, wait: float) -> None:
        if push is not None:
            device = push.device_id
            self.waiting.setdefault(device, []).extend(self.flying.pop(device))
            self.earliest[device] = self.latest[device] = self.now + wait
            self.coalescer.again(push, self.now + wait)

    @rule(device=devices)
    def forget(self, device: int) -> None:
        self.coalescer.forget(device)
        self.waiting.pop(device, None)
        self.latest.pop(device, None)
        if device not in self.flying:
            self.earliest.pop(device, None)

    @precondition(lambda self: not self.flying)
    @rule()
    def hurry(self) -> None:
        self.coalescer.hurry()
        for device in self.latest:
            self.latest[device] = -NEVER
        self.earliest.clear()

    @invariant()
    def nothing_is_lost(self) -> None:
        mail = [entry for entries in (*self.waiting.values(), *self.flying.values()) for entry in entries]
        assert self.coalescer.oldest() == min((since for _, since, _ in mail), default=NEVER)
        assert len(self.coalescer) == len(self.waiting.keys() | self.flying.keys())

    @invariant()
    def next_due_is_exact(self) -> None:
        due = [at for device, at in self.latest.items() if device not in self.flying]
        assert self.coalescer.next_due() == min(due, default=None)


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase
