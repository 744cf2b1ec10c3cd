"""``xaps-watch forget``: remove a user's registrations, or a device's."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from xaps_watch.config import Config
from xaps_watch.devices import names
from xaps_watch.model import Device, XapsError
from xaps_watch.registry import Registry
from xaps_watch.terminal import printable, when

# A whole device token, its beginning, or the form in which logs and commands show it (model.mask_token). Fewer digits
# than that form has could be a user's name mistyped.
_TOKEN = re.compile(r"([0-9a-f]{6,})(?:(?:…|\.\.\.?)([0-9a-f]*))?", re.IGNORECASE)


class ForgetError(XapsError):
    """It isn't clear what to remove: the message says what there is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The phone registers again within a day, unless the account is removed from it or no longer set to Push."
    )
    parser.add_argument(
        "which",
        metavar="USER|TOKEN",
        help="a user; or a device token, whole, its beginning, or as xaps-watch devices shows it",
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be removed")


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Remove, and show what was. Raises ForgetError, RegistryError."""
    with Registry(config.registry.path) as registry:
        chosen = _chosen(registry.devices(), arguments.which)
        listed = [(device, registry.mailboxes(device.id)) for device in chosen]
        if not arguments.dry_run:
            registry.forget(device.id for device in chosen)
    did = "would remove" if arguments.dry_run else "removed"
    for device, mailboxes in listed:
        what = f"{printable(device.username)} {device.masked}, registered {when(device.registered_at)}"
        print(f"{did} {what}: {', '.join(names(mailboxes)) or 'no mailbox'}")
    return 0


def _chosen(devices: Sequence[Device], which: str) -> list[Device]:
    """A user of that name goes before a device token that looks like it."""
    of_user = [device for device in devices if device.username == which]
    if of_user:
        return of_user
    found: list[Device] = []
    if parts := _TOKEN.fullmatch(which):
        begin, end = parts[1].lower(), (parts[2] or "").lower()
        found = [device for device in devices if device.token.startswith(begin) and device.token.endswith(end)]
    if len({device.token for device in found}) > 1:
        matching = ", ".join(sorted({f"{device.username} {device.masked}" for device in found}))
        raise ForgetError(f"{which!r} fits several devices, give more of the token: {matching}")
    if not found:
        raise ForgetError(f"neither a user nor a device is registered as {which!r}; see xaps-watch devices")
    return found
