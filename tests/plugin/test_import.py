"""``xaps-watch import`` with the real doveadm, which asks a private Dovecot: every layout of Maildirs that it knows."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.commands import xaps_watch
from tests.support.daemon import Site, device_token
from tests.support.maildirs import make_maildir
from xaps_watch import registry
from xaps_watch.registry import Registry

MAIL_UID = 5000  # needs no system account
USERS = {
    "alice@example.org": "",
    "layoutfs": "userdb_mail=maildir:~/Maildir:LAYOUT=fs",
    "prefixed": "userdb_namespace/inbox/prefix=INBOX. userdb_namespace/inbox/separator=.",
    "separate": "userdb_mail=maildir:~/Maildir:INBOX=~/inbox",
    "dbox": "userdb_mail=mdbox:~/mdbox",
}
USERS_24 = {
    "layoutfs": "userdb_mailbox_list_layout=fs",
    "separate": "userdb_mail_inbox_path=~/inbox",
    "dbox": "userdb_mail_driver=mdbox userdb_mail_path=~/mdbox",
}


class Dovecot:
    """What doveadm needs of one: the user database."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        version = subprocess.run(["dovecot", "--version"], capture_output=True, text=True, check=True).stdout
        self.is_24 = version.startswith("2.4")
        self.config = directory / "dovecot.conf"
        users = {**USERS, **USERS_24} if self.is_24 else USERS
        (directory / "users").write_text(
            "".join(f"{user}:{{PLAIN}}pw:{MAIL_UID}:{MAIL_UID}::{self.home(user)}::{extra}\n"
                    for user, extra in users.items())
        )  # fmt: skip
        self.config.write_text(self._config(version))

    def home(self, user: str) -> Path:
        return self.directory / "home" / user

    def _config(self, version: str) -> str:
        number = version.partition(" ")[0]
        users = f"{self.directory}/users"
        common = f"""\
base_dir = {self.directory}/run
state_dir = {self.directory}/state
log_path = /dev/stderr
ssl = no
namespace inbox {{
  inbox = yes
  separator = /
}}
"""
        if self.is_24:
            return f"""\
dovecot_config_version = {number}
dovecot_storage_version = {number}
{common}
mail_driver = maildir
mail_path = ~/Maildir
passdb passwd-file {{
  passwd_file_path = {users}
}}
userdb passwd-file {{
  passwd_file_path = {users}
}}
"""
        return f"""\
{common}
protocols =
mail_location = maildir:~/Maildir
passdb {{
  driver = passwd-file
  args = username_format=%u {users}
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {users}
}}
"""

    def start(self) -> subprocess.Popen[bytes]:
        """Raises AssertionError if it doesn't answer."""
        with (self.directory / "dovecot.log").open("wb") as log:
            process = subprocess.Popen(["dovecot", "-F", "-c", self.config], stderr=log)
        deadline = time.monotonic() + 10
        while subprocess.run(["doveadm", "-c", self.config, "user", "dbox"], capture_output=True).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                stop(process)
                raise AssertionError(f"dovecot doesn't answer:\n{(self.directory / 'dovecot.log').read_text()}")
            time.sleep(0.05)
        return process


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(10)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where Dovecot's own users may go, too."""
    with TemporaryDirectory(prefix="xaps-watch-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def dovecot(directory: Path) -> Iterator[Dovecot]:
    server = Dovecot(directory)
    process = server.start()
    yield server
    stop(process)


def make_mail(home: Path, *directories: str) -> None:
    for directory in directories:
        make_maildir(home / directory)
    for path in (home, *home.rglob("*")):
        os.chown(path, MAIL_UID, MAIL_UID)


async def test_paths_by_the_real_doveadm(dovecot: Dovecot, directory: Path) -> None:
    site = Site(directory / "site")
    site.configure("https://127.0.0.1:1")
    registry.create(site.registry_file)
    home = dovecot.home
    make_mail(home("alice@example.org"), "Maildir", "Maildir/.Entw&APw-rfe &- more.2024", "Maildir/.-x")
    make_mail(home("layoutfs"), "Maildir", "Maildir/Lists/Dovecot")
    make_mail(home("prefixed"), "Maildir", "Maildir/.Sent")
    make_mail(home("separate"), "Maildir", "inbox", "Maildir/.Notes")
    home("dbox").mkdir()
    mailboxes = {
        "alice@example.org": ["INBOX", "Entw&APw-rfe &- more/2024", "-x", "Gone"],
        "layoutfs": ["INBOX", "Lists/Dovecot"],
        "prefixed": ["INBOX", "INBOX.Sent"],
        "separate": ["INBOX", "Notes"],
        "dbox": ["INBOX"],
        "nobody": ["INBOX"],
    }
    accounts = {
        user: {"Accounts": {"0715A26B": {"DeviceToken": device_token(1), "Mailboxes": names}}}
        for user, names in mailboxes.items()
    }
    database = directory / "database.json"
    database.write_text(json.dumps({"Users": accounts}))

    ran = await xaps_watch(site.config_file, "import", database, "--doveadm", f"doveadm -c {dovecot.config}")
    assert (ran.status, ran.error) == (1, "")
    with Registry(site.registry_file) as book:
        found = {
            device.username: {m.name: m.path for m in book.mailboxes(device.id)} for device in book.devices()
        }
    assert found == {
        "alice@example.org": {
            "INBOX": f"{home('alice@example.org')}/Maildir",
            "Entwürfe & more/2024": f"{home('alice@example.org')}/Maildir/.Entw&APw-rfe &- more.2024",
            "-x": f"{home('alice@example.org')}/Maildir/.-x",
        },
        "layoutfs": {
            "INBOX": f"{home('layoutfs')}/Maildir",
            "Lists/Dovecot": f"{home('layoutfs')}/Maildir/Lists/Dovecot",
        },
        "prefixed": {"INBOX": f"{home('prefixed')}/Maildir", "INBOX.Sent": f"{home('prefixed')}/Maildir/.Sent"},
        "separate": {"INBOX": f"{home('separate')}/inbox", "Notes": f"{home('separate')}/Maildir/.Notes"},
    }
    problems = {line.split(" ")[1]: line for line in ran.lines if line[0] in "!✘"}
    assert set(problems) == {"alice@example.org", "dbox", "nobody"}
    assert "without Gone: " in problems["alice@example.org"]
    assert "doesn't exist" in problems["nobody"]


async def test_without_a_running_dovecot(dovecot: Dovecot, directory: Path) -> None:
    site = Site(directory / "site")
    site.configure("https://127.0.0.1:1")
    registry.create(site.registry_file)
    database = directory / "database.json"
    account = {"DeviceToken": device_token(1), "Mailboxes": ["INBOX"]}
    database.write_text(json.dumps({"Users": {"alice@example.org": {"Accounts": {"0715A26B": account}}}}))
    stopped = directory / "stopped.conf"
    stopped.write_text(dovecot.config.read_text().replace(f"{directory}/run", f"{directory}/no-run"))

    ran = await xaps_watch(site.config_file, "import", database, "--doveadm", f"doveadm -c {stopped}")
    assert ran.status == 1
    assert "doveadm needs root and a running Dovecot" in ran.lines[0]
