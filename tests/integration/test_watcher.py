"""The watcher on real directories with real inotify."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest

from tests.support.maildirs import make_maildir
from xaps_watch.maildir import WRITE_PATIENCE
from xaps_watch.watcher import Pace, Watcher

FAST = Pace(verify_interval=0.1, retry_first=0.01, retry_last=0.1)


class Deliveries:
    """Collects what the watcher reports."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._news = asyncio.Event()

    def __call__(self, paths: Collection[str]) -> None:
        self.paths += paths
        self._news.set()

    async def expect(self, *paths: Path) -> None:
        """Wait until each of `paths` has been reported, and see that nothing else was."""
        wanted = {str(path) for path in paths}
        while not wanted <= set(self.paths):
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 10)
        assert set(self.paths) == wanted
        self.paths.clear()


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return make_maildir(tmp_path / "Maildir")


@pytest.fixture
def deliveries() -> Deliveries:
    return Deliveries()


@pytest.fixture
async def watcher(deliveries: Deliveries) -> AsyncIterator[Watcher]:
    watcher = Watcher(deliveries, pace=FAST)
    watcher.start()
    yield watcher
    watcher.close()


def by_rename(box: Path, name: str = "1.M1P1.host") -> None:
    (box / "tmp" / name).write_text("mail")
    (box / "tmp" / name).rename(box / "new" / name)


def by_link(box: Path, name: str = "2.M1P1.host") -> None:
    (box / "tmp" / name).write_text("mail")
    (box / "new" / name).hardlink_to(box / "tmp" / name)
    (box / "tmp" / name).unlink()


def by_slow_write(box: Path, name: str = "3.M1P1.host") -> None:
    with (box / "new" / name).open("w") as file:
        file.write("mail")


FORMS = (by_rename, by_link, by_slow_write)


async def test_a_copy_is_reported_once_and_complete(tmp_path: Path) -> None:
    """cp -p gives the file its old time before it closes it; neither its bytes nor its time may pass for a link()."""
    boxes = [make_maildir(tmp_path / str(number)) for number in range(100)]
    sizes: dict[str, list[int]] = {str(box): [] for box in boxes}

    def on_delivery(paths: Collection[str]) -> None:
        for path in paths:
            sizes[path].append((Path(path) / "new" / "1.M1P1.host").stat().st_size)
        if all(sizes.values()):
            reported.set()

    def copy() -> None:
        for box in boxes:
            with (box / "new" / "1.M1P1.host").open("wb", buffering=0) as file:
                file.write(bytes(4096))
                os.utime(file.fileno(), (1, 1))
                file.write(bytes(4096))
                os.utime(file.fileno(), (1, 1))

    reported = asyncio.Event()
    watcher = Watcher(on_delivery, pace=FAST)
    watcher.start()
    try:
        for box in boxes:
            watcher.watch(str(box), time.time())
        await watcher.settled()
        await asyncio.to_thread(copy)
        await reported.wait()
        await asyncio.sleep(2 * WRITE_PATIENCE)  # so that a second report could come
    finally:
        watcher.close()
    assert set(map(tuple, sizes.values())) == {(8192,)}


@pytest.mark.parametrize("deliver", FORMS)
async def test_delivery(
    watcher: Watcher, deliveries: Deliveries, box: Path, deliver: Callable[[Path], None]
) -> None:
    watcher.watch(str(box), time.time())
    await watcher.settled()
    deliver(box)
    await deliveries.expect(box)


async def test_no_deliveries(watcher: Watcher, deliveries: Deliveries, box: Path, tmp_path: Path) -> None:
    (box / "new" / "a").write_text("mail")
    watcher.watch(str(box), time.time())
    await watcher.settled()
    deliveries.paths.clear()
    (box / "new" / "a").rename(box / "new" / "a,U=1")
    (box / "new" / ".dot").write_text("not mail")
    (box / "new" / "a,U=1").rename(box / "cur" / "a,U=1:2,")
    (box / "new" / "directory").mkdir()
    other = make_maildir(tmp_path / "Other")
    watcher.watch(str(other), time.time())
    await watcher.settled()
    by_rename(other)
    await deliveries.expect(other)


async def test_mail_older_than_the_watch(watcher: Watcher, deliveries: Deliveries, box: Path) -> None:
    by_rename(box)
    watcher.watch(str(box), time.time() - 1)
    await deliveries.expect(box)


async def test_unwatch(watcher: Watcher, deliveries: Deliveries, box: Path, tmp_path: Path) -> None:
    other = make_maildir(tmp_path / "Other")
    for path in (box, other):
        watcher.watch(str(path), time.time())
    await watcher.settled()
    watcher.unwatch(str(box))
    by_rename(box)
    by_rename(other)
    await deliveries.expect(other)


async def test_two_paths(watcher: Watcher, deliveries: Deliveries, box: Path, tmp_path: Path) -> None:
    alias = tmp_path / "Alias"
    alias.symlink_to(box)
    for path in (box, alias):
        watcher.watch(str(path), time.time())
    await watcher.settled()
    by_rename(box)
    await deliveries.expect(box, alias)
    watcher.unwatch(str(box))
    by_link(box)
    await deliveries.expect(alias)


async def test_new_folder_missing_at_first(watcher: Watcher, deliveries: Deliveries, tmp_path: Path) -> None:
    box = tmp_path / "Maildir"
    watcher.watch(str(box), time.time())
    await watcher.settled()
    make_maildir(box)
    by_rename(box)
    await deliveries.expect(box)


async def test_removed_and_recreated(watcher: Watcher, deliveries: Deliveries, box: Path) -> None:
    watcher.watch(str(box), time.time())
    await watcher.settled()
    shutil.rmtree(box)
    make_maildir(box)
    by_link(box)
    await deliveries.expect(box)


async def test_names_that_are_not_utf8(watcher: Watcher, deliveries: Deliveries, tmp_path: Path) -> None:
    box = make_maildir(tmp_path / os.fsdecode(b"\xff\xfe"))
    watcher.watch(str(box), time.time())
    await watcher.settled()
    for deliver in FORMS:
        deliver(box, os.fsdecode(b"1.M1P1.\xfe\xff" + deliver.__name__.encode()))
        await deliveries.expect(box)


async def test_a_directory_made_anew_with_the_same_inode_number(
    watcher: Watcher, deliveries: Deliveries, box: Path
) -> None:
    """Ext4 gives the number away again at once; that the old directory went was among the events that were lost."""
    watcher.watch(str(box), time.time())
    await watcher.settled()
    for mailbox in watcher._mailboxes.values():
        watcher._inotify.remove(mailbox.wd)
    (box / "new" / "directory").mkdir()
    (box / "new" / "directory").rmdir()
    while watcher._inotify.read():
        pass
    watcher._on_overflow()
    await watcher.settled()
    by_rename(box)
    await deliveries.expect(box)


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
async def test_events_that_are_lost_when_the_clock_is_set(deliveries: Deliveries, box: Path, ahead: float) -> None:
    """What is looked for is what came since, by the files' times: these go by the clock as it was set."""
    wrong = ahead
    watcher = Watcher(deliveries, time=lambda: time.time() + wrong, pace=FAST)
    watcher.start()
    try:
        watcher.watch(str(box), time.time() + wrong)
        await watcher.settled()
        wrong = 0.0
        by_rename(box)
        while watcher._inotify.read():
            pass
        watcher._on_overflow()
        await deliveries.expect(box)
        assert watcher.caught_up_to() <= time.time()
    finally:
        watcher.close()
