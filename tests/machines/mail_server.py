"""A mail server as admins have it: the distribution's Postfix and Dovecot, system users and virtual ones, TLS."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian
from tests.support.machine import PACKAGES, Machine, wheels
from tests.support.values import ACCOUNT_ID

REPOSITORY = Path(__file__).resolve().parents[2]

# What is there before xaps-watch comes; what install.sh needs beyond it, it has to install itself.
SERVER_PACKAGES = (*PACKAGES, "dovecot-imapd", "postfix", "python3", "sudo", "man-db")
INSTALLED_LATER = ("python3-venv", "gcc", "make", "pkg-config", "libsqlite3-dev", "dovecot-dev")

# Names of pip's own: to build from a source distribution it needs setuptools.
REQUIREMENTS = ("setuptools>=64", "wheel")

PIP = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}  # the machine has no network

PASSWORD = "secret"  # noqa: S105 - of users that live for a minute
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class User:
    """A mail user, in Postfix's and Dovecot's terms."""

    name: str
    maildir: str
    token: str  # of the user's phone


SYSTEM_USER = User("anna", "/home/anna/Maildir", "a1" * 32)
VIRTUAL_USER = User("berta@example.org", "/var/vmail/example.org/berta/Maildir", "b2" * 32)
USERS = (SYSTEM_USER, VIRTUAL_USER)


_DOVECOT_2_3 = """
mail_location = maildir:~/Maildir
passdb {
  driver = passwd-file
  args = username_format=%u /etc/dovecot/virtual-users
}
userdb {
  driver = passwd-file
  args = username_format=%u /etc/dovecot/virtual-users
}
"""

_DOVECOT_2_4 = """
mail_driver = maildir
mail_path = ~/Maildir
mail_inbox_path = ~/Maildir
passdb passwd-file {
  passwd_file_path = /etc/dovecot/virtual-users
}
userdb passwd-file {
  passwd_file_path = /etc/dovecot/virtual-users
}
"""

# A phone: logs in over IMAPS, and registers if it can. Prints what it saw.
_PHONE = """
import imaplib, json, ssl, sys
user, password, token, account = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # Debian's own certificate for the machine
imaplib.Commands["XAPPLEPUSHSERVICE"] = ("AUTH", "SELECTED")
with imaplib.IMAP4_SSL("127.0.0.1", ssl_context=context) as phone:
    phone.login(user, password)
    seen = {"capable": "XAPPLEPUSHSERVICE" in phone.capability()[1][0].decode().split(), "answer": None}
    seen["messages"] = int(phone.select()[1][0])
    if seen["capable"]:
        phone.untagged_responses.clear()
        status, text = phone._simple_command(
            "XAPPLEPUSHSERVICE", "aps-version", "2", "aps-account-id", account, "aps-device-token", token,
            "aps-subtopic", "com.apple.mobilemail", "mailboxes", "(INBOX)",
        )
        seen["answer"] = status
print(json.dumps(seen))
"""


class MailServer(Machine):
    """A fresh Debian with a mail server on it, and a clone of this repository in /home/admin."""

    CLONE = "/home/admin/xaps-watch"

    def __init__(self, release: str, requirements: tuple[str, ...]) -> None:
        root = debian.root(release, SERVER_PACKAGES, later=INSTALLED_LATER)
        found = wheels(debian.root(release, (*SERVER_PACKAGES, "python3-venv")), (*REQUIREMENTS, *requirements))
        super().__init__(root)
        debian.copy(found, self.path / "wheels")
        self.write("/usr/local/lib/phone.py", _PHONE)

    def set_up(self) -> None:
        """Users, Postfix, Dovecot, the clone. To be called once it runs."""
        self.run("useradd", "--create-home", "--groups", "sudo", "admin")
        self.write("/etc/sudoers.d/admin", 'admin ALL=(ALL) NOPASSWD: ALL\nDefaults env_keep += "PIP_*"\n', 0o440)
        self._clone()
        self.run("useradd", "--create-home", SYSTEM_USER.name)
        self.run("chmod", "0700", f"/home/{SYSTEM_USER.name}")
        self.run("chpasswd", input=f"{SYSTEM_USER.name}:{PASSWORD}\n")
        self.run("useradd", "--uid", "5000", "--home-dir", "/var/vmail", "--create-home", "vmail")
        self.run("chmod", "0700", "/var/vmail")
        self._set_up_postfix()
        self._set_up_dovecot()

    def _clone(self) -> None:
        """What git has or would add, as the repository's own machine-independent part."""
        listed = subprocess.run(
            ["git", "-C", REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True, check=True,
        )  # fmt: skip
        target = self.path / self.CLONE.lstrip("/")
        target.mkdir()
        with subprocess.Popen(
            ["tar", "-C", REPOSITORY, "--null", "-T", "-", "--ignore-failed-read", "-c"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as packing:  # fmt: skip
            assert packing.stdin is not None
            packing.stdin.write(listed.stdout)
            packing.stdin.close()
            subprocess.run(["tar", "-C", target, "-x"], stdin=packing.stdout, check=True)
        self.run("chown", "-R", "admin:", self.CLONE)

    def _set_up_postfix(self) -> None:
        below = VIRTUAL_USER.maildir.removeprefix("/var/vmail/")
        self.write("/etc/postfix/mailboxes", f"{VIRTUAL_USER.name} {below}/\n")
        for setting in (
            "myhostname=mail.test", "mydestination=mail.test, localhost", "inet_interfaces=loopback-only",
            "home_mailbox=Maildir/", "virtual_mailbox_domains=example.org", "virtual_mailbox_base=/var/vmail",
            "virtual_mailbox_maps=texthash:/etc/postfix/mailboxes", "virtual_uid_maps=static:5000",
            "virtual_gid_maps=static:5000",
        ):  # fmt: skip
            self.run("postconf", "-e", setting)
        self.run("newaliases")
        self.run("systemctl", "restart", "postfix")

    def _set_up_dovecot(self) -> None:
        version = self.run("dovecot", "--version")
        home = VIRTUAL_USER.maildir.removesuffix("/Maildir")
        line = f"{VIRTUAL_USER.name}:{{PLAIN}}{PASSWORD}:5000:5000::{home}::\n"
        self.write("/etc/dovecot/virtual-users", line, 0o640)
        self.run("chgrp", "dovecot", "/etc/dovecot/virtual-users")
        self.write("/etc/dovecot/local.conf", _DOVECOT_2_3 if version.startswith("2.3") else _DOVECOT_2_4)
        self.run("systemctl", "restart", "dovecot")

    # --- what people do ----------------------------------------------------------------------------------------------

    def as_admin(self, command: str, *, environment: Mapping[str, str] | None = None, timeout: float = 300.0) -> str:
        """A shell command of the admin's, in the clone, with sudo where the command says so."""
        passed = " ".join(f"{name}={shlex.quote(value)}" for name, value in {**PIP, **(environment or {})}.items())
        return self.run(
            "runuser", "-l", "admin", "-c", f"cd {self.CLONE} && export {passed} && {command}", timeout=timeout
        )

    def phone(self, user: User) -> dict[str, object]:
        """The user's phone connects, and registers if it can: "capable", "answer", "messages"."""
        said = self.run("python3", "/usr/local/lib/phone.py", user.name, PASSWORD, user.token, ACCOUNT_ID)
        seen: dict[str, object] = json.loads(said)
        return seen

    def deliver(self, user: User) -> None:
        """A mail by the distribution's Postfix."""
        address = user.name if "@" in user.name else f"{user.name}@mail.test"
        self.run("sendmail", "-f", "sender@mail.test", address, input=f"Subject: number {next(_numbers)}\n\nHello!\n")

    # --- Apple's place -----------------------------------------------------------------------------------------------

    def start_apns(self) -> None:
        """A local APNs, by what was installed; its certificates are in /var/lib/apns."""
        self.run(
            "systemd-run", "--unit=apns", "--property=Restart=on-failure",
            "xaps-watch", "simulate", "--directory", "/var/lib/apns",
        )  # fmt: skip
        self.wait_for("the local APNs", lambda: "Requests:" in self.journal("apns"))

    def pushes(self, user: User) -> int:
        """How many pushes to this user's phone the local APNs has accepted."""
        begin = f"POST /3/device/{user.token[:6]}"
        lines = self.journal("apns").splitlines()
        return sum(1 for line in lines if line.startswith(begin) and line.endswith("→ 200"))
