"""The straight line with real directories, a real registry, real TLS and HTTP/2, and a local APNs that misbehaves."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Site
from tests.support.maildirs import deliver_by_link, deliver_by_rename, make_maildir
from tests.support.values import TOPIC, device_token
from xaps_watch import config, credentials, service
from xaps_watch.apns import Apns, mailbox_hash
from xaps_watch.model import Device
from xaps_watch.registry import OTHER_TOPIC, Registry
from xaps_watch.service import Service
from xaps_watch.simulator import Answer, Received, Simulator

INTERVAL = 0.3


class Line:
    """A running service, the local APNs that it pushes to, and what a daemon does beside it."""

    def __init__(self, site: Site, simulator: Simulator) -> None:
        self.site = site
        self.simulator = simulator
        self.answer: Callable[[Received], Answer] = lambda _: Answer()
        self.service: Service
        self.time: Callable[[], float] = time.time
        self._steps: asyncio.Task[None] | None = None
        self._apns: Apns | None = None

    async def start(self) -> None:
        loaded = config.load(self.site.config_file)
        self.service = Service(loaded, time=self.time, chance=lambda: 0.0)
        await self.service.start()
        await self.push_with(loaded)
        self._stopping = False
        self._steps = asyncio.create_task(self._step())

    async def push_with(self, loaded: config.Config) -> None:
        keys = credentials.load(loaded, self.time, time.monotonic)
        before = self._apns
        self._apns = Apns(
            loaded.apns.push_url, keys, ca_file=loaded.apns.ca_file, time=time.time, timeout=loaded.apns.timeout,
            transport=loaded.apns.transport,
        )
        await self.service.use(self._apns, keys.topics)
        if before is not None:
            await before.aclose()

    async def _step(self) -> None:
        while not self._stopping:
            await self.service.registrar.wait(0.1)
            await self.service.step()

    async def stop(self) -> None:
        if self._steps is None:
            return
        self._stopping = True
        await self._steps
        self._steps = None
        await self.service.stop(3.0)
        if self._apns is not None:
            await self._apns.aclose()
            self._apns = None

    async def pushes(self, count: int = 1, quiet: float = 2.5 * INTERVAL) -> list[Received]:
        """The next pushes; no more than `count` may follow within the quiet time."""
        await self.simulator.wait_for(self._seen + count, 30.0)
        await asyncio.sleep(quiet)
        new = self.simulator.received[self._seen :]
        assert len(new) == count, [push.body for push in new]
        self._seen += count
        return new

    _seen = 0
    _stopping = False

    def device(self, token: str) -> Device | None:
        with Registry(self.site.registry_file) as book:
            return next((device for device in book.devices() if device.token == token), None)

    async def watches(self, mailbox: Path) -> None:
        """Until mail in it is noticed, and what came before was looked for: else one mail may be pushed twice."""
        await self.becomes(lambda: str(mailbox) in self.service.watcher, "watched")
        await self.service.watcher.settled()

    async def becomes(self, condition: Callable[[], object], what: str, timeout: float = 30.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            await asyncio.sleep(0.02)


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    site = Site(tmp_path)
    async with site.simulator() as simulator:
        made = Line(site, simulator)
        simulator.answer = lambda received: made.answer(received)
        site.configure(simulator.url, sections={"push": {"min_interval": INTERVAL}, "apns": {"timeout": 4}})
        try:
            yield made
        finally:
            await made.stop()


def aps(push: Received) -> dict[str, Any]:
    assert isinstance(push.payload, dict)
    content: dict[str, Any] = push.payload["aps"]
    return content


A, B, C = device_token(1), device_token(2), device_token(3)


# --- mailbox → devices → pushes --------------------------------------------------------------------------------------


async def test_inbox_and_folder_are_pushed_each_in_its_way(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox", "Notes": tmp_path / "notes"})
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    assert [aps(push).get("m") for push in await line.pushes()] == [None]
    deliver_by_rename(tmp_path / "notes")
    assert [aps(push)["m"] for push in await line.pushes()] == [[mailbox_hash("Notes")]]


async def test_a_registration_is_noticed_and_its_removal_too(line: Line, tmp_path: Path) -> None:
    await line.start()
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.watches(tmp_path / "inbox")
    deliver_by_link(tmp_path / "inbox")
    await line.pushes()
    with Registry(line.site.registry_file) as book:
        book.forget([device.id for device in book.devices()])
    await line.becomes(lambda: len(line.service.watcher) == 0, "no longer watched")
    deliver_by_link(tmp_path / "inbox")
    await line.pushes(0)


async def test_a_burst_is_pushed_at_once_and_once_more_at_its_end(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.start()
    began = time.perf_counter()
    deliver_by_link(tmp_path / "inbox")
    await line.simulator.wait_for(1)
    for _ in range(200):
        deliver_by_link(tmp_path / "inbox")
    _, second = await line.pushes(2)
    assert second.at - began >= INTERVAL


async def test_devices_of_one_mailbox_all_hear(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    line.site.register("alice", B, {"INBOX": tmp_path / "inbox"})
    line.site.register("bob", C, {"INBOX": tmp_path / "other"})
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    assert {push.token for push in await line.pushes(2)} == {A, B}


# --- outcomes → registry ---------------------------------------------------------------------------------------------


async def test_an_accepted_push_is_noted(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.pushes()
    await line.becomes(lambda: (found := line.device(A)) and found.outcome == "200" and found.accepted_at, "noted")


async def test_unregistered_before_the_last_registration_keeps_it(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    line.answer = lambda _: Answer(410, "Unregistered", timestamp=1_600_000_000_000)
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.pushes()
    await line.becomes(lambda: (found := line.device(A)) and found.outcome == "410 Unregistered", "noted")


@pytest.mark.parametrize("reason", ["Unregistered", "ExpiredToken"])
async def test_a_token_that_ended_since_removes_its_registration(line: Line, tmp_path: Path, reason: str) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    line.site.register("alice", B, {"INBOX": tmp_path / "inbox"})
    later = int(time.time() * 1000) + 1000
    line.answer = lambda push: Answer(410, reason, timestamp=later) if push.token == A else Answer()
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.pushes(2)
    await line.becomes(lambda: line.device(A) is None, "removed")
    assert line.device(B) is not None


async def test_bad_device_token_suspends_until_the_phone_registers_again(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    line.answer = lambda _: Answer(400, "BadDeviceToken")
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.pushes()
    await line.becomes(lambda: (found := line.device(A)) and found.suspended == "400 BadDeviceToken", "suspended")
    deliver_by_link(tmp_path / "inbox")
    await line.pushes(0)
    line.answer = lambda _: Answer()
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    deliver_by_link(tmp_path / "inbox")
    await line.pushes()


async def test_the_wrong_environment_suspends_nobody_and_holds_the_pushes(line: Line, tmp_path: Path) -> None:
    tokens = [device_token(number) for number in range(1, 9)]
    for token in tokens:
        line.site.register("alice", token, {"INBOX": tmp_path / "inbox"})
    line.answer = lambda _: Answer(400, "BadDeviceToken")
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.becomes(lambda: line.service.gate.why is not None, "held")
    await asyncio.sleep(0.5)
    assert [device.suspended for token in tokens if (device := line.device(token))] == [None] * 8
    line.answer = lambda _: Answer()
    await line.push_with(config.load(line.site.config_file))  # the admin has mended it
    waiting = {push.token for push in line.simulator.received}
    assert waiting == set(tokens)
    await line.becomes(lambda: len(line.service.coalescer) == 0, "all pushed")


async def test_device_token_not_for_topic_suspends(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    line.answer = lambda _: Answer(400, "DeviceTokenNotForTopic")
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.becomes(lambda: (found := line.device(A)) and found.suspended, "suspended")


async def test_registrations_for_another_topic_wait_for_their_renewal(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"}, topic="com.apple.mail.old")
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.pushes(0)
    assert (found := line.device(A)) is not None
    assert found.suspended == OTHER_TOPIC


# --- what may be tried again -----------------------------------------------------------------------------------------

PASSING: dict[str, Answer] = {
    "InternalServerError": Answer(500, "InternalServerError"),
    "ServiceUnavailable": Answer(503, "ServiceUnavailable"),
    "Shutdown": Answer(503, "Shutdown", retry_after=1),
    "reset": Answer(then="reset"),
    "refused stream": Answer(then="refuse"),
    "cut": Answer(then="cut"),
    "GOAWAY without it": Answer(then="goaway-before"),
    "silence": Answer(then="silence"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
async def test_a_push_that_failed_goes_again(line: Line, tmp_path: Path, fault: Answer) -> None:
    """Whatever comes between, the phone gets its push."""
    faults = [fault]
    accepted: list[str] = []

    def answer(received: Received) -> Answer:
        if faults:
            return faults.pop()
        accepted.append(received.token)
        return Answer()

    line.answer = answer
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.becomes(lambda: accepted == [A], "pushed")
    assert len(line.service.coalescer) <= 1


async def test_too_many_requests_makes_that_device_wait_and_no_other(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "REFUSED_BACKOFF", 3.0)
    refused = [A]
    line.answer = lambda push: Answer(429) if push.token in refused else Answer()
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    line.site.register("alice", B, {"INBOX": tmp_path / "inbox"})
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.pushes(2, quiet=0.3)
    assert line.service.gate.why is None
    refused.clear()
    assert [push.token for push in await line.pushes(1)] == [A]


HELD = {
    "TopicDisallowed": Answer(400, "TopicDisallowed"),
    "BadTopic": Answer(400, "BadTopic"),
    "MissingTopic": Answer(400, "MissingTopic"),
    "BadCertificate": Answer(403, "BadCertificate"),
    "InvalidProviderToken": Answer(403, "InvalidProviderToken"),
    "Forbidden": Answer(403, "Forbidden"),
}


@pytest.mark.parametrize("answer", HELD.values(), ids=HELD)
async def test_what_only_the_admin_can_mend_holds_all_pushes_until_then(
    line: Line, tmp_path: Path, answer: Answer
) -> None:
    line.answer = lambda _: answer
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.pushes(1)
    deliver_by_link(tmp_path / "inbox")
    await line.pushes(0)
    assert line.service.gate.why == f"{answer.status} {answer.reason}"
    assert line.device(A) is not None
    line.answer = lambda _: Answer()
    await line.push_with(config.load(line.site.config_file))
    await line.pushes(1)


async def test_a_late_answer_about_earlier_credentials_holds_nothing_up(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    line.answer = lambda _: Answer(403, "BadCertificate", delay=0.5)
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.simulator.wait_for(1)
    line.answer = lambda _: Answer()
    await line.push_with(config.load(line.site.config_file))
    await line.pushes(2)


async def test_an_outage_of_the_service_delays_and_loses_nothing(line: Line, tmp_path: Path) -> None:
    tokens = [device_token(number) for number in range(1, 51)]
    for token in tokens:
        line.site.register("alice", token, {"INBOX": tmp_path / "inbox"})
    await line.start()
    await line.simulator.stop_accepting()
    line.simulator.cut_all()
    for _ in range(20):
        deliver_by_link(tmp_path / "inbox")
        await asyncio.sleep(0.02)
    assert len(line.service.coalescer) == 50
    await line.simulator.start()
    await line.becomes(lambda: {push.token for push in line.simulator.received} == set(tokens), "all pushed")


# --- never miss a mail -----------------------------------------------------------------------------------------------


async def test_what_came_while_it_was_down_is_pushed_at_the_start_and_only_once(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.pushes()
    await line.stop()
    deliver_by_link(tmp_path / "inbox")
    await line.start()
    await line.pushes()
    await asyncio.sleep(3.0)  # the margin for coarse clocks
    await line.stop()
    await line.start()
    await line.pushes(0)


async def test_caught_up_to_is_held_back_by_what_is_pending(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    line.answer = lambda _: Answer(then="silence")
    await line.start()
    delivered = time.time()
    deliver_by_link(tmp_path / "inbox")
    await asyncio.sleep(1.5)
    assert line.service.caught_up_to() <= delivered
    line.answer = lambda _: Answer()
    await line.becomes(lambda: line.service.caught_up_to() > delivered, "caught up")


async def test_a_clock_that_was_set_back_costs_a_push_too_many_at_most(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.start()
    await line.stop()
    with closing(sqlite3.connect(line.site.registry_file)) as book:
        book.execute("UPDATE setting SET value = value + 3600000 WHERE name = 'caught_up_to'")
        book.commit()
    deliver_by_link(tmp_path / "inbox")
    await line.start()
    await line.pushes()


async def test_a_registry_that_is_locked_delays_what_is_to_be_written_and_no_push(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.start()
    with closing(sqlite3.connect(line.site.registry_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        deliver_by_link(tmp_path / "inbox")
        await line.pushes()
        other.execute("ROLLBACK")
    await line.becomes(lambda: (found := line.device(A)) and found.outcome == "200", "noted")


async def test_a_damaged_registry_is_moved_aside_and_phones_can_register_again(line: Line, tmp_path: Path) -> None:
    for number in range(300):
        line.site.register(f"user{number}", device_token(number), {"INBOX": tmp_path / "inbox"})
    await line.start()
    for suffix in ("-wal", "-shm"):
        Path(f"{line.site.registry_file}{suffix}").unlink()
    line.site.registry_file.write_bytes(b"\xff" * 100_000)
    directory = line.site.registry_file.parent
    await line.becomes(lambda: any(".damaged-" in file.name for file in directory.iterdir()), "moved aside")
    await line.becomes(lambda: line.service.registrar.trouble is None, "usable again")
    line.site.register("alice", A, {"INBOX": make_maildir(tmp_path / "again")})
    await line.watches(tmp_path / "again")
    deliver_by_link(tmp_path / "again")
    await line.pushes()
    with Registry(line.site.registry_file) as book:
        assert book.settings()["topic"] == TOPIC


async def test_without_credentials_pushes_wait_and_phones_are_told_no_topic(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.start()
    await line.service.use(None, ())
    await line.becomes(lambda: _topic(line) == "", "no topic told")
    deliver_by_link(tmp_path / "inbox")
    await line.pushes(0)
    await line.push_with(config.load(line.site.config_file))
    await line.pushes()
    await line.becomes(lambda: _topic(line) == TOPIC, "topic told")


def _topic(line: Line) -> str | None:
    with Registry(line.site.registry_file) as book:
        return book.settings().get("topic")


async def test_a_stop_sends_what_waits_for_its_interval(line: Line, tmp_path: Path) -> None:
    line.site.configure(line.simulator.url, sections={"push": {"min_interval": 60}})
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"})
    await line.start()
    deliver_by_link(tmp_path / "inbox")
    await line.pushes()
    deliver_by_link(tmp_path / "inbox")
    await line.becomes(lambda: len(line.service.coalescer) == 1, "pending")
    await line.stop()
    await line.pushes()


async def test_old_registrations_expire(line: Line, tmp_path: Path) -> None:
    line.site.register("alice", A, {"INBOX": tmp_path / "inbox"}, registered_at=time.time() - 31 * 86400)
    line.site.register("alice", B, {"INBOX": tmp_path / "inbox"}, registered_at=time.time() - 29 * 86400)
    await line.start()
    await line.becomes(lambda: line.device(A) is None, "expired")
    assert line.device(B) is not None
