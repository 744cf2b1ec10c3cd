"""``xaps-watch push``: a test push to each of a user's devices, now, and what Apple says to it.

It goes on a connection of its own, with the configured credentials, and is no business of the running daemon's. An
accepted push is written down, and ends a suspension: the device can be reached. What Apple refuses is only shown: to
suspend or to remove a registration is the daemon's decision, which knows more than one answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from xaps_watch import credentials
from xaps_watch.apns import Apns, pushable
from xaps_watch.config import Config
from xaps_watch.devices import names
from xaps_watch.model import Device, Mailbox, Outcome, Push, Registration, Request, XapsError, is_inbox
from xaps_watch.registry import Note, Registry
from xaps_watch.terminal import duration, printable, when

CHECKLIST = """\
Apple has accepted it. A push shows nothing by itself: it wakes Mail, which fetches {mailbox} and shows what is new
there. If new mail doesn't appear on the phone within seconds, look there (Settings → Mail; from iOS 18 on
Settings → Apps → Mail):
  • Accounts → Fetch New Data: Push is on, and the account below it is set to Push;
  • Accounts → Fetch New Data → the account: {mailbox} has a tick under Pushed Mailboxes;
  • Notifications: allowed, for this account too;
  • Settings → Battery: Low Power Mode is off, it suspends pushes to Mail;
  • if all that is so: delete the account on the phone and add it again."""

_CONSEQUENCES = {
    Registration.REMOVE: "the service removes a registration at this answer, if it wasn't renewed since",
    Registration.SUSPEND: "the service suspends a registration at this answer, until the phone registers again",
}


class PushError(XapsError):
    """There is nobody to push to: the message says what is registered instead."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A push that was sent, and its answer."""

    push: Push
    outcome: Outcome
    seconds: float  # from the request, the connection included where it was the first, to the answer

    @property
    def accepted(self) -> bool:
        return self.outcome.ruling.registration is Registration.ACCEPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit status: 0 if Apple accepted every push, else 1."
    parser.add_argument("user", metavar="USER", help="as Dovecot knows the user; see xaps-watch devices")
    parser.add_argument("mailbox", nargs="?", default="INBOX", metavar="MAILBOX", help="default: INBOX")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Push, show, write down. Raises XapsError, CredentialsError."""
    with Registry(config.registry.path) as registry:
        registered = [(device, registry.mailboxes(device.id)) for device in registry.devices(arguments.user)]
        if not registered:
            raise PushError(unknown_user(arguments.user, registry.usernames()))
        pushes = _pushes(registered, arguments.mailbox)
        if not arguments.json:
            for device in [device for device, _ in registered if device not in [push.device for push in pushes]]:
                print(f"- {printable(device.username)} {device.masked}: did not ask for {printable(arguments.mailbox)}")
        attempts = asyncio.run(_send(config, pushes, silent=arguments.json))
        registry.write(
            Note(a.push.device.id, str(a.outcome), a.push.device.registered_at, int(time.time() * 1000), resume=True)
            for a in attempts
            if a.accepted
        )
    if arguments.json:
        json.dump([_record(attempt) for attempt in attempts], sys.stdout, indent=2)
        print()
    elif any(attempt.accepted for attempt in attempts):
        print("\n" + CHECKLIST.format(mailbox=printable(pushes[0].mailboxes[0])))
    return 0 if len(attempts) == len(pushes) and all(attempt.accepted for attempt in attempts) else 1


def unknown_user(username: str, registered: Sequence[str], at_most: int = 20) -> str:
    """Nobody of that name has a device; who has."""
    if not registered:
        return f"no device of {username!r} is registered, nor of anybody else"
    others = f" and {len(registered) - at_most} more" if len(registered) > at_most else ""
    return f"no device of {username!r} is registered; registered: {', '.join(registered[:at_most])}{others}"


def _pushes(registered: Sequence[tuple[Device, list[Mailbox]]], wanted: str) -> list[Push]:
    """One for each device that asked for the mailbox. Raises PushError where none did."""
    pushes = []
    for device, mailboxes in registered:
        if is_inbox(wanted):
            pushes.append(Push(device, ("INBOX",)))  # without "m", which every phone takes for INBOX
            continue
        asked = [mailbox.name for mailbox in mailboxes if mailbox.name == wanted]
        if pushable(device.version, asked):
            pushes.append(Push(device, (wanted,)))
    if not pushes:
        known = "; ".join(
            f"{device.masked}: {', '.join(names(mailboxes)) if device.version >= 2 else 'INBOX alone'}"
            for device, mailboxes in registered
        )
        user = registered[0][0].username
        raise PushError(f"no device of {user!r} asked for mailbox {wanted!r}; registered: {known}")
    return pushes


async def _send(config: Config, pushes: Sequence[Push], *, silent: bool) -> list[_Attempt]:
    """One after the other; an answer that concerns all of them ends it."""
    apns = config.apns
    connection = Apns(
        apns.push_url,
        credentials.load(config, time.time, time.monotonic),
        ca_file=apns.ca_file,
        time=time.time,
        priority=apns.priority,
        timeout=apns.timeout,
        transport=apns.transport,
    )
    attempts: list[_Attempt] = []
    try:
        async for attempt in _attempts(connection, pushes):
            attempts.append(attempt)
            if not silent:
                print("\n".join(_lines(attempt)), flush=True)
    finally:
        await connection.aclose()
    if len(attempts) < len(pushes) and not silent:
        print(f"not tried: {', '.join(push.device.masked for push in pushes[len(attempts):])}, it would end the same")
    return attempts


async def _attempts(connection: Apns, pushes: Sequence[Push]) -> AsyncIterator[_Attempt]:
    for push in pushes:
        started = time.perf_counter()
        outcome = await connection.push(push)
        yield _Attempt(push, outcome, time.perf_counter() - started)
        if outcome.ruling.request in (Request.ALL_WAIT, Request.HOLD, Request.RENEW_TOKEN):
            return


def _lines(attempt: _Attempt) -> list[str]:
    push, outcome = attempt.push, attempt.outcome
    device = push.device
    mark = "✔" if attempt.accepted else "✘"
    answer = printable(str(outcome)) if outcome.status is not None else f"no answer: {printable(outcome.reason or '?')}"
    apns_id = f", apns-id {outcome.apns_id}" if outcome.apns_id else ""
    lines = [
        f"{mark} {printable(device.username)} {device.masked} {printable(push.mailboxes[0])}: {answer}"
        f" after {duration(attempt.seconds)}{apns_id}"
    ]
    if outcome.ruling.meaning:
        lines.append(f"    {outcome.ruling.meaning}")
    if outcome.timestamp is not None:
        lines.append(f"    invalid since {when(outcome.timestamp)}")
    if consequence := _CONSEQUENCES.get(outcome.ruling.registration):
        lines.append(f"    {consequence}")
    if device.suspended is not None:
        now = "it is no longer, since it can be reached" if attempt.accepted else "it stays so"
        lines.append(f"    was suspended ({printable(device.suspended)}): {now}")
    return lines


def _record(attempt: _Attempt) -> dict[str, Any]:
    outcome, device = attempt.outcome, attempt.push.device
    return {
        "user": device.username,
        "device": device.masked,
        "account_id": device.account_id,
        "mailboxes": attempt.push.mailboxes,
        "suspended": device.suspended,
        "accepted": attempt.accepted,
        "status": outcome.status,
        "reason": outcome.reason,
        "meaning": outcome.ruling.meaning or None,
        "apns_id": outcome.apns_id,
        "seconds": attempt.seconds,
    }
