"""Apns: pushes over real TLS and HTTP/2, with the credentials that change meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.values import TOPIC, device
from xaps_watch.apns import Apns
from xaps_watch.authority import LocalAuthority
from xaps_watch.config import ApnsConfig, Config
from xaps_watch.credentials import load
from xaps_watch.model import Push
from xaps_watch.simulator import Answer, Received, Simulator

HALF_AN_HOUR = 1800.0  # when Apple allows another provider token


@pytest.mark.parametrize("transport", ["fast", "httpx"])
async def test_a_provider_token_that_expires_under_many_pushes_is_renewed_once(
    authority: LocalAuthority, transport: str
) -> None:
    key = authority.provider_key()
    passed, refused = 0.0, ""

    def answer(received: Received) -> Answer:
        if received.headers["authorization"] == refused:
            return Answer(403, "ExpiredProviderToken", delay=0.1)  # by then all are under way
        return Answer()

    config = Config(
        source=authority.directory,
        apns=ApnsConfig(token_key=key.file, key_id=key.key_id, team_id=key.team_id, topic=TOPIC),
    )
    credentials = load(config, lambda: time.time() - HALF_AN_HOUR + passed, lambda: time.monotonic() + passed)
    async with Simulator(authority, answer=answer) as simulator:
        apns = Apns(simulator.url, credentials, ca_file=authority.ca_file, time=time.time, transport=transport)
        try:
            pushes = [Push(device(number), ("INBOX",)) for number in range(1, 51)]
            assert (await apns.push(pushes[0])).status == 200
            refused, passed = simulator.received[0].headers["authorization"], HALF_AN_HOUR
            outcomes = await asyncio.gather(*map(apns.push, pushes))
        finally:
            await apns.aclose()
    assert {outcome.status for outcome in outcomes} == {200}
    first, *others = dict.fromkeys(received.headers["authorization"] for received in simulator.received)
    assert (first, len(others)) == (refused, 1)
    assert simulator.requests == 1 + 2 * 50
