"""The plugin's tests in namespaces of their own, in which /tmp is in memory and nothing outlives them. Needs root.

``python -m tests.plugin host [PYTEST ARGUMENT...]``     with the Dovecot of this machine
``python -m tests.plugin trixie [PYTEST ARGUMENT...]``   with that of a Debian release, in a chroot that is made once,
                                                          which takes a minute and the network (tests/support/debian.py)

With SANITIZE=1 in the environment, AddressSanitizer and UBSan watch the plugin.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import debian

PACKAGES = (
    "dovecot-imapd", "dovecot-lmtpd", "dovecot-dev", "libsqlite3-dev", "gcc", "libc6-dev", "make",
    "python3-pytest", "python3-pytest-asyncio", "python3-pytest-timeout",
    "python3-pyinotify", "python3-httpx", "python3-h2", "python3-jwt", "python3-cryptography", "python3-sdnotify",
)  # fmt: skip

SOURCE = Path(__file__).parents[2]
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")

HOST = """set -e
mount -t tmpfs -o mode=1777 xaps-watch-tests /tmp
exec "$@"
"""

# The cached root stays as it is: all that is written goes to a tmpfs, which is gone with the namespace.
DEBIAN = """set -e
mount -t tmpfs xaps-watch-tests "$SCRATCH"
mkdir "$SCRATCH/upper" "$SCRATCH/work" "$SCRATCH/root"
mount -t overlay -o "lowerdir=$ROOT,upperdir=$SCRATCH/upper,workdir=$SCRATCH/work" overlay "$SCRATCH/root"
mount -t proc proc "$SCRATCH/root/proc"
mkdir "$SCRATCH/root/source"
mount --bind -o ro "$SOURCE" "$SCRATCH/root/source"
exec chroot "$SCRATCH/root" sh -c 'cd /source && exec "$@"' - "$@"
"""


def run_python(where: str, *arguments: str) -> int:
    """Run Python with these arguments there; its exit status."""
    if where == "host":
        enter, python, environment = HOST, sys.executable, dict(os.environ)
    else:
        scratch = debian.CACHE / ".scratch"  # an empty directory: each has a tmpfs of its own over it
        root = debian.root(where, PACKAGES)
        scratch.mkdir(exist_ok=True)
        enter, python = DEBIAN, "python3"
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "SANITIZE": os.environ.get("SANITIZE", ""),
            "ROOT": str(root),
            "SCRATCH": str(scratch),
            "SOURCE": str(SOURCE),
        }
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return subprocess.run(
        [*NAMESPACES, "sh", "-c", enter, "sh", python, *arguments], cwd=SOURCE, env=environment, check=False
    ).returncode


def main(where: str, *arguments: str) -> int:
    """pytest's exit status."""
    return run_python(where, "-m", "pytest", "-p", "no:cacheprovider", *(arguments or ("tests/plugin",)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
