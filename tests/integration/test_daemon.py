"""The daemon as a process, with the test in systemd's place."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import sdnotify

from tests.support.commands import xaps_watch
from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import deliver_by_link
from tests.support.values import ACCOUNT_ID, TOPIC, device_token
from xaps_watch import config, lookout, status, watcher
from xaps_watch.apns import mailbox_hash
from xaps_watch.daemon import Daemon
from xaps_watch.mounts import MountTable
from xaps_watch.registry import published_topic
from xaps_watch.simulator import Answer

UNIT = Path(__file__).parents[2] / "systemd" / "xaps-watch.service"
TIMEOUT_STOP = float(re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)[0])  # then systemd kills it


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_it_tells_systemd_when_it_is_ready_reloading_and_stopping(site: Site, tmp_path: Path) -> None:
    site.register("alice", device_token(1), {"INBOX": tmp_path / "inbox"})
    async with site.simulator() as simulator:
        daemon = DaemonProcess(site.configure(simulator.url))
        await daemon.start()
        await daemon.notified("WATCHDOG=1")
        await daemon.notified("STATUS=state=pushing mailboxes=1")
        daemon.notifications.clear()
        daemon.signal(signal.SIGHUP)
        await daemon.notified("RELOADING=1")
        await daemon.notified("MONOTONIC_USEC=")
        await daemon.notified("READY=1")
        assert await daemon.stop() == 0
    assert "STOPPING=1" in daemon.notifications


async def test_names_are_utf8_whatever_the_locale(site: Site, tmp_path: Path) -> None:
    locales = tmp_path / "locales"
    locales.mkdir()
    made = ["localedef", "-c", "-i", "de_DE", "-f", "ISO-8859-1", str(locales / "de_DE")]
    await asyncio.to_thread(subprocess.run, made, check=True)
    latin_1 = {"LOCPATH": str(locales), "LC_ALL": "de_DE", "PYTHONIOENCODING": "utf-8"}
    drafts = tmp_path / "Entwürfe 日本"
    site.register("alice", device_token(1), {"INBOX": tmp_path / "inbox", "Entwürfe 日本": drafts})
    async with site.simulator() as simulator:
        config_file = site.configure(simulator.url)
        async with DaemonProcess(config_file, environment=latin_1):
            deliver_by_link(drafts)
            await simulator.wait_for(1)
        ran = await xaps_watch(config_file, "push", "alice", "Entwürfe 日本", environment=latin_1)
        assert ran.status == 0, ran.error
        await simulator.wait_for(2)
    expected = {"aps": {"account-id": ACCOUNT_ID, "m": [mailbox_hash("Entwürfe 日本")]}}
    assert [received.payload for received in simulator.received] == [expected] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_stops_in_time_while_apple_is_silent_and_pushes_later(
    site: Site, tmp_path: Path, number: signal.Signals
) -> None:
    site.register("alice", device_token(1), {"INBOX": tmp_path / "inbox"})
    silent = True
    async with site.simulator(answer=lambda _: Answer(then="silence" if silent else "answer")) as simulator:
        daemon = DaemonProcess(site.configure(simulator.url))
        await daemon.start()
        deliver_by_link(tmp_path / "inbox")
        await simulator.wait_for(1)
        asked = time.monotonic()
        daemon.signal(number)
        assert await daemon.wait() == 0
        assert time.monotonic() - asked < TIMEOUT_STOP
        silent = False
        await daemon.start()
        await simulator.wait_for(2)
        assert await daemon.stop() == 0


async def test_it_stops_while_it_starts_and_catches_up_later(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that doesn't answer stands for one that holds very many mails."""
    asked, answers = threading.Event(), threading.Event()

    def look(request: lookout.Request, mounts: MountTable) -> lookout.Answer:
        asked.set()
        answers.wait()
        return lookout.look(request, mounts)

    inbox = tmp_path / "inbox"
    site.register("alice", device_token(1), {"INBOX": inbox})
    async with site.simulator() as simulator:
        config_file = site.configure(simulator.url)
        async with DaemonProcess(config_file):
            pass
        deliver_by_link(inbox)
        monkeypatch.setattr(watcher, "look", look)
        systemd = Mock(sdnotify.SystemdNotifier)
        monkeypatch.setattr(sdnotify, "SystemdNotifier", lambda: systemd)
        starting = asyncio.create_task(Daemon(config.load(config_file)).run())
        await asyncio.to_thread(asked.wait)
        for number in (signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        await asyncio.wait_for(starting, watcher._STUCK / 2)  # after which it would no longer wait for the disk
        answers.set()
        systemd.notify.assert_called_once_with("STOPPING=1")
        assert not simulator.received
        async with DaemonProcess(config_file):
            await simulator.wait_for(1)


async def test_each_push_is_one_line_without_the_token(site: Site, tmp_path: Path) -> None:
    token = "0123456789abcdef" * 4
    site.register("al ice", token, {"INBOX": tmp_path / "inbox", "Entwürfe": tmp_path / "drafts"})
    async with site.simulator() as simulator, DaemonProcess(site.configure(simulator.url)) as daemon:
        deliver_by_link(tmp_path / "drafts")
        await simulator.wait_for(1)
    lines = [line for line in daemon.log.splitlines() if " push " in line]
    assert len(lines) == 1
    assert re.search(
        r'INFO push user="al ice" mailboxes=Entwürfe device=012345…ef status=200 apns-id=[0-9a-f-]+ latency=[\d.]+ms$',
        lines[0],
    )
    assert token not in daemon.log


async def test_under_journald_lines_have_priorities_and_no_timestamps(site: Site) -> None:
    async with site.simulator() as simulator:
        config = site.configure(simulator.url)
        read, write = os.pipe()
        found = os.fstat(write)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "xaps_watch", "-c", str(config), "run", stderr=write,
            env={**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"},
        )  # fmt: skip
        os.close(write)
        with os.fdopen(read) as pipe:
            lines: list[str] = []
            while not any(" ready " in f" {line[3:]}" for line in lines):
                lines.append(await asyncio.to_thread(pipe.readline))
            process.terminate()
            assert await process.wait() == 0
            lines += pipe.read().splitlines()
    assert len(lines) >= 3
    assert all(re.match(r"<[2-7]>[a-z]", line) for line in lines), lines


async def test_before_there_is_a_certificate_it_waits_for_it(site: Site, tmp_path: Path) -> None:
    site.register("alice", device_token(1), {"INBOX": tmp_path / "inbox"})
    async with site.simulator() as simulator:
        config = site.configure(simulator.url, sections={"apns": {"certificate": None}})
        async with DaemonProcess(config) as daemon:
            await daemon.notified('STATUS=state="waiting for credentials: no push credentials yet')
            deliver_by_link(tmp_path / "inbox")
            await asyncio.sleep(0.5)
            assert simulator.requests == 0
            (tmp_path / "mail.pem").write_bytes(site.certificate.file.read_bytes())
            await simulator.wait_for(1)
            await daemon.notified("STATUS=state=pushing")


async def test_a_renewed_certificate_is_used_without_a_restart(site: Site, tmp_path: Path) -> None:
    site.register("alice", device_token(1), {"INBOX": tmp_path / "inbox"})
    async with site.simulator() as simulator, DaemonProcess(site.configure(simulator.url)) as daemon:
        deliver_by_link(tmp_path / "inbox")
        await simulator.wait_for(1)
        renewed = site.authority.push_certificate(TOPIC, name="renewed", topics=(TOPIC,))
        renewed.file.rename(site.certificate.file)
        deadline = time.monotonic() + 30
        while daemon.log.count("credentials in use") < 2:
            assert time.monotonic() < deadline, daemon.log
            await asyncio.sleep(0.05)
        deliver_by_link(tmp_path / "inbox")
        await simulator.wait_for(2)
        assert simulator.connections_made == 2


async def test_a_configuration_that_became_wrong_changes_nothing(site: Site, tmp_path: Path) -> None:
    site.register("alice", device_token(1), {"INBOX": tmp_path / "inbox"})
    async with site.simulator() as simulator, DaemonProcess(site.configure(simulator.url)) as daemon:
        site.config_file.write_text("[apns]\ntopc = 1\n")
        daemon.notifications.clear()
        daemon.signal(signal.SIGHUP)
        await daemon.notified("READY=1")
        assert "configuration not reloaded" in daemon.log
        deliver_by_link(tmp_path / "inbox")
        await simulator.wait_for(1)


async def test_a_hundred_reloads_leave_nothing_behind(site: Site) -> None:
    async with site.simulator() as simulator, DaemonProcess(site.configure(simulator.url)) as daemon:
        before = _descriptors(daemon.pid)
        for _ in range(100):
            daemon.notifications.clear()
            daemon.signal(signal.SIGHUP)
            await daemon.notified("READY=1")
        await asyncio.sleep(0.5)
        assert _descriptors(daemon.pid) <= before + 2


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


WRONG: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "unknown key": ({"push": {"min_intervall": 1}}, "[push] unknown key 'min_intervall'; did you mean 'min_interval'?"),
    "missing certificate": ({"apns": {"certificate": "none.pem"}}, "none.pem: cannot be read: No such file"),
    "missing CA": ({"apns": {"ca_file": "none.pem"}}, "[apns] ca_file "),
    "topic": ({"apns": {"topic": "org.example"}}, "would be refused by iOS Mail"),
}


@pytest.mark.parametrize(("sections", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_configuration_is_one_line_and_exit_status_78(
    site: Site, sections: dict[str, dict[str, Any]], message: str
) -> None:
    config = site.configure("https://127.0.0.1:1", sections=sections)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "xaps_watch", "-c", config, "run"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 78, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("xaps-watch: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unusable", ["expired", "foreign key", "unreadable"])
async def test_credentials_that_can_be_replaced_are_waited_for(site: Site, tmp_path: Path, unusable: str) -> None:
    """Phones go on registering meanwhile: the topic of the last run stays announced."""
    site.register("alice", device_token(1), {"INBOX": tmp_path / "inbox"})
    certificate, key = site.certificate.certificate_file, site.certificate.key_file
    other = site.authority.push_certificate(TOPIC, name="other", topics=(TOPIC,), ends=timedelta(800))
    sections = {"apns": {"certificate": certificate, "key": key}}
    async with site.simulator() as simulator:
        config = site.configure(simulator.url, sections=sections)
        async with DaemonProcess(config) as daemon:
            await daemon.notified("STATUS=state=pushing")
        if unusable == "expired":
            site.authority.push_certificate(TOPIC, name="push", starts=timedelta(-9), ends=timedelta(-2))
        elif unusable == "foreign key":
            key.write_bytes(other.key_file.read_bytes())
        else:
            certificate.write_text("")
        async with DaemonProcess(config) as daemon:
            await daemon.notified('STATUS=state="waiting for credentials: ')
            assert "ERROR pushes wait why=" in daemon.log
            assert published_topic(site.registry_file) == TOPIC
            deliver_by_link(tmp_path / "inbox")
            other.key_file.replace(key)
            other.certificate_file.replace(certificate)
            await simulator.wait_for(1)
            await daemon.notified("STATUS=state=pushing")


async def test_what_openssl_refuses_is_not_said_to_be_in_use(site: Site, tmp_path: Path) -> None:
    site.register("alice", device_token(1), {"INBOX": tmp_path / "inbox"})
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(site.authority.ca_file.read_bytes())
    async with site.simulator() as simulator:
        config = site.configure(simulator.url, sections={"apns": {"ca_file": ca_file}})
        async with DaemonProcess(config) as daemon:
            await daemon.notified("STATUS=state=pushing")
            ca_file.write_text("no certificate")
            renewed = site.authority.push_certificate(TOPIC, name="renewed", topics=(TOPIC,), ends=timedelta(800))
            renewed.file.replace(site.certificate.file)
            while "new credentials not taken up" not in daemon.log:
                await asyncio.sleep(0.05)
            told = await asyncio.to_thread(status.ask, site.status_socket)
            assert told["credentials"]["days_left"] < 799
            assert any("it must hold PEM certificates" in trouble for trouble in told["troubles"])
            deliver_by_link(tmp_path / "inbox")
            await simulator.wait_for(1)
