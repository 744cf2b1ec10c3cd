"""``xaps-watch devices``: who is registered, for which mailboxes, and how the last push went."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from xaps_watch.config import Config
from xaps_watch.model import Device, Mailbox
from xaps_watch.registry import Registry
from xaps_watch.terminal import GAP, aligned, columns, printable, when, width, wrapped

_HEADINGS = ("USER", "DEVICE", "REGISTERED", "LAST ACCEPTED", "LAST ANSWER")
_LAST_HEADING = "MAILBOXES"
_ROOM = 30  # cells: with less, the mailboxes go on lines of their own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", nargs="?", metavar="USER", help="only this user's")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Print the table. Exit status 1 if there is nobody to list. Raises RegistryError."""
    with Registry(config.registry.path) as registry:
        listed = [(device, registry.mailboxes(device.id)) for device in registry.devices(arguments.user)]
    if arguments.json:
        json.dump([record(device, mailboxes) for device, mailboxes in listed], sys.stdout, indent=2)
        print()
    elif listed:
        print("\n".join(_table(listed, columns())))
    else:
        whose = f" of {arguments.user}" if arguments.user else ""
        print(f"no device{whose} has registered yet; on the iPhone: Settings → Mail → Accounts → Fetch New Data → Push")
    return 0 if listed else 1


def record(device: Device, mailboxes: list[Mailbox]) -> dict[str, Any]:
    """A registration as the commands' ``--json`` shows it. Times are unix times in seconds."""
    return {
        "user": device.username,
        "device": device.masked,
        "account_id": device.account_id,
        "topic": device.topic,
        "aps_version": device.version,
        "registered_at": device.registered_at / 1000,
        "accepted_at": device.accepted_at and device.accepted_at / 1000,
        "outcome": device.outcome,
        "suspended": device.suspended,
        "mailboxes": [{"name": mailbox.name, "path": mailbox.path} for mailbox in mailboxes],
    }


def names(mailboxes: list[Mailbox]) -> list[str]:
    """The mailboxes' names for a terminal, INBOX first."""
    return [printable(mailbox.name) for mailbox in sorted(mailboxes, key=lambda m: (not m.is_inbox, m.name))]


def _table(listed: list[tuple[Device, list[Mailbox]]], available: float) -> Iterator[str]:
    """One line a device, with its mailboxes in the last column, or below where the terminal is too narrow for that."""
    heading, *lines = aligned([_HEADINGS, *(_row(device) for device, _ in listed)])
    indent = max(map(width, (heading, *lines))) + width(GAP)
    below = available - indent < _ROOM
    yield heading if below else heading + " " * (indent - width(heading)) + _LAST_HEADING
    if below:
        indent = 4
    for line, (device, mailboxes) in zip(lines, listed, strict=True):
        first, *others = wrapped(names(mailboxes), available - indent) or ["-"]
        if below:
            yield line
            others.insert(0, first)
        else:
            yield line + " " * (indent - width(line)) + first
        yield from (" " * indent + other for other in others)
        if device.version < 2 and len(mailboxes) > 1:
            yield "    pushes for INBOX alone, until the phone registers anew"
        if device.suspended:
            yield f"    suspended: {printable(device.suspended)}"


def _row(device: Device) -> tuple[str, ...]:
    return (
        printable(device.username),
        device.masked,
        when(device.registered_at),
        when(device.accepted_at),
        device.outcome or "-",
    )
