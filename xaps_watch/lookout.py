"""What a look at a mailbox on disk finds: the blocking half of the watcher, run in threads.

A cold cache, a slow disk or a server of a network filesystem that went away can hold any of these calls for as long as
they like. So none of them is made from the event loop.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from xaps_watch.maildir import is_mail_name, is_unseen

# File times come from the kernel's coarse clock (up to 10 ms behind), and a delivery takes its time between the file's
# ctime and its event: what is this much older than `since` still counts.
SLACK = 2.0

EVERYTHING = float("-inf")  # as `since`: every mail counts
NOTHING = float("inf")  # as `since`: only see whether the directory is the same


@dataclass(frozen=True, slots=True)
class Identity:
    """Which directory it is, whatever its name."""

    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino)


@dataclass(frozen=True, slots=True)
class Same:
    """It is the directory that is known."""

    has_mail: bool


@dataclass(frozen=True, slots=True)
class Found:
    """It is another directory, or the first one: to be watched by these (O_PATH), which the receiver closes."""

    descriptor: int  # of new/
    cur: int  # descriptor of the cur/ beside it; -1 if there is none
    identity: Identity
    cur_changed: float  # unix time


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no such directory, or it can't be reached."""

    error: int  # errno


Answer = Same | Found | Absent


def look(path: str, known: Identity | None, since: float) -> Answer:
    """Is the new/ of mailbox `path` the `known` one, and did mail appear in it after `since` (unix time)?"""
    new = os.fsencode(path) + b"/new"
    try:
        if known is not None and Identity.of(os.stat(new)) == known:
            return Same(has_mail=has_mail_since(path, since))
        return _open(path, new)
    except OSError as error:
        return Absent(error.errno or errno.EIO)


def _open(path: str, new: bytes) -> Found:
    descriptor = os.open(new, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        identity = Identity.of(os.fstat(descriptor))
        cur = _open_cur(path)
        cur_changed = _changed(os.fsencode(path) + b"/cur")
    except BaseException:
        os.close(descriptor)
        raise
    return Found(descriptor, cur, identity, cur_changed)


def _open_cur(path: str) -> int:
    try:
        return os.open(os.fsencode(path) + b"/cur", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1


def _changed(directory: bytes) -> float:
    """When an entry was last added or removed. The ctime, since rsync and cp -a set the mtime back."""
    try:
        return os.stat(directory).st_ctime
    except FileNotFoundError:
        return EVERYTHING


def has_mail_since(path: str, since: float) -> bool:
    """Whether mail appeared after `since` (unix time).

    Also in cur/, since an IMAP session may have moved it on while nobody watched: there, what is unseen counts.
    """
    if since == NOTHING:
        return False
    mailbox = os.fsencode(path)
    oldest = since - SLACK
    return _has_mail(mailbox + b"/new", oldest, is_mail_name) or _has_mail(mailbox + b"/cur", oldest, _is_unseen_mail)


def _is_unseen_mail(name: bytes) -> bool:
    return is_mail_name(name) and is_unseen(name)


def _has_mail(directory: bytes, oldest: float, counts: Callable[[bytes], bool]) -> bool:
    if _changed(directory) <= oldest:
        return False
    return any(status.st_ctime > oldest and status.st_size > 0 for status in _files(directory, counts))


def _files(directory: bytes, counts: Callable[[bytes], bool]) -> Iterator[os.stat_result]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if counts(entry.name):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # taken or removed in between
                if not entry.is_dir():
                    yield status


class Lookout:
    """A thread that works off a queue of calls. A daemon thread, since a dead file server may hold it for ever."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def close(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
