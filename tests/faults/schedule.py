"""Faults one after the other, and several at once, in an order that a seed decides."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.faults import FAULTS
from tests.faults.world import World
from tests.support.daemon import rss_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """What the daemon went through, and how it did."""

    seed: int
    seconds: float
    faults: int
    deliveries: int
    pushes: int
    needless: int
    median_wait: float  # seconds from the first delivery to the push that covered it, faults included
    longest_wait: float
    rss: tuple[int, int]  # KiB: of the daemon at the start and at the end

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.deliveries} deliveries, {self.faults} faults, {self.seconds:.0f} s: 0 missed;"
            f" {self.pushes} pushes, {self.needless} of them needless;"
            f" waited {self.median_wait * 1000:.0f} ms in the median, {self.longest_wait:.1f} s at the most;"
            f" RSS {self.rss[0] // 1024} → {self.rss[1] // 1024} MiB"
        )


async def run(directory: Path, seed: int, *, seconds: float = 0.0, deliveries: int = 0) -> Report:
    """Faults for at least so long and so many deliveries. Raises AssertionError if anything was missed."""
    started = time.monotonic()
    faults = 0
    async with World(directory, seed) as world:
        await world.deliver_some()
        await world.settle()
        rss = rss_of(world.daemon.pid)
        turn: list[Callable[[World], Awaitable[None]]] = []
        while time.monotonic() - started < seconds or world.ledger.deliveries < deliveries or turn:
            if not turn:
                turn = world.random.sample(FAULTS, len(FAULTS))
            some = [turn.pop() for _ in range(min(len(turn), world.random.choice((1, 1, 2))))]
            for fault in some:
                log.info("%6.1f s %s", time.monotonic() - started, fault.__name__)
                await fault(world)
                faults += 1
            await world.settle()
        await asyncio.sleep(1.0)
        ledger = world.ledger
        return Report(
            seed, time.monotonic() - started, faults, ledger.deliveries, ledger.pushes, ledger.needless,
            statistics.median(ledger.waits), max(ledger.waits), (rss, rss_of(world.daemon.pid)),
        )  # fmt: skip
