"""Mail that is read, flagged, moved or deleted elsewhere: nothing, or with sync_changes one push that can wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.agents.observe import Rig, changing_rig, give_up, rig_for
from tests.support.agents.clients import ACTIONS, CLIENTS, ELSEWHERE, Client
from tests.support.agents.packages import UnavailableError
from tests.support.agents.stage import message
from tests.support.agents.watched import PhonePush
from tests.support.maildirs import deliver_by_rename, read_all

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

DELAY = 2.0  # as change_delay: seconds


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[False, True], ids=["mail-only", "sync-changes"])
async def changing(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """One user for each client and action."""
    try:
        async with changing_rig(sync_changes=request.param) as ready:
            yield ready
    except UnavailableError as unavailable:
        give_up("all clients", unavailable)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.id)
async def test_a_change_elsewhere(changing: Rig, client: Client, action: str, request: pytest.FixtureRequest) -> None:
    syncs = "sync-changes" in request.node.name
    try:
        refreshed = await changing.observe_change(client, action, waits=syncs)
    except UnavailableError as unavailable:
        give_up(client.name, unavailable)
    # The new mail in the third mailbox takes the change along at once, in its own push, and leaves nothing for later.
    assert refreshed == ([{"INBOX"}] if syncs else [])
    await changing.phones.waiting(0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def delayed() -> AsyncIterator[Rig]:
    """Users whose phones hear of changes soon."""
    push = {"min_interval": 0.0, "sync_changes": True, "change_delay": DELAY}
    try:
        async with rig_for(["merged", "phone"], push) as ready:
            yield ready
    except UnavailableError as unavailable:
        give_up("changes", unavailable)


async def test_many_changes_make_one_push_when_the_delay_is_over(delayed: Rig) -> None:
    user = delayed.stage.users["merged"]
    inbox = user.directory("INBOX")
    for _ in range(20):
        deliver_by_rename(inbox)
    before = len(await all_pushes(delayed, user.name))
    changed = time.perf_counter()
    read_all(inbox)
    pushes = await delayed.phones.pushed(user.name, before + 1)
    assert pushes[before].at >= changed + DELAY
    assert [push.mailboxes for push in pushes[before:]] == [{"INBOX"}]
    assert await delayed.pushes_since(user, before + 1) == []


async def test_what_the_phone_itself_does_wakes_it_at_most_once(delayed: Rig) -> None:
    user = delayed.stage.users["phone"]
    for _ in range(3):
        delayed.stage.dovecot.deliver(user.name, message("INBOX"))
    before = len(await all_pushes(delayed, user.name))
    began = time.perf_counter()
    await asyncio.to_thread(tidy_up, delayed, user.name)
    intervals = int((time.perf_counter() - began) / DELAY)  # none, unless the machine is very busy
    assert len(await all_pushes(delayed, user.name)) - before <= 1 + intervals


def tidy_up(rig: Rig, name: str) -> None:
    """In one session: reads, flags and unflags, moves, deletes."""
    with rig.stage.imap(rig.stage.users[name]) as session:
        session.create(ELSEWHERE)
        session.select("INBOX")
        for item, flags in (("+FLAGS", r"(\Seen)"), ("+FLAGS", r"(\Flagged)"), ("-FLAGS", r"(\Flagged)")):
            assert session.store("1:3", item, flags)[0] == "OK"
        assert session.uid("MOVE", "1", ELSEWHERE)[0] == "OK"
        assert session.store("1", "+FLAGS", r"(\Deleted)")[0] == "OK"
        assert session.expunge()[0] == "OK"


async def all_pushes(rig: Rig, name: str) -> list[PhonePush]:
    """The pushes to the user's phone, once none has come for longer than a change waits."""
    while True:
        pushes = rig.phones.pushes(name)
        await asyncio.sleep(DELAY + 0.5)
        if pushes == rig.phones.pushes(name):
            return pushes
