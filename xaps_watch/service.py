"""The straight line: mailbox → devices → due pushes → outcomes → registry."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Protocol

from xaps_watch.apns import pushable
from xaps_watch.coalesce import NEVER, Coalescer, Due
from xaps_watch.config import ApnsConfig, Config, PushConfig
from xaps_watch.gate import Gate
from xaps_watch.logs import fields
from xaps_watch.model import Device, Outcome, Push, Registration, Request
from xaps_watch.registrar import Registrar
from xaps_watch.registry import Note, Registered, RegistryError, Subscriber
from xaps_watch.suspicion import Suspicion
from xaps_watch.watcher import Watcher

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 100  # pushes; Apple allows about ten times as many streams a connection
HOLD = 300.0  # seconds between two probes while only the admin can mend it; new credentials are tried at once
REFUSED_BACKOFF = 5.0  # seconds for which a device rests after its first 429, doubled with each further one
LONGEST_REFUSED_BACKOFF = 3600.0
QUIET_MARK = 60.0  # seconds by which the noted caught_up_to may lag while nothing is delivered
CLOCK_STEP = 30.0  # seconds; less is what NTP corrects now and then
EXPIRY_INTERVAL = 3600.0  # seconds
AT_ONCE = 1000  # paths compared in one turn of the event loop: 3 ms of it, if all of them are new
LOOKED_UP_AT_ONCE = 500  # mailboxes; SQLite before 3.32 takes 999 parameters
_CONCERNS_ALL = frozenset((Request.ALL_WAIT, Request.HOLD, Request.RENEW_TOKEN))
BUG_BACKOFF = 60.0  # seconds until a push is tried again that failed by a fault of this program


class Pusher(Protocol):
    """Sends one push: apns.Apns."""

    async def push(self, push: Push) -> Outcome: ...


@dataclass(slots=True)
class Activity:
    """What the service has done since its start, for status and metrics."""

    deliveries: int = 0
    pushes: Counter[str] = field(default_factory=Counter)  # by outcome, such as "200" or "400 BadDeviceToken"
    last_push_at: float | None = None  # unix time
    latencies: Counter[float] = field(default_factory=Counter)  # accepted pushes, by the LATENCY_BOUNDS they kept
    latency_sum: float = 0.0  # seconds

    def count(self, outcome: Outcome, now: float, latency: float) -> None:
        """`now`: unix time; `latency`: seconds from the delivery to the answer."""
        if outcome.status is None:
            self.pushes["no answer"] += 1
            return
        self.pushes[str(outcome)] += 1
        if outcome.status == 200:
            self.last_push_at = now
            self.latencies[LATENCY_BOUNDS[bisect_left(LATENCY_BOUNDS, latency)]] += 1
            self.latency_sum += latency


LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, NEVER)  # seconds


class Service:
    """Everything between a file in new/ and the answer from Apple, for all registered mailboxes."""

    def __init__(
        self,
        config: Config,
        *,
        time: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.activity = Activity()
        self.config = config
        self.coalescer = Coalescer(config.push.min_interval)
        self.gate = Gate(MAX_IN_FLIGHT, chance)
        self.registrar = Registrar(config.registry.path, self, time=time, monotonic=monotonic)
        self.watcher = Watcher(
            self.delivered,
            on_change=self.changed if config.push.sync_changes else None,
            poll_interval=config.watch.poll_interval,
            time=time,
            monotonic=monotonic,
        )
        self._pusher: Pusher | None = None
        self._suspicion = Suspicion()
        self._started = False
        self._time = time
        self._monotonic = monotonic
        # Every delivery before this (unix time) has been handed to the coalescer, or waits in _unresolved.
        self._caught_up = 0.0
        self._mark: tuple[int, int] = (-1, -1)  # of the activity when caught_up_to was last noted
        self._marked_at = 0.0
        self._clock_offset = time() - monotonic()
        self._next_expiry = monotonic()
        self._unresolved: dict[str, _Unresolved] = {}  # mailboxes whose devices could not be looked up
        self._refusals: dict[int, int] = {}  # device → answers 429 in a row
        self._sending: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._pumping = False  # soon

    # --- start and stop ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Watch every registered mailbox, and catch up with what was delivered meanwhile. Raises RegistryError."""
        self.watcher.start()
        await self.registrar.start()
        self._caught_up = self._where_it_stopped()
        await self.registrar.step()
        self._started = True
        await self.watcher.settled()

    def _where_it_stopped(self) -> float:
        """Unix time: the caught_up_to of the last run, where it can be believed."""
        now = self._time()
        noted = self.registrar.setting("caught_up_to")
        if noted is None:
            return now
        try:
            stopped = int(noted) / 1000
        except ValueError:
            stopped = 0.0
        if stopped > now:
            # The clock was set back: nobody knows when. One push too many for each mailbox with mail in new/.
            log.warning("clock was set back, catching up with all mail in new/ %s", fields(noted=noted))
            return 0.0
        return stopped

    async def stop(self, grace: float) -> None:
        """Send what is pending, within `grace` seconds; what can't be sent is found again at the next start."""
        self.watcher.close()
        deadline = self._monotonic() + grace
        self.coalescer.hurry()
        self._pump()
        while self._sending and (left := deadline - self._monotonic()) > 0:
            await asyncio.wait(self._sending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            self._pump()
        self._pusher = None  # or each push that is cancelled would go again
        if self._timer is not None:
            self._timer.cancel()
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        if self._started:
            self._mark_caught_up(always=True)
        await self.registrar.close()

    async def use(self, pusher: Pusher | None, topics: Sequence[str]) -> None:
        """Push through this from now on, for these topics; the plugin tells phones the first one.

        None: there is nothing to push with, what is due waits, and phones are told no topic.
        """
        self._pusher = pusher
        self._suspicion = Suspicion()
        self.registrar.set("topic", topics[0] if topics else "")
        if topics:
            try:
                suspended, resumed = await self.registrar.in_store(lambda store: store.follow_topics(topics))
            except RegistryError as error:
                log.error("registrations not compared with the topic %s", fields(error=error))
            else:
                if suspended or resumed:
                    log.warning("topic changed %s", fields(topic=topics[0], suspended=suspended, resumed=resumed))
        self.registrar.wake()
        self.gate.open()
        self.coalescer.hurry()  # what was held until the admin had mended something is due now
        self._pump()

    def reconfigure(self, apns: ApnsConfig, push: PushConfig) -> None:
        """Take up other intervals; pushes go elsewhere from the next use() on."""
        self.coalescer.min_interval = push.min_interval
        self.config = replace(self.config, apns=apns, push=push)

    async def step(self) -> None:
        """What is done once in a while: to be called every few seconds, and when the registrar wakes."""
        self._caught_up = self.watcher.caught_up_to()
        self._mark_caught_up()
        await self._expire()
        await self.registrar.step()
        for path, unresolved in list(self._unresolved.items()):
            del self._unresolved[path]
            self._announce([path], unresolved.noticed, unresolved.since, unresolved.delay)
        self._pump()

    def caught_up_to(self) -> float:
        """Unix time: every delivery before it was pushed, or needs no push."""
        waiting = min((unresolved.since for unresolved in self._unresolved.values()), default=NEVER)
        return min(self._caught_up, self.coalescer.oldest(), waiting)

    def _mark_caught_up(self, *, always: bool = False) -> None:
        """Have caught_up_to written down; seldom while nothing is delivered, since then nothing could come twice."""
        caught_up = self.caught_up_to()
        mark = (self.activity.deliveries, len(self.coalescer))
        if always or mark != self._mark or abs(caught_up - self._marked_at) >= QUIET_MARK:
            self._mark, self._marked_at = mark, caught_up
            self.registrar.set("caught_up_to", str(int(caught_up * 1000)))

    async def _expire(self) -> None:
        """Once an hour: remove registrations that no phone has renewed for long."""
        now, offset = self._monotonic(), self._time() - self._monotonic()
        if abs(offset - self._clock_offset) > CLOCK_STEP:
            # While the clock may be wrong it must not decide what is old.
            log.warning("clock was set %s", fields(by=f"{offset - self._clock_offset:+.0f}s"))
            self._clock_offset, self._next_expiry = offset, now + EXPIRY_INTERVAL
        if now < self._next_expiry:
            return
        self._next_expiry = now + EXPIRY_INTERVAL
        before = int((self._time() - self.config.registry.expire_after_days * 86400) * 1000)
        try:
            expired = await self.registrar.in_store(lambda store: store.expire(before))
        except RegistryError as error:
            log.error("old registrations not looked for %s", fields(error=error))
            return
        for device in expired:
            self.coalescer.forget(device.id)
            log.info("registration expired %s", fields(user=device.username, device=device.masked))

    # --- registrations: the registrar's Listener ---------------------------------------------------------------------

    def registered(self, registrations: Sequence[Registered]) -> None:
        for registered in registrations:
            self.watcher.watch(registered.path, self._watch_since(registered.registered_at))

    async def all_registered(self, paths: dict[str, int]) -> None:
        for number, path in enumerate(list(self.watcher.paths), 1):
            if path not in paths:
                self.watcher.unwatch(path)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        for number, (path, registered_at) in enumerate(paths.items(), 1):
            if path not in self.watcher:
                self.watcher.watch(path, self._watch_since(registered_at))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _watch_since(self, registered_at: int) -> float:
        """Unix time: what came to a mailbox after it is to be pushed. `registered_at`: unix time, ms."""
        if self._started:
            return registered_at / 1000  # caught_up_to says nothing of a mailbox that wasn't watched yet
        return max(self._caught_up, registered_at / 1000)

    # --- mailbox → devices: called by the watcher --------------------------------------------------------------------

    def delivered(self, paths: Collection[str]) -> None:
        """Mail appeared in these mailboxes."""
        self._noticed(paths, delay=0.0)

    def changed(self, paths: Collection[str]) -> None:
        """Mail in these mailboxes was read, flagged, moved away or deleted."""
        self._noticed(paths, delay=self.config.push.change_delay)

    def _noticed(self, paths: Collection[str], delay: float) -> None:
        now, listed = self._monotonic(), list(paths)
        self.activity.deliveries += len(listed)
        found: list[Subscriber] = []
        for start in range(0, len(listed), LOOKED_UP_AT_ONCE):
            found += self._announce(listed[start : start + LOOKED_UP_AT_ONCE], now, self._caught_up, delay)
        self._pump(found)

    def _announce(self, paths: Sequence[str], noticed: float, since: float, delay: float) -> Sequence[Subscriber]:
        try:
            subscribers = self.registrar.subscribers(paths)
        except RegistryError as error:
            log.debug("devices can't be looked up %s", fields(path=paths[0], others=len(paths) - 1, error=error))
            for path in paths:
                self._unresolved.setdefault(path, _Unresolved(since, noticed, delay))
            return ()
        for subscriber in subscribers:
            self.coalescer.add(subscriber.device.id, subscriber.mailbox, now=noticed, since=since, delay=delay)
        return subscribers

    # --- devices → due pushes ----------------------------------------------------------------------------------------

    def _pump(self, found: Sequence[Subscriber] = ()) -> None:
        """Send what is due, as far as the gate allows, and come back when there is more.

        `found`: who was looked up in this turn of the loop, and need not be again."""
        self._pumping = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pusher is None:
            return
        now = self._monotonic()
        for due, device, registered in self._registered(self.coalescer.take(now, self.gate.room(now)), found, now):
            self.gate.in_flight += 1
            task = asyncio.create_task(self._send(self._pusher, due, device, registered))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        next_due = self.coalescer.next_due()
        if next_due is None:
            return
        opens_at = self.gate.opens_at(now)
        if opens_at is None and self.gate.room(now) == 0:
            return  # the next answer calls again
        wake_at = max(next_due, opens_at or next_due)
        self._timer = asyncio.get_running_loop().call_later(max(0.0, wake_at - now), self._pump)

    def _pump_soon(self) -> None:
        """At the end of this turn of the loop: once for all the answers that came together."""
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _registered(
        self, taken: Sequence[Due], found: Sequence[Subscriber], now: float
    ) -> Iterator[tuple[Due, Device, AbstractSet[str]]]:
        """Those with a registration that is in force now, and its mailboxes; a phone may have gone meanwhile."""
        if not taken:
            return
        known: dict[int, tuple[Device, set[str]]] = {}
        for subscriber in found:
            known.setdefault(subscriber.device.id, (subscriber.device, set()))[1].add(subscriber.mailbox)
        unknown = [
            due.device_id for due in taken if due.device_id not in known or not due.mailboxes <= known[due.device_id][1]
        ]
        try:
            registrations = {**known, **(self.registrar.registrations(unknown) if unknown else {})}
        except RegistryError as error:
            log.debug("devices can't be looked up %s", fields(devices=len(taken), error=error))
            for due in taken:
                self.coalescer.again(due, now + 1.0)
            return
        for due in taken:
            registration = registrations.get(due.device_id)
            if registration is None or registration[0].suspended is not None:
                self.coalescer.done(due)
            else:
                yield due, *registration

    async def _send(self, pusher: Pusher, due: Due, device: Device, registered: AbstractSet[str]) -> None:
        try:
            mailboxes = pushable(device.version, due.mailboxes & registered)
            if not mailboxes:  # the phone has dropped the folder meanwhile
                self.coalescer.done(due)
                return
            push = Push(device, mailboxes)
            outcome = await pusher.push(push)
            if pusher is not self._pusher and outcome.ruling.request in _CONCERNS_ALL:
                self.coalescer.again(due, self._monotonic())  # there are other credentials by now
            else:
                self._conclude(due, push, outcome)
        except asyncio.CancelledError:
            self.coalescer.again(due, self._monotonic())
            raise
        except Exception:
            # A fault of this program must not cost a push, nor the service: it is told with its traceback.
            log.exception("push failed by a fault of this program, please report it")
            self.coalescer.again(due, self._monotonic() + BUG_BACKOFF)
        finally:
            self.gate.in_flight -= 1
            self._pump_soon()

    # --- outcomes → registry -----------------------------------------------------------------------------------------

    def _conclude(self, due: Due, push: Push, outcome: Outcome) -> None:
        now = self._monotonic()
        device = push.device
        self.activity.count(outcome, self._time(), now - due.noticed)
        match outcome.ruling.request:
            case Request.DONE | Request.DROP:
                if self._registration_changes(device, outcome):
                    self._answered(push, outcome, now - due.noticed)
                    self._refusals.pop(device.id, None)
                    self.coalescer.done(due)
                else:
                    wait = self._hold(now, "Apple calls all device tokens bad: is [apns] environment right?", HOLD)
                    self.coalescer.again(due, now + wait)
            case Request.DEVICE_WAITS:
                self._answered(push, outcome, now - due.noticed)
                self._note(device, outcome)
                self.coalescer.again(due, now + max(self._refused(device.id), outcome.retry_after or 0.0))
            case Request.ALL_WAIT:
                told = self.gate.why
                wait = self.gate.failed(now, str(outcome), outcome.retry_after)
                if told != str(outcome):
                    self._tell_closed(wait, str(outcome), outcome.ruling.meaning)
                self.coalescer.again(due, now + wait)
            case Request.HOLD | Request.RENEW_TOKEN:
                wait = self._hold(now, str(outcome), outcome.retry_after or HOLD, outcome.ruling.meaning)
                self.coalescer.again(due, now + wait)

    def _answered(self, push: Push, outcome: Outcome, latency: float) -> None:
        """The push service works: one line for the push."""
        if self.gate.answered():
            log.warning("pushes go again %s", fields(waiting=len(self.coalescer)))
        facts = fields(
            user=push.device.username,
            mailboxes=",".join(push.mailboxes),
            device=push.device.masked,
            status=outcome.status,
            reason=outcome.reason,
            meaning=outcome.ruling.meaning or None,
            apns_id=outcome.apns_id,
            latency=f"{latency * 1000:.1f}ms",
        )
        log.log(logging.INFO if outcome.ruling.request is Request.DONE else logging.WARNING, "push %s", facts)

    def _hold(self, now: float, why: str, seconds: float, meaning: str = "") -> float:
        """Close the gate until the admin has mended something; told when it begins."""
        told = self.gate.why
        wait = self.gate.hold(now, why, seconds)
        if told != why:
            self._tell_closed(wait, why, meaning, logging.CRITICAL)
        return wait

    def _tell_closed(self, wait: float, why: str, meaning: str, level: int = logging.ERROR) -> None:
        facts = fields(why=why, meaning=meaning or None, waiting=len(self.coalescer), retry_in=f"{wait:.0f}s")
        log.log(level, "pushes wait %s", facts)

    def _refused(self, device_id: int) -> float:
        """Seconds for which a device rests after its n-th 429 in a row."""
        times = self._refusals[device_id] = self._refusals.get(device_id, 0) + 1
        return min(LONGEST_REFUSED_BACKOFF, REFUSED_BACKOFF * 2.0 ** min(times - 1, 10))

    def _registration_changes(self, device: Device, outcome: Outcome) -> bool:
        """Note what the answer means for the registration; False if it speaks against all of them instead."""
        match outcome.ruling.registration:
            case Registration.ACCEPTED:
                self._suspicion.accepted()
                self._note(device, outcome, accepted_at=int(self._time() * 1000))
            case Registration.REMOVE:
                self._gone(device, outcome)
            case Registration.SUSPEND if outcome.reason != "BadDeviceToken":
                self._note(device, outcome, suspend=str(outcome))
            case Registration.SUSPEND:
                if not self._suspicion.falls_on(device):
                    for innocent in self._suspicion.acquitted():
                        self._note(innocent, outcome, resume=True)
                    return False
                self._note(device, outcome, suspend=str(outcome))
            case Registration.KEEP:
                self._note(device, outcome)
        return True

    def _gone(self, device: Device, outcome: Outcome) -> None:
        """Apple says that the token has not been valid since `outcome.timestamp`."""
        if outcome.timestamp is None:
            # Nobody knows whether the phone registered again since: keep what it recorded.
            self._note(device, outcome, suspend=str(outcome))
        elif outcome.timestamp < device.registered_at:
            self._note(device, outcome)  # it has registered again since
        else:
            self.coalescer.forget(device.id)
            self._note(device, outcome, remove=True)
            log.warning("registration removed %s", fields(user=device.username, device=device.masked))

    def _note(
        self,
        device: Device,
        outcome: Outcome,
        *,
        accepted_at: int | None = None,
        suspend: str | None = None,
        resume: bool = False,
        remove: bool = False,
    ) -> None:
        self.registrar.note(
            Note(device.id, str(outcome), device.registered_at, accepted_at, suspend, resume=resume, remove=remove)
        )


@dataclass(frozen=True, slots=True)
class _Unresolved:
    """Mail in a mailbox whose devices could not be looked up."""

    since: float  # unix time
    noticed: float  # monotonic
    delay: float  # seconds
