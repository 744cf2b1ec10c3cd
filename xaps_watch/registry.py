"""The registry: the SQLite file shared with the Dovecot plugin. The only module that speaks SQL.

SQLite's own exceptions become RegistryError here, and go no further.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path

from xaps_watch.inotify import Inotify, WatchError
from xaps_watch.maildir import IN_CREATE, IN_DELETE, IN_MODIFY, IN_MOVED_TO
from xaps_watch.model import Device, Mailbox, XapsError
from xaps_watch.mounts import DIRECTORY

SCHEMA_VERSION = 1
DIRECTORY_MODE = 0o2770  # setgid: -wal and -shm must get the group, whichever user's imap process makes them
FILE_MODE = 0o660
TOPIC_MODE = 0o640

BUSY_TIMEOUT = 5.0  # seconds; the plugin's transactions take milliseconds

OTHER_TOPIC = "registered for another topic; the phone learns the new one when it renews"
"""The reason of a suspension."""

# What SQLite says of a file that is not, or no longer, a database (SQLITE_CORRUPT, SQLITE_NOTADB). Messages, since
# Python tells the result code only from 3.11 on.
_CORRUPT = ("malformed", "not a database")
_MENDS = {
    "locked": "another program holds it; it is tried again",
    "readonly": "the service's user must own it or be in its group, and the file system must be writable",
    "full": "make room on the disk",
    "unable to open": "check that the directory is there and that the service's user may write to it",
}

_DEVICE_COLUMNS = (
    "device.id, username, account_id, device_token, topic, version, registered_at, suspended, accepted_at, outcome"
)

_REGISTER = (
    "INSERT INTO device (username, account_id, device_token, subtopic, topic, version, registered_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (username, account_id, device_token) DO UPDATE SET subtopic = excluded.subtopic,"
    " topic = excluded.topic, version = excluded.version, registered_at = excluded.registered_at, suspended = NULL"
)


class RegistryError(XapsError):
    """The registry can't be used now: the message names the file and the mend. It may be usable again later."""


class RegistryVersionError(RegistryError):
    """The file is another release's."""


class RegistryCorruptError(RegistryError):
    """The file is damaged, or no database: only replacing it helps."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A device that wants to know of mail in a mailbox."""

    device: Device
    mailbox: str  # its name, as echoed


@dataclass(frozen=True, slots=True)
class Registered:
    """A mailbox of a registration made lately."""

    path: str
    registered_at: int  # unix time, ms


@dataclass(frozen=True, slots=True)
class Census:
    """How many are registered."""

    devices: int
    suspended: int  # of these devices
    users: int


@dataclass(frozen=True, slots=True)
class Note:
    """What an outcome means for the registration of a device, to be written down."""

    device_id: int
    outcome: str
    registered_at: int  # of the registration that was pushed to: a newer one is left alone
    accepted_at: int | None = None  # unix time, ms, of a 200
    suspend: str | None = None  # why
    resume: bool = False  # take a suspension back
    remove: bool = False


def create(path: Path) -> bool:
    """Make the file and its schema if it isn't there; True if it was made. Raises RegistryError."""
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            path.parent.chmod(DIRECTORY_MODE)  # mkdir's own mode is subject to the umask
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE_MODE))
        path.chmod(FILE_MODE)
    except FileExistsError:
        made = False
    except OSError as error:
        raise RegistryError(f"{path}: cannot be created: {error.strerror}") from error
    else:
        made = True
    with _translated(path):
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            # An empty file is what a crash between the two steps leaves behind.
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                schema = resources.files("xaps_watch").joinpath("schema.sql").read_text(encoding="utf-8")
                for statement in _statements(schema):
                    connection.execute(statement)
            connection.execute("COMMIT")
        finally:
            connection.close()
    return made


def _statements(script: str) -> Iterator[str]:
    """The statements of an SQL script, one by one: executescript() would commit the transaction that holds them."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def topic_file(path: Path) -> Path:
    """Where the topic stands beside the registry at `path`, for the plugin to see at a login; empty if there is none.

    The setting "topic" decides. This file saves each login from loading SQLite, which would make it a fifth slower.
    """
    return path.with_name(f"{path.name}-topic")


def published_topic(path: Path) -> str | None:
    """What the plugin sees there; None if the file can't be read."""
    try:
        return topic_file(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _publish(path: Path, topic: str) -> None:
    """Write the topic file, at once. Raises RegistryError."""
    file = topic_file(path)
    fresh = file.with_name(f"{file.name}.new")
    try:
        fresh.unlink(missing_ok=True)  # a crash left it, or somebody who may write to the directory put it there
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, TOPIC_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, TOPIC_MODE)  # whatever the umask
            stream.write(topic)
        fresh.replace(file)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise RegistryError(f"{file}: cannot be written: {error.strerror}") from error


def move_aside(path: Path, now: datetime) -> Path:
    """Rename a damaged registry, with what belongs to it; its new name. Raises RegistryError."""
    kept = path.with_name(f"{path.name}.damaged-{now:%Y%m%dT%H%M%S}")
    try:
        topic_file(path).unlink(missing_ok=True)  # no phone is to try before the new one has its topic
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                Path(f"{path}{suffix}").rename(f"{kept}{suffix}")
    except OSError as error:
        raise RegistryError(f"{path}: damaged, and cannot be renamed: {error.strerror}") from error
    return kept


class Registry:
    """One connection to the registry, for one thread at a time. All methods raise RegistryError."""

    def __init__(self, path: Path, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        """`busy_timeout`: seconds to wait for another's lock. A reader never needs one, but while SQLite recovers."""
        self.path = path
        with _translated(path):
            if not path.exists():
                raise RegistryError(f"{path}: not there; the service makes it at its start")
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=busy_timeout,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                # Paths and names may hold bytes that aren't UTF-8.
                self._db.text_factory = os.fsdecode
                self._db.execute("PRAGMA foreign_keys = ON")
                self._db.execute("PRAGMA synchronous = NORMAL")
                found = self._db.execute("PRAGMA user_version").fetchone()[0]
                if found != SCHEMA_VERSION:
                    raise RegistryVersionError(
                        f"{path}: has schema version {found}, this program knows {SCHEMA_VERSION};"
                        " install plugin and daemon of one release"
                    )
                self._identity = _identity(path)
                self._data_version = -1
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        with _translated(self.path):
            self._db.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Look for damage, as far as that is quickly done. Raises RegistryCorruptError."""
        found = self._rows("PRAGMA quick_check(1)")
        if found != [("ok",)]:
            raise RegistryCorruptError(f"{self.path}: damaged: {found[0][0]}")

    # --- what others wrote -------------------------------------------------------------------------------------------

    def replaced(self) -> bool:
        """Whether the file was removed or replaced, so that this connection speaks to one that nobody else sees."""
        return _identity(self.path) != self._identity

    def changed(self) -> bool:
        """Whether another connection has written since the last call; True at the first call."""
        with _translated(self.path):
            version = self._db.execute("PRAGMA data_version").fetchone()[0]
        changed: bool = version != self._data_version
        self._data_version = version
        return changed

    def registered_since(self, since: int) -> list[Registered]:
        """The mailboxes of all registrations made at or after `since` (unix time, ms)."""
        rows = self._rows(
            "SELECT path, registered_at FROM device JOIN mailbox ON device_id = device.id WHERE registered_at >= ?",
            since,
        )
        return [Registered(*row) for row in rows]

    def newest(self) -> int:
        """When (unix time, ms) the newest registration was made; 0 while there is none."""
        ((newest,),) = self._rows("SELECT coalesce(max(registered_at), 0) FROM device")
        return int(newest)

    def paths(self) -> dict[str, int]:
        """The directories of all registered mailboxes, and when the first of those registrations was made (ms)."""
        statement = "SELECT path, min(registered_at) FROM mailbox JOIN device ON device.id = device_id GROUP BY path"
        with _translated(self.path):
            # Row by row, so that the event loop's thread gets its turn in between.
            return {path: registered_at for path, registered_at in self._db.execute(statement)}  # noqa: C416

    # --- who is to be pushed to --------------------------------------------------------------------------------------

    def subscribers(self, paths: Collection[str]) -> list[Subscriber]:
        """The devices that registered a mailbox in one of these directories, and are not suspended.

        All at once, since a statement costs three times as much as what it finds for one of them; and with all that a
        push needs, which mostly goes at once."""
        places = ",".join(["CAST(? AS TEXT)"] * len(paths))
        rows = self._rows(
            f"SELECT name, {_DEVICE_COLUMNS} FROM mailbox JOIN device ON device.id = device_id"
            f" WHERE path IN ({places}) AND suspended IS NULL",
            *map(os.fsencode, paths),
        )
        return [Subscriber(Device(*columns), name) for name, *columns in rows]

    def device(self, device_id: int) -> Device | None:
        rows = self._rows(f"SELECT {_DEVICE_COLUMNS} FROM device WHERE id = ?", device_id)
        return next((Device(*row) for row in rows), None)

    def registrations(self, device_ids: Collection[int]) -> dict[int, tuple[Device, frozenset[str]]]:
        """Those of these devices that there are, with the names of their mailboxes."""
        rows = self._rows(
            f"SELECT {_DEVICE_COLUMNS}, (SELECT group_concat(name, char(0)) FROM mailbox WHERE device_id = device.id)"
            f" FROM device WHERE id IN ({','.join('?' * len(device_ids))})",
            *device_ids,
        )
        return {
            columns[0]: (Device(*columns), frozenset(names.split("\0") if names is not None else ()))
            for *columns, names in rows
        }

    def mailboxes(self, device_id: int) -> list[Mailbox]:
        rows = self._rows("SELECT name, path FROM mailbox WHERE device_id = ? ORDER BY name", device_id)
        return [Mailbox(*row) for row in rows]

    def devices(self, username: str | None = None) -> list[Device]:
        rows = self._rows(
            f"SELECT {_DEVICE_COLUMNS} FROM device WHERE username = coalesce(?, username)"
            " ORDER BY username, registered_at",
            username,
        )
        return [Device(*row) for row in rows]

    def usernames(self) -> list[str]:
        return [username for (username,) in self._rows("SELECT DISTINCT username FROM device ORDER BY username")]

    def census(self) -> Census:
        (row,) = self._rows("SELECT count(*), count(suspended), count(DISTINCT username) FROM device")
        return Census(*row)

    # --- what the daemon writes down ---------------------------------------------------------------------------------

    def settings(self) -> dict[str, str]:
        return dict(self._rows("SELECT name, value FROM setting"))

    def write(self, notes: Iterable[Note] = (), settings: Mapping[str, str] = {}) -> list[int]:
        """Write all of it down in one transaction, and the topic into its file. Returns the ids of the devices removed.

        A fault may leave the topic's file as it was, with all the rest written: write it again.
        """
        removed = []
        topic = settings.get("topic")
        if topic == "":
            _publish(self.path, topic)  # first, so that no phone tries what would be refused
        with self._transaction():
            for note in notes:
                if note.remove:
                    done = self._db.execute(
                        "DELETE FROM device WHERE id = ? AND registered_at <= ?", (note.device_id, note.registered_at)
                    )
                    if done.rowcount:
                        removed.append(note.device_id)
                    continue
                self._db.execute(
                    "UPDATE device SET outcome = ?, accepted_at = coalesce(?, accepted_at),"
                    " suspended = CASE WHEN ? THEN NULL WHEN registered_at <= ? THEN coalesce(?, suspended)"
                    " ELSE suspended END WHERE id = ?",
                    (
                        note.outcome,
                        note.accepted_at,
                        note.resume,
                        note.registered_at,
                        note.suspend,
                        note.device_id,
                    ),
                )
            self._db.executemany(
                "INSERT INTO setting VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                settings.items(),
            )
        if topic:
            _publish(self.path, topic)
        return removed

    def follow_topics(self, topics: Sequence[str]) -> tuple[int, int]:
        """Suspend the registrations made for other topics, until the phones renew them; resume those that fit again.

        Returns how many were suspended and how many resumed.
        """
        with self._transaction():
            suspended = self._db.execute(
                "UPDATE device SET suspended = ?"
                " WHERE topic NOT IN (SELECT value FROM json_each(?)) AND suspended IS NULL",
                (OTHER_TOPIC, json.dumps(topics)),
            ).rowcount
            resumed = self._db.execute(
                "UPDATE device SET suspended = NULL"
                " WHERE topic IN (SELECT value FROM json_each(?)) AND suspended = ?",
                (json.dumps(topics), OTHER_TOPIC),
            ).rowcount
        return suspended, resumed

    def expire(self, before: int) -> list[Device]:
        """Remove and return the registrations last renewed before `before` (unix time, ms)."""
        with self._transaction():
            rows = self._db.execute(
                f"SELECT {_DEVICE_COLUMNS} FROM device WHERE registered_at < ?",
                (before,),
            ).fetchall()
            self._db.execute("DELETE FROM device WHERE registered_at < ?", (before,))
        return [Device(*row) for row in rows]

    def forget(self, device_ids: Iterable[int]) -> int:
        """Remove these registrations; how many there were."""
        with self._transaction():
            return sum(self._db.execute("DELETE FROM device WHERE id = ?", (i,)).rowcount for i in device_ids)

    def register(
        self,
        username: str,
        account_id: str,
        token: str,
        mailboxes: Iterable[Mailbox],
        *,
        topic: str,
        now: int,
        subtopic: str = "com.apple.mobilemail",
    ) -> int:
        """Record a registration as the plugin does (for the demo, and for tests); its id."""
        with self._transaction():
            registration = (username, account_id.upper(), token.lower())
            self._db.execute(_REGISTER, (*registration, subtopic, topic, 2, now))
            return self._put_mailboxes(registration, mailboxes)

    def adopt(
        self,
        username: str,
        account_id: str,
        token: str,
        mailboxes: Iterable[Mailbox],
        *,
        topic: str,
        version: int,
        registered_at: int,
    ) -> bool:
        """Record a registration that another program took at `registered_at` (unix time, ms).

        False, and nothing is changed, where there is one made at that time or later.
        """
        with self._transaction():
            registration = (username, account_id.upper(), token.lower())
            adopted = self._db.execute(
                f"{_REGISTER} WHERE excluded.registered_at > device.registered_at",
                (*registration, "com.apple.mobilemail", topic, version, registered_at),
            ).rowcount
            if adopted:
                self._put_mailboxes(registration, mailboxes)
        return bool(adopted)

    def _put_mailboxes(self, registration: tuple[str, str, str], mailboxes: Iterable[Mailbox]) -> int:
        """Make these the mailboxes of the device with this user, account and token; its id."""
        # Not RETURNING, which only SQLite ≥ 3.35 knows: Debian 11 has 3.34.
        ((device_id,),) = self._db.execute(
            "SELECT id FROM device WHERE (username, account_id, device_token) = (?, ?, ?)", registration
        ).fetchall()
        self._db.execute("DELETE FROM mailbox WHERE device_id = ?", (device_id,))
        self._db.executemany(
            "INSERT INTO mailbox VALUES (?, ?, CAST(? AS TEXT))",
            [(device_id, mailbox.name, os.fsencode(mailbox.path)) for mailbox in mailboxes],
        )
        return int(device_id)

    # --- how it is done ----------------------------------------------------------------------------------------------

    def _rows(self, sql: str, *parameters: object) -> list[tuple]:  # type: ignore[type-arg]
        try:  # not by _translated: at each delivery a context manager costs as much as the statement
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _translation(self.path, error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _translated(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _translation(path, error) from error


def _translation(path: Path, error: sqlite3.Error) -> RegistryError:
    message = str(error)
    if any(sign in message for sign in _CORRUPT):
        return RegistryCorruptError(f"{path}: {message}")
    mend = next((mend for sign, mend in _MENDS.items() if sign in message), None)
    return RegistryError(f"{path}: {message}" + (f"; {mend}" if mend else ""))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class WriteNotice:
    """Calls `on_write` (in the running loop) soon after any process wrote to the registry, or replaced it.

    inotify on its directory: commits are write()s to the -wal file. Nothing is done while nobody writes.
    Raises RegistryError where inotify can't be had.
    """

    # Several writes come with one commit; phones register one mailbox list at a time.
    GATHER = 0.02  # seconds

    def __init__(self, path: Path, on_write: Callable[[], None]) -> None:
        self._on_write = on_write
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._inotify = Inotify()
        except WatchError as error:
            raise RegistryError(f"{path}: {error}") from error
        try:
            directory = os.open(path.parent, DIRECTORY)
            try:
                self._inotify.add(directory, IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_DELETE)
            finally:
                os.close(directory)
        except OSError as error:
            self._inotify.close()
            raise RegistryError(f"{path.parent}: can't be watched; raise fs.inotify.max_user_watches") from error
        self._loop.add_reader(self._inotify.fileno(), self._readable)

    def _readable(self) -> None:
        self._inotify.read()  # whichever file it was: a look at the registry costs less
        if self._timer is None:
            self._timer = self._loop.call_later(self.GATHER, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._on_write()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._inotify.fileno())
        self._inotify.close()
