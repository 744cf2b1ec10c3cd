"""One function for each delivery agent: it configures the agent, hands it a message for one mailbox, and returns
when the agent says that it took it.

For the queueing mail servers that is before the delivery, for all others after it. All raise CommandError,
OSError or imaplib's and smtplib's errors when the agent refuses.
"""

from __future__ import annotations

import imaplib
import os
import smtplib
from pathlib import Path

from tests.support.agents.mail_servers import FOLDER_DOMAIN, LOCAL, SENDER, VIRTUAL
from tests.support.agents.namespace import FOLDER, CommandError, MailUser
from tests.support.agents.packages import UnavailableError
from tests.support.agents.stage import PASSWORD, SIEVE_PLUGIN, Stage, source_of, unique_name

MAILFILTER = f"""\
DEFAULT="$HOME/Maildir/"
if (/^X-Mailbox: {FOLDER}/)
{{
    to "$HOME/Maildir/.{FOLDER}/"
}}
"""

PROCMAILRC = f"""\
MAILDIR=$HOME/Maildir
DEFAULT=$MAILDIR/

:0
* ^X-Mailbox: {FOLDER}
.{FOLDER}/
"""

FDM = f"""\
account "stdin" stdin
action "inbox" maildir "%h/Maildir"
action "folder" maildir "%h/Maildir/.{FOLDER}"
match "^X-Mailbox: {FOLDER}" in headers action "folder"
match all action "inbox"
"""

SIEVE = f"""\
require ["fileinto"];
if header "X-Mailbox" "{FOLDER}" {{ fileinto "{FOLDER}"; }}
"""

SIEVE_WITH_FLAGS = f"""\
require ["fileinto", "imap4flags"];
addflag "\\\\Flagged";
if header "X-Mailbox" "{FOLDER}" {{ fileinto "{FOLDER}"; }}
"""

GETMAILRC = """\
[retriever]
type = SimpleIMAPRetriever
server = 127.0.0.1
port = {port}
username = {source}
password = {password}
mailboxes = ("{mailbox}",)

[destination]
type = Maildir
path = {directory}/

[options]
read_all = false
"""

MBSYNCRC = """\
IMAPAccount source
Host 127.0.0.1
Port {port}
User {source}
Pass {password}
SSLType None
AuthMechs LOGIN

IMAPStore far
Account source

MaildirStore near
Inbox {maildir}
SubFolders Maildir++

Channel mail
Far :far:
Near :near:
Patterns INBOX {folder}
Sync All
Create Far
SyncState {state}/
"""

OFFLINEIMAPRC = """\
[general]
accounts = mail
metadata = {state}
ui = quiet

[Account mail]
localrepository = near
remoterepository = far

[Repository near]
type = Maildir
localfolders = {maildir}
sep = .
nametrans = lambda name: name[1:] or "INBOX"

[Repository far]
type = IMAP
ssl = no
remotehost = 127.0.0.1
remoteport = {port}
remoteuser = {source}
remotepass = {password}
nametrans = lambda name: "" if name == "INBOX" else "." + name
"""

FETCHMAILRC = """\
poll 127.0.0.1 service {port} protocol IMAP auth password
    user "{source}" password "{password}" folder "{mailbox}" mda "/usr/bin/maildrop" sslproto "" nokeep fetchall
"""

PYTHON_MAILBOX = """
import mailbox, sys
mailbox.Maildir(sys.argv[1], create=False).add(sys.stdin.buffer.read())
"""


# Mail servers with a queue.


def postfix_virtual(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    suffix = "" if mailbox == "INBOX" else f"+{mailbox}"
    sendmail = ("sendmail", "-i", "-f", SENDER, f"{user.name}{suffix}@{VIRTUAL}")
    stage.namespace("postfix").run(sendmail, stdin=message)


def postfix_local(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    """INBOX by home_mailbox, the folder by a .forward that names its directory."""
    stage.write(user, f".forward+{FOLDER.lower()}", f"{user.directory(FOLDER)}/\n")
    _sendmail_to_postfix_local(stage, user, message, "" if mailbox == "INBOX" else f"+{mailbox}")


def postfix_local_to_maildrop(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    stage.write(user, ".mailfilter", MAILFILTER)
    stage.write(user, ".forward", '"|exec /usr/bin/maildrop"\n')
    _sendmail_to_postfix_local(stage, user, message)


def postfix_local_to_procmail(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    stage.write(user, ".procmailrc", PROCMAILRC)
    stage.write(user, ".forward", '"|exec /usr/bin/procmail"\n')
    _sendmail_to_postfix_local(stage, user, message)


def _sendmail_to_postfix_local(stage: Stage, user: MailUser, message: bytes, suffix: str = "") -> None:
    sendmail = ("sendmail", "-i", "-f", SENDER, f"{user.name}{suffix}@{LOCAL}")
    stage.namespace("postfix").run(sendmail, stdin=message)


def exim(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    suffix = "" if mailbox == "INBOX" else f"+{mailbox}"
    sendmail = ("exim4", "-i", "-f", SENDER, f"{user.name}{suffix}@{LOCAL}")
    stage.namespace("exim").run(sendmail, stdin=message)


def opensmtpd(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    sendmail = ("sendmail", "-f", SENDER, f"{user.name}@{LOCAL if mailbox == 'INBOX' else FOLDER_DOMAIN}")
    stage.namespace("opensmtpd").run(sendmail, stdin=message)


# Programs that read one message and file it.


def maildrop(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    stage.write(user, ".mailfilter", MAILFILTER)
    stage.tools.run(("maildrop", "-d", user.name), stdin=message)


def procmail(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    stage.write(user, ".procmailrc", PROCMAILRC)
    stage.tools.run(("procmail", "-d", user.name), stdin=message)


def fdm(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    configuration = stage.write(user, ".fdm.conf", FDM)
    stage.tools.run(("fdm", "-m", "-f", configuration, "-a", "stdin", "fetch"), user=user, stdin=message)


def safecat(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    directory = user.directory(mailbox)
    stage.tools.run(("safecat", directory / "tmp", directory / "new"), user=user, stdin=message)


def getmail_maildir(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    stage.tools.run(("getmail_maildir", f"{user.directory(mailbox)}/"), user=user, stdin=message)


def python_mailbox(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    stage.tools.run(("python3", "-c", PYTHON_MAILBOX, user.directory(mailbox)), user=user, stdin=message)


# Programs that fetch from, or synchronise with, an account elsewhere.


def getmail(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    _put_elsewhere(stage, user, message, mailbox)
    filled = GETMAILRC.format(**_account(stage, user), mailbox=mailbox, directory=user.directory(mailbox))
    stage.write(user, "getmailrc", filled)
    stage.tools.run(("getmail", "--getmaildir", user.home, "--rcfile", "getmailrc"), user=user)


def mbsync(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    """From the account elsewhere into the user's Maildir."""
    _put_elsewhere(stage, user, message, mailbox)
    synchronise_with_mbsync(stage, user)


def mbsync_to_dovecot(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    """From a Maildir elsewhere into the user's account at Dovecot."""
    elsewhere = source_of(user)
    _put_into_new(stage, elsewhere, message, mailbox)
    synchronise_with_mbsync(stage, elsewhere, account=user)


def synchronise_with_mbsync(stage: Stage, near: MailUser, account: MailUser | None = None) -> None:
    """Both ways, between the Maildir of `near` and the account at Dovecot, which is the user's elsewhere by default."""
    state = stage.make_directory(near, near.home / ".mbsync")
    filled = MBSYNCRC.format(**_account(stage, near, account), maildir=near.maildir, folder=FOLDER, state=state)
    stage.write(near, ".mbsyncrc", filled)
    stage.tools.run(("mbsync", "-c", near.home / ".mbsyncrc", "mail"), user=near)


def offlineimap(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    """From the account elsewhere into the user's Maildir."""
    _put_elsewhere(stage, user, message, mailbox)
    synchronise_with_offlineimap(stage, user)


def offlineimap_to_dovecot(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    """From a Maildir elsewhere into the user's account at Dovecot."""
    elsewhere = source_of(user)
    _put_into_new(stage, elsewhere, message, mailbox)
    synchronise_with_offlineimap(stage, elsewhere, account=user)


def synchronise_with_offlineimap(stage: Stage, near: MailUser, account: MailUser | None = None) -> None:
    """Both ways, as synchronise_with_mbsync."""
    state = near.home / ".offlineimap"
    filled = OFFLINEIMAPRC.format(**_account(stage, near, account), maildir=near.maildir, state=state)
    stage.write(near, ".offlineimaprc", filled)
    stage.tools.run(("offlineimap", "-o", "-c", near.home / ".offlineimaprc"), user=near)


def fetchmail_to_maildrop(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    _put_elsewhere(stage, user, message, mailbox)
    stage.write(user, ".mailfilter", MAILFILTER)
    stage.write(user, ".fetchmailrc", FETCHMAILRC.format(**_account(stage, user), mailbox=mailbox))
    stage.tools.run(("fetchmail", "--nosyslog"), user=user)


def _account(stage: Stage, user: MailUser, account: MailUser | None = None) -> dict[str, object]:
    return {"port": stage.dovecot.port, "source": (account or source_of(user)).name, "password": PASSWORD}


def _put_elsewhere(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    with stage.imap(source_of(user)) as imap:
        imap.create(mailbox)  # refused when it exists
        _append(imap, mailbox, message)


def _put_into_new(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> Path:
    """A message in the user's new/ from nowhere, for a program to pick up."""
    directory = user.directory(mailbox)
    path = directory / "new" / unique_name()
    path.write_bytes(message)
    os.chown(path, user.uid, user.uid)
    return path


# Copies of a Maildir, or of a file in it.


def cp(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    copied = _put_into_new(stage, source_of(user), message, mailbox).parents[1]
    stage.tools.run(("cp", "--archive", "--no-clobber", f"{copied}/.", user.directory(mailbox)), user=user)


def mv_across_filesystems(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    elsewhere = Path("/run") / unique_name()  # in memory, so that mv has to copy
    stage.tools.run(("install", "-o", str(user.uid), "/dev/stdin", elsewhere), stdin=message)
    stage.tools.run(("mv", elsewhere, user.directory(mailbox) / "new"))


def rsync(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    copied = _put_into_new(stage, source_of(user), message, mailbox).parents[1]
    stage.tools.run(("rsync", "--archive", "--exclude=.*", f"{copied}/", user.directory(mailbox)), user=user)


def rsync_inplace(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    copied = _put_into_new(stage, source_of(user), message, mailbox).parents[1]
    rsync = ("rsync", "--archive", "--inplace", "--exclude=.*", f"{copied}/", user.directory(mailbox))
    stage.tools.run(rsync, user=user)


# Dovecot.


def dovecot_lda(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    stage.dovecot.deliver(user.name, message, mailbox=mailbox)


def dovecot_lmtp(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    recipient = user.name if mailbox == "INBOX" else f"{user.name}+{mailbox}"
    with smtplib.LMTP("127.0.0.1", stage.dovecot.lmtp_port) as lmtp:
        lmtp.sendmail(SENDER, [recipient], message)


def sieve(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    _lmtp_with_sieve(stage, user, message, SIEVE)


def sieve_with_flags(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    _lmtp_with_sieve(stage, user, message, SIEVE_WITH_FLAGS)


def _lmtp_with_sieve(stage: Stage, user: MailUser, message: bytes, script: str) -> None:
    if not SIEVE_PLUGIN.exists():
        raise UnavailableError("dovecot-sieve is not installed")
    stage.write(user, ".dovecot.sieve", script)
    dovecot_lmtp(stage, user, message, "INBOX")


def imap_append(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    with stage.imap(user) as imap:
        _append(imap, mailbox, message)


def imap_append_flagged(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    with stage.imap(user) as imap:
        _append(imap, mailbox, message, r"(\Flagged)")


def imap_copy(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    _copy_or_move(stage, user, message, mailbox, "COPY")


def imap_move(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    _copy_or_move(stage, user, message, mailbox, "MOVE")


def doveadm_save(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    stage.dovecot.run("doveadm", "save", "-u", user.name, "-m", mailbox, stdin=message)


def doveadm_import(stage: Stage, user: MailUser, message: bytes, mailbox: str) -> None:
    """Imports of each mail in its mailbox, so there may be only one."""
    mail = _put_into_new(stage, source_of(user), message, mailbox)
    location = f"maildir:{source_of(user).maildir}"
    stage.dovecot.doveadm("import", "-u", user.name, location, "", "mailbox", mailbox)
    for imported in mail.parents[1].glob(f"*/{mail.name}*"):
        imported.unlink()


def _copy_or_move(stage: Stage, user: MailUser, message: bytes, mailbox: str, command: str) -> None:
    """From a third mailbox."""
    with stage.imap(user) as imap:
        imap.create("Elsewhere")  # refused when it exists
        _append(imap, "Elsewhere", message)
        imap.select("Elsewhere")
        _accepted(imap.uid(command, "*", mailbox))


def _append(imap: imaplib.IMAP4, mailbox: str, message: bytes, flags: str = "()") -> None:
    _accepted(imap.append(mailbox, flags, "", message))


def _accepted(answer: tuple[str, object]) -> None:
    if answer[0] != "OK":
        raise CommandError(f"IMAP: {answer}")
