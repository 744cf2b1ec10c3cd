"""System users, each with a uid of his own, and the daemon: all of them write to one registry."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.dovecot import REGISTRY_GROUP, Dovecot, User
from tests.support.phone import DEVICE_TOKEN
from xaps_watch.registry import Note, Registry, topic_file

USERNAMES = ("one", "two", "three")
MAILBOXES = ("INBOX", "A", "B", "C")

# A transaction that takes as long as one likes: the condition of the trigger is met by one mailbox alone.
SLOW = """
CREATE TRIGGER slow AFTER INSERT ON mailbox WHEN new.name = 'Slow' BEGIN
  DELETE FROM setting WHERE name = (
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000000)
    SELECT 'slow' FROM numbers WHERE n = 0);
END
"""


@pytest.fixture
def dovecot(plugin: Path) -> Iterator[Dovecot]:
    with Dovecot(plugin, users=[User(name, 5001 + number) for number, name in enumerate(USERNAMES)]) as running:
        for username in USERNAMES:
            running.create_mailboxes(username, *MAILBOXES[1:], "Slow")
        yield running


class DaemonAtWork:
    """Reads the registry and writes to it as the daemon does, all the time."""

    def __init__(self, registry: Path) -> None:
        self.registry = registry
        self.rounds = 0
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def _work(self) -> None:
        with Registry(self.registry) as book:
            while not self._stop.wait(0.002):
                book.changed()
                book.paths()
                for device in book.devices():
                    assert {mailbox.name for mailbox in book.mailboxes(device.id)} in (set(MAILBOXES), {"INBOX"})
                book.write([Note(device.id, "200", device.registered_at, accepted_at=1) for device in book.devices()])
                self.rounds += 1

    def __enter__(self) -> DaemonAtWork:
        self._work_done = self._pool.submit(self._work)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._work_done.result()
        self._pool.shutdown()


def register_often(dovecot: Dovecot, username: str, sessions: int, each: int) -> int:
    """How many of the registrations were answered OK."""
    done = 0
    for session in range(sessions):
        with dovecot.phone(username) as phone:
            for number in range(each):
                phone.device_token = f"{(session * each + number) % 20:064x}"
                phone.register(MAILBOXES if number % 2 else ["INBOX"])
                done += 1
    return done


@pytest.mark.timeout(120)
def test_three_uids_a_thousand_times_each_beside_the_daemon(dovecot: Dovecot) -> None:
    assert dovecot.registry is not None
    with DaemonAtWork(dovecot.registry) as daemon, ThreadPoolExecutor(3) as pool:
        done = [pool.submit(register_often, dovecot, username, 20, 50) for username in USERNAMES]
        assert [future.result() for future in done] == [1000, 1000, 1000]
    assert daemon.rounds > 10
    for username in USERNAMES:
        assert len(dovecot.recorded(username)) == 20
    for file in {*dovecot.registry.parent.iterdir()} - {topic_file(dovecot.registry)}:
        assert (file.stat().st_gid, file.stat().st_mode & 0o777) == (REGISTRY_GROUP, 0o660)


def test_a_writer_killed_in_its_transaction_harms_nobody(dovecot: Dovecot) -> None:
    assert dovecot.registry is not None
    dovecot.may_fail = True  # Dovecot logs the kill
    with closing(sqlite3.connect(dovecot.registry)) as connection:
        connection.executescript(SLOW)
    with dovecot.phone("two") as other, Registry(dovecot.registry) as book:
        for _ in range(3):
            with dovecot.phone("one") as phone:
                phone.register(["INBOX", "A"])
                before = dovecot.recorded("one")
                phone.send(b"slow " + phone.request(["INBOX", "Slow"]) + b"\r\n")
                _wait_until_locked(dovecot.registry)
                (imap,) = dovecot.imap_processes("one")
                os.kill(imap, signal.SIGKILL)
                with pytest.raises(ConnectionError):
                    phone.answer("slow")
            other.register(["INBOX", "B"])
            book.write(settings={"caught_up_to": "1"})
            assert dovecot.recorded("one") == before
            assert set(dovecot.recorded("two")[DEVICE_TOKEN]) == {"INBOX", "B"}
            with dovecot.phone("three") as phone:
                assert phone.is_offered_push
                phone.register(["INBOX", "C"])
    with closing(sqlite3.connect(dovecot.registry)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _wait_until_locked(registry: Path) -> None:
    deadline = time.monotonic() + 10
    with closing(sqlite3.connect(registry, timeout=0, isolation_level=None)) as connection:
        while time.monotonic() < deadline:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return
            time.sleep(0.005)
    raise AssertionError("nobody writes")


@pytest.mark.timeout(120)
def test_writers_killed_at_any_moment(dovecot: Dovecot) -> None:
    """The moments spread over the milliseconds that a registration takes."""
    assert dovecot.registry is not None
    dovecot.may_fail = True
    with Registry(dovecot.registry) as book:
        for moment in range(40):
            with dovecot.phone("one") as phone:
                (imap,) = dovecot.imap_processes("one")
                phone.send(b"k " + phone.request(MAILBOXES if moment % 2 else ["INBOX"]) + b"\r\n")
                time.sleep(moment * 0.0002)
                os.kill(imap, signal.SIGKILL)
            with dovecot.phone("two") as phone:
                phone.register(MAILBOXES)
            for device in book.devices("one"):
                assert {mailbox.name for mailbox in book.mailboxes(device.id)} in (set(MAILBOXES), {"INBOX"})
    with closing(sqlite3.connect(dovecot.registry)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
