"""The service as it runs on a server, a phone for each mail user, and the pushes that these phones get."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.daemon import DaemonProcess, Site
from tests.support.dovecot import Dovecot
from tests.support.phone import mailbox_hash
from xaps_watch.registry import Registry
from xaps_watch.simulator import Received
from xaps_watch.status import ask


@dataclass(frozen=True, slots=True)
class PhonePush:
    """A push as the phone understands it."""

    at: float  # time.perf_counter() of the request at the local APNs
    mailboxes: frozenset[str]  # that the phone refreshes


class Watched:
    """``async with Watched(directory, {user: {mailbox: path}}) as phones``: from then on the service watches these."""

    def __init__(
        self, directory: Path, mailboxes: Mapping[str, Mapping[str, Path]], push: Mapping[str, object] | None = None
    ) -> None:
        """`push`: keys of the section [push]; without any each mail is pushed at once, however soon after the last."""
        self.site = Site(directory)
        self.service = DaemonProcess(self.site.config_file)
        self._push = push or {"min_interval": 0.0}
        self._pushes: dict[str, list[PhonePush]] = {}
        self._users: dict[str, str] = {}
        self._names: dict[str, dict[str, str]] = {}
        self._simulator = self.site.simulator(on_received=self._on_received)
        self._running = AsyncExitStack()
        for user, boxes in mailboxes.items():
            self.register(user, boxes)

    def register(self, user: str, mailboxes: Mapping[str, Path]) -> None:
        """As the plugin does it when the user's phone asks."""
        self.site.register(user, self._phone(user, mailboxes), mailboxes)

    def register_at(self, dovecot: Dovecot, user: str, mailboxes: Iterable[str]) -> tuple[str, ...]:
        """By a session with a Dovecot whose plugin writes to the site's registry; the mailboxes that it echoed."""
        with dovecot.phone(user, device_token=self._phone(user, ())) as phone:
            echoed = phone.register(mailboxes).mailboxes
        self._phone(user, echoed)
        return echoed

    async def waiting(self, count: int, timeout: float = 20) -> None:
        """Wait until pushes to `count` phones are due later. Raises TimeoutError."""
        await self._until(lambda status: status["pending"], count, timeout)

    def _phone(self, user: str, mailboxes: Iterable[str]) -> str:
        """The token of the user's phone, which from now on knows these mailboxes."""
        token = hashlib.sha256(user.encode()).hexdigest()
        self._users[token] = user
        self._names[user] = {mailbox_hash(name): name for name in mailboxes}
        self._pushes.setdefault(user, [])
        return token

    async def settled(self, timeout: float = 20) -> None:
        """Wait until all registered mailboxes that there are on disk are watched. Raises TimeoutError."""
        with Registry(self.site.registry_file) as book:
            paths = [Path(path) for path in book.paths()]
        wanted = {"mailboxes": len(paths), "missing": sum(not (path / "new").is_dir() for path in paths), "waiting": 0}
        await self._until(lambda status: {key: status["watcher"][key] for key in wanted}, wanted, timeout)

    async def _until(self, look: Callable[[dict[str, Any]], object], wanted: object, timeout: float) -> None:
        """Wait until this is what the service's status shows. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while (seen := look(await asyncio.to_thread(ask, self.site.status_socket))) != wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{wanted} expected in the status, {seen} seen")
            await asyncio.sleep(0.02)

    async def __aenter__(self) -> Watched:
        await self._running.enter_async_context(self._simulator)
        self.site.configure(self._simulator.url, sections={"push": self._push})
        await self._running.enter_async_context(self.service)
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._running.__aexit__(*exception)
        refused = [received.faults for received in self._simulator.received if received.faults]
        assert not refused, f"Apple would have refused {len(refused)} requests: {refused[0]}"

    def pushes(self, user: str) -> list[PhonePush]:
        """All pushes so far to the user's phone."""
        return list(self._pushes[user])

    async def pushed(self, user: str, count: int, timeout: float = 20) -> list[PhonePush]:
        """All pushes to the user's phone, once there are `count`. Raises TimeoutError."""
        pushes = self._pushes[user]
        await self._simulator.wait_until(lambda: len(pushes) >= count, timeout, f"{count} pushes to {user}")
        return list(pushes)

    def _on_received(self, received: Received) -> None:
        user = self._users[received.token]
        self._pushes[user].append(PhonePush(received.at, self._refreshed(user, received.payload)))

    def _refreshed(self, user: str, payload: Any) -> frozenset[str]:
        """iOS: without "m" the INBOX; with it those that were echoed, by the MD5 of their name."""
        hashes: Iterable[str] | None = payload["aps"].get("m")
        return frozenset(("INBOX",)) if hashes is None else frozenset(self._names[user][found] for found in hashes)
