"""Which mailboxes are recorded, and where they are: layouts, namespaces, rights, other storage than Maildir."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dovecot import Dovecot, User, is_24, shared_namespaces, version
from tests.support.maildirs import deliver_by_rename, make_maildir
from tests.support.phone import DEVICE_TOKEN, RefusedError

PREFIX = "userdb_namespace/inbox/prefix=INBOX. userdb_namespace/inbox/separator=."
FS = "userdb_mailbox_list_layout=fs" if is_24() else "userdb_mail=maildir:~/Maildir:LAYOUT=fs"
SEPARATE = "userdb_mail_inbox_path=~/inbox" if is_24() else "userdb_mail=maildir:~/Maildir:INBOX=~/inbox"
MDBOX = "userdb_mail_driver=mdbox userdb_mail_path=~/mdbox" if is_24() else "userdb_mail=mdbox:~/mdbox"

# owner: what alice may do with bob's mailbox
RIGHTS = {"Readable": "lr", "LookedUp": "l", "Inserted": "i", "LookedUpAndInserted": "li", "Hidden": ""}


@pytest.fixture(scope="module")
def layouts(plugin: Path) -> Iterator[Dovecot]:
    extras = {"plain": "", "prefix": PREFIX, "fs": FS, "separate": SEPARATE, "mdbox": MDBOX}
    with Dovecot(plugin, users=[User(name, extra=extra) for name, extra in extras.items()]) as running:
        yield running


def recorded(dovecot: Dovecot, username: str) -> dict[str, str]:
    """The recorded paths, beneath the user's home."""
    (mailboxes,) = dovecot.recorded(username).values()
    return {name: os.fspath(path.relative_to(dovecot.home(username))) for name, path in mailboxes.items()}


@pytest.mark.parametrize(
    ("username", "create", "ask", "expected"),
    [
        (
            "plain",
            ["A", "A.B"],
            ["INBOX", "A", "A.B", "C"],
            {"INBOX": "Maildir", "A": "Maildir/.A", "A.B": "Maildir/.A.B"},
        ),
        (
            "prefix",
            ["INBOX.A", "INBOX.A.B"],
            ["INBOX", "INBOX.A", "INBOX.A.B", "A", "INBOX.C"],
            {"INBOX": "Maildir", "INBOX.A": "Maildir/.A", "INBOX.A.B": "Maildir/.A.B"},
        ),
        ("fs", ["A", "A/B"], ["A", "A/B", "A/C"], {"A": "Maildir/A", "A/B": "Maildir/A/B"}),
        ("separate", ["A"], ["INBOX", "A"], {"INBOX": "inbox", "A": "Maildir/.A"}),
    ],
)
def test_layouts(
    layouts: Dovecot, username: str, create: list[str], ask: list[str], expected: dict[str, str]
) -> None:
    layouts.create_mailboxes(username, *create)
    with layouts.phone(username) as phone:
        assert set(phone.register(ask).mailboxes) == set(expected)
        assert phone.is_alive()
    assert recorded(layouts, username) == expected
    for name, path in expected.items():
        directory = layouts.home(username) / path
        before = {*directory.glob("new/*"), *directory.glob("cur/*")}
        layouts.deliver(username, b"Subject: x\n\nx\n", mailbox=name)
        # in cur/ from 2.4.2 on: each mail gets a keyword there, $HasAttachment or $HasNoAttachment
        assert {*directory.glob("new/*"), *directory.glob("cur/*")} - before, f"{name} is somewhere else"


def test_inbox_under_its_own_prefix_is_inbox(layouts: Dovecot) -> None:
    with layouts.phone("prefix") as phone:
        names = phone.register(["INBOX", "INBOX.INBOX", "INBOX.INBOX.INBOX"]).mailboxes
    assert "INBOX" in names
    assert set(recorded(layouts, "prefix").values()) == {"Maildir"}
    assert set(recorded(layouts, "prefix")) == set(names)


def test_only_maildirs(layouts: Dovecot) -> None:
    layouts.create_mailboxes("mdbox", "A")
    with layouts.phone("mdbox") as phone:
        assert phone.is_offered_push
        with pytest.raises(RefusedError, match="CANNOT"):
            phone.register(["INBOX", "A"])
        assert phone.is_alive()
    assert layouts.recorded("mdbox") == {}


def test_a_folder_that_only_holds_others_has_no_mail(layouts: Dovecot) -> None:
    make_maildir(layouts.maildir("plain", "Parent.Child"))
    with layouts.phone("plain") as phone:
        assert phone.register(["Parent", "Parent.Child"]).mailboxes == ("Parent.Child",)


def test_a_fresh_user_has_an_inbox_before_it_is_on_disk(plugin: Path) -> None:
    with Dovecot(plugin, users=[User("fresh")]) as dovecot, dovecot.phone("fresh") as phone:
        assert phone.register(["INBOX"]).mailboxes == ("INBOX",)
        assert recorded(dovecot, "fresh") == {"INBOX": "Maildir"}


def test_a_mailbox_made_by_the_server_is_recorded_before_it_is_on_disk(plugin: Path) -> None:
    config = "namespace inbox {\n  mailbox Junk {\n    auto = create\n  }\n}\n"
    with Dovecot(plugin, config=config) as dovecot, dovecot.phone() as phone:
        assert phone.register(["Junk", "Spam"]).mailboxes == ("Junk",)
        assert recorded(dovecot, "alice") == {"Junk": "Maildir/.Junk"}


def test_a_path_that_is_not_utf8_is_recorded_as_it_is(plugin: Path) -> None:
    with Dovecot(plugin, mail_path=os.fsdecode(b"~/M\xe4il")) as dovecot, dovecot.phone() as phone:
        phone.register(["INBOX"])
        path = dovecot.recorded()[DEVICE_TOKEN]["INBOX"]
        assert os.fsencode(path) == os.fsencode(dovecot.home()) + b"/M\xe4il"


def test_names_in_utf8_once_the_client_has_asked_for_that(plugin: Path) -> None:
    names = ("INBOX", "Entwürfe", "Tom & Jerry", "🐈", "&AOQ-")
    config = "mail_utf8_extensions = yes\n" if is_24() else ""
    with Dovecot(plugin, config=config) as dovecot, dovecot.phone() as phone:
        dovecot.create_mailboxes("alice", *names[1:])
        assert phone.register(names).mailboxes == names
        # Dovecot means the names too from 2.4.3 on
        assert phone.enable_utf8() == is_24()
        phone.utf8_names = version() >= (2, 4, 3)
        for form in ("quoted", "literal", "literal_plus"):
            assert phone.register(names, form=form).mailboxes == names
            assert set(dovecot.recorded()[DEVICE_TOKEN]) == set(names)
        not_utf8 = phone.request().replace(b'"INBOX"', b'{1+}\r\n\xe4 {4+}\r\n\xf0\x9f\x90 {2+}\r\n\xc0\xaf')
        with pytest.raises(RefusedError, match="CANNOT"):
            phone.registered(phone.command(not_utf8))
        assert phone.is_alive()


@pytest.fixture(scope="module")
def shared(plugin: Path) -> Iterator[Dovecot]:
    users = [User("alice"), User("bob")]  # one uid: only ACLs stand between them
    with Dovecot(plugin, users=users, plugins=["acl"], config=shared_namespaces()) as running:
        for base, name in ((running.maildir("bob"), ".{}"), (running.directory / "public", ".{}")):
            for mailbox, rights in RIGHTS.items():
                path = make_maildir(base / name.format(mailbox))
                (path / "dovecot-acl").write_text(f"user=alice {rights}\n" if rights else "")
                deliver_by_rename(path)
            for directory, _, files in os.walk(base):
                for entry in (".", *files):
                    os.chown(Path(directory) / entry, 5000, 5000)
        yield running


def test_only_what_the_user_may_read_in_shared_and_public_namespaces(shared: Dovecot) -> None:
    shared.create_mailboxes("alice", "Own")
    names = [f"{namespace}.{name}" for namespace in ("shared.bob", "Public") for name in RIGHTS]
    with shared.phone() as phone:
        others = ("shared.bob", "shared.bob.INBOX", "shared.nobody.INBOX")
        echoed = phone.register(["INBOX", "Own", *names, *others]).mailboxes
        assert echoed == ("INBOX", "Own", "shared.bob.Readable", "Public.Readable")
        assert phone.is_alive()
        assert phone.command(b"SELECT shared.bob.Readable").status == "OK"
    assert shared.recorded()[DEVICE_TOKEN] == {
        "INBOX": shared.maildir(),
        "Own": shared.maildir(mailbox="Own"),
        "shared.bob.Readable": shared.maildir("bob", "Readable"),
        "Public.Readable": shared.directory / "public" / ".Readable",
    }


def test_a_right_that_was_taken_away_ends_at_the_next_renewal(shared: Dovecot) -> None:
    acl = shared.maildir("bob", "Hidden") / "dovecot-acl"
    acl.write_text("user=alice lr\n")
    with shared.phone() as phone:
        assert phone.register(["INBOX", "shared.bob.Hidden"]).mailboxes == ("INBOX", "shared.bob.Hidden")
    acl.write_text("")
    os.utime(acl, (1, 1))
    with shared.phone() as phone:
        assert phone.register(["INBOX", "shared.bob.Hidden"]).mailboxes == ("INBOX",)
    assert set(shared.recorded()[DEVICE_TOKEN]) == {"INBOX"}
