"""The rules for what happens in a Maildir, agent by agent, fed as the kernel would tell it."""

from __future__ import annotations

import pytest

from xaps_watch.maildir import (
    EVENT_HEADER,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_IGNORED,
    IN_ISDIR,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    Batch,
    EventReader,
)

NEW, CUR, OTHER = 1, 2, 3
Event = tuple[int, int, int, bytes]  # wd, mask, cookie, name


def packed(*events: Event) -> bytes:
    return b"".join(
        EVENT_HEADER.pack(wd, mask, cookie, 64 if name else 0) + (name.ljust(64, b"\0") if name else b"")
        for wd, mask, cookie, name in events
    )


def read(*events: Event, complete: bool = True) -> Batch:
    reader = EventReader(lambda wd, name: complete)
    reader.add_cur(CUR, NEW)
    return reader.feed(packed(*events), 0.0)


@pytest.mark.parametrize(
    ("events", "mail"),
    [
        pytest.param([(NEW, IN_MOVED_TO, 1, b"a")], {NEW}, id="dovecot-lda"),
        pytest.param([(NEW, IN_CREATE, 0, b"a")], {NEW}, id="Postfix"),
        pytest.param([(NEW, IN_CLOSE_WRITE, 0, b"a")], {NEW}, id="cp"),
        pytest.param([(NEW, IN_MOVED_FROM, 1, b".a.x"), (NEW, IN_MOVED_TO, 1, b"a")], {NEW}, id="rsync"),
        pytest.param([(NEW, IN_MOVED_FROM, 1, b"a"), (NEW, IN_MOVED_TO, 1, b"a,U=1")], set(), id="mbsync's UIDs"),
        pytest.param([(NEW, IN_MOVED_FROM, 1, b"a"), (CUR, IN_MOVED_TO, 1, b"a:2,")], set(), id="a session"),
        pytest.param([(OTHER, IN_MOVED_FROM, 1, b"a"), (NEW, IN_MOVED_TO, 1, b"a")], {NEW}, id="another mailbox"),
        pytest.param([(CUR, IN_MOVED_TO, 1, b"a:2,F")], {CUR}, id="Sieve's addflag"),
        pytest.param([(CUR, IN_MOVED_TO, 1, b"a:2,S")], set(), id="read mail copied"),
        pytest.param([(NEW, IN_MOVED_TO, 1, b".a")], set(), id="a dotfile"),
        pytest.param([(NEW, IN_CREATE | IN_ISDIR, 0, b"a")], set(), id="a directory"),
        pytest.param([(NEW, IN_MOVED_TO, 1, b"\xff\xfe")], {NEW}, id="a name that is not UTF-8"),
    ],
)
def test_mail(events: list[Event], mail: set[int]) -> None:
    assert read(*events).mail == mail


def test_a_rename_may_straddle_two_reads() -> None:
    reader = EventReader(lambda wd, name: True)
    assert not reader.feed(packed((NEW, IN_MOVED_FROM, 7, b"a")), 0.0).mail
    assert not reader.feed(packed((NEW, IN_MOVED_TO, 7, b"b")), 0.0).mail


def test_an_empty_file_waits_for_its_writer() -> None:
    reader = EventReader(lambda wd, name: False)
    assert not reader.feed(packed((NEW, IN_CREATE, 0, b"a")), 5.0).mail
    assert reader.writing_since == 5.0
    assert reader.feed(packed((NEW, IN_CLOSE_WRITE, 0, b"a")), 6.0).mail == {NEW}
    assert reader.writing_since is None


def test_what_is_not_about_files() -> None:
    batch = read((-1, IN_Q_OVERFLOW, 0, b""), (NEW, IN_IGNORED, 0, b""))
    assert batch.overflow
    assert batch.ignored == [NEW]
