"""``python -m tests.faults --deliveries 10000``: the long run of the fault suite, with its figures.

It runs in namespaces of its own, as root or where the kernel allows that to others.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.schedule import run
from tests.support import namespaces

INSIDE = "--inside"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--deliveries", type=int, default=10_000, help="at least so many (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.0, help="at least so long")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        command = (sys.executable, "-m", "tests.faults", *sys.argv[1:], INSIDE)
        return namespaces.run([namespaces.USERS, namespaces.MOUNTS], command).returncode
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(f"seed {arguments.seed}; the same again: python -m tests.faults --seed {arguments.seed}", flush=True)
    with TemporaryDirectory(prefix="xaps-watch-faults-", ignore_cleanup_errors=True) as name:
        try:
            schedule = run(Path(name), arguments.seed, seconds=arguments.seconds, deliveries=arguments.deliveries)
            print(asyncio.run(schedule))
        except AssertionError as error:
            print(f"seed {arguments.seed}: {error}\n", Path(name, "config.log").read_text(errors="replace")[-6000:])
            return 1
    return 0


sys.exit(main())
