"""The service's side of the registry, with a listener that records, on a real file."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.support.values import ACCOUNT_ID, TOPIC, device_token
from xaps_watch import registry
from xaps_watch.model import Mailbox
from xaps_watch.registrar import CORRUPT_TRIES, LOCK_TIMEOUT, Registrar
from xaps_watch.registry import Note, Registered, Registry, RegistryError, published_topic, topic_file


class Heard:
    """The registrar's Listener: remembers what it was told."""

    def __init__(self) -> None:
        self.registrations: list[str] = []
        self.all: set[str] = set()

    def registered(self, registrations: Sequence[Registered]) -> None:
        self.registrations += [registered.path for registered in registrations]

    async def all_registered(self, paths: dict[str, int]) -> None:
        self.all = set(paths)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "registry.sqlite3"


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def registrar(path: Path, heard: Heard) -> AsyncIterator[Registrar]:
    opened = Registrar(path, heard, time=time.time, monotonic=time.monotonic)
    await opened.start()
    await opened.step()
    yield opened
    await opened.close()


def register(path: Path, number: int) -> int:
    with Registry(path) as book:
        mailboxes = [Mailbox("INBOX", f"/vmail/{number}")]
        return book.register(
            f"user{number}", ACCOUNT_ID, device_token(number), mailboxes, topic=TOPIC, now=int(time.time() * 1000)
        )


def outcome(path: Path, device_id: int) -> str | None:
    with Registry(path) as book:
        device = book.device(device_id)
    assert device is not None
    return device.outcome


async def test_a_registration_and_its_end_are_told(registrar: Registrar, heard: Heard, path: Path) -> None:
    device_id = register(path, 1)
    await registrar.wait(5.0)
    await registrar.step()
    assert "/vmail/1" in heard.registrations
    with Registry(path) as book:
        book.forget([device_id])
    for _ in range(100):
        await registrar.step()
        if not heard.all:
            break
        await asyncio.sleep(0.01)
    assert heard.all == set()


async def test_registrations_are_heard_of_while_nothing_can_be_written(
    registrar: Registrar, heard: Heard, path: Path
) -> None:
    register(path, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        registrar.set("topic", TOPIC)
        registrar.wake()
        step = asyncio.create_task(registrar.step())
        await asyncio.sleep(0.5)  # much less than the busy timeout
        assert heard.registrations == ["/vmail/1"]
        other.execute("ROLLBACK")
        await step


async def test_it_is_not_woken_for_ever_by_a_step_that_failed(registrar: Registrar) -> None:
    """Else a fault before the registrar's own step would spin the daemon's loop, and flood the journal."""
    registrar.wake()
    await registrar.wait(5.0)
    again = asyncio.create_task(registrar.wait(5.0))
    done, _ = await asyncio.wait([again], timeout=0.3)
    again.cancel()
    assert not done


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_is_not_lost_when_it_comes_with_a_wake_up(registrar: Registrar, turns: int) -> None:
    await registrar.wait(0.1)
    waiting = asyncio.create_task(registrar.wait(5.0))
    await asyncio.sleep(0.1)
    registrar.wake()
    for _ in range(turns):
        await asyncio.sleep(0)
    if waiting.cancel():  # False: it has ended before
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_wait_ends_by_itself(registrar: Registrar) -> None:
    await registrar.wait(0.1)
    await asyncio.wait_for(registrar.wait(0.1), 5.0)


async def test_what_was_noted_while_it_wrote_is_written_next(registrar: Registrar, path: Path) -> None:
    device_id = register(path, 1)
    registrar.note(Note(device_id, "200", int(time.time() * 1000)))
    registrar.wake()
    await registrar.step()
    registrar.note(Note(device_id, "500", int(time.time() * 1000)))
    registrar.wake()
    await registrar.step()
    assert outcome(path, device_id) == "500"


async def test_its_own_writes_do_not_make_it_write_again(registrar: Registrar, path: Path) -> None:
    """A push every few milliseconds: each write wakes whoever watches the file, which is this program, too."""
    device_id = register(path, 1)
    written = 0
    end = time.monotonic() + 1.5
    with closing(sqlite3.connect(path)) as other:
        before = other.execute("PRAGMA data_version").fetchone()
        while time.monotonic() < end:
            registrar.note(Note(device_id, "200", int(time.time() * 1000), accepted_at=int(time.time() * 1000)))
            registrar.set("caught_up_to", str(time.time_ns()))
            await registrar.wait(2.0)
            await registrar.step()
            now = other.execute("PRAGMA data_version").fetchone()
            written += now != before
            before = now
    assert 1 <= written <= 3


async def test_what_must_not_wait_is_written_at_once(registrar: Registrar, path: Path) -> None:
    device_id = register(path, 1)
    await registrar.step()  # has just written, if it had to
    for reason in ("400 BadDeviceToken", "400 DeviceTokenNotForTopic"):
        registrar.note(Note(device_id, reason, int(time.time() * 1000), suspend=reason, resume=True))
        await registrar.step()
        assert outcome(path, device_id) == reason


async def test_that_a_push_was_accepted_outlives_a_later_failure(registrar: Registrar, path: Path) -> None:
    """Whether a device was ever accepted decides what BadDeviceToken means for it."""
    device_id = register(path, 1)
    accepted_at = int(time.time() * 1000)
    registrar.note(Note(device_id, "200", accepted_at, accepted_at=accepted_at))
    registrar.note(Note(device_id, "429 TooManyRequests", accepted_at + 1))
    registrar.wake()
    await registrar.step()
    with Registry(path) as book:
        device = book.device(device_id)
    assert device is not None
    assert (device.outcome, device.accepted_at) == ("429 TooManyRequests", accepted_at)


async def test_a_locked_registry_does_not_hold_up_the_stop(
    path: Path, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Registrar(path, heard, time=time.time, monotonic=time.monotonic)
    await opened.start()
    await opened.step()
    opened.note(Note(register(path, 1), "200", int(time.time() * 1000)))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.wait_for(opened.close(), 5 * LOCK_TIMEOUT)
    assert "registry could not be written before the stop" in caplog.text


async def test_questions_while_the_registry_is_opened_anew(registrar: Registrar, path: Path) -> None:
    """They are answered, or told that it isn't open; a connection closed under one would end the process."""
    register(path, 1)
    answered = 0
    for number in range(50):
        copy = path.with_name(f"copy{number}")
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        copy.replace(path)
        step = asyncio.create_task(registrar.step())
        while not step.done():
            with suppress(RegistryError):
                answered += len(registrar.subscribers(["/vmail/1"]))
            await asyncio.sleep(0)
    assert answered > 0


STALE: dict[str, Callable[[Path], object]] = {
    "missing, as an older release leaves it": lambda file: file.unlink(),
    "of another topic, as a crash between the two writes leaves it": lambda file: file.write_text("another"),
    "of a topic that was taken back": lambda file: file.write_text(""),
}


@pytest.mark.parametrize("spoil", STALE.values(), ids=STALE)
async def test_the_topics_file_is_right_after_a_start(
    path: Path, heard: Heard, spoil: Callable[[Path], object]
) -> None:
    for _ in range(2):
        registrar = Registrar(path, heard, time=time.time, monotonic=time.monotonic)
        await registrar.start()
        registrar.set("topic", TOPIC)
        await registrar.step()
        assert published_topic(path) == TOPIC
        await registrar.close()
        spoil(topic_file(path))


async def test_the_topic_comes_back_with_a_registry_that_replaces_this_one(registrar: Registrar, path: Path) -> None:
    registrar.set("topic", TOPIC)
    registrar.wake()
    await registrar.step()
    for file in path.parent.iterdir():
        file.unlink()
    registrar.wake()
    await registrar.step()
    assert published_topic(path) == TOPIC
    with Registry(path) as book:
        assert book.settings()["topic"] == TOPIC


async def test_a_topic_that_cannot_be_published_is_tried_again(registrar: Registrar, path: Path) -> None:
    topic_file(path).mkdir()
    registrar.set("topic", TOPIC)
    for _ in range(2):
        registrar.wake()
        await registrar.step()
        assert "registry.sqlite3-topic: cannot be written" in str(registrar.trouble)
    topic_file(path).rmdir()
    await registrar.step()
    assert (registrar.trouble, published_topic(path)) == (None, TOPIC)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "garbage": lambda path: _overwrite(path, b"\xff" * 100_000),
    "text": lambda path: _overwrite(path, b"not a database at all " * 1000),
}


def _overwrite(path: Path, content: bytes) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_file_at_the_start_is_kept_and_a_new_one_begun(
    path: Path, heard: Heard, damage: Callable[[Path], None]
) -> None:
    path.parent.mkdir()
    damage(path)
    content = path.read_bytes()
    registrar = Registrar(path, heard, time=time.time, monotonic=time.monotonic)
    await registrar.start()
    (kept,) = (file for file in path.parent.iterdir() if ".damaged-" in file.name)
    assert kept.read_bytes() == content
    assert registrar.trouble is None
    await registrar.step()
    await registrar.close()


async def test_a_damaged_file_that_cannot_be_moved_aside_is_told_once_and_tried_again(
    registrar: Registrar, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as on a file system that went read-only, which is when files are damaged."""

    def refused(*_: object) -> Path:
        raise RegistryError(f"{path}: damaged, and cannot be renamed: Read-only file system")

    with monkeypatch.context() as context:
        context.setattr(registry, "move_aside", refused)
        damaged = path.with_suffix(".restored")
        damaged.write_bytes(b"\xff" * 100_000)
        damaged.rename(path)
        for _ in range(CORRUPT_TRIES + 5):
            await registrar.step()
    assert "cannot be renamed" in str(registrar.trouble)
    assert caplog.text.count("cannot be renamed") == 1
    for _ in range(CORRUPT_TRIES + 1):
        await registrar.step()
    assert registrar.trouble is None
    assert any(".damaged-" in file.name for file in path.parent.iterdir())
