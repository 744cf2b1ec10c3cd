"""Maildirs, and the ways in which mail gets into them."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

_count = itertools.count(1)


def make_maildir(path: Path) -> Path:
    """A Maildir at `path`, if there is none yet."""
    for name in ("tmp", "new", "cur"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return path


def _message(mailbox: Path) -> Path:
    message = mailbox / "tmp" / f"{time.time():.6f}.{os.getpid()}_{next(_count)}.host"
    message.write_text("Subject: test\n\nHello!\n")
    return message


def deliver_by_link(mailbox: Path) -> Path:
    """link() and unlink(), as Postfix, maildrop and procmail do: inotify tells of IN_CREATE alone."""
    message = _message(mailbox)
    delivered = mailbox / "new" / message.name
    delivered.hardlink_to(message)
    message.unlink()
    return delivered


def deliver_by_rename(mailbox: Path) -> Path:
    """rename(), as Dovecot, Exim and mbsync do."""
    message = _message(mailbox)
    return message.rename(mailbox / "new" / message.name)


def deliver_by_copy(mailbox: Path, pause: float = 0.05) -> Path:
    """Written slowly in new/ itself, as cp and rsync --inplace do."""
    delivered = mailbox / "new" / f"{time.time():.6f}.{os.getpid()}_{next(_count)}.copy"
    with delivered.open("w") as message:
        time.sleep(pause)
        message.write("Subject: test\n\n")
        message.flush()
        time.sleep(pause)
        message.write("Hello!\n")
    return delivered


def read_all(mailbox: Path) -> None:
    """What an IMAP session does that selects the mailbox: new/ → cur/."""
    for message in sorted((mailbox / "new").iterdir()):
        message.rename(mailbox / "cur" / f"{message.name}:2,S")


def swap(one: Path, other: Path) -> None:
    """The two directories change places."""
    aside = one.rename(one.with_name(f"{one.name}.aside"))
    other.rename(one)
    aside.rename(other)
