"""inotify through pyinotify's binding of the system calls.

Its WatchManager and Notifier aren't used. The one takes 20 µs and 250 bytes a watch for a table that nobody reads, the
other 15 µs an event, the whole queue in one callback, and it loses a batch on one file name that isn't UTF-8. The
descriptor is read here instead, as much at a time as the loop can bear.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from pathlib import Path

import pyinotify

from xaps_watch.maildir import LARGEST_EVENT
from xaps_watch.model import XapsError

READ_SIZE = 64 * 1024  # about 800 events, 1 ms of work

_SYSCTL = Path("/proc/sys/fs/inotify")


class WatchError(XapsError):
    """inotify can't be used at all."""


class Inotify:
    """One inotify instance. Directories are named by open descriptors, so that the one meant is the one watched."""

    def __init__(self) -> None:
        """Raises WatchError."""
        if not Path("/proc/self/fd").is_dir():
            raise WatchError("/proc is not mounted: directories are watched through /proc/self/fd")
        self._calls = pyinotify.INotifyWrapper.create()
        if self._calls is None:
            raise WatchError("inotify can't be used: the C library has no inotify_init()")
        self._fd: int = self._calls.inotify_init()
        if self._fd < 0:
            if self._calls.get_errno() == errno.EMFILE:
                limit = sysctl("max_user_instances")
                raise WatchError(
                    f"inotify: this user has opened all its instances (fs.inotify.max_user_instances = {limit}) or "
                    f"files (ulimit -n); mend: sysctl -w fs.inotify.max_user_instances={2 * (limit or 128)}"
                )
            raise WatchError(f"inotify can't be used: {self._error()}")
        os.set_blocking(self._fd, False)
        os.set_inheritable(self._fd, False)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def _error(self) -> OSError:
        number = self._calls.get_errno()
        return OSError(number, os.strerror(number))

    def add(self, directory: int, mask: int) -> int:
        """Watch the open directory; the watch descriptor. One that is watched already keeps its own. Raises OSError."""
        wd: int = self._calls.inotify_add_watch(self._fd, f"/proc/self/fd/{directory}", mask)
        if wd < 0:
            raise self._error()
        return wd

    def remove(self, wd: int) -> None:
        """Take the watch away; not an error when the kernel has done so already."""
        self._calls.inotify_rm_watch(self._fd, wd)

    def read(self) -> bytes:
        """Some whole events, or nothing when there is none. The queue was emptied if `is_last` says so."""
        try:
            return os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return b""

    @staticmethod
    def is_last(data: bytes) -> bool:
        """Whether a read that gave this left nothing behind: there was room for one more event."""
        return len(data) <= READ_SIZE - LARGEST_EVENT

    def is_empty(self) -> bool:
        """Whether all events have been read."""
        (waiting,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, b"\0\0\0\0"))
        return bool(waiting == 0)


def sysctl(name: str) -> int | None:
    """The value of fs.inotify.NAME; None if it can't be read."""
    try:
        return int((_SYSCTL / name).read_text())
    except (OSError, ValueError):
        return None
