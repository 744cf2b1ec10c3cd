"""``xaps-watch import``: the registrations in the database.json of xapsd (dovecot-xaps-daemon).

Two forms are found on servers, both JSON: user → account-id → device token and mailboxes (xapsd in Go, up to today;
with the time of the registration since 2020, and beside it Apple certificates until 2025), and user → account-id →
device token → mailboxes (xapsd in Python, 2014). Mailbox names are as the phone sent them, in modified UTF-7.

xapsd's plugin never echoed the mailboxes to the phones, so a phone refreshes INBOX alone until it registers with our
plugin, which it does within a day. That is what aps-version 1 stands for in the registry.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from xaps_watch import credentials, mutf7
from xaps_watch.config import Config, topic_fault
from xaps_watch.credentials import CredentialsMissingError
from xaps_watch.mailbox_paths import Doveadm, Locator, Template, UnmappedError
from xaps_watch.model import ConfigError, Mailbox, XapsError, is_inbox, mask_token
from xaps_watch.registry import Registry
from xaps_watch.terminal import printable

APS_VERSION = 1
_AT_ONCE = 4  # processes of doveadm, which mostly wait
_TOKEN = re.compile(r"(?:[0-9a-fA-F]{2}){32,}")
# RFC 3339 as Go writes it: up to nine digits after the second.
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


class ImportingError(XapsError):
    """The file can't be imported at all: the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registration in xapsd's file."""

    user: str
    account_id: str
    token: str = field(repr=False)
    mailboxes: tuple[str, ...]  # as the phone sent them
    registered_at: float  # unix time

    @property
    def registered_ms(self) -> int:
        """In the registry's unit."""
        return int(self.registered_at * 1000)

    def __str__(self) -> str:
        return f"{printable(self.user)} {mask_token(self.token)}"


@dataclass(frozen=True, slots=True)
class _Mapped:
    """An entry, and where its mailboxes lie: INBOX and others, or none at all."""

    entry: Entry
    mailboxes: tuple[Mailbox, ...] = ()
    unmapped: tuple[str, ...] = ()  # why, for each mailbox


@dataclass(slots=True)
class _Tally:
    """What became of the entries."""

    imported: int = 0
    incomplete: int = 0  # of these
    kept: int = 0
    expired: int = 0
    failed: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Can be repeated: a registration that is here and as new is left alone, above all one made by the phone "
        "itself since. Phones hear of INBOX alone until they register anew, which they do within a day. "
        "Exit status: 1 if a registration could not be imported, such as for a user whom Dovecot doesn't know."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="xapsd's, usually /var/lib/xapsd/database.json")
    parser.add_argument(
        "--topic", help="the topic that xapsd told the phones; default: that of the configured credentials"
    )
    paths = parser.add_mutually_exclusive_group()
    paths.add_argument(
        "--doveadm",
        default="doveadm",
        metavar="COMMAND",
        help="asked for the mailboxes' directories, such as 'doveadm -c FILE' (default: %(default)s)",
    )
    paths.add_argument(
        "--path-template",
        metavar="PATH",
        help="instead of asking doveadm: the INBOX's Maildir, such as /var/vmail/%%d/%%n/Maildir (%%u user, %%n its "
        "part before the @, %%d its part after it); folders in it by Maildir++'s rules, such as .Entw&APw-rfe.2024",
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be imported")


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Import and tell. Raises XapsError, ConfigError."""
    now = time.time()
    entries, faults = read(arguments.file, now)
    for fault in faults:
        print(f"✘ {fault}")
    locator: Locator
    if arguments.path_template is not None:
        locator = Template(arguments.path_template)
    else:
        locator = Doveadm(shlex.split(arguments.doveadm) or ["doveadm"])
    topic = _topic(config, arguments.topic)
    tally = _Tally(failed=len(faults))
    with Registry(config.registry.path) as registry:
        wanted = _wanted(entries, registry, now - config.registry.expire_after_days * 86400, tally)
        for mapped in _map(wanted, locator):
            _import(registry, mapped, topic, tally, dry_run=arguments.dry_run)
    _tell(tally, config, arguments)
    return 1 if tally.failed else 0


def _topic(config: Config, told: str | None) -> str:
    """What xapsd told the phones, which has to be what we can push to. Raises ImportingError, ConfigError."""
    if told is not None and (fault := topic_fault(told)) is not None:
        raise ImportingError(f"--topic: {fault}")
    try:
        loaded = credentials.load(config, time.time, time.monotonic)
    except CredentialsMissingError as error:
        if told is not None:
            return told
        raise ConfigError(f"{error}; or name the topic that xapsd told the phones with --topic") from error
    if told is not None and told not in loaded.topics:
        raise ImportingError(
            f"--topic {told}: the configured credentials push to {', '.join(loaded.topics)} alone, so phones that were"
            " told another topic can't be reached before they register anew, which they do within a day by themselves"
        )
    return told or loaded.topic


# --- the file --------------------------------------------------------------------------------------------------------


def read(path: Path, now: float) -> tuple[list[Entry], list[str]]:
    """The registrations in the file, and what is wrong with others. Raises ImportingError. `now`: unix time."""
    try:
        content = json.loads(path.read_bytes())
        written_at = path.stat().st_mtime
    except OSError as error:
        raise ImportingError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are such
        raise ImportingError(f"{path}: is not JSON: {error}") from error
    entries: list[Entry] = []
    faults: list[str] = []
    for user, account_id, token, account in _accounts(path, content):
        try:
            entries.append(_entry(user, account_id, token, account, written_at, now))
        except ValueError as error:
            faults.append(f"{printable(user)} {printable(account_id)}: {error}")
    return entries, faults


def _accounts(path: Path, content: Any) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """User, account-id, device token, and the rest of it, from either form of the file."""
    try:
        users = content.get("Users", {})
        if users is None:  # Go's way to say that there are none
            return
        if "Users" in content and "accounts" not in users:
            for user, value in users.items():
                for account_id, account in value["Accounts"].items():
                    yield user, account_id, account.get("DeviceToken"), account
        else:
            for user, value in content.items():
                for account_id, account in value["accounts"].items():
                    for token, device in account["devices"].items():
                        yield user, account_id, token, {"Mailboxes": device["mailboxes"]}
    except (AttributeError, KeyError, TypeError) as error:
        raise ImportingError(f"{path}: is no database.json of xapsd that this program knows") from error


def _entry(user: str, account_id: str, token: Any, account: dict[str, Any], written_at: float, now: float) -> Entry:
    """Raises ValueError."""
    mailboxes = account.get("Mailboxes")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ValueError("its device token is none: it must be at least 64 hexadecimal digits")
    if not isinstance(mailboxes, list) or not all(isinstance(name, str) for name in mailboxes):
        raise ValueError("it has no list of mailboxes")
    # Where no time was recorded it was before the file was written, which happens at every registration.
    registered_at = _unix_time(account.get("RegistrationTime")) or written_at
    return Entry(user, account_id, token, tuple(mailboxes), min(registered_at, now))


def _unix_time(text: Any) -> float | None:
    """Of a time as Go writes it; None for its zero time, which stands for an unknown one. Raises ValueError."""
    if text is None:
        return None
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"its RegistrationTime {text!r} is none")
    if text.startswith("0001-"):
        return None
    seconds, fraction, zone = match.groups(default="")
    # datetime.fromisoformat takes just six digits, and no Z, before Python 3.11.
    return datetime.fromisoformat(f"{seconds}.{fraction:0<6.6}{zone.replace('Z', '+00:00')}").timestamp()


# --- mailboxes → paths -----------------------------------------------------------------------------------------------


def _map(entries: Sequence[Entry], locator: Locator) -> Iterator[_Mapped]:
    """In the order of the entries. Raises MailboxPathError."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda entry: _mapped(entry, locator), entries)


def _mapped(entry: Entry, locator: Locator) -> _Mapped:
    """INBOX first: without it there is nothing to push, and the others are not looked for."""
    wanted = sorted({mailbox for mailbox in entry.mailboxes if not is_inbox(mailbox)})
    if len(wanted) == len(set(entry.mailboxes)):
        return _Mapped(entry, unmapped=("it did not ask for INBOX",))
    try:
        found = [Mailbox("INBOX", locator.locate(entry.user, "INBOX"))]
    except UnmappedError as error:
        return _Mapped(entry, unmapped=(f"INBOX: {printable(str(error))}",))
    unmapped = []
    for sent in wanted:
        try:
            name = mutf7.decode(sent)
            found.append(Mailbox(name, locator.locate(entry.user, name)))
        except (UnmappedError, ValueError) as error:
            unmapped.append(f"{printable(sent)}: {printable(str(error))}")
    return _Mapped(entry, tuple(found), tuple(unmapped))


# --- paths → registry ------------------------------------------------------------------------------------------------


def _wanted(entries: Sequence[Entry], registry: Registry, before: float, tally: _Tally) -> list[Entry]:
    """Those that are not older than `before` (unix time), and newer than what the registry has."""
    known = {(d.username, d.account_id, d.token): d.registered_at for d in registry.devices()}
    wanted = []
    for entry in entries:
        if entry.registered_at < before:
            tally.expired += 1
        elif known.get((entry.user, entry.account_id.upper(), entry.token.lower()), -1) >= entry.registered_ms:
            tally.kept += 1
        else:
            wanted.append(entry)
    return wanted


def _import(registry: Registry, mapped: _Mapped, topic: str, tally: _Tally, *, dry_run: bool) -> None:
    entry = mapped.entry
    if not mapped.mailboxes:
        tally.failed += 1
        print(f"✘ {entry} not imported: {mapped.unmapped[0]}")
        return
    if not dry_run and not registry.adopt(
        entry.user,
        entry.account_id,
        entry.token,
        mapped.mailboxes,
        topic=topic,
        version=APS_VERSION,
        registered_at=entry.registered_ms,
    ):
        tally.kept += 1  # the phone has registered in this moment
        return
    tally.imported += 1
    tally.incomplete += bool(mapped.unmapped)
    for reason in mapped.unmapped:
        print(f"! {entry} without {reason}")


def _tell(tally: _Tally, config: Config, arguments: argparse.Namespace) -> None:
    days = f"{config.registry.expire_after_days:g}"
    print(f"{'would be imported' if arguments.dry_run else 'imported'}: {tally.imported}", end="")
    print(f" ({tally.incomplete} without some of the mailboxes)" if tally.incomplete else "")
    for count, what in (
        (tally.kept, "left alone, the registry has them as new or newer"),
        (tally.expired, f"left out, their phones have not renewed them for {days} days"),
        (tally.failed, "could not be imported, see above"),
    ):
        if count:
            print(f"{what}: {count}")
    if tally.imported:
        print(
            "These phones are told of new mail in INBOX at once, and of other mailboxes when they have registered with"
            " the new plugin, which they do by themselves within a day."
        )
