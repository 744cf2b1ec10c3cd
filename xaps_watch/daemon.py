"""The daemon's life: start and stop in order, signals, reload, and what systemd is told."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import sdnotify

from xaps_watch import config as configuration
from xaps_watch import logs
from xaps_watch.apns import Apns
from xaps_watch.config import Config
from xaps_watch.credentials import Credentials, CredentialsError
from xaps_watch.keeper import Keeper
from xaps_watch.logs import fields
from xaps_watch.model import ConfigError
from xaps_watch.service import Service
from xaps_watch.snapshot import StatusServer, summary

if TYPE_CHECKING:
    from xaps_watch.metrics import MetricsServer

log = logging.getLogger(__name__)

STEP = 2.0  # seconds between two looks at what is due now and then
COLLECT_AFTER = (20_000, 50, 100)  # objects, and collections of the younger ones: Python's 700 cost 7 % of each push
STOP_GRACE = 4.0  # seconds for what is pending at the stop


class Daemon:
    """Everything that runs between READY=1 and STOPPING=1."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.keeper = Keeper(config, time=time.time, monotonic=time.monotonic)
        self.service = Service(config)
        self._status = StatusServer(config.status.socket, self.service, self.keeper)
        self._metrics = _metrics_server(config, self.service, self.keeper)
        self._systemd = sdnotify.SystemdNotifier()
        self._apns: Apns | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._stop = False
        self._reload = False
        self._told: str | None = None

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises XapsError if the start fails."""
        loop = asyncio.get_running_loop()
        for number, handler in self._signals().items():
            loop.add_signal_handler(number, handler)
        try:
            self._starting = asyncio.create_task(self._start())
            await asyncio.wait([self._starting])
            if not self._starting.cancelled():
                self._starting.result()
                await self._work()
            log.info("stopping %s", fields(pending=len(self.service.coalescer)))
            self._tell("STOPPING=1")
        finally:
            for number in self._signals():
                loop.remove_signal_handler(number)
        await self._shut_down()

    async def _work(self) -> None:
        """From READY=1 until it is asked to stop."""
        # What is there now stays: the garbage collector need not go through all mailboxes again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)
        log.info("ready %s", fields(**summary(self.service, self.keeper)))
        self._tell("READY=1")
        while not self._stop:
            await self.service.registrar.wait(STEP)
            try:
                await self._step()
            except Exception:
                # A fault of this program must not end it. If it stays, the watchdog goes hungry, and restarts it.
                log.exception("a step failed by a fault of this program, please report it")

    def _signals(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGTERM: self._asked_to_stop,
            signal.SIGINT: self._asked_to_stop,
            signal.SIGHUP: self._asked_to_reload,
        }

    def _asked_to_stop(self) -> None:
        self._stop = True
        if self._starting is not None:
            self._starting.cancel()  # to catch up may take its time; what is left of it is found at the next start
        self.service.registrar.wake()

    def _asked_to_reload(self) -> None:
        self._reload = True
        self.service.registrar.wake()

    async def _start(self) -> None:
        credentials = self.keeper.start()
        await self.service.start()
        if credentials is not None:
            await self._take_up(credentials)
        elif not self.keeper.named:
            await self.service.use(None, ())  # while others are only to be renewed, phones are told their topic still
        await self._status.start()
        if self._metrics is not None:
            await self._metrics.start()

    async def _step(self) -> None:
        if self._reload:
            self._reload = False
            await self._reread()
        elif (renewed := self.keeper.renewed()) is not None:
            await self._take_up(renewed)
        self.keeper.warn()
        await self.service.step()
        # Fed only here, by real progress of the loop and of the thread at the registry.
        self._systemd.notify("WATCHDOG=1")
        self._tell(f"STATUS={fields(**summary(self.service, self.keeper))}")

    async def _reread(self) -> None:
        """SIGHUP: read the configuration and the credentials again; what can't be used changes nothing."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = configuration.load(self.config.source)
        except ConfigError as error:
            log.error("configuration not reloaded %s", fields(why=error))
        else:
            if (config.registry, config.watch, config.status, config.metrics, config.push.sync_changes) != (
                self.config.registry, self.config.watch, self.config.status, self.config.metrics,
                self.config.push.sync_changes,
            ):  # fmt: skip
                log.warning("some changes need a restart %s", fields(sections="registry, watch, status, metrics, push"))
            self.config = config
            self.service.reconfigure(config.apns, config.push)
            if (renewed := self.keeper.configure(config)) is not None:
                await self._take_up(renewed)
            log.info("configuration reloaded")
        self._tell("READY=1")

    async def _take_up(self, credentials: Credentials) -> None:
        """Push with these from now on, and let the plugin tell their topic to the phones; if they can't be used after
        all, go on as before."""
        apns = self.config.apns
        try:
            pusher = Apns(
                apns.push_url,
                credentials,
                ca_file=apns.ca_file,
                time=time.time,
                priority=apns.priority,
                timeout=apns.timeout,
                transport=apns.transport,
            )
        except CredentialsError as error:
            self.keeper.refuse(error)
            return
        self.keeper.use(credentials)
        before, self._apns = self._apns, pusher
        pusher.connect()
        await self.service.use(pusher, credentials.topics)
        if before is not None:
            # What is in flight on the old connection may still be answered.
            task = asyncio.create_task(before.aclose())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _shut_down(self) -> None:
        if self._metrics is not None:
            await self._metrics.stop()
        await self._status.stop()
        await self.service.stop(STOP_GRACE)
        if self._apns is not None:
            await self._apns.aclose()
        for task in self._retiring:
            task.cancel()
        log.info("stopped")

    def _tell(self, state: str) -> None:
        """Tell systemd (sd_notify(3)) what is new."""
        if state != self._told:
            self._systemd.notify(state)
            self._told = state


def _metrics_server(config: Config, service: Service, keeper: Keeper) -> MetricsServer | None:
    """Where one is configured. Raises ConfigError where what it needs isn't installed."""
    if config.metrics.address is None:
        return None
    try:
        from xaps_watch.metrics import MetricsServer
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{config.source}: [metrics] listen needs the Python module {error.name}, which is not installed:"
            f" {sys.executable} -m pip install prometheus-client, or leave listen out"
        ) from error
    return MetricsServer(*config.metrics.address, service, keeper)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(config: Config, arguments: argparse.Namespace) -> int:
    """``xaps-watch run``: the daemon in the foreground, until it is stopped. Raises XapsError if it can't start."""
    logs.set_up(verbose=arguments.verbose)
    os.umask(0o007)  # the registry belongs to the group; nothing is for others
    daemon = Daemon(config)
    asyncio.run(daemon.run())
    return 0
