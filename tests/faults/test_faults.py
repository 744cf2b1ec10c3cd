"""The short run of the fault suite: each fault at least once. The long one: ``python -m tests.faults``."""

from __future__ import annotations

import subprocess
import sys

import pytest

SECONDS = 75


@pytest.mark.timeout(SECONDS + 300)
def test_no_delivery_is_missed_whatever_fails() -> None:
    command = (sys.executable, "-m", "tests.faults", "--seconds", str(SECONDS), "--deliveries", "1000")
    assert subprocess.run(command, check=False).returncode == 0  # it prints its seed and its figures
