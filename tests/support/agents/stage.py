"""Everything that the agents need to deliver: users with Maildirs, namespaces with the programs, a Dovecot."""

from __future__ import annotations

import imaplib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path
from types import TracebackType

from tests.support.agents import mail_servers, packages
from tests.support.agents.namespace import FOLDER, MailUser, Namespace
from tests.support.dovecot import MODULES, Dovecot, User, is_24

FIRST_UID = 5001
PASSWORD = "pw"  # noqa: S105 - everybody's at the private Dovecot
SIEVE_PLUGIN = MODULES / "lib90_sieve_plugin.so"

DOVECOT = """
recipient_delimiter = +
lmtp_save_to_detail_mailbox = yes
"""
DOVECOT_SIEVE = {  # by whether it is 2.4
    False: """
protocol lmtp {
  mail_plugins = $mail_plugins sieve
}
plugin {
  sieve = file:~/sieve;active=~/.dovecot.sieve
}
""",
    True: """
protocol lmtp {
  mail_plugins {
    sieve = yes
  }
}
sieve_script personal {
  sieve_script_path = ~/sieve
  sieve_script_active_path = ~/.dovecot.sieve
}
""",
}

START: dict[str, Callable[[Namespace, Path], None]] = {
    "postfix": mail_servers.start_postfix,
    "exim": mail_servers.start_exim,
    "opensmtpd": mail_servers.start_opensmtpd,
}

_numbers = itertools.count(1)


def message(mailbox: str) -> bytes:
    """A mail that says in its header X-Mailbox where a filter is to put it; lines end with LF."""
    mail = EmailMessage()
    mail["From"] = mail_servers.SENDER
    mail["To"] = f"undisclosed@{mail_servers.LOCAL}"
    mail["Subject"] = f"mail {next(_numbers)} for {mailbox}"
    mail["Date"] = formatdate()
    mail["Message-ID"] = make_msgid(domain="example.test")
    mail["X-Mailbox"] = mailbox
    mail.set_content("Good morning.\n")
    return mail.as_bytes()


def unique_name() -> str:
    """A file name as a delivery agent would choose it."""
    return f"{time.time():.0f}.M{time.time_ns() // 1000 % 1_000_000}P{os.getpid()}Q{next(_numbers)}.mail.example.test"


class Stage:
    """A directory with the users' homes. Namespaces start when an agent first wants them, and end with the stage."""

    def __init__(self, names: Iterable[str], *, config: str = "", plugins: Sequence[str] = ()) -> None:
        """`config` and `plugins` are added to the Dovecot's."""
        if os.geteuid():
            raise packages.UnavailableError("the delivery agents need root: they run as several users in namespaces")
        self._starting = threading.Lock()
        self._namespaces: dict[str, Namespace] = {}
        self._uids = {name: uid for uid, name in enumerate(names, start=FIRST_UID)}
        accounts = [User(account, uid) for name, uid in self._uids.items() for account in (name, _elsewhere(name))]
        sieve = DOVECOT_SIEVE[is_24()] if SIEVE_PLUGIN.exists() else ""
        self.dovecot = Dovecot(None, accounts, config=DOVECOT + sieve + config, plugins=plugins)

    def __enter__(self) -> Stage:
        self.dovecot.__enter__()
        self.directory = self.dovecot.directory / "agents"
        self.directory.mkdir(mode=0o755)
        self.users = {name: self._new_user(name, uid) for name, uid in self._uids.items()}
        self._etc = self.directory / "etc"
        mail_servers.write_configuration(self._etc, list(self.users.values()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for namespace in self._namespaces.values():
            namespace.close()
        self.dovecot.__exit__(kind, error, traceback)

    def namespace(self, tree: str) -> Namespace:
        """The namespaces with the packages of `tree` and the tools. Raises UnavailableError."""
        with self._starting:
            if tree not in self._namespaces:
                self._namespaces[tree] = self._new_namespace(tree)
            return self._namespaces[tree]

    @property
    def tools(self) -> Namespace:
        """The namespaces in which the agents run that need no server of their own."""
        return self.namespace("tools")

    def imap(self, user: MailUser) -> imaplib.IMAP4:
        """An IMAP connection, logged in; a context manager, as imaplib has it."""
        connection = imaplib.IMAP4("127.0.0.1", self.dovecot.port, timeout=30)
        connection.login(user.name, PASSWORD)
        return connection

    def write(self, user: MailUser, name: str, text: str) -> Path:
        """A file in the user's home, theirs, mode 0600: the filters refuse others."""
        path = user.home / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        os.chown(path, user.uid, user.uid)
        return path

    def make_directory(self, user: MailUser, path: Path) -> Path:
        """A directory of the user, with those above it that are missing, mode 0700."""
        if not path.exists():
            self.make_directory(user, path.parent)
            path.mkdir(mode=0o700)
            os.chown(path, user.uid, user.uid)
        return path

    def _new_user(self, name: str, uid: int) -> MailUser:
        user = MailUser(name, uid, self.dovecot.home(name))
        for owner, mailbox in itertools.product((user, source_of(user)), ("INBOX", FOLDER)):
            for part in ("tmp", "new", "cur"):
                self.make_directory(owner, owner.directory(mailbox) / part)
        return user

    def _new_namespace(self, tree: str) -> Namespace:
        trees = [packages.unpack(name) for name in dict.fromkeys((tree, "tools"))]
        if tree in START and (missing := trees[0].missing):  # of the tools, one may be missing without the others
            raise packages.UnavailableError(f"not in this Debian's archive: {', '.join(sorted(missing))}")
        namespace = Namespace(
            [unpacked.path for unpacked in trees],
            self._etc,
            self.directory / f"{tree}.scratch",
            private_network=tree in START,  # the others fetch from the Dovecot on the machine's loopback
        )
        if tree in START:
            START[tree](namespace, self.directory / f"{tree}.log")
        return namespace


def source_of(user: MailUser) -> MailUser:
    """The account elsewhere from which getmail and its like fetch the user's mail."""
    return MailUser(_elsewhere(user.name), user.uid, user.home.with_name(_elsewhere(user.name)))


def _elsewhere(name: str) -> str:
    return f"{name}.elsewhere"
