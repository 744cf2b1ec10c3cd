"""``python -m tests.faults.soak``: half an hour of ordinary load with reconnects; memory must stay flat.

100 mailboxes of 100 devices, 20 deliveries a second; every 20 s the local APNs cuts or says GOAWAY. A line a minute;
at the end everything must have been pushed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.ledger import Ledger
from tests.support.daemon import DaemonProcess, Site, rss_of
from tests.support.maildirs import deliver_by_link, deliver_by_rename, read_all
from tests.support.values import device_token
from xaps_watch.simulator import Answer, Received

MAILBOXES = 100
RATE = 20.0  # deliveries a second
RECONNECT = 20.0  # seconds
PATIENCE = 60.0  # seconds after the last delivery


async def soak(directory: Path, minutes: float) -> bool:
    """Whether nothing was missed. Prints a table."""
    site, ledger = Site(directory), Ledger()

    def accept(received: Received) -> Answer:
        ledger.accepted(received)
        return Answer()

    paths = [directory / f"mailbox{number}" for number in range(MAILBOXES)]
    for number, path in enumerate(paths):
        site.register(f"user{number}", device_token(number), {"INBOX": path})
        ledger.registered(device_token(number), ["INBOX"])
    async with (
        site.simulator(answer=accept, keep_received=False) as simulator,
        DaemonProcess(site.configure(simulator.url)) as daemon,
    ):
        print("| minute | deliveries | pushes | connections | RSS KiB | descriptors |\n|---|---|---|---|---|---|")

        def tell(when: object) -> None:
            counts = (ledger.deliveries, ledger.pushes, simulator.connections_made)
            print(f"| {' | '.join(map(str, (when, *counts, *_resources(daemon.pid))))} |", flush=True)

        started = cut = time.monotonic()
        told = -1
        while (elapsed := time.monotonic() - started) < minutes * 60:
            if int(elapsed / 60) > told:
                told = int(elapsed / 60)
                tell(told)
            if time.monotonic() - cut > RECONNECT:
                cut = time.monotonic()
                random.choice((simulator.cut_all, simulator.goaway_all))()
            number = random.randrange(MAILBOXES)
            ledger.delivered([device_token(number)], "INBOX")
            random.choice((deliver_by_link, deliver_by_rename))(paths[number])
            if random.random() < 0.05:
                read_all(paths[number])
            await asyncio.sleep(max(0.0, started + ledger.deliveries / RATE - time.monotonic()))
        deadline = time.monotonic() + PATIENCE
        while ledger.owed() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        tell("end")
    missed = len(ledger.debts())
    print(f"{missed} missed, {ledger.needless} pushes needless, waited {max(ledger.waits):.2f} s at the most")
    return not missed


def _resources(pid: int) -> tuple[int, int]:
    return rss_of(pid), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="xaps-watch-soak-") as name:
        return 0 if asyncio.run(soak(Path(name), arguments.minutes)) else 1


if __name__ == "__main__":
    sys.exit(main())
