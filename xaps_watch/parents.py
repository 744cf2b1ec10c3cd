"""The directories that mailboxes lie in, or are expected in: which name there leads to which mailbox. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")  # the mailboxes


class Parents(Generic[T]):
    """By watch descriptor: a name that comes or goes there calls for a look at the mailbox that it leads to."""

    def __init__(self) -> None:
        # Most names lead to one mailbox; where a filesystem isn't mounted, one may lead to thousands.
        self._names: dict[int, dict[bytes, T | set[T]]] = {}

    def __contains__(self, wd: object) -> bool:
        return wd in self._names

    def add(self, wd: int, name: bytes, mailbox: T) -> None:
        """`name` in the directory leads to the mailbox."""
        names = self._names.setdefault(wd, {})
        known = names.setdefault(name, mailbox)
        if isinstance(known, set):
            known.add(mailbox)
        elif known != mailbox:
            names[name] = {known, mailbox}

    def discard(self, wd: int, name: bytes, mailbox: T) -> None:
        """It doesn't any more."""
        names = self._names.get(wd, {})
        known = names.get(name)
        if isinstance(known, set):
            known.discard(mailbox)
        if known in (mailbox, set()):
            del names[name]
        if not names:
            self._names.pop(wd, None)

    def pop(self, wd: int) -> list[T]:
        """The directory is no longer watched; the mailboxes that were to be found in it."""
        return [mailbox for known in self._names.pop(wd, {}).values() for mailbox in _each(known)]

    def any(self) -> int | None:
        """Some directory."""
        return next(iter(self._names), None)

    def named(self, events: Iterable[tuple[int, bytes]]) -> list[T]:
        """The mailboxes to which these names, in these directories, lead."""
        found = [self._names.get(wd, {}).get(name) for wd, name in events]
        return [mailbox for known in found if known is not None for mailbox in _each(known)]


def _each(known: T | set[T]) -> Iterable[T]:
    return known if isinstance(known, set) else (known,)
