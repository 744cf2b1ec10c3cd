"""What the watcher makes of cur/: mail that is put straight into it, and changes that are made elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest

from tests.support.maildirs import deliver_by_rename, make_maildir
from xaps_watch.watcher import Watcher


class Reports:
    """What the watcher reports, in order."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._news = asyncio.Event()

    def mail(self, paths: Collection[str]) -> None:
        self._add("mail", paths)

    def change(self, paths: Collection[str]) -> None:
        self._add("change", paths)

    def _add(self, kind: str, paths: Collection[str]) -> None:
        self.all += [f"{kind} {Path(path).name}" for path in paths]
        self._news.set()

    async def until(self, report: str) -> list[str]:
        """Everything up to this one."""
        while report not in self.all:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 10)
        seen, self.all = self.all, []
        return seen


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return make_maildir(tmp_path / "box")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return make_maildir(tmp_path / "other")


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture(params=[False, True], ids=["mail only", "changes too"])
async def watcher(request: pytest.FixtureRequest, reports: Reports, box: Path, other: Path) -> AsyncIterator[Watcher]:
    watcher = Watcher(reports.mail, on_change=reports.change if request.param else None)
    watcher.start()
    for path in (box, other):
        watcher.watch(str(path), 0.0)
    await watcher.settled()
    yield watcher
    watcher.close()


def put(box: Path, directory: str, name: str) -> Path:
    """A file that arrives from tmp/ under this name."""
    made = box / "tmp" / name
    made.write_text("mail")
    return made.rename(box / directory / name)


def delete_read(box: Path) -> None:
    put(box, "cur", "1.a.b:2,S").unlink()


def flag(box: Path) -> None:
    put(box, "cur", "1.a.b:2,S").rename(box / "cur" / "1.a.b:2,FS")


def move_away(box: Path) -> None:
    put(box, "cur", "1.a.b:2,S").rename(box / "tmp" / "1.a.b")


CHANGES: tuple[Callable[[Path], None], ...] = (delete_read, flag, move_away)


async def expect(reports: Reports, other: Path, *wanted: str) -> None:
    """These reports and no others, before that of a mail in the other mailbox."""
    await asyncio.sleep(0.3)  # longer than the watcher waits for the second half of a rename
    deliver_by_rename(other)
    assert await reports.until("mail other") == [*wanted, "mail other"]


@pytest.mark.parametrize("name", ["1.a.b:2,", "1.a.b:2,F", "1.a.b", "1.a.b:2,a"])
async def test_unseen_mail_put_straight_into_cur_is_mail(
    watcher: Watcher, reports: Reports, box: Path, other: Path, name: str
) -> None:
    put(box, "cur", name)
    await expect(reports, other, "mail box")


async def test_a_session_that_selects_the_mailbox_is_nothing(
    watcher: Watcher, reports: Reports, box: Path, other: Path
) -> None:
    mail = put(box, "new", "1.a.b")
    assert await reports.until("mail box") == ["mail box"]
    mail.rename(box / "cur" / "1.a.b:2,")
    await expect(reports, other)


async def test_unread_mail_moved_from_another_watched_mailbox_is_mail(
    watcher: Watcher, reports: Reports, box: Path, other: Path
) -> None:
    mail = put(other, "cur", "1.a.b:2,")
    assert await reports.until("mail other") == ["mail other"]
    mail.rename(box / "cur" / mail.name)
    assert "mail box" in await reports.until("mail box")


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_is_reported_to_who_asked_for_changes(
    watcher: Watcher, reports: Reports, box: Path, other: Path, change: Callable[[Path], None],
    request: pytest.FixtureRequest,
) -> None:
    change(box)
    asked = "changes too" in request.node.name
    await asyncio.sleep(0.3)
    deliver_by_rename(other)
    assert set(await reports.until("mail other")) == {"mail other", *(("change box",) if asked else ())}


async def test_a_change_is_reported_before_the_mail_that_was_read_with_it(
    watcher: Watcher, reports: Reports, box: Path, other: Path, request: pytest.FixtureRequest
) -> None:
    """So that the push for the mail takes it along, and no second one follows."""
    mail = put(box, "cur", "1.a.b:2,S")
    await asyncio.sleep(0.3)
    reports.all.clear()
    deliver_by_rename(other)  # no turn of the loop between these two
    mail.rename(box / "cur" / "1.a.b:2,FS")
    asked = "changes too" in request.node.name
    assert await reports.until("mail other") == [*(("change box",) if asked else ()), "mail other"]


async def test_a_cur_that_was_removed_is_watched_again(
    watcher: Watcher, reports: Reports, box: Path, other: Path
) -> None:
    (box / "cur").rename(box / "old")
    (box / "old").rmdir()
    (box / "cur").mkdir()
    await asyncio.sleep(0.3)
    reports.all.clear()
    put(box, "cur", "2.a.b:2,F")
    await expect(reports, other, "mail box")
