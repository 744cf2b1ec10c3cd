"""The rules for what happens in a Maildir, agent by agent, fed as the kernel would tell it."""

from __future__ import annotations

import pytest

from xaps_watch.maildir import (
    EVENT_HEADER,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_IGNORED,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_OPEN,
    IN_Q_OVERFLOW,
    WRITE_PATIENCE,
    Batch,
    Contents,
    EventReader,
)

NEW, CUR, OTHER = 1, 2, 3
Event = tuple[int, int, int, bytes]  # wd, mask, cookie, name


def packed(*events: Event) -> bytes:
    return b"".join(
        EVENT_HEADER.pack(wd, mask, cookie, 64 if name else 0) + (name.ljust(64, b"\0") if name else b"")
        for wd, mask, cookie, name in events
    )


def read(*events: Event) -> Batch:
    reader = EventReader(lambda wd, name: Contents.COMPLETE)
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
    reader = EventReader(lambda wd, name: Contents.COMPLETE)
    assert not reader.feed(packed((NEW, IN_MOVED_FROM, 7, b"a")), 0.0).mail
    assert not reader.feed(packed((NEW, IN_MOVED_TO, 7, b"b")), 0.0).mail


def test_an_empty_file_waits_for_its_writer() -> None:
    reader = EventReader(lambda wd, name: Contents.NONE)
    assert not reader.feed(packed((NEW, IN_CREATE, 0, b"a")), 5.0).mail
    assert reader.writing_since == 5.0
    assert reader.feed(packed((NEW, IN_CLOSE_WRITE, 0, b"a")), 6.0).mail == {NEW}
    assert reader.writing_since is None


def test_a_file_with_bytes_is_linked_if_nobody_is_told_to_have_opened_it() -> None:
    reader = EventReader(lambda wd, name: Contents.SOME)
    assert not reader.feed(packed((NEW, IN_CREATE, 0, b"linked"), (NEW, IN_CREATE, 0, b"copied")), 5.0).mail
    assert reader.writing_since == 5.0
    assert not reader.feed(packed((NEW, IN_OPEN, 0, b"copied")), 5.0).mail
    assert reader.linked(5.0) == set()
    assert reader.linked(5.1 - WRITE_PATIENCE / 2) == {NEW}
    assert reader.writing_since == 5.0


def test_a_linked_file_that_a_reader_has_opened_is_mail_a_little_later() -> None:
    reader = EventReader(lambda wd, name: Contents.SOME)
    assert not reader.feed(packed((NEW, IN_CREATE, 0, b"a"), (NEW, IN_OPEN, 0, b"a")), 5.0).mail
    assert reader.linked(5.0 + WRITE_PATIENCE) == set()
    assert reader.linked(5.1 + WRITE_PATIENCE) == {NEW}
    assert reader.writing_since is None


def test_a_copy_seen_with_its_first_bytes_is_mail_once_when_it_is_closed() -> None:
    reader = EventReader(lambda wd, name: Contents.SOME)
    assert not reader.feed(packed((NEW, IN_CREATE, 0, b"a"), (NEW, IN_OPEN, 0, b"a")), 5.0).mail
    assert not reader.feed(packed((NEW, IN_MODIFY, 0, b"a")), 6.0).mail
    assert reader.linked(9.0) == set()
    assert reader.writing_since == 5.0
    assert reader.feed(packed((NEW, IN_CLOSE_WRITE, 0, b"a")), 9.0).mail == {NEW}
    assert reader.writing_since is None


def test_a_copy_into_cur_where_nobody_tells_of_its_opening() -> None:
    reader = EventReader(lambda wd, name: Contents.SOME)
    reader.add_cur(CUR, NEW)
    assert not reader.feed(packed((CUR, IN_CREATE, 0, b"a:2,")), 5.0).mail
    assert reader.linked(5.0 + WRITE_PATIENCE / 2) == set()
    assert reader.feed(packed((CUR, IN_MODIFY, 0, b"a:2,"), (CUR, IN_CLOSE_WRITE, 0, b"a:2,")), 9.0).mail == {CUR}
    assert reader.linked(9.0) == set()


def test_a_copy_closed_before_anything_else_is_known_of_it_is_mail_once() -> None:
    reader = EventReader(lambda wd, name: Contents.SOME)
    events = packed((NEW, IN_CREATE, 0, b"a"), (NEW, IN_MODIFY, 0, b"a"), (NEW, IN_CLOSE_WRITE, 0, b"a"))
    assert reader.feed(events, 5.0).mail == {NEW}
    assert reader.linked(9.0) == reader.overdue(9.0) == set()


def test_a_file_taken_by_a_session_while_it_waits_is_mail() -> None:
    reader = EventReader(lambda wd, name: Contents.SOME)
    reader.add_cur(CUR, NEW)
    reader.feed(packed((NEW, IN_CREATE, 0, b"a"), (NEW, IN_OPEN, 0, b"a")), 5.0)
    assert reader.feed(packed((NEW, IN_MOVED_FROM, 1, b"a"), (CUR, IN_MOVED_TO, 1, b"a:2,")), 5.0).mail == {NEW}
    assert reader.linked(9.0) == set()


def test_more_undecided_files_than_are_remembered_are_mail_at_once() -> None:
    reader = EventReader(lambda wd, name: Contents.SOME)
    names = [b"%d" % number for number in range(1025)]
    batches = [reader.feed(packed((NEW, IN_CREATE, 0, name)), 5.0) for name in names]
    assert [bool(batch.mail) for batch in batches] == [False] * 1024 + [True]


def test_what_is_not_about_files() -> None:
    batch = read((-1, IN_Q_OVERFLOW, 0, b""), (NEW, IN_IGNORED, 0, b""))
    assert batch.overflow
    assert batch.ignored == [NEW]
