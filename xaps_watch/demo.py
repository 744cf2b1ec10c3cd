"""``xaps-watch demo``: the whole way in a temporary directory, with a stand-in for Apple, shown step by step.

Two phones of one user are registered for INBOX and a folder; mail is delivered as Postfix and as Exim do it; the daemon
is the real one, as a process of its own. Nothing outside the directory is touched, nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from xaps_watch import registry
from xaps_watch.apns import mailbox_hash
from xaps_watch.authority import LocalAuthority
from xaps_watch.model import Mailbox, XapsError, mask_token
from xaps_watch.registry import Registry
from xaps_watch.simulator import Received, Simulator

TOPIC = "com.apple.mobilemail.push.org.example"
USER = "alice"
PHONES = {"iPhone": "a1" * 32, "iPad": "b2" * 32}
FOLDER = "Entwürfe & more"

MIN_INTERVAL = 1.0  # seconds; shorter than the default, so that the demo doesn't take long
PATIENCE = 10.0  # seconds for a push that should come
SILENCE = 2 * MIN_INTERVAL  # seconds in which no push may come that should not


class DemoError(XapsError):
    """The demo could not be shown."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens to the mailboxes, and the pushes that have to follow for each phone."""

    what: str
    act: Callable[[Maildirs], None]
    names: tuple[str, ...]  # the mailboxes that each push may name; none: no push may come
    at_most: int = 1  # pushes a phone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", action="store_true", help="show the daemon's log, too")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 if every expected push arrived, and no other. Raises XapsError if it could not be tried."""
    return asyncio.run(_demo(arguments))


async def _demo(arguments: argparse.Namespace) -> int:
    with TemporaryDirectory(prefix="xaps-watch-demo-") as name:
        directory = Path(name)
        authority = LocalAuthority(directory / "certificates")
        async with Simulator(authority) as simulator:
            maildirs = Maildirs(directory / "Maildir")
            config = _configure(directory, authority, simulator, maildirs)
            log = None if arguments.log else directory / "xaps-watch.log"
            async with _Daemon(config, log) as daemon:
                print(f"xaps-watch watches 2 mailboxes of {USER} for 2 devices; a local APNs is at {simulator.url}\n")
                faults = [fault for step in STEPS for fault in await _show(step, maildirs, simulator)]
            faults += daemon.faults
    print()
    for fault in faults:
        print(f"✘ {fault}")
    if not faults:
        print(f"✔ every expected push arrived, and no other: {simulator.requests} pushes over one connection")
    return 1 if faults else 0


async def _show(step: Step, maildirs: Maildirs, simulator: Simulator) -> list[str]:
    """Do it, wait for what has to come and a little longer, tell; what went wrong."""
    print(step.what)
    before = len(simulator.received)
    maildirs.moments.clear()
    await asyncio.to_thread(step.act, maildirs)
    if step.names:
        with suppress(TimeoutError):  # what is missing is told below
            await simulator.wait_for(before + len(PHONES), PATIENCE)
    await asyncio.sleep(SILENCE)
    received = simulator.received[before:]
    for push in received:
        print(f"    → {_phone(push):7} {_refreshes(push):22} {(push.at - maildirs.moments[0]) * 1000:8.1f} ms")
    if not received:
        print("    → no push")
    return list(_faults(step, received))


def _faults(step: Step, received: list[Received]) -> Iterator[str]:
    for name, token in PHONES.items():
        pushes = [push for push in received if push.token == token]
        least, most = (1, step.at_most) if step.names else (0, 0)
        if not least <= len(pushes) <= most:
            yield f"{step.what}: {len(pushes)} pushes to the {name}, expected {least} to {most}"
        for push in pushes:
            if _hashes(push) != _expected_hashes(step.names):
                yield f"{step.what}: the push to the {name} names the wrong mailboxes: {push.body!r}"
    for push in received:
        for fault in push.faults:
            yield f"{step.what}: Apple would refuse this push: {fault}"


def _expected_hashes(names: tuple[str, ...]) -> list[str] | None:
    """The "m" of the payload: none for INBOX alone, which every phone refreshes without being told more."""
    return None if names == ("INBOX",) else [mailbox_hash(name) for name in names]


def _hashes(push: Received) -> list[str] | None:
    aps = push.payload.get("aps") if isinstance(push.payload, dict) else None
    return aps.get("m") if isinstance(aps, dict) else None


def _phone(push: Received) -> str:
    return next((name for name, token in PHONES.items() if token == push.token), mask_token(push.token))


def _refreshes(push: Received) -> str:
    """What the phone looks at: it knows the hashes of the names that it was echoed."""
    known = {mailbox_hash(name): name for name in ("INBOX", FOLDER)}
    hashes = _hashes(push)
    return "INBOX" if hashes is None else ", ".join(known.get(h, "(unknown)") for h in hashes)


# --- the mailboxes ---------------------------------------------------------------------------------------------------


class Maildirs:
    """A user's INBOX and folder, and what happens to them."""

    def __init__(self, root: Path) -> None:
        self.inbox = root
        self.folder = root / ".Entw&APw-rfe &- more"  # Maildir++ names folders in modified UTF-7
        self.moments: list[float] = []  # perf_counter() of each delivery
        self._count = 0
        for mailbox in (self.inbox, self.folder):
            for name in ("tmp", "new", "cur"):
                (mailbox / name).mkdir(parents=True)

    def _write(self, mailbox: Path) -> Path:
        self._count += 1
        message = mailbox / "tmp" / f"{time.time():.6f}.{os.getpid()}_{self._count}.{socket.gethostname()}"
        message.write_text(f"Subject: mail number {self._count}\n\nHello!\n")
        return message

    def link(self, mailbox: Path) -> None:
        """As Postfix, maildrop, procmail and qmail deliver."""
        message = self._write(mailbox)
        self.moments.append(time.perf_counter())
        (mailbox / "new" / message.name).hardlink_to(message)
        message.unlink()

    def rename(self, mailbox: Path) -> None:
        """As Exim, OpenSMTPD, mbsync and Dovecot deliver."""
        message = self._write(mailbox)
        self.moments.append(time.perf_counter())
        message.rename(mailbox / "new" / message.name)

    def copy(self, mailbox: Path) -> None:
        """As cp and rsync across file systems: it is mail only when it is complete."""
        self._count += 1
        with (mailbox / "new" / f"{time.time():.6f}.copy{self._count}").open("w") as message:
            message.write("Subject: copied\n\n")
            message.flush()
            time.sleep(0.05)
            message.write("Hello!\n")
            self.moments.append(time.perf_counter())

    def burst(self, mailbox: Path, count: int) -> None:
        for _ in range(count):
            self.link(mailbox)

    def read(self, mailbox: Path) -> None:
        """As an IMAP session that selects the mailbox, and marks its mail seen."""
        for message in (mailbox / "new").iterdir():
            message.rename(mailbox / "cur" / f"{message.name}:2,S")


STEPS = (
    Step("a mail to INBOX, by link() as Postfix does", lambda m: m.link(m.inbox), ("INBOX",)),
    Step(f"a mail to {FOLDER!r}, by rename() as Exim does", lambda m: m.rename(m.folder), (FOLDER,)),
    Step("a mail to INBOX, copied slowly as cp does", lambda m: m.copy(m.inbox), ("INBOX",)),
    Step("100 mails to INBOX at once", lambda m: m.burst(m.inbox, 100), ("INBOX",), at_most=2),
    Step("all mail is read elsewhere", lambda m: m.read(m.inbox), ()),
)


# --- the daemon ------------------------------------------------------------------------------------------------------


def _configure(directory: Path, authority: LocalAuthority, simulator: Simulator, maildirs: Maildirs) -> Path:
    """Write the configuration, and the registrations that the Dovecot plugin would record."""
    certificate = authority.push_certificate(TOPIC, topics=(TOPIC,))
    config = directory / "config.toml"
    config.write_text(
        f"""\
[apns]
url = "{simulator.url}"
ca_file = "{simulator.ca_file}"
certificate = "{certificate.file}"
[registry]
path = "{directory / "registry.sqlite3"}"
[push]
min_interval = {MIN_INTERVAL}
[status]
socket = "{directory / "status.sock"}"
"""
    )
    registry.create(directory / "registry.sqlite3")
    with Registry(directory / "registry.sqlite3") as book:
        for token in PHONES.values():
            mailboxes = [Mailbox("INBOX", str(maildirs.inbox)), Mailbox(FOLDER, str(maildirs.folder))]
            account_id = "0715A26B-CA09-4730-A419-793000CA982E"  # one for both: the iPad is a copy of the iPhone
            book.register(USER, account_id, token, mailboxes, topic=TOPIC, now=int(time.time() * 1000))
    return config


@dataclass(slots=True)
class _Daemon:
    """``xaps-watch run`` as a process, with the demo in the place of systemd."""

    config: Path
    log: Path | None  # None: the terminal
    faults: list[str] = field(default_factory=list)
    _process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> _Daemon:
        notify = self.config.parent / "notify.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(notify))
            systemd.setblocking(False)
            log = self.log.open("wb") if self.log else sys.stderr
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "xaps_watch", "-c", str(self.config), "run",
                env={**os.environ, "NOTIFY_SOCKET": str(notify)}, stderr=log,
            )  # fmt: skip
            if self.log:
                log.close()
            try:
                await asyncio.wait_for(self._ready(systemd), PATIENCE)
            except asyncio.TimeoutError:
                raise DemoError(f"the daemon did not start:\n{self._said()}") from None
        return self

    async def _ready(self, systemd: socket.socket) -> None:
        while b"READY=1" not in await asyncio.get_running_loop().sock_recv(systemd, 4096):
            pass

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        status = await asyncio.wait_for(self._process.wait(), PATIENCE)
        if status != 0:
            self.faults.append(f"the daemon ended with status {status}:\n{self._said()}")

    def _said(self) -> str:
        return self.log.read_text(errors="replace") if self.log else ""
