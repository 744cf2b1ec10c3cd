"""An hour without the push service, 10 000 devices waiting: the clock is injected, all else is real."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from tests.support.daemon import Site
from tests.support.maildirs import deliver_by_link, make_maildir
from tests.support.values import ACCOUNT_ID, TOPIC, device_token
from xaps_watch import config, credentials, registry
from xaps_watch.apns import Apns, mailbox_hash
from xaps_watch.model import Mailbox
from xaps_watch.registry import Registry
from xaps_watch.service import MAX_IN_FLIGHT, Service
from xaps_watch.simulator import Answer, Received

DEVICES = 10_000
USERS = 250
FOLDERS = ("INBOX", "Lists/Dovecot")
RESTART = 1  # after which of them
LEAK = 500  # bytes a device in the rounds that follow; a push that waits has 700
LENGTH = 3600.0  # seconds
ROUNDS = 6  # of mail for everybody, spread over the outage
STEP = 30.0  # seconds by which the clock is put forward at once
ANSWER_DELAY = 0.01  # seconds, so that the local APNs sees how many are in flight at once


class Clock:
    """The system's clocks, put forward: an hour passes in a moment. Files get their times from the kernel, earlier."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class Recovery:
    """The local APNs after the outage: who was pushed to, and in which steps."""

    def __init__(self) -> None:
        self.pushes: Counter[str] = Counter()  # by token
        self.mailboxes: set[frozenset[str]] = set()  # the hashes that a push named
        self.answered = 0
        self.most_at_once = 0
        self.unpaced: list[str] = []

    def answer(self, received: Received) -> Answer:
        self.pushes[received.token] += 1
        assert isinstance(received.payload, dict)
        self.mailboxes.add(frozenset(received.payload["aps"]["m"]))
        at_once = self.pushes.total() - self.answered
        self.most_at_once = max(self.most_at_once, at_once)
        if at_once > min(MAX_IN_FLIGHT, 1 + self.answered):
            self.unpaced.append(f"{at_once} at once after {self.answered} answers")
        return Answer(delay=ANSWER_DELAY)

    def on_answered(self, *_: object) -> None:
        self.answered += 1


class Outage:
    """A service whose pushes nobody takes, and the clock beside it."""

    def __init__(self, site: Site, loaded: config.Config, maildirs: list[Path]) -> None:
        self.clock = Clock()
        self.service: Service
        self._site, self._loaded, self._maildirs = site, loaded, maildirs
        self._apns: Apns

    async def start(self) -> None:
        clock, apns = self.clock, self._loaded.apns
        self.service = Service(self._loaded, time=clock.time, monotonic=clock.monotonic, chance=lambda: 0.0)
        await self.service.start()
        keys = credentials.load(self._loaded, time.time, time.monotonic)
        self._apns = Apns(apns.push_url, keys, ca_file=apns.ca_file, time=time.time, transport=apns.transport)
        await self.service.use(self._apns, keys.topics)

    async def stop(self) -> None:
        await self.service.stop(0.0)
        await self._apns.aclose()

    async def mail_for_all(self) -> None:
        noticed = self.service.activity.deliveries
        for maildir in self._maildirs:
            deliver_by_link(maildir)
            await asyncio.sleep(0)  # the service takes its turns
        await self.until_all_wait(noticed)

    async def until_all_wait(self, noticed: int = 0) -> None:
        """All devices, for all their mailboxes; `noticed`: deliveries before."""
        while len(self.service.coalescer) < DEVICES or self.service.activity.deliveries < noticed + len(self._maildirs):
            await asyncio.sleep(0.02)

    async def pass_time(self, seconds: float) -> int:
        """What is due in that time is done. Returns how many probes failed."""
        gate = self.service.gate
        failures, end = gate.failures, self.clock.ahead + seconds
        while self.clock.ahead < end:
            self.clock.ahead += STEP
            await self.service.step()
            while gate.in_flight:
                await asyncio.sleep(0.005)
        return gate.failures - failures

    def noted(self) -> float:
        """caught_up_to as a restart after a crash would find it: unix time."""
        with Registry(self._site.registry_file) as book:
            return int(book.settings()["caught_up_to"]) / 1000


def register_all(site: Site, root: Path) -> list[Path]:
    """The Maildirs of all users, each registered by all devices of its user."""
    registry.create(site.registry_file)
    now = int(time.time() * 1000)
    maildirs: list[Path] = []
    with Registry(site.registry_file) as book:
        for user in range(USERS):
            paths = {name: make_maildir(root / f"user{user}" / f"mailbox{i}") for i, name in enumerate(FOLDERS)}
            mailboxes = [Mailbox(name, str(path)) for name, path in paths.items()]
            for number in range(user, DEVICES, USERS):
                book.register(f"user{user}", ACCOUNT_ID, device_token(number), mailboxes, topic=TOPIC, now=now)
            maildirs += paths.values()
    return maildirs


async def memory() -> tracemalloc.Snapshot:
    """What is in use by Python objects made since tracemalloc was started, when nothing is under way."""
    await asyncio.sleep(1.0)
    gc.collect()
    return tracemalloc.take_snapshot()


def size(snapshot: tracemalloc.Snapshot) -> int:
    return sum(trace.size for trace in snapshot.traces)


async def go_through(outage: Outage) -> tuple[tracemalloc.Snapshot, tracemalloc.Snapshot]:
    """The outage, with a restart. Returns the memory in use a round after that, and at the end."""
    began = time.time() - 1.0  # times of files are coarse
    snapshots = []
    await outage.start()
    for number in range(ROUNDS):
        await outage.mail_for_all()
        assert await outage.pass_time(LENGTH / ROUNDS) >= 2, "nobody tried whether the push service works again"
        assert outage.noted() <= began + 2.0, "a crash now would lose what waits"
        if number == RESTART:
            await outage.stop()
            tracemalloc.start()
            await outage.start()
            await outage.until_all_wait()  # all of them are found again
        if number > RESTART:
            snapshots.append(await memory())
    tracemalloc.stop()
    return snapshots[0], snapshots[-1]


@pytest.mark.timeout(300)
async def test_after_an_hours_outage_each_of_10_000_devices_gets_one_push(tmp_path: Path) -> None:
    site, recovery = Site(tmp_path), Recovery()
    maildirs = register_all(site, tmp_path)
    async with site.simulator(
        answer=recovery.answer, on_answered=recovery.on_answered, keep_received=False
    ) as simulator:
        await simulator.stop_accepting()
        outage = Outage(site, config.load(site.configure(simulator.url)), maildirs)
        middle, end = await go_through(outage)
        growth = size(end) - size(middle)
        where = "\n".join(map(str, end.compare_to(middle, "lineno")[:10]))
        assert growth < DEVICES * LEAK, f"{growth} bytes more:\n{where}"
        assert simulator.requests == 0
        last = outage.clock.time()
        await simulator.start()
        while len(outage.service.coalescer):
            await outage.pass_time(STEP)
        await outage.pass_time(STEP)  # a second push of anybody would come now
        await outage.stop()
    assert (len(recovery.pushes), set(recovery.pushes.values())) == (DEVICES, {1})
    assert recovery.mailboxes == {frozenset(map(mailbox_hash, FOLDERS))}
    assert recovery.unpaced == []
    assert recovery.most_at_once > 1, "they went one by one"
    assert outage.noted() >= last, "a restart would push all of it again"
