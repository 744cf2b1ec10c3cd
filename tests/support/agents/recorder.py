"""What a delivery looks like to inotify: the events in new/ and cur/, as they come."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyinotify

# In the order in which one read of one file would show them.
NAMES = {
    pyinotify.IN_CREATE: "CREATE",
    pyinotify.IN_MODIFY: "MODIFY",
    pyinotify.IN_ATTRIB: "ATTRIB",
    pyinotify.IN_CLOSE_WRITE: "CLOSE_WRITE",
    pyinotify.IN_MOVED_FROM: "MOVED_FROM",
    pyinotify.IN_MOVED_TO: "MOVED_TO",
    pyinotify.IN_DELETE: "DELETE",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `directory` is the watched one, `at` the time.perf_counter() of its reading."""

    directory: Path
    kind: str
    cookie: int
    name: str
    at: float
    complete: bool  # a file has this name and all its bytes: renamed or linked to it, or its writing ended


class Recorder:
    """Watches directories from its creation to close(), in a thread, so that `at` is the time of the event."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self._manager = pyinotify.WatchManager()
        self._directories: dict[int, Path] = {}
        for directory in directories:
            watched = self._manager.add_watch(str(directory), sum(NAMES) | pyinotify.IN_ONLYDIR, quiet=False)
            self._directories[watched[str(directory)]] = directory
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        os.write(self._stop_write, b".")
        self._thread.join()
        for descriptor in (self._stop_read, self._stop_write):
            os.close(descriptor)
        self._manager.close()

    def delivery(self, timeout: float = 30, quiet: float = 0.1) -> list[Event]:
        """What has happened once a file has its name and its bytes, and nothing more for `quiet` seconds.

        Raises TimeoutError, with what was seen instead.
        """
        deadline = time.perf_counter() + timeout
        with self._changed:
            while not any(event.complete for event in self._events):
                if not self._changed.wait(deadline - time.perf_counter()):
                    seen = describe(self._events) or "nothing"
                    raise TimeoutError(f"no delivery within {timeout:.0f} s, only: {seen}")
            while self._changed.wait(quiet):
                pass
            events, self._events = self._events, []
        return events

    def _read(self) -> None:
        inotify = self._manager.get_fd()
        while self._stop_read not in select.select((inotify, self._stop_read), (), ())[0]:
            buffer, at = os.read(inotify, 65536), time.perf_counter()
            with self._changed:
                self._events += self._unpack(buffer, at)
                self._changed.notify_all()

    def _unpack(self, buffer: bytes, at: float) -> Iterable[Event]:
        offset = 0
        while offset < len(buffer):
            wd, mask, cookie, length = struct.unpack_from("iIII", buffer, offset)
            name = os.fsdecode(buffer[offset + 16 : offset + 16 + length].rstrip(b"\0"))
            offset += 16 + length
            if kind := NAMES.get(mask):  # not of directories, nor the end of a watch
                directory = self._directories[wd]
                yield Event(directory, kind, cookie, name, at, _is_complete(directory / name, kind))


def _is_complete(path: Path, kind: str) -> bool:
    if path.name.startswith("."):
        return False
    if kind == "CREATE":
        try:
            return path.stat().st_size > 0
        except FileNotFoundError:
            return False
    return kind in ("MOVED_TO", "CLOSE_WRITE")


def describe(events: Sequence[Event]) -> str:
    """The events as a short text such as "new: CREATE, MODIFY, CLOSE_WRITE"."""
    parts: list[str] = []
    directory = ""
    for event in events:
        text = f"{event.kind} of a dotfile" if event.name.startswith(".") else event.kind
        if event.directory.name != directory:
            directory = event.directory.name
            text = f"{directory}: {text}"
        if not parts or parts[-1] != text:
            parts.append(text)
    return ", ".join(parts)
