"""The whole system: a real Dovecot with the plugin, the real daemon, and a strict local APNs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.agents.stage import FIRST_UID
from tests.support.daemon import DaemonProcess, Site
from tests.support.dovecot import Dovecot, User, build_plugin
from tests.support.phone import Registration
from tests.support.values import TOPIC, device_token
from xaps_watch.simulator import Received, Simulator
from xaps_watch.status import ask

QUIET = 1.0  # seconds without a push after which none is expected any more: two intervals between pushes


@dataclass(slots=True)
class System:
    """What a test needs to be the phone, the delivery agent, and Apple."""

    dovecot: Dovecot
    daemon: DaemonProcess
    simulator: Simulator
    site: Site

    def register(self, username: str, number: int, mailboxes: tuple[str, ...]) -> Registration:
        """Log in as the phone of that number does, and register."""
        with self.dovecot.phone(username, device_token=device_token(number)) as phone:
            assert phone.is_offered_push
            registration = phone.register(mailboxes)
            assert phone.is_alive()
        return registration

    async def watched(self, path: Path) -> None:
        """Wait until the daemon has noticed the registration of a mailbox."""
        deadline = time.monotonic() + 10
        while f"path={path}" not in self.daemon.log and time.monotonic() < deadline:
            status = await asyncio.to_thread(ask, self.site.status_socket)
            if status["watcher"]["waiting"] == 0 and status["watcher"]["mailboxes"] > 0:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)

    async def pushes(self) -> list[Received]:
        """What arrived since the last call, once nothing more comes. Apple would have found no fault with any."""
        count = -1
        while count != self.simulator.requests:
            count = self.simulator.requests
            await asyncio.sleep(QUIET)
        received = list(self.simulator.received)
        self.simulator.received.clear()
        for push in received:
            assert push.faults == ()
            assert push.headers["apns-topic"] == TOPIC
            assert push.headers["apns-push-type"] == "background"
            assert "apns-priority" not in push.headers
            assert abs(int(push.headers["apns-expiration"]) - time.time() - 86400) < 60
        return received


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the plugin, built for the Dovecot of this machine."""
    return build_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def dovecot(plugin: Path) -> Iterator[Dovecot]:
    with Dovecot(plugin, users=(User("alice", FIRST_UID), User("bob", FIRST_UID + 1))) as running:
        yield running


@pytest.fixture
async def system(dovecot: Dovecot, tmp_path: Path) -> AsyncIterator[System]:
    site = Site(tmp_path)
    assert dovecot.registry is not None
    site.registry_file = dovecot.registry
    async with site.simulator() as simulator, DaemonProcess(site.configure(simulator.url)) as daemon:
        yield System(dovecot, daemon, simulator, site)
