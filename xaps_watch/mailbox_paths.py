"""Where a user's mailbox lies on disk, for registrations that don't bring it along: by doveadm, or by a template.

Dovecot alone knows for sure, so doveadm is asked; the template is for where no Dovecot runs that could be asked.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from xaps_watch import mutf7
from xaps_watch.model import XapsError, is_inbox

PATIENCE = 30.0  # seconds, for one answer of doveadm

_TEMPFAIL = 75  # sysexits.h; doveadm's exit status where Dovecot doesn't answer
_VARIABLE = re.compile(r"%(.?)")


class MailboxPathError(XapsError):
    """No path can be told for any user: the message says why, and the mend."""


class UnmappedError(XapsError):
    """There is no path for this mailbox of this user: the message says why."""


class Locator(Protocol):
    """Knows where mailboxes lie."""

    def locate(self, user: str, mailbox: str) -> str:
        """The directory of the Maildir. Raises UnmappedError, MailboxPathError."""


@dataclass(frozen=True, slots=True)
class Doveadm:
    """Asks Dovecot, with ``doveadm mailbox path`` (2.3 and 2.4)."""

    command: Sequence[str] = ("doveadm",)

    def locate(self, user: str, mailbox: str) -> str:
        if not user or re.search(r"[*?]", user):
            raise UnmappedError(f"{user!r} would be a pattern for doveadm")
        if not mailbox:
            raise UnmappedError("a mailbox without a name")
        arguments = [*self.command, "mailbox", "path", "-u", user, "--", mailbox]
        try:
            done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in a name
            if isinstance(error, FileNotFoundError):
                raise MailboxPathError(f"{self.command[0]}: not found; name it, or give --path-template") from error
            raise UnmappedError(f"{self.command[0]}: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise UnmappedError(f"{self.command[0]} did not answer within {PATIENCE:g} s") from error
        said = " ".join(done.stderr.decode("utf-8", "replace").split()) or f"exit status {done.returncode}"
        if done.returncode == _TEMPFAIL:
            raise UnmappedError(f"{said}; doveadm needs root and a running Dovecot")
        path = done.stdout.removesuffix(b"\n")
        if done.returncode != 0 or not path:
            raise UnmappedError(said)
        return checked([os.fsdecode(path)])


@dataclass(frozen=True, slots=True)
class Template:
    """``/var/vmail/%d/%n/Maildir`` names the INBOX of each user; folders lie in it as Maildir++ has them.

    %u is the user, %n the part before the @, %d the part after it, %% a percent sign, as in Dovecot's mail_location.
    Maildir++: a folder is a directory in INBOX's; its name begins with a dot, has dots between the levels, and is in
    modified UTF-7.
    """

    template: str

    def __post_init__(self) -> None:
        for variable in _VARIABLE.findall(self.template):
            if variable not in ("u", "n", "d", "%"):
                raise MailboxPathError(f"--path-template: unknown variable %{variable}; there are %u, %n, %d and %%")
        if not self.template.startswith("/"):
            raise MailboxPathError(f"--path-template {self.template}: give the whole path, from / on")

    def locate(self, user: str, mailbox: str) -> str:
        inbox = self._inbox(user)
        if is_inbox(mailbox):
            return checked([inbox])
        return checked([f"{inbox}/{directory}" for directory in _folder_directories(mailbox)])

    def _inbox(self, user: str) -> str:
        local, _, domain = user.partition("@")
        values = {"u": user, "n": local, "d": domain, "%": "%"}
        for variable in _VARIABLE.findall(self.template):
            value = values[variable]
            if value in ("", ".", "..") or "/" in value or "\0" in value:
                raise UnmappedError(f"%{variable} would be {value!r}")
        return _VARIABLE.sub(lambda match: values[match[1]], self.template)


def _folder_directories(mailbox: str) -> Iterator[str]:
    """What a folder's directory may be called: the separator is . or /, and the namespace's prefix may be INBOX."""
    levels = re.split(r"[./]", mailbox)
    if "" in levels or "\0" in mailbox:
        raise UnmappedError("no name for a Maildir++ folder")
    yield "." + mutf7.encode(".".join(levels))
    if is_inbox(levels[0]):
        yield "." + mutf7.encode(".".join(levels[1:]))


def checked(candidates: Sequence[str]) -> str:
    """The first of these directories that is a Maildir. Raises UnmappedError."""
    for candidate in candidates:
        if ".." in candidate.split("/"):  # doveadm doesn't look at names as an IMAP session does
            raise UnmappedError(f"{candidate} leads out of the user's mail")
        try:
            if any((Path(candidate) / name).is_dir() for name in ("new", "cur")):
                return candidate
        except PermissionError as error:
            raise UnmappedError(f"{candidate}: {error.strerror}; call it as root") from error
        except OSError as error:
            raise UnmappedError(f"{candidate}: {error.strerror}") from error
    what = "is no Maildir" if Path(candidates[0]).is_dir() else "is not there"
    raise UnmappedError(f"{' or '.join(candidates)} {what}")
