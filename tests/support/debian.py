"""Debian systems made by debootstrap, kept in a cache: to be entered by chroot, or copied and booted (machine.py).

A root in the cache is what its name says, always: never write to it, copy it first. What it holds follows from the
release and the packages alone; another list of packages is another root, made from the nearest one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XAPS_WATCH_TEST_CACHE", "/var/cache/xaps-watch-tests"))

DEBOOTSTRAP_PACKAGES = ("debootstrap", "debian-archive-keyring")  # of the machine that runs the tests

_NO_DATES = ("-o", "Acquire::Check-Valid-Until=false")  # a mirror's copy may be older than its own promise


class DebianError(AssertionError):
    """A root could not be made: the message holds the end of what the failing program said."""


def root(release: str, packages: Sequence[str] = (), *, later: Sequence[str] = ()) -> Path:
    """The directory of a Debian `release` ("bookworm", "trixie") with these packages, no recommended ones.

    `later`: packages that lie in apt's cache there, so that the system can install them without a network.
    Made if the cache has none, which takes a minute or two and the network; needs root. Raises DebianError.
    """
    if not packages:
        return made(release, lambda path: _debootstrap(release, path))
    base = root(release)

    def make(path: Path) -> None:
        copy(base, path)
        _install(path, packages)
        if later:
            run_in(path, "apt-get", "install", "-qq", "-y", "--no-install-recommends", "--download-only", *later)

    return made(name_of(release, (*packages, *(f"{package} later" for package in later))), make)


def copy(source: Path, target: Path) -> Path:
    """A copy that may be written to."""
    _checked("cp", "-a", "--reflink=auto", str(source), str(target))
    return target


def run_in(
    path: Path, *command: str, environment: Mapping[str, str] | None = None, timeout: float = 600.0
) -> subprocess.CompletedProcess[str]:
    """Run a command in a root by chroot, with the host's network, /proc and nothing else of the host.

    All that it mounts and starts is gone when it ends. Raises DebianError if it fails.
    """
    enter = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    return _checked(
        "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter, str(path), *command,
        environment={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8",
                     "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive", **(environment or {})},
        timeout=timeout,
    )  # fmt: skip


def mirror() -> str:
    """The Debian mirror that this machine itself uses. Raises DebianError if its apt knows none."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in listed.stdout.splitlines():
        uri, _, release = line.partition(" ")
        if release in ("bookworm", "trixie"):
            return uri
    raise DebianError("apt on this machine names no Debian mirror: apt-get update")


def name_of(kind: str, content: Sequence[str]) -> str:
    """A name in the cache that follows from what is in it."""
    return f"{kind}-{hashlib.sha256(' '.join(sorted(content)).encode()).hexdigest()[:12]}"


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The cached directory `name`: whole or not there, whoever else makes it now."""
    path = CACHE / name
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _locked(CACHE / f".{name}.lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=CACHE) as directory:
                fresh = Path(directory) / "root"
                make(fresh)
                fresh.rename(path)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _debootstrap(release: str, path: Path) -> None:
    missing = [package for package in DEBOOTSTRAP_PACKAGES if not _is_installed(package)]
    if missing:
        _checked("apt-get", "update", "-qq")
        _checked("apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing)
    _checked("debootstrap", "--variant=minbase", release, str(path), mirror())
    _install(path, ("ca-certificates",))


def _install(path: Path, packages: Sequence[str]) -> None:
    policy = path / "usr/sbin/policy-rc.d"  # services are started by whoever boots the root, not by apt
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    run_in(path, "apt-get", *_NO_DATES, "update", "-qq")
    run_in(path, "apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages)
    run_in(path, "apt-get", "clean")
    policy.unlink()


def _is_installed(package: str) -> bool:
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True, check=False
    )
    return asked.stdout.endswith("ok installed")


def _checked(
    *command: str, environment: Mapping[str, str] | None = None, timeout: float = 600.0
) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        raise DebianError(f"{command[0]} is not installed")
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False,
        timeout=timeout, env=environment,
    )  # fmt: skip
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise DebianError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done
