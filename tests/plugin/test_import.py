"""``xaps-watch import`` with the real doveadm, which asks a private Dovecot: every layout of Maildirs that it knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.commands import Ran, xaps_watch
from tests.support.daemon import Site
from tests.support.dovecot import Dovecot, User, is_24
from tests.support.values import device_token
from xaps_watch import registry
from xaps_watch.registry import Registry

ALICE = "alice@example.org"


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Dovecot]:
    prefixed = "userdb_namespace/inbox/prefix=INBOX. userdb_namespace/inbox/separator=."
    layout_fs, separate, dbox = (
        ("userdb_mailbox_list_layout=fs", "userdb_mail_inbox_path=~/inbox", "userdb_mail_driver=mdbox")
        if is_24()
        else ("userdb_mail=maildir:~/Maildir:LAYOUT=fs", "userdb_mail=maildir:~/Maildir:INBOX=~/inbox",
              "userdb_mail=mdbox:~/mdbox")
    )  # fmt: skip
    extras = {ALICE: "", "fs": layout_fs, "prefixed": prefixed, "separate": separate, "dbox": dbox}
    with Dovecot(None, users=[User(name, extra=extra) for name, extra in extras.items()]) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.configure("https://127.0.0.1:1")
    registry.create(made.registry_file)
    return made


async def import_(site: Site, dovecot_config: Path, mailboxes: Mapping[str, Sequence[str]]) -> Ran:
    accounts = {
        user: {"Accounts": {"0715A26B": {"DeviceToken": device_token(1), "Mailboxes": names}}}
        for user, names in mailboxes.items()
    }
    database = site.directory / "database.json"
    database.write_text(json.dumps({"Users": accounts}))
    return await xaps_watch(site.config_file, "import", database, "--doveadm", f"doveadm -c {dovecot_config}")


async def test_paths_by_the_real_doveadm(site: Site, dovecot: Dovecot) -> None:
    dovecot.create_mailboxes(ALICE, "INBOX", "Entwürfe & more", "Lists.Dovecot", "--", "-x")
    dovecot.create_mailboxes("fs", "INBOX", "Lists/Dovecot")
    dovecot.create_mailboxes("prefixed", "INBOX", "INBOX.Sent")
    dovecot.create_mailboxes("separate", "INBOX", "Notes")
    dovecot.create_mailboxes("dbox", "INBOX")
    ran = await import_(
        site,
        dovecot.config_file,
        {
            ALICE: ["INBOX", "Entw&APw-rfe &- more", "Lists.Dovecot", "-x", "Gone"],
            "fs": ["INBOX", "Lists/Dovecot"],
            "prefixed": ["INBOX", "INBOX.Sent"],
            "separate": ["INBOX", "Notes"],
            "dbox": ["INBOX"],
            "nobody": ["INBOX"],
        },
    )
    assert (ran.status, ran.error) == (1, "")
    with Registry(site.registry_file) as book:
        found = {device.username: {m.name: m.path for m in book.mailboxes(device.id)} for device in book.devices()}
    maildir = dovecot.maildir
    assert found == {
        ALICE: {
            "INBOX": f"{maildir(ALICE)}",
            "Entwürfe & more": f"{maildir(ALICE)}/.Entw&APw-rfe &- more",
            "Lists.Dovecot": f"{maildir(ALICE)}/.Lists.Dovecot",
            "-x": f"{maildir(ALICE)}/.-x",
        },
        "fs": {"INBOX": f"{maildir('fs')}", "Lists/Dovecot": f"{maildir('fs')}/Lists/Dovecot"},
        "prefixed": {"INBOX": f"{maildir('prefixed')}", "INBOX.Sent": f"{maildir('prefixed')}/.Sent"},
        "separate": {"INBOX": f"{dovecot.home('separate')}/inbox", "Notes": f"{maildir('separate')}/.Notes"},
    }
    problems = {line.split(" ")[1]: line for line in ran.lines if line[0] in "!✘"}
    assert set(problems) == {ALICE, "dbox", "nobody"}
    assert f"without Gone: {maildir(ALICE)}/.Gone is not there" in problems[ALICE]
    assert "is no Maildir" in problems["dbox"]
    assert "doesn't exist" in problems["nobody"]


async def test_without_a_running_dovecot(site: Site, dovecot: Dovecot, tmp_path: Path) -> None:
    stopped = tmp_path / "dovecot.conf"
    stopped.write_text(dovecot.config_file.read_text().replace(f"{dovecot.directory}/run", f"{tmp_path}/run"))
    ran = await import_(site, stopped, {ALICE: ["INBOX"]})
    assert ran.status == 1
    assert "doveadm needs root and a running Dovecot" in ran.lines[0]
