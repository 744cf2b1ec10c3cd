"""Whatever a client sends: it is answered, the session goes on, and nothing wrong is recorded."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.dovecot import Dovecot
from tests.support.phone import COMMAND, DEVICE_TOKEN, RefusedError
from tests.support.values import ACCOUNT_ID

IDS = f"aps-account-id {ACCOUNT_ID} aps-device-token {DEVICE_TOKEN}".encode()
MALFORMED = {
    "no arguments": b"",
    "one argument": b"aps-version",
    "a list": b"()",
    "a list as key": IDS + b" (aps-version) 2",
    "no value at the end": IDS + b" aps-version 2 mailboxes",
    "no account": f"aps-version 2 aps-device-token {DEVICE_TOKEN} mailboxes (INBOX)".encode(),
    "no token": f"aps-version 2 aps-account-id {ACCOUNT_ID} mailboxes (INBOX)".encode(),
    "version 0": b"aps-version 0 " + IDS,
    "version -1": b"aps-version -1 " + IDS,
    "version of letters": b"aps-version two " + IDS,
    "version a list": b"aps-version (2) " + IDS,
    "version NIL": b"aps-version NIL " + IDS,
    "account empty": IDS + b' aps-account-id ""',
    "account with blanks": IDS + b' aps-account-id "a b"',
    "account with a quote": IDS + b' aps-account-id "a\\"b"',
    "account with CR LF": IDS + b" aps-account-id {5+}\r\na\r\nbc",
    "account with a NUL": IDS + b" aps-account-id {3+}\r\na\0b",
    "account in UTF-8": IDS + b" aps-account-id {2+}\r\n\xc3\xa4",
    "account of 65 characters": IDS + b" aps-account-id " + b"a" * 65,
    "account of 60 000 characters": IDS + b" aps-account-id " + b"a" * 60000,
    "account a list": IDS + b" aps-account-id (a)",
    "token empty": IDS + b' aps-device-token ""',
    "token too short": IDS + b" aps-device-token " + b"a" * 62,
    "token too long": IDS + b" aps-device-token " + b"a" * 514,
    "token of odd length": IDS + b" aps-device-token " + b"a" * 65,
    "token not hex": IDS + b" aps-device-token " + b"g" * 64,
    "token with a NUL": IDS + b" aps-device-token {66+}\r\n" + b"a" * 64 + b"\0a",
    "subtopic with a blank": IDS + b' aps-subtopic "a b"',
    "subtopic too long": IDS + b" aps-subtopic " + b"a" * 156,
    "mailboxes an atom": IDS + b" aps-version 2 mailboxes INBOX",
    "mailboxes NIL": IDS + b" aps-version 2 mailboxes NIL",
    "mailboxes nested": IDS + b" aps-version 2 mailboxes (INBOX (Notes))",
    "nested 1 000 deep": IDS + b" x " + b"(" * 1000 + b")" * 1000 + b" aps-version",
    # Dovecot's own parser refuses these
    "list not closed": IDS + b" aps-version 2 mailboxes (INBOX",
    "list not opened": IDS + b" aps-version 2 mailboxes INBOX)",
    "quote not closed": IDS + b' aps-version 2 mailboxes ("INBOX)',
    "8-bit atom": IDS + b" aps-version 2 mailboxes (\xff)",
    "literal of no size": IDS + b" aps-version {x}",
    "a line over the limit": IDS + b" aps-version 2 mailboxes (" + b"aaaaaaaaa " * 7000 + b")",
}


@pytest.mark.parametrize("arguments", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(dovecot: Dovecot, arguments: bytes) -> None:
    with dovecot.phone() as phone:
        tag = phone.next_tag()
        phone.socket.sendall(f"{tag} {COMMAND} ".encode() + arguments + b"\r\n")
        answer = phone.answer(tag)
        assert answer.status == "BAD"
        assert answer.untagged == ()
        assert phone.is_alive()
        assert phone.is_offered_push
    assert dovecot.recorded() == {}


STRANGE_NAMES = {
    "missing": b'"Missing"',
    "empty": b'""',
    "..": b'".."',
    "relative": b'"../../etc"',
    "upwards inside": b'"INBOX/../../x"',
    "absolute": b'"/etc"',
    "a home": b'"~/x"',
    "another's home": b'"~bob/Maildir"',
    "double separators": b'"a..b"',
    "separator at the end": b'"INBOX."',
    "wildcards": b'"*" "%"',
    "not UTF-7": b'"&" "&AOQ" "&AOQ&-" "&a*-"',
    "UTF-7 of a plain letter": b'"&AEE-"',
    "UTF-7 of a lone surrogate": b'"&2D0-"',
    "UTF-7 of CR LF": b'"&AA0ACg-"',
    "UTF-7 of NUL": b'"&AAA-"',
    "raw UTF-8": b"{8+}\r\nEntw\xc3\xbcrf",
    "Latin-1": b"{1+}\r\n\xe4",
    "control characters": b"{3+}\r\na\x01b {3+}\r\na\x7fb",
    "CR LF": b"{4+}\r\na\r\nb",
    "NUL": b"{3+}\r\na\0b",
    "very long": b'"' + b"a" * 5000 + b'"',
    "very deep": b'"' + b".".join([b"a"] * 1000) + b'"',
}


@pytest.mark.parametrize("names", STRANGE_NAMES.values(), ids=STRANGE_NAMES.keys())
def test_names_of_no_mailbox(dovecot: Dovecot, names: bytes) -> None:
    dovecot.forget("bob")
    with dovecot.phone("bob") as phone:
        with pytest.raises(RefusedError, match=r"NO \[CANNOT\]"):
            phone.registered(phone.command(b"%s %s aps-version 2 mailboxes (%s)" % (COMMAND.encode(), IDS, names)))
        assert phone.is_alive()
        assert dovecot.recorded("bob") == {}
        phone.registered(phone.command(b"%s %s aps-version 2 mailboxes (%s INBOX)" % (COMMAND.encode(), IDS, names)))
        assert phone.is_alive()
        assert [set(names) for names in dovecot.recorded("bob").values()] == [{"INBOX"}]


def test_a_mailbox_whose_name_holds_control_characters_is_not_recorded(dovecot: Dovecot) -> None:
    for name in ("Notes", "a\x01b", "&AAE-", "&AJs-31m", "&AKA-"):
        for directory in ("cur", "new", "tmp"):
            (dovecot.maildir("bob", name) / directory).mkdir(parents=True)
    with dovecot.phone("bob") as phone:
        asked = ["Notes", "a\x01b", "\x01", "\x9b31m", "\xa0"]
        assert phone.register(asked).mailboxes == ("Notes", "\xa0")


def test_a_path_that_holds_control_characters_is_not_recorded(plugin: Path) -> None:
    with Dovecot(plugin, mail_path="~/\x1b[31mMail") as dovecot, dovecot.phone() as phone:
        with pytest.raises(RefusedError, match=r"NO \[CANNOT\]"):
            phone.register(["INBOX"])
        assert phone.is_alive()
        assert dovecot.recorded() == {}


def test_twenty_errors_in_a_row_end_the_session_as_with_any_command(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone, pytest.raises(ConnectionError):
        for _ in range(25):
            phone.command(COMMAND.encode())


def test_a_literal_over_the_limit_ends_the_session_before_it_is_sent(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone, pytest.raises(ConnectionError):
        phone.command(b"%s aps-account-id {99999999}\r\n" % COMMAND.encode())
    with dovecot.phone() as phone:
        assert phone.is_alive()


def test_a_client_that_goes_away_in_the_middle(dovecot: Dovecot) -> None:
    for end in range(1, len(IDS), 40):
        with dovecot.phone() as phone:
            phone.socket.sendall(b"a " + COMMAND.encode() + b" " + IDS[:end])
    with dovecot.phone() as phone:
        phone.socket.sendall(b"a " + phone.request() + b"\r\n")
    with dovecot.phone() as phone:
        assert phone.is_alive()


GARBAGE = (b"", b'"', b"(", b")", b" ", b"\\", b"\x80", b"{2+}")


def test_garbage(dovecot: Dovecot) -> None:
    """Requests with random bytes changed; seeds that found something belong into the list."""
    chance = random.Random(20)
    with dovecot.phone() as phone:
        request = phone.request(["INBOX", "Notes"], form="quoted")
        for number in range(300):
            broken = bytearray(request)
            for _ in range(chance.randrange(1, 6)):
                at = chance.randrange(len(COMMAND) + 1, len(broken))
                broken[at : at + chance.randrange(2)] = chance.choice(GARBAGE)
            tag = f"g{number}"
            phone.socket.sendall(tag.encode() + b" " + bytes(broken).replace(b"{2+}", b"{2+}\r\n..") + b"\r\n")
            assert phone.answer(tag).status in ("OK", "NO", "BAD")
            assert phone.is_alive()
