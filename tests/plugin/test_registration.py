"""What a phone says, what it is answered, and what is recorded."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import rss_of
from tests.support.dovecot import Dovecot, User, is_24
from tests.support.phone import DEVICE_TOKEN, FORMS, mailbox_hash
from tests.support.values import ACCOUNT_ID, TOPIC

MAILBOXES = ("INBOX", "Notes", "My Folder", "Entwürfe", "Tom & Jerry", "a.b", 'back\\slash "quoted"', "🐈 emoji", "NIL")
ATOMS = ("INBOX", "Notes", "Entwürfe", "a.b", "NIL")  # those that may be written so


@pytest.fixture(scope="module", autouse=True)
def _mailboxes(dovecot: Dovecot) -> None:
    dovecot.create_mailboxes("alice", *MAILBOXES[1:])


@pytest.fixture(autouse=True)
def _forgotten(dovecot: Dovecot) -> None:
    dovecot.forget()


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_mailbox_is_echoed_and_recorded_in_whatever_form_it_is_written(dovecot: Dovecot, form: str) -> None:
    asked = ATOMS if form == "atom" else MAILBOXES
    with dovecot.phone() as phone:
        registration = phone.register([*asked, "Missing"], form=form)
        assert phone.is_alive()
    assert registration.mailboxes == asked
    assert (registration.topic, registration.version) == (TOPIC, 2)
    (mailboxes,) = dovecot.recorded().values()
    assert mailboxes == {name: dovecot.maildir(mailbox=_on_disk(name)) for name in asked}
    for path in mailboxes.values():
        assert (path / "cur").is_dir()


def _on_disk(name: str) -> str:
    """Maildir++ has modified UTF-7 in file names."""
    known = {"Entwürfe": "Entw&APw-rfe", "Tom & Jerry": "Tom &- Jerry", "🐈 emoji": "&2D3cCA- emoji"}
    return known.get(name, name)


def test_the_push_for_a_mailbox_refreshes_it_and_no_other(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        registration = phone.register(MAILBOXES)
    for name in MAILBOXES:
        with_hash = {"aps": {"account-id": ACCOUNT_ID, "m": [mailbox_hash(name).upper()]}}
        assert registration.refreshes(with_hash) == {name}


def test_a_request_in_single_bytes(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        for byte in b"s1 " + phone.request(["INBOX", "My Folder"]) + b"\r\n":
            phone.socket.sendall(bytes([byte]))
        assert phone.registered(phone.answer("s1")).mailboxes == ("INBOX", "My Folder")


def test_pipelined_requests(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        lists = [["INBOX"], ["INBOX", "Notes"], ["Notes"]]
        phone.socket.sendall(
            b"".join(b"p%d " % i + phone.request(names) + b"\r\n" for i, names in enumerate(lists)) + b"p9 NOOP\r\n"
        )
        for i, names in enumerate(lists):
            assert phone.registered(phone.answer(f"p{i}")).mailboxes == tuple(names)
        assert phone.answer("p9").status == "OK"
    assert set(dovecot.recorded()[DEVICE_TOKEN]) == {"Notes"}


def test_while_a_mailbox_is_selected_and_after_mail_was_read(dovecot: Dovecot) -> None:
    dovecot.deliver("alice", b"Subject: hello\n\nHello!\n", mailbox="Notes")
    with dovecot.phone() as phone:
        assert phone.command(b"SELECT Notes").status == "OK"
        assert phone.command(b"FETCH 1 BODY[]").status == "OK"
        assert phone.register(["INBOX", "Notes"]).mailboxes == ("INBOX", "Notes")
        assert phone.command(b"FETCH 1 FLAGS").status == "OK"


def test_before_login_there_is_no_such_command(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        assert "XAPPLEPUSHSERVICE" not in phone.greeting
        assert phone.is_offered_push
        assert "XAPPLEPUSHSERVICE" in phone.command(b"CAPABILITY").untagged[0]


# --- versions and pairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "answered", "echoed", "recorded"),
    [
        (1, 1, (), {"INBOX"}),
        (None, 1, (), {"INBOX"}),
        (2, 2, ("Notes", "INBOX"), {"INBOX", "Notes"}),
        (3, 2, ("Notes", "INBOX"), {"INBOX", "Notes"}),
        (10**30, 2, ("Notes", "INBOX"), {"INBOX", "Notes"}),
    ],
)
def test_the_lower_of_both_versions_is_answered(
    dovecot: Dovecot, version: int | None, answered: int, echoed: tuple[str, ...], recorded: set[str]
) -> None:
    with dovecot.phone() as phone:
        registration = phone.register(["Notes", "INBOX"], version=version)
    assert (registration.version, registration.mailboxes) == (answered, echoed)
    assert set(dovecot.recorded()[DEVICE_TOKEN]) == recorded
    (row,) = _rows(dovecot, "SELECT version, topic, subtopic FROM device")
    assert row == (answered, TOPIC, "com.apple.mobilemail")


def test_without_a_list_of_mailboxes_it_is_inbox(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        assert phone.register(None).mailboxes == ("INBOX",)


def test_unknown_pairs_and_another_order(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        command = (
            f"XAPPLEPUSHSERVICE mailboxes (INBOX) sender (a (b)) APS-DEVICE-TOKEN {DEVICE_TOKEN} new NIL"
            f' aps-Version 7 "aps-account-id" {{36+}}\r\n{ACCOUNT_ID.lower()} aps-subtopic com.apple.mobilemail'
        )
        assert phone.registered(phone.command(command.encode())).mailboxes == ("INBOX",)
    assert _rows(dovecot, "SELECT account_id, device_token FROM device") == [(ACCOUNT_ID, DEVICE_TOKEN)]


def test_ids_are_normalised_so_that_one_phone_is_one_row(dovecot: Dovecot) -> None:
    token = "ab" * 32
    for write in (str.upper, str.lower):
        with dovecot.phone(account_id=write(ACCOUNT_ID), device_token=write(token)) as phone:
            phone.register()
    assert _rows(dovecot, "SELECT account_id, device_token FROM device") == [(ACCOUNT_ID, token)]


def test_a_mailbox_asked_for_twice_is_one(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        assert phone.register(["inbox", "Notes", "INBOX", "Notes", "InBoX"]).mailboxes == ("INBOX", "Notes")


# --- registering again ------------------------------------------------------------------------------------------------


def test_dropped_mailboxes_go_and_new_ones_come(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        for asked in (["INBOX", "Notes"], ["Notes", "a.b"], ["a.b", "INBOX"], ["INBOX"]):
            phone.register(asked)
            assert set(dovecot.recorded()[DEVICE_TOKEN]) == set(asked)
        assert phone.register([]).mailboxes == ()
        assert dovecot.recorded() == {DEVICE_TOKEN: {}}


def test_a_mailbox_that_moved_is_recorded_where_it_is(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        phone.register(["INBOX", "Notes"])
        _write(dovecot, "UPDATE mailbox SET path = '/elsewhere' WHERE name = 'Notes'")
        phone.register(["INBOX", "Notes"])
    assert dovecot.recorded()[DEVICE_TOKEN]["Notes"] == dovecot.maildir(mailbox="Notes")


def test_a_renewal_lifts_the_suspension_and_leaves_the_daemons_notes(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        phone.register()
        _write(dovecot, "UPDATE device SET suspended = 'why', accepted_at = 5, outcome = '200', registered_at = 7")
        phone.register()
    ((suspended, accepted_at, outcome, registered_at),) = _rows(
        dovecot, "SELECT suspended, accepted_at, outcome, registered_at FROM device"
    )
    assert (suspended, accepted_at, outcome) == (None, 5, "200")
    assert registered_at > 7


TOUCHES = """
CREATE TABLE touched (what);
CREATE TRIGGER d1 AFTER INSERT ON device BEGIN INSERT INTO touched VALUES ('insert device'); END;
CREATE TRIGGER d2 AFTER UPDATE ON device BEGIN INSERT INTO touched VALUES ('update device'); END;
CREATE TRIGGER m1 AFTER INSERT ON mailbox BEGIN INSERT INTO touched VALUES ('insert mailbox'); END;
CREATE TRIGGER m2 AFTER UPDATE ON mailbox BEGIN INSERT INTO touched VALUES ('update mailbox'); END;
CREATE TRIGGER m3 AFTER DELETE ON mailbox BEGIN INSERT INTO touched VALUES ('delete mailbox'); END;
"""


def test_a_renewal_touches_only_what_is_new(plugin: Path) -> None:
    with Dovecot(plugin) as dovecot, dovecot.phone() as phone:
        dovecot.create_mailboxes("alice", "Notes", "Other")
        assert dovecot.registry is not None
        with closing(sqlite3.connect(dovecot.registry)) as connection:
            connection.executescript(TOUCHES)

        def touched(asked: list[str]) -> list[str]:
            _write(dovecot, "DELETE FROM touched")
            phone.register(asked)
            return sorted(what for (what,) in _rows(dovecot, "SELECT what FROM touched"))

        assert touched(["INBOX", "Notes"]) == ["insert device", "insert mailbox", "insert mailbox"]
        assert touched(["Notes", "INBOX"]) == ["update device"]
        assert touched(["INBOX", "Other"]) == ["delete mailbox", "insert mailbox", "update device"]


# --- who --------------------------------------------------------------------------------------------------------------


def test_two_phones_of_one_backup_and_two_users_of_one_phone_are_apart(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        phone.register(["INBOX", "Notes"])
    with dovecot.phone(device_token="ff" * 50) as phone:
        phone.register(["INBOX"])
    with dovecot.phone("bob") as phone:
        phone.register(["INBOX", "Notes"])  # he has none called so
    assert {token: set(names) for token, names in dovecot.recorded().items()} == {
        DEVICE_TOKEN: {"INBOX", "Notes"},
        "ff" * 50: {"INBOX"},
    }
    assert dovecot.recorded("bob") == {DEVICE_TOKEN: {"INBOX": dovecot.maildir("bob")}}


def test_the_device_that_renewed_longest_ago_makes_room(dovecot: Dovecot) -> None:
    tokens = [f"{number:064x}" for number in range(100)]
    with dovecot.phone("bob") as phone:
        phone.register()
    with dovecot.phone() as phone:
        for token in tokens:
            phone.device_token = token
            phone.register()
        assert set(dovecot.recorded()) == set(tokens)
        phone.device_token = tokens[0]
        phone.register()  # renewed, so tokens[1] is the oldest now
        phone.device_token = "ee" * 32
        phone.register()
    assert set(dovecot.recorded()) == {*tokens, "ee" * 32} - {tokens[1]}
    assert _rows(dovecot, "SELECT count(*) FROM mailbox") == [(101,)]
    assert list(dovecot.recorded("bob")) == [DEVICE_TOKEN]


def test_the_newest_stays_even_if_the_clock_was_set_back(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        for number in range(100):
            phone.device_token = f"{number:064x}"
            phone.register()
        _write(dovecot, "UPDATE device SET registered_at = registered_at + 86400000")
        phone.device_token = "ee" * 32
        phone.register()
    assert len(dovecot.recorded()) == 100
    assert "ee" * 32 in dovecot.recorded()


WITHOUT_IT = "userdb_mail_plugins=quota"
FOR_MANY = "restart_request_count = unlimited" if is_24() else "service_count = 0"
ONE_PROCESS = f"service imap {{\n  {FOR_MANY}\n  process_limit = 1\n  client_limit = 1\n}}\n"


def test_a_user_without_the_plugin_in_a_process_that_has_loaded_it(plugin: Path) -> None:
    users = [User("alice"), User("carol", extra=WITHOUT_IT)]  # of one uid: so one process may serve both
    with Dovecot(plugin, users=users, config=ONE_PROCESS) as dovecot:
        for _ in range(2):
            with dovecot.phone("alice") as phone:
                assert phone.register().mailboxes == ("INBOX",)
                processes = dovecot.imap_processes()
            with dovecot.phone("carol") as phone:
                assert dovecot.imap_processes() == processes
                assert not phone.is_offered_push
                assert phone.command(phone.request()).status == "BAD"
                assert phone.is_alive()
        assert dovecot.recorded("carol") == {}


# --- many mailboxes ---------------------------------------------------------------------------------------------------


def test_a_thousand_mailboxes(dovecot: Dovecot) -> None:
    names = [f"many.{number:04}" for number in range(1000)]
    for name in names:
        (dovecot.maildir("bob", name) / "cur").mkdir(parents=True)  # by which Dovecot knows a Maildir
    for directory, _, _ in os.walk(dovecot.maildir("bob")):
        os.chown(directory, 5001, 5001)
    with dovecot.phone("bob") as phone:
        assert phone.register(["INBOX", *names]).mailboxes == ("INBOX", *names)
        assert phone.is_alive()
        assert dovecot.recorded("bob")[DEVICE_TOKEN] == {
            "INBOX": dovecot.maildir("bob"),
            **{name: dovecot.maildir("bob", name) for name in names},
        }
        phone.register(names[::2])
        assert set(dovecot.recorded("bob")[DEVICE_TOKEN]) == set(names[::2])


def test_more_names_than_are_taken(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        first = [*(f"x{number}" for number in range(1999)), "Notes"]
        assert phone.register([*first, "INBOX", "a.b"]).mailboxes == ("Notes",)
        assert phone.is_alive()


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_session_does_not_grow_with_its_commands(plain_plugin: Path) -> None:
    with Dovecot(plain_plugin) as dovecot, dovecot.phone() as phone:
        requests = [
            phone.request(["INBOX", *(f"missing{number}" for number in range(20))]),
            phone.request(["missing"]),
            b"XAPPLEPUSHSERVICE aps-version",
        ]

        def kilobytes_after(rounds: int) -> int:
            for _ in range(rounds):
                assert [phone.command(request).status for request in requests] == ["OK", "NO", "BAD"]
            (imap,) = dovecot.imap_processes()
            return rss_of(imap)

        before = kilobytes_after(200)
        assert kilobytes_after(400) - before < 48  # 40 bytes lost a command would be seen


# --- helpers ----------------------------------------------------------------------------------------------------------


def _rows(dovecot: Dovecot, sql: str) -> list[tuple[Any, ...]]:
    assert dovecot.registry is not None
    with closing(sqlite3.connect(dovecot.registry, isolation_level=None)) as connection:
        return connection.execute(sql).fetchall()


def _write(dovecot: Dovecot, sql: str) -> None:
    _rows(dovecot, sql)
