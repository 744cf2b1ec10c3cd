"""What the tests of the delivery agents share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.agents.observe import NOT_TRIED, Rig, give_up, rig
from tests.support.agents.packages import UnavailableError


@pytest_asyncio.fixture(scope="package", loop_scope="package", name="rig")
async def watched_users() -> AsyncIterator[Rig]:
    """The users of all agents, and the service that watches their mailboxes."""
    try:
        async with rig() as ready:
            yield ready
    except UnavailableError as unavailable:
        give_up("all agents", unavailable)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what could not be had."""
    if NOT_TRIED:
        terminalreporter.section("NOT TRIED", red=True)
        for line in NOT_TRIED:
            terminalreporter.line(line)
