"""What happens in a Maildir, and what it means: a delivery, a change or nothing. Pure: fed with bytes and times.

A Maildir has two directories that matter here. Delivery agents put mail into ``new/``; an IMAP session that selects the
mailbox moves it on to ``cur/``, where the file name tells its flags (``…:2,FS``: flagged, seen; https://cr.yp.to/proto/maildir.html).
Each agent does it in its own way, so the rules stand in a table, with the agents that they are there for.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# <sys/inotify.h>, inotify(7)
IN_MODIFY = 0x0002
IN_CLOSE_WRITE = 0x0008
IN_OPEN = 0x0020
IN_MOVED_FROM = 0x0040
IN_MOVED_TO = 0x0080
IN_CREATE = 0x0100
IN_DELETE = 0x0200
IN_MOVE_SELF = 0x0800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_MASK_ADD = 0x20000000
IN_ISDIR = 0x40000000

# What a watch asks for. IN_IGNORED (removed, unmounted) and IN_Q_OVERFLOW come unasked.
# IN_OPEN only in new/, where few but the writers open anything: in cur/ it would come with each mail that is read.
CUR_MASK = IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF | IN_ONLYDIR
NEW_MASK = CUR_MASK | IN_OPEN
PARENT_MASK = IN_CREATE | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF | IN_ONLYDIR | IN_MASK_ADD

EVENT_HEADER = struct.Struct("iIII")  # wd, mask, cookie, length of the name with its padding
LARGEST_EVENT = EVENT_HEADER.size + 256  # NAME_MAX + 1, as inotify pads it

# How many renames whose other half hasn't been seen are remembered; the halves lie a few events apart.
_RENAMES_KEPT = 512
# How many files in the making are remembered.
_WRITERS_KEPT = 1024
# Seconds after which a file that was opened when it was created, but of which the kernel tells no write, was linked and
# opened by a reader. One write(2) takes less, and its bytes can be seen before the kernel tells of it.
WRITE_PATIENCE = 0.1


class Where(enum.Enum):
    """The directory in which an event happened."""

    NEW = "new/"
    CUR = "cur/"


class Origin(enum.Enum):
    """Where a renamed file was before."""

    ELSEWHERE = "elsewhere"  # tmp/, another mailbox: any directory but the two of this mailbox
    NEW = "its own new/"
    CUR = "its own cur/"
    DOTFILE = "a name with a dot in front, in the same directory"


class Verdict(enum.Enum):
    """What an event means for the mailbox."""

    MAIL = "new mail"
    CHANGE = "a change made elsewhere"
    NOTHING = "nothing"
    FLAGS = "a change if the flags in the name are others than before; else nothing"
    LOOK = "new mail if the file is complete; else wait for its writer"
    WAIT = "somebody is writing: wait for the close"


class Contents(enum.Enum):
    """What a look at a file shows that was just created."""

    COMPLETE = "linked from elsewhere, or taken already by an IMAP session"
    SOME = "bytes: linked from elsewhere, or being written here"
    NONE = "no bytes yet"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: what happened, to a file with or without the flag S, and what it means."""

    where: Where
    event: int
    origin: Origin | None
    unseen: Verdict
    seen: Verdict
    reason: str


_NEW, _CUR = Where.NEW, Where.CUR
_MAIL, _CHANGE, _FLAGS, _LOOK = Verdict.MAIL, Verdict.CHANGE, Verdict.FLAGS, Verdict.LOOK
_WAIT, _NOTHING = Verdict.WAIT, Verdict.NOTHING

# fmt: off
RULES = (
    Rule(_NEW, IN_MOVED_TO, Origin.ELSEWHERE, _MAIL, _MAIL, "dovecot-lda, LMTP, Exim, OpenSMTPD, mbsync: from tmp/"),
    Rule(_NEW, IN_MOVED_TO, Origin.NEW, _FLAGS, _FLAGS, "mbsync assigning UIDs; flags: doveadm, OfflineIMAP"),
    Rule(_NEW, IN_MOVED_TO, Origin.DOTFILE, _MAIL, _MAIL, "rsync: writes .name.XXXXXX beside the final name"),
    Rule(_NEW, IN_MOVED_TO, Origin.CUR, _CHANGE, _CHANGE, "mutt: a read mail set back to new"),
    Rule(_NEW, IN_CREATE, None, _LOOK, _LOOK, "Postfix, maildrop, procmail, qmail, fdm, getmail: link()"),
    Rule(_NEW, IN_MODIFY, None, _WAIT, _WAIT, "cp: between its IN_CREATE and its IN_CLOSE_WRITE"),
    Rule(_NEW, IN_CLOSE_WRITE, None, _MAIL, _MAIL, "cp, rsync --inplace, mv between filesystems: written in place"),
    Rule(_NEW, IN_DELETE, None, _CHANGE, _CHANGE, "a POP3 server or a script removing unread mail"),
    Rule(_CUR, IN_MOVED_TO, Origin.ELSEWHERE, _MAIL, _CHANGE, "Sieve's addflag, IMAP APPEND and COPY with flags"),
    Rule(_CUR, IN_MOVED_TO, Origin.NEW, _FLAGS, _FLAGS, "a session selecting the mailbox; flags: reading at once"),
    Rule(_CUR, IN_MOVED_TO, Origin.CUR, _FLAGS, _FLAGS, "any client changing flags"),
    Rule(_CUR, IN_MOVED_TO, Origin.DOTFILE, _MAIL, _CHANGE, "rsync of a whole Maildir"),
    Rule(_CUR, IN_CREATE, None, _LOOK, _CHANGE, "Dovecot copying between mailboxes by link(); cp"),
    Rule(_CUR, IN_MODIFY, None, _WAIT, _WAIT, "cp"),
    Rule(_CUR, IN_CLOSE_WRITE, None, _MAIL, _CHANGE, "cp, rsync --inplace"),
    Rule(_CUR, IN_DELETE, None, _CHANGE, _CHANGE, "any client expunging"),
)
# fmt: on

_TABLE = {(rule.where, rule.event, rule.origin): (rule.unseen, rule.seen) for rule in RULES}


def is_mail_name(name: bytes) -> bool:
    """Names that begin with a dot are not mail (maildir(5)): Dovecot's and rsync's temporary files, .nfsXXXX."""
    return not name.startswith(b".")


def flags_in(name: bytes) -> bytes:
    """The flags in a file name: what follows ``:2,``, or ``;2,`` or ``!2,`` where a colon can't be in a file name."""
    at = name.rfind(b"2,")
    return b"" if at < 1 or name[at - 1] not in b":;!" else name[at + 2 :]


def is_unseen(name: bytes) -> bool:
    """Whether the flags in the name leave the mail worth a push: not seen (S), a draft (D) or deleted (T)."""
    return not any(flag in b"SDT" for flag in flags_in(name))


@dataclass(slots=True)
class Batch:
    """What one read of the kernel's queue said, by watch descriptor."""

    mail: set[int] = field(default_factory=set)
    changed: set[int] = field(default_factory=set)
    ignored: list[int] = field(default_factory=list)  # the kernel dropped the watch: removed or unmounted
    unmounted: set[int] = field(default_factory=set)
    moved: list[int] = field(default_factory=list)  # the watched directory itself was renamed
    named: list[tuple[int, bytes]] = field(default_factory=list)  # what came or went in a directory above mailboxes
    created: set[int] = field(default_factory=set)  # where a file was that may have been linked
    overflow: bool = False  # events were lost
    count: int = 0


@dataclass(slots=True)
class _Undecided:
    """A file that was linked into its directory, or is being written there."""

    since: float
    due: float  # when events up to then have been read without a word of a writer, it was linked
    has_bytes: bool  # as seen before `due`


class EventReader:
    """Reads the kernel's events and tells deliveries from everything else.

    `look(wd, name)` says what a file that was just created contains.
    """

    def __init__(self, look: Callable[[int, bytes], Contents]) -> None:
        self._look = look
        self._own_new: dict[int, int] = {}  # descriptor of a cur/ → that of the new/ of the same mailbox
        self._named: dict[int, set[bytes]] = {}
        self._parents: set[int] = set()
        self._particular: set[int] = set()  # all of these
        # Renames whose second half is still to come, by cookie, in two generations so that old ones fall out.
        self._renames: dict[int, tuple[int, bytes]] = {}
        self._older_renames: dict[int, tuple[int, bytes]] = {}
        # Files in the making, by directory and name, and when they appeared.
        self._undecided: dict[tuple[int, bytes], _Undecided] = {}
        self._writing: dict[tuple[int, bytes], float] = {}

    # What is watched, where it isn't simply a new/

    def add_cur(self, cur: int, new: int) -> None:
        """`cur` is the cur/ of the mailbox whose new/ is `new`."""
        self._own_new[cur] = new
        self._particular.add(cur)

    def add_parent(self, wd: int) -> None:
        """A directory above mailboxes, in which they may come and go; it is no part of one."""
        self._parents.add(wd)
        self._particular.add(wd)

    def add_named(self, wd: int) -> None:
        """Keep the names of what is delivered here."""
        self._named.setdefault(wd, set())
        self._particular.add(wd)

    def take_names(self, wd: int) -> frozenset[bytes]:
        """The names kept since the last call."""
        names = self._named.get(wd)
        if not names:
            return frozenset()
        self._named[wd] = set()
        return frozenset(names)

    def forget(self, wd: int) -> None:
        """The directory is no longer watched."""
        self._own_new.pop(wd, None)
        self._named.pop(wd, None)
        self._parents.discard(wd)
        self._particular.discard(wd)
        for files in (self._undecided, self._writing):
            for key in [key for key in files if key[0] == wd]:
                del files[key]

    def new_of(self, wd: int) -> int:
        """The new/ of the mailbox that the directory, new/ or cur/, belongs to."""
        return self._own_new.get(wd, wd)

    def is_cur(self, wd: int) -> bool:
        return wd in self._own_new

    def any_cur(self) -> int | None:
        """Some cur/ that is watched."""
        return next(iter(self._own_new), None)

    # What happened

    @property
    def writing_since(self) -> float | None:
        """When the first of the files appeared that are not mail yet."""
        return min((*self._writing.values(), *(file.since for file in self._undecided.values())), default=None)

    def feed(self, data: bytes, now: float) -> Batch:
        """Read what one read(2) gave: whole events only, inotify(7). `now` goes into `writing_since`."""
        batch = Batch()
        mail, particular, unpack = batch.mail, self._particular, EVENT_HEADER.unpack_from
        position, end, count = 0, len(data), 0
        while position < end:
            wd, mask, cookie, length = unpack(data, position)
            start = position + 16
            position = start + length
            count += 1
            if mask & IN_OPEN and not self._undecided:
                continue
            if (
                wd in mail
                and mask in _TELLS_NO_MORE
                and wd not in particular
                and not (self._renames or self._older_renames or self._writing or self._undecided)
            ):
                continue
            self._event(batch, wd, mask, cookie, data[start:position].rstrip(b"\0"), now)
        batch.count = count
        return batch

    @property
    def awaits_renames(self) -> bool:
        """Whether `moved_away` may have something to tell."""
        return bool(self._renames or self._older_renames)

    def moved_away(self) -> set[int]:
        """Directories that files were renamed out of, to where no watch is, before the last call but one."""
        gone = {wd for wd, name in self._older_renames.values() if is_mail_name(name)}
        self._older_renames, self._renames = self._renames, {}
        return gone

    @property
    def is_undecided(self) -> bool:
        """Whether `linked` may have something to tell."""
        return bool(self._undecided)

    @property
    def undecided_until(self) -> float | None:
        """When `linked` may have something to tell next; None if never."""
        return min((file.due for file in self._undecided.values()), default=None)

    def linked(self, drained_at: float) -> set[int]:
        """Where files were linked: nobody is told to have written to them, though all was fed that came before this."""
        due = [(key, file) for key, file in self._undecided.items() if file.due < drained_at]
        mail = {wd for (wd, _), file in due if file.has_bytes}
        for key, file in due:
            del self._undecided[key]
            if key[0] in mail or self._is_mail(*key, file.since, drained_at):
                mail.add(key[0])
                self._keep_names([key])
        return mail

    def overdue(self, before: float) -> set[int]:
        """Give up waiting for the writers of files that appeared before this; where one left mail behind after all."""
        overdue = [key for key, since in self._writing.items() if since < before]
        for key in overdue:
            del self._writing[key]
        mail = [key for key in overdue if self._look(*key) is not Contents.NONE]
        self._keep_names(mail)
        return {wd for wd, _ in mail}

    def _event(self, batch: Batch, wd: int, mask: int, cookie: int, name: bytes, now: float) -> None:
        if mask & _ABOUT_WATCHES:
            self._about_watch(batch, wd, mask, name)
            return
        if wd in self._parents:
            batch.named.append((wd, name))
            return
        if mask == IN_MOVED_FROM:
            self._moved_from(batch, wd, cookie, name)
            return
        if mask == IN_OPEN:
            if (wd, name) in self._undecided:
                self._undecided[wd, name].due = now + WRITE_PATIENCE
            return
        origin, before = self._origin(batch, wd, cookie) if mask == IN_MOVED_TO else (None, b"")
        if not is_mail_name(name):
            return
        verdicts = _TABLE.get((_CUR if wd in self._own_new else _NEW, mask, origin))
        if verdicts is None:
            return
        verdict = verdicts[0] if is_unseen(name) else verdicts[1]
        if mask == IN_CLOSE_WRITE:
            self._made(wd, name)
        if verdict is _FLAGS:
            verdict = _CHANGE if flags_in(name) != flags_in(before) else _NOTHING
        elif verdict is _LOOK:
            verdict = self._created(batch, wd, name, now)
        elif verdict is _WAIT and (undecided := self._undecided.pop((wd, name), None)) is not None:
            self._wait(wd, name, undecided.since)
        if verdict is _MAIL:
            batch.mail.add(wd)
            self._keep_names([(wd, name)])
        elif verdict is _CHANGE:
            batch.changed.add(wd)

    def _about_watch(self, batch: Batch, wd: int, mask: int, name: bytes) -> None:
        """What isn't about a file."""
        if mask & IN_Q_OVERFLOW:
            batch.overflow = True
        elif mask & IN_UNMOUNT:
            batch.unmounted.add(wd)
        elif mask & IN_IGNORED:
            batch.ignored.append(wd)
        elif mask & IN_MOVE_SELF:
            batch.moved.append(wd)
        elif wd in self._parents:
            batch.named.append((wd, name))

    def _moved_from(self, batch: Batch, wd: int, cookie: int, name: bytes) -> None:
        if self._made(wd, name):
            batch.mail.add(wd)  # an IMAP session took it before its writer closed it
        if len(self._renames) >= _RENAMES_KEPT:
            batch.changed.update(self.moved_away())
        self._renames[cookie] = (wd, name)

    def _origin(self, batch: Batch, wd: int, cookie: int) -> tuple[Origin, bytes]:
        """Where the file was, and under which name."""
        source = self._renames.pop(cookie, None) or self._older_renames.pop(cookie, None)
        if source is None:
            return Origin.ELSEWHERE, b""
        source_wd, source_name = source
        if source_wd == wd:
            if not is_mail_name(source_name):
                return Origin.DOTFILE, source_name
            return (Origin.CUR if wd in self._own_new else Origin.NEW), source_name
        if self._own_new.get(wd) == source_wd:
            return Origin.NEW, source_name
        if self._own_new.get(source_wd) == wd:
            return Origin.CUR, source_name
        batch.changed.add(source_wd)
        return Origin.ELSEWHERE, source_name

    def _created(self, batch: Batch, wd: int, name: bytes, now: float) -> Verdict:
        if wd in batch.mail:
            return _MAIL  # it is pushed anyway; if somebody is still writing, his close will tell
        if len(self._undecided) >= _WRITERS_KEPT:
            return _MAIL
        # Who has written to it in new/ has opened it there, and the kernel has told of that by now.
        due = now + WRITE_PATIENCE if wd in self._own_new else now
        if wd in batch.created:
            self._undecided[wd, name] = _Undecided(now, due, has_bytes=False)  # the first one may speak for it
            return _NOTHING
        batch.created.add(wd)
        return _MAIL if self._is_mail(wd, name, now, due) else _NOTHING

    def _is_mail(self, wd: int, name: bytes, since: float, due: float) -> bool:
        """Whether a look at the file says so already."""
        contents = self._look(wd, name)
        if contents is Contents.NONE:
            self._wait(wd, name, since)
        elif contents is Contents.SOME:
            self._undecided[wd, name] = _Undecided(since, due, has_bytes=True)
        return contents is Contents.COMPLETE

    def _wait(self, wd: int, name: bytes, since: float) -> None:
        if len(self._writing) >= _WRITERS_KEPT:
            del self._writing[next(iter(self._writing))]  # its close will tell
        self._writing[wd, name] = since

    def _made(self, wd: int, name: bytes) -> bool:
        """It is no longer in the making. Whether it was."""
        was_undecided = self._undecided.pop((wd, name), None) is not None
        return self._writing.pop((wd, name), None) is not None or was_undecided

    def _keep_names(self, files: Iterable[tuple[int, bytes]]) -> None:
        for wd, name in files:
            if wd in self._named:
                self._named[wd].add(name)


_TELLS_NO_MORE = frozenset((IN_CREATE, IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_TO))
_ABOUT_WATCHES = IN_ISDIR | IN_MOVE_SELF | IN_UNMOUNT | IN_Q_OVERFLOW | IN_IGNORED
