"""A fresh Debian with a mail server, and xaps-watch installed on it as the README says: does it do its work?

The tests are one story, in order; the machine of each release is theirs together. Debian 13 alone, unless
XAPS_WATCH_RELEASES names others: ``XAPS_WATCH_RELEASES="bookworm trixie" pytest tests/machines``. Commands that the
README names are taken from there.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import pytest

from tests.machines.mail_server import REPOSITORY, SYSTEM_USER, USERS, VIRTUAL_USER, MailServer, User
from tests.machines.sabotages import SABOTAGES, Sabotage
from tests.support.machine import MachineError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.timeout(600)

README = (REPOSITORY / "README.md").read_text()
RELEASES = os.environ.get("XAPS_WATCH_RELEASES", "trixie").split()
SERVICE = "xaps-watch"


@pytest.fixture(scope="module", params=RELEASES)
def server(request: pytest.FixtureRequest) -> Iterator[MailServer]:
    assert os.geteuid() == 0, "needs root: it boots a machine"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = (*project["dependencies"], *project["optional-dependencies"]["test"])
    with MailServer(request.param, requirements) as server:
        server.boot()
        server.set_up()
        yield server


@pytest.fixture(autouse=True)
def forget_earlier_starts(server: MailServer) -> None:
    """systemd allows five starts in ten seconds, and the tests together make more."""
    server.try_run("systemctl", "reset-failed", SERVICE)


def push_follows(server: MailServer, user: User) -> None:
    """A mail by Postfix reaches the user's phone."""
    before = server.pushes(user)
    server.deliver(user)
    try:
        server.wait_for(f"a push to {user.name}", lambda: server.pushes(user) > before)
    except MachineError as error:
        logs = "\n".join(f"== {unit}\n{server.journal(unit)}" for unit in ("apns", SERVICE, "dovecot", "postfix*"))
        raise MachineError(f"{error}\n{logs}") from None


def unit_property(server: MailServer, name: str) -> str:
    return server.run("systemctl", "show", "--value", "--property", name, SERVICE).strip()


def in_readme(pattern: str) -> str:
    """The one command there that the pattern fits."""
    (command,) = re.findall(pattern, README, re.MULTILINE)
    return str(command)


def test_demo_as_the_readme_says(server: MailServer) -> None:
    said = server.as_admin(in_readme(r"^sudo apt-get .*xaps-watch demo$"))
    assert "every expected push arrived" in said
    server.as_admin("rm -r .venv")


def test_fast_tests_as_the_readme_says(server: MailServer) -> None:
    said = server.as_admin(in_readme(r"^`(tests/run\.sh --fast)`"))
    assert "===== lint: passed" in said
    assert "===== unit: passed" in said
    server.as_admin("rm -r .venv-tests")


def test_installs_without_touching_dovecot(server: MailServer) -> None:
    before = server.run("doveconf", "-n")
    said = server.as_admin("sudo systemd/install.sh")
    assert "systemctl enable --now xaps-watch" in said
    assert server.run("doveconf", "-n") == before
    assert server.run("stat", "-c", "%a %U:%G", "/var/lib/xaps-watch").strip() == "2770 xaps-watch:xaps-watch"
    assert server.run("stat", "-c", "%a %U:%G", "/etc/xaps-watch/config.toml").strip() == "640 root:xaps-watch"


def test_dovecot_that_fails_with_the_plugin_gets_its_configuration_back(server: MailServer) -> None:
    """Here it can't find plugins, which nobody notices as long as none is configured."""
    server.write("/etc/dovecot/conf.d/99-broken.conf", "mail_plugin_dir = /nonexistent\n")
    server.run("systemctl", "reload", "dovecot")
    with pytest.raises(MachineError, match="the configuration is as it was"):
        server.as_admin("sudo systemd/install.sh --enable-dovecot")
    assert not (server.path / "etc/dovecot/conf.d/95-xaps.conf").exists()
    assert server.phone(SYSTEM_USER)["capable"] is False  # but it can log in
    server.run("rm", "/etc/dovecot/conf.d/99-broken.conf")


def test_another_programs_file_is_left_alone(server: MailServer) -> None:
    server.write("/etc/dovecot/conf.d/95-xaps.conf", "# xapsd's\n")
    with pytest.raises(MachineError, match="is another program's"):
        server.as_admin("sudo systemd/install.sh --enable-dovecot")
    server.as_admin("sudo systemd/install.sh --disable-dovecot")
    assert (server.path / "etc/dovecot/conf.d/95-xaps.conf").read_text() == "# xapsd's\n"
    server.run("rm", "/etc/dovecot/conf.d/95-xaps.conf")


def test_waits_for_the_certificate(server: MailServer) -> None:
    server.as_admin("sudo systemctl enable --now xaps-watch")
    assert "waiting for credentials" in unit_property(server, "StatusText")
    server.as_admin("sudo systemd/install.sh --enable-dovecot")
    assert server.phone(SYSTEM_USER)["capable"] is False


def test_takes_the_certificate_up_without_a_restart(server: MailServer) -> None:
    server.start_apns()
    config = server.path / "etc/xaps-watch/config.toml"
    text = re.sub(r"^# (url|ca_file) = ", r"\1 = ", config.read_text(), flags=re.MULTILINE)
    config.write_text(text)
    server.run("install", "-m", "0640", "-g", "xaps-watch", "/var/lib/apns/ca.pem", "/etc/xaps-watch/")
    server.run("systemctl", "reload", SERVICE)
    pid = unit_property(server, "MainPID")
    server.run("install", "-m", "0640", "-g", "xaps-watch", "/var/lib/apns/push.pem", "/etc/xaps-watch/mail.pem")
    server.wait_for("the certificate", lambda: "state=pushing" in unit_property(server, "StatusText"))
    assert unit_property(server, "MainPID") == pid


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.name)
def test_mail_by_postfix_reaches_the_phone(server: MailServer, user: User) -> None:
    server.deliver(user)  # Postfix makes the Maildir
    seen = server.phone(user)
    assert seen["capable"] is True
    assert seen["answer"] == "OK"
    push_follows(server, user)
    assert f"user={user.name}" in server.journal(SERVICE)


def test_check_finds_nothing_to_mend(server: MailServer) -> None:
    checked = server.try_run("xaps-watch", "check")
    assert "✘" not in checked.stdout, checked.stdout
    assert "https://127.0.0.1:2197" in server.run("xaps-watch", "status")  # which came by a reload


@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
def test_the_mend_that_check_tells_works(server: MailServer, sabotage: Sabotage) -> None:
    """Copied from what check prints, and executed as it stands there."""
    server.run("sh", "-c", sabotage.do)
    printed = server.try_run("xaps-watch", "check").stdout
    told = rf"^[✘!] {sabotage.subject}: +.*{re.escape(sabotage.said)}.*\n    → (.*)$"
    found = re.search(told, printed, re.MULTILINE)
    assert found is not None, printed
    server.as_admin(found[1], environment={"EDITOR": sabotage.editor})
    wait_until_clean(server, but=sabotage.apart_from)
    server.run("sh", "-c", sabotage.afterwards)
    wait_until_clean(server)


def wait_until_clean(server: MailServer, *, but: str = "nothing else") -> None:
    """Until check finds nothing wrong but one subject, and the clock, which this machine can't set."""
    printed = ""

    def is_clean() -> bool:
        nonlocal printed
        printed = server.try_run("xaps-watch", "check").stdout
        return "✔" in printed and not re.search(rf"^[✘!] (?!{but}:|clock:)", printed, re.MULTILINE)

    try:
        server.wait_for("the mend", is_clean)
    except MachineError as error:
        raise MachineError(f"{error}\n{printed}") from None


def test_exposure(server: MailServer) -> None:
    said = server.run("systemd-analyze", "security", "--no-pager", SERVICE)
    figure = re.search(r"exposure level for \S+: (\d+\.\d)", said)
    assert figure and float(figure[1]) <= 1.5, said


def test_unit_is_in_order(server: MailServer) -> None:
    assert server.run("systemd-analyze", "verify", f"{SERVICE}.service") == ""


def test_sees_what_is_mounted_later(server: MailServer) -> None:
    """A home directory that comes after the service's start, as by autofs or after a failed disk."""
    server.run("mkdir", "/home/late")
    server.run("mount", "-t", "tmpfs", "tmpfs", "/home/late")
    server.run("touch", "/home/late/there")
    pid = unit_property(server, "MainPID")
    assert server.run("ls", f"/proc/{pid}/root/home/late").strip() == "there"
    server.run("umount", "/home/late")


def test_cannot_write_mail_nor_see_root(server: MailServer) -> None:
    pid = unit_property(server, "MainPID")
    inside = ("nsenter", "--target", pid, "--mount", "--")
    assert server.try_run(*inside, "touch", f"{SYSTEM_USER.maildir}/new/x").returncode != 0
    assert server.run(*inside, "ls", "-A", "/root") == ""


def test_reload_takes_a_renewed_certificate(server: MailServer) -> None:
    renew = (
        "from pathlib import Path; from xaps_watch.authority import LocalAuthority; from datetime import timedelta;"
        "topic = 'com.apple.mobilemail.push.org.example'; apns = LocalAuthority(Path('/var/lib/apns'));"
        "apns.push_certificate(topic, name='renewed', topics=(topic,), ends=timedelta(days=800))"
    )
    server.run("/opt/xaps-watch/bin/python", "-c", renew)
    before = server.journal(SERVICE).count("credentials in use")
    pid = unit_property(server, "MainPID")
    server.run("install", "-m", "0640", "-g", "xaps-watch", "/var/lib/apns/renewed.pem", "/etc/xaps-watch/mail.pem")
    server.run("systemctl", "reload", SERVICE)
    server.wait_for("the new one", lambda: server.journal(SERVICE).count("credentials in use") > before)
    server.wait_for("the reload to end", lambda: unit_property(server, "ActiveState") == "active")
    assert unit_property(server, "MainPID") == pid
    push_follows(server, SYSTEM_USER)


def test_takes_the_certificate_from_systemd(server: MailServer) -> None:
    """And so do the commands, while the service runs."""
    config = server.path / "etc/xaps-watch/config.toml"
    before = config.read_text()
    named = 'certificate = "$CREDENTIALS_DIRECTORY/push.pem"'
    config.write_text(before.replace('# certificate = "/etc/xaps-watch/mail.pem"', named))
    drop_in = "[Service]\nLoadCredential=push.pem:/etc/xaps-watch/mail.pem\n"
    server.write("/etc/systemd/system/xaps-watch.service.d/test.conf", drop_in)
    server.run("systemctl", "daemon-reload")
    server.run("systemctl", "restart", SERVICE)
    push_follows(server, SYSTEM_USER)
    assert "/run/credentials/xaps-watch.service/push.pem" in server.run("xaps-watch", "status")
    checked = server.try_run("xaps-watch", "check")
    assert "✘" not in checked.stdout, checked.stdout
    config.write_text(before)
    server.run("rm", "-r", "/etc/systemd/system/xaps-watch.service.d")
    server.run("systemctl", "daemon-reload")
    server.run("systemctl", "restart", SERVICE)


def test_killed_it_comes_back_and_misses_nothing(server: MailServer) -> None:
    before = server.pushes(VIRTUAL_USER)
    pid = unit_property(server, "MainPID")
    server.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", SERVICE)
    server.deliver(VIRTUAL_USER)
    server.wait_for("the push", lambda: server.pushes(VIRTUAL_USER) > before)
    assert unit_property(server, "MainPID") != pid


def test_stopped_loop_is_ended_by_the_watchdog(server: MailServer) -> None:
    """With a shorter patience than the unit's 30 s."""
    assert unit_property(server, "WatchdogUSec") == "30s"
    server.write("/etc/systemd/system/xaps-watch.service.d/test.conf", "[Service]\nWatchdogSec=5\n")
    server.run("systemctl", "daemon-reload")
    server.run("systemctl", "restart", SERVICE)
    before = int(unit_property(server, "NRestarts"))
    server.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", SERVICE)
    server.wait_for("a restart", lambda: int(unit_property(server, "NRestarts")) > before, 40.0)
    server.run("rm", "-r", "/etc/systemd/system/xaps-watch.service.d")
    server.run("systemctl", "daemon-reload")
    server.wait_for("the service", lambda: unit_property(server, "ActiveState") == "active")
    push_follows(server, SYSTEM_USER)


def test_all_comes_back_after_a_reboot(server: MailServer) -> None:
    server.reboot()
    server.start_apns()
    for user in USERS:
        push_follows(server, user)
    assert server.phone(SYSTEM_USER)["answer"] == "OK"


def test_an_upgrade_keeps_what_the_admin_wrote(server: MailServer) -> None:
    """The clone is a newer version; and metrics are wanted now."""
    config = server.path / "etc/xaps-watch/config.toml"
    config.write_text(config.read_text().replace("# listen = ", "listen = "))
    before = config.read_text()
    server.as_admin(r"sed -i 's/^\(__version__\|version\) = .*/\1 = \"99.1\"/' pyproject.toml xaps_watch/__init__.py")
    server.as_admin("sudo systemd/install.sh --enable-dovecot")
    assert config.read_text() == before
    assert server.run("xaps-watch", "status").startswith("xaps-watch 99.1 ")
    push_follows(server, VIRTUAL_USER)
    fetch = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9617/metrics').read().decode())"
    accepted = re.compile(r'^xaps_watch_pushes_total\{.*status="200".*\} [1-9]', re.MULTILINE)
    server.wait_for("the metrics", lambda: accepted.search(server.run("python3", "-c", fetch)))


def test_uninstall_leaves_mail_and_dovecot_working(server: MailServer) -> None:
    server.as_admin("sudo systemd/install.sh --uninstall")
    messages = server.phone(SYSTEM_USER)["messages"]
    assert isinstance(messages, int)
    server.deliver(SYSTEM_USER)
    server.wait_for("the mail", lambda: server.phone(SYSTEM_USER)["messages"] == messages + 1)
    assert server.phone(VIRTUAL_USER)["capable"] is False
    assert server.try_run("systemctl", "status", SERVICE).returncode == 4  # no such unit
    assert (server.path / "etc/xaps-watch/config.toml").exists()
    left = server.run("find", "/usr/local", "/opt", "/usr/lib/dovecot", "-name", "*xaps*")
    assert left == ""


def test_purge_leaves_nothing(server: MailServer) -> None:
    server.as_admin("sudo systemd/install.sh --uninstall --purge")
    assert not (server.path / "etc/xaps-watch").exists()
    assert not (server.path / "var/lib/xaps-watch").exists()
    assert server.try_run("getent", "passwd", SERVICE).returncode != 0
