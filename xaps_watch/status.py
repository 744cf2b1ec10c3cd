"""What the running daemon does now: told on a Unix socket, as JSON, to whoever may open it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xaps_watch.keeper import Keeper
from xaps_watch.logs import fields
from xaps_watch.model import XapsError
from xaps_watch.service import Service

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds to wait for the daemon's answer


class StatusError(XapsError):
    """The daemon can't be asked: it doesn't run, or the caller may not open its socket."""


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


def snapshot(service: Service, keeper: Keeper, started_at: float) -> dict[str, Any]:
    """Everything that is known, as JSON takes it. Times are unix times in seconds."""
    activity = service.activity
    now = time.monotonic()
    opens_at = service.gate.opens_at(now)
    current = keeper.current
    return {
        "state": state(service, keeper),
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
        "registry": {"path": str(service.config.registry.path), "trouble": service.registrar.trouble},
        "pending": len(service.coalescer),
        "caught_up_to": service.caught_up_to(),
        "deliveries": activity.deliveries,
        "last_push_at": activity.last_push_at,
        "outcomes": dict(activity.pushes),
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
            content = snapshot(self._service, self._keeper, self._started_at)
            writer.write(json.dumps(content, default=str).encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()


def ask(path: Path) -> dict[str, Any]:
    """The running daemon's snapshot. Raises StatusError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(path))
            content = b"".join(iter(lambda: connection.recv(65536), b""))
        except PermissionError as error:
            raise StatusError(f"{path}: {error.strerror}; call it as root, or join group xaps-watch") from error
        except OSError as error:
            what = error.strerror or "no answer"
            raise StatusError(f"{path}: {what}; is the service running? systemctl status xaps-watch") from error
    try:
        answer: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise StatusError(f"{path}: the answer is cut short; the service may be stopping") from error
    return answer
