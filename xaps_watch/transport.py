"""An httpx transport for one job: many small requests to one server, at once, on one connection for hours or days.

httpx's own transport takes 2 ms of CPU a request; this one a tenth or less, and says more when something fails:
`NotProcessed` where the server surely did nothing with the request. It speaks HTTP/2 over TLS and nothing else.
`httpx.AsyncHTTPTransport(http2=True)` can take its place anywhere.
"""

from __future__ import annotations

import asyncio
import math
import os
import ssl
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import cast

import anyio
import httpx

from xaps_watch import header_coding, http2

PING_AFTER = 3600.0  # seconds of silence after which a PING asks whether the connection lives. Apple: an hour
DOUBT_AFTER = 60.0  # seconds of silence after which a request is accompanied by a PING, so a dead one is noticed soon
PING_TIMEOUT = 10.0  # seconds for the answer to a PING
GOODBYE_TIMEOUT = 1.0  # seconds, when we close: for a connection to come about, and for the server to close its side
MAX_UNWRITTEN = 1 << 20  # bytes that a server may make us owe it without reading them

_CONNECTION_HEADERS = frozenset(  # of HTTP/1.1; HTTP/2 forbids them (RFC 9113, 8.2.2)
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_ROOM = 0.000_5  # seconds: timers may fire early by the clock's resolution


class NotProcessed(httpx.RemoteProtocolError):
    """The server surely did nothing with the request (REFUSED_STREAM, or above GOAWAY's last stream): it may go again.

    After every other error it may have been processed, or not."""


class PushTransport(httpx.AsyncBaseTransport):
    """Sends all requests to one origin over one HTTP/2 connection, made at the first request and again after a loss.

    Timeouts are httpx's: ``connect``; ``pool`` is the wait for the connection to admit one more stream; ``read`` runs
    from the sending of a request to the end of its response. Errors are httpx's too: ConnectError and ConnectTimeout;
    PoolTimeout; ReadTimeout; ReadError when the connection is cut; RemoteProtocolError when the server resets the
    request or violates HTTP/2, or `NotProcessed`. A request that was not yet sent outlives the end of a connection."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        *,
        ping_after: float = PING_AFTER,
        doubt_after: float = DOUBT_AFTER,
        ping_timeout: float = PING_TIMEOUT,
    ) -> None:
        """`tls` has the client certificate, if any; ALPN is set to h2 here."""
        tls.set_alpn_protocols(["h2"])
        self._tls = tls
        self.ping_after, self.doubt_after, self.ping_timeout = ping_after, doubt_after, ping_timeout
        self.connections_made = 0
        self._origin: tuple[str, int] | None = None
        self._connection: _Connection | None = None  # that takes new requests
        self._connections: set[_Connection] = set()  # and those that only finish theirs
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: deque[_Exchange] = deque()  # not yet sent
        self._exchanges: set[_Exchange] = set()  # all that are not answered
        self._timer: asyncio.TimerHandle | None = None  # for the earliest deadline among them
        self._closed = False

    # Sending a request

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends the request and waits for its response. Cancelled, it resets the stream."""
        if self._closed:
            raise httpx.LocalProtocolError("the transport is closed", request=request)
        self._check_origin(request)
        try:
            block = _encode(request)
        except header_coding.HeaderError as error:
            raise httpx.LocalProtocolError(str(error), request=request) from None
        timeouts = request.extensions.get("timeout", {})
        exchange = _Exchange(block, await _body(request), timeouts)
        self._exchanges.add(exchange)
        self._submit(exchange)
        try:
            answer = await exchange.answer
        except asyncio.CancelledError:
            self._abandon(exchange)
            raise
        except httpx.TransportError as error:
            error.request = request
            raise
        finally:
            self._exchanges.discard(exchange)
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=httpx.ByteStream(answer.body),
            extensions={"http_version": b"HTTP/2"},
            request=request,
        )

    def _check_origin(self, request: httpx.Request) -> None:
        url = request.url
        origin = (url.host, url.port or 443)
        if origin == self._origin:
            return
        if url.scheme != "https":
            raise httpx.UnsupportedProtocol(f"{url.scheme}: only https is spoken here", request=request)
        if self._origin is not None:
            raise httpx.UnsupportedProtocol(f"a transport for {self._origin[0]} only, not {url.host}", request=request)
        self._origin = origin

    def _submit(self, exchange: _Exchange) -> None:
        loop = asyncio.get_running_loop()
        exchange.deadline = loop.time() + exchange.patience("pool")
        self._waiting.append(exchange)
        if self._connection is not None:
            self._connection.submitted()
        else:
            self._connect_if_needed()
        self._watch(exchange.deadline)

    # Connecting

    def connect(self, url: httpx.URL, patience: float) -> None:
        """Begin to connect, for `patience` seconds, so that the first request needs not wait for it.

        A failure is told to nobody: the first request will meet with it."""
        self._origin = url.host, url.port or 443
        self._begin_to_connect(patience)

    def _connect_if_needed(self) -> None:
        if self._waiting:
            self._begin_to_connect(self._waiting[0].patience("connect"))

    def _begin_to_connect(self, patience: float) -> None:
        if self._connection is None and self._connecting is None and not self._closed:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(patience))

    async def _connect(self, patience: float) -> None:
        assert self._origin is not None
        host, port = self._origin
        connecting = asyncio.get_running_loop().create_connection(
            lambda: _Connection(self), host, port, ssl=self._tls, happy_eyeballs_delay=0.25
        )
        try:
            await asyncio.wait_for(connecting, patience if patience < math.inf else None)
        except asyncio.TimeoutError:
            self._fail_waiting(httpx.ConnectTimeout, f"no connection to {host}:{port} after {patience:g} s")
        except OSError as error:
            self._fail_waiting(httpx.ConnectError, f"can't connect to {host}:{port}: {_reason(error)}")
        finally:
            self._connecting = None
        self._connect_if_needed()  # it may have ended again already

    def _fail_waiting(self, kind: type[httpx.TransportError], message: str) -> None:
        for exchange in self._waiting:
            exchange.fail(kind(message))
        self._waiting.clear()

    def _connected(self, connection: _Connection) -> None:
        self.connections_made += 1
        self._connections.add(connection)
        self._connection = connection
        connection.pump()

    def _unusable(self, connection: _Connection, reason: str) -> None:
        """The connection takes no more requests. Those that wait get another one, unless this one was of no use at all:
        then the next wouldn't be either, and each that waits would cost a connection."""
        if self._connection is connection:
            self._connection = None
            if not connection.answered:
                self._fail_waiting(NotProcessed, reason)
            self._connect_if_needed()

    # Deadlines: one timer for all requests, at the earliest; most are answered long before

    def _watch(self, deadline: float) -> None:
        if deadline == math.inf:
            return
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time() + _ROOM
        for exchange in [exchange for exchange in self._exchanges if exchange.deadline <= now]:
            connection = exchange.connection
            if connection is None:
                exchange.fail(httpx.PoolTimeout(f"not sent within {exchange.patience('pool'):g} s"))
                self._waiting.remove(exchange)
            else:
                patience = exchange.patience("read")
                exchange.fail(httpx.ReadTimeout(f"no answer within {patience:g} s"))
                connection.give_up(exchange, exchange.deadline - patience)
            self._exchanges.discard(exchange)
        self._watch(min((exchange.deadline for exchange in self._exchanges), default=math.inf))

    def _abandon(self, exchange: _Exchange) -> None:
        if exchange.connection is not None:
            exchange.connection.give_up(exchange, -math.inf)
        elif exchange in self._waiting:
            self._waiting.remove(exchange)

    # Closing

    async def aclose(self) -> None:
        """Closes the connection. Requests that are under way fail with ReadError."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        reason = "the transport was closed"
        self._fail_waiting(httpx.ReadError, reason)
        if self._connecting is not None:
            # Not cancelled at once: for a moment after the connect, and for one before the TLS handshake, asyncio
            # would lose sight of the socket.
            connecting = self._connecting
            await asyncio.wait([connecting], timeout=GOODBYE_TIMEOUT)
            connecting.cancel()
            await asyncio.wait([connecting])
        connections = list(self._connections)
        for connection in connections:
            connection.close(reason)
        if connections:
            _, open_still = await asyncio.wait([connection.lost for connection in connections], timeout=GOODBYE_TIMEOUT)
            for connection in connections:
                if connection.lost in open_still:
                    connection.abort()


class _Exchange:
    """One request, until it is answered."""

    __slots__ = ("answer", "block", "body", "connection", "deadline", "stream", "timeouts")

    def __init__(self, block: bytes, body: bytes, timeouts: dict[str, float | None]) -> None:
        self.block, self.body, self.timeouts = block, body, timeouts
        self.deadline = math.inf  # by the loop's clock
        self.connection: _Connection | None = None  # once sent
        self.stream = 0
        self.answer: asyncio.Future[http2.Answered] = asyncio.get_running_loop().create_future()

    def patience(self, kind: str) -> float:
        """httpx's timeout of this kind, in seconds."""
        seconds = self.timeouts.get(kind)
        return math.inf if seconds is None else seconds

    def fail(self, error: httpx.TransportError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Connection(asyncio.Protocol):
    """One connection: the bytes between the TLS socket and `http2.ClientConnection`."""

    def __init__(self, transport: PushTransport) -> None:
        self.answered = False  # anything, ever
        self._owner = transport
        self._http2 = http2.ClientConnection()
        self._exchanges: dict[int, _Exchange] = {}  # by stream
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._socket: asyncio.Transport
        self._heard = self._loop.time()  # when something last came
        self._pinged: float | None = None  # when the PING was sent that is not answered
        self._pulse: asyncio.TimerHandle | None = None
        self._pumping = False
        self._paused = False  # the socket takes no more for now
        self._finished = False
        self._gone = "the server closed the connection"

    # Connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            self._owner._fail_waiting(httpx.ConnectError, "the server doesn't speak HTTP/2 (no ALPN h2)")
            self._socket.abort()
            return
        self._heard = self._loop.time()
        self._pulse = self._loop.call_later(self._owner.ping_after, self._check)
        self._owner._connected(self)

    # Sending requests

    def submitted(self) -> None:
        """A request waits: the first one goes at once, those that come while others are under way together."""
        if self._exchanges:
            self.pump_soon()
        else:
            self.pump()

    def pump_soon(self) -> None:
        """At the end of this turn of the loop, so that all requests of a turn are one write."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Sends what waits, as far as the server and the socket admit it."""
        self._pumping = False
        waiting, connection = self._owner._waiting, self._http2
        if waiting and self._owner._connection is self:
            now = self._loop.time()
            if now - self._heard > self._owner.doubt_after:
                self.ping()
            while waiting and connection.can_open and not self._paused:
                exchange = waiting.popleft()
                if exchange.answer.done():
                    continue
                exchange.connection = self
                exchange.stream = connection.open(exchange.block, exchange.body)
                self._exchanges[exchange.stream] = exchange
                exchange.deadline = now + exchange.patience("read")
                self._owner._watch(exchange.deadline)
        self._write()

    def give_up(self, exchange: _Exchange, silent_since: float) -> None:
        """Nobody waits for this answer any more. A connection on which nothing at all came since then is dead."""
        if self._heard < silent_since:
            self._finish(httpx.ReadError, "the server fell silent")
            self._socket.abort()
        elif self._exchanges.pop(exchange.stream, None) is not None:
            self._http2.reset(exchange.stream)
            self.pump_soon()
            self._close_if_done()

    def _write(self) -> None:
        data = self._http2.take()
        if data and not self._finished:
            self._socket.write(data)
            if self._socket.get_write_buffer_size() > MAX_UNWRITTEN:
                self._finish(httpx.RemoteProtocolError, "the server doesn't read what it asks for")
                self._socket.abort()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.pump_soon()

    # Receiving responses

    def data_received(self, data: bytes) -> None:
        if self._finished:
            return
        self._heard = self._loop.time()
        for event in self._http2.receive(data):
            if isinstance(event, http2.Answered):
                self.answered = True
                exchange = self._exchanges.pop(event.stream)
                if not exchange.answer.done():
                    exchange.answer.set_result(event)
            elif isinstance(event, http2.Failed):
                kind = NotProcessed if event.unprocessed else httpx.RemoteProtocolError
                self._exchanges.pop(event.stream).fail(kind(event.message))
            elif isinstance(event, http2.GoneAway):
                said = event.debug[:200].decode("utf-8", "backslashreplace")
                self._gone = f"the server said GOAWAY: {http2.error_name(event.code)} {said}".rstrip()
            elif isinstance(event, http2.Ponged):
                self._pinged = None
                self._check_at(self._heard + self._owner.ping_after)
            else:
                self._write()  # our GOAWAY says why
                self._finish(httpx.RemoteProtocolError, f"the server violated HTTP/2: {event.message}")
                self._socket.close()
                return
        self.pump()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._http2.gone_away:
            self._owner._unusable(self, self._gone)
            if not self._exchanges:
                self._finish(httpx.RemoteProtocolError, self._gone)
                self._socket.close()

    # Is it still alive?

    def ping(self) -> None:
        if self._pinged is None and not self._finished:
            self._pinged = self._loop.time()
            self._http2.ping(os.urandom(8))
            self._write()
            self._check_at(self._pinged + self._owner.ping_timeout)

    def _check(self) -> None:
        now = self._loop.time() + _ROOM
        if self._pinged is not None:
            due = self._pinged + self._owner.ping_timeout
            if due <= now:
                reason = f"the server didn't answer a PING within {self._owner.ping_timeout:g} s"
                self._finish(httpx.ReadError, reason)
                self._socket.abort()
                return
        else:
            due = self._heard + self._owner.ping_after
            if due <= now:
                self.ping()
                return
        self._check_at(due)

    def _check_at(self, when: float) -> None:
        if self._pulse is not None:
            self._pulse.cancel()
        self._pulse = self._loop.call_at(when, self._check)

    # The end

    def close(self, reason: str) -> None:
        """Says goodbye and closes."""
        self._http2.close()
        self._write()
        self._finish(httpx.ReadError, reason)
        self._socket.close()

    def abort(self) -> None:
        self._socket.abort()

    def eof_received(self) -> None:
        self._finish(httpx.RemoteProtocolError, self._gone)

    def connection_lost(self, error: Exception | None) -> None:
        if error is None:
            self._finish(httpx.RemoteProtocolError, self._gone)
        else:
            self._finish(httpx.ReadError, f"the connection was lost: {error}")
        self._socket.close()  # asyncio before 3.11 would miss it
        self._owner._connections.discard(self)
        if not self.lost.done():
            self.lost.set_result(None)

    def _finish(self, kind: type[httpx.TransportError], reason: str) -> None:
        """Nothing more will come. Requests without an answer fail; they may have been processed."""
        self._finished = True
        if self._pulse is not None:
            self._pulse.cancel()
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.fail(kind(reason))
        self._owner._unusable(self, reason)


def _reason(error: OSError) -> str:
    """asyncio words a refused connection "Connect call failed"; the system knows better why."""
    if isinstance(error, ssl.SSLError) or error.errno is None or error.errno <= 0:
        return error.strerror or str(error)
    return os.strerror(error.errno)


async def _body(request: httpx.Request) -> bytes:
    stream = request.stream
    if isinstance(stream, httpx.ByteStream):  # all of it is there: no need to go through the loop for it
        return b"".join(cast(Iterable[bytes], stream))
    return await request.aread()


def _encode(request: httpx.Request) -> bytes:
    """The request's header block. Raises HeaderError at a value that HTTP/2 forbids."""
    path = request.extensions.get("target") or request.url.raw_path
    return header_coding.encode([(b":path", path)]) + _encode_but_path(request.method, tuple(request.headers.raw))


@lru_cache(maxsize=64)  # all but the path is the same for many pushes
def _encode_but_path(method: str, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    authority, regular = b"", []
    for raw_name, value in headers:
        name = raw_name.lower()
        if name == b"host":  # httpx makes no request without it
            authority = value
        elif name not in _CONNECTION_HEADERS:
            regular.append((name, value))
    pseudo = [(b":method", method.encode()), (b":scheme", b"https"), (b":authority", authority)]
    return header_coding.encode(pseudo + regular)


# The fallback


class HttpxTransport(httpx.AsyncBaseTransport):
    """httpx's own, with one connection, with a deadline for the whole of each request, and a new start after trouble.

    httpx applies ``read`` to each read of the connection, so that a request that is never answered would wait for as
    long as others are. And it uses a connection again that has become silent, or on which it tripped over a lowered
    stream limit: until TCP gives up, in a quarter of an hour."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._inner = self._start()
        self._closing: set[asyncio.Task[None]] = set()

    def _start(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(
            verify=self._tls,
            http1=False,
            http2=True,
            # httpx would drop an idle connection after 5 s; Apple asks to keep it.
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As `PushTransport`'s. The error of a deadline is ReadTimeout."""
        patience = request.extensions.get("timeout", {}).get("read")
        inner = self._inner
        try:
            return await asyncio.wait_for(self._whole(inner, request), patience)
        except asyncio.TimeoutError:
            self._give_up(inner)
            raise httpx.ReadTimeout(f"no answer within {patience:g} s", request=request) from None
        except (httpx.TimeoutException, httpx.ProtocolError):
            self._give_up(inner)
            raise
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            # httpx doesn't translate what its streams raise when the connection ends while they write.
            self._give_up(inner)
            raise httpx.WriteError(f"the connection was lost: {type(error).__name__}", request=request) from error

    async def _whole(self, inner: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await inner.handle_async_request(request)
        try:
            body = b"".join([chunk async for chunk in response.aiter_raw()])
        finally:
            await response.aclose()
        return httpx.Response(
            response.status_code,
            headers=response.headers.raw,
            stream=httpx.ByteStream(body),
            extensions=response.extensions,
            request=request,
        )

    def _give_up(self, inner: httpx.AsyncHTTPTransport) -> None:
        if inner is self._inner:
            self._inner = self._start()
            task = asyncio.create_task(inner.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        await self._inner.aclose()


def open_transport(name: str, tls: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    """The transport that ``[apns] transport`` names, "fast" or "httpx". Raises ValueError at any other name."""
    if name == "fast":
        return PushTransport(tls)
    if name == "httpx":
        return HttpxTransport(tls)
    raise ValueError(f"no transport is called {name!r}")
