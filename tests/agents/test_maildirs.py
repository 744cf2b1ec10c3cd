"""Every kind of Maildir: from the phone's registration with a real Dovecot to the push that names the right mailbox."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.agents.stage import FIRST_UID, message
from tests.support.agents.watched import Watched
from tests.support.dovecot import Dovecot, User, build_plugin, is_24, shared_namespaces
from tests.support.maildirs import deliver_by_link, make_maildir
from tests.support.phone import encode_name, literal_plus, quoted

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

CONFIG_23 = """
recipient_delimiter = +
lmtp_save_to_detail_mailbox = yes
"""
CONFIG_24 = (
    CONFIG_23
    + """
quota User {
  driver = maildir
}
"""
)


def as_it_is(home: Path, uid: int) -> None:
    """The Maildir needs no preparation."""


def linked(home: Path, uid: int) -> None:
    """The whole Maildir, and one of its folders, are elsewhere."""
    for name in ("far", "farther"):
        give_to(uid, make_maildir(home / name))
    (home / "Maildir").symlink_to("far")
    (home / "far" / ".Linked").symlink_to(home / "farther")


def give_to(uid: int, directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        os.chown(path, uid, uid)


@dataclass(frozen=True, slots=True)
class Kind:
    """A user with a Maildir of this kind, and the mailboxes that its phone asks for beside INBOX."""

    user: str
    folders: Sequence[str]
    last: str  # the directory of the last of them, beneath the home
    extra: tuple[str, str] = ("", "")  # fields of userdb for Dovecot 2.3 and 2.4
    prepare: Callable[[Path, int], None] = as_it_is
    mounts: Sequence[str] = ()  # directories beneath the home that are filesystems of their own


KINDS = (
    Kind("plain", ["Work", "Work.Deep"], "Maildir/.Work.Deep"),
    Kind("quota", ["Work"], "Maildir/.Work", ("userdb_quota=maildir:User", "")),
    Kind("names", ["Tom & Jerry", "日本語", "🐈", "Entwürfe & Söhne"], "Maildir/.Entw&APw-rfe &- S&APY-hne"),
    Kind(
        "fs", ["Work", "Work/Deep", "Work/v1.2 Söhne"], "Maildir/Work/v1.2 S&APY-hne",
        ("userdb_mail=maildir:~/Maildir:LAYOUT=fs", "userdb_mailbox_list_layout=fs"),
    ),
    Kind(
        "prefix", ["INBOX.Work", "INBOX.Work.Deep"], "Maildir/.Work.Deep",
        ("userdb_namespace/inbox/prefix=INBOX. userdb_namespace/inbox/separator=.",) * 2,
    ),
    Kind(
        "elsewhere", ["Work"], "Maildir/.Work",
        ("userdb_mail=maildir:~/Maildir:INDEX=~/index:CONTROL=~/control",
         "userdb_mail_index_path=~/index userdb_mail_control_path=~/control"),
    ),
    Kind("linked", ["Work", "Linked"], "Maildir/.Linked", prepare=linked),
    Kind("mounts", ["Work", "Mounted"], "Maildir/.Mounted", mounts=["Maildir", "Maildir/.Mounted"]),
)[: -1 if is_24() else None]  # fmt: skip  # the private Dovecot 2.4 has its own mounts, and sees no later ones
SLASHES = Kind(
    "slashes", ["Work", "Work/v1.2", "Jan. 2026"], "Maildir/.Jan\\2e 2026",
    ("userdb_namespace/inbox/separator=/", "userdb_namespace/inbox/separator=/"),
)  # fmt: skip
OTHERS = ("later", "removed")


@dataclass(frozen=True, slots=True)
class Server:
    """Dovecots with one registry, and the phones of their users."""

    dovecots: dict[str, Dovecot]  # by user
    phones: Watched
    expected: dict[str, list[set[str]]] = field(default_factory=dict)  # by user: what its phone is to have looked into

    async def registers(self, user: str, *mailboxes: str) -> None:
        """The user's phone asks for INBOX and these, gets them, and they are watched."""
        assert set(self.phones.register_at(self.dovecots[user], user, ("INBOX", *mailboxes))) == {"INBOX", *mailboxes}
        await self.phones.settled()

    def path(self, user: str, mailbox: str) -> Path:
        (mailboxes,) = self.dovecots[user].recorded(user).values()
        return mailboxes[mailbox]

    def refreshed(self, user: str) -> list[frozenset[str]]:
        """What the user's phone has looked into so far, push by push."""
        return [push.mailboxes for push in self.phones.pushes(user)]

    async def pushed(self, user: str, mailbox: str) -> None:
        """Each way of delivering into the mailbox makes one push, for this mailbox; and there was none before."""
        dovecot, mail = self.dovecots[user], message(mailbox)
        ways: list[Callable[[], object]] = [
            lambda: dovecot.deliver(user, mail, mailbox=mailbox),
            lambda: append(dovecot, user, mailbox, mail),
            lambda: deliver_by_link(self.path(user, mailbox)),
        ]
        if mailbox == "INBOX":
            ways.append(lambda: dovecot.deliver_by_lmtp(user, mail))
        for deliver in ways:
            expected = [*self.expected.setdefault(user, []), {mailbox}]
            deliver()
            await self.phones.pushed(user, len(expected))
            assert self.refreshed(user) == expected
            self.expected[user] = expected


def append(dovecot: Dovecot, user: str, mailbox: str, mail: bytes) -> None:
    """By IMAP."""
    with dovecot.phone(user) as session:
        assert session.command(b"APPEND " + quoted(encode_name(mailbox)) + b" " + literal_plus(mail)).status == "OK"


@pytest.fixture(scope="module")
def dovecots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Dovecot]]:
    """All write to one registry. They differ in what is configured for all their users."""
    plugin = build_plugin(tmp_path_factory.mktemp("plugin"))
    users = [User(kind.user, FIRST_UID + at, kind.extra[is_24()]) for at, kind in enumerate(KINDS)]
    users += [User(name, FIRST_UID + len(users) + at) for at, name in enumerate(OTHERS)]
    with ExitStack() as running:
        layouts = running.enter_context(
            Dovecot(plugin, users, config=CONFIG_24 if is_24() else CONFIG_23, plugins=["quota"])
        )
        escape = 'mailbox_list_storage_escape_char = "\\\\"\n' if is_24() else ""
        slashes = running.enter_context(
            Dovecot(
                plugin, [User(SLASHES.user, FIRST_UID, SLASHES.extra[is_24()])], layouts.registry,
                config=escape, plugins=[] if is_24() else ["listescape"],
            )
        )  # fmt: skip
        shared = running.enter_context(
            Dovecot(
                plugin, [User("alice"), User("bob")], layouts.registry, config=shared_namespaces(), plugins=["acl"]
            )
        )
        for kind, user in zip(KINDS, users, strict=False):
            home = layouts.home(kind.user)
            kind.prepare(home, user.uid)
            for mounted in kind.mounts:
                running.enter_context(filesystem(home / mounted, user.uid))
        yield {SLASHES.user: slashes, "alice": shared, "bob": shared, **{user.name: layouts for user in users}}


@contextmanager
def filesystem(path: Path, uid: int) -> Iterator[None]:
    """A new one in memory, mounted at `path`, with a Maildir of the user."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "test", path], check=True)
    try:
        give_to(uid, make_maildir(path))
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="server")
async def watched_server(
    dovecots: dict[str, Dovecot], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    phones = Watched(tmp_path_factory.mktemp("xaps-watch"), {})
    registry = dovecots["alice"].registry
    assert registry is not None
    phones.site.registry_file = registry
    async with phones:
        yield Server(dovecots, phones)


@pytest.mark.parametrize("kind", [*KINDS, SLASHES], ids=lambda kind: kind.user)
async def test_each_mailbox_of_each_kind_is_pushed_by_its_name(server: Server, kind: Kind) -> None:
    dovecot = server.dovecots[kind.user]
    dovecot.create_mailboxes(kind.user, *(name for name in kind.folders if not name.endswith(("Linked", "Mounted"))))
    await server.registers(kind.user, *kind.folders)
    assert server.path(kind.user, kind.folders[-1]) == dovecot.home(kind.user) / kind.last
    for mailbox in ("INBOX", *kind.folders):
        await server.pushed(kind.user, mailbox)
    maildir = dovecot.maildir(kind.user)
    assert kind.user != "quota" or (maildir / "maildirsize").exists()
    assert all((dovecot.home(kind.user) / mount).is_mount() for mount in kind.mounts)


async def test_shared_and_public_mailboxes_are_pushed_to_those_who_may_read_them(server: Server) -> None:
    dovecot = server.dovecots["alice"]
    public = dovecot.directory / "public"
    mailboxes = {
        "shared.bob.Team": dovecot.maildir("bob", "Team"),
        "shared.bob.Private": dovecot.maildir("bob", "Private"),
        "Public.Söhne": public / ".S&APY-hne",
    }
    for name, path in mailboxes.items():
        (make_maildir(path) / "dovecot-acl").write_text("" if "Private" in name else "user=alice lr\n")
        give_to(5000, path.parent)
    assert server.phones.register_at(dovecot, "bob", ["INBOX", "Team"]) == ("INBOX", "Team")
    assert server.phones.register_at(dovecot, "alice", mailboxes) == ("shared.bob.Team", "Public.Söhne")
    await server.phones.settled()
    for path in mailboxes.values():
        deliver_by_link(path)
        await server.phones.pushed("alice", 2 if path.parent == public else 1)
    assert server.refreshed("alice") == [{"shared.bob.Team"}, {"Public.Söhne"}]
    await server.phones.pushed("bob", 1)
    assert server.refreshed("bob") == [{"Team"}]


async def test_a_mailbox_made_after_the_registration_is_pushed_once_the_phone_has_registered_again(
    server: Server,
) -> None:
    dovecot = server.dovecots["later"]
    assert server.phones.register_at(dovecot, "later", ["INBOX", "Work"]) == ("INBOX",)
    await server.phones.settled()
    dovecot.create_mailboxes("later", "Work")
    dovecot.deliver("later", message("Work"), mailbox="Work")
    deliver_by_link(dovecot.maildir("later", "Work"))
    await server.pushed("later", "INBOX")  # and nothing before
    dovecot.doveadm("expunge", "-u", "later", "mailbox", "Work", "all")  # what came just before may be pushed as well
    await server.registers("later", "Work")
    await server.pushed("later", "Work")


async def test_a_mailbox_that_was_removed_and_made_again_is_pushed_again(server: Server) -> None:
    dovecot = server.dovecots["removed"]
    dovecot.create_mailboxes("removed", "Work")
    await server.registers("removed", "Work")
    await server.pushed("removed", "Work")
    dovecot.doveadm("mailbox", "delete", "-u", "removed", "Work")
    await server.phones.settled()
    await server.pushed("removed", "INBOX")  # nothing for the removal
    dovecot.create_mailboxes("removed", "Work")
    await server.phones.settled()
    await server.pushed("removed", "Work")
