"""Which directories the kernel watches, and for which mailboxes, as far as it has room.

A mailbox has three: its new/, its cur/, and the directory that it lies in, which it shares with others. Where room is
short, the last are given up first, then cur/: without new/ nothing is heard of a mailbox at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from xaps_watch.inotify import Inotify
from xaps_watch.lookout import EVERYTHING, Absent, Found
from xaps_watch.maildir import CUR_MASK, NEW_MASK, PARENT_MASK, EventReader
from xaps_watch.mounts import is_remote
from xaps_watch.parents import Parents

WATCHES_EACH = 3  # at most: those that lie in the same directory share one
_FULL = (errno.ENOSPC, errno.ENOMEM)


class Mailbox:
    """What is kept for each path."""

    __slots__ = ("cur_wd", "device", "inode", "name", "parent", "path", "wd")

    def __init__(self, path: str) -> None:
        self.path = path
        self.wd = 0  # of new/; 0 while there is none
        self.cur_wd = 0
        self.parent = 0  # watch descriptor of the directory in which it is, or where it is expected
        self.name = b""  # what leads to it there
        self.device = 0  # of new/, as last seen
        self.inode = 0  # 0: never seen


class Watches:
    """All of them. `look_again` is told of mailboxes that may have moved meanwhile, `on_full` of want of room."""

    def __init__(
        self,
        inotify: Inotify,
        reader: EventReader,
        changes: int,
        *,
        look_again: Callable[[Mailbox], None],
        on_full: Callable[[], None],
    ) -> None:
        """`changes`: what is asked for in new/ and cur/ beyond what tells of deliveries."""
        self._inotify = inotify
        self._reader = reader
        self._changes = changes
        self._look_again = look_again
        self._on_full = on_full
        self._by_wd: dict[int, Mailbox | tuple[Mailbox, ...]] = {}
        self._parents: Parents[Mailbox] = Parents()
        self.lacking: dict[Mailbox, None] = {}  # cur/ or parent, for want of room
        self.refused = False  # the kernel had no room, and is not to be asked for more until this is reset
        self.mailboxes = 0  # whose new/ is watched

    def at(self, wd: int) -> tuple[Mailbox, ...]:
        """The mailboxes of which this is the new/ or cur/."""
        mailboxes = self._by_wd.get(self._reader.new_of(wd), ())
        return mailboxes if isinstance(mailboxes, tuple) else (mailboxes,)

    def is_parent(self, wd: int) -> bool:
        """Whether mailboxes lie in this directory, or are expected there."""
        return wd in self._parents

    def named(self, events: Iterable[tuple[int, bytes]]) -> list[Mailbox]:
        """The mailboxes to which these names, in these directories, lead."""
        return self._parents.named(events)

    # Placing

    def place(self, mailbox: Mailbox, found: Found) -> float:
        """Watch what was found, as far as there is room. When something changed there last. Raises OSError."""
        self.lacking.pop(mailbox, None)
        wd = self._add_new(mailbox, found)
        if wd != mailbox.wd:
            if mailbox.wd:
                self.detach(mailbox)
            if wd:
                self._attach(mailbox, wd)
        changed = max(os.fstat(found.new).st_ctime, os.fstat(found.cur).st_ctime if found.cur >= 0 else EVERYTHING)
        if wd and found.cur >= 0 and self._add_cur(mailbox, found.cur):
            changed = max(changed, os.fstat(found.cur).st_ctime)
        if wd:
            self.expect(mailbox, found)
        return changed

    def expect(self, mailbox: Mailbox, answer: Found | Absent) -> None:
        """Have the directory that was found tell when the name that leads to the mailbox comes or goes in it."""
        if answer.parent < 0:
            return
        try:
            wd = self._inotify.add(answer.parent, PARENT_MASK)
        except OSError as error:  # then it is looked for from time to time
            if error.errno in _FULL and mailbox.wd:
                self._lack(mailbox)
            return
        if (mailbox.parent, mailbox.name) == (wd, answer.component):
            return
        self._leave_parent(mailbox)
        mailbox.parent, mailbox.name = wd, answer.component
        self._parents.add(wd, answer.component, mailbox)
        if wd not in self._by_wd:
            self._reader.add_parent(wd)
        self._look_again(mailbox)  # it may have come or gone before the watch was there

    def _add_new(self, mailbox: Mailbox, found: Found) -> int:
        """0 if there is no room, or it is to be polled anyway."""
        if self.refused and not mailbox.wd and self._dispensable() == (None, None):
            return 0
        while True:
            try:
                return self._inotify.add(found.new, NEW_MASK | self._changes)
            except OSError as error:
                if error.errno not in _FULL:
                    if is_remote(found.filesystem) and error.errno != errno.EACCES:
                        return 0
                    raise
            self._refuse()
            if not self._give_one_up():
                return 0

    def _add_cur(self, mailbox: Mailbox, directory: int) -> bool:
        if self.refused:
            self.lacking[mailbox] = None
            return False
        try:
            cur_wd = self._inotify.add(directory, CUR_MASK | self._changes)
        except OSError as error:
            if error.errno in _FULL:
                self._lack(mailbox)
            return False
        if cur_wd in self._by_wd:
            return False  # a symlink to some new/
        if mailbox.cur_wd not in (0, cur_wd):
            self._drop_cur(mailbox)
        mailbox.cur_wd = cur_wd
        self._reader.add_cur(cur_wd, mailbox.wd)
        return True

    def _attach(self, mailbox: Mailbox, wd: int) -> None:
        others = self.at(wd)
        for other in others:  # reached by two paths, or renamed
            self._look_again(other)
        self._by_wd[wd] = (*others, mailbox) if others else mailbox
        mailbox.wd = wd
        self.mailboxes += 1

    # Want of room

    def _refuse(self) -> None:
        self.refused = True
        self._on_full()

    def _lack(self, mailbox: Mailbox) -> None:
        self.lacking[mailbox] = None
        self._refuse()

    def _dispensable(self) -> tuple[int | None, int | None]:
        """A parent and a cur/ that are watched."""
        return self._parents.any(), self._reader.any_cur()

    def _give_one_up(self) -> bool:
        """Have one watch less, of those that aren't needed as much as that of a new/. False if there is none."""
        parent, cur = self._dispensable()
        if parent is not None:
            for mailbox in self._parents.pop(parent):
                mailbox.parent = 0
                self.lacking[mailbox] = None
            self._remove_parent(parent)
        elif cur is not None:
            for mailbox in self.at(cur):
                self._drop_cur(mailbox)
                self.lacking[mailbox] = None
        return parent is not None or cur is not None

    # Taking away

    def remove(self, mailbox: Mailbox) -> None:
        """The mailbox is of no interest any more."""
        if mailbox.wd:
            self.detach(mailbox)
        self._leave_parent(mailbox)
        self.lacking.pop(mailbox, None)

    def detach(self, mailbox: Mailbox) -> None:
        """Take the mailbox off the watch of its new/, and the watch away with the last one."""
        wd, mailbox.wd = mailbox.wd, 0
        others = tuple(other for other in self.at(wd) if other is not mailbox)
        self.mailboxes -= 1
        if any(other.cur_wd == mailbox.cur_wd for other in others):
            mailbox.cur_wd = 0
        self._drop_cur(mailbox)
        self.lacking.pop(mailbox, None)
        if others:
            self._by_wd[wd] = others if len(others) > 1 else others[0]
            return
        del self._by_wd[wd]
        self._reader.forget(wd)
        if wd in self._parents:
            self._reader.add_parent(wd)
        else:
            self._inotify.remove(wd)

    def dropped(self, wd: int) -> tuple[list[Mailbox], list[Mailbox]]:
        """The kernel has dropped this watch. The mailboxes that lost their new/, and others to look at."""
        others = self._parents.pop(wd)
        for mailbox in others:
            mailbox.parent = 0
        mailboxes, is_cur = list(self.at(wd)), self._reader.is_cur(wd)
        self._reader.forget(wd)
        if is_cur:
            for mailbox in mailboxes:
                mailbox.cur_wd = 0
            return [], others + mailboxes
        for mailbox in mailboxes:
            mailbox.wd = 0
            self.mailboxes -= 1
            self._drop_cur(mailbox)
            self.lacking.pop(mailbox, None)
        self._by_wd.pop(wd, None)
        return mailboxes, others

    def _drop_cur(self, mailbox: Mailbox) -> None:
        cur_wd, mailbox.cur_wd = mailbox.cur_wd, 0
        if self._reader.is_cur(cur_wd):
            self._reader.forget(cur_wd)
            self._inotify.remove(cur_wd)

    def _leave_parent(self, mailbox: Mailbox) -> None:
        wd, mailbox.parent = mailbox.parent, 0
        self._parents.discard(wd, mailbox.name, mailbox)
        if wd and wd not in self._parents:
            self._remove_parent(wd)

    def _remove_parent(self, wd: int) -> None:
        if wd not in self._by_wd:
            self._reader.forget(wd)
            self._inotify.remove(wd)
