"""What a delivery costs the daemon, from the kernel's queue to the push that is handed to the transport.

A queue full of deliveries into 100 mailboxes is drained at once: by a bare os.read, by pyinotify's own Notifier with a
handler that does nothing, and by the daemon's watcher and service, with a transport that answers at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median

import pyinotify

from tests.bench.report import Report, bars
from tests.support.daemon import Site
from tests.support.maildirs import make_maildir
from tests.support.values import TOPIC, device_token
from xaps_watch import config, registry
from xaps_watch.model import Outcome, Push, Registration, Request, Ruling
from xaps_watch.service import Service

MAILBOXES, DELIVERIES = 100, 12_000  # fewer than fs.inotify.max_queued_events
ACCEPTED = Outcome(Ruling(Request.DONE, Registration.ACCEPTED), status=200)


class Line:
    """Stands in for Apple: accepts all that is pushed, at once."""

    async def push(self, push: Push) -> Outcome:
        return ACCEPTED


def deliver(mailboxes: list[Path]) -> None:
    """Into each in turn, by rename()."""
    for number in range(DELIVERIES):
        mailbox = mailboxes[number % len(mailboxes)]
        message = mailbox / "tmp" / str(number)
        message.hardlink_to(mailbox / "tmp" / "mail")
        message.rename(mailbox / "new" / message.name)


def clear(mailboxes: list[Path]) -> None:
    for mailbox in mailboxes:
        for message in (mailbox / "new").iterdir():
            message.unlink()


def watching(mailboxes: list[Path]) -> pyinotify.WatchManager:
    manager = pyinotify.WatchManager()
    for mailbox in mailboxes:
        manager.add_watch(str(mailbox / "new"), pyinotify.IN_MOVED_TO)
    return manager


def by_read(mailboxes: list[Path]) -> float:
    """Seconds of CPU for all deliveries; so are the others' figures."""
    manager = watching(mailboxes)
    os.set_blocking(manager.get_fd(), False)
    deliver(mailboxes)
    began = time.process_time()
    with suppress(BlockingIOError):
        while os.read(manager.get_fd(), 65536):
            pass
    used = time.process_time() - began
    manager.close()
    return used


def by_notifier(mailboxes: list[Path]) -> float:
    manager = watching(mailboxes)
    notifier = pyinotify.Notifier(manager, lambda event: None)
    deliver(mailboxes)
    began = time.process_time()
    notifier.read_events()
    notifier.process_events()
    used = time.process_time() - began
    notifier.stop()
    return used


def by_daemon(mailboxes: list[Path], site: Site, registered: int, min_interval: float) -> float:
    """With so many of the mailboxes registered."""
    for name in site.registry_file.parent.glob("*") if site.registry_file.exists() else ():
        name.unlink()
    registry.create(site.registry_file)
    for number, mailbox in enumerate(mailboxes[:registered]):
        site.register(f"user{number}", device_token(number + 1), {"INBOX": mailbox})
    settings = config.load(site.configure("https://127.0.0.1:1", sections={"push": {"min_interval": min_interval}}))
    return asyncio.run(_drain(Service(settings), mailboxes, DELIVERIES * registered // len(mailboxes)))


async def _drain(service: Service, mailboxes: list[Path], expected: int) -> float:
    await service.start()
    await service.use(Line(), [TOPIC])
    before = service.watcher.status().events
    deliver(mailboxes)
    began = time.process_time()
    while service.watcher.status().events - before < expected or service.gate.in_flight:
        await asyncio.sleep(0)
    used = time.process_time() - began
    await service.stop(0.0)
    return used


def run(directory: Path, *, quick: bool) -> Report:
    site = Site(directory)
    mailboxes = [make_maildir(directory / f"mailbox{number}") for number in range(MAILBOXES)]
    for mailbox in mailboxes:
        (mailbox / "tmp" / "mail").write_text("Subject: test\n\n")
    measures: dict[str, Callable[[], float]] = {
        "os.read alone": partial(by_read, mailboxes),
        "pyinotify's Notifier, empty handler": partial(by_notifier, mailboxes),
        "xaps-watch, none registered": partial(by_daemon, mailboxes, site, 0, 3.0),
        "xaps-watch, 1 of 100 registered": partial(by_daemon, mailboxes, site, 1, 3.0),
        "xaps-watch, all registered": partial(by_daemon, mailboxes, site, MAILBOXES, 3.0),
        "xaps-watch, all, min_interval 0": partial(by_daemon, mailboxes, site, MAILBOXES, 0.0),
    }
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(1 if quick else 5):
        for name, measure in measures.items():
            found[name].append(measure() / DELIVERIES)
            clear(mailboxes)
    costs = {name: median(figures) for name, figures in found.items()}
    notifier = costs["pyinotify's Notifier, empty handler"]
    rows = [
        [name, f"{cost * 1e6:.2f} µs", f"{cost / notifier:.3f} ×", f"{1 / cost:,.0f}" if cost > 1e-7 else ""]
        for name, cost in costs.items()
    ]
    plot = bars("CPU for a delivery", "µs", {"": {name: max(cost * 1e6, 0.01) for name, cost in costs.items()}})
    head = [f"{DELIVERIES:,} deliveries into {MAILBOXES} mailboxes", "CPU each", "to Notifier", "deliveries/s"]
    return Report("Draining a full queue", head, rows, plots={"events": plot})
