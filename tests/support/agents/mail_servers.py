"""Postfix, Exim and OpenSMTPD: their configuration, and their start inside namespaces of their own.

What the packages' maintainer scripts would do at installation (owners, modes, spool directories) is done here.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.agents.namespace import FOLDER, CommandError, MailUser, Namespace

LOCAL = "local.example.test"
VIRTUAL = "virtual.example.test"
FOLDER_DOMAIN = "folder.example.test"
SENDER = f"sender@{LOCAL}"

POSTFIX_MAIN = f"""\
compatibility_level = 3.6
myhostname = mail.example.test
mydestination = {LOCAL}
inet_interfaces = loopback-only
inet_protocols = ipv4
alias_maps =
alias_database =
recipient_delimiter = +
home_mailbox = Maildir/
mailbox_size_limit = 0
maillog_file = /var/log/mail.log
virtual_mailbox_domains = {VIRTUAL}
virtual_mailbox_base = /
virtual_mailbox_maps = texthash:/etc/postfix/mailboxes
virtual_uid_maps = texthash:/etc/postfix/uids
virtual_gid_maps = $virtual_uid_maps
"""

# Debian's master.cf without its network listeners, and without the chroots, which would have to be filled first.
POSTFIX_MASTER = """\
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n -  0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n -  - trivial-rewrite
bounce    unix  - - n -  0 bounce
defer     unix  - - n -  0 bounce
trace     unix  - - n -  0 bounce
verify    unix  - - n -  1 verify
proxymap  unix  - - n -  - proxymap
proxywrite unix - - n -  1 proxymap
error     unix  - - n -  - error
retry     unix  - - n -  - error
discard   unix  - - n -  - discard
showq     unix  n - n -  - showq
local     unix  - n n -  - local
virtual   unix  - n n -  - virtual
anvil     unix  - - n -  1 anvil
scache    unix  - - n -  1 scache
postlog   unix-dgram n - n - 1 postlogd
"""

EXIM = f"""\
primary_hostname = mail.example.test
domainlist local_domains = {LOCAL}
spool_directory = /var/spool/exim4
log_file_path = /var/log/exim4/%slog
never_users = root

begin routers

folder:
  driver = accept
  domains = +local_domains
  local_part_suffix = +{FOLDER}
  check_local_user
  transport = folder

inbox:
  driver = accept
  domains = +local_domains
  check_local_user
  transport = inbox

begin transports

folder:
  driver = appendfile
  directory = $home/Maildir/.{FOLDER}
  maildir_format

inbox:
  driver = appendfile
  directory = $home/Maildir
  maildir_format
"""

OPENSMTPD = f"""\
listen on socket
action inbox maildir
action folder maildir "%{{user.directory}}/Maildir/.{FOLDER}"
match from local for domain "{LOCAL}" action inbox
match from local for domain "{FOLDER_DOMAIN}" action folder
"""

SERVICE_USERS = ("postfix", "Debian-exim", "opensmtpd", "opensmtpq")
SERVICE_GROUPS = ("postdrop",)


def write_configuration(etc: Path, users: list[MailUser]) -> None:
    """The files of /etc that the mail servers read: who the users are, and how to deliver to them."""
    passwd = Path("/etc/passwd").read_text(encoding="utf-8")
    group = Path("/etc/group").read_text(encoding="utf-8")
    for uid, name in enumerate(SERVICE_USERS, start=4900):
        if f"\n{name}:" not in passwd:
            passwd += f"{name}:x:{uid}:{uid}::/var/lib/opensmtpd/empty:/usr/sbin/nologin\n"
            group += f"{name}:x:{uid}:\n"
    for gid, name in enumerate(SERVICE_GROUPS, start=4900 + len(SERVICE_USERS)):
        if f"\n{name}:" not in group:
            group += f"{name}:x:{gid}:\n"
    passwd += "".join(f"{user.name}:x:{user.uid}:{user.uid}::{user.home}:/bin/sh\n" for user in users)
    group += "".join(f"{user.name}:x:{user.uid}:\n" for user in users)
    mailboxes = "".join(
        f"{user.name}{suffix.lower()}@{VIRTUAL} {user.directory(mailbox)}/\n"
        for user in users
        for mailbox, suffix in (("INBOX", ""), (FOLDER, f"+{FOLDER}"))
    )
    uids = "".join(f"{user.name}@{VIRTUAL} {user.uid}\n" for user in users)
    files = {
        "passwd": passwd,
        "group": group,
        "mailname": "mail.example.test\n",
        "aliases": "",
        "postfix/main.cf": POSTFIX_MAIN,
        "postfix/master.cf": POSTFIX_MASTER,
        "postfix/mailboxes": mailboxes,
        "postfix/uids": uids,
        "exim4/exim4.conf": EXIM,
        "smtpd.conf": OPENSMTPD,
    }
    for name, text in files.items():
        (etc / name).parent.mkdir(parents=True, exist_ok=True)
        (etc / name).write_text(text, encoding="utf-8")


def start_postfix(namespace: Namespace, log: Path) -> None:
    """Postfix' queue manager and its pickup; returns when mail is taken from the queue at once."""
    namespace.run(("chown", "postfix:", "/var/lib/postfix"))
    namespace.start(("postfix", "start-fg"), log)
    _until_success(namespace, ("postfix", "status"), log)


def start_exim(namespace: Namespace, log: Path) -> None:
    """Nothing stays running: exim4 delivers what it is handed by itself."""
    namespace.run(("install", "-d", "-o", "Debian-exim", "-g", "Debian-exim", "/var/spool/exim4", "/var/log/exim4"))


def start_opensmtpd(namespace: Namespace, log: Path) -> None:
    """OpenSMTPD, with its control socket only."""
    namespace.run(("install", "-d", "-m", "711", "/var/spool/smtpd", "/var/lib/opensmtpd/empty"))
    namespace.run(("chgrp", "opensmtpq", "/usr/sbin/smtpctl"))
    namespace.run(("chmod", "2755", "/usr/sbin/smtpctl"))
    namespace.start(("smtpd", "-d"), log)
    _until_success(namespace, ("smtpctl", "show", "stats"), log)


def _until_success(namespace: Namespace, argv: tuple[str, ...], log: Path, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            namespace.run(argv)
            return
        except CommandError as failed:
            if time.monotonic() > deadline:
                logged = log.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"not up after {seconds:.0f} s: {failed}\n{logged}") from failed
        time.sleep(0.02)
