"""``xaps-watch check``: a healthy installation is found healthy; each sabotage is named, and its mend works."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.daemon import DaemonProcess, Site
from tests.support.values import TOPIC, device_token
from xaps_watch import doctor
from xaps_watch.cli import main
from xaps_watch.doctor import FAILURE, OK, WARNING, Finding
from xaps_watch.registry import topic_file
from xaps_watch.simulator import Simulator

# Stand-ins for programs whose answers depend on the whole machine; they read what they say from a file.
PROGRAMS = {
    "dovecot": 'cat "$(dirname "$0")/version"',
    "doveconf": 'for last; do :; done; sed -n "s|^$last = ||p" "$(dirname "$0")/settings"',
    "timedatectl": 'test "$*" = "set-ntp true" && echo 0.004 >"$(dirname "$0")/clock-error"',
}
SETTINGS = """\
mail_plugin_dir = {directory}/modules
mail_plugins = quota imap_xaps
mail_access_groups = {group}
imap_capability =
mail_chroot =
service/imap/chroot =
plugin/xaps_registry = {registry}
"""


@dataclass(slots=True)
class Installation:
    """All that check looks at, in one directory."""

    site: Site
    simulator: Simulator
    daemon: DaemonProcess
    bin: Path

    @property
    def module(self) -> Path:
        return self.site.directory / "modules" / "lib90_imap_xaps_plugin.so"

    @property
    def registry_module(self) -> Path:
        return self.module.with_name("libimap_xaps_registry.so")

    def build(self, abi: str) -> None:
        for module in (self.module, self.registry_module):
            module.write_bytes(b"\x7fELF..." + abi.encode() + b"\0")

    @property
    def settings(self) -> Path:
        return self.bin / "settings"

    async def examine(self) -> list[Finding]:
        return await asyncio.to_thread(lambda: list(doctor.examine(self.site.config_file)))

    def replace(self, file: Path, old: str, new: str) -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))


@pytest.fixture
async def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Installation]:
    site = Site(tmp_path)
    site.register("alice", device_token(1), {"INBOX": tmp_path / "inbox"})
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    (programs / "version").write_text("2.3.19.1 (9b53102964)\n")
    (programs / "clock-error").write_text("0.004\n")
    monkeypatch.setattr(doctor, "clock_error", lambda: float((programs / "clock-error").read_text()))
    (programs / "settings").write_text(
        SETTINGS.format(directory=tmp_path, group=site.registry_file.parent.group(), registry=site.registry_file)
    )
    (tmp_path / "modules").mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    async with site.simulator() as simulator, DaemonProcess(site.configure(simulator.url)) as daemon:
        await daemon.notified("STATUS=")
        made = Installation(site, simulator, daemon, programs)
        made.build("2.3.ABIv19(2.3.19.1)")
        yield made


def wrong(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state != OK]


async def test_a_healthy_installation(installation: Installation) -> None:
    findings = await installation.examine()
    assert wrong(findings) == []
    assert {finding.subject for finding in findings} == {
        "configuration", "credentials", "push host", "registry", "mailboxes", "inotify", "clock", "Dovecot", "plugin",
        "service",
    }  # fmt: skip


async def test_dovecot_2_4_names_its_abi_alone(installation: Installation) -> None:
    """Seen in 2.4.1: no release in brackets behind it."""
    (installation.bin / "version").write_text("2.4.1-4 (7d8c0e5759)\n")
    installation.build("2.4.ABIv1")
    assert [f for f in await installation.examine() if f.subject == "plugin" and "was built" in f.said] == []
    installation.build("2.5.ABIv1")
    assert [f.state for f in await installation.examine() if "was built for Dovecot 2.5" in f.said] == [FAILURE]


@dataclass(frozen=True, slots=True)
class Sabotage:
    """What is broken, what check has to say of it, and the mend: check's own command where `mend` is None."""

    do: Callable[[Installation], object]
    subject: str
    said: str
    mend: Callable[[Installation], object] | None = None
    state: str = FAILURE


def _expired(i: Installation) -> None:
    i.site.authority.push_certificate(TOPIC, name="push", starts=timedelta(-9), ends=timedelta(-2))


def _renewed(i: Installation) -> None:
    i.site.authority.push_certificate(TOPIC, name="push", topics=(TOPIC,))


def _sql(statement: str) -> Callable[[Installation], None]:
    def execute(i: Installation) -> None:
        with closing(sqlite3.connect(i.site.registry_file)) as book:
            book.execute(statement)
            book.commit()

    return execute


def _setting(old: str, new: str) -> Callable[[Installation], None]:
    return lambda i: i.replace(i.settings, old, new)


def _config(old: str, new: str) -> Callable[[Installation], None]:
    return lambda i: i.replace(i.site.config_file, old, new)


def _plugin(old: str, new: str, said: str) -> Sabotage:
    """A setting of Dovecot's, and its mend: as it was."""
    return Sabotage(_setting(old, new), "plugin", said, _setting(new, old))


GROUP = "mail_access_groups = root"
_ANOTHER_KEY = ("[apns]\n", '[apns]\nkey = "certificates/other.key"\n')
_ANOTHER_TOPIC = ("[apns]\n", '[apns]\ntopic = "com.apple.mobilemail.push.org.other"\n')
_TOKEN_KEY = (
    'certificate = "',
    f'token_key = "bin/version"\nkey_id = "ABC123DEFG"\nteam_id = "DEF123GHIJ"\ntopic = "{TOPIC}"\n# "',
)
SABOTAGES = {
    "a key misspelt": Sabotage(
        _config("min_interval", "min_intervall"), "configuration", "did you mean 'min_interval'?",
        _config("min_intervall", "min_interval"),
    ),
    "no configuration": Sabotage(
        lambda i: i.site.config_file.rename(i.bin / "config"), "configuration", "cannot be read",
        lambda i: (i.bin / "config").rename(i.site.config_file),
    ),
    "the certificate is gone": Sabotage(
        lambda i: i.site.certificate.file.unlink(), "credentials", "cannot be read: No such file", _renewed,
    ),
    "the certificate has expired": Sabotage(_expired, "credentials", "expired on", _renewed),
    "the certificate ends soon": Sabotage(
        lambda i: i.site.authority.push_certificate(TOPIC, name="push", ends=timedelta(20)),
        "credentials", "valid for 20 more days", _renewed, WARNING,
    ),
    "the certificate ends very soon": Sabotage(
        lambda i: i.site.authority.push_certificate(TOPIC, name="push", ends=timedelta(3)),
        "credentials", "valid for 3 more days", _renewed,
    ),
    "a topic that iOS refuses": Sabotage(
        lambda i: i.site.authority.push_certificate("org.example.app", name="push"),
        "credentials", "would be refused by iOS Mail", _renewed,
    ),
    "the key is another certificate's": Sabotage(
        lambda i: i.site.authority.push_certificate(TOPIC, name="other") and _config(*_ANOTHER_KEY)(i),
        "credentials", "does not fit the certificate", _config(*reversed(_ANOTHER_KEY)),
    ),
    "the certificate is for another topic": Sabotage(
        _config(*_ANOTHER_TOPIC), "credentials", "the certificate ", _config(*reversed(_ANOTHER_TOPIC)),
    ),
    "the token key is no key": Sabotage(
        _config(*_TOKEN_KEY), "credentials", "not a readable .p8 file", _config(*reversed(_TOKEN_KEY)),
    ),
    "the key ID is none": Sabotage(
        _config("[apns]\n", '[apns]\nkey_id = "AuthKey_1"\n'), "configuration", "10 capital letters and digits",
        _config('[apns]\nkey_id = "AuthKey_1"\n', "[apns]\n"),
    ),
    "the key is open to all": Sabotage(
        lambda i: i.site.certificate.file.chmod(0o644), "credentials", "may be read by everybody",
    ),
    "the push host is not there": Sabotage(
        lambda i: i.replace(i.site.config_file, i.simulator.url, "https://127.0.0.1:1"),
        "push host", "127.0.0.1:1: Connection refused",
        lambda i: i.replace(i.site.config_file, "https://127.0.0.1:1", i.simulator.url),
    ),
    "the push host is not trusted": Sabotage(
        lambda i: i.replace(i.site.config_file, f'ca_file = "{i.simulator.ca_file}"\n', ""),
        "push host", "TLS failed: CERTIFICATE_VERIFY_FAILED",
        lambda i: i.replace(i.site.config_file, "[apns]\n", f'[apns]\nca_file = "{i.simulator.ca_file}"\n'),
    ),
    "the CA file is no certificate": Sabotage(
        lambda i: i.replace(i.site.config_file, str(i.simulator.ca_file), str(i.bin / "version")),
        "push host", "it must hold PEM certificates",
        lambda i: i.replace(i.site.config_file, str(i.bin / "version"), str(i.simulator.ca_file)),
    ),
    "the registry's directory lost its setgid bit": Sabotage(
        lambda i: i.site.registry_file.parent.chmod(0o770), "registry", "has mode 0770",
    ),
    "the registry is not writable for its group": Sabotage(
        lambda i: i.site.registry_file.chmod(0o640), "registry", "has mode 0640",
    ),
    "the registry is open to all": Sabotage(
        lambda i: i.site.registry_file.chmod(0o666), "registry", "is open to everybody",
    ),
    "the registry has another group": Sabotage(
        lambda i: os.chown(i.site.registry_file, -1, 12345), "registry", "has not the group of its directory",
    ),
    "the registry is of another release": Sabotage(
        _sql("PRAGMA user_version = 9"), "registry", "has schema version 9", _sql("PRAGMA user_version = 1"),
    ),
    "the registry has no topic": Sabotage(
        _sql("UPDATE setting SET value = '' WHERE name = 'topic'"), "registry", "is told no topic",
        _sql("UPDATE setting SET value = (SELECT topic FROM device) WHERE name = 'topic'"),
    ),
    "the plugin sees no topic": Sabotage(
        lambda i: topic_file(i.site.registry_file).unlink(), "registry", "sqlite3-topic doesn't hold the topic",
        lambda i: topic_file(i.site.registry_file).write_text(TOPIC),
    ),
    "a device is suspended": Sabotage(
        _sql("UPDATE device SET suspended = '400 BadDeviceToken'"), "registry", "1 devices are suspended",
        _sql("UPDATE device SET suspended = NULL"), WARNING,
    ),
    "a mailbox is gone": Sabotage(
        lambda i: shutil.rmtree(i.site.directory / "inbox"), "mailboxes", "inbox is gone",
        lambda i: (i.site.directory / "inbox" / "new").mkdir(parents=True), WARNING,
    ),
    "the clock is not synchronised": Sabotage(
        lambda i: (i.bin / "clock-error").write_text("16.0"), "clock", "not synchronised", state=WARNING,
    ),
    "Dovecot is too old": Sabotage(
        lambda i: (i.bin / "version").write_text("2.2.36 (x)\n"), "Dovecot", "is too old",
        lambda i: (i.bin / "version").write_text("2.3.19.1 (x)\n"),
    ),
    "Dovecot was upgraded": Sabotage(
        lambda i: (i.bin / "version").write_text("2.3.21 (x)\n"), "plugin",
        "was built for Dovecot 2.3.19.1, 2.3.21 is installed",
        lambda i: i.build("2.3.ABIv21(2.3.21)"),
    ),
    "the plugin is not installed": Sabotage(
        lambda i: i.module.rename(i.bin / "module"), "plugin", "No such file or directory",
        lambda i: (i.bin / "module").rename(i.module),
    ),
    "the plugin's other module is not installed": Sabotage(
        lambda i: i.registry_module.rename(i.bin / "module"), "plugin", "registry.so: No such file or directory",
        lambda i: (i.bin / "module").rename(i.registry_module),
    ),
    "the plugin is not loaded": _plugin(
        "mail_plugins = quota imap_xaps", "mail_plugins = quota", "is not in mail_plugins of protocol imap"
    ),
    "imap processes lack the group": _plugin(GROUP, "mail_access_groups = mail", f"lacks {GROUP}"),
    "an explicit capability": _plugin(
        "imap_capability =", "imap_capability = IMAP4rev1 IDLE", "imap_capability is set"
    ),
    "a chroot": _plugin("mail_chroot =", "mail_chroot = /srv", "mail_chroot hides the registry"),
    "a chroot of the service": _plugin("imap/chroot =", "imap/chroot = /srv", "service imap chroot hides the registry"),
    "Dovecot has another registry": _plugin(
        "registry.sqlite3", "other.sqlite3", "other.sqlite3, but path in [registry] is"
    ),
}  # fmt: skip


@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
async def test_a_sabotage_is_found_and_its_mend_works(installation: Installation, sabotage: Sabotage) -> None:
    sabotage.do(installation)
    found = wrong(await installation.examine())
    (named,) = (f for f in found if f.subject == sabotage.subject and sabotage.said in f.said)
    assert named.state == sabotage.state
    assert named.mend
    if sabotage.mend is not None:
        sabotage.mend(installation)
    else:
        mending = await asyncio.create_subprocess_shell(named.mend.replace("sudo ", ""))
        assert await mending.wait() == 0
    # The running service notices some of it, too, and has to notice the mend.
    for _ in range(100):
        if not (found := wrong(await installation.examine())):
            break
        await asyncio.sleep(0.1)
    assert found == []


async def test_a_service_that_does_not_run(installation: Installation) -> None:
    await installation.daemon.stop()
    (found,) = wrong(await installation.examine())
    assert (found.subject, found.state) == ("service", FAILURE)
    assert found.mend == "sudo systemctl enable xaps-watch && sudo systemctl restart xaps-watch"
    await installation.daemon.start()
    assert wrong(await installation.examine()) == []


async def test_an_older_version_still_runs(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "__version__", "99.1")
    (found,) = wrong(await installation.examine())
    assert (found.subject, found.state) == ("service", WARNING)
    assert found.said.endswith("runs, 99.1 is installed")
    assert found.mend == "sudo systemctl restart xaps-watch"


async def test_a_push_host_without_http2(installation: Installation) -> None:
    """As a proxy that opens TLS may be: it offers HTTP/1.1, or nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(installation.site.authority.server_file)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as proxy:
        host, port = proxy.sockets[0].getsockname()
        installation.replace(installation.site.config_file, installation.simulator.url, f"https://{host}:{port}")
        found = [finding for finding in wrong(await installation.examine()) if finding.subject == "push host"]
    assert [finding.said for finding in found] == [f"{host}:{port} speaks no HTTP/2"]


def test_the_kernel_is_asked_how_wrong_the_clock_may_be() -> None:
    assert 0 <= doctor.clock_error() <= 16  # NTP_PHASE_MAX


async def test_what_lies_on_a_network(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that is mounted here said to be NFS."""
    local = [finding.said for finding in await installation.examine() if finding.subject == "mailboxes"]
    assert local[1].endswith("watched by inotify")
    table = re.sub(r" - \S+ ", " - nfs4 ", doctor.MOUNTS.read_text())
    (tmp_path / "mountinfo").write_text(table)
    monkeypatch.setattr(doctor, "MOUNTS", tmp_path / "mountinfo")
    findings = await installation.examine()
    (found,) = wrong(findings)
    assert (found.subject, found.state) == ("registry", FAILURE)
    assert "is on nfs4" in found.said
    (mailboxes,) = (finding.said for finding in findings if "polled" in finding.said)
    assert mailboxes.startswith("1 on nfs4, polled every 30 s")


async def test_too_few_inotify_watches(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "WATCH_LIMIT", tmp_path / "limit")
    (tmp_path / "limit").write_text("5\n")
    (found,) = wrong(await installation.examine())
    assert found.said == "max_user_watches is 5, 19 are needed"
    assert found.mend is not None
    assert "sysctl -w fs.inotify.max_user_watches=38" in found.mend


async def test_the_command_for_people_and_for_monitoring(
    installation: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-c", str(installation.site.config_file), "check"]
    assert await asyncio.to_thread(main, arguments) == 0
    assert "✔ push host:     127.0.0.1:" in capsys.readouterr().out
    installation.module.unlink()
    assert await asyncio.to_thread(main, [*arguments, "--json", "--offline"]) == 2
    printed = capsys.readouterr().out
    assert '"state": "failure"' in printed
    assert "push host" not in printed
