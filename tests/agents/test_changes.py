"""Mail that is read, flagged, moved or deleted elsewhere: nothing, or with sync_changes one push that can wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.agents.observe import Rig, give_up, mailboxes_of
from tests.support.agents.clients import ACTIONS, CLIENTS, Client
from tests.support.agents.packages import UnavailableError
from tests.support.agents.stage import Stage, message
from tests.support.agents.watched import Watched

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

HOUR = 3600.0  # as change_delay: nothing but new mail takes a change along before the test is over


def users() -> list[str]:
    return [f"{client.user}-{action}" for client in CLIENTS for action in ACTIONS]


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[{"min_interval": 0.0}, {"min_interval": 0.0, "sync_changes": True, "change_delay": HOUR}],
    ids=["mail-only", "sync-changes"],
    name="changing",
)
async def users_with_a_mail(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """One user for each client and action."""
    try:
        with Stage(users()) as stage:
            mailboxes = {user.name: mailboxes_of(user) for user in stage.users.values()}
            async with Watched(stage.directory / "xaps-watch", mailboxes, request.param) as phones:
                yield Rig(stage, phones)
    except UnavailableError as unavailable:
        give_up("all clients", unavailable)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.user.removeprefix("client-"))
async def test_a_change_elsewhere(changing: Rig, client: Client, action: str, request: pytest.FixtureRequest) -> None:
    stage, phones = changing.stage, changing.phones
    user = stage.users[f"{client.user}-{action}"]
    stage.dovecot.deliver(user.name, message("INBOX"))
    before = len(await phones.pushed(user.name, 1))
    try:
        await asyncio.to_thread(client.prepare, stage, user)
        if action == "unflag":
            await asyncio.to_thread(client.change, stage, user, "flag")
        await changing.pushes_since(user, before)
        before = len(phones.pushes(user.name))
        await asyncio.to_thread(client.change, stage, user, action)
    except UnavailableError as unavailable:
        give_up(client.name, unavailable)
    await asyncio.sleep(0.3)  # longer than the service waits for the second half of a rename
    refreshed = [push.mailboxes for push in await changing.pushes_since(user, before)]
    # The new mail in the third mailbox takes the change along, in its own push.
    assert refreshed == ([{"INBOX"}] if "sync-changes" in request.node.name else [])
