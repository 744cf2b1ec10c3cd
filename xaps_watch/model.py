"""The values that travel the straight line: mailbox → device → push → outcome. All frozen, checked at the edges."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class XapsError(Exception):
    """The root of all exceptions of this package."""


class ConfigError(XapsError):
    """Something the admin has to mend: the message names the key, the file and the mend. Exit status 78."""


def mask_token(token: str) -> str:
    """A device token as it may appear in logs: enough to tell phones apart, too little to push with."""
    return f"{token[:6]}…{token[-2:]}" if len(token) > 16 else "…"


def is_inbox(name: str) -> bool:
    """INBOX is case-insensitive (RFC 9051, 5.1)."""
    return name.upper() == "INBOX"


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox that a device registered, by the UTF-8 name that the server echoed to it."""

    name: str
    path: str  # the directory that holds new/ and cur/; surrogate escapes stand for bytes that are not UTF-8

    @property
    def is_inbox(self) -> bool:
        return is_inbox(self.name)


@dataclass(frozen=True, slots=True)
class Device:
    """A phone's registration of one mail account."""

    id: int
    username: str
    account_id: str
    token: str = field(repr=False)
    topic: str
    version: int  # aps-version 1 knows only INBOX
    registered_at: int  # unix time, ms
    suspended: str | None = None
    accepted_at: int | None = None  # unix time, ms, of Apple's last 200
    outcome: str | None = None  # Apple's last answer

    @property
    def masked(self) -> str:
        return mask_token(self.token)


@dataclass(frozen=True, slots=True)
class Push:
    """One wake-up of one phone: these mailboxes changed."""

    device: Device
    mailboxes: tuple[str, ...]  # names as echoed


class Request(Enum):
    """What becomes of a push request after its answer."""

    DONE = "done"
    DROP = "drop"
    DEVICE_WAITS = "this device waits"
    ALL_WAIT = "all pushes wait"
    HOLD = "all pushes wait for the admin"
    RENEW_TOKEN = "a new provider token, and once more"  # noqa: S105 (no password)


class Registration(Enum):
    """What becomes of the registration that a push went to."""

    KEEP = "keep"
    ACCEPTED = "note the time"
    REMOVE = "remove, if it was not renewed since"
    SUSPEND = "suspend until the phone registers again"


@dataclass(frozen=True, slots=True)
class Ruling:
    """What an answer means."""

    request: Request
    registration: Registration = Registration.KEEP
    meaning: str = ""  # for people: cause and mend


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one push request."""

    ruling: Ruling
    status: int | None = None  # None: there was no answer
    reason: str | None = None  # Apple's, or the error where there was no answer
    apns_id: str | None = None
    timestamp: int | None = None  # unix time, ms: when Apple last saw the token valid (410)
    retry_after: float | None = None  # seconds

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.status, self.reason) if part is not None)
