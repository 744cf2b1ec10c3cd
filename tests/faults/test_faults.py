"""The short run of the fault suite: each fault at least once. The long one: ``python -m tests.faults``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.schedule import run

SECONDS = 75.0


@pytest.mark.timeout(SECONDS + 240)
async def test_no_delivery_is_missed_whatever_fails(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"\nseed {seed}; the same again: python -m tests.faults --seed {seed} --seconds {SECONDS:g}")
    report = await run(tmp_path, seed, seconds=SECONDS)
    print(report)
    assert report.deliveries > 1000
