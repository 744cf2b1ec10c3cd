"""What befalls a watcher that the tests' own process can't bring about: each in a process of its own, in namespaces.

`python -m tests.integration.watcher_scenarios NAME DIRECTORY`, under unshare(1); the exit status tells how it went.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.maildirs import deliver_by_link, deliver_by_rename, make_maildir, read_all
from xaps_watch import lookout, mounts, watcher
from xaps_watch.mounts import MountTable
from xaps_watch.watcher import Pace, Watcher

NOBODY = 65534
PACE = Pace(verify_interval=0.1, retry_first=0.01, retry_last=0.1, room_interval=0.1)
POLL_INTERVAL = 0.1
WHERE_POLLED_TOO = 2  # reports of a mail that lands while a poll is on its way: both tell of it


class Witness(logging.Handler):
    """Counts what the watcher reports, and keeps what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: Counter[str] = Counter()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __call__(self, paths: Collection[str]) -> None:
        self.reports.update(paths)

    def line(self, start: str) -> str:
        return next(line for line in self.lines if line.startswith(start))

    async def reported(self, *mailboxes: Path, at_most: int = 1) -> None:
        """Wait until each was reported, see that it was so once (or `at_most`), and nothing else; begin anew."""
        expected = {str(mailbox) for mailbox in mailboxes}
        await until(lambda: self.reports.keys() >= expected)
        await asyncio.sleep(3 * POLL_INTERVAL)  # in which a further report of the same mail could come
        assert self.reports.keys() == expected, f"{self.reports} instead of {expected}"
        assert all(count <= at_most for count in self.reports.values()), self.reports
        self.reports.clear()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def watching(mailboxes: Collection[Path]) -> AsyncIterator[tuple[Watcher, Witness]]:
    witness = Witness()
    logging.getLogger("xaps_watch").addHandler(witness)
    logging.getLogger("xaps_watch").setLevel(logging.INFO)
    watcher = Watcher(witness, poll_interval=POLL_INTERVAL, pace=PACE)
    watcher.start()
    try:
        for mailbox in mailboxes:
            watcher.watch(str(mailbox), time.time())
        await watcher.settled()
        yield watcher, witness
    finally:
        watcher.close()


def allow_watches(count: int) -> None:
    """For this user namespace: user_namespaces(7), /proc/sys/user."""
    Path("/proc/sys/user/max_inotify_watches").write_text(str(count))


@asynccontextmanager
async def crowded(
    directory: Path, *, mailboxes: int, watches: int
) -> AsyncIterator[tuple[list[Path], Watcher, Witness]]:
    """So many mailboxes, and room for so few watches."""
    paths = [make_maildir(directory / str(number)) for number in range(mailboxes)]
    allow_watches(watches)
    async with watching(paths) as (watcher, witness):
        yield paths, watcher, witness


async def room_for_one_directory_each(directory: Path) -> None:
    """cur/ is given up first."""
    async with crowded(directory, mailboxes=10, watches=12) as (mailboxes, watcher, witness):
        assert (watcher.status().watched, watcher.status().polled) == (10, 0)
        assert "sysctl=fs.inotify.max_user_watches" in witness.line("no room for more watches")
        for mailbox in mailboxes:
            deliver_by_link(mailbox)
        await witness.reported(*mailboxes)


async def room_for_some_mailboxes(directory: Path) -> None:
    """The rest is polled, and watched as soon as there is room."""
    async with crowded(directory, mailboxes=10, watches=6) as (mailboxes, watcher, witness):
        status = watcher.status()
        assert (status.watched, status.polled, status.polled_why) == (6, 4, {"limit": 4}), status
        assert "mend=" in witness.line("no room for more watches")
        for deliver in (deliver_by_rename, deliver_by_link):
            for mailbox in mailboxes:
                deliver(mailbox)
            await witness.reported(*mailboxes)
        for mailbox in mailboxes:
            read_all(mailbox)
        await witness.reported()
        allow_watches(100)
        await until(lambda: watcher.status().polled == 0 and "all mailboxes are watched again" in witness.lines)
        assert watcher.status().watched == 10
        for mailbox in mailboxes:
            deliver_by_rename(mailbox)
        await witness.reported(*mailboxes)


async def mail_that_comes_while_room_appears(directory: Path) -> None:
    """Not lost, and not told twice."""
    async with crowded(directory, mailboxes=10, watches=6) as (mailboxes, watcher, witness):
        allow_watches(100)
        expected: Counter[str] = Counter()
        while watcher.status().polled:
            mailbox = mailboxes[sum(expected.values()) % 10]
            deliver_by_rename(mailbox)
            expected[str(mailbox)] += 1
            await until(lambda: witness.reports == expected)


async def removed_without_room(directory: Path) -> None:
    """A mailbox that is gone isn't waited for when there is room again."""
    async with crowded(directory, mailboxes=4, watches=5) as (mailboxes, watcher, witness):
        for mailbox in mailboxes[:3]:  # there is room for one cur/
            shutil.rmtree(mailbox)
        await until(lambda: watcher.status().missing == 3)
        allow_watches(100)
        await until(lambda: "all mailboxes are watched again" in witness.lines)
        deliver_by_rename(mailboxes[3])
        await witness.reported(mailboxes[3])


async def unmounted(directory: Path) -> None:
    """The mailbox is missing, and what came before it is mounted again is found."""
    mount = directory / "mount"
    mailbox, other = mount / "Maildir", make_maildir(directory / "other")
    mount.mkdir()
    mount_tmpfs(mount)
    make_maildir(mailbox)
    async with watching([mailbox, other]) as (watcher, witness):
        deliver_by_rename(mailbox)
        await witness.reported(mailbox)
        unmount(mount)
        await until(lambda: watcher.status().missing == 1)
        deliver_by_rename(other)
        await witness.reported(other)
        elsewhere = directory / "elsewhere"
        elsewhere.mkdir()
        mount_tmpfs(elsewhere)
        make_maildir(elsewhere / "Maildir")
        deliver_by_rename(elsewhere / "Maildir")
        move_mount(elsewhere, mount)
        await witness.reported(mailbox)
        deliver_by_rename(mailbox)
        await witness.reported(mailbox)
        assert watcher.status().missing == 0


async def unreadable(directory: Path) -> None:
    """The line says which directory, and the mend; once it is mended, the mail is found."""
    home = directory / "home"
    mailbox, other = make_maildir(home / "Maildir"), make_maildir(directory / "other")
    home.chmod(0o700)
    os.seteuid(NOBODY)
    async with watching([mailbox, other]) as (watcher, witness):
        line = witness.line("mailbox can't be read")
        assert f"where={home} " in line, line
        assert "CAP_DAC_READ_SEARCH" in line
        assert watcher.status().missing == 1
        os.seteuid(0)
        deliver_by_rename(mailbox)
        deliver_by_rename(other)
        os.seteuid(NOBODY)
        await witness.reported(other)
        os.seteuid(0)
        home.chmod(0o755)
        os.seteuid(NOBODY)
        await witness.reported(mailbox)
        assert watcher.status().missing == 0


async def remote(directory: Path) -> None:
    """A filesystem that others may write to is watched and polled."""
    mailbox = make_maildir(mount_remote(directory) / "Maildir")
    async with watching([mailbox]) as (watcher, witness):
        assert watcher.status().polled_why == {"tmpfs": 1}
        assert "interval=0.1s" in witness.line("mailbox on a remote filesystem is polled")
        for deliver in (deliver_by_rename, deliver_by_link):
            deliver(mailbox)
            await witness.reported(mailbox, at_most=WHERE_POLLED_TOO)
        read_all(mailbox)
        await witness.reported()
        (mailbox / "new" / "1.host").write_text("mail\n")
        await witness.reported(mailbox, at_most=WHERE_POLLED_TOO)


async def silent(directory: Path) -> None:
    """A file server that doesn't answer holds nobody else up, and what came meanwhile is told when it does."""
    mailbox, other = make_maildir(mount_remote(directory) / "Maildir"), make_maildir(directory / "other")
    later = make_maildir(directory / "later")
    answers = threading.Event()
    answers.set()

    def look(request: lookout.Request, mounts: MountTable) -> lookout.Answer:
        if request.path == str(mailbox):
            answers.wait()
        return lookout.look(request, mounts)

    def lstat(path: bytes) -> os.stat_result:
        if path.startswith(bytes(mailbox)):
            answers.wait()
        return os_lstat(path)

    os_lstat, os.lstat = os.lstat, lstat  # type: ignore[assignment]
    watcher.look = look  # type: ignore[attr-defined]
    watcher._STUCK = 0.2
    async with watching([mailbox, other]) as (watched, witness):
        answers.clear()
        await until(lambda: watched.status().silent == [str(directory / "server")])
        assert "waiting=" in witness.line("filesystem doesn't answer")
        watched.watch(str(later), time.time())
        await watched.settled()
        deliver_by_rename(other)
        deliver_by_rename(later)
        deliver_by_link(mailbox)  # here: the kernel tells without asking the server
        await witness.reported(other, later, mailbox)
        answers.set()
        await until(lambda: not watched.status().silent)
        witness.line("filesystem answers again")
        deliver_by_rename(mailbox)
        await witness.reported(mailbox, at_most=WHERE_POLLED_TOO + 1)  # the look that was under way tells of the other


def mount_tmpfs(point: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)


def unmount(point: Path) -> None:
    subprocess.run(["umount", point], check=True)


def move_mount(from_point: Path, to_point: Path) -> None:
    subprocess.run(["mount", "--move", from_point, to_point], check=True)


def mount_remote(directory: Path) -> Path:
    """As if tmpfs had a server."""
    mounts.REMOTE |= {"tmpfs"}
    server = directory / "server"
    server.mkdir()
    mount_tmpfs(server)
    return server


SCENARIOS: dict[str, Callable[[Path], Coroutine[Any, Any, None]]] = {
    scenario.__name__: scenario
    for scenario in (
        room_for_one_directory_each,
        room_for_some_mailboxes,
        mail_that_comes_while_room_appears,
        removed_without_room,
        unmounted,
        unreadable,
        remote,
        silent,
    )
}

if __name__ == "__main__":
    asyncio.run(SCENARIOS[sys.argv[1]](Path(sys.argv[2])))
