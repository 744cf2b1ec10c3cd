"""One delivery by one agent, seen from all sides: what inotify showed, and which pushes the phone got for it."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.agents.catalog import AGENTS, Agent
from tests.support.agents.clients import ACTIONS, CLIENTS, Client
from tests.support.agents.namespace import FOLDER, MailUser
from tests.support.agents.packages import UnavailableError
from tests.support.agents.recorder import Recorder, describe
from tests.support.agents.stage import Stage, message
from tests.support.agents.watched import PhonePush, Watched
from tests.support.maildirs import deliver_by_rename

SENTINEL = "Sentinel"  # a third mailbox of each user: its push tells that all that came before has been decided on
MAILBOXES = ("INBOX", FOLDER)


NOT_TRIED: dict[str, None] = {}  # in order: what the run names at its end
HAS_ALL = "12"  # the Debian release whose archive has every package


@dataclass(frozen=True, slots=True)
class Observation:
    """What one delivery led to. Latencies in seconds."""

    pushes: list[frozenset[str]]  # the mailboxes that each of them refreshed
    events: str
    from_arrival: float  # of the file under its final name, to the request at the local APNs
    from_return: float  # of the agent; less than nothing where the push overtook it


def give_up(what: str, why: UnavailableError) -> NoReturn:
    """This can't be tried here, which the end of the run will say. Where all can be had it is a failure."""
    NOT_TRIED[f"{what}: {why}"] = None
    if os.geteuid() == 0 and platform.freedesktop_os_release().get("VERSION_ID") == HAS_ALL:
        pytest.fail(f"{what}: {why}")
    pytest.skip(f"{what}: {why}")


class Rig:
    """A stage, and the service that watches its users' mailboxes."""

    def __init__(self, stage: Stage, phones: Watched) -> None:
        self.stage = stage
        self.phones = phones

    async def observe(self, agent: Agent, mailbox: str) -> Observation:
        """Delivers one mail. Raises TimeoutError when none appears, or is pushed."""
        user = self.stage.users[agent.user]
        before = len(self.phones.pushes(user.name))
        with Recorder(user.directory(name) / part for name in MAILBOXES for part in ("new", "cur")) as recorder:
            await asyncio.to_thread(agent.deliver, self.stage, user, message(mailbox), mailbox)
            returned = time.perf_counter()
            events = await asyncio.to_thread(recorder.delivery)
        arrived = next(event.at for event in events if event.complete)
        await self.phones.pushed(user.name, before + 1)
        pushes = await self.pushes_since(user, before)
        at = pushes[0].at
        return Observation([push.mailboxes for push in pushes], describe(events), at - arrived, at - returned)

    async def observe_change(self, client: Client, action: str, *, waits: bool) -> list[frozenset[str]]:
        """One change to the user's one mail: the mailboxes of each push, up to that for a mail in the third mailbox,
        which takes along what waits, and something does if it `waits`. Raises UnavailableError, TimeoutError."""
        user = self.stage.users[client.user_for(action)]
        self.stage.dovecot.deliver(user.name, message("INBOX"))
        before = len(await self.phones.pushed(user.name, 1))
        await asyncio.to_thread(client.prepare, self.stage, user)
        if action == "unflag":
            await asyncio.to_thread(client.change, self.stage, user, "flag")
        await self.pushes_since(user, before)
        before = len(self.phones.pushes(user.name))
        await asyncio.to_thread(client.change, self.stage, user, action)
        await asyncio.sleep(0.3)  # longer than the service waits for the second half of a rename
        await self.phones.waiting(int(waits))
        return [push.mailboxes for push in await self.pushes_since(user, before)]

    async def pushes_since(self, user: MailUser, before: int) -> list[PhonePush]:
        """All pushes after the first `before`, up to one for a mail in the third mailbox: it is delivered now, and
        doesn't appear in the answer."""
        deliver_by_rename(mailboxes_of(user)[SENTINEL])
        count = before
        while True:
            count += 1
            pushes = (await self.phones.pushed(user.name, count))[before:]
            if any(SENTINEL in push.mailboxes for push in pushes):
                return [replace(push, mailboxes=rest) for push in pushes if (rest := push.mailboxes - {SENTINEL})]


def mailboxes_of(user: MailUser) -> dict[str, Path]:
    """What the user's phone registers. The third lies where no agent comes by."""
    return {**{name: user.directory(name) for name in MAILBOXES}, SENTINEL: user.home / SENTINEL}


@asynccontextmanager
async def rig_for(users: Iterable[str], push: Mapping[str, object] | None = None) -> AsyncIterator[Rig]:
    """Users with these names, watched by the service; `push` as Watched takes it."""
    with Stage(users) as stage:
        mailboxes = {user.name: mailboxes_of(user) for user in stage.users.values()}
        async with Watched(stage.directory / "xaps-watch", mailboxes, push) as phones:
            yield Rig(stage, phones)


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    """The users of all agents, watched by the service."""
    async with rig_for([agent.user for agent in AGENTS]) as ready:
        await ready.pushes_since(ready.stage.users[AGENTS[0].user], 0)  # from here on there is a connection
        yield ready


@asynccontextmanager
async def changing_rig(*, sync_changes: bool) -> AsyncIterator[Rig]:
    """A user for each client and action; changes are pushed only along with new mail."""
    push = {"min_interval": 0.0, "sync_changes": sync_changes, "change_delay": 3600.0}
    async with rig_for([client.user_for(action) for client in CLIENTS for action in ACTIONS], push) as ready:
        yield ready
