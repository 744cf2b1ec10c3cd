"""From rename() to the request at the local APNs, on an idle daemon, each delivery by itself after some idleness.

Beside it, in turns of some deliveries each: bare requests by the same transport and by httpx's own, from the call to
the request's arrival, and h2load's round trip. The senders share one processor, the server and who delivers have the
other. The longer nothing was done, the longer it takes: processors fall asleep, and their caches forget.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
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
GAPS = (0.01, 0.001)  # seconds of idleness before each
TURN = 25  # deliveries
DAEMON, FAST, HTTPX, LIMIT = (
    "rename() → request, whole daemon",
    "httpx with our transport, bare request",
    "httpx, bare request",
    "h2load, round trip, no idleness",
)


Latencies = dict[float, list[float]]  # by the idleness before; all in seconds


async def measure(directory: Path, rounds: int) -> tuple[dict[str, Latencies], float]:
    """By sender; and h2load's round trip."""
    site = Site(directory)
    server = Stopwatch(site.authority)
    mailboxes = [make_maildir(directory / f"mailbox{number}") for number in range(DEVICES)]
    for number, mailbox in enumerate(mailboxes):
        site.register(f"user{number}", device_token(number + 1), {"INBOX": mailbox})
    config = site.configure(server.url, sections={"push": {"min_interval": 0}})
    pin(os.getpid(), SERVER_CPU)  # the server is in this process
    with ExitStack() as stack:
        bare = {
            name: stack.enter_context(Sender(kind, server.url, site.authority.ca_file))
            for name, kind in ((FAST, "fast"), (HTTPX, "httpx"))
        }
        async with DaemonProcess(config) as daemon:
            pin(daemon.pid, SENDER_CPU)
            measures: dict[str, Callable[[float], float]] = {DAEMON: partial(_delivery, server, cycle(mailboxes))}
            measures |= {name: partial(_request, server, sender) for name, sender in bare.items()}
            found = await asyncio.to_thread(_in_turns, measures, rounds)
    return found, median(h2load_round_trip(server.url, rounds) for _ in range(3))


def _in_turns(measures: dict[str, Callable[[float], float]], rounds: int) -> dict[str, Latencies]:
    found: dict[str, Latencies] = {name: {gap: [] for gap in GAPS} for name in measures}
    for number in range(-TURN, rounds, TURN):  # the first turns warm up
        for gap in GAPS:
            for name, take in measures.items():
                latencies = [take(gap) for _ in range(TURN)]
                if number >= 0:
                    found[name][gap] += latencies
    return found


def _delivery(server: Stopwatch, mailboxes: Iterator[Path], gap: float) -> float:
    mailbox = next(mailboxes)
    tmp, new = mailbox / "tmp" / "mail", mailbox / "new" / "mail"
    tmp.write_text("Subject: test\n\n")
    time.sleep(gap)
    began = time.perf_counter()
    tmp.rename(new)
    latency = server.arrival() - began
    new.unlink()
    return latency


def _request(server: Stopwatch, sender: Sender, gap: float) -> float:
    time.sleep(gap)
    began = sender.one()
    return server.arrival() - began


def run(directory: Path, *, quick: bool) -> Report:
    found, limit = asyncio.run(measure(directory, 50 if quick else 1000))
    bare = {gap: median(found[HTTPX][gap]) for gap in GAPS}
    rows = [
        [name, *(cell for gap in GAPS for cell in _cells(by_gap[gap], bare[gap]))] for name, by_gap in found.items()
    ]
    rows.append([LIMIT, "", "", "", f"{limit * 1000:.2f} ms", f"{limit / bare[GAPS[-1]]:.2f} ×", ""])
    names = {gap: f"{gap * 1000:g} ms idle before" for gap in GAPS}
    plot = {names[gap]: {name: median(by_gap[gap]) * 1000 for name, by_gap in found.items()} for gap in GAPS}
    head = ["latency", *(cell for gap in GAPS for cell in (names[gap], "to bare httpx", "99 %"))]
    plots = {"latency": bars("Latency", "ms, median", plot)}
    return Report("From the delivery to the request, nothing else going on", head, rows, plots)


def _cells(latencies: list[float], bare: float) -> tuple[str, str, str]:
    worst = quantiles(latencies, n=100)[98]
    return f"{median(latencies) * 1000:.2f} ms", f"{median(latencies) / bare:.2f} ×", f"{worst * 1000:.2f} ms"
