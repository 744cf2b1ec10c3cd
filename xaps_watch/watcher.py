"""The watch set: which mailboxes are watched, and in which of them mail appeared.

Events are read and watches are placed in the event loop; whatever touches a disk is done by lookout.py in a thread,
one for the local disks and one for each remote filesystem, so that a dead file server holds nobody else up.

A folder that is renamed keeps its watch, and only the directory that it lies in tells. So that is watched, too, for all
mailboxes in it by one watch. What happens further up, or where there is no room for that watch, is found out by
comparing each path with what is watched from time to time: one stat(2) each, at most a thousandth of a CPU altogether.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from xaps_watch.absent import Absentees
from xaps_watch.inotify import Inotify, sysctl
from xaps_watch.logs import fields
from xaps_watch.lookout import (
    EVERYTHING,
    NOTHING,
    SLACK,
    Absent,
    Answer,
    Found,
    Lookout,
    Request,
    Same,
    look,
)
from xaps_watch.maildir import IN_DELETE, Batch, Contents, EventReader
from xaps_watch.mounts import MountTable, is_remote
from xaps_watch.notices import Notices
from xaps_watch.polls import LIMIT, Polls
from xaps_watch.steady_clock import SteadyClock
from xaps_watch.watches import WATCHES_EACH, Mailbox, Watches

log = logging.getLogger(__name__)

_LOOKS_AT_ONCE = 64  # descriptors open at a time, and 2 ms of the loop when all are to be watched
_LOOK_COST = 10e-6  # seconds of CPU, for one path compared with its directory
_WRITER_PATIENCE = 900.0  # seconds for a file to be filled
_ROOM_STEP = 0.1  # seconds between two batches of watches that are taken up when there is room again
_RENAME_PATIENCE = 0.1  # seconds for the second half of a rename
_STUCK = 10.0  # seconds after which a filesystem that doesn't answer is no longer waited for
_GONE_FOR_GOOD = -1  # as inode: the directory was removed, not only renamed or unmounted

_MENDS = {
    errno.EACCES: "give the service CAP_DAC_READ_SEARCH (AmbientCapabilities=) or its user the right to enter it",
    errno.EMFILE: "raise LimitNOFILE=",
    errno.ENOTCONN: "mount the filesystem again",
    errno.ESTALE: "mount the filesystem again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often the watcher looks where no event would tell. Seconds."""

    verify_interval: float = 10.0  # at least, between two comparisons of a path with what is watched
    share: float = 0.001  # of a CPU that they may take: with many mailboxes the interval grows
    retry_first: float = 0.1  # for what is missing; doubled each time
    retry_last: float = 60.0
    room_interval: float = 60.0  # between two tries to place watches when the kernel's limit was reached
    rescan_interval: float = 1.0  # between two rescans while events keep being lost


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherStatus:
    """What the watcher does now, and has done since its start."""

    mailboxes: int
    watched: int
    polled: int
    polled_why: dict[str, int]  # filesystem, or "limit": fs.inotify.max_user_watches
    missing: int
    waiting: int  # looks that are still to be taken
    silent: list[str]  # mount points that don't answer
    events: int
    overflows: int
    looks: int


class _Lane:
    """The looks at one filesystem, one batch after the other."""

    __slots__ = ("asked_at", "looking", "lookout", "name", "silent", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name  # mount point; "" for the local disks
        self.lookout = Lookout(f"look {name or 'local'}"[:15])
        self.waiting: dict[Mailbox, float] = {}  # since when (steady) mail in it may be unreported
        self.looking: dict[Mailbox, float] = {}  # in the thread's hands
        self.asked_at = 0.0  # monotonic
        self.silent = False

    @property
    def is_idle(self) -> bool:
        return self.silent or not (self.waiting or self.looking)


class Watcher:
    """The watch set. Calls `on_delivery(paths)` from the event loop with the mailboxes in which mail appeared.

    With `on_change`, that is called for mailboxes in which mail was read, flagged, moved away or deleted. cur/ is
    watched, too, for mail that is put there unread; it is given up first where the kernel's limit is near.
    `poll_interval`: seconds, for mailboxes on remote filesystems and for those beyond the limit.
    """

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
        self._changes = IN_DELETE if on_change is not None else 0
        self._monotonic = monotonic
        self._clock = SteadyClock(time, monotonic)
        self._pace = pace
        self._notices = Notices(log, monotonic)
        self._mailboxes: dict[str, Mailbox] = {}
        self._reader = EventReader(self._look_at)
        self._absent = Absentees(pace.retry_first, pace.retry_last, _LOOK_COST / pace.share)
        self._polls = Polls(poll_interval)
        # To be opened again though it seems to be the known directory, if it has changed after this time (steady).
        self._retake: dict[Mailbox, float] = {}
        self._full = False  # some mailboxes aren't watched as they should be, for want of room
        self._lanes = {"": _Lane("")}
        self._settled: list[asyncio.Future[None]] = []
        self._events = self._overflows = self._looks = 0
        self._lost_since = NOTHING  # steady: events were lost that came after this, a rescan is due
        self._rescan: Iterator[Mailbox] | None = None
        self._rescan_since = NOTHING
        self._rescanned_at = -NOTHING
        self._round: list[Mailbox] = []  # what is left of the present round of comparisons
        self._round_began = self._verified = self._drained_at = self._clock.now()
        self._next_verify = self._next_room = self._next_rename = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._linked_timer: asyncio.TimerHandle | None = None
        self._pumping = self._closed = False

    # Life

    def start(self) -> None:
        """Begin, in a running loop. Raises WatchError when inotify can't be had."""
        self._inotify = Inotify()
        self._watches = Watches(
            self._inotify, self._reader, self._changes, look_again=self._look_again, on_full=self._on_full
        )
        self._mounts = MountTable()
        self._loop = asyncio.get_running_loop()
        self._drained_at = self._round_began = self._verified = self._clock.now()
        self._next_verify = self._monotonic() + self._pace.verify_interval
        self._loop.add_reader(self._inotify.fileno(), self._on_readable)
        self._loop.add_reader(self._mounts.fileno(), self._on_mounts_changed)
        self._pump_soon()
        self._turn()

    def close(self) -> None:
        """Stop watching. What is still in the kernel's queue isn't reported: `caught_up_to` doesn't cover it."""
        if self._loop is None or self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._mounts.fileno())
        self._loop.remove_reader(self._inotify.fileno())
        for lane in self._lanes.values():
            lane.lookout.close()
        self._mounts.close()
        self._inotify.close()
        self._release_settled()

    # The set

    def watch(self, path: str, since: float) -> None:
        """Watch the mailbox whose new/ and cur/ are in `path`; report it if mail appeared after `since` (unix time).

        For one that is watched already, only see whether `path` still leads to the same directory.
        """
        mailbox = self._mailboxes.get(path)
        if mailbox is None:
            mailbox = self._mailboxes[path] = Mailbox(path)
        self._enqueue(mailbox, NOTHING if mailbox.wd or mailbox in self._polls else self._clock.steady(since))

    def unwatch(self, path: str) -> None:
        """Forget the mailbox."""
        mailbox = self._mailboxes.pop(path, None)
        if mailbox is None:
            return
        for lane in self._lanes.values():
            lane.waiting.pop(mailbox, None)
        self._absent.remove(path)
        self._polls.stop(mailbox)
        self._retake.pop(mailbox, None)
        if mailbox.wd:
            self._next_room = min(self._next_room, self._monotonic() + 1.0)
        self._watches.remove(mailbox)

    @property
    def paths(self) -> Collection[str]:
        return self._mailboxes.keys()

    def __contains__(self, path: object) -> bool:
        return path in self._mailboxes

    def __len__(self) -> int:
        return len(self._mailboxes)

    async def settled(self) -> None:
        """Wait until all that was asked for has been done, but not for a filesystem that doesn't answer."""
        if self._loop is not None and not self._is_settled():
            future = self._loop.create_future()
            self._settled.append(future)
            await future

    def caught_up_to(self) -> float:
        """Unix time such that every delivery before it has been reported.

        Not held back for directories that may have been swapped further up since the last comparison: that would make
        each restart push the last half minute again.
        """
        now = self._clock.now()
        if self._inotify.is_empty():
            self._drained_at = now
        held = [self._drained_at, self._lost_since, self._absent.held_since(now), self._polls.reported_to()]
        if self._rescan is not None:
            held.append(self._rescan_since)
        for lane in self._lanes.values():
            held.append(min(lane.waiting.values(), default=NOTHING))
            held.append(min(lane.looking.values(), default=NOTHING))
        if self._reader.writing_since is not None:
            held.append(self._reader.writing_since)
        return max(0.0, self._clock.wall(min(held)))

    def status(self) -> WatcherStatus:
        """For people and for metrics."""
        return WatcherStatus(
            mailboxes=len(self._mailboxes),
            watched=self._watches.mailboxes,
            polled=len(self._polls),
            polled_why=self._polls.why(),
            missing=len(self._absent),
            waiting=sum(len(lane.waiting) + len(lane.looking) for lane in self._lanes.values()),
            silent=[lane.name or "/" for lane in self._lanes.values() if lane.silent],
            events=self._events,
            overflows=self._overflows,
            looks=self._looks,
        )

    # Events

    def _on_readable(self) -> None:
        before = self._clock.now()
        data = self._inotify.read()
        if not data:
            return
        batch = self._reader.feed(data, before)
        self._events += batch.count
        if batch.overflow:
            self._on_overflow()
        if batch.ignored or batch.moved:
            self._on_directories_gone(batch)
        for mailbox in self._watches.named(batch.named):
            self._look_anew(mailbox)
        if self._reader.awaits_renames and self._on_change is not None and self._next_rename == NOTHING:
            self._next_rename = self._monotonic() + _RENAME_PATIENCE
            self._set_timer()
        self._report(batch.mail, batch.changed)
        if self._inotify.is_last(data):
            self._drained_at = before  # all that came before this read was in it
        if self._reader.is_undecided:
            self._report_linked()

    def _report(self, mail: Iterable[int], changed: Iterable[int] = ()) -> None:
        paths = self._paths(mail)
        self._hand_on(paths, self._paths(changed) - paths)

    def _paths(self, wds: Iterable[int]) -> set[str]:
        return {mailbox.path for wd in wds for mailbox in self._watches.at(wd)}

    def _hand_on(self, mail: Collection[str], changed: Collection[str]) -> None:
        """Changes first, so that the push for the mail takes them along."""
        if changed and self._on_change is not None:
            self._on_change(changed)
        if mail:
            self._on_delivery(mail)

    def _report_linked(self) -> None:
        """Report the files that were linked, for all that the kernel told by now."""
        if self._loop is None or self._closed:
            return
        if self._linked_timer is not None:
            self._linked_timer.cancel()
        if self._inotify.is_empty():
            self._drained_at = self._clock.now()
        self._report(self._reader.linked(self._drained_at))
        due = self._reader.undecided_until
        if due is not None:
            self._linked_timer = self._loop.call_later(max(0.001, due - self._clock.now()), self._report_linked)

    def _look_at(self, wd: int, name: bytes) -> Contents:
        mailboxes = self._watches.at(wd)
        if not mailboxes:
            return Contents.NONE
        if mailboxes[0] in self._polls:
            return Contents.COMPLETE  # perhaps too early, but a file server is never waited for here
        directory = b"/cur/" if self._reader.is_cur(wd) else b"/new/"
        try:
            status = os.lstat(os.fsencode(mailboxes[0].path) + directory + name)
        except OSError:
            return Contents.COMPLETE  # an IMAP session took it, or the folder was renamed: in doubt it is mail
        if status.st_nlink > 1:
            return Contents.COMPLETE
        return Contents.SOME if status.st_size else Contents.NONE

    def _on_directories_gone(self, batch: Batch) -> None:
        for wd in batch.ignored:
            lost, others = self._watches.dropped(wd)
            for mailbox in lost:
                if wd not in batch.unmounted:
                    mailbox.inode = _GONE_FOR_GOOD
            for mailbox in (*lost, *others):
                self._look_anew(mailbox)
        for wd in batch.moved:
            for mailbox in self._watches.at(wd):
                self._look_anew(mailbox)
            if self._watches.is_parent(wd):  # whatever is below, at any depth, may have gone with it
                self._look_into_all()

    def _on_overflow(self) -> None:
        self._overflows += 1
        self._notices.tell(
            logging.WARNING,
            "events lost, looking into all mailboxes",
            "*",
            mailboxes=len(self._mailboxes),
            sysctl="fs.inotify.max_queued_events",
            limit=sysctl("max_queued_events"),
        )
        self._look_into_all()

    def _look_into_all(self) -> None:
        """Events since the last that were read don't tell enough."""
        self._lost_since = min(self._lost_since, self._drained_at)
        self._rescan_lost()
        self._set_timer()

    def _rescan_lost(self) -> None:
        """Once a second at most, or a storm that goes on would be answered by looks alone."""
        due = self._rescanned_at + self._pace.rescan_interval <= self._monotonic()
        if self._lost_since < NOTHING and self._rescan is None and due:
            since, self._lost_since = self._lost_since, NOTHING
            self._begin_rescan(since)

    def _begin_rescan(self, since: float) -> None:
        self._rescan_since = min(since, self._rescan_since) if self._rescan is not None else since
        self._rescan = iter(list(self._mailboxes.values()))
        self._rescanned_at = self._monotonic()
        self._pump_soon()

    def _on_mounts_changed(self) -> None:
        points = tuple(point.rstrip("/") + "/" for point in self._mounts.changes())
        if not points:
            return
        for path in self._absent.paths():
            self._look_again(self._mailboxes[path])  # a symlink may lead there
        for mailbox in self._mailboxes.values():
            if (mailbox.path + "/").startswith(points):
                self._enqueue(mailbox, self._verified if mailbox.wd or mailbox in self._polls else NOTHING)

    # Looks

    def _lane(self, path: str) -> _Lane:
        name = self._mounts.server(path) if self._loop is not None else ""
        if name not in self._lanes:
            self._lanes[name] = _Lane(name)
        return self._lanes[name]

    def _enqueue(self, mailbox: Mailbox, since: float) -> None:
        """Have a look taken at it; mail that came after `since` (steady) may be unreported."""
        lane = self._lane(mailbox.path)
        lane.waiting[mailbox] = min(since, lane.waiting.get(mailbox, NOTHING), self._absent.since(mailbox.path))
        self._pump_soon()

    def _look_anew(self, mailbox: Mailbox) -> None:
        """Another directory may be there since the last events were read."""
        self._retake[mailbox] = EVERYTHING
        self._enqueue(mailbox, self._drained_at)

    def _look_again(self, mailbox: Mailbox) -> None:
        """See whether the same directory is still there."""
        self._enqueue(mailbox, NOTHING)

    def _pump_soon(self) -> None:
        if self._loop is not None and not self._pumping and not self._closed:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Hand the next looks to the threads that have nothing to do."""
        self._pumping = False
        if self._closed:
            return
        self._feed_rescan()
        for lane in list(self._lanes.values()):
            if lane.waiting and not lane.looking:
                self._submit(lane)
        if self._is_settled():
            self._release_settled()

    def _feed_rescan(self) -> None:
        waiting = self._lanes[""].waiting
        while self._rescan is not None and len(waiting) < _LOOKS_AT_ONCE:
            mailbox = next(self._rescan, None)
            if mailbox is None:
                self._rescan = None
                self._rescan_since = NOTHING
            elif self._mailboxes.get(mailbox.path) is mailbox:
                # That its directory went may have been lost, and another have got the same inode number.
                self._retake[mailbox] = min(self._rescan_since, self._retake.get(mailbox, NOTHING))
                self._enqueue(mailbox, self._rescan_since)

    def _submit(self, lane: _Lane) -> None:
        requests = []
        for mailbox in list(_first(lane.waiting, _LOOKS_AT_ONCE)):
            since = lane.waiting.pop(mailbox)
            lane.looking[mailbox] = since
            requests.append(self._request(mailbox, since))
        lane.asked_at = self._monotonic()
        self._looks += len(requests)
        loop, mounts, asked_at = self._loop, self._mounts, self._clock.now()
        assert loop is not None

        def work() -> None:  # in the thread
            answers = [look(request, mounts) for request in requests]
            try:
                loop.call_soon_threadsafe(self._on_answers, lane, asked_at, answers)
            except RuntimeError:  # the loop was closed meanwhile
                for answer in answers:
                    _discard(answer)

        lane.lookout.submit(work)

    def _request(self, mailbox: Mailbox, since: float) -> Request:
        poll = self._polls.get(mailbox)
        return Request(
            mailbox.path,
            self._clock.wall(since),
            known=(mailbox.device, mailbox.inode) if mailbox.wd or poll else None,
            changed_since=self._clock.wall(self._retake.pop(mailbox, NOTHING)),
            formerly=max(mailbox.inode, 0),
            memory=poll.memory if poll else None,
            told=self._reader.take_names(mailbox.wd) if poll else frozenset(),
            changes=self._on_change is not None,
        )

    def _on_answers(self, lane: _Lane, asked_at: float, answers: list[Answer]) -> None:
        asked, lane.looking = lane.looking, {}
        if lane.silent:
            lane.silent = False
            log.warning("filesystem answers again %s", fields(mount=lane.name or "/"))
        mail, changed = set(), set()
        for (mailbox, since), answer in zip(asked.items(), answers, strict=True):
            if self._closed or self._mailboxes.get(mailbox.path) is not mailbox:
                _discard(answer)
            elif isinstance(answer, Same):
                if answer.has_mail:
                    mail.add(mailbox.path)
                elif answer.has_changes:
                    changed.add(mailbox.path)
                if answer.memory is not None:
                    self._polls.answered(mailbox, answer.memory, asked_at, self._monotonic())
            elif isinstance(answer, Found):
                if answer.brought_mail:
                    mail.add(mailbox.path)  # its files may be older than the move that brought them
                self._on_found(mailbox, since, answer)
            else:
                self._on_absent(mailbox, since, answer)
        if self._closed:
            return
        self._hand_on(mail, changed)
        self._pump_soon()

    # A directory was found

    def _on_found(self, mailbox: Mailbox, since: float, found: Found) -> None:
        """Watch it, then see whether something came before the watch was there."""
        poll = self._polls.get(mailbox)
        if (mailbox.wd or poll) and (mailbox.device, mailbox.inode) != (found.device, found.inode):
            since = min(since, self._verified)  # nobody knows since when it is another one
        try:
            changed = self._watches.place(mailbox, found)
        except OSError as error:
            self._on_absent(mailbox, since, Absent(error.errno or errno.EIO, mailbox.path + "/new"))
            return
        finally:
            found.close()
        if mailbox.path in self._absent:
            self._notices.tell(logging.INFO, "mailbox back", mailbox.path)
            self._absent.remove(mailbox.path)
        mailbox.device, mailbox.inode = found.device, found.inode
        why = found.filesystem if is_remote(found.filesystem) else "" if mailbox.wd else LIMIT
        if why:
            self._poll(mailbox, why)
        elif poll is not None:
            since = min(since, poll.at)
            self._polls.stop(mailbox)
        if why or changed > self._clock.wall(since) - SLACK:
            self._enqueue(mailbox, since)

    def _on_full(self) -> None:
        """The kernel's limit is reached: say it once."""
        self._next_room = self._monotonic() + self._pace.room_interval
        if self._full:
            return
        self._full = True
        limit = sysctl("max_user_watches") or 0
        unwatched = len(self._mailboxes) - self._watches.mailboxes
        needed = limit + WATCHES_EACH * unwatched + (WATCHES_EACH - 1) * len(self._watches.lacking)
        log.error(
            "no room for more watches, the mailboxes that have none are polled %s",
            fields(
                sysctl="fs.inotify.max_user_watches", limit=limit, needed=needed, interval=f"{self._polls.interval:g}s",
                mend=f"sysctl -w fs.inotify.max_user_watches={needed}",
            ),
        )  # fmt: skip

    # A directory wasn't found

    def _on_absent(self, mailbox: Mailbox, since: float, answer: Absent) -> None:
        poll = self._polls.get(mailbox)
        if mailbox.wd:
            since = min(since, self._verified)
            self._watches.detach(mailbox)
        elif poll is not None:
            since = min(since, poll.at)
        self._polls.stop(mailbox)
        if self._absent.error(mailbox.path) != answer.error:
            self._tell_absent(mailbox.path, answer)
        since = min(since, self._clock.now())
        now = self._monotonic()
        self._absent.add(mailbox.path, answer.error, since, now, holds=mailbox.inode != _GONE_FOR_GOOD)
        self._watches.expect(mailbox, answer)
        answer.close()
        self._set_timer()

    def _tell_absent(self, path: str, answer: Absent) -> None:
        if answer.error in (errno.ENOENT, errno.ENOTDIR):
            self._notices.tell(logging.INFO, "mailbox not there", path)
            return
        what, mend = os.strerror(answer.error), _MENDS.get(answer.error)
        self._notices.tell(
            logging.WARNING, "mailbox can't be read", path, error=what, where=answer.where or None, mend=mend
        )

    # Looks where no event tells

    def _poll(self, mailbox: Mailbox, why: str) -> None:
        """From now on, look into it from time to time."""
        if self._polls.start(mailbox, why, self._clock.now(), self._monotonic()):
            self._set_timer()
            if why != LIMIT:
                self._notices.tell(
                    logging.INFO, "mailbox on a remote filesystem is polled, too", mailbox.path, filesystem=why,
                    interval=f"{self._polls.interval:g}s",
                )  # fmt: skip
        if mailbox.wd:
            self._reader.add_named(mailbox.wd)

    def _set_timer(self) -> None:
        if self._loop is None or self._closed:
            return
        due = min(
            self._next_verify,
            self._absent.next_due(),
            self._notices.next_due(),
            self._next_rename if self._on_change is not None else NOTHING,
            self._next_room if self._full else NOTHING,
            self._rescanned_at + self._pace.rescan_interval if self._lost_since < NOTHING else NOTHING,
            self._polls.next_due(),
            *(lane.asked_at + _STUCK for lane in self._lanes.values() if lane.looking and not lane.silent),
        )
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.005, due - self._monotonic()), self._turn)

    def _turn(self) -> None:
        """Do what is due by the clock."""
        now = self._monotonic()
        for path in self._absent.due(now, _LOOKS_AT_ONCE):
            self._look_again(self._mailboxes[path])
        self._verify(now)
        for mailbox, since in self._polls.due(now):
            self._enqueue(mailbox, since)
        if self._full and self._next_room <= now:
            self._try_room(now)
        if self._on_change is not None and self._next_rename <= now:
            self._report((), self._reader.moved_away())
            self._next_rename = now + _RENAME_PATIENCE if self._reader.awaits_renames else NOTHING
        self._report(self._reader.overdue(self._clock.now() - _WRITER_PATIENCE))
        self._rescan_lost()
        self._see_silent(now)
        self._notices.flush()
        self._set_timer()

    def _verify(self, now: float) -> None:
        """Compare some paths with what is watched."""
        if now < self._next_verify:
            return
        interval = max(self._pace.verify_interval, len(self._mailboxes) * _LOOK_COST / self._pace.share)
        if not self._round:
            if not self._lanes[""].is_idle:
                self._next_verify = now + min(1.0, self._pace.verify_interval)
                return
            self._verified, self._round_began = self._round_began, self._clock.now()
            self._round = list(self._mailboxes.values())
        size = max(_LOOKS_AT_ONCE, int(len(self._mailboxes) / interval))
        chunk = self._round[-size:]
        del self._round[-size:]  # in place: a copy of what is left would cost more than the looks
        for mailbox in chunk:
            if self._mailboxes.get(mailbox.path) is mailbox and mailbox.wd and mailbox not in self._polls:
                if not mailbox.cur_wd and mailbox not in self._watches.lacking:
                    self._retake[mailbox] = EVERYTHING
                self._enqueue(mailbox, NOTHING)
        self._next_verify = now + interval * min(1.0, size / max(1, len(self._mailboxes)))

    def _try_room(self, now: float) -> None:
        """See whether watches can be placed again."""
        self._watches.refused = False
        watched = (mailbox for mailbox in self._watches.lacking if mailbox not in self._polls)
        lacking = list(_first(chain(self._polls.for_want_of_room(), watched), _LOOKS_AT_ONCE))
        if not lacking:
            self._full = False
            log.info("all mailboxes are watched again")
            return
        for mailbox in lacking:
            self._retake[mailbox] = EVERYTHING
            self._enqueue(mailbox, NOTHING)
        self._next_room = now + min(_ROOM_STEP, self._pace.room_interval)  # unless the kernel says no again

    def _see_silent(self, now: float) -> None:
        for lane in self._lanes.values():
            if lane.looking and not lane.silent and lane.asked_at + _STUCK <= now:
                lane.silent = True
                log.error("filesystem doesn't answer %s", fields(mount=lane.name or "/", waiting=len(lane.waiting)))
        if self._is_settled():
            self._release_settled()

    # Settled

    def _is_settled(self) -> bool:
        return self._rescan is None and all(lane.is_idle for lane in self._lanes.values())

    def _release_settled(self) -> None:
        futures, self._settled = self._settled, []
        for future in futures:
            if not future.done():
                future.set_result(None)


def _first(mailboxes: Iterable[Mailbox], most: int) -> Iterator[Mailbox]:
    return (mailbox for mailbox, _ in zip(mailboxes, range(most), strict=False))


def _discard(answer: Answer) -> None:
    if isinstance(answer, (Found, Absent)):
        answer.close()
