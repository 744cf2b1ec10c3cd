"""``xaps-watch devices``: who is registered, for which mailboxes, and how the last push went."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from xaps_watch.config import Config
from xaps_watch.model import Device, Mailbox
from xaps_watch.registry import Registry

_HEADINGS = ("USER", "DEVICE", "REGISTERED", "LAST PUSH", "OUTCOME", "MAILBOXES")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", nargs="?", metavar="USER", help="only this user's")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Print the table. Exit status 1 if there is nobody to list. Raises RegistryError."""
    with Registry(config.registry.path) as registry:
        listed = [(device, registry.mailboxes(device.id)) for device in registry.devices(arguments.user)]
    if arguments.json:
        json.dump([_record(device, mailboxes) for device, mailboxes in listed], sys.stdout, indent=2)
        print()
    elif listed:
        rows = [_HEADINGS, *(_row(device, mailboxes) for device, mailboxes in listed)]
        print("\n".join(_aligned(rows)))
    else:
        whose = f" of {arguments.user}" if arguments.user else ""
        print(f"no device{whose} has registered yet; on the iPhone: Settings → Mail → Accounts → Fetch New Data → Push")
    return 0 if listed else 1


def _row(device: Device, mailboxes: list[Mailbox]) -> tuple[str, ...]:
    return (
        _printable(device.username),
        device.masked,
        _when(device.registered_at),
        _when(device.accepted_at),
        f"suspended: {device.suspended}" if device.suspended else (device.outcome or "-"),
        ", ".join(_printable(mailbox.name) for mailbox in mailboxes) or "-",
    )


def _record(device: Device, mailboxes: list[Mailbox]) -> dict[str, Any]:
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


def _when(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M:%S}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
