"""The directories that mailboxes lie in, or are expected in: which name there leads to which mailbox. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Parents:
    """By watch descriptor: a name that comes or goes there calls for a look at the mailbox that it leads to."""

    def __init__(self) -> None:
        # Most names lead to one mailbox; where a filesystem isn't mounted, one may lead to thousands.
        self._names: dict[int, dict[bytes, str | set[str]]] = {}

    def __contains__(self, wd: object) -> bool:
        return wd in self._names

    def add(self, wd: int, name: bytes, path: str) -> None:
        """`name` in the directory leads to the mailbox `path`."""
        names = self._names.setdefault(wd, {})
        paths = names.setdefault(name, path)
        if isinstance(paths, set):
            paths.add(path)
        elif paths != path:
            names[name] = {paths, path}

    def discard(self, wd: int, name: bytes, path: str) -> None:
        """It doesn't any more."""
        names = self._names.get(wd, {})
        paths = names.get(name)
        if isinstance(paths, set):
            paths.discard(path)
        if paths in (path, set()):
            del names[name]
        if not names:
            self._names.pop(wd, None)

    def pop(self, wd: int) -> list[str]:
        """The directory is no longer watched; the mailboxes that were to be found in it."""
        return list(_each(self._names.pop(wd, {}).values()))

    def any(self) -> int | None:
        """Some directory."""
        return next(iter(self._names), None)

    def named(self, events: Iterable[tuple[int, bytes]]) -> list[str]:
        """The mailboxes to which these names, in these directories, lead."""
        return list(_each(self._names.get(wd, {}).get(name, ()) for wd, name in events))


def _each(entries: Iterable[str | Iterable[str]]) -> Iterator[str]:
    for paths in entries:
        if isinstance(paths, str):
            yield paths
        else:
            yield from paths
