"""What mail programs do to mail that is already there: read, flag, unflag, delete, move.

Each client changes the one mail of an INBOX. Those that work on an account elsewhere synchronise the change with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.agents import deliver
from tests.support.agents.namespace import MailUser
from tests.support.agents.stage import Stage, source_of

ACTIONS = ("read", "flag", "unflag", "delete", "move")
ELSEWHERE = "Elsewhere"  # where mail is moved to: a mailbox that no phone has registered

Change = Callable[[Stage, MailUser, str], None]

# On one message of a Maildir, given as its directory: what mutt and its like do.
PYTHON_MAILBOX = """
import mailbox, os, sys
directory, action = sys.argv[1:]
mails = mailbox.Maildir(directory, create=False)
[key] = mails.keys()
if action == "delete":
    mails.discard(key)
elif action == "move":
    found = [os.path.join(directory, part, name) for part in ("new", "cur") for name in
             os.listdir(os.path.join(directory, part)) if name.startswith(key)]
    os.rename(found[0], os.path.join(directory, ".Elsewhere", "cur", os.path.basename(found[0])))
else:
    # Without mailbox's own way, which writes a new file.
    [old] = [os.path.join(directory, part, name) for part in ("new", "cur") for name in
             os.listdir(os.path.join(directory, part))]
    flags = {"read": "S", "flag": "F", "unflag": ""}[action]
    os.rename(old, os.path.join(directory, "cur", key + ":2," + flags))
"""


@dataclass(frozen=True, slots=True)
class Client:
    """One row: `prepare` makes the mail that is there known to the client."""

    name: str
    package: str
    change: Change
    prepare: Callable[[Stage, MailUser], None]

    @property
    def id(self) -> str:
        return self.change.__name__.replace("_", "-")

    def user_for(self, action: str) -> str:
        """Each action is done to a user of its own; the prefix keeps it apart from service users."""
        return f"client-{self.id}-{action}"


def imap(stage: Stage, user: MailUser, action: str) -> None:
    """Another IMAP client of the same account."""
    with stage.imap(user) as session:
        session.create(ELSEWHERE)  # refused when it exists
        session.select("INBOX")
        if action == "move":
            session.uid("MOVE", "*", ELSEWHERE)
        else:
            session.uid("STORE", "*", *STORE[action])
            session.expunge()


STORE = {
    "read": ("+FLAGS", r"(\Seen)"),
    "flag": ("+FLAGS", r"(\Flagged)"),
    "unflag": ("-FLAGS", r"(\Flagged)"),
    "delete": ("+FLAGS", r"(\Deleted)"),
}


def doveadm(stage: Stage, user: MailUser, action: str) -> None:
    inbox = ("mailbox", "INBOX", "all")
    command = {
        "read": ("flags", "add", "-u", user.name, r"\Seen", *inbox),
        "flag": ("flags", "add", "-u", user.name, r"\Flagged", *inbox),
        "unflag": ("flags", "remove", "-u", user.name, r"\Flagged", *inbox),
        "delete": ("expunge", "-u", user.name, *inbox),
        "move": ("move", "-u", user.name, ELSEWHERE, *inbox),
    }[action]
    if action == "move":
        stage.dovecot.doveadm("mailbox", "create", "-u", user.name, ELSEWHERE)
    stage.dovecot.doveadm(*command)


def python_mailbox(stage: Stage, user: MailUser, action: str) -> None:
    """A program that works on the Maildir itself."""
    for part in ("tmp", "new", "cur"):
        stage.make_directory(user, user.directory(ELSEWHERE) / part)
    stage.tools.run(("python3", "-c", PYTHON_MAILBOX, user.maildir, action), user=user)


def mbsync(stage: Stage, user: MailUser, action: str) -> None:
    imap(stage, source_of(user), action)
    deliver.synchronise_with_mbsync(stage, user)


def offlineimap(stage: Stage, user: MailUser, action: str) -> None:
    imap(stage, source_of(user), action)
    deliver.synchronise_with_offlineimap(stage, user)


def _nothing(stage: Stage, user: MailUser) -> None:
    """The client needs no preparation."""


def _select(stage: Stage, user: MailUser) -> None:
    """A session takes the mail from new/ to cur/."""
    with stage.imap(user) as session:
        session.select("INBOX")


CLIENTS = (
    Client("IMAP", "dovecot-imapd", imap, _select),
    Client("doveadm", "dovecot-core", doveadm, _nothing),
    Client("Python's mailbox", "python3", python_mailbox, _nothing),
    Client("mbsync", "isync", mbsync, deliver.synchronise_with_mbsync),
    Client("OfflineIMAP", "offlineimap3", offlineimap, deliver.synchronise_with_offlineimap),
)
