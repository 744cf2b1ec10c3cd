"""A phone registers, any agent delivers, the push goes out."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import System
from tests.support.agents.deliver import maildrop, postfix_local, postfix_virtual, procmail
from tests.support.agents.namespace import FOLDER as FOLDER_OF_AGENTS
from tests.support.agents.namespace import MailUser
from tests.support.agents.stage import Stage, message
from tests.support.dovecot import Dovecot
from tests.support.maildirs import deliver_by_copy, deliver_by_link, deliver_by_rename, read_all
from tests.support.phone import Registration
from tests.support.values import device_token
from xaps_watch.simulator import Received

MESSAGE = b"From: sender@example.org\nTo: alice@example.org\nSubject: test\n\nHello!\n"
FOLDER = "Entwürfe & Söhne"
NESTED = "Lists/Dovecot"
ALL = ("INBOX", FOLDER, NESTED, "Missing")


@pytest.fixture(autouse=True)
def _mailboxes(dovecot: Dovecot) -> None:
    """Maildir++ keeps the nested mailbox as .Lists.Dovecot, and non-ASCII names in modified UTF-7."""
    dovecot.create_mailboxes("alice", FOLDER, "Lists.Dovecot")
    dovecot.create_mailboxes("bob", "Notes")


def payload(push: Received) -> dict[str, Any]:
    assert isinstance(push.payload, dict)
    return push.payload


def refreshed(registration: Registration, pushes: list[Received], number: int = 1) -> list[set[str]]:
    """What the phone of that number looks into, push by push."""
    mine = [push for push in pushes if push.token == device_token(number)]
    return [registration.refreshes(payload(push), topic=push.headers["apns-topic"]) for push in mine]


def path_of(dovecot: Dovecot, mailbox: str) -> Path:
    inbox = dovecot.maildir("alice")
    return {"INBOX": inbox, FOLDER: inbox / ".Entw&APw-rfe &- S&APY-hne", "Lists.Dovecot": inbox / ".Lists.Dovecot"}[
        mailbox
    ]


def by_lda(dovecot: Dovecot, mailbox: str) -> None:
    dovecot.deliver("alice", MESSAGE, mailbox=mailbox)


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Where the delivery agents run."""
    with Stage(["alice"]) as ready:
        yield ready


Agent = Callable[[Stage, MailUser, bytes, str], None]

WAYS: dict[str, Callable[[Dovecot, str], object]] = {
    "rename": lambda dovecot, mailbox: deliver_by_rename(path_of(dovecot, mailbox)),
    "link": lambda dovecot, mailbox: deliver_by_link(path_of(dovecot, mailbox)),
    "dovecot-lda": by_lda,
}


async def test_the_plugin_echoes_what_exists_and_pushes_name_what_changed(system: System) -> None:
    registration = system.register("alice", 1, ("INBOX", FOLDER, "Lists.Dovecot", "Missing"))
    assert set(registration.mailboxes) == {"INBOX", FOLDER, "Lists.Dovecot"}
    await system.watched(system.dovecot.maildir("alice"))
    for name, deliver in WAYS.items():
        for mailbox in registration.mailboxes:
            deliver(system.dovecot, mailbox)
            assert refreshed(registration, await system.pushes()) == [{mailbox}], f"{name} to {mailbox}"


@pytest.mark.parametrize("agent", [postfix_virtual, postfix_local, maildrop, procmail], ids=lambda a: a.__name__)
async def test_another_delivery_agent(system: System, stage: Stage, agent: Agent) -> None:
    """Installed from Debian, run privately, delivering into the mailboxes that Dovecot serves."""
    system.dovecot.create_mailboxes("alice", FOLDER_OF_AGENTS)
    user = stage.users["alice"]
    shutil.rmtree(user.maildir)
    user.maildir.symlink_to(system.dovecot.maildir("alice"))
    registration = system.register("alice", 1, ("INBOX", FOLDER_OF_AGENTS))
    await system.watched(system.dovecot.maildir("alice"))
    for mailbox in registration.mailboxes:
        await asyncio.to_thread(agent, stage, user, message(mailbox), mailbox)
        assert refreshed(registration, await system.pushes()) == [{mailbox}]


async def test_a_slow_copy_is_pushed_once_it_is_complete(system: System) -> None:
    registration = system.register("alice", 1, ALL)
    await system.watched(system.dovecot.maildir("alice"))
    deliver_by_copy(system.dovecot.maildir("alice"))
    assert refreshed(registration, await system.pushes()) == [{"INBOX"}]


async def test_lmtp_is_pushed_and_reading_is_not(system: System) -> None:
    registration = system.register("alice", 1, ALL)
    await system.watched(system.dovecot.maildir("alice"))
    system.dovecot.deliver_by_lmtp("alice", MESSAGE)
    assert refreshed(registration, await system.pushes()) == [{"INBOX"}]
    with system.dovecot.phone("alice") as phone:
        assert phone.command(b"SELECT INBOX").status == "OK"
        assert phone.command(rb"STORE 1 +FLAGS (\Seen)").status == "OK"
        assert phone.command(b"EXPUNGE").status == "OK"
    read_all(system.dovecot.maildir("alice"))
    (system.dovecot.maildir("alice") / "new" / ".hidden").write_text("no mail")
    assert await system.pushes() == []


async def test_two_phones_with_one_account_id_both_hear_and_another_users_phone_does_not(system: System) -> None:
    first = system.register("alice", 1, ALL)
    second = system.register("alice", 2, ("INBOX",))
    assert first.account_id == second.account_id
    system.register("bob", 3, ("INBOX", "Notes"))
    await system.watched(system.dovecot.maildir("bob"))
    deliver_by_link(system.dovecot.maildir("alice"))
    pushes = await system.pushes()
    assert refreshed(first, pushes, 1) == [{"INBOX"}]
    assert refreshed(second, pushes, 2) == [{"INBOX"}]
    assert {push.token for push in pushes} == {device_token(1), device_token(2)}


async def test_a_burst_of_a_thousand_mails_makes_a_handful_of_pushes_and_covers_the_last(system: System) -> None:
    registration = system.register("alice", 1, ALL)
    await system.watched(system.dovecot.maildir("alice"))
    for _ in range(1000):
        last = deliver_by_link(system.dovecot.maildir("alice"))
    delivered = last.stat().st_ctime
    pushes = await system.pushes()
    assert 1 <= len(pushes) <= 5
    assert all(names == {"INBOX"} for names in refreshed(registration, pushes))
    assert system.daemon.log.count("status=200") == len(pushes)
    assert _received_at(pushes[-1]) > delivered


async def test_a_folder_that_the_phone_drops_is_no_longer_pushed(system: System) -> None:
    system.register("alice", 1, ("INBOX", FOLDER))
    await system.watched(system.dovecot.maildir("alice"))
    system.register("alice", 1, ("INBOX",))
    deliver_by_rename(path_of(system.dovecot, FOLDER))
    assert await system.pushes() == []


async def test_what_comes_while_the_daemon_is_down_is_pushed_at_its_start(system: System) -> None:
    registration = system.register("alice", 1, ALL)
    await system.watched(system.dovecot.maildir("alice"))
    assert await system.daemon.stop() == 0
    by_lda(system.dovecot, FOLDER)
    await system.daemon.start()
    assert refreshed(registration, await system.pushes()) == [{FOLDER}]


def _received_at(push: Received) -> float:
    """Unix time."""
    return time.time() - (time.perf_counter() - push.at)
