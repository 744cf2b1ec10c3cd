"""The real daemon as a process, with the test in systemd's place, and all the files that it needs in one directory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.support.maildirs import make_maildir
from tests.support.values import ACCOUNT_ID, TOPIC
from xaps_watch import registry
from xaps_watch.authority import LocalAuthority, PushCertificate
from xaps_watch.model import Mailbox
from xaps_watch.registry import Registry
from xaps_watch.simulator import Simulator


class Site:
    """A directory with certificates, a configuration and a registry."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = LocalAuthority(directory / "certificates")
        self.certificate: PushCertificate = self.authority.push_certificate(TOPIC, topics=(TOPIC,))
        self.config_file = directory / "config.toml"
        self.registry_file = directory / "registry" / "registry.sqlite3"
        self.status_socket = directory / "status.sock"

    def simulator(self, **options: object) -> Simulator:
        """A local APNs that knows this site's certificates."""
        return Simulator(self.authority, **options)  # type: ignore[arg-type]

    def configure(self, url: str, *, sections: Mapping[str, Mapping[str, object]] | None = None) -> Path:
        """Write the configuration: push to `url`, with the certificate; `sections` add to that or replace it."""
        tables: dict[str, dict[str, object]] = {
            "apns": {
                "url": url,
                "ca_file": self.authority.ca_file,
                "certificate": self.certificate.file,
                "transport": os.environ.get("XAPS_WATCH_TEST_TRANSPORT"),  # to run any test with the fallback, httpx
            },
            "registry": {"path": self.registry_file},
            "push": {"min_interval": 0.5},
            "status": {"socket": self.status_socket},
        }
        for name, table in (sections or {}).items():
            tables.setdefault(name, {}).update(table)
        lines = []
        for name, table in tables.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in table.items() if value is not None]
        self.config_file.write_text("\n".join(lines) + "\n")
        return self.config_file

    def register(
        self,
        username: str,
        token: str,
        mailboxes: Mapping[str, Path],
        *,
        account_id: str = ACCOUNT_ID,
        topic: str = TOPIC,
        registered_at: float | None = None,
    ) -> int:
        """Record a registration as the plugin does; makes the Maildirs that aren't there. The device's id."""
        for path in mailboxes.values():
            make_maildir(path)
        registry.create(self.registry_file)
        with Registry(self.registry_file) as book:
            return book.register(
                username,
                account_id,
                token,
                [Mailbox(name, os.fspath(path)) for name, path in mailboxes.items()],
                topic=topic,
                now=int((time.time() if registered_at is None else registered_at) * 1000),
            )


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else f'"{value}"'


def rss_of(pid: int) -> int:
    """Resident memory of a process, KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has ended")


class DaemonProcess:
    """``xaps-watch run``: started on entering, stopped by SIGTERM on leaving, which must be clean."""

    def __init__(
        self, config_file: Path, *, environment: Mapping[str, str] | None = None, user: int | None = None
    ) -> None:
        self.config_file = config_file
        self.notifications: list[str] = []  # what systemd was told
        self.exit_status: int | None = None
        self._environment = environment or {}
        self._user = user
        self._log_file = config_file.with_suffix(".log")
        self._process: asyncio.subprocess.Process | None = None
        self._systemd: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Started, and not ended yet."""
        return self._process is not None and self._process.returncode is None

    def see_that_it_runs(self) -> None:
        """Raises AssertionError, with its log, if it has ended by itself."""
        assert self._process is not None
        assert self._process.returncode is None, f"ended with {self._process.returncode}:\n{self.log[-6000:]}"

    @property
    def log(self) -> str:
        """What it has logged so far, all runs."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    async def start(self, *, wait_until_ready: bool = True, timeout: float = 30.0) -> None:
        """Start it; raises AssertionError if it isn't READY in time."""
        address = self._log_file.with_name("notify.sock")
        address.unlink(missing_ok=True)
        self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._systemd.bind(str(address))
        self._systemd.setblocking(False)
        self.notifications.clear()
        self.exit_status = None
        with self._log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "xaps_watch", "-v", "-c", str(self.config_file), "run",
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, user=self._user,
                env={**os.environ, "NOTIFY_SOCKET": str(address), **self._environment},
            )  # fmt: skip
        self._listening = asyncio.create_task(self._listen())
        if wait_until_ready:
            await self.notified("READY=1", timeout)

    async def _listen(self) -> None:
        assert self._systemd is not None
        while True:
            datagram = await asyncio.get_running_loop().sock_recv(self._systemd, 65536)
            self.notifications += datagram.decode().splitlines()

    async def notified(self, state: str, timeout: float = 30.0) -> None:
        """Wait until systemd was told something that begins so."""
        deadline = time.monotonic() + timeout
        while not any(line.startswith(state) for line in self.notifications):
            self.see_that_it_runs()
            assert time.monotonic() < deadline, f"{state} not seen in {timeout} s:\n{self.log}"
            await asyncio.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self, timeout: float = 30.0) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        self.exit_status = await asyncio.wait_for(self._process.wait(), timeout)
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        if self._systemd is not None:
            self._systemd.close()
        return self.exit_status

    async def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM; its exit status."""
        if self.is_running:
            self.signal(signal.SIGTERM)
        return await self.wait(timeout)

    async def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def __aenter__(self) -> DaemonProcess:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.exit_status is not None:
            return  # the test has stopped it
        status = await self.stop()
        if kind is None:
            assert status == 0, f"ended with {status}:\n{self.log}"
