"""inotify through pyinotify: the one place that knows pyinotify's WatchManager and its ways.

Its Notifier isn't used: it takes about 30 µs an event, the whole queue in one callback, and loses a batch on one file
name that isn't UTF-8. The manager's descriptor is read here instead, as much at a time as the loop can bear.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios
from pathlib import Path

import pyinotify

from xaps_watch.maildir import LARGEST_EVENT
from xaps_watch.model import XapsError

pyinotify.log.disabled = True  # it prints each failure; whoever gets the OSError knows better what it means

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
        try:
            self._manager = pyinotify.WatchManager()
        except (OSError, pyinotify.InotifyBindingNotFoundError) as error:
            if ctypes.get_errno() == errno.EMFILE:
                limit = sysctl("max_user_instances")
                raise WatchError(
                    f"inotify: this user has opened all its instances (fs.inotify.max_user_instances = {limit}) or "
                    f"files (ulimit -n); mend: sysctl -w fs.inotify.max_user_instances={2 * (limit or 128)}"
                ) from error
            raise WatchError(f"inotify can't be used: {error}") from error
        self._fd: int = self._manager.get_fd()
        os.set_blocking(self._fd, False)
        os.set_inheritable(self._fd, False)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._manager.close()

    def add(self, directory: int, mask: int) -> int:
        """Watch the open directory; the watch descriptor. One that is watched already keeps its own. Raises OSError."""
        name = f"/proc/self/fd/{directory}"  # pyinotify can't take names that aren't UTF-8
        try:
            wd: int = self._manager.add_watch(name, mask, quiet=False)[name]
        except pyinotify.WatchManagerError as error:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number)) from error
        self._manager.del_watch(wd)  # from pyinotify's own table only: 250 bytes each that nobody would read
        return wd

    def remove(self, wd: int) -> None:
        """Take the watch away; not an error when the kernel has done so already."""
        self._manager.rm_watch(wd)

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
