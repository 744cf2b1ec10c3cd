"""Where the delivery agents come from: Debian's packages, unpacked into private trees.

Three of them are mail servers that exclude each other as packages, and none may replace or start anything on the
machine that runs the tests. So apt only downloads them, with those dependencies that the machine lacks, and each
set is unpacked into a tree of its own. `namespace.Namespace` lays the trees over /usr and /etc for the agents alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[3] / "build" / "agents"

# Tree → packages. Each mail server stands alone: they share names such as /usr/sbin/sendmail.
TREES: dict[str, tuple[str, ...]] = {
    "tools": (
        "fdm",
        "fetchmail",
        "getmail6",
        "iproute2",  # raises the loopback of a network namespace
        "isync",
        "maildrop",
        "offlineimap3",
        "procmail",
        "rsync",
        "safecat",
    ),
    "postfix": ("postfix",),
    "exim": ("exim4-daemon-light",),
    "opensmtpd": ("opensmtpd",),
}

# Of Dovecot itself only one may be on a machine, and the tests of the plugin have installed it.
INSTALLED = ("dovecot-core", "dovecot-imapd", "dovecot-lmtpd", "dovecot-sieve")


class UnavailableError(Exception):
    """A package that this machine's Debian does not offer, or that can't be used here; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Packages unpacked in `path`; `missing` names those of which the archive has no version."""

    path: Path
    missing: frozenset[str]


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The version of each package that apt would install (or has installed); those without one are left out."""
    policy = _output("apt-cache", "policy", *packages)
    found = re.findall(r"^([a-z0-9.+-]+):\n(?:  Installed: .*\n)?  Candidate: (\S+)$", policy, re.MULTILINE)
    return {name: version for name, version in found if version != "(none)"}


def unpack(name: str) -> Tree:
    """The tree `name`, downloaded and unpacked if this was not done yet for these versions on this machine."""
    wanted = TREES[name]
    have = versions(wanted)
    missing = frozenset(wanted) - have.keys()
    installed = Path("/var/lib/dpkg/status").stat().st_mtime_ns  # what must be downloaded depends on what is there
    key = hashlib.sha256(repr((sorted(have.items()), installed)).encode()).hexdigest()[:12]
    path = CACHE / f"{name}-{key}"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            tree = Path(scratch) / "tree"
            _unpack_debs(_download(sorted(have), Path(scratch) / "archives"), tree)
            for old in CACHE.glob(f"{name}-*"):
                shutil.rmtree(old)
            tree.chmod(0o755)
            tree.rename(path)
    return Tree(path, missing)


def _download(packages: list[str], archives: Path) -> list[Path]:
    """The packages and what the machine lacks of their dependencies, as .deb files; none if all is installed."""
    (archives / "partial").mkdir(parents=True)
    if packages:
        _output(
            *("apt-get", "install", "--yes", "--quiet", "--download-only", "--no-install-recommends"),
            *("-o", f"Dir::Cache::archives={archives}", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"),
            *packages,
        )
    return sorted(archives.glob("*.deb"))


def _unpack_debs(debs: list[Path], tree: Path) -> None:
    for directory in ("etc", "usr/bin", "usr/sbin", "usr/lib", "var"):
        (tree / directory).mkdir(parents=True)
    for directory in ("bin", "sbin", "lib"):  # Debian 12 still has names from before the /usr merge
        (tree / directory).symlink_to(f"usr/{directory}")
    for deb in debs:
        with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", deb), stdout=subprocess.PIPE) as tar:
            subprocess.run(("tar", "-x", "--keep-directory-symlink", "-C", tree), stdin=tar.stdout, check=True)
        if tar.returncode:
            raise subprocess.CalledProcessError(tar.returncode, tar.args)


def _output(*argv: str) -> str:
    """The command's output; a failure shows what it wrote."""
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
