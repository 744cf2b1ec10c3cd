"""``[metrics] listen``: the daemon's figures for Prometheus.

The listener lives in the daemon's event loop, which is where the figures change: they are read in one go, without an
await between, so no scrape sees half of a change, and no lock or second thread is needed. Only the registry is asked
in its own thread, before that. prometheus_client (an extra, imported only where metrics are configured) writes the
text: Prometheus' own, or OpenMetrics where the scraper asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from xaps_watch import __version__
from xaps_watch.coalesce import NEVER
from xaps_watch.keeper import Keeper
from xaps_watch.logs import fields
from xaps_watch.registry import Census
from xaps_watch.service import LATENCY_BOUNDS, Service
from xaps_watch.snapshot import census, troubles

log = logging.getLogger(__name__)

LARGEST_REQUEST = 16 * 1024  # bytes of its head
PATIENCE = 10.0  # seconds to wait for a request, and for its answer to be taken


class Figures(Collector):
    """What the live objects hold, as Prometheus takes it. To be collected in their event loop."""

    def __init__(self, service: Service, keeper: Keeper) -> None:
        self.registered: Census | None = None  # None: the registry doesn't tell
        self._service = service
        self._keeper = keeper

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("xaps_watch_build", "The program that runs.", {"version": __version__})
        yield from self._pushes()
        yield from self._mailboxes()
        yield from self._registrations()
        yield from self._credentials()
        yield GaugeMetricFamily(
            "xaps_watch_troubles", "How many things are wrong now, as xaps-watch status shows them.",
            len(troubles(self._service, self._keeper)),
        )  # fmt: skip

    def _pushes(self) -> Iterator[Metric]:
        service, activity = self._service, self._service.activity
        yield CounterMetricFamily(
            "xaps_watch_deliveries", "Mailboxes in which mail was noticed, once for each time.", activity.deliveries
        )
        pushes = CounterMetricFamily(
            "xaps_watch_pushes", "Requests to Apple, by the answer; no status: there was none.",
            labels=("status", "reason"),
        )  # fmt: skip
        for answer, count in {"200": 0, **activity.pushes}.items():
            status, _, reason = answer.partition(" ")
            pushes.add_metric((status, reason) if status.isdecimal() else ("", answer), count)
        yield pushes
        yield self._latency()
        for name, help, value in (
            ("pending", "Devices to which a push waits.", len(service.coalescer)),
            ("in_flight", "Pushes that Apple has not answered yet.", service.gate.in_flight),
            ("failing", "Failures in a row for which all pushes wait; 0 while they go.", service.gate.failures),
            ("last_accepted_timestamp_seconds", "When Apple last accepted a push.", activity.last_push_at or 0),
            ("caught_up_timestamp_seconds", "All mail delivered before was pushed.", service.caught_up_to()),
        ):
            yield GaugeMetricFamily(f"xaps_watch_pushes_{name}", help, value)

    def _latency(self) -> Metric:
        activity = self._service.activity
        buckets, accepted = [], 0
        for bound in LATENCY_BOUNDS:
            accepted += activity.latencies[bound]
            buckets.append(("+Inf" if bound == NEVER else str(bound), accepted))
        return HistogramMetricFamily(
            "xaps_watch_push_latency_seconds",
            "From the notice of mail to Apple's 200; the wait for min_interval is part of it.",
            buckets,
            activity.latency_sum,
        )

    def _mailboxes(self) -> Iterator[Metric]:
        watcher = self._service.watcher.status()
        mailboxes = GaugeMetricFamily(
            "xaps_watch_mailboxes",
            "Registered mailboxes: watched by inotify, polled where it can't, missing on the disk.",
            labels=("state",),
        )
        for state in ("watched", "polled", "missing"):
            mailboxes.add_metric((state,), getattr(watcher, state))
        yield mailboxes
        yield GaugeMetricFamily("xaps_watch_mailboxes_unscanned", "Mailboxes to be looked at.", watcher.waiting)
        for name, help, count in (
            ("inotify_events", "Events read from the kernel.", watcher.events),
            ("inotify_overflows", "Times that the kernel dropped events; all mailboxes are scanned then.",
             watcher.overflows),
            ("scans", "Looks into a mailbox for mail that no event told of.", watcher.looks),
        ):  # fmt: skip
            yield CounterMetricFamily(f"xaps_watch_{name}", help, count)

    def _registrations(self) -> Iterator[Metric]:
        trouble = self._service.registrar.trouble
        yield GaugeMetricFamily("xaps_watch_registry_usable", "Whether the registry can be used.", int(trouble is None))
        if self.registered is not None:
            for name in ("devices", "suspended", "users"):
                help = f"Registered {name}." if name != "suspended" else "Registered devices that are not pushed to."
                yield GaugeMetricFamily(f"xaps_watch_registered_{name}", help, getattr(self.registered, name))

    def _credentials(self) -> Iterator[Metric]:
        current = self._keeper.current
        yield GaugeMetricFamily(
            "xaps_watch_credentials_loaded", "Whether there is anything to push with.", int(current is not None)
        )
        if current is not None and current.expires_at is not None:
            yield GaugeMetricFamily(
                "xaps_watch_credentials_expiry_timestamp_seconds", "When the push certificate ends.",
                current.expires_at.timestamp(),
            )  # fmt: skip


class MetricsServer:
    """A little HTTP/1.1 server that knows GET /metrics alone."""

    def __init__(self, host: str, port: int, service: Service, keeper: Keeper) -> None:
        self._host, self._port = host, port
        self._service = service
        self._figures = Figures(service, keeper)
        self._registry = CollectorRegistry()
        self._registry.register(self._figures)
        ProcessCollector(registry=self._registry)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen. Where that fails the daemon runs all the same: pushes matter more than figures about them."""
        try:
            self._server = await asyncio.start_server(self._answer, self._host, self._port, limit=LARGEST_REQUEST)
        except OSError as error:
            log.error("no metrics %s", fields(listen=f"{self._host}:{self._port}", error=error.strerror or error))
        else:
            log.info("metrics %s", fields(listen=f"{self._host}:{self._port}"))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._connections:
                writer.transport.abort()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with suppress(OSError, EOFError, asyncio.TimeoutError, asyncio.LimitOverrunError):  # the scraper has gone
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
                writer.write(await self._response(head))
                await asyncio.wait_for(writer.drain(), PATIENCE)
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _response(self, head: bytes) -> bytes:
        request, *lines = head.decode("latin-1").split("\r\n")
        method, _, target = request.partition(" ")
        target, _, protocol = target.rpartition(" ")
        if not protocol.startswith("HTTP/1."):
            return _http("400 Bad Request", b"this is HTTP/1.1\n")
        if target.partition("?")[0] != "/metrics":
            return _http("404 Not Found", b"see /metrics\n")
        if method != "GET":
            return _http("405 Method Not Allowed", b"GET alone\n", "Allow: GET")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        encode, content_type = choose_encoder(headers.get("accept", ""))
        self._figures.registered = await census(self._service)
        return _http("200 OK", encode(self._registry), f"Content-Type: {content_type}")


def _http(status: str, body: bytes, header: str = "Content-Type: text/plain; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + body
