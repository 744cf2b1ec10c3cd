"""The delivery agents that the tests know, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.agents import deliver
from tests.support.agents.namespace import MailUser
from tests.support.agents.stage import Stage

Deliver = Callable[[Stage, MailUser, bytes, str], None]


@dataclass(frozen=True, slots=True)
class Agent:
    """One row: `package` is Debian's, `how` the setting or command by which the mail gets there."""

    name: str
    package: str
    how: str
    deliver: Deliver

    @property
    def user(self) -> str:
        """Each agent delivers to a user of its own; the prefix keeps it apart from service users."""
        return "user-" + self.deliver.__name__.replace("_", "-")


AGENTS = (
    Agent("Postfix virtual(8)", "postfix", "`virtual_mailbox_maps`", deliver.postfix_virtual),
    Agent("Postfix local(8)", "postfix", "`home_mailbox`; `.forward` to a directory", deliver.postfix_local),
    Agent("Postfix local(8) → maildrop", "postfix", "`.forward` to a pipe", deliver.postfix_local_to_maildrop),
    Agent("Postfix local(8) → procmail", "postfix", "`.forward` to a pipe", deliver.postfix_local_to_procmail),
    Agent("Exim", "exim4-daemon-light", "appendfile with `maildir_format`", deliver.exim),
    Agent("OpenSMTPD", "opensmtpd", "`maildir` (mail.maildir)", deliver.opensmtpd),
    Agent("maildrop", "maildrop", "`maildrop -d`, `to`", deliver.maildrop),
    Agent("procmail", "procmail", "`procmail -d`", deliver.procmail),
    Agent("fdm", "fdm", "action `maildir`", deliver.fdm),
    Agent("safecat", "safecat", "`safecat tmp new`", deliver.safecat),
    Agent("getmail_maildir", "getmail6", "`getmail_maildir`", deliver.getmail_maildir),
    Agent("Python's mailbox", "python3", "`Maildir.add`", deliver.python_mailbox),
    Agent("getmail", "getmail6", "from IMAP, destination `Maildir`", deliver.getmail),
    Agent("mbsync", "isync", "IMAP → Maildir", deliver.mbsync),
    Agent("mbsync, to Dovecot", "isync", "Maildir → IMAP", deliver.mbsync_to_dovecot),
    Agent("OfflineIMAP", "offlineimap3", "IMAP → Maildir", deliver.offlineimap),
    Agent("OfflineIMAP, to Dovecot", "offlineimap3", "Maildir → IMAP", deliver.offlineimap_to_dovecot),
    Agent("fetchmail → maildrop", "fetchmail", "`mda`", deliver.fetchmail_to_maildrop),
    Agent("cp", "coreutils", "`cp -a` of a Maildir", deliver.cp),
    Agent("mv", "coreutils", "`mv` from another filesystem", deliver.mv_across_filesystems),
    Agent("rsync", "rsync", "`rsync -a` of a Maildir", deliver.rsync),
    Agent("rsync --inplace", "rsync", "`rsync -a --inplace` of a Maildir", deliver.rsync_inplace),
    Agent("Dovecot LDA", "dovecot-core", "`dovecot-lda -m`", deliver.dovecot_lda),
    Agent("Dovecot LMTP", "dovecot-lmtpd", "LMTP", deliver.dovecot_lmtp),
    Agent("Dovecot Sieve", "dovecot-sieve", "`keep`, `fileinto`", deliver.sieve),
    Agent("Dovecot Sieve, flags", "dovecot-sieve", "`addflag`, `fileinto`", deliver.sieve_with_flags),
    Agent("IMAP APPEND", "dovecot-imapd", "APPEND", deliver.imap_append),
    Agent("IMAP APPEND, flags", "dovecot-imapd", "APPEND with `\\Flagged`", deliver.imap_append_flagged),
    Agent("IMAP COPY", "dovecot-imapd", "COPY of an unread mail", deliver.imap_copy),
    Agent("IMAP MOVE", "dovecot-imapd", "MOVE of an unread mail", deliver.imap_move),
    Agent("doveadm save", "dovecot-core", "`doveadm save -m`", deliver.doveadm_save),
    Agent("doveadm import", "dovecot-core", "`doveadm import` from a Maildir", deliver.doveadm_import),
)
