"""The world in which the daemon has to prove itself: mailboxes, phones, a local APNs, and all that can go wrong.

It needs namespaces of its own for users and mounts, namespaces(7): the kernel's limits, the names of hosts and what is
mounted are among the things that go wrong. What is delivered stands in the ledger.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.ledger import Ledger
from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import deliver_by_copy, deliver_by_link, deliver_by_rename
from tests.support.values import TOPIC, device_token
from xaps_watch.simulator import Answer, Received, Simulator

USERS = 6
FOLDERS = ("INBOX", "Lists/Dovecot", "Entwürfe & more")
PATIENCE = 90.0  # seconds for the daemon to come even once everything works again
DELIVERIES_AT_ONCE = 40
REGISTRY_DISK = "2m"
HOSTS = Path("/etc/hosts")
NAME = "127.0.0.1 localhost\n"
ALL_WATCHES = Path("/proc/sys/user/max_inotify_watches")


@dataclass(slots=True)
class Mailbox:
    """A mailbox of one user, and the devices that registered it."""

    name: str
    path: Path
    tokens: list[str]


class World:
    """Everything around the daemon."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.site = Site(directory)
        self.ledger = Ledger()
        self.mailboxes: list[Mailbox] = []
        self.answer_with: Callable[[Received], Answer] = lambda _: Answer()
        self.simulator: Simulator = self.site.simulator(answer=self._answer, keep_received=False)
        self.daemon: DaemonProcess
        self.mount_point = directory / "mounted"
        self.elsewhere = directory / "elsewhere"  # what is mounted there
        self.mailboxes_of: dict[str, dict[str, Path]] = {}  # by token
        self._user_of: dict[str, str] = {}

    async def __aenter__(self) -> World:
        self._mount()
        await self.simulator.start()
        sections: dict[str, dict[str, object]] = {
            "push": {"min_interval": 0.2}, "apns": {"timeout": 5.0}, "watch": {"poll_interval": 1.0}
        }  # fmt: skip
        self.site.configure(f"https://localhost:{self.simulator.port}", sections=sections)
        for number in range(USERS):
            self._add_user(number)
        self.daemon = DaemonProcess(self.site.config_file)
        await self.daemon.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.daemon.is_running:
            self.daemon.signal(signal.SIGCONT)
            await self.daemon.stop()
        await self.simulator.stop()
        for mounted in (self.mount_point, self.site.registry_file.parent):
            unmount(mounted)

    def _mount(self) -> None:
        """A small disk for the registry, names that can go, and a filesystem that can."""
        registry = self.site.registry_file.parent
        for directory in (registry, self.mount_point, self.elsewhere):
            directory.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={REGISTRY_DISK}", "tmpfs", registry)
        registry.chmod(0o770)
        bind(self.elsewhere, self.mount_point)
        for file, content in ((HOSTS, NAME), (Path("/etc/nsswitch.conf"), "hosts: files\n")):
            own = self.directory / file.name
            own.write_text(content)
            bind(own, file)

    def _add_user(self, number: int) -> None:
        """Two phones each; every third user's second phone registered INBOX alone."""
        root = self.directory / f"user{number}" if number else self.mount_point
        paths = {name: root / f"mailbox{i}" for i, name in enumerate(FOLDERS)}
        tokens = [device_token(2 * number + i + 1) for i in range(2)]
        for i, token in enumerate(tokens):
            names = FOLDERS[:1] if i and number % 3 == 0 else FOLDERS
            self._user_of[token] = f"user{number}"
            self.mailboxes_of[token] = {name: paths[name] for name in names}
            self.register(token)
        for name, path in paths.items():
            owners = [token for token in tokens if name in self.mailboxes_of[token]]
            self.mailboxes.append(Mailbox(name, path, owners))

    def register(self, token: str) -> None:
        self.ledger.registered(token, self.mailboxes_of[token])
        self.site.register(self._user_of[token], token, self.mailboxes_of[token])

    def _answer(self, received: Received) -> Answer:
        answer = self.answer_with(received)
        if received.faults:
            raise AssertionError(f"Apple would refuse this request: {received.faults}")
        self.ledger.outcomes[f"{answer.status} {answer.reason or ''} {answer.then}"] += 1
        if answer.status == 200 and answer.then in ("answer", "goaway"):
            self.ledger.accepted(received)
        return answer

    # --- what always happens -----------------------------------------------------------------------------------------

    def some_mailbox(self) -> Mailbox:
        return self.random.choice(self.mailboxes)

    def deliver(self, mailbox: Mailbox, count: int = 1, *, into: Path | None = None) -> None:
        """Mail for a mailbox, in one of the ways of the delivery agents; `into`: the path that leads to it now."""
        for _ in range(count):
            self.ledger.delivered(mailbox.tokens, mailbox.name)
            self.random.choice(WAYS)(into or mailbox.path)

    def renew_certificate(self) -> None:
        """Another one, in the same files."""
        self.site.authority.push_certificate(TOPIC, topics=(TOPIC,))

    async def deliver_some(self, seconds: float = 0.0) -> None:
        """Mail for several mailboxes, spread over a time."""
        end = time.monotonic() + seconds
        while True:
            for _ in range(self.random.randint(1, 5)):
                self.deliver(self.some_mailbox(), self.random.randint(1, DELIVERIES_AT_ONCE))
            await asyncio.sleep(self.random.uniform(0.01, 0.1))
            if time.monotonic() >= end:
                return

    async def settle(self) -> None:
        """Wait until everybody was told of everything. Raises AssertionError naming what was missed."""
        end = time.monotonic() + PATIENCE
        while self.ledger.owed():
            self.daemon.see_that_it_runs()
            if time.monotonic() > end:
                raise AssertionError("missed:\n" + "\n".join(self.ledger.debts()))
            await asyncio.sleep(0.05)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def bind(source: Path, target: Path) -> None:
    run("mount", "--bind", source, target)


def unmount(target: Path) -> None:
    run("umount", "--lazy", target)


def _copy(mailbox: Path) -> Path:
    return deliver_by_copy(mailbox, pause=0.0)


def _odd(mailbox: Path) -> Path:
    """A name that is not UTF-8, as some agents make of the host's name."""
    source = os.fsencode(mailbox / "tmp") + b"/odd"
    target = os.fsencode(mailbox / "new") + b"/%f.\xff\xfe" % time.time()
    with open(source, "wb") as message:  # noqa: PTH123 (a name of bytes)
        message.write(b"Subject: odd\n\n")
    os.rename(source, target)  # noqa: PTH104
    return Path(os.fsdecode(target))


WAYS = (deliver_by_link, deliver_by_rename, deliver_by_link, deliver_by_rename, _copy, _odd)
