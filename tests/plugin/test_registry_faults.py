"""The registry can't be used: the capability is not offered, a registration is a tagged NO, and the session goes on."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.dovecot import PLUGIN_FILES, REGISTRY_GROUP, Dovecot, User, is_24, make_registry
from tests.support.phone import DEVICE_TOKEN, Phone, RefusedError
from xaps_watch.registry import Registry, topic_file


@pytest.fixture(scope="module")
def patient(plugin: Path) -> Iterator[Dovecot]:
    """Its plugin waits 200 ms for a lock."""
    with Dovecot(plugin, settings={"xaps_busy_timeout": "200 ms"}) as running:
        running.create_mailboxes("alice", "Notes")
        yield running


@pytest.fixture
def dovecot(patient: Dovecot) -> Iterator[Dovecot]:
    """With a fresh registry, in which alice has registered INBOX."""
    assert patient.registry is not None
    shutil.rmtree(patient.registry.parent)
    make_registry(patient.registry.parent)
    with patient.phone() as phone:
        phone.register(["INBOX"])
    yield patient
    patient.registry.parent.chmod(0o2770)


def registry_file(dovecot: Dovecot) -> Path:
    assert dovecot.registry is not None
    return dovecot.registry


def sql(dovecot: Dovecot, script: str) -> None:
    with closing(sqlite3.connect(registry_file(dovecot))) as connection:
        connection.executescript(script)


def remove(dovecot: Dovecot) -> None:
    for file in registry_file(dovecot).parent.iterdir():
        file.unlink()


def garbage(dovecot: Dovecot) -> None:
    remove(dovecot)
    make_file(dovecot, b"This is no database." * 1000)


def make_file(dovecot: Dovecot, content: bytes) -> None:
    registry_file(dovecot).write_bytes(content)
    registry_file(dovecot).chmod(0o660)


def empty(dovecot: Dovecot) -> None:
    remove(dovecot)
    make_file(dovecot, b"")


def damaged(dovecot: Dovecot) -> None:
    sql(dovecot, "PRAGMA wal_checkpoint(TRUNCATE)")
    with registry_file(dovecot).open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3000)


def directory_without_group(dovecot: Dovecot) -> None:
    registry_file(dovecot).parent.chmod(0o2700)


def read_only(dovecot: Dovecot) -> None:
    registry_file(dovecot).chmod(0o440)


def other_group(dovecot: Dovecot) -> None:
    shutil.chown(registry_file(dovecot), 0, 0)


def newer_schema(dovecot: Dovecot) -> None:
    sql(dovecot, "PRAGMA user_version = 2")


def no_topic_file(dovecot: Dovecot) -> None:
    topic_file(registry_file(dovecot)).unlink()


BROKEN: dict[Callable[[Dovecot], None], str] = {  # and what the log says
    remove: "No such file or directory; start xaps-watch of the plugin.s release",
    garbage: "is not a database; move it away",
    empty: "is not a database; move it away",
    directory_without_group: "Permission denied; .*mail_access_groups",
    read_only: "Permission denied; .*mail_access_groups",
    other_group: "Permission denied; .*mail_access_groups",
    newer_schema: "has schema version 2, this plugin knows 1; install plugin and xaps-watch of one release",
    no_topic_file: "registry.sqlite3-topic: No such file or directory; start xaps-watch of the plugin.s release",
}


def no_table(dovecot: Dovecot) -> None:
    sql(dovecot, "DROP TABLE mailbox")


def no_settings_table(dovecot: Dovecot) -> None:
    sql(dovecot, "DROP TABLE setting")


def no_topic_set(dovecot: Dovecot) -> None:
    sql(dovecot, "DELETE FROM setting")


BROKEN_INSIDE: dict[Callable[[Dovecot], None], str] = {  # which only SQLite can see
    damaged: "database disk image is malformed; move it away",
    no_table: "no such table: mailbox; install plugin and xaps-watch of one release",
    no_settings_table: "no such table: setting; install plugin and xaps-watch of one release",
    no_topic_set: "There is no topic yet",
}


@contextmanager
def log_of(dovecot: Dovecot, *, count: int, match: str) -> Iterator[None]:
    """Within it the plugin logs that many lines, each of which matches."""
    before = len(dovecot.log)
    yield
    deadline = time.monotonic() + 5
    while True:  # another process writes the log
        lines = [line for line in dovecot.log[before:].splitlines() if "imap-xaps" in line]
        if len(lines) >= count or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    assert len(lines) == count, lines
    for line in lines:
        assert re.search(match, line), line
        assert DEVICE_TOKEN not in line


def refused(phone: Phone) -> None:
    with pytest.raises(RefusedError, match=r"NO \[UNAVAILABLE\]"):
        phone.register(["INBOX", "Notes"])
    assert phone.is_alive()


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__)
def test_broken(dovecot: Dovecot, break_it: Callable[[Dovecot], None]) -> None:
    with dovecot.phone() as phone:
        break_it(dovecot)
        with log_of(dovecot, count=1, match=BROKEN[break_it]):
            refused(phone)
    with log_of(dovecot, count=1, match=BROKEN[break_it]), dovecot.phone() as phone:
        assert not phone.is_offered_push
        assert phone.is_alive()


@pytest.mark.parametrize("break_it", BROKEN_INSIDE, ids=lambda function: function.__name__)
def test_broken_where_a_login_does_not_look(dovecot: Dovecot, break_it: Callable[[Dovecot], None]) -> None:
    break_it(dovecot)
    with log_of(dovecot, count=1, match=BROKEN_INSIDE[break_it]), dovecot.phone() as phone:
        assert phone.is_offered_push
        refused(phone)
    if break_it is not damaged:
        with closing(sqlite3.connect(registry_file(dovecot))) as connection:
            assert connection.execute("SELECT count(*) FROM device").fetchone() == (1,)


def test_a_newer_schema_that_is_still_in_the_wal(dovecot: Dovecot) -> None:
    with Registry(registry_file(dovecot)):  # so that the next to close is not the last, which would checkpoint
        newer_schema(dovecot)
        with log_of(dovecot, count=1, match="has schema version 2; install plugin"), dovecot.phone() as phone:
            refused(phone)


def test_no_topic(dovecot: Dovecot) -> None:
    with Registry(registry_file(dovecot)) as daemon:
        with dovecot.phone() as phone:
            daemon.write(settings={"topic": ""})
            with log_of(dovecot, count=1, match="no topic yet"):
                refused(phone)
        with log_of(dovecot, count=0, match=""), dovecot.phone() as phone:  # as usual before there is a certificate
            assert not phone.is_offered_push
        assert set(dovecot.recorded()[DEVICE_TOKEN]) == {"INBOX"}
        daemon.write(settings={"topic": "com.apple.mobilemail.push.b"})
    with dovecot.phone() as phone:
        assert phone.is_offered_push
        assert phone.register().topic == "com.apple.mobilemail.push.b"


def test_a_topic_with_quotes_and_line_ends_breaks_no_line(dovecot: Dovecot) -> None:
    sql(dovecot, "UPDATE setting SET value = 'a\"\\b' || char(13, 10) || 'x NO'")
    with dovecot.phone() as phone:
        assert phone.register().topic == 'a"\\bx NO'
        assert phone.is_alive()


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_writer_delays_no_login_and_is_waited_for(dovecot: Dovecot) -> None:
    with closing(sqlite3.connect(registry_file(dovecot), isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE device SET outcome = '200'")
        with dovecot.phone() as phone:
            assert phone.is_offered_push
            with log_of(dovecot, count=1, match="database is locked; find with fuser"):
                refused(phone)
            tag = phone.next_tag()
            phone.send(tag.encode() + b" " + phone.request(["INBOX", "Notes"]) + b"\r\n")
            threading.Timer(0.05, writer.execute, ["COMMIT"]).start()
            assert phone.registered(phone.answer(tag)).mailboxes == ("INBOX", "Notes")


def test_one_who_holds_the_file_for_himself(dovecot: Dovecot) -> None:
    with closing(sqlite3.connect(registry_file(dovecot), isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with log_of(dovecot, count=1, match="locked"), dovecot.phone() as phone:  # the login waits for nobody
            refused(phone)
    with dovecot.phone() as phone:
        phone.register()


def test_the_plugin_waits_for_a_reader_as_little_as_a_reader_for_it(dovecot: Dovecot) -> None:
    with closing(sqlite3.connect(registry_file(dovecot), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM mailbox").fetchone() == (1,)
        with dovecot.phone() as phone:
            phone.register(["INBOX", "Notes"])
        assert reader.execute("SELECT count(*) FROM mailbox").fetchone() == (1,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM mailbox").fetchone() == (2,)


# --- files ------------------------------------------------------------------------------------------------------------


def test_without_the_daemon_the_files_of_the_first_user_serve_all(dovecot: Dovecot) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{registry_file(dovecot)}{suffix}").unlink(missing_ok=True)
    for username in ("alice", "bob"):
        with dovecot.phone(username) as phone:
            assert phone.is_offered_push
            phone.register()
    for file in {*registry_file(dovecot).parent.iterdir()} - {topic_file(registry_file(dovecot))}:
        assert (file.stat().st_gid, file.stat().st_mode & 0o777) == (REGISTRY_GROUP, 0o660)


def test_a_directory_without_setgid_is_told(dovecot: Dovecot) -> None:
    sql(dovecot, "PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("-wal", "-shm"):
        Path(f"{registry_file(dovecot)}{suffix}").unlink(missing_ok=True)
    registry_file(dovecot).parent.chmod(0o770)
    with dovecot.phone() as phone:
        phone.register()  # alice's are the -wal and -shm now, and of her group
    with log_of(dovecot, count=1, match="2770"), dovecot.phone("bob") as phone:
        assert not phone.is_offered_push
    with log_of(dovecot, count=2, match="2770"), dovecot.phone("bob") as phone:
        refused(phone)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """200 KB, in a place that all users can reach."""
    directory = Path(tempfile.mkdtemp(prefix="small-disk-", dir="/tmp"))
    directory.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k,mode=755", "xaps-watch-tests", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)
    directory.rmdir()


def test_a_full_disk(plugin: Path, small_disk: Path) -> None:
    file = make_registry(small_disk / "registry")
    with Dovecot(plugin, registry=file) as dovecot:
        dovecot.create_mailboxes("alice", "Notes")
        with dovecot.phone() as phone:
            phone.register(["INBOX"])
            filling = small_disk / "filling"
            with filling.open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
                while True:
                    filler.write(bytes(512))
            with log_of(dovecot, count=1, match="see whether the disk is full"):
                for number in range(100):  # until the room that the -wal has already is used up
                    phone.device_token = f"{number:064x}"
                    answer = phone.command(phone.request(["INBOX", "Notes"]))
                    if answer.status != "OK":
                        break
            assert answer.text.startswith("[UNAVAILABLE]")
            assert phone.is_alive()
            half_written = [names for names in dovecot.recorded().values() if len(names) != 2]
            assert half_written == [{"INBOX": dovecot.maildir()}]  # the first
            filling.unlink()
            phone.register(["INBOX", "Notes"])
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_module_for_the_registry_is_gone_for_a_while(dovecot: Dovecot) -> None:
    module = dovecot.directory / "modules" / PLUGIN_FILES[1]
    aside = module.with_suffix(".aside")
    with dovecot.phone() as phone:
        module.rename(aside)
        try:
            with log_of(dovecot, count=1, match=f"{module.name}: cannot open .*make install again"):
                refused(phone)
        finally:
            aside.rename(module)
        phone.register(["INBOX", "Notes"])


# --- users in a chroot ------------------------------------------------------------------------------------------------


def test_users_in_a_chroot_are_refused(plain_plugin: Path) -> None:
    users = [User("caged", extra="userdb_chroot=DIRECTORY/home/caged userdb_home=/"), User("free")]
    config = "valid_chroot_dirs = DIRECTORY\n"
    with Dovecot(plain_plugin, users=users, config=config) as dovecot:
        with log_of(dovecot, count=1, match="in a chroot"), dovecot.phone("caged") as phone:
            assert not phone.is_offered_push
        with log_of(dovecot, count=2, match="in a chroot"), dovecot.phone("caged") as phone:
            refused(phone)
        with dovecot.phone("free") as phone:
            phone.register()
        assert dovecot.recorded("caged") == {}


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_wrong_setting_costs_no_session(plugin: Path) -> None:
    dovecot = Dovecot(plugin, settings={"xaps_busy_timeout": "soon"})
    if is_24():  # it reads all settings before it starts
        with pytest.raises(AssertionError, match="xaps_busy_timeout"), dovecot:
            pass
        return
    with dovecot:
        with log_of(dovecot, count=1, match=r"xaps_busy_timeout: .*soon"), dovecot.phone() as phone:
            assert not phone.is_offered_push
        with dovecot.phone() as phone:
            refused(phone)


def test_a_registry_that_is_named_by_no_whole_path_costs_no_session(plugin: Path) -> None:
    with Dovecot(plugin, settings={"xaps_registry": "registry.sqlite3"}) as dovecot:
        with log_of(dovecot, count=1, match="registry.sqlite3 is not an absolute path"), dovecot.phone() as phone:
            assert not phone.is_offered_push
        with log_of(dovecot, count=2, match="registry.sqlite3 is not an absolute path"), dovecot.phone() as phone:
            refused(phone)


@pytest.mark.parametrize(
    ("capability", "offered"),
    [
        ("imap_capability = IMAP4rev1 IDLE", False),
        ("imap_capability {\n    XFOO = yes\n  }" if is_24() else "imap_capability = +XFOO", True),
    ],
)
def test_an_explicit_imap_capability_hides_it(plugin: Path, capability: str, offered: bool) -> None:
    config = f"protocol imap {{\n  {capability}\n}}\n"
    with Dovecot(plugin, config=config) as dovecot, dovecot.phone() as phone:
        assert phone.is_offered_push is offered
