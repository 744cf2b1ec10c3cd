"""What the running daemon does now: in a line for systemd, and whole, as JSON on a Unix socket (read by status.py)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xaps_watch import __version__
from xaps_watch.apns import ruling
from xaps_watch.coalesce import NEVER
from xaps_watch.keeper import WARN_DAYS, Keeper
from xaps_watch.logs import fields
from xaps_watch.registry import Census, RegistryError
from xaps_watch.service import LATENCY_BOUNDS, Service

log = logging.getLogger(__name__)

CENSUS_PATIENCE = 2.0  # seconds to wait for the registry's thread, which may have a long look at the paths to do


def summary(service: Service, keeper: Keeper) -> dict[str, object]:
    """In a few facts, for systemctl status and the log."""
    watcher = service.watcher.status()
    return {
        "state": state(service, keeper),
        "mailboxes": len(service.watcher.paths),
        "polled": watcher.polled or None,
        "missing": watcher.missing or None,
        "pending": len(service.coalescer) or None,
        "accepted": service.activity.pushes["200"],
        "registry": service.registrar.trouble,
    }


def state(service: Service, keeper: Keeper) -> str:
    """What the push line does, in a word or a sentence."""
    if keeper.current is None:
        return f"waiting for credentials: {keeper.problem}"
    if service.gate.why is not None:
        return f"waiting to push: {service.gate.why}"
    return "pushing"


def troubles(service: Service, keeper: Keeper) -> list[str]:
    """What is wrong now, for as long as it is: each a sentence that says where to look."""
    watcher = service.watcher.status()
    found = []
    if keeper.problem is not None:
        found.append(keeper.problem if keeper.current is None else f"not taken up: {keeper.problem}")
    left = keeper.days_left()
    if left is not None and left <= WARN_DAYS[0]:
        when = f"expires in {left:.0f} days" if left > 0 else "has expired"
        found.append(f"the push certificate {when}: get a new one from Apple")
    if service.gate.why is not None:
        found.append(f"pushes wait: {service.gate.why}{_meaning(service.gate.why)}")
    if service.registrar.trouble is not None:
        found.append(f"registry: {service.registrar.trouble}")
    if watcher.missing == watcher.mailboxes > 0:
        found.append("no registered mailbox can be watched: see xaps-watch check")
    return found


def _meaning(answer: str) -> str:
    """What an answer of Apple's means, in brackets; nothing for the other things that pushes may wait for."""
    status, _, reason = answer.partition(" ")
    meaning = ruling(int(status), reason).meaning if status.isdecimal() else ""
    return f" ({meaning})" if meaning else ""


async def census(service: Service) -> Census | None:
    """How many are registered; None while the registry doesn't tell."""
    try:
        return await asyncio.wait_for(service.registrar.in_store(lambda store: store.census()), CENSUS_PATIENCE)
    except (RegistryError, asyncio.TimeoutError):
        return None


async def snapshot(service: Service, keeper: Keeper, started_at: float) -> dict[str, Any]:
    """Everything that is known, as JSON takes it. Times are unix times in seconds."""
    registered = await census(service)
    activity = service.activity
    now = time.monotonic()
    opens_at = service.gate.opens_at(now)
    current = keeper.current
    return {
        "state": state(service, keeper),
        "troubles": troubles(service, keeper),
        "version": __version__,
        "pid": os.getpid(),
        "started_at": started_at,
        "connection": {
            "url": service.config.apns.push_url,
            "in_flight": service.gate.in_flight,
            "failures_in_a_row": service.gate.failures,
            "why_waiting": service.gate.why,
            "retry_in": None if opens_at is None else opens_at - now,
        },
        "credentials": {
            "kind": current.kind if current else None,
            "file": str(current.source) if current else None,
            "topic": current.topic if current else None,
            "days_left": keeper.days_left(),
            "problem": keeper.problem,
        },
        "watcher": asdict(service.watcher.status()),
        "registry": {
            "path": str(service.config.registry.path),
            "trouble": service.registrar.trouble,
            "registered": asdict(registered) if registered else None,
        },
        "pending": len(service.coalescer),
        "caught_up_to": service.caught_up_to(),
        "deliveries": activity.deliveries,
        "last_push_at": activity.last_push_at,
        "outcomes": dict(activity.pushes),
        "latencies": [
            {"within": None if bound == NEVER else bound, "pushes": activity.latencies[bound]}
            for bound in LATENCY_BOUNDS
        ],
    }


class StatusServer:
    """Answers each connection to the socket with one snapshot."""

    def __init__(self, path: Path, service: Service, keeper: Keeper) -> None:
        self._path = path
        self._service = service
        self._keeper = keeper
        self._started_at = time.time()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen. Without the socket's directory (there is none outside systemd) the daemon runs all the same."""
        try:
            # One that a killed daemon left behind is in the way.
            self._path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._answer, self._path)
            self._path.chmod(0o660)
        except OSError as error:
            log.warning("xaps-watch status will not work %s", fields(socket=self._path, error=error.strerror or error))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._path.unlink(missing_ok=True)

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # the asker has gone
            content = await snapshot(self._service, self._keeper, self._started_at)
            writer.write(json.dumps(content).encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()

