"""The service beside Dovecot's container: one kernel, one volume, mounted in each."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.daemon import DaemonProcess, Site
from tests.support.values import device_token

# Sees the volume at another place, by a mount of its own; delivers by link() as Postfix does.
_DELIVERY = 'mount --bind "$0" "$1" && echo x >"$1/tmp/1.x" && ln "$1/tmp/1.x" "$1/new/1.x" && rm "$1/tmp/1.x"'


async def test_what_is_delivered_in_another_container_is_seen(tmp_path: Path) -> None:
    site = Site(tmp_path)
    inbox, elsewhere = tmp_path / "inbox", tmp_path / "elsewhere"
    elsewhere.mkdir()
    site.register("alice", device_token(1), {"INBOX": inbox})
    async with site.simulator() as simulator, DaemonProcess(site.configure(simulator.url)):
        container = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child",
            "sh", "-c", _DELIVERY, str(inbox), str(elsewhere),
        )  # fmt: skip
        assert await container.wait() == 0
        assert list(elsewhere.iterdir()) == []  # the mount was the container's alone
        await simulator.wait_for(1)
