"""``xaps-watch import``: each form of xapsd's file; paths by doveadm (a stand-in) or by template.

The real doveadm has its test in tests/plugin.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import xaps_watch
from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import deliver_by_rename, make_maildir
from tests.support.values import TOPIC, device_token
from xaps_watch import registry
from xaps_watch.model import Device, Mailbox, mask_token
from xaps_watch.registry import Registry
from xaps_watch.xapsd import read

PHONE, TABLET, OLD = (device_token(number << 240) for number in (0x1A, 0x2B, 0x3C))
ACCOUNTS = ("0715a26b-ca09-4730-a419-793000ca982e", "8D2C1D0C-2B0A-4F5B-9E0F-000000000001")
NOW = datetime.now(timezone.utc)


def go_time(moment: datetime) -> str:
    """As Go's encoding/json writes it, in the server's time zone, with nanoseconds."""
    return moment.astimezone(timezone(timedelta(hours=2))).strftime("%Y-%m-%dT%H:%M:%S.%f") + "789+02:00"


def account(token: str, *mailboxes: str, at: datetime | None = NOW) -> dict[str, Any]:
    entry: dict[str, Any] = {"DeviceToken": token, "Mailboxes": list(mailboxes)}
    if at is not None:
        entry["RegistrationTime"] = go_time(at)
    return entry


class Server:
    """A site with users' mail, and a doveadm that knows it."""

    def __init__(self, directory: Path) -> None:
        self.site = Site(directory)
        self.site.configure("https://127.0.0.1:1")
        registry.create(self.site.registry_file)
        self.vmail = directory / "vmail"
        self.database = directory / "database.json"
        self.asked = directory / "asked"
        self.doveadm = directory / "bin" / "doveadm"
        self.doveadm.parent.mkdir()
        self._make_doveadm()

    def _make_doveadm(self) -> None:
        """``doveadm mailbox path -u USER -- MAILBOX``: answers for mailboxes that aren't there, too."""
        self.doveadm.write_text(
            f"""#!/bin/sh
echo "$*" >>{self.asked}
[ "$1 $2 $3 $5" = "mailbox path -u --" ] || {{ echo "doveadm: usage" >&2; exit 64; }}
case "$4" in
    nobody) echo "doveadm(nobody): Error: User doesn't exist" >&2; exit 67 ;;
    down) echo "doveadm(down): Error: connect(/run/dovecot/auth-userdb) failed: Connection refused" >&2; exit 75 ;;
esac
case "$6" in
    INBOX) echo "{self.vmail}/$4/Maildir" ;;
    *) echo "{self.vmail}/$4/Maildir/.$6" | sed 's/Entwürfe/Entw\\&APw-rfe/; s,/2024,.2024,' ;;
esac
"""
        )
        self.doveadm.chmod(0o755)

    def mail(self, user: str, *folders: str) -> Path:
        """The user's INBOX, with these directories of folders in it."""
        inbox = make_maildir(self.vmail / user / "Maildir")
        for folder in folders:
            make_maildir(inbox / folder)
        return inbox

    def write(self, users: Mapping[str, Mapping[str, Any]], **more: object) -> None:
        """The file as xapsd in Go writes it."""
        content = {"Users": {user: {"Accounts": accounts} for user, accounts in users.items()}, **more}
        self.database.write_text(json.dumps(content, indent=2))

    async def run(self, *arguments: str) -> tuple[int, list[str], str]:
        ran = await xaps_watch(
            self.site.config_file, "import", self.database, *arguments,
            environment={"PATH": f"{self.doveadm.parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        return ran.status, ran.lines, ran.error

    def registered(self) -> list[tuple[Device, list[Mailbox]]]:
        with Registry(self.site.registry_file) as book:
            return [(device, book.mailboxes(device.id)) for device in book.devices()]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


# --- the forms of the file -------------------------------------------------------------------------------------------


async def test_a_file_of_today(server: Server) -> None:
    inbox = server.mail("alice", ".Entw&APw-rfe.2024", ".Notes")
    server.mail("bob")
    at = NOW - timedelta(hours=5)
    server.write(
        {
            "alice": {ACCOUNTS[0]: account(PHONE, "INBOX", "Notes", "Entw&APw-rfe/2024", at=at)},
            "bob": {ACCOUNTS[1]: account(TABLET.upper(), "Inbox")},
        }
    )
    status, lines, error = await server.run()
    assert (status, error) == (0, "")
    assert lines[0] == "imported: 2"
    assert lines[1].startswith("These phones are told of new mail in INBOX at once, and of other mailboxes when ")
    (alice, mailboxes), (bob, _) = server.registered()
    assert (alice.username, alice.account_id, alice.token) == ("alice", ACCOUNTS[0].upper(), PHONE)
    assert (alice.topic, alice.version, alice.suspended) == (TOPIC, 1, None)
    assert alice.registered_at == int(at.timestamp() * 1000)
    assert {(mailbox.name, mailbox.path) for mailbox in mailboxes} == {
        ("INBOX", str(inbox)),
        ("Notes", str(inbox / ".Notes")),
        ("Entwürfe/2024", str(inbox / ".Entw&APw-rfe.2024")),
    }
    assert (bob.username, bob.token) == ("bob", TABLET)


async def test_a_file_with_apple_certificates(server: Server) -> None:
    """From 2020 to 2025 xapsd kept them in the same file."""
    server.mail("alice")
    certificates = {"Signature": [{"Certificate": ["MIIB"], "PrivateKey": None}], "Keys": ["MIIE"]}
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX")}}, AppleCerts=certificates)
    assert (await server.run())[0] == 0
    assert len(server.registered()) == 1


async def test_a_file_without_times_was_written_at_the_last_registration(server: Server) -> None:
    """Until 2020; later with Go's zero time, for what was recorded before."""
    server.mail("alice")
    server.mail("bob")
    zero = {**account(TABLET, "INBOX", at=None), "RegistrationTime": "0001-01-01T00:00:00Z"}
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX", at=None)}, "bob": {ACCOUNTS[1]: zero}})
    written_at = int(time.time()) - 7200
    os.utime(server.database, (written_at, written_at))
    assert (await server.run())[0] == 0
    assert [device.registered_at for device, _ in server.registered()] == [written_at * 1000] * 2


async def test_the_file_of_xapsd_in_python(server: Server) -> None:
    server.mail("alice")
    devices = {PHONE: {"mailboxes": ["INBOX"]}, TABLET: {"mailboxes": ["INBOX"]}}
    server.database.write_text(json.dumps({"alice": {"accounts": {ACCOUNTS[0]: {"devices": devices}}}}, indent=4))
    assert (await server.run())[0] == 0
    assert {device.token for device, _ in server.registered()} == {PHONE, TABLET}


@pytest.mark.parametrize("content", ['{"Users": {}}', '{"Users": null}', "{}"])
async def test_an_empty_file(server: Server, content: str) -> None:
    server.database.write_text(content)
    assert (await server.run())[:2] == (0, ["imported: 0"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON: "),
        ("{", "is not JSON: "),
        ("\xff", "is not JSON: "),
        ("[]", "is no database.json of xapsd that this program knows"),
        ("null", "is no database.json of xapsd that this program knows"),
        ('{"Users": []}', "is no database.json of xapsd that this program knows"),
        ('{"Users": {"alice": {}}}', "is no database.json of xapsd that this program knows"),
        ('{"alice": 1}', "is no database.json of xapsd that this program knows"),
    ],
)
async def test_another_file(server: Server, content: str, message: str) -> None:
    server.database.write_bytes(content.encode("latin-1"))
    status, lines, error = await server.run()
    assert (status, lines) == (1, [])
    assert error.startswith(f"xaps-watch: {server.database}: {message}")


async def test_no_file(server: Server) -> None:
    status, _, error = await server.run()
    assert (status, error) == (1, f"xaps-watch: {server.database}: cannot be read: No such file or directory\n")


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (account("alicedevicetoken1", "INBOX"), "its device token is none: it must be at least 64 hexadecimal digits"),
        (account("ab" * 31, "INBOX"), "its device token is none"),
        ({"DeviceToken": None, "Mailboxes": ["INBOX"]}, "its device token is none"),
        ({"DeviceToken": PHONE, "Mailboxes": None}, "it has no list of mailboxes"),
        ({"DeviceToken": PHONE, "Mailboxes": [1]}, "it has no list of mailboxes"),
        ({**account(PHONE, "INBOX"), "RegistrationTime": "lately"}, "its RegistrationTime 'lately' is none"),
        ({**account(PHONE, "INBOX"), "RegistrationTime": "2024-13-01T00:00:00Z"}, "month must be in 1..12"),
    ],
)
async def test_one_bad_entry_costs_no_other(server: Server, entry: dict[str, Any], fault: str) -> None:
    server.mail("alice")
    server.write({"alice": {ACCOUNTS[0]: entry, ACCOUNTS[1]: account(TABLET, "INBOX")}})
    status, lines, _ = await server.run()
    assert status == 1
    assert lines[0].startswith(f"✘ alice {ACCOUNTS[0]}: ")
    assert fault in lines[0]
    assert lines[1:3] == ["imported: 1", "could not be imported, see above: 1"]
    assert [device.token for device, _ in server.registered()] == [TABLET]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2018-09-22T12:42:31Z", 1537620151.0),
        ("2018-09-22T14:42:31.5+02:00", 1537620151.5),
        ("2018-09-22T12:42:31.123456789Z", 1537620151.123456),
    ],
)
def test_times_as_go_writes_them(tmp_path: Path, text: str, expected: float) -> None:
    file = tmp_path / "database.json"
    entry = {**account(PHONE, "INBOX"), "RegistrationTime": text}
    file.write_text(json.dumps({"Users": {"alice": {"Accounts": {ACCOUNTS[0]: entry}}}}))
    (found,), faults = read(file, time.time())
    assert (found.registered_at, faults) == (expected, [])


def test_a_registration_is_not_in_the_future(tmp_path: Path) -> None:
    """It would pass for newer than those which the phone makes from now on."""
    file = tmp_path / "database.json"
    entry = account(PHONE, "INBOX", at=NOW + timedelta(days=3))
    file.write_text(json.dumps({"Users": {"alice": {"Accounts": {ACCOUNTS[0]: entry}}}}))
    (found,), _ = read(file, NOW.timestamp())
    assert found.registered_at == NOW.timestamp()


# --- what is imported ------------------------------------------------------------------------------------------------


async def test_again_changes_nothing(server: Server) -> None:
    server.mail("alice", ".Notes")
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX", "Notes", "Gone")}})
    assert (await server.run())[0] == 0
    before = server.registered()
    server.asked.unlink()
    status, lines, _ = await server.run()
    assert (status, lines) == (0, ["imported: 0", "left alone, the registry has them as new or newer: 1"])
    assert server.registered() == before
    assert not server.asked.exists(), "nobody needs to be asked for what is known"


async def test_a_newer_registration_by_the_phone_is_kept(server: Server) -> None:
    inbox = server.mail("alice")
    server.site.register("alice", PHONE, {"INBOX": inbox, "Entwürfe": inbox / ".E"}, account_id=ACCOUNTS[0])
    before = server.registered()
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX", at=NOW - timedelta(hours=1))}})
    status, lines, _ = await server.run()
    assert (status, lines[0]) == (0, "imported: 0")
    assert server.registered() == before


def test_a_registration_made_during_the_import_is_kept(server: Server) -> None:
    """The registry decides once more, in the transaction."""
    inbox = server.mail("alice")
    now = int(NOW.timestamp() * 1000)
    server.site.register("alice", PHONE, {"INBOX": inbox}, account_id=ACCOUNTS[0], registered_at=NOW.timestamp())
    before = server.registered()
    with Registry(server.site.registry_file) as book:
        for registered_at in (now - 1, now):
            assert not book.adopt("alice", ACCOUNTS[0], PHONE, [], topic="t", version=1, registered_at=registered_at)
        assert server.registered() == before
        assert book.adopt("alice", ACCOUNTS[0], PHONE, [], topic="t", version=1, registered_at=now + 1)
    ((device, mailboxes),) = server.registered()
    assert (device.id, device.topic, device.version, mailboxes) == (before[0][0].id, "t", 1, [])


async def test_an_older_registration_is_renewed(server: Server) -> None:
    """The server went back to xapsd for a while."""
    inbox = server.mail("alice")
    long_ago = (NOW - timedelta(days=3)).timestamp()
    server.site.register("alice", PHONE, {"INBOX": inbox}, account_id=ACCOUNTS[0], registered_at=long_ago)
    at = NOW - timedelta(hours=1)
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX", at=at)}})
    assert (await server.run())[1][0] == "imported: 1"
    ((device, _),) = server.registered()
    assert device.registered_at == int(at.timestamp() * 1000)


async def test_what_no_phone_renews_is_left_out(server: Server) -> None:
    server.mail("alice")
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX", at=NOW - timedelta(days=31))}})
    status, lines, _ = await server.run()
    assert status == 0
    assert lines == ["imported: 0", "left out, their phones have not renewed them for 30 days: 1"]
    assert server.registered() == []


async def test_dry_run(server: Server) -> None:
    server.mail("alice")
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX"), ACCOUNTS[1]: account(TABLET, "Notes")}})
    status, lines, _ = await server.run("--dry-run")
    assert status == 1
    assert "would be imported: 1" in lines
    assert server.registered() == []


async def test_the_topic_is_one_that_can_be_pushed_to(server: Server) -> None:
    server.mail("alice")
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX")}})
    other = "com.apple.mobilemail.push.org.other"
    status, _, error = await server.run("--topic", other)
    assert status == 1
    assert f"--topic {other}: the configured credentials push to {TOPIC} alone" in error
    status, _, error = await server.run("--topic", "org.example")
    assert status == 1
    assert error.startswith("xaps-watch: --topic: topic 'org.example' would be refused by iOS Mail: ")

    server.site.configure("https://127.0.0.1:1", sections={"apns": {"certificate": None}})
    status, _, error = await server.run()
    assert status == 78
    assert "name the topic that xapsd told the phones with --topic" in error
    assert (await server.run("--topic", other))[0] == 0
    assert [device.topic for device, _ in server.registered()] == [other]


async def test_the_running_daemon_pushes_for_what_was_imported(server: Server) -> None:
    inbox = server.mail("alice", ".Notes")
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX", "Notes")}})
    async with server.site.simulator() as apns:
        server.site.configure(apns.url)
        async with DaemonProcess(server.site.config_file) as daemon:
            assert (await server.run())[0] == 0
            await daemon.notified("STATUS=state=pushing mailboxes=2")
            deliver_by_rename(inbox / ".Notes")
            deliver_by_rename(inbox)
            await apns.wait_for(1)
        (received,) = apns.received
        assert received.token == PHONE
        # Were the folder named, the phone would refresh nothing: xapsd echoed it no name.
        assert received.payload == {"aps": {"account-id": ACCOUNTS[0].upper()}}
        shown = await xaps_watch(server.site.config_file, "devices")
        assert shown.lines[-1] == "    pushes for INBOX alone, until the phone registers anew"


# --- mailboxes → paths -----------------------------------------------------------------------------------------------


async def test_what_can_not_be_mapped_is_reported(server: Server) -> None:
    inbox = server.mail("alice")
    (server.vmail / "dbox" / "Maildir").mkdir(parents=True)
    server.mail("carol")
    mailboxes = ("INBOX", "Gone", "a&b", "../../carol/Maildir")
    server.write(
        {
            "alice": {ACCOUNTS[0]: account(PHONE, *mailboxes)},
            "nobody": {ACCOUNTS[0]: account(TABLET, "INBOX")},
            "down": {ACCOUNTS[0]: account(TABLET, "INBOX")},
            "a*": {ACCOUNTS[0]: account(TABLET, "INBOX")},
            "dbox": {ACCOUNTS[0]: account(TABLET, "INBOX")},
            "missing": {ACCOUNTS[0]: account(TABLET, "INBOX")},
            "carol": {ACCOUNTS[0]: account(TABLET, "Notes"), ACCOUNTS[1]: account(PHONE)},
        }
    )
    status, lines, _ = await server.run()
    assert status == 1
    phone, tablet = mask_token(PHONE), mask_token(TABLET)
    assert [line for line in lines if line[0] in "!✘"] == [
        f"! alice {phone} without ../../carol/Maildir: {inbox}/.../../carol/Maildir leads out of the user's mail",
        f"! alice {phone} without Gone: {inbox}/.Gone is not there",
        f"! alice {phone} without a&b: 'a&b' is not modified UTF-7",
        f"✘ nobody {tablet} not imported: INBOX: doveadm(nobody): Error: User doesn't exist",
        f"✘ down {tablet} not imported: INBOX: doveadm(down): Error: connect(/run/dovecot/auth-userdb) failed:"
        " Connection refused; doveadm needs root and a running Dovecot",
        f"✘ a* {tablet} not imported: INBOX: 'a*' would be a pattern for doveadm",
        f"✘ dbox {tablet} not imported: INBOX: {server.vmail}/dbox/Maildir is no Maildir",
        f"✘ missing {tablet} not imported: INBOX: {server.vmail}/missing/Maildir is not there",
        f"✘ carol {tablet} not imported: it did not ask for INBOX",
        f"✘ carol {phone} not imported: it did not ask for INBOX",
    ]
    assert lines[-3:-1] == [
        "imported: 1 (1 without some of the mailboxes)",
        "could not be imported, see above: 7",
    ]
    ((alice, mailboxes_found),) = server.registered()
    assert (alice.username, [mailbox.name for mailbox in mailboxes_found]) == ("alice", ["INBOX"])


async def test_doveadm_may_be_any_command(server: Server) -> None:
    server.mail("alice")
    server.write({"alice": {ACCOUNTS[0]: account(PHONE, "INBOX")}})
    elsewhere = server.doveadm.rename(server.site.directory / "doveadm with spaces")
    status, _, error = await server.run("--doveadm", "no-such-doveadm -x")
    assert status == 1
    assert error == "xaps-watch: no-such-doveadm: not found; name it, or give --path-template\n"
    assert (await server.run("--doveadm", f"env '{elsewhere}'"))[0] == 0
    assert len(server.registered()) == 1


async def test_paths_by_a_template(server: Server) -> None:
    folders = {
        "Notes": ".Notes",
        "Entw&APw-rfe/2024": ".Entw&APw-rfe.2024",
        "A.B": ".A.B",
        "INBOX.Sent": ".Sent",
        "Inbox/Sub": ".Inbox.Sub",
    }
    inbox = make_maildir(server.vmail / "example.org" / "alice" / "Maildir%")
    for directory in folders.values():
        make_maildir(inbox / directory)
    server.write(
        {
            "alice@example.org": {ACCOUNTS[0]: account(PHONE, "INBOX", *folders)},
            "bob": {ACCOUNTS[0]: account(TABLET, "INBOX")},
            "../x@example.org": {ACCOUNTS[0]: account(TABLET, "INBOX")},
            "x@..": {ACCOUNTS[0]: account(TABLET, "INBOX")},
        }
    )
    status, lines, _ = await server.run("--path-template", f"{server.vmail}/%d/%n/Maildir%%")
    assert status == 1
    tablet = mask_token(TABLET)
    assert lines[:3] == [
        f"✘ bob {tablet} not imported: INBOX: %d would be ''",
        f"✘ ../x@example.org {tablet} not imported: INBOX: %n would be '../x'",
        f"✘ x@.. {tablet} not imported: INBOX: %d would be '..'",
    ]
    assert not server.asked.exists()
    ((_, mailboxes),) = server.registered()
    assert {mailbox.name: mailbox.path for mailbox in mailboxes} == {
        "INBOX": str(inbox),
        "Notes": f"{inbox}/.Notes",
        "Entwürfe/2024": f"{inbox}/.Entw&APw-rfe.2024",
        "A.B": f"{inbox}/.A.B",
        "INBOX.Sent": f"{inbox}/.Sent",
        "Inbox/Sub": f"{inbox}/.Inbox.Sub",
    }


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("/var/vmail/%h", "--path-template: unknown variable %h; there are %u, %n, %d and %%"),
        ("/var/vmail/%", "--path-template: unknown variable %; there are %u, %n, %d and %%"),
        ("var/vmail/%u", "--path-template var/vmail/%u: give the whole path, from / on"),
    ],
)
async def test_a_template_that_can_not_be(server: Server, template: str, message: str) -> None:
    server.write({})
    assert await server.run("--path-template", template) == (1, [], f"xaps-watch: {message}\n")
