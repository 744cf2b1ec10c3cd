"""A program in namespaces of its own, namespaces(7)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

MOUNTS, USERS = "--mount", "--user"


def run(
    namespaces: Sequence[str], command: Sequence[str | Path], *, timeout: float | None = None, capture: bool = False
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run(). In a user namespace the program is root there, and all users are mapped, if we are root.

    unshare(1) by itself maps but one: not even root could then enter the home in which somebody has this clone.
    """
    output = subprocess.PIPE if capture else None
    waiting = ("unshare", *namespaces, "sh", "-c", 'read -r _ && exec "$@"', "sh", *command)
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True) as process:
        if USERS in namespaces:
            _map_users(process)
        try:
            stdout, stderr = process.communicate("\n", timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _map_users(process: subprocess.Popen[str]) -> None:
    """user_namespaces(7), "User and group ID mappings"."""
    inside = Path(f"/proc/{process.pid}")
    while (inside / "ns/user").readlink() == Path("/proc/self/ns/user").readlink():
        assert process.poll() is None, "unshare failed"
        time.sleep(0.001)
    if os.geteuid() != 0:
        (inside / "setgroups").write_text("deny")
    for file, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        (inside / file).write_text("0 0 4294967295" if os.geteuid() == 0 else f"0 {own} 1")
