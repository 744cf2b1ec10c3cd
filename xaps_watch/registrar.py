"""Keeps the service and the registry in step: tells what was registered, writes down what became of pushes.

Two connections: one for the look-ups that each delivery needs, in the event loop, which never waits for a lock; one for
all that may take long, in a thread of its own. Whatever is wrong with the file is told once, and tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol, TypeVar

from xaps_watch import registry
from xaps_watch.logs import fields
from xaps_watch.model import Device
from xaps_watch.registry import Note, Registered, Registry, RegistryCorruptError, RegistryError, Subscriber, WriteNotice

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# A look at all paths takes about 2 s a million; it is needed only to find out which ones are gone.
SWEEP_SHARE = 20  # spend at most a twentieth of the time on it
# Unix time in ms: two phones' transactions may be committed in another order than they began.
COMMITS_MAY_TAKE = 10_000
# How often in a row SQLite has to call a file damaged before it is moved aside: it may be a restore in progress.
CORRUPT_TRIES = 3
# Seconds between two writes of what may wait: each wakes all who watch the file, and this program is one of them.
WRITE_INTERVAL = 2.0
# Seconds to wait for another's lock. What couldn't be written is tried again soon, and a stop must not wait for long.
LOCK_TIMEOUT = 2.0


class Listener(Protocol):
    """Who wants to know what is registered."""

    def registered(self, registrations: Sequence[Registered]) -> None:
        """These mailboxes were registered, lately; some for the first time."""

    async def all_registered(self, paths: dict[str, int]) -> None:
        """These are all there are, and when (unix time, ms) the first registration of each was made."""


@dataclass(slots=True)
class _Open:
    """The two connections to one file."""

    lookup: Registry
    store: Registry


class Registrar:
    """The service's side of the registry."""

    def __init__(
        self, path: Path, listener: Listener, *, time: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self.path = path
        self.trouble: str | None = None  # what is wrong with the registry now
        self._listener = listener
        self._time = time
        self._monotonic = monotonic
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._open: _Open | None = None
        self._notice: WriteNotice | None = None
        self._wake = asyncio.Event()
        self._notes: dict[int, Note] = {}
        self._settings: dict[str, str] = {}
        self._stored: dict[str, str] = {}  # settings as they are in the file
        self._newest = 0  # unix time, ms: of the newest registration seen
        self._lately: set[Registered] = set()  # what was told last
        self._next_sweep = 0.0
        self._sweep_wanted = False
        self._corrupt_tries = 0
        self._urgent = False  # what is to be written must not wait
        self._next_write = 0.0  # monotonic

    # --- in the event loop, for each delivery ------------------------------------------------------------------------

    def subscribers(self, paths: Collection[str]) -> list[Subscriber]:
        """The devices to be told of mail in these mailboxes. Raises RegistryError: ask again later."""
        return self._lookup().subscribers(paths)

    def registrations(self, device_ids: Collection[int]) -> dict[int, tuple[Device, frozenset[str]]]:
        """Those of these devices that there are now, with the names of their mailboxes. Raises RegistryError."""
        return self._lookup().registrations(device_ids)

    def note(self, note: Note) -> None:
        """To be written down soon. One a device: the newest counts, but for a removal or suspension before it."""
        before = self._notes.get(note.device_id)
        if before is None or (note.accepted_at and not before.resume):
            self._notes[note.device_id] = note
        elif not (before.remove or before.suspend) or note.resume or note.accepted_at:
            accepted_at = note.accepted_at or before.accepted_at
            resume = note.resume or (before.resume and not note.suspend)
            self._notes[note.device_id] = replace(note, accepted_at=accepted_at, resume=resume)
        if note.remove or note.suspend or note.resume:
            self.wake()

    def setting(self, name: str) -> str | None:
        """As it was when the registry was opened, or as it was set since."""
        return self._settings.get(name, self._stored.get(name))

    def set(self, name: str, value: str) -> None:
        """To be written down soon, if it isn't so already, and again into a registry that replaces this one."""
        self._settings[name] = value

    def wake(self) -> None:
        """End wait(), and have the next step write all that is to be written."""
        self._urgent = True
        self._wake.set()

    def _lookup(self) -> Registry:
        if self._open is None:
            raise RegistryError(f"{self.path}: not open")
        return self._open.lookup

    # --- beside it ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the registry, made if it isn't there; a damaged one is moved aside. Raises RegistryError."""
        for attempt in range(CORRUPT_TRIES):
            try:
                await self._reopen()
                break
            except RegistryCorruptError as error:
                self._tell(error)
                if attempt == CORRUPT_TRIES - 1:
                    await self._move_aside()
                else:
                    await asyncio.sleep(1.0)
        self.trouble = None
        with suppress(RegistryError):  # then wait() ends by its timeout alone
            self._notice = WriteNotice(self.path, self._wake.set)

    async def close(self) -> None:
        """Write down what is still to be written; give up after that. Takes a few LOCK_TIMEOUTs at the most."""
        if self._notice is not None:
            self._notice.close()
        try:
            await self._write()
        except RegistryError as error:
            log.error("registry could not be written before the stop %s", fields(error=error))
        await self._in_thread(lambda: None)  # a start that was given up may still be opening it
        await self._shut()
        self._thread.shutdown()

    async def wait(self, seconds: float) -> None:
        """Until somebody wrote to the registry or there is something urgent to write; at most so long."""
        # Not asyncio.wait_for: until Python 3.12 it loses a cancellation that comes together with the wake-up.
        seconds = seconds if self._notice else min(seconds, 1.0)
        timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()  # here, so that no fault of what follows can make the next wait() end at once

    async def step(self) -> None:
        """Read what others wrote, write down what is to be written. Trouble with the file is told, once, and kept."""
        try:
            if self._open is None or self._open.store.replaced():
                await self._reopen()
                log.warning("registry opened anew %s", fields(path=self.path))
            await self._read()  # first: it works also while another holds the lock, or the disk is full
            if self._urgent or self._monotonic() >= self._next_write:
                await self._write()
        except RegistryCorruptError as error:
            await self._on_damage(error)
        except RegistryError as error:
            self._tell(error)
        else:
            self._corrupt_tries = 0
            if self.trouble is not None:
                log.warning("registry usable again %s", fields(path=self.path))
                self.trouble = None

    async def _on_damage(self, error: RegistryCorruptError) -> None:
        self._corrupt_tries += 1
        if self._corrupt_tries < CORRUPT_TRIES:
            self._tell(error)
            return
        try:
            await self._move_aside()
        except RegistryError as hindrance:  # the disk is full, or was made read-only
            self._tell(hindrance)

    async def in_store(self, work: Callable[[Registry], _T]) -> _T:
        """Have something done with the registry that may take long. Raises RegistryError."""
        return await self._in_thread(lambda: work(self._store()))

    async def _read(self) -> None:
        registrations = await self._in_thread(self._changes)
        if registrations is not None:
            self._listener.registered(registrations)
            self._sweep_wanted = True
        if self._sweep_wanted and self._monotonic() >= self._next_sweep:
            started = self._monotonic()
            paths = await self._in_thread(lambda: self._store().paths())
            await self._listener.all_registered(paths)
            self._sweep_wanted = False
            self._next_sweep = started + SWEEP_SHARE * (self._monotonic() - started)

    async def _write(self) -> None:
        notes, self._notes = self._notes, {}
        settings = {name: value for name, value in self._settings.items() if self._stored.get(name) != value}
        self._urgent = False
        if not notes and not settings:
            return
        try:
            await self._in_thread(lambda: self._store().write(notes.values(), settings))
        except RegistryError:
            self._notes = {**notes, **self._notes}
            self._urgent = True
            raise
        self._next_write = self._monotonic() + WRITE_INTERVAL
        self._stored.update(settings)

    def _tell(self, error: RegistryError) -> None:
        if self.trouble != str(error):
            log.error("registry can't be used, what is to be read or written there waits %s", fields(error=error))
            self.trouble = str(error)

    # --- opening it --------------------------------------------------------------------------------------------------

    async def _reopen(self) -> None:
        await self._shut()
        await self._in_thread(self._open_anew)

    async def _move_aside(self) -> None:
        """Keep the damaged file for the admin, and begin a new one: the phones register again within a day."""
        await self._shut()
        await self._in_thread(self._move_damaged)
        await self._in_thread(self._open_anew)

    async def _shut(self) -> None:
        """Close each connection in the thread that uses it: to close one that is being asked ends the process."""
        opened, self._open = self._open, None
        if opened is not None:
            with suppress(RegistryError):
                opened.lookup.close()
            with suppress(RegistryError):
                await self._in_thread(opened.store.close)

    # --- in the thread -----------------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _store(self) -> Registry:
        if self._open is None:
            raise RegistryError(f"{self.path}: not open")
        return self._open.store

    def _open_anew(self) -> None:
        if registry.create(self.path):
            log.info("registry created %s", fields(path=self.path))
        store = Registry(self.path, busy_timeout=LOCK_TIMEOUT)
        try:
            self._stored = dict(store.settings())
            self._stored.pop("topic", None)  # to be written again, since its file may be missing, or an older one's
            self._open = _Open(lookup=Registry(self.path, busy_timeout=0.0), store=store)
        except RegistryError:
            store.close()
            raise
        self._newest = store.newest()
        self._sweep_wanted, self._next_sweep = True, 0.0

    def _changes(self) -> list[Registered] | None:
        store = self._store()
        if not store.changed():
            return None
        since = min(self._newest, int(self._time() * 1000)) - COMMITS_MAY_TAKE
        registrations = store.registered_since(since)
        self._newest = max([self._newest, *(registered.registered_at for registered in registrations)])
        lately, self._lately = self._lately, set(registrations)
        return [registered for registered in registrations if registered not in lately]

    def _move_damaged(self) -> None:
        kept = registry.move_aside(self.path, datetime.now(timezone.utc))
        log.critical(
            "registry was damaged and moved aside; phones register again within a day %s", fields(kept=kept)
        )
