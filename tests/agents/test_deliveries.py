"""Every delivery agent, into INBOX and into a folder: one push for each mail, and for the right mailbox."""

from __future__ import annotations

import pytest

from tests.agents.observe import MAILBOXES, Rig, give_up
from tests.support.agents.catalog import AGENTS, Agent
from tests.support.agents.packages import UnavailableError

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(120)]


@pytest.mark.parametrize("mailbox", MAILBOXES)
@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.user.removeprefix("user-"))
async def test_a_delivery_is_pushed_once_for_its_mailbox(rig: Rig, agent: Agent, mailbox: str) -> None:
    try:
        seen = await rig.observe(agent, mailbox)
    except UnavailableError as unavailable:
        give_up(agent.name, unavailable)
    assert seen.pushes == [{mailbox}]
