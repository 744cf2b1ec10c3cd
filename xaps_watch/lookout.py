"""What a look at a mailbox on disk finds: the blocking half of the watcher, run in threads.

A cold cache, a slow disk or a file server that went away can hold any of these calls for as long as they like. So none
of them is made from the event loop.
"""

from __future__ import annotations

import errno
import os
import queue
import re
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from xaps_watch.maildir import flags_in, is_mail_name, is_unseen
from xaps_watch.mounts import DIRECTORY, MountTable, is_remote

EVERYTHING = float("-inf")  # as `since`: every mail counts
NOTHING = float("inf")  # as `since`: only see whether the directory is still the same

# File times come from the kernel's coarse clock (up to 10 ms behind), and a delivery takes its time between the file's
# ctime and its event: what is this much older than `since` still counts. Seconds.
SLACK = 2.0
REMOTE_SLACK = 120.0  # a file server goes by its own clock

_BASE = re.compile(rb"[^,:;!]*")


@dataclass(frozen=True, slots=True)
class Memory:
    """What a polled mailbox held at the last poll: enough to tell what is new whatever the server's clock says."""

    new_changed: int  # ctime, ns, of new/
    cur_changed: int
    unread: bytes  # 64 bits of each name, packed
    fingerprint: int  # of all names with their flags, which a move from new/ to cur/ leaves as it is
    settled: bool  # whether unchanged ctimes mean that nothing happened


NO_MEMORY = Memory(-1, -1, b"", 0, settled=False)


@dataclass(frozen=True, slots=True)
class Request:
    """A look that is to be taken."""

    path: str  # the directory that holds new/ and cur/
    since: float  # unix time; mail that appeared after it is looked for
    known: tuple[int, int] | None = None  # (st_dev, st_ino) of the new/ that is watched or polled
    changed_since: float = NOTHING  # unix time; what has changed after it is opened again all the same
    formerly: int = 0  # st_ino of the new/ that was here at some time, 0 if none
    memory: Memory | None = None  # polled, and this is what was there
    told: frozenset[bytes] = frozenset()  # names that events told of since the last poll
    changes: bool = False  # whether a poll is to find changes, too


@dataclass(frozen=True, slots=True)
class Same:
    """It is the directory that is known."""

    has_mail: bool = False
    has_changes: bool = False
    memory: Memory | None = None


_SAME = Same()


@dataclass(frozen=True, slots=True)
class Found:
    """It is another directory, or the first one. The descriptors (O_PATH) are closed by the receiver."""

    new: int
    cur: int  # -1 if there is none
    parent: int  # the directory that the mailbox lies in; -1 if it can't be opened, or tells nothing
    component: bytes  # what leads to it there
    device: int
    inode: int
    filesystem: str
    brought_mail: bool  # it replaces another directory, and isn't empty

    def close(self) -> None:
        for descriptor in (self.new, self.cur, self.parent):
            if descriptor >= 0:
                os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no such directory, or it can't be reached."""

    error: int  # errno
    where: str = ""  # which directory refuses, if it does
    parent: int = -1  # descriptor of the nearest directory that exists; the receiver closes it
    component: bytes = b""  # what is missing there

    def close(self) -> None:
        if self.parent >= 0:
            os.close(self.parent)


Answer = Same | Found | Absent


def look(request: Request, mounts: MountTable) -> Answer:
    """See whether the mailbox is where it was, and whether it has new mail."""
    try:
        mailbox = os.fsencode(request.path)
        new = mailbox + b"/new"
        if request.known is not None:
            status = os.stat(new)
            if (status.st_dev, status.st_ino) == request.known and not _has_changed(request, mailbox, status):
                return _same(request, mailbox, status)
        return _open(request, mailbox, mounts)
    except OSError as error:
        return _absent(request.path, error.errno or errno.EIO)
    except ValueError:  # a NUL in the path
        return Absent(errno.EINVAL)


def _has_changed(request: Request, mailbox: bytes, new: os.stat_result) -> bool:
    if request.changed_since == NOTHING:
        return False
    try:
        changed = max(new.st_ctime, os.stat(mailbox + b"/cur").st_ctime)
    except FileNotFoundError:
        changed = new.st_ctime
    return changed > request.changed_since - SLACK


def _same(request: Request, mailbox: bytes, new: os.stat_result) -> Same:
    if request.memory is not None:
        return _poll(request, mailbox, request.memory)
    if request.since == NOTHING:
        return _SAME
    oldest = request.since - SLACK
    if _has_mail(mailbox + b"/new", new.st_ctime, oldest, is_mail_name):
        return Same(has_mail=True)
    # An IMAP session may have moved it on while nobody watched; what is unseen there counts.
    cur = mailbox + b"/cur"
    try:
        return Same(has_mail=_has_mail(cur, os.stat(cur).st_ctime, oldest, is_unseen_mail))
    except OSError:
        return _SAME


def is_unseen_mail(name: bytes) -> bool:
    return is_mail_name(name) and is_unseen(name)


def _has_mail(directory: bytes, changed: float, oldest: float, counts: Callable[[bytes], bool]) -> bool:
    """`changed` is the directory's ctime, since rsync and cp -a set the mtime back."""
    if changed <= oldest:
        return False
    for name in _names(directory):
        if counts(name) and (status := _file(directory, name)) and status.st_ctime > oldest and _has_bytes(status):
            return True
    return False


def _names(directory: bytes) -> Iterator[bytes]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name


def _file(directory: bytes, name: bytes) -> os.stat_result | None:
    """None if it was taken away in between."""
    try:
        status = os.lstat(directory + b"/" + name)
    except FileNotFoundError:
        return None
    return status if status.st_mode & 0o170000 != 0o040000 else None


def _has_bytes(status: os.stat_result) -> bool:
    return status.st_size > 0 or status.st_nlink > 1


def _open(request: Request, mailbox: bytes, mounts: MountTable) -> Found:
    new = os.open(mailbox + b"/new", DIRECTORY)
    try:
        status = os.fstat(new)
        filesystem = mounts.filesystem(new, status.st_dev)
        if is_remote(filesystem):
            # Have the server's answer in the cache: inotify_add_watch(2) will ask for it in the loop.
            os.access(f"/proc/self/fd/{new}", os.R_OK, effective_ids=True)
        parent, component = os.path.split(mailbox)
        replaces = request.formerly not in (0, status.st_ino)
        return Found(
            new,
            _open_if_there(mailbox + b"/cur"),
            -1 if is_remote(filesystem) else _open_if_there(parent),
            component,
            status.st_dev,
            status.st_ino,
            filesystem,
            brought_mail=replaces and any(map(is_mail_name, _names(mailbox + b"/new"))),
        )
    except BaseException:
        os.close(new)
        raise


def _open_if_there(directory: bytes) -> int:
    try:
        return os.open(directory, DIRECTORY)
    except OSError:
        return -1


def _absent(path: str, error: int) -> Absent:
    if error == errno.EACCES:
        return Absent(error, _refusing(path + "/new"))
    if error not in (errno.ENOENT, errno.ENOTDIR):
        return Absent(error)
    missing = os.fsencode(path) + b"/new"
    while (parent := os.path.dirname(missing)) not in (missing, b""):
        try:
            descriptor = os.open(parent, DIRECTORY)
        except OSError:
            missing = parent
        else:
            return Absent(error, parent=descriptor, component=os.path.basename(missing))
    return Absent(error)


def _refusing(path: str) -> str:
    """The first directory on the way to `path` that may not be entered."""
    at = path.find("/", 1)
    while at > 0 and os.access(path[:at], os.X_OK, effective_ids=True):
        at = path.find("/", at + 1)
    return path[:at] if at > 0 else path


# Polling: where events don't tell, or not all


def _poll(request: Request, mailbox: bytes, before: Memory) -> Same:
    """See what is in the mailbox that wasn't at the last poll.

    New is a name that wasn't there, in new/ or unseen in cur/. At the first poll, when all names are new, the files'
    times decide. No clock is compared with another's otherwise.
    """
    changed = [_changed_ns(mailbox + b"/new"), _changed_ns(mailbox + b"/cur")]
    same = changed == [before.new_changed, before.cur_changed]
    if same and before.settled:
        return Same(memory=before)
    poll = _Poll(request, before)
    # In this order, so that what a session moves from one to the other meanwhile is seen at least once.
    for directory, counts in ((mailbox + b"/new", is_mail_name), (mailbox + b"/cur", is_unseen_mail)):
        for name in _names(directory):
            poll.take(directory, name, unread=counts(name))
    # Only when the directories stayed as they are from one poll to the next: two changes can fall into one tick of the
    # file system's clock, and a file can be filled without its directory being touched.
    after = poll.memory(*changed, settled=same and not poll.unfinished)
    has_changes = request.changes and before is not NO_MEMORY and poll.fingerprint != before.fingerprint
    return Same(poll.has_mail, has_changes, after)


def _changed_ns(directory: bytes) -> int:
    try:
        return os.stat(directory).st_ctime_ns
    except FileNotFoundError:
        return 0


class _Poll:
    """One pass over the names in a mailbox."""

    def __init__(self, request: Request, before: Memory) -> None:
        self._first = before is NO_MEMORY
        self._oldest = request.since - REMOTE_SLACK
        self._known = set(array("q", before.unread)) | {hash(_base(name)) for name in request.told}
        self._changes = request.changes
        self._unread: set[int] = set()
        self.fingerprint = 0
        self.has_mail = False
        self.unfinished = False

    def take(self, directory: bytes, name: bytes, *, unread: bool) -> None:
        if self._changes and is_mail_name(name):
            self.fingerprint ^= hash((_base(name), flags_in(name)))
        if not unread:
            return
        key = hash(_base(name))
        if key not in self._known:
            status = _file(directory, name)
            if status is None:
                return
            if not _has_bytes(status):
                self.unfinished = True
                return
            self.has_mail |= not self._first or status.st_ctime > self._oldest
        self._unread.add(key)

    def memory(self, new_changed: int, cur_changed: int, *, settled: bool) -> Memory:
        return Memory(new_changed, cur_changed, array("q", self._unread).tobytes(), self.fingerprint, settled)


def _base(name: bytes) -> bytes:
    """What stays of a name when flags and the like change."""
    match = _BASE.match(name)
    return match[0] if match else name


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
