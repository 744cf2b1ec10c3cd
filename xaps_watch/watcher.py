"""The watch set: which mailboxes are watched, and in which of them mail appeared.

inotify's descriptor is read in the event loop, with bounded reads. pyinotify's WatchManager places the watches; its
Notifier isn't used: it takes about 30 µs an event, the whole queue in one callback, and loses a batch on one file name
that isn't UTF-8.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import heapq
import logging
import os
import struct
import termios
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import pyinotify

from xaps_watch.lookout import EVERYTHING, NOTHING, SLACK, Answer, Found, Identity, Lookout, Same, look
from xaps_watch.maildir import CHANGE_MASK, LARGEST_EVENT, MAIL_MASK, Batch, EventReader
from xaps_watch.model import XapsError

log = logging.getLogger(__name__)
pyinotify.log.disabled = True  # it prints each failure; the lines below say what it means

_READ_SIZE = 64 * 1024  # about 800 events, 1 ms of work
_RENAME_PATIENCE = 0.1  # seconds; the two halves of a rename lie a few events apart
_LOOKS_AT_ONCE = 64  # descriptors open at a time, and 2 ms of the loop when all are to be watched


class WatchError(XapsError):
    """inotify can't be used at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often the watcher looks where no event would tell. Seconds."""

    verify_interval: float = 10.0  # that each path still leads to the directory watched; longer with many mailboxes
    retry_first: float = 0.1  # for what is missing; doubled each time
    retry_last: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherStatus:
    """What the watcher does now, and has done since its start."""

    mailboxes: int
    watched: int
    polled: int
    missing: int
    waiting: int  # looks that are still to be done
    events: int
    overflows: int
    looks: int


class _Mailbox:
    """What is kept for each path."""

    __slots__ = ("cur", "delay", "error", "identity", "path", "since", "wd")

    def __init__(self, path: str, since: float) -> None:
        self.path = path
        self.since = since  # of the look that is to be done or being done, or of the time when it went missing
        self.wd = 0  # of new/; 0 while there is none
        self.cur = 0  # of cur/, likewise
        self.identity: Identity | None = None
        self.error = 0  # errno, while it can't be watched
        self.delay = 0.0  # until the next try


class Watcher:
    """The watch set. Calls `on_delivery(paths)` from the event loop with the mailboxes in which mail appeared."""

    def __init__(
        self,
        on_delivery: Callable[[Collection[str]], None],
        *,
        on_change: Callable[[Collection[str]], None] | None = None,
        poll_interval: float = 30.0,
        time: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        pace: Pace = Pace(),
    ) -> None:
        self._on_delivery = on_delivery
        self._on_change = on_change
        self._poll_interval = poll_interval
        self._time = time
        self._monotonic = monotonic
        self._pace = pace
        self._mailboxes: dict[str, _Mailbox] = {}
        self._by_wd: dict[int, list[_Mailbox]] = {}
        self._reader = EventReader(self._is_complete)
        self._to_look: dict[str, None] = {}  # in order
        self._looking: dict[str, float] = {}  # in the thread's hands, and since when
        self._retries: list[tuple[float, str]] = []  # monotonic; a heap
        self._verify: list[str] = []  # what is left of the present round
        self._settled: list[asyncio.Future[None]] = []
        self._rescan_again = False
        self._overflowed = False
        self._events = self._overflows = self._looks = 0

    # Life

    def start(self) -> None:
        """Begin, in a running loop. Raises WatchError when inotify can't be had."""
        self._loop = asyncio.get_running_loop()
        self._manager = self._open_inotify()
        self._fd: int = self._manager.get_fd()
        os.set_blocking(self._fd, False)
        os.set_inheritable(self._fd, False)
        self._drained_at = self._time()
        self._lookout = Lookout("xaps-watch-lookout")
        self._loop.add_reader(self._fd, self._on_readable)
        self._timer: asyncio.TimerHandle | None = None
        self._renames_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._pump()
        self._set_timer()

    def close(self) -> None:
        """Stop watching. What is still in the queue isn't reported: `caught_up_to` doesn't cover it."""
        self._closed = True
        for timer in (self._timer, self._renames_timer):
            if timer is not None:
                timer.cancel()
        self._lookout.close()
        self._loop.remove_reader(self._fd)
        self._manager.close()
        self._release_settled()

    def _open_inotify(self) -> pyinotify.WatchManager:
        try:
            return pyinotify.WatchManager()
        except (OSError, pyinotify.InotifyBindingNotFoundError) as error:
            if ctypes.get_errno() == errno.EMFILE:
                raise WatchError(
                    "inotify: this user has too many instances open (or files: ulimit -n); "
                    "raise the sysctl fs.inotify.max_user_instances"
                ) from error
            raise WatchError(f"inotify can't be used: {error}") from error

    # The set

    def watch(self, path: str, since: float) -> None:
        """Watch the mailbox whose new/ and cur/ are in `path`; report it if mail appeared after `since` (unix time)."""
        mailbox = self._mailboxes.get(path)
        if mailbox is None:
            mailbox = self._mailboxes[path] = _Mailbox(path, since)
            self._enqueue(mailbox, since)
        else:
            self._enqueue(mailbox, NOTHING if mailbox.wd else since)

    def unwatch(self, path: str) -> None:
        """Forget the mailbox."""
        mailbox = self._mailboxes.pop(path, None)
        if mailbox is not None:
            self._detach(mailbox)

    def rescan(self, since: float) -> None:
        """Report every mailbox in which mail appeared after `since` (unix time)."""
        for mailbox in self._mailboxes.values():
            self._enqueue(mailbox, since)

    @property
    def paths(self) -> Collection[str]:
        return self._mailboxes.keys()

    def __contains__(self, path: object) -> bool:
        return path in self._mailboxes

    def __len__(self) -> int:
        return len(self._mailboxes)

    async def settled(self) -> None:
        """Wait until all that was asked for has been done."""
        if self._to_look or self._looking:
            future = self._loop.create_future()
            self._settled.append(future)
            await future

    def caught_up_to(self) -> float:
        """Unix time such that every delivery before it has been reported."""
        if not self._overflowed and _bytes_waiting(self._fd) == 0:
            self._drained_at = self._time()
        times = [self._drained_at, *self._looking.values()]
        times += (self._mailboxes[path].since for path in self._to_look if path in self._mailboxes)
        if self._reader.writing_since is not None:
            times.append(self._reader.writing_since)
        return min(times)

    def status(self) -> WatcherStatus:
        """For people and for metrics."""
        watched = sum(1 for mailbox in self._mailboxes.values() if mailbox.wd)
        return WatcherStatus(
            mailboxes=len(self._mailboxes),
            watched=watched,
            polled=0,
            missing=sum(1 for mailbox in self._mailboxes.values() if mailbox.error),
            waiting=len(self._to_look) + len(self._looking),
            events=self._events,
            overflows=self._overflows,
            looks=self._looks,
        )

    # Events

    def _on_readable(self) -> None:
        before = self._time()
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        batch = self._reader.feed(data, before)
        self._events += batch.count
        if batch.overflow:
            self._on_overflow()
        if batch.ignored or batch.moved:
            self._on_directories_gone(batch)
        if batch.mail:
            self._on_delivery(self._paths(batch.mail))
        changed = batch.changed - batch.mail
        if len(data) <= _READ_SIZE - LARGEST_EVENT and not self._overflowed:
            self._drained_at = before  # the queue was emptied: all that came before this read was in it
            changed |= self._reader.moved_away()
        self._report_changes(changed)
        if self._on_change is not None and self._reader.renaming and self._renames_timer is None:
            self._renames_timer = self._loop.call_later(_RENAME_PATIENCE, self._on_renames_timer)

    def _on_renames_timer(self) -> None:
        """No event came since that would have told where those files went: away."""
        self._renames_timer = None
        self._report_changes(self._reader.moved_away() | self._reader.moved_away())

    def _report_changes(self, wds: Collection[int]) -> None:
        if self._on_change is not None and (paths := self._paths(wds)):
            self._on_change(paths)

    def _paths(self, wds: Iterable[int]) -> set[str]:
        """The mailboxes whose new/ or cur/ these are."""
        own_new = self._reader.own_new
        return {mailbox.path for wd in wds for mailbox in self._by_wd.get(own_new.get(wd, wd), ())}

    def _is_complete(self, wd: int, name: bytes) -> bool:
        new = self._reader.own_new.get(wd)
        mailboxes = self._by_wd.get(wd if new is None else new)
        if not mailboxes:
            return False
        try:
            status = os.lstat(os.fsencode(mailboxes[0].path) + (b"/new/" if new is None else b"/cur/") + name)
        except OSError:
            return True  # already taken by an IMAP session, or the folder was renamed: in doubt it is mail
        return status.st_size > 0 or status.st_nlink > 1

    def _on_directories_gone(self, batch: Batch) -> None:
        for wd in batch.ignored:
            for mailbox in self._by_wd.get(self._reader.own_new.get(wd, 0), ()):
                mailbox.cur, mailbox.identity = 0, None  # so that the look finds both directories anew
                self._enqueue(mailbox, self._drained_at)
            self._reader.forget(wd)
            for mailbox in self._by_wd.pop(wd, ()):
                mailbox.wd = 0
                self._enqueue(mailbox, self._drained_at)
        for wd in batch.moved:
            for mailbox in self._by_wd.get(self._reader.own_new.get(wd, wd), ()):
                self._enqueue(mailbox, NOTHING)

    def _on_overflow(self) -> None:
        self._overflows += 1
        log.warning(
            "events lost, looking into all mailboxes mailboxes=%d overflows=%d sysctl=fs.inotify.max_queued_events",
            len(self._mailboxes),
            self._overflows,
        )
        self.rescan(self._drained_at)

    # Looks

    def _enqueue(self, mailbox: _Mailbox, since: float) -> None:
        if mailbox.path in self._to_look:
            mailbox.since = min(mailbox.since, since)
        else:
            mailbox.since = since
            self._to_look[mailbox.path] = None
        if hasattr(self, "_loop"):
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Hand the next looks to the thread."""
        if self._closed or self._looking:
            return
        questions: list[tuple[_Mailbox, float]] = []
        while self._to_look and len(questions) < _LOOKS_AT_ONCE:
            path = next(iter(self._to_look))
            del self._to_look[path]
            mailbox = self._mailboxes.get(path)
            if mailbox is not None:
                self._looking[path] = mailbox.since
                questions.append((mailbox, mailbox.since))
        if questions:
            self._looks += len(questions)
            self._lookout.submit(lambda: self._look(questions))
        else:
            self._release_settled()

    def _look(self, questions: list[tuple[_Mailbox, float]]) -> None:
        """In the thread."""
        answers = [(mailbox, since, look(mailbox.path, mailbox.identity, since)) for mailbox, since in questions]
        try:
            self._loop.call_soon_threadsafe(self._on_answers, answers)
        except RuntimeError:  # the loop was closed meanwhile
            for _, _, answer in answers:
                _discard(answer)

    def _on_answers(self, answers: list[tuple[_Mailbox, float, Answer]]) -> None:
        delivered = set()
        self._looking.clear()
        for mailbox, since, answer in answers:
            if self._closed or self._mailboxes.get(mailbox.path) is not mailbox:
                _discard(answer)
            elif isinstance(answer, Same):
                if answer.has_mail:
                    delivered.add(mailbox.path)
            elif isinstance(answer, Found):
                self._place(mailbox, since, answer)
            else:
                self._on_absent(mailbox, since, answer.error)
        if delivered:
            self._on_delivery(delivered)
        self._pump()

    def _place(self, mailbox: _Mailbox, since: float, found: Found) -> None:
        """Watch the directory that was found, then see whether something came before the watch was there."""
        replaced = mailbox.identity is not None and mailbox.identity.inode != found.identity.inode
        self._detach(mailbox)
        try:
            wd = self._add_watch(found.descriptor)
            changed = os.fstat(found.descriptor).st_ctime
            cur = self._add_cur_watch(mailbox.path, found.cur)
        except pyinotify.WatchManagerError:
            self._on_absent(mailbox, since, ctypes.get_errno())
            return
        finally:
            _discard(found)
        others = self._by_wd.setdefault(wd, [])
        for other in others:  # reached by two paths, or renamed
            self._enqueue(other, NOTHING)
        others.append(mailbox)
        mailbox.wd, mailbox.cur, mailbox.identity = wd, cur, found.identity
        if cur:
            self._reader.own_new[cur] = wd
        if mailbox.error:
            log.info("mailbox back path=%s", mailbox.path)
            mailbox.error, mailbox.delay = 0, 0.0
        if replaced:
            since = EVERYTHING  # a directory moved here brings mail that is older than the move
        if max(changed, found.cur_changed) > since - SLACK:
            self._enqueue(mailbox, since)

    def _add_watch(self, directory: int) -> int:
        """By descriptor, so that it is the very directory that was looked at, and for names that aren't UTF-8."""
        name = f"/proc/self/fd/{directory}"
        mask = MAIL_MASK if self._on_change is None else CHANGE_MASK
        wd: int = self._manager.add_watch(name, mask, quiet=False)[name]
        self._manager.del_watch(wd)  # only from pyinotify's own table: 250 bytes each that nobody reads
        return wd

    def _add_cur_watch(self, path: str, directory: int) -> int:
        """0 where it can't be had: most mail comes through new/ all the same."""
        if directory < 0:
            return 0
        try:
            return self._add_watch(directory)
        except pyinotify.WatchManagerError:
            log.warning("cur/ not watched path=%s error=%s", path, os.strerror(ctypes.get_errno()))
            return 0

    def _detach(self, mailbox: _Mailbox) -> None:
        """Take the mailbox off its watch, and the watch away with the last one."""
        (wd, mailbox.wd), (cur, mailbox.cur) = (mailbox.wd, 0), (mailbox.cur, 0)
        if not wd:
            return
        mailboxes = self._by_wd[wd]
        mailboxes.remove(mailbox)
        if not mailboxes:
            del self._by_wd[wd]
            for watched in (cur, wd):
                if watched:
                    self._reader.forget(watched)
                    self._manager.rm_watch(watched)

    def _on_absent(self, mailbox: _Mailbox, since: float, error: int) -> None:
        self._detach(mailbox)
        if mailbox.error != error:
            mailbox.error = error
            log.warning("mailbox not there path=%s error=%s", mailbox.path, os.strerror(error))
        mailbox.since = min(since, self._drained_at)
        mailbox.delay = min(max(2 * mailbox.delay, self._pace.retry_first), self._pace.retry_last)
        heapq.heappush(self._retries, (self._monotonic() + mailbox.delay, mailbox.path))
        self._set_timer()

    # Looks where no event tells

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = self._pace.verify_interval
        if self._retries:
            delay = min(delay, max(0.0, self._retries[0][0] - self._monotonic()))
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        now = self._monotonic()
        while self._retries and self._retries[0][0] <= now:
            mailbox = self._mailboxes.get(heapq.heappop(self._retries)[1])
            if mailbox is not None and not mailbox.wd:
                self._enqueue(mailbox, mailbox.since)
        self._set_timer()

    def _release_settled(self) -> None:
        futures, self._settled = self._settled, []
        for future in futures:
            if not future.done():
                future.set_result(None)


def _discard(answer: Answer) -> None:
    if isinstance(answer, Found):
        os.close(answer.descriptor)
        if answer.cur >= 0:
            os.close(answer.cur)


def _bytes_waiting(fd: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))
    return int(count)
