"""How the daemon grows with the mailboxes: 1 000, 10 000 and 100 000 of them, three a device.

Linear in mailboxes is what to look for; single figures are the machine's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.report import Report, curves
from tests.support.daemon import DaemonProcess, Site, rss_of
from tests.support.maildirs import deliver_by_rename, make_maildir
from tests.support.values import ACCOUNT_ID, TOPIC, device_token
from xaps_watch import registry
from xaps_watch.simulator import Simulator
from xaps_watch.watches import WATCHES_EACH

SIZES = (1_000, 10_000, 100_000)
MAILBOXES_A_DEVICE = 3
WATCH_BYTES = 104  # of kernel memory, on 64 bits; its inode comes on top
MISSED = 50  # mailboxes that get mail while the daemon doesn't run
DAY = 86_400_000  # ms: each phone registers once
LATE = 10**9  # number of the device that registers late
_MEMORY = "/dev/shm"  # noqa: S108 - a disk would need minutes to make and remove the directories
_SYSCTL = Path("/proc/sys/fs/inotify")


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds, but for the memory (KiB) and the idle CPU (share of one core)."""

    mailboxes: int
    ready: float  # first start
    again: float  # restart, nothing to catch up with
    rss: int
    watches: int
    idle: float
    registered: float  # from a registration's commit to the push for the mail that came right after it
    caught_up: float  # from a restart to the last push for what came while the daemon was down
    recovered: float  # from an overflow of the kernel's queue to the push for a mail whose event was lost


async def measure(mailboxes: int, idle: float) -> Row:
    """One size."""
    with TemporaryDirectory(prefix="xaps-watch-scale-", dir=_MEMORY) as name, _room_for(WATCHES_EACH * mailboxes):
        site = Site(Path(name))
        inboxes = _populate(site, Path(name), mailboxes)
        async with site.simulator() as simulator:
            site.configure(simulator.url)
            daemon = DaemonProcess(site.config_file)
            ready = await _start(daemon)
            rss, watches = rss_of(daemon.pid), _watches(daemon.pid)
            used = await _idle(daemon.pid, idle)
            registered = await _register(simulator, site, Path(name) / "late")
            recovered = await _overflow(simulator, daemon, Path(name) / "late", inboxes)
            await daemon.stop()
            again = await _start(daemon)
            await daemon.stop()
            caught_up = await _catch_up(simulator, daemon, inboxes)
            await daemon.stop()
    return Row(mailboxes, ready, again, rss, watches, used, registered, caught_up, recovered)


@contextmanager
def _room_for(watches: int) -> Iterator[None]:
    """Raise fs.inotify.max_user_watches where it is lower; needs root, without it the rest is polled."""
    sysctl = _SYSCTL / "max_user_watches"
    before = sysctl.read_text()
    if int(before) < watches + 1000 and os.geteuid() == 0:
        sysctl.write_text(str(watches + 1000))
    try:
        yield
    finally:
        if os.geteuid() == 0:
            sysctl.write_text(before)


def _populate(site: Site, root: Path, mailboxes: int) -> list[Path]:
    """Make and register them; the INBOXes, by device."""
    registry.create(site.registry_file)
    now, devices = int(time.time() * 1000), mailboxes // MAILBOXES_A_DEVICE
    inboxes = []
    with closing(sqlite3.connect(site.registry_file)) as book:
        for number in range(devices):
            cursor = book.execute(
                "INSERT INTO device (username, account_id, device_token, subtopic, topic, version, registered_at)"
                " VALUES (?, ?, ?, 'com.apple.mobilemail', ?, 2, ?)",
                (f"user{number}@example.org", ACCOUNT_ID, device_token(number), TOPIC, now - number * DAY // devices),
            )
            home = root / "vmail" / f"{number % 256:02x}" / f"user{number}" / "Maildir"
            inboxes.append(home)
            for folder in ("", ".Sent", ".Archive")[:MAILBOXES_A_DEVICE]:
                for part in ("tmp", "new", "cur"):
                    (home / folder / part).mkdir(parents=True)
                book.execute(
                    "INSERT INTO mailbox VALUES (?, ?, ?)",
                    (cursor.lastrowid, folder.lstrip(".") or "INBOX", str(home / folder)),
                )
        book.commit()
    return inboxes


async def _start(daemon: DaemonProcess) -> float:
    started = time.perf_counter()
    await daemon.start(timeout=300.0)
    return time.perf_counter() - started


def _watches(pid: int) -> int:
    """How many the kernel holds for the process, proc_pid_fdinfo(5)."""
    return sum(found.read_text().count("inotify wd:") for found in Path(f"/proc/{pid}/fdinfo").iterdir())


async def _idle(pid: int, seconds: float) -> float:
    await asyncio.sleep(3.0)
    before = _cpu(pid)
    await asyncio.sleep(seconds)
    return (_cpu(pid) - before) / seconds


async def _register(simulator: Simulator, site: Site, path: Path) -> float:
    make_maildir(path)
    site.register("late", device_token(LATE), {"INBOX": path})
    committed = time.perf_counter()
    deliver_by_rename(path)
    await _pushed(simulator, {device_token(LATE)}, committed)
    return time.perf_counter() - committed


async def _overflow(simulator: Simulator, daemon: DaemonProcess, late: Path, inboxes: list[Path]) -> float:
    """Fill the queue with another's mail while the daemon is stopped, then deliver to the last mailbox of the set."""
    number = len(inboxes) - 1
    message = late / "tmp" / "mail"
    message.write_text("Subject: test\n\n")
    daemon.signal(signal.SIGSTOP)
    for _ in range(int((_SYSCTL / "max_queued_events").read_text()) // 2 + 10):
        message.rename(late / "new" / "mail")
        (late / "new" / "mail").rename(message)
    deliver_by_rename(inboxes[number])
    began = time.perf_counter()
    daemon.signal(signal.SIGCONT)
    await _pushed(simulator, {device_token(number)}, began)
    return time.perf_counter() - began


async def _catch_up(simulator: Simulator, daemon: DaemonProcess, inboxes: list[Path]) -> float:
    numbers = range(0, len(inboxes), len(inboxes) // MISSED)
    for number in numbers:
        deliver_by_rename(inboxes[number])
    began = time.perf_counter()
    await daemon.start(wait_until_ready=False)
    await _pushed(simulator, {device_token(number) for number in numbers}, began)
    elapsed = time.perf_counter() - began
    await daemon.notified("READY=1", 300.0)
    return elapsed


async def _pushed(simulator: Simulator, tokens: set[str], since: float) -> None:
    """Wait until all of them have been pushed to."""
    while not tokens <= {received.token for received in simulator.received if received.at > since}:
        await asyncio.sleep(0.001)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(directory: Path, *, quick: bool) -> Report:
    found = [asyncio.run(measure(size, 5.0 if quick else 20.0)) for size in (SIZES[:2] if quick else SIZES)]
    rows = [
        ["start to READY", *(f"{row.ready:.2f} s" for row in found)],
        ["restart to READY", *(f"{row.again:.2f} s" for row in found)],
        ["RSS", *(f"{row.rss / 1024:.0f} MiB" for row in found)],
        ["watches", *(f"{row.watches:,}" for row in found)],
        ["kernel memory for them", *(f"{row.watches * WATCH_BYTES / 2**20:.1f} MiB" for row in found)],
        ["CPU when idle", *(f"{row.idle:.2%}" for row in found)],
        ["registration's commit → its first mail pushed", *(f"{row.registered * 1000:.0f} ms" for row in found)],
        [f"restart → {MISSED} missed mails pushed", *(f"{row.caught_up:.2f} s" for row in found)],
        ["queue overflow → the lost mail pushed", *(f"{row.recovered:.2f} s" for row in found)],
    ]
    series = {
        "READY, s": [row.ready for row in found],
        "RSS, MiB": [row.rss / 1024 for row in found],
        "overflow → pushed, s": [row.recovered for row in found],
    }
    plot = curves("Growth", "mailboxes", [row.mailboxes for row in found], series)
    head = ["mailboxes, three a device", *(f"{row.mailboxes:,}" for row in found)]
    return Report("Growth with the mailboxes", head, rows, plots={"scale": plot})
