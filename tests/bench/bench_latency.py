"""From rename() to the request at the local APNs, on an idle daemon, each delivery by itself after some idleness.

Beside it, in turn: one bare request by the same transport and one by httpx's own, from the call to the request's
arrival, and h2load's round trip. The senders share one processor, the server and who delivers have the other.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles

from tests.bench.report import Report, bars
from tests.bench.senders import Sender, h2load_round_trip
from tests.bench.servers import SENDER_CPU, SERVER_CPU, Stopwatch, pin
from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import make_maildir
from tests.support.values import device_token

DEVICES = 10
GAP = 0.01  # seconds of idleness before each
DAEMON, FAST, HTTPX, LIMIT = (
    "rename() → request, whole daemon",
    "httpx with our transport, bare request",
    "httpx, bare request",
    "h2load, round trip",
)


async def measure(directory: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds."""
    site = Site(directory)
    server = Stopwatch(site.authority)
    mailboxes = [make_maildir(directory / f"mailbox{number}") for number in range(DEVICES)]
    for number, mailbox in enumerate(mailboxes):
        site.register(f"user{number}", device_token(number + 1), {"INBOX": mailbox})
    config = site.configure(server.url, sections={"push": {"min_interval": 0}})
    turn = cycle(mailboxes)
    pin(os.getpid(), SERVER_CPU)  # the server is in this process
    with ExitStack() as stack:
        bare = {
            name: stack.enter_context(Sender(kind, server.url, site.authority.ca_file))
            for name, kind in ((FAST, "fast"), (HTTPX, "httpx"))
        }
        async with DaemonProcess(config) as daemon:
            pin(daemon.pid, SENDER_CPU)
            measures: dict[str, Callable[[], float]] = {DAEMON: lambda: _delivery(server, next(turn))}
            measures |= {name: partial(_request, server, sender) for name, sender in bare.items()}
            found: dict[str, list[float]] = {name: [] for name in measures}
            for number in range(-DEVICES, rounds):  # the first ones warm up
                for name, take in measures.items():
                    latency = await asyncio.to_thread(take)
                    if number >= 0:
                        found[name].append(latency)
    found[LIMIT] = [h2load_round_trip(server.url, rounds) for _ in range(3)]
    return found


def _delivery(server: Stopwatch, mailbox: Path) -> float:
    tmp, new = mailbox / "tmp" / "mail", mailbox / "new" / "mail"
    tmp.write_text("Subject: test\n\n")
    time.sleep(GAP)
    began = time.perf_counter()
    tmp.rename(new)
    latency = server.arrival() - began
    new.unlink()
    return latency


def _request(server: Stopwatch, sender: Sender) -> float:
    time.sleep(GAP)
    began = sender.one()
    return server.arrival() - began


def run(directory: Path, *, quick: bool) -> Report:
    found = asyncio.run(measure(directory, 50 if quick else 1000))
    bare = median(found[HTTPX])
    rows = []
    for name, latencies in found.items():
        p99 = f"{quantiles(latencies, n=100)[98] * 1000:.2f} ms" if len(latencies) > 10 else ""
        rows.append([name, f"{median(latencies) / bare:.2f} ×", f"{median(latencies) * 1000:.2f} ms", p99])
    plot = bars("Latency", "ms", {"median": {name: median(figures) * 1000 for name, figures in found.items()}})
    head = ["latency", "to bare httpx", "median", "99 %"]
    return Report("From the delivery to the request, nothing else going on", head, rows, plots={"latency": plot})
