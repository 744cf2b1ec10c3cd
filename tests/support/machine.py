"""A Debian system booted with its own systemd, in namespaces of its own: what a mail admin's server looks like.

Its network has a loopback interface and nothing else. Whatever happens to the test, nothing of it stays: its mounts are
its own, it ends with the process that started it, and its directory is removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tests.support import debian

if TYPE_CHECKING:
    from typing_extensions import Self

# Beside what the test wants: what makes a bare Debian boot.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "procps")

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "TERM": "dumb",
}


_REBOOT = 133  # how systemd-nspawn --keep-unit leaves it to its starter to boot the machine again


class MachineError(AssertionError):
    """A command failed in the machine, or it doesn't come up: the message holds what was said."""


class Machine:
    """``with Machine(debian.root("trixie", …)) as machine: machine.boot(); machine.run("systemctl", …)``."""

    def __init__(self, root: Path) -> None:
        """A copy of `root`, in a temporary directory; not yet booted, so that files can be put into it."""
        self._directory = Path(tempfile.mkdtemp(prefix="machine-", dir=debian.CACHE))
        self.path = debian.copy(root, self._directory / "root")
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._console = self._directory / "console"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._directory)

    # --- life --------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start its systemd, and wait until all that is enabled was started. Raises MachineError."""
        with self._console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL",
                 "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network",
                 "--console=pipe", "--machine=xaps-test", "--directory", str(self.path)],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        self.wait_for("the machine to boot", self._is_up, 60.0)

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise MachineError(f"systemd-nspawn ended with {self._nspawn.returncode}:\n{self._said()}")
        if self._init() is None:
            return False
        return self.try_run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def _init(self) -> int | None:
        """The pid, out here, of its pid 1; None while there is none."""
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def reboot(self) -> None:
        """As ``reboot`` does; returns when it is up again."""
        assert self._nspawn is not None
        self.try_run("systemctl", "reboot")
        status = self._nspawn.wait(60.0)
        if status != _REBOOT:
            raise MachineError(f"systemd-nspawn ended with {status} instead of {_REBOOT}:\n{self._said()}")
        self.boot()

    def stop(self) -> None:
        """Shut it down; by force if it doesn't do so in time."""
        if self._nspawn is None or self._nspawn.poll() is not None:
            return
        self._nspawn.send_signal(signal.SIGTERM)
        try:
            self._nspawn.wait(30.0)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait(10.0)

    # --- in it -------------------------------------------------------------------------------------------------------

    def try_run(
        self, *command: str, input: str | None = None, environment: Mapping[str, str] | None = None,
        timeout: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command as its root; how it ended, and what it said: stdout and stderr are one."""
        pid = self._init()
        if pid is None:
            raise MachineError(f"the machine is not running:\n{self._said()}")
        return subprocess.run(
            ["nsenter", "--target", str(pid), "--all", "--wdns=/root", *command],
            input=input or "", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env={**_ENVIRONMENT, **(environment or {})}, timeout=timeout, check=False,
        )  # fmt: skip

    def run(
        self, *command: str, input: str | None = None, environment: Mapping[str, str] | None = None,
        timeout: float = 300.0,
    ) -> str:  # fmt: skip
        """As try_run(), but what it said alone. Raises MachineError if it fails."""
        done = self.try_run(*command, input=input, environment=environment, timeout=timeout)
        if done.returncode:
            raise MachineError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Put a file into it, whether it runs or not."""
        file = self.path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)

    def append(self, path: str, content: str) -> None:
        with (self.path / path.lstrip("/")).open("a") as file:
            file.write(content)

    def journal(self, unit: str) -> str:
        """What the unit has logged, in all boots that are kept, messages alone."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def wait_for(self, what: str, happened: Callable[[], object], timeout: float = 20.0) -> None:
        """Raises MachineError if it doesn't happen in time."""
        deadline = time.monotonic() + timeout
        while not happened():
            if time.monotonic() > deadline:
                raise MachineError(f"waited {timeout:.0f} s in vain for {what}")
            time.sleep(0.1)

    def _said(self) -> str:
        return "\n".join(self._console.read_text(errors="replace").splitlines()[-25:])


def wheels(root: Path, requirements: tuple[str, ...]) -> Path:
    """A directory of wheels of these requirements and theirs, for the Python of `root`; from the cache if it has it."""
    name = debian.name_of("wheels-" + root.name, requirements)

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".wheels-", dir=debian.CACHE) as directory:
            copy = debian.copy(root, Path(directory) / "root")
            certificates = Path("/etc/ssl/certs/ca-certificates.crt")  # which this machine's network asks for
            shutil.copy(certificates, copy / "tmp")
            given = {name: value for name, value in os.environ.items() if name in ("PIP_INDEX_URL", "https_proxy")}
            debian.run_in(copy, "python3", "-m", "venv", "/tmp/venv")  # noqa: S108 - the root's own
            debian.run_in(
                copy, "/tmp/venv/bin/pip", "wheel", "--quiet", "--use-pep517",  # noqa: S108
                "--wheel-dir", "/tmp/wheels", *requirements,  # noqa: S108
                environment={"PIP_CERT": f"/tmp/{certificates.name}", **given},  # noqa: S108
            )  # fmt: skip
            shutil.copytree(copy / "tmp/wheels", path)

    return debian.made(name, make)
