"""The registry as a file that two programs share, and everything that can be wrong with it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.support.values import ACCOUNT_ID, TOPIC, device_token
from xaps_watch import registry
from xaps_watch.model import Mailbox
from xaps_watch.registry import (
    OTHER_TOPIC,
    Note,
    Registry,
    RegistryCorruptError,
    RegistryError,
    WriteNotice,
    topic_file,
)

NOW = 1_700_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "state" / "registry.sqlite3"
    registry.create(file)
    return file


@pytest.fixture
def book(path: Path) -> Iterator[Registry]:
    with Registry(path) as opened:
        yield opened


def register(book: Registry, number: int = 1, *names: str, now: int = NOW, topic: str = TOPIC) -> int:
    mailboxes = [Mailbox(name, f"/vmail/{number}/{name}") for name in names or ("INBOX",)]
    return book.register(f"user{number}", ACCOUNT_ID, device_token(number), mailboxes, topic=topic, now=now)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_it_is_made_for_its_group_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    file = tmp_path / "state" / "registry.sqlite3"
    with umask(mask):
        assert registry.create(file) is True
        assert registry.create(file) is False
        with Registry(file) as opened:
            register(opened)
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in file.parent.iterdir()}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o2770
    assert modes == dict.fromkeys(["registry.sqlite3", "registry.sqlite3-wal", "registry.sqlite3-shm"], 0o660)


def test_an_empty_file_that_a_crash_left_is_completed(tmp_path: Path) -> None:
    file = tmp_path / "registry.sqlite3"
    file.touch()
    assert registry.create(file) is False
    with Registry(file) as opened:
        assert opened.paths() == {}


def test_a_directory_that_is_not_writable_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError, match="cannot be created: Not a directory"):
        registry.create(tmp_path / "file" / "registry.sqlite3")


def test_subscribers_are_those_of_the_path_that_are_not_suspended(book: Registry) -> None:
    first = register(book, 1, "INBOX", "Notes")
    register(book, 2)
    assert [(s.device.id, s.mailbox) for s in book.subscribers(["/vmail/1/Notes"])] == [(first, "Notes")]
    book.write([Note(first, "400 BadDeviceToken", NOW, suspend="400 BadDeviceToken")])
    assert book.subscribers(["/vmail/1/Notes"]) == []


def test_paths_and_names_may_hold_any_bytes(book: Registry) -> None:
    path = os.fsdecode(b"/vmail/\xff\xfe/new")
    book.register("user", ACCOUNT_ID, device_token(1), [Mailbox("Gelöscht", path)], topic=TOPIC, now=NOW)
    assert book.paths() == {path: NOW}
    assert [s.mailbox for s in book.subscribers([path])] == ["Gelöscht"]
    assert book.subscribers(["/vmail/\ufffd"]) == []


def test_registering_again_replaces_the_mailboxes_and_lifts_a_suspension(book: Registry) -> None:
    device_id = register(book, 1, "INBOX", "Notes")
    book.write([Note(device_id, "200", NOW, accepted_at=NOW), Note(device_id, "400 X", NOW, suspend="400 X")])
    assert register(book, 1, "INBOX", now=NOW + 5) == device_id
    device = book.device(device_id)
    assert device is not None
    assert (device.suspended, device.registered_at, device.accepted_at) == (None, NOW + 5, NOW)
    assert [mailbox.name for mailbox in book.mailboxes(device_id)] == ["INBOX"]


def test_an_answer_to_an_old_push_changes_no_newer_registration(book: Registry) -> None:
    device_id = register(book, 1, now=NOW + 5)
    assert book.write([Note(device_id, "410 Unregistered", NOW, remove=True)]) == []
    book.write([Note(device_id, "400 BadDeviceToken", NOW, suspend="400 BadDeviceToken")])
    device = book.device(device_id)
    assert device is not None
    assert device.suspended is None


def test_a_removed_device_takes_its_mailboxes_along(book: Registry) -> None:
    device_id = register(book, 1, "INBOX", "Notes")
    assert book.write([Note(device_id, "410 Unregistered", NOW, remove=True)]) == [device_id]
    assert book.paths() == {}


def test_a_suspension_can_be_taken_back(book: Registry) -> None:
    device_id = register(book)
    book.write([Note(device_id, "400 X", NOW, suspend="400 X")])
    book.write([Note(device_id, "400 X", NOW, resume=True)])
    assert len(book.subscribers(["/vmail/1/INBOX"])) == 1


def test_another_topic_suspends_and_its_return_resumes(book: Registry) -> None:
    old, new = register(book, 1, topic="com.apple.mail.old"), register(book, 2)
    assert book.follow_topics([TOPIC]) == (1, 0)
    assert [(d.id, d.suspended) for d in book.devices()] == [(old, OTHER_TOPIC), (new, None)]
    assert book.follow_topics([TOPIC, "com.apple.mail.old"]) == (0, 1)


def test_registrations_expire(book: Registry) -> None:
    register(book, 1, now=NOW)
    register(book, 2, now=NOW + 1000)
    assert [device.username for device in book.expire(NOW + 1)] == ["user1"]
    assert [device.username for device in book.devices()] == ["user2"]


def test_another_connections_commit_is_noticed_and_ones_own_is_not(path: Path, book: Registry) -> None:
    assert book.changed() is True
    assert book.changed() is False
    register(book)
    assert book.changed() is False
    with Registry(path) as other:
        register(other, 2)
    assert book.changed() is True
    assert {r.path for r in book.registered_since(NOW)} == {"/vmail/1/INBOX", "/vmail/2/INBOX"}


WRITER = """
import sys
from pathlib import Path
from xaps_watch.model import Mailbox
from xaps_watch.registry import Registry
with Registry(Path(sys.argv[1])) as book:
    book.register("late", "A", "ab" * 32, [Mailbox("INBOX", "/late")], topic="t", now=1)
"""


async def test_another_process_is_noticed_at_once_and_silence_costs_nothing(path: Path) -> None:
    woken = asyncio.Event()
    with Registry(path) as opened:
        register(opened)  # from here on the -wal file is there
        notice = WriteNotice(path, woken.set)
        await asyncio.sleep(0.2)
        assert not woken.is_set()
        process = await asyncio.create_subprocess_exec(sys.executable, "-W", "ignore", "-c", WRITER, str(path))
        await asyncio.wait_for(woken.wait(), 30)
        assert await process.wait() == 0
        notice.close()


def test_ten_writers_at_once_all_get_through(path: Path) -> None:
    script = WRITER.replace('"late", "A", "ab" * 32', 'sys.argv[2], "A", "ab" * 32')
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, str(path), f"user{number}"])
        for number in range(10)
    ]
    assert [process.wait(60) for process in processes] == [0] * 10
    with Registry(path) as opened:
        assert len(opened.devices()) == 10


# --- what can be wrong with the file ---------------------------------------------------------------------------------


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="not there; the service makes it at its start"):
        Registry(tmp_path / "registry.sqlite3")


def test_of_another_release(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 7")
    with pytest.raises(RegistryError, match="has schema version 7, this program knows 1; install plugin and daemon"):
        Registry(path)


def test_garbage(tmp_path: Path) -> None:
    file = tmp_path / "registry.sqlite3"
    file.write_bytes(b"\xff" * 8192)
    with pytest.raises(RegistryCorruptError, match="file is not a database"):
        Registry(file)


def test_damaged_in_use_and_moved_aside(path: Path) -> None:
    with Registry(path) as opened:
        for number in range(200):
            register(opened, number)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 40960)
    with pytest.raises(RegistryCorruptError), Registry(path) as opened:
        opened.devices()
    kept = registry.move_aside(path, datetime(2026, 11, 23, 12, 0, tzinfo=timezone.utc))
    assert kept.name == "registry.sqlite3.damaged-20261123T120000"
    assert kept.stat().st_size > 4096
    assert registry.create(path) is True


def test_locked_by_another_program(path: Path) -> None:
    with Registry(path, busy_timeout=0.05) as opened, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryError, match="database is locked; another program holds it"):
            register(opened)
        assert opened.paths() == {}  # readers don't wait for writers
        other.execute("ROLLBACK")
        register(opened)
        assert len(opened.paths()) == 1


def test_replaced(path: Path, book: Registry) -> None:
    assert book.replaced() is False
    path.rename(path.with_suffix(".old"))
    assert book.replaced() is True
    registry.create(path)
    assert book.replaced() is True


# --- the topic's file, which the plugin looks at ----------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_the_topic_stands_in_its_file_too_whatever_the_umask(path: Path, book: Registry, mask: int) -> None:
    file = topic_file(path)
    with umask(mask):
        for topic in (TOPIC, "com.apple.mobilemail.push.b", "", TOPIC):
            book.write(settings={"topic": topic})
            assert (book.settings()["topic"], file.read_text()) == (topic, topic)
            assert stat.S_IMODE(file.stat().st_mode) == 0o640
            assert file.stat().st_gid == path.parent.stat().st_gid
    book.write(settings={"caught_up_to": "1"})
    assert file.read_text() == TOPIC
    assert {found.name for found in path.parent.glob("*-topic*")} == {file.name}


def test_a_link_in_its_place_leads_nowhere(path: Path, book: Registry, tmp_path: Path) -> None:
    """Whoever may write to the registry may write to its directory."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in (topic_file(path), Path(f"{topic_file(path)}.new")):
        name.unlink(missing_ok=True)
        name.symlink_to(victim)
        book.write(settings={"topic": TOPIC})
        assert (victim.read_text(), topic_file(path).read_text()) == ("untouched", TOPIC)
        assert not topic_file(path).is_symlink()


def test_a_topic_that_cannot_be_published_is_told(path: Path, book: Registry) -> None:
    topic_file(path).mkdir()
    with pytest.raises(RegistryError, match=r"registry.sqlite3-topic: cannot be written: .*irectory"):
        book.write(settings={"topic": TOPIC})
    assert not Path(f"{topic_file(path)}.new").exists()
    assert registry.published_topic(path) is None
    topic_file(path).rmdir()
    book.write(settings={"topic": TOPIC})
    assert registry.published_topic(path) == TOPIC


def test_no_phone_is_to_try_while_a_damaged_registry_is_replaced(path: Path, book: Registry) -> None:
    book.write(settings={"topic": TOPIC})
    registry.move_aside(path, datetime(2026, 11, 23, 12, 0, tzinfo=timezone.utc))
    assert not topic_file(path).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own: needs root")
def test_disk_full(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "small", tmp_path], check=True)
    try:
        file = tmp_path / "registry.sqlite3"
        registry.create(file)
        with Registry(file) as opened:
            register(opened)
            (tmp_path / "filler").write_bytes(b"x" * 4096)
            with (tmp_path / "filler").open("ab", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
                while True:
                    filler.write(b"x" * 4096)
            with pytest.raises(RegistryError, match="make room on the disk"):
                for number in range(1000):
                    register(opened, number, *(f"folder {i}" for i in range(100)))
            with pytest.raises(RegistryError, match=r"registry.sqlite3-topic: cannot be written: No space left|full"):
                opened.write(settings={"topic": TOPIC * 100})
            assert registry.published_topic(file) is None
            before = len(opened.devices())
            (tmp_path / "filler").unlink()
            register(opened, 2000)
            assert len(opened.devices()) == before + 1
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
