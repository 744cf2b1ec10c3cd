"""The watch set against a model of it: whatever is done to mailboxes, in whatever order, no delivery goes unreported.

More than the test run tries: `HYPOTHESIS_PROFILE=long python -m pytest tests/integration/test_watcher_model.py`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.support.maildirs import deliver_by_copy, deliver_by_link, deliver_by_rename, make_maildir, read_all, swap
from xaps_watch.watcher import Pace, Watcher

PACE = Pace(verify_interval=0.005, retry_first=0.002, retry_last=0.01, rescan_interval=0.0)
PLACES = ("a", "b", "c")
ALIAS = "alias"  # a symlink to the first of them
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "")
EXAMPLES = {"": 100, "long": 3000}
TIMEOUT = {"": 300, "long": 7200}  # seconds

places = st.sampled_from(PLACES)
names = st.sampled_from((*PLACES, ALIAS))


class Mailboxes(RuleBasedStateMachine):
    """Three places where a mailbox may be, four names for them; what is due, and what may be reported besides."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        for place in PLACES:
            make_maildir(self.root / place)
        (self.root / ALIAS).symlink_to(PLACES[0])
        self.loop = asyncio.new_event_loop()
        self.registered: set[str] = set()
        self.due: set[str] = set()
        self.allowed: set[str] = set()
        self.reported: set[str] = set()
        self.watcher = Watcher(lambda paths: self.reported.update(Path(path).name for path in paths), pace=PACE)
        self.run(self.watcher.start)
        for name in (*PLACES, ALIAS):
            self.register(name)

    def run(self, step: Callable[[], object]) -> None:
        async def once() -> None:
            step()

        self.loop.run_until_complete(once())

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.run(self.watcher.close)
            self.loop.close()
            shutil.rmtree(self.root)

    def exists(self, place: str) -> bool:
        return (self.root / place / "new").is_dir()

    def names_of(self, place: str) -> set[str]:
        return self.registered & ({place, ALIAS} if place == PLACES[0] else {place})

    def touched(self, *touched: str) -> None:
        """Mail that was there is no longer due there, but may have been reported already, or come along."""
        for place in touched:
            changed = {place, ALIAS} if place == PLACES[0] else {place}
            self.allowed |= changed
            self.due -= changed

    def register(self, name: str) -> None:
        self.registered.add(name)
        self.allowed.add(name)  # what came a moment before counts, too
        self.run(lambda: self.watcher.watch(str(self.root / name), time.time()))

    @rule(name=names)
    def register_or_forget(self, name: str) -> None:
        if name not in self.registered:
            self.register(name)
            return
        self.registered.discard(name)
        self.due.discard(name)
        self.allowed.add(name)  # what came before
        self.run(lambda: self.watcher.unwatch(str(self.root / name)))

    def deliver(self, place: str, deliver: Callable[[Path], Path]) -> None:
        if self.exists(place):
            deliver(self.root / place)
            self.due |= self.names_of(place)

    @rule(place=places)
    def deliver_by_rename(self, place: str) -> None:
        self.deliver(place, deliver_by_rename)

    @rule(place=places)
    def deliver_by_link(self, place: str) -> None:
        self.deliver(place, deliver_by_link)

    @rule(place=places)
    def deliver_by_copy(self, place: str) -> None:
        self.deliver(place, lambda mailbox: deliver_by_copy(mailbox, pause=0.0))

    @rule(place=places)
    def read(self, place: str) -> None:
        if self.exists(place):
            read_all(self.root / place)
            self.touched(place)

    @rule(place=places)
    def remove(self, place: str) -> None:
        if self.exists(place):
            shutil.rmtree(self.root / place)
            self.touched(place)

    @rule(place=places)
    def create(self, place: str) -> None:
        make_maildir(self.root / place)

    @rule(source=places, destination=places)
    def rename(self, source: str, destination: str) -> None:
        if self.exists(source) and not self.exists(destination):
            (self.root / source).rename(self.root / destination)
            self.touched(source, destination)

    @rule(one=places, other=places)
    def swap(self, one: str, other: str) -> None:
        if one != other and self.exists(one) and self.exists(other):
            swap(self.root / one, self.root / other)
            self.touched(one, other)

    @rule()
    def lose_events(self) -> None:
        """As the kernel does when its queue is full."""

        def lose() -> None:
            while self.watcher._inotify.read():
                pass
            self.watcher._on_overflow()

        self.run(lose)
        self.allowed |= self.registered  # what came within the last seconds counts as lost

    @precondition(lambda self: self.due or self.allowed)
    @rule()
    def settle(self) -> None:
        self.loop.run_until_complete(self.settled())
        assert self.due <= self.reported, f"missed: {self.due - self.reported}"
        assert self.reported <= self.due | self.allowed, f"needless: {self.reported - self.due - self.allowed}"
        self.due.clear()
        self.allowed.clear()
        self.reported.clear()

    async def settled(self) -> None:
        """Until all events are read, all looks taken, and each path was compared with its directory since now."""
        began, deadline = time.time(), time.monotonic() + 30
        while not (
            self.watcher._verified > began and self.watcher._inotify.is_empty() and self.watcher._lost_since > began
        ):
            assert time.monotonic() < deadline, "never settles"
            await asyncio.sleep(0.002)
            await self.watcher.settled()
        while not self.due <= self.reported and time.monotonic() < deadline:
            await asyncio.sleep(0.002)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.watcher) == len(self.registered)


@pytest.mark.timeout(TIMEOUT[PROFILE])
def test_no_delivery_is_missed_whatever_is_done_to_the_mailboxes() -> None:
    run_state_machine_as_test(
        Mailboxes,
        settings=settings(
            max_examples=EXAMPLES[PROFILE],
            stateful_step_count=30,
            deadline=None,
            derandomize=not PROFILE,
            phases=tuple(Phase) if PROFILE else (Phase.generate,),  # to shrink a failure takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
