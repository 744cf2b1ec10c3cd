"""The watcher when the kernel, the disk or the administrator is against it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.integration.watcher_scenarios import SCENARIOS
from tests.support import namespaces
from tests.support.maildirs import deliver_by_rename, make_maildir
from xaps_watch.inotify import sysctl
from xaps_watch.watcher import Watcher

NAMESPACES = {
    "room_for_one_directory_each": namespaces.USERS,
    "room_for_some_mailboxes": namespaces.USERS,
    "mail_that_comes_while_room_appears": namespaces.USERS,
    "removed_without_room": namespaces.USERS,
    "unmounted": namespaces.MOUNTS,
    "unreadable": namespaces.MOUNTS,
    "remote": namespaces.MOUNTS,
    "silent": namespaces.MOUNTS,
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.skipif(os.getuid() != 0, reason="needs root: namespaces of its own, mounts, another user")
def test_scenario(scenario: str, tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)  # one scenario is another user's
    command = (sys.executable, "-X", "dev", "-m", "tests.integration.watcher_scenarios", scenario, tmp_path)
    outcome = namespaces.run([NAMESPACES[scenario]], command, timeout=55, capture=True)
    assert outcome.returncode == 0, outcome.stderr


async def test_more_events_than_the_kernel_keeps(tmp_path: Path) -> None:
    """The queue overflows while the loop is busy; what was lost is found by looking, and nothing else is told."""
    noisy, quiet, *mailboxes = [make_maildir(tmp_path / str(number)) for number in range(6)]
    reports: list[str] = []
    all_reported = asyncio.Event()

    def on_delivery(paths: Collection[str]) -> None:
        reports.extend(paths)
        if {str(mailbox) for mailbox in mailboxes} <= set(reports):
            all_reported.set()

    watcher = Watcher(on_delivery)
    watcher.start()
    try:
        for mailbox in (noisy, quiet, *mailboxes):
            watcher.watch(str(mailbox), time.time())
        await watcher.settled()
        hidden, other = noisy / "new" / ".a", noisy / "new" / ".b"
        hidden.touch()
        for _ in range((sysctl("max_queued_events") or 16384) // 4 + 1):  # four events each
            hidden.rename(other)
            other.rename(hidden)
        for mailbox in mailboxes:
            deliver_by_rename(mailbox)
        await all_reported.wait()
        await watcher.settled()
        assert watcher.status().overflows == 1
        assert sorted(reports) == sorted(map(str, mailboxes))
    finally:
        watcher.close()
