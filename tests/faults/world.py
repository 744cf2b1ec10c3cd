"""The world in which the daemon has to prove itself: mailboxes, phones, a local APNs, and all that can go wrong.

Each fault is a method of World that begins with ``fault_``; it makes its mess, delivers mail in the midst of it, and
leaves a world that works again. What it delivers stands in the ledger.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.faults.ledger import Ledger
from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import deliver_by_copy, deliver_by_link, deliver_by_rename, make_maildir, read_all
from tests.support.values import device_token
from xaps_watch.simulator import Answer, Received, Simulator

USERS = 6
FOLDERS = ("INBOX", "Lists/Dovecot", "Entwürfe & more")
PATIENCE = 90.0  # seconds for the daemon to come even once everything works again
DELIVERIES_AT_ONCE = 40


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
        self._mailboxes_of: dict[str, dict[str, Path]] = {}  # by token
        self._user_of: dict[str, str] = {}

    async def __aenter__(self) -> World:
        await self.simulator.start()
        self.site.configure(self.simulator.url, sections={"push": {"min_interval": 0.2}, "apns": {"timeout": 5.0}})
        for number in range(USERS):
            self._add_user(number)
        self.daemon = DaemonProcess(self.site.config_file)
        await self.daemon.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.daemon.exit_status is None:
            self.daemon.signal(signal.SIGCONT)
            await self.daemon.stop()
        await self.simulator.stop()

    def _add_user(self, number: int) -> None:
        """Two phones each; every third user's second phone registered INBOX alone."""
        root = self.directory / f"user{number}"
        paths = {name: root / f"mailbox{i}" for i, name in enumerate(FOLDERS)}
        tokens = [device_token(2 * number + i + 1) for i in range(2)]
        for i, token in enumerate(tokens):
            names = FOLDERS[:1] if i and number % 3 == 0 else FOLDERS
            self._user_of[token] = f"user{number}"
            self._mailboxes_of[token] = {name: paths[name] for name in names}
            self._register(token)
        for name, path in paths.items():
            owners = [token for token in tokens if name in self._mailboxes_of[token]]
            self.mailboxes.append(Mailbox(name, path, owners))

    def _register(self, token: str) -> None:
        self.ledger.registered(token, self._mailboxes_of[token])
        self.site.register(self._user_of[token], token, self._mailboxes_of[token])

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

    def deliver(self, mailbox: Mailbox, count: int = 1) -> None:
        """Mail for a mailbox, in one of the ways of the delivery agents."""
        for _ in range(count):
            self.ledger.delivered(mailbox.tokens, mailbox.name)
            self.random.choice(WAYS)(mailbox.path)

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
            if time.monotonic() > end:
                raise AssertionError("missed:\n" + "\n".join(self.ledger.debts()))
            await asyncio.sleep(0.05)

    def faults(self) -> list[str]:
        """The names of all that can go wrong."""
        return sorted(name for name in dir(self) if name.startswith("fault_"))

    # --- the push service --------------------------------------------------------------------------------------------

    async def fault_cut(self) -> None:
        """The connection is cut in mid-flight."""
        self.answer_with = lambda received: Answer(then="cut") if self.random.random() < 0.3 else Answer()
        await self.deliver_some(1.0)
        self.answer_with = lambda _: Answer()
        self.simulator.cut_all()

    async def fault_goaway(self) -> None:
        """GOAWAY, with and without unprocessed streams."""
        choices = (Answer(then="goaway"), Answer(then="goaway-before"), Answer(), Answer())
        self.answer_with = lambda _: self.random.choice(choices)
        await self.deliver_some(1.0)
        self.answer_with = lambda _: Answer()
        self.simulator.goaway_all()

    async def fault_reset(self) -> None:
        """RST_STREAM, also REFUSED_STREAM."""
        choices = (Answer(then="reset"), Answer(then="refuse"), Answer())
        self.answer_with = lambda _: self.random.choice(choices)
        await self.deliver_some(1.0)
        self.answer_with = lambda _: Answer()

    async def fault_errors(self) -> None:
        """500, 503 and 429 now and then."""
        choices = (Answer(503), Answer(500), Answer(503, retry_after=1), Answer(429, "TooManyRequests", retry_after=1))
        self.answer_with = lambda _: self.random.choice((*choices, Answer(), Answer()))
        await self.deliver_some(1.0)
        self.answer_with = lambda _: Answer()

    async def fault_outage(self) -> None:
        """Connections are refused for some seconds."""
        await self.simulator.stop_accepting()
        self.simulator.cut_all()
        await self.deliver_some(self.random.uniform(0.5, 3.0))
        await self.simulator.start()

    async def fault_silence(self) -> None:
        """The server takes requests and answers nothing."""
        self.answer_with = lambda _: Answer(then="silence")
        await self.deliver_some(1.0)
        self.answer_with = lambda _: Answer()

    async def fault_freeze(self) -> None:
        """The server reads nothing for a while."""
        self.simulator.freeze()
        await self.deliver_some(self.random.uniform(0.2, 2.0))
        self.simulator.thaw()

    async def fault_slow(self) -> None:
        """Each answer takes its time, and only one stream is allowed."""
        self.answer_with = lambda _: Answer(delay=0.1)
        self.simulator.limit_streams(1)
        await self.deliver_some(1.0)
        self.simulator.limit_streams(1000)
        self.answer_with = lambda _: Answer()

    # --- the daemon --------------------------------------------------------------------------------------------------

    async def fault_kill(self) -> None:
        """kill -9 at any moment; mail comes while nobody watches."""
        await self.deliver_some()
        await asyncio.sleep(self.random.uniform(0, 0.1))
        await self.daemon.kill()
        await self.deliver_some(self.random.uniform(0, 0.5))
        await self.daemon.start()

    async def fault_kill_at_start(self) -> None:
        """Killed before it is ready."""
        await self.daemon.kill()
        await self.deliver_some()
        await self.daemon.start(wait_until_ready=False)
        await asyncio.sleep(self.random.uniform(0.1, 0.6))
        await self.daemon.kill()
        await self.daemon.start()

    async def fault_restart(self) -> None:
        """systemctl restart, with pushes pending."""
        await self.deliver_some()
        assert await self.daemon.stop() == 0
        await self.deliver_some(self.random.uniform(0, 0.5))
        await self.daemon.start()

    async def fault_reload(self) -> None:
        """SIGHUP, again and again."""
        for _ in range(5):
            self.daemon.signal(signal.SIGHUP)
            await self.deliver_some(0.1)

    async def fault_overflow(self) -> None:
        """The daemon is stopped until inotify's queue overflows."""
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        self.daemon.signal(signal.SIGSTOP)
        mailbox = self.some_mailbox()
        # Not deliveries, since each would have to be waited for: renames inside new/ fill the queue, too.
        first = mailbox.path / "new" / ".filling"
        first.touch()
        for number in range(limit // 2 + 10):
            first = first.rename(first.with_name(f".filling{number % 2}"))
        self.deliver(mailbox)
        for _ in range(5):
            self.deliver(self.some_mailbox())
        first.unlink()
        self.daemon.signal(signal.SIGCONT)

    async def fault_read_elsewhere(self) -> None:
        """Other clients read mail as it comes. What is gone from new/ before it was noticed is told of all the same."""
        for _ in range(10):
            mailbox = self.some_mailbox()
            self.deliver(mailbox, self.random.randint(1, 5))
            await asyncio.sleep(self.random.uniform(0, 0.02))
            read_all(mailbox.path)
        # Of what was read before a crash, nobody needs to be told after it.
        await self.settle()

    # --- the mailboxes -----------------------------------------------------------------------------------------------

    async def fault_away(self) -> None:
        """A folder is renamed, and back."""
        mailbox = self.some_mailbox()
        self.deliver(mailbox)
        away = mailbox.path.rename(mailbox.path.with_suffix(".away"))
        await asyncio.sleep(self.random.uniform(0, 1.0))
        away.rename(mailbox.path)
        self.deliver(mailbox)

    async def fault_recreated(self) -> None:
        """A folder is removed and made anew, at once or after a while."""
        mailbox = self.some_mailbox()
        self.ledger.forgive(mailbox.tokens, mailbox.name)
        shutil.rmtree(mailbox.path)
        await asyncio.sleep(self.random.choice((0, 0, 0.05, 1.0)))
        make_maildir(mailbox.path)
        self.deliver(mailbox, 3)

    async def fault_swapped(self) -> None:
        """Another directory takes the folder's place while the old one still is there."""
        mailbox = self.some_mailbox()
        self.ledger.forgive(mailbox.tokens, mailbox.name)
        old = mailbox.path.rename(mailbox.path.with_suffix(f".old{self.random.random()}"))
        make_maildir(mailbox.path)
        self.deliver(mailbox, 3)
        await asyncio.sleep(self.random.uniform(0, 1.0))
        self.deliver(mailbox)
        shutil.rmtree(old)

    async def fault_new_missing(self) -> None:
        """new/ itself goes, and comes back."""
        mailbox = self.some_mailbox()
        self.ledger.forgive(mailbox.tokens, mailbox.name)
        shutil.rmtree(mailbox.path / "new")
        await asyncio.sleep(self.random.choice((0, 0.05, 1.0)))
        (mailbox.path / "new").mkdir()
        self.deliver(mailbox, 2)

    # --- the registry ------------------------------------------------------------------------------------------------

    async def fault_registry_locked(self) -> None:
        """Another program holds the registry."""
        with closing(sqlite3.connect(self.site.registry_file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await self.deliver_some(self.random.uniform(0.5, 2.0))
            other.execute("ROLLBACK")

    async def fault_registry_replaced(self) -> None:
        """Restored from a backup: another file under the same name."""
        backup = self.site.registry_file.with_suffix(".backup")
        with closing(sqlite3.connect(self.site.registry_file)) as source, closing(sqlite3.connect(backup)) as target:
            source.backup(target)
        backup.chmod(0o660)
        await self.deliver_some()
        for suffix in ("-wal", "-shm"):
            Path(f"{self.site.registry_file}{suffix}").unlink(missing_ok=True)
        backup.rename(self.site.registry_file)
        await self.deliver_some(0.2)

    async def fault_registered_again(self) -> None:
        """All phones renew their registrations while mail comes."""
        for token in sorted(self._mailboxes_of):
            self._register(token)
            if self.random.random() < 0.3:
                self.deliver(self.some_mailbox())
        await asyncio.sleep(0)


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
