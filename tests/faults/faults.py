"""All that can go wrong. Each fault makes its mess, delivers mail in the midst of it, and leaves a world that works."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path

from tests.faults.world import ALL_WATCHES, HOSTS, NAME, World, bind, unmount
from tests.support.maildirs import make_maildir, read_all, swap
from xaps_watch.authority import LocalAuthority
from xaps_watch.simulator import Answer, Simulator

# --- the push service --------------------------------------------------------------------------------------------


async def cut(world: World) -> None:
    """The connection is cut in mid-flight."""
    world.answer_with = lambda received: Answer(then="cut") if world.random.random() < 0.3 else Answer()
    await world.deliver_some(1.0)
    world.answer_with = lambda _: Answer()
    world.simulator.cut_all()


async def goaway(world: World) -> None:
    """GOAWAY, with and without unprocessed streams."""
    choices = (Answer(then="goaway"), Answer(then="goaway-before"), Answer(), Answer())
    world.answer_with = lambda _: world.random.choice(choices)
    await world.deliver_some(1.0)
    world.answer_with = lambda _: Answer()
    world.simulator.goaway_all()


async def reset(world: World) -> None:
    """RST_STREAM, also REFUSED_STREAM."""
    choices = (Answer(then="reset"), Answer(then="refuse"), Answer())
    world.answer_with = lambda _: world.random.choice(choices)
    await world.deliver_some(1.0)
    world.answer_with = lambda _: Answer()


async def errors(world: World) -> None:
    """500, 503 and 429 now and then."""
    choices = (Answer(503), Answer(500), Answer(503, retry_after=1), Answer(429, "TooManyRequests", retry_after=1))
    world.answer_with = lambda _: world.random.choice((*choices, Answer(), Answer()))
    await world.deliver_some(1.0)
    world.answer_with = lambda _: Answer()


async def outage(world: World) -> None:
    """Connections are refused for some seconds."""
    await world.simulator.stop_accepting()
    world.simulator.cut_all()
    await world.deliver_some(world.random.uniform(0.5, 3.0))
    await world.simulator.start()


async def silence(world: World) -> None:
    """The server takes requests and answers nothing."""
    world.answer_with = lambda _: Answer(then="silence")
    await world.deliver_some(1.0)
    world.answer_with = lambda _: Answer()


async def freeze(world: World) -> None:
    """The server reads nothing for a while."""
    world.simulator.freeze()
    await world.deliver_some(world.random.uniform(0.2, 2.0))
    world.simulator.thaw()


async def slow(world: World) -> None:
    """Each answer takes its time, and only one stream is allowed."""
    world.answer_with = lambda _: Answer(delay=0.1)
    world.simulator.limit_streams(1)
    await world.deliver_some(1.0)
    world.simulator.limit_streams(1000)
    world.answer_with = lambda _: Answer()

async def refused_credentials(world: World) -> None:
    """Apple takes neither certificate nor token until there are others."""
    reasons = ("BadCertificate", "BadCertificateEnvironment", "InvalidProviderToken", "Forbidden")
    world.answer_with = lambda _: Answer(403, world.random.choice(reasons))
    await world.deliver_some(1.0)
    world.answer_with = lambda _: Answer()
    world.renew_certificate()


async def wrong_server(world: World) -> None:
    """Somebody else answers at Apple's address: his certificate is no good, and he must get nothing."""
    await world.simulator.stop()
    async with Simulator(LocalAuthority(world.directory / "another"), port=world.simulator.port) as other:
        await world.deliver_some(1.0)
    assert not other.received
    await world.simulator.start()


async def mute_server(world: World) -> None:
    """TCP connects, and nothing is said on it."""
    await world.simulator.accept_silently()
    world.simulator.cut_all()
    await world.deliver_some(1.0)
    await world.simulator.start()


async def no_name(world: World) -> None:
    """The host's name can't be resolved."""
    HOSTS.write_text("")
    world.simulator.cut_all()
    await world.deliver_some(1.0)
    HOSTS.write_text(NAME)


# --- the daemon --------------------------------------------------------------------------------------------------


async def kill(world: World) -> None:
    """kill -9 at any moment; mail comes while nobody watches."""
    await world.deliver_some()
    await asyncio.sleep(world.random.uniform(0, 0.1))
    await world.daemon.kill()
    await world.deliver_some(world.random.uniform(0, 0.5))
    await world.daemon.start()


async def kill_at_start(world: World) -> None:
    """Killed before it is ready."""
    await _amid_start(world)
    await world.daemon.kill()
    await world.daemon.start()


async def stopped_at_start(world: World) -> None:
    """SIGTERM before it is ready."""
    await _amid_start(world)
    assert await world.daemon.stop() in (0, -signal.SIGTERM)  # there was no handler yet
    await world.daemon.start()


async def _amid_start(world: World) -> None:
    """The daemon was killed, mail came, and it starts again."""
    await world.daemon.kill()
    await world.deliver_some()
    await world.daemon.start(wait_until_ready=False)
    await asyncio.sleep(world.random.uniform(0.1, 0.6))


async def restart(world: World) -> None:
    """systemctl restart, with pushes pending."""
    await world.deliver_some()
    assert await world.daemon.stop() == 0
    await world.deliver_some(world.random.uniform(0, 0.5))
    await world.daemon.start()


async def reload(world: World) -> None:
    """SIGHUP, again and again."""
    for _ in range(5):
        world.daemon.signal(signal.SIGHUP)
        await world.deliver_some(0.1)


async def renewed_certificate(world: World) -> None:
    """There is another certificate, and the connection is made anew."""
    world.renew_certificate()
    await world.deliver_some(1.0)


async def unusable_certificate(world: World) -> None:
    """Its file is garbage for a while; the old one is used on, but for a restart meanwhile."""
    world.site.certificate.file.write_text("garbage")
    await world.deliver_some(0.5)
    if world.random.random() < 0.5:
        await world.daemon.kill()
        await world.daemon.start()
        await world.deliver_some()
    world.renew_certificate()


async def out_of_watches(world: World) -> None:
    """The kernel has watches for half of the mailboxes; the others are polled."""
    before = ALL_WATCHES.read_text()
    await world.daemon.stop()
    ALL_WATCHES.write_text(str(len(world.mailboxes)))
    await world.daemon.start()
    await world.deliver_some(1.0)
    await world.settle()
    ALL_WATCHES.write_text(before)
    await world.daemon.stop()  # it would look for room in a minute; who reads mail between two polls isn't noticed
    await world.daemon.start()


async def overflow(world: World) -> None:
    """The daemon is stopped until inotify's queue overflows."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    world.daemon.signal(signal.SIGSTOP)
    mailbox = world.some_mailbox()
    # Not deliveries, since each would have to be waited for: renames inside new/ fill the queue, too.
    first = mailbox.path / "new" / ".filling"
    first.touch()
    for number in range(limit // 2 + 10):
        first = first.rename(first.with_name(f".filling{number % 2}"))
    world.deliver(mailbox)
    for _ in range(5):
        world.deliver(world.some_mailbox())
    first.unlink()
    world.daemon.signal(signal.SIGCONT)


async def read_elsewhere(world: World) -> None:
    """Other clients read mail as it comes. What is gone from new/ before it was noticed is told of all the same."""
    for _ in range(10):
        mailbox = world.some_mailbox()
        world.deliver(mailbox, world.random.randint(1, 5))
        await asyncio.sleep(world.random.uniform(0, 0.02))
        read_all(mailbox.path)
    # Of what was read before a crash, nobody needs to be told after it.
    await world.settle()


# --- the mailboxes -----------------------------------------------------------------------------------------------


async def away(world: World) -> None:
    """A folder is renamed, and back."""
    mailbox = world.some_mailbox()
    world.deliver(mailbox)
    away = mailbox.path.rename(mailbox.path.with_suffix(".away"))
    await asyncio.sleep(world.random.uniform(0, 1.0))
    away.rename(mailbox.path)
    world.deliver(mailbox)


async def recreated(world: World) -> None:
    """A folder is removed and made anew, at once or after a while."""
    mailbox = world.some_mailbox()
    world.ledger.forgive(mailbox.tokens, mailbox.name)
    shutil.rmtree(mailbox.path)
    await asyncio.sleep(world.random.choice((0, 0, 0.05, 1.0)))
    make_maildir(mailbox.path)
    world.deliver(mailbox, 3)


async def exchanged(world: World) -> None:
    """Two folders change places, mail comes into both, and at once the daemon ends."""
    await world.settle()
    one = world.some_mailbox()
    siblings = (mailbox for mailbox in world.mailboxes if mailbox.path.parent == one.path.parent)
    other = world.random.choice([mailbox for mailbox in siblings if mailbox is not one])
    swap(one.path, other.path)
    for mailbox in (one, other):
        world.deliver(mailbox)
    await asyncio.sleep(world.random.choice((0, 0.01, 0.1)))
    if world.random.random() < 0.5:
        await world.daemon.kill()
    else:
        await world.daemon.stop()
    await world.daemon.start()


async def unmounted(world: World) -> None:
    """A user's filesystem goes, and comes back with mail in it."""
    await world.deliver_some()
    unmount(world.mount_point)
    for mailbox in world.mailboxes:
        if mailbox.path.is_relative_to(world.mount_point):
            world.deliver(mailbox, into=world.elsewhere / mailbox.path.relative_to(world.mount_point))
    await asyncio.sleep(world.random.uniform(0, 1.0))
    bind(world.elsewhere, world.mount_point)


async def replaced(world: World) -> None:
    """Another directory takes the folder's place while the old one still is there."""
    mailbox = world.some_mailbox()
    world.ledger.forgive(mailbox.tokens, mailbox.name)
    old = mailbox.path.rename(mailbox.path.with_suffix(f".old{world.random.random()}"))
    make_maildir(mailbox.path)
    world.deliver(mailbox, 3)
    await asyncio.sleep(world.random.uniform(0, 1.0))
    world.deliver(mailbox)
    shutil.rmtree(old)


async def new_missing(world: World) -> None:
    """new/ itself goes, and comes back."""
    mailbox = world.some_mailbox()
    world.ledger.forgive(mailbox.tokens, mailbox.name)
    shutil.rmtree(mailbox.path / "new")
    await asyncio.sleep(world.random.choice((0, 0.05, 1.0)))
    (mailbox.path / "new").mkdir()
    world.deliver(mailbox, 2)


# --- the registry ------------------------------------------------------------------------------------------------


async def registry_locked(world: World) -> None:
    """Another program holds the registry."""
    with closing(sqlite3.connect(world.site.registry_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await world.deliver_some(world.random.uniform(0.5, 2.0))
        other.execute("ROLLBACK")


async def registry_replaced(world: World) -> None:
    """Restored from a backup: another file under the same name."""
    backup = world.site.registry_file.with_suffix(".backup")
    with closing(sqlite3.connect(world.site.registry_file)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    backup.chmod(0o660)
    await world.deliver_some()
    for suffix in ("-wal", "-shm"):
        Path(f"{world.site.registry_file}{suffix}").unlink(missing_ok=True)
    backup.rename(world.site.registry_file)
    await world.deliver_some(0.2)


async def registry_damaged(world: World) -> None:
    """The registry is garbage. It is moved aside, and the phones register again."""
    await world.settle()
    await world.daemon.stop()
    world.site.registry_file.write_bytes(world.random.randbytes(65536))
    await world.daemon.start()
    await registered_again(world)


async def disk_full(world: World) -> None:
    """Nothing more can be written to the registry; pushes go on."""
    with closing(sqlite3.connect(world.site.registry_file)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # or what is written had its room there
    filler = world.site.registry_file.with_name("filler")
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    await world.deliver_some(1.0)
    await world.settle()
    filler.unlink()


async def registered_again(world: World) -> None:
    """All phones renew their registrations while mail comes."""
    for token in sorted(world.mailboxes_of):
        world.register(token)
        if world.random.random() < 0.3:
            world.deliver(world.some_mailbox())
    await asyncio.sleep(0)


FAULTS: tuple[Callable[[World], Awaitable[None]], ...] = (
    cut, goaway, reset, errors, outage, silence, freeze, slow, refused_credentials, wrong_server, mute_server, no_name,
    kill, kill_at_start, stopped_at_start, restart, reload, renewed_certificate, unusable_certificate,
    out_of_watches, overflow, read_elsewhere,
    away, recreated, replaced, exchanged, unmounted, new_missing,
    registry_locked, registry_replaced, registry_damaged, disk_full, registered_again,
)  # fmt: skip
