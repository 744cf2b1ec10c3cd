"""How the daemon grows: ``python -m tests.bench.bench_scale 1000 10000 100000`` (registered mailboxes, three a device).

For each size: the time from its start to READY=1 (first start, and a restart with nothing to catch up with), the
daemon's memory, the kernel's for the watches, CPU while idle, the time from a registration's commit until its mailbox
is watched, and from a delivery to the push. Linear in mailboxes is what to look for; single figures are the machine's.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import deliver_by_rename, make_maildir
from tests.support.values import ACCOUNT_ID, TOPIC, device_token
from xaps_watch import registry
from xaps_watch.simulator import Simulator
from xaps_watch.status import ask

MAILBOXES_A_DEVICE = 3
IDLE = 20.0  # seconds of idleness that are looked at
WATCH_BYTES = 104  # of kernel memory each, on 64 bits, plus the inode


@dataclass(frozen=True, slots=True)
class Row:
    mailboxes: int
    ready: float  # seconds
    again: float  # seconds
    rss: int  # KiB
    idle: float  # share of one core
    registered: float  # seconds until watched
    pushed: float  # seconds


async def measure(mailboxes: int) -> Row:
    """One size."""
    with TemporaryDirectory(prefix="xaps-watch-scale-") as name:
        site = Site(Path(name))
        _populate(site, Path(name), mailboxes)
        async with site.simulator() as simulator:
            site.configure(simulator.url)
            daemon = DaemonProcess(site.config_file)
            ready = await _start(daemon)
            rss = _rss(daemon.pid)
            idle = await _idle(daemon.pid)
            registered = await _register(site, Path(name) / "late")
            pushed = await _push(simulator, Path(name) / "late")
            await daemon.stop()
            again = await _start(daemon)
            await daemon.stop()
    return Row(mailboxes, ready, again, rss, idle, registered, pushed)


def _populate(site: Site, root: Path, mailboxes: int) -> None:
    registry.create(site.registry_file)
    now = int(time.time() * 1000)
    with closing(sqlite3.connect(site.registry_file)) as book:
        for number in range(mailboxes // MAILBOXES_A_DEVICE):
            cursor = book.execute(
                "INSERT INTO device (username, account_id, device_token, subtopic, topic, version, registered_at)"
                " VALUES (?, ?, ?, 'com.apple.mobilemail', ?, 2, ?)",
                (f"user{number}@example.org", ACCOUNT_ID, device_token(number), TOPIC, now),
            )
            home = root / "vmail" / f"{number % 256:02x}" / f"user{number}" / "Maildir"
            for folder in ("", ".Sent", ".Archive")[:MAILBOXES_A_DEVICE]:
                for part in ("new", "cur"):
                    (home / folder / part).mkdir(parents=True)
                book.execute(
                    "INSERT INTO mailbox VALUES (?, ?, ?)",
                    (cursor.lastrowid, folder.lstrip(".") or "INBOX", str(home / folder)),
                )
        book.commit()


async def _start(daemon: DaemonProcess) -> float:
    started = time.perf_counter()
    await daemon.start(timeout=300.0)
    return time.perf_counter() - started


async def _idle(pid: int) -> float:
    await asyncio.sleep(3.0)
    before = _cpu(pid)
    await asyncio.sleep(IDLE)
    return (_cpu(pid) - before) / IDLE


async def _register(site: Site, path: Path) -> float:
    make_maildir(path)
    before = ask(site.status_socket)["watcher"]["watched"]
    site.register("late", device_token(10**9), {"INBOX": path})
    committed = time.perf_counter()
    while ask(site.status_socket)["watcher"]["watched"] == before:
        await asyncio.sleep(0.002)
    return time.perf_counter() - committed


async def _push(simulator: Simulator, path: Path) -> float:
    before = simulator.requests
    started = time.perf_counter()
    deliver_by_rename(path)
    await simulator.wait_for(before + 1)
    return time.perf_counter() - started


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def main(sizes: list[int]) -> int:
    print("| mailboxes | READY | again | RSS | kernel | idle CPU | registered → watched | delivered → push |")
    print("|---|---|---|---|---|---|---|---|")
    for size in sizes:
        row = asyncio.run(measure(size))
        print(
            f"| {row.mailboxes} | {row.ready:.2f} s | {row.again:.2f} s | {row.rss / 1024:.0f} MiB"
            f" | {row.mailboxes * WATCH_BYTES / 2**20:.1f} MiB | {row.idle:.2%} | {row.registered * 1000:.0f} ms"
            f" | {row.pushed * 1000:.1f} ms |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main([int(size) for size in sys.argv[1:]] or [1_000, 10_000, 100_000]))
