"""``python -m tests.plugin RELEASE [PYTEST ARGUMENT...]``: the plugin's tests with the Dovecot of a Debian release.

In a chroot that is made once and kept in the cache (see tests/support/debian.py); what the tests write there is gone
when they end. Needs root, and the network to make it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import debian

PACKAGES = (
    "dovecot-imapd", "dovecot-lmtpd", "dovecot-dev", "libsqlite3-dev", "gcc", "libc6-dev", "make", "valgrind",
    "python3-pytest", "python3-pytest-asyncio", "python3-pytest-timeout",
    "python3-pyinotify", "python3-httpx", "python3-h2", "python3-jwt", "python3-cryptography", "python3-sdnotify",
)  # fmt: skip

SOURCE = Path(__file__).parents[2]

# The cached root stays as it is: all writing goes to a tmpfs, which is gone with the process, as are the mounts.
ENTER = """set -e
mount -t tmpfs xaps-watch-tests "$SCRATCH"
mkdir "$SCRATCH/upper" "$SCRATCH/work" "$SCRATCH/root"
mount -t overlay -o "lowerdir=$ROOT,upperdir=$SCRATCH/upper,workdir=$SCRATCH/work" overlay "$SCRATCH/root"
mount -t proc proc "$SCRATCH/root/proc"
mkdir "$SCRATCH/root/source"
mount --bind -o ro "$SOURCE" "$SCRATCH/root/source"
exec chroot "$SCRATCH/root" sh -c 'cd /source && exec "$@"' - "$@"
"""


def main(release: str, *arguments: str) -> int:
    """pytest's exit status."""
    root = debian.root(release, PACKAGES)
    scratch = debian.CACHE / ".scratch"  # an empty directory: each has a tmpfs of its own over it
    scratch.mkdir(exist_ok=True)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "ROOT": str(root),
        "SCRATCH": str(scratch),
        "SOURCE": str(SOURCE),
    }
    pytest = ("python3", "-m", "pytest", "-p", "no:cacheprovider", *(arguments or ("tests/plugin",)))
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]
    return subprocess.run([*enter, *pytest], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
