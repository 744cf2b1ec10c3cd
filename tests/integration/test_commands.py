"""The commands as a person calls them: processes beside a real daemon, a real registry and a local APNs."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.commands import xaps_watch
from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import deliver_by_link, make_maildir
from tests.support.values import TOPIC, device_token
from xaps_watch.apns import mailbox_hash
from xaps_watch.config import TOPIC_PREFIXES
from xaps_watch.model import mask_token
from xaps_watch.registry import Note, Registry
from xaps_watch.simulator import Answer, Received, Simulator

IPHONE, IPAD = device_token(0x1A << 240), device_token(0x2B << 240)
OTHER_TOPIC = TOPIC_PREFIXES[1] + "org.other"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
async def apns(site: Site) -> AsyncIterator[Simulator]:
    async with site.simulator() as simulator:
        site.configure(simulator.url)
        yield simulator


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    return make_maildir(tmp_path / "Maildir")


def stored(site: Site, device_id: int) -> tuple[str | None, str | None, bool]:
    """Outcome, suspension, and whether a push was accepted, as they are written down."""
    with Registry(site.registry_file) as book:
        device = book.device(device_id)
    assert device is not None
    return device.outcome, device.suspended, device.accepted_at is not None


def suspend(site: Site, device_id: int, why: str = "400 BadDeviceToken") -> None:
    with Registry(site.registry_file) as book:
        book.write([Note(device_id, why, registered_at=2**53, suspend=why)])


# --- status ----------------------------------------------------------------------------------------------------------


async def test_status_of_a_daemon_that_pushes(site: Site, apns: Simulator, inbox: Path) -> None:
    site.register("alice", IPHONE, {"INBOX": inbox, "Notes": inbox / ".Notes"})
    suspend(site, site.register("alice", IPAD, {"INBOX": inbox}))
    async with DaemonProcess(site.config_file) as daemon:
        deliver_by_link(inbox)
        await apns.wait_for(1)
        await daemon.notified("STATUS=state=pushing mailboxes=2 accepted=1")
        told = await xaps_watch(site.config_file, "status", "--json")
        shown = await xaps_watch(site.config_file, "status")

    assert (told.status, told.error) == (0, "")
    snapshot = told.json
    assert snapshot["state"] == "pushing"
    assert snapshot["troubles"] == []
    assert snapshot["pid"] == daemon.pid
    assert snapshot["outcomes"] == {"200": 1}
    assert snapshot["deliveries"] == 1
    assert snapshot["watcher"]["watched"] == 2
    assert snapshot["registry"]["registered"] == {"devices": 2, "suspended": 1, "users": 1}
    assert sum(row["pushes"] for row in snapshot["latencies"]) == 1
    assert snapshot["latencies"][-1]["within"] is None
    assert abs(snapshot["last_push_at"] - time.time()) < 60

    assert (shown.status, shown.error) == (0, "")
    lines = {line[2:16].strip(): line[16:] for line in shown.lines[1:]}
    assert f"(pid {daemon.pid})" in shown.lines[0]
    assert shown.lines[0].endswith(": pushing")
    assert lines["pushes to"] == apns.url
    assert f"certificate {site.certificate.file}, 395 days left; topic {TOPIC}" == lines["credentials"]
    assert lines["registered"] == "2 devices (1 suspended) of 1 user"
    assert lines["mailboxes"] == "2 watched"
    assert lines["since start"] == "1 delivery; answers: 1 × 200"
    assert lines["pending"].startswith("0 devices, 0 in flight")
    assert lines["latency"].startswith("50 % within ")


async def test_status_without_a_daemon(site: Site, apns: Simulator) -> None:
    ran = await xaps_watch(site.config_file, "status")
    assert (ran.status, ran.out) == (1, "")
    assert str(site.status_socket) in ran.error
    assert "is the service running?" in ran.error


async def test_status_of_a_daemon_that_waits_for_credentials(site: Site, tmp_path: Path) -> None:
    site.configure("https://127.0.0.1:1", sections={"apns": {"certificate": None}})
    async with DaemonProcess(site.config_file):
        ran = await xaps_watch(site.config_file, "status")
    assert ran.status == 2
    assert "credentials   none" in ran.out
    assert ran.lines[-1] == (
        f"✘ no push credentials yet: put the certificate and its key into {tmp_path / 'mail.pem'}, "
        f"or name other files in {site.config_file}, section [apns]"
    )


async def test_status_tells_what_apple_holds_against_the_credentials(site: Site, inbox: Path) -> None:
    async with site.simulator(answer=lambda _: Answer(403, "InvalidProviderToken")) as apns:
        site.configure(apns.url)
        site.register("alice", IPHONE, {"INBOX": inbox})
        async with DaemonProcess(site.config_file) as daemon:
            deliver_by_link(inbox)
            await daemon.notified("STATUS=state=\"waiting to push: 403 InvalidProviderToken\"")
            ran = await xaps_watch(site.config_file, "status")
    assert ran.status == 2
    assert ran.lines[-1] == (
        "✘ pushes wait: 403 InvalidProviderToken (Apple does not accept the credentials: see xaps-watch check)"
    )
    assert "failed 1 times in a row, tried again in " in ran.out
    assert "1 device, 0 in flight" in ran.out


async def test_status_tells_of_a_registry_that_went_away(site: Site, apns: Simulator, inbox: Path) -> None:
    site.register("alice", IPHONE, {"INBOX": inbox})
    async with DaemonProcess(site.config_file) as daemon:
        site.registry_file.parent.rename(site.directory / "elsewhere")
        (site.registry_file.parent).write_text("no directory")
        await daemon.notified("STATUS=state=pushing mailboxes=1 accepted=0 registry=")
        ran = await xaps_watch(site.config_file, "status")
        (site.registry_file.parent).unlink()
        (site.directory / "elsewhere").rename(site.registry_file.parent)
    assert ran.status == 2
    assert ran.lines[-1].startswith(f"✘ registry: {site.registry_file}: ")


async def test_status_tells_what_will_have_to_be_done(site: Site, apns: Simulator, tmp_path: Path) -> None:
    ending = site.authority.push_certificate(TOPIC, name="ending", ends=timedelta(days=10, hours=1))
    site.configure(apns.url, sections={"apns": {"certificate": ending.file}})
    site.register("alice", IPHONE, {"INBOX": tmp_path / "gone"})
    shutil.rmtree(tmp_path / "gone")
    async with DaemonProcess(site.config_file):
        ran = await xaps_watch(site.config_file, "status")
    assert ran.status == 2
    assert ran.lines[-2:] == [
        "✘ the push certificate expires in 10 days: get a new one from Apple",
        "✘ no registered mailbox can be watched: see xaps-watch check",
    ]
    assert "0 watched, 1 missing" in ran.out


# --- devices ---------------------------------------------------------------------------------------------------------


async def test_devices_lines_up_whatever_the_names(site: Site, apns: Simulator, tmp_path: Path) -> None:
    names = ["INBOX", *(f"Ordner {number}" for number in range(12)), "日本語", "esc\x1b[31m"]
    site.register("ヤマダ@example.org", IPHONE, {name: tmp_path / f"box{i}" for i, name in enumerate(names)})
    site.register("bob", IPAD, {"INBOX": tmp_path / "bob"})
    suspend(site, site.register("carol", IPAD, {"INBOX": tmp_path / "carol"}))

    ran = await xaps_watch(site.config_file, "devices", environment={"COLUMNS": "120"})
    assert (ran.status, ran.error) == (0, "")
    assert "\x1b" not in ran.out
    assert r"esc\x1b[31m" in ran.out
    heading, bob, carol, suspended, *others = ran.lines
    column = heading.index("MAILBOXES")
    assert bob[:column].split() [:2] == ["bob", mask_token(IPAD)]
    assert bob[column:] == carol[column:] == "INBOX"
    assert suspended == "    suspended: 400 BadDeviceToken"
    wide = 3  # characters of two cells each, before the mailboxes
    assert others[0][column - wide :].startswith("INBOX, Ordner 0, ")
    assert len(others) > 1
    assert all(line.startswith(" " * column) and line[column] != " " for line in others[1:])
    assert all(len(line) <= 120 for line in ran.lines)

    narrow = await xaps_watch(site.config_file, "devices", environment={"COLUMNS": "80"})
    assert "MAILBOXES" not in narrow.lines[0]
    assert narrow.lines[2] == "    INBOX"

    piped = await xaps_watch(site.config_file, "devices", "ヤマダ@example.org")
    assert len(piped.lines) == 2, "for grep and awk: one line a device"


async def test_devices_for_programs(site: Site, apns: Simulator, tmp_path: Path) -> None:
    site.register("alice", IPHONE, {"INBOX": tmp_path / "a", "Entwürfe": tmp_path / "b"}, registered_at=1.5e9)
    ran = await xaps_watch(site.config_file, "devices", "--json", "alice")
    assert ran.status == 0
    assert ran.json == [
        {
            "user": "alice",
            "device": mask_token(IPHONE),
            "account_id": "0715A26B-CA09-4730-A419-793000CA982E",
            "topic": TOPIC,
            "aps_version": 2,
            "registered_at": 1.5e9,
            "accepted_at": None,
            "outcome": None,
            "suspended": None,
            "mailboxes": [
                {"name": "Entwürfe", "path": str(tmp_path / "b")},
                {"name": "INBOX", "path": str(tmp_path / "a")},
            ],
        }
    ]
    nobody = await xaps_watch(site.config_file, "devices", "--json", "bob")
    assert (nobody.status, nobody.json) == (1, [])


async def test_any_name_is_shown_in_any_locale(site: Site, apns: Simulator, tmp_path: Path) -> None:
    site.register("alice", IPHONE, {"INBOX": tmp_path / "a", "Entwürfe 日本": tmp_path / "b"})
    ran = await xaps_watch(site.config_file, "devices", environment={"PYTHONIOENCODING": "ascii"})
    assert (ran.status, ran.error) == (0, "")
    assert "Entw\\xfcrfe \\u65e5\\u672c" in ran.out


# --- push ------------------------------------------------------------------------------------------------------------


async def test_push_goes_to_each_device_and_says_what_to_look_at(site: Site, apns: Simulator, inbox: Path) -> None:
    ids = [site.register("alice", token, {"INBOX": inbox}) for token in (IPHONE, IPAD)]
    site.register("bob", device_token(3), {"INBOX": inbox})
    ran = await xaps_watch(site.config_file, "push", "alice")
    assert (ran.status, ran.error) == (0, "")
    assert [received.token for received in apns.received] == [IPHONE, IPAD]
    assert apns.connections_made == 1
    for received in apns.received:
        assert not received.faults
        assert received.payload == {"aps": {"account-id": "0715A26B-CA09-4730-A419-793000CA982E"}}
    for line, token in zip(ran.lines, (IPHONE, IPAD), strict=False):
        assert line.startswith(f"✔ alice {mask_token(token)} INBOX: 200 after ")
        assert ", apns-id " in line
    for hint in ("Fetch New Data", "Notifications", "Low Power Mode", "add it again"):
        assert hint in ran.out
    assert [stored(site, i) for i in ids] == [("200", None, True)] * 2


async def test_push_for_a_folder_names_it_by_its_hash(site: Site, apns: Simulator, inbox: Path) -> None:
    site.register("alice", IPHONE, {"INBOX": inbox})
    site.register("alice", IPAD, {"INBOX": inbox, "Entwürfe": inbox / ".E"})
    ran = await xaps_watch(site.config_file, "push", "alice", "Entwürfe")
    assert ran.status == 0
    assert ran.lines[0] == f"- alice {mask_token(IPHONE)}: did not ask for Entwürfe"
    (received,) = apns.received
    assert received.token == IPAD
    assert isinstance(received.payload, dict)
    assert received.payload["aps"]["m"] == [mailbox_hash("Entwürfe")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bob"], "no device of 'bob' is registered; registered: alice"),
        (["alice", "Nix"], f"no device of 'alice' asked for mailbox 'Nix'; registered: {mask_token(IPHONE)}: INBOX, N"),
    ],
    ids=["unknown user", "unknown mailbox"],
)
async def test_push_to_nobody_lists_what_is_registered(
    site: Site, apns: Simulator, inbox: Path, arguments: list[str], message: str
) -> None:
    site.register("alice", IPHONE, {"INBOX": inbox, "N": inbox / ".N"})
    ran = await xaps_watch(site.config_file, "push", *arguments)
    assert (ran.status, ran.out, ran.error) == (1, "", f"xaps-watch: {message}\n")
    assert apns.requests == 0


async def test_push_explains_a_refusal_and_leaves_the_registration(site: Site, inbox: Path) -> None:
    moment = int(time.time() * 1000) - 10_000

    def refuse(received: Received) -> Answer:
        return Answer(410, timestamp=moment) if received.token == IPHONE else Answer(400, "BadDeviceToken")

    async with site.simulator(answer=refuse) as apns:
        site.configure(apns.url)
        ids = [site.register("alice", token, {"INBOX": inbox}) for token in (IPHONE, IPAD)]
        ran = await xaps_watch(site.config_file, "push", "alice")
        told = await xaps_watch(site.config_file, "push", "alice", "--json")
    assert ran.status == told.status == 1
    assert ran.lines[0].startswith(f"✘ alice {mask_token(IPHONE)} INBOX: 410 Unregistered after ")
    assert ran.lines[1] == "    the account was removed from the phone, or reset"
    assert ran.lines[2].startswith("    invalid since 20")
    assert "    no token of this environment (production or sandbox)" in ran.lines
    assert "Fetch New Data" not in ran.out
    assert [(row["status"], row["reason"], row["accepted"]) for row in told.json] == [
        (410, "Unregistered", False),
        (400, "BadDeviceToken", False),
    ]
    assert [stored(site, i) for i in ids] == [(None, None, False)] * 2


async def test_push_ends_a_suspension_when_apple_accepts_it(site: Site, apns: Simulator, inbox: Path) -> None:
    device_id = site.register("alice", IPHONE, {"INBOX": inbox})
    suspend(site, device_id)
    ran = await xaps_watch(site.config_file, "push", "alice")
    assert ran.status == 0
    assert "    was suspended (400 BadDeviceToken): it is no longer, since it can be reached" in ran.lines
    assert stored(site, device_id) == ("200", None, True)


async def test_push_to_a_suspended_device_that_is_refused_again(site: Site, apns: Simulator, inbox: Path) -> None:
    device_id = site.register("alice", IPHONE, {"INBOX": inbox}, topic=OTHER_TOPIC)
    suspend(site, device_id, "registered for another topic")
    ran = await xaps_watch(site.config_file, "push", "alice")
    assert ran.status == 1
    assert "400 TopicDisallowed" in ran.lines[0]
    assert "    was suspended (registered for another topic): it stays so" in ran.lines
    assert stored(site, device_id)[1] == "registered for another topic"


async def test_push_without_a_network_ends_at_the_first_device(site: Site, apns: Simulator, inbox: Path) -> None:
    for token in (IPHONE, IPAD):
        site.register("alice", token, {"INBOX": inbox})
    await apns.stop()
    ran = await xaps_watch(site.config_file, "push", "alice")
    assert ran.status == 1
    assert "no answer: ConnectError" in ran.lines[0]
    assert ran.lines[-1] == f"not tried: {mask_token(IPAD)}, it would end the same"


async def test_push_without_credentials(site: Site, inbox: Path) -> None:
    site.configure("https://127.0.0.1:1", sections={"apns": {"certificate": None}})
    site.register("alice", IPHONE, {"INBOX": inbox})
    ran = await xaps_watch(site.config_file, "push", "alice")
    assert ran.status == 78
    assert "no push credentials yet" in ran.error


# --- forget ----------------------------------------------------------------------------------------------------------


def tokens(site: Site) -> list[str]:
    with Registry(site.registry_file) as book:
        return sorted(device.token for device in book.devices())


@pytest.mark.parametrize(
    ("which", "left"),
    [
        ("alice", [IPAD]),
        (IPHONE, [IPAD]),
        (IPHONE.upper(), [IPAD]),
        (IPHONE[:6], [IPAD]),
        (mask_token(IPAD), [IPHONE]),
        (mask_token(IPAD).replace("…", "..."), [IPHONE]),
    ],
    ids=["user", "token", "capital token", "beginning", "as shown", "as typed"],
)
async def test_forget(site: Site, apns: Simulator, inbox: Path, which: str, left: list[str]) -> None:
    site.register("alice", IPHONE, {"INBOX": inbox, "N": inbox / ".N"})
    site.register("bob", IPAD, {"INBOX": inbox})
    tried = await xaps_watch(site.config_file, "forget", "--dry-run", which)
    assert tried.status == 0
    assert tried.out.startswith("would remove ")
    assert tokens(site) == [IPHONE, IPAD]

    ran = await xaps_watch(site.config_file, "forget", which)
    assert (ran.status, ran.error) == (0, "")
    assert tokens(site) == left
    assert len(ran.lines) == 1
    removed = "alice" if left == [IPAD] else "bob"
    assert ran.out.startswith(f"removed {removed} {mask_token(IPHONE if removed == 'alice' else IPAD)}, registered 20")


@pytest.mark.parametrize("which", ["carol", IPHONE[:5], "ffffff", f"{IPHONE[:6]}…ff", "%", ""])
async def test_forget_what_is_not_there(site: Site, apns: Simulator, inbox: Path, which: str) -> None:
    site.register("alice", IPHONE, {"INBOX": inbox})
    ran = await xaps_watch(site.config_file, "forget", which)
    assert ran.status == 1
    assert ran.error == f"xaps-watch: neither a user nor a device is registered as {which!r}; see xaps-watch devices\n"
    assert tokens(site) == [IPHONE]


async def test_forget_asks_for_more_where_a_token_fits_several(site: Site, apns: Simulator, inbox: Path) -> None:
    twin = IPHONE[:-2] + "99"
    site.register("alice", IPHONE, {"INBOX": inbox})
    site.register("bob", twin, {"INBOX": inbox})
    ran = await xaps_watch(site.config_file, "forget", IPHONE[:10])
    assert ran.status == 1
    assert f"alice {mask_token(IPHONE)}, bob {mask_token(twin)}" in ran.error
    assert tokens(site) == sorted([IPHONE, twin])
    assert (await xaps_watch(site.config_file, "forget", f"{IPHONE[:6]}…99")).status == 0
    assert tokens(site) == [IPHONE]


async def test_forget_takes_all_accounts_of_a_phone(site: Site, apns: Simulator, inbox: Path) -> None:
    site.register("alice", IPHONE, {"INBOX": inbox})
    site.register("alice@work", IPHONE, {"INBOX": inbox})
    assert len((await xaps_watch(site.config_file, "forget", IPHONE)).lines) == 2
    assert tokens(site) == []


async def test_the_running_daemon_follows_forget(site: Site, apns: Simulator, inbox: Path) -> None:
    site.register("alice", IPHONE, {"INBOX": inbox})
    async with DaemonProcess(site.config_file) as daemon:
        assert (await xaps_watch(site.config_file, "forget", "alice")).status == 0
        await daemon.notified("STATUS=state=pushing mailboxes=0")
        deliver_by_link(inbox)
    assert apns.requests == 0


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "devices", "forget"])
async def test_commands_start_without_what_they_do_not_need(command: str, tmp_path: Path) -> None:
    """HTTP/2, TLS and certificates take longer to import than these commands to run."""
    ran = await xaps_watch(tmp_path / "none.toml", command, "--help", environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert ran.status == 0
    imported = {line.rpartition("|")[2].strip() for line in ran.error.splitlines()}
    assert "xaps_watch.terminal" in imported
    assert not imported & {"httpx", "h2", "cryptography", "jwt", "prometheus_client", "xaps_watch.simulator"}


async def test_every_command_has_help(tmp_path: Path) -> None:
    listed = await xaps_watch(tmp_path / "none.toml", "--help")
    for command in ("run", "status", "devices", "push", "forget", "import", "simulate", "demo"):
        assert f"\n    {command} " in listed.out
        ran = await xaps_watch(tmp_path / "none.toml", command, "--help")
        assert ran.status == 0
        assert ran.out.startswith(f"usage: xaps-watch {command} ")


async def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    ran = await xaps_watch(tmp_path / "none.toml", "status")
    assert ran.status == 78
    assert str(tmp_path / "none.toml") in ran.error
