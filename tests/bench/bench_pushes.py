"""Pushes a second with 1, 10, 100 and 1 000 devices waiting, and what each costs.

The whole daemon, from the delivery into a device's mailbox to the answer, beside bare clients that do nothing but push,
in turn on one processor; nginx and who delivers have the other. `min_interval` is 0, or nothing would be waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median

from tests.bench.report import Report, bars
from tests.bench.senders import Rate, Sender, h2load
from tests.bench.servers import SENDER_CPU, Nginx, nginx, pin
from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import make_maildir
from tests.support.values import device_token
from xaps_watch.authority import LocalAuthority

WAITING = (1, 10, 100, 1_000)
IN_FLIGHT = 100  # what the daemon has at a time, at the most
STALLED = 0.05  # seconds without a push: some deliveries were merged into one, so that fewer pushes come

DAEMON, AIOAPNS, HTTPX, FAST, LIMIT = (
    "xaps-watch, whole daemon", "aioapns, bare", "httpx, bare", "httpx with our transport, bare", "h2load (C)",
)  # fmt: skip


class FedDaemon:
    """A daemon whose devices all have mail waiting for as long as it is measured."""

    def __init__(self, daemon: DaemonProcess, server: Nginx, mailboxes: list[Path]) -> None:
        self._daemon, self._server = daemon, server
        self._moves = [(mailbox / "tmp" / "mail", mailbox / "new" / "mail") for mailbox in mailboxes]

    def measure(self, seconds: float) -> Rate:
        pushed, used, began = self._server.requests(), self._cpu(), time.perf_counter()
        self._feed(began + seconds)
        pushed = self._server.requests() - pushed
        return Rate(pushed / (time.perf_counter() - began), (self._cpu() - used) / max(1, pushed))

    def _feed(self, until: float) -> None:
        """Deliver to all again when the pushes for the last time are nearly through, so that it never has to wait."""
        left = min(len(self._moves), IN_FLIGHT) // 2
        last = expected = self._server.requests()
        moved = time.perf_counter()
        while (now := time.perf_counter()) < until:
            pushed = self._server.requests()
            if pushed != last:
                last, moved = pushed, now
            if now - moved > STALLED:
                expected, moved = pushed, now
            if pushed + left >= expected:
                for tmp, new in self._moves:
                    tmp.rename(new)
                    new.rename(tmp)
                expected += len(self._moves)
            else:
                time.sleep(0.0001)

    def _cpu(self) -> float:
        threads = Path(f"/proc/{self._daemon.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@asynccontextmanager
async def fed_daemon(directory: Path, server: Nginx, ca_file: Path, devices: int) -> AsyncIterator[FedDaemon]:
    """A daemon with so many devices, a mailbox each."""
    directory.mkdir()
    site = Site(directory)
    mailboxes = [make_maildir(directory / f"mailbox{number}") for number in range(devices)]
    for number, mailbox in enumerate(mailboxes):
        (mailbox / "tmp" / "mail").write_text("Subject: test\n\n")
        site.register(f"user{number}", device_token(number + 1), {"INBOX": mailbox})
    site.configure(server.url, sections={"push": {"min_interval": 0}, "apns": {"ca_file": ca_file}})
    async with DaemonProcess(site.config_file) as daemon:
        pin(daemon.pid, SENDER_CPU)
        yield FedDaemon(daemon, server, mailboxes)


async def measure(directory: Path, rounds: int, seconds: float) -> dict[int, dict[str, list[Rate]]]:
    """By the number that wait, and by the sender."""
    authority = LocalAuthority(directory / "certificates")
    found: dict[int, dict[str, list[Rate]]] = {}
    async with AsyncExitStack() as stack:
        server = stack.enter_context(nginx(authority, directory))
        bare = {
            name: stack.enter_context(Sender(kind, server.url, authority.ca_file))
            for name, kind in ((AIOAPNS, "aioapns"), (HTTPX, "httpx"), (FAST, "fast"))
        }
        for waiting in WAITING:
            ca_file = authority.ca_file
            async with fed_daemon(directory / f"daemon{waiting}", server, ca_file, waiting) as daemon:
                senders: dict[str, Callable[[], Rate]] = {DAEMON: partial(daemon.measure, seconds)}
                senders |= {name: partial(sender.rate, waiting, seconds) for name, sender in bare.items()}
                senders[LIMIT] = partial(h2load, server.url, waiting, seconds)
                found[waiting] = {name: [] for name in senders}
                await asyncio.to_thread(daemon.measure, 0.5)  # warms up
                for _ in range(rounds):
                    for name, send in senders.items():
                        found[waiting][name].append(await asyncio.to_thread(send))
    return found


def run(directory: Path, *, quick: bool) -> Report:
    found = asyncio.run(measure(directory, 1 if quick else 5, 1.0 if quick else 2.0))
    rates = {
        waiting: {name: median(rate.pushes for rate in rounds) for name, rounds in by_sender.items()}
        for waiting, by_sender in found.items()
    }
    rows = []
    for name, rounds in found[100].items():
        cells = [f"{by[name]:,.0f} ({by[name] / by[HTTPX]:.1f} ×)" for by in rates.values()]
        rows.append([name, *cells, f"{median(rate.cpu for rate in rounds) * 1e6:.0f} µs"])
    plot = bars("Pushes a second, one core", "1/s", {f"{waiting} waiting": by for waiting, by in rates.items()})
    head = ["pushes/s (to bare httpx), devices waiting:", *map(str, WAITING), "CPU a push, at 100"]
    return Report("Pushes a second on one core", head, rows, plots={"pushes": plot})
