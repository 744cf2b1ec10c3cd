"""A mailbox's path leads to another directory than before. The directory above tells, at once; nothing is compared."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest

from tests.support.maildirs import deliver_by_link, deliver_by_rename, make_maildir, swap
from xaps_watch.watcher import Pace, Watcher

NEVER = 3600.0
AT_FDCWD = -100
RENAME_EXCHANGE = 2  # renameat2(2)


class Reports:
    def __init__(self) -> None:
        self.paths: set[Path] = set()
        self._news = asyncio.Event()

    def __call__(self, paths: Collection[str]) -> None:
        self.paths.update(map(Path, paths))
        self._news.set()

    async def have(self, *paths: Path) -> None:
        while not self.paths >= set(paths):
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 30)
        self.paths -= set(paths)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
async def watcher(reports: Reports) -> AsyncIterator[Watcher]:
    watcher = Watcher(reports, pace=Pace(verify_interval=NEVER, retry_first=NEVER))
    watcher.start()
    yield watcher
    watcher.close()


def exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def watches(watcher: Watcher) -> int:
    """How many the kernel holds, proc_pid_fdinfo(5)."""
    return Path(f"/proc/self/fdinfo/{watcher._inotify.fileno()}").read_text().count("inotify wd:")


async def watch(watcher: Watcher, *paths: Path) -> None:
    for path in paths:
        watcher.watch(str(path), time.time())
    await watcher.settled()


async def covered(watcher: Watcher) -> None:
    """Until a restart would no longer look for what was there by now."""
    now = time.time()
    while watcher.caught_up_to() <= now:
        await asyncio.sleep(0.001)


async def missing(watcher: Watcher, count: int) -> None:
    """Until so many are looked for. They hold back what counts as caught up with: they may come back with mail."""
    while watcher.status().missing != count:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("act", [swap, exchange])
@pytest.mark.parametrize("level", ["folder", "root", "home"])
async def test_swapped(
    watcher: Watcher, reports: Reports, tmp_path: Path, act: Callable[[Path, Path], None], level: str
) -> None:
    """Mail into each is reported for where it lies now, before it counts as caught up with."""
    alice, bob = tmp_path / "alice", tmp_path / "bob"
    inboxes = [make_maildir(home / "Maildir") for home in (alice, bob)]
    work, home = (make_maildir(inboxes[0] / folder) for folder in (".Work", ".Home"))
    for folder in (".Work", ".Home"):
        make_maildir(inboxes[1] / folder)
    await watch(watcher, *inboxes, work, home)
    one, other = {"folder": (work, home), "root": tuple(inboxes), "home": (alice, bob)}[level]
    mailboxes = (work, home) if level == "folder" else (inboxes[0], work)
    act(one, other)
    await covered(watcher)
    for mailbox in mailboxes:
        reports.paths.clear()
        deliver_by_link(mailbox)
        await covered(watcher)
        assert mailbox in reports.paths


async def test_mail_between_swap_and_look(watcher: Watcher, reports: Reports, tmp_path: Path) -> None:
    one, other = make_maildir(tmp_path / "one"), make_maildir(tmp_path / "other")
    await watch(watcher, one, other)
    swap(one, other)
    deliver_by_rename(one)
    await covered(watcher)
    assert one in reports.paths


async def test_a_renamed_folder_is_looked_for_where_it_was(watcher: Watcher, reports: Reports, tmp_path: Path) -> None:
    one = make_maildir(tmp_path / "one")
    await watch(watcher, one)
    one.rename(tmp_path / "away")
    await missing(watcher, 1)
    make_maildir(one)
    deliver_by_link(one)
    await reports.have(one)


@pytest.mark.parametrize("over", [True, False])
async def test_a_symlink_that_leads_elsewhere(
    watcher: Watcher, reports: Reports, tmp_path: Path, *, over: bool
) -> None:
    old, new, link = make_maildir(tmp_path / "old"), make_maildir(tmp_path / "new"), tmp_path / "link"
    link.symlink_to(old)
    await watch(watcher, link)
    if over:
        (tmp_path / "temporary").symlink_to(new)
        (tmp_path / "temporary").rename(link)
    else:
        link.unlink()
        link.symlink_to(new)
    await covered(watcher)
    deliver_by_rename(new)
    await reports.have(link)


async def test_one_watch_for_all_mailboxes_of_a_directory(watcher: Watcher, tmp_path: Path) -> None:
    inbox = make_maildir(tmp_path / "Maildir")
    folders = [make_maildir(inbox / f".{number}") for number in range(5)]
    await watch(watcher, inbox, *folders)
    assert watches(watcher) == 2 * 6 + 2
    for folder in folders:
        watcher.unwatch(str(folder))
    assert watches(watcher) == 2 + 1
    watcher.unwatch(str(inbox))
    assert watches(watcher) == 0


async def test_no_watch_is_left_over_when_all_was_removed(watcher: Watcher, tmp_path: Path) -> None:
    """But the one on the directory where the mailboxes may come back."""
    home = tmp_path / "home"
    mailboxes = [make_maildir(home / "Maildir" / folder) for folder in (".", ".Work", ".Home")]
    await watch(watcher, *mailboxes)
    home.rename(tmp_path / "aside")
    await missing(watcher, 3)
    assert watches(watcher) == 1
    (tmp_path / "aside").rename(home)
    await missing(watcher, 0)
    await covered(watcher)
    assert watches(watcher) == 2 * 3 + 2
