"""What happens in a Maildir and is no new mail: nothing is pushed for it, but for the mail that comes right after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.agents.observe import MAILBOXES, Rig, give_up, mailboxes_of
from tests.support.agents import deliver
from tests.support.agents.namespace import FOLDER, MailUser
from tests.support.agents.packages import UnavailableError
from tests.support.agents.stage import Stage, message, source_of
from tests.support.agents.watched import Watched
from tests.support.dovecot import is_24
from tests.support.maildirs import deliver_by_link, deliver_by_rename, read_all

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

QUOTA = "quota User {\n  driver = maildir\n}\n" if is_24() else "plugin {\n  quota = maildir:User\n}\n"
READ = r"(\Seen)"


def mbsync_pulls_read_mail(stage: Stage, user: MailUser) -> None:
    append_elsewhere(stage, user, READ)
    deliver.synchronise_with_mbsync(stage, user)


def offlineimap_pulls_read_mail(stage: Stage, user: MailUser) -> None:
    append_elsewhere(stage, user, READ)
    deliver.synchronise_with_offlineimap(stage, user)


def append_elsewhere(stage: Stage, user: MailUser, flags: str) -> None:
    with stage.imap(source_of(user)) as imap:
        for mailbox in MAILBOXES:
            assert imap.append(mailbox, flags, "", message(mailbox))[0] == "OK"


def rsync_deletes(stage: Stage, user: MailUser) -> None:
    """What isn't in the source; dovecot.* of the target is excluded, as one does."""
    rsync = ("rsync", "--archive", "--delete", "--exclude=dovecot*", "--exclude=.*")
    for mailbox in MAILBOXES:
        stage.tools.run((*rsync, f"{source_of(user).directory(mailbox)}/", user.directory(mailbox)), user=user)
        assert not [*user.directory(mailbox).glob("new/*")]


def modes_and_owners(stage: Stage, user: MailUser) -> None:
    stage.tools.run(("chmod", "--recursive", "go-rwx", user.maildir))
    stage.tools.run(("chown", "--recursive", f"{user.uid}:{user.uid}", user.maildir))


def times(stage: Stage, user: MailUser) -> None:
    stage.tools.run(("find", user.maildir, "-type", "f", "-exec", "touch", "--no-create", "{}", ";"))


def tar(stage: Stage, user: MailUser) -> None:
    stage.tools.run(("tar", "--create", f"--file={user.home}/backup.tar", user.maildir))


def an_aborted_delivery(stage: Stage, user: MailUser) -> None:
    for mailbox in MAILBOXES:
        aborted = user.directory(mailbox) / "tmp" / "1.aborted"
        aborted.write_bytes(b"Subject: half a ma")
        aborted.unlink()


def hidden_files(stage: Stage, user: MailUser) -> None:
    for part in ("new", "cur"):
        (user.maildir / part / ".nfs0000000000000001").write_bytes(b"removed while open")
        (user.maildir / part / "directory").mkdir()


def index(stage: Stage, user: MailUser) -> None:
    stage.dovecot.doveadm("index", "-u", user.name, "*")
    assert (user.maildir / "dovecot-uidlist").exists()


def force_resync(stage: Stage, user: MailUser) -> None:
    stage.dovecot.doveadm("force-resync", "-u", user.name, "*")


def quota_recalculation(stage: Stage, user: MailUser) -> None:
    stage.dovecot.doveadm("quota", "recalc", "-u", user.name)
    assert (user.maildir / "maildirsize").exists()


def fetch(stage: Stage, user: MailUser) -> None:
    stage.dovecot.doveadm("fetch", "-u", user.name, "body", "all")


def expunge(stage: Stage, user: MailUser) -> None:
    for mailbox in MAILBOXES:
        stage.dovecot.doveadm("expunge", "-u", user.name, "mailbox", mailbox, "all")


def other_mailboxes(stage: Stage, user: MailUser) -> None:
    for command in (("create", "Other"), ("rename", "Other", "Another"), ("delete", "Another")):
        stage.dovecot.doveadm("mailbox", command[0], "-u", user.name, *command[1:])
    deliver_by_rename(user.directory(FOLDER).with_name(".Unregistered"))


def append_of_read_mail(stage: Stage, user: MailUser) -> None:
    with stage.imap(user) as imap:
        for flags in (READ, r"(\Draft)", r"(\Seen \Flagged)"):
            assert imap.append("INBOX", flags, "", message("INBOX"))[0] == "OK"


def copy_of_read_mail(stage: Stage, user: MailUser) -> None:
    with stage.imap(user) as imap:
        imap.select("INBOX")
        assert imap.uid("STORE", "*", "+FLAGS", READ)[0] == "OK"
        assert imap.uid("COPY", "*", FOLDER)[0] == "OK"


ACTS: tuple[Callable[[Stage, MailUser], None], ...] = (
    mbsync_pulls_read_mail, offlineimap_pulls_read_mail, rsync_deletes, modes_and_owners, times, tar,
    an_aborted_delivery, hidden_files, index, force_resync, quota_recalculation, fetch, expunge, other_mailboxes,
    append_of_read_mail, copy_of_read_mail,
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="quiet")
async def users_with_mail() -> AsyncIterator[Rig]:
    """One user for each act, with read and unread mail in each mailbox, and a mailbox that no phone has registered."""
    with Stage([f"user-{act.__name__}" for act in ACTS], config=QUOTA, plugins=["quota"]) as stage:
        for user in stage.users.values():
            for part in ("tmp", "new", "cur"):
                stage.make_directory(user, user.directory("Unregistered") / part)
            for mailbox in MAILBOXES:
                deliver_by_link(user.directory(mailbox))
                read_all(user.directory(mailbox))
                deliver_by_link(user.directory(mailbox))
        mailboxes = {user.name: mailboxes_of(user) for user in stage.users.values()}
        async with Watched(stage.directory / "xaps-watch", mailboxes) as phones:
            yield Rig(stage, phones)


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_nothing_is_pushed_but_mail(quiet: Rig, act: Callable[[Stage, MailUser], None]) -> None:
    user = quiet.stage.users[f"user-{act.__name__}"]
    await quiet.phones.settled()
    await quiet.pushes_since(user, 0)  # among them maybe the mail that was there at the start
    before = len(quiet.phones.pushes(user.name))
    try:
        await asyncio.to_thread(act, quiet.stage, user)
    except UnavailableError as unavailable:
        give_up(act.__name__, unavailable)
    await asyncio.sleep(0.3)  # longer than the service waits for the writer of a file
    assert await quiet.pushes_since(user, before) == []
    for mailbox in MAILBOXES:
        before = len(quiet.phones.pushes(user.name))
        deliver_by_link(user.directory(mailbox))
        await quiet.phones.pushed(user.name, before + 1)
        assert [push.mailboxes for push in await quiet.pushes_since(user, before)] == [{mailbox}]
