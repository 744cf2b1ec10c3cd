"""A local stand-in for Apple's push service: real TLS and HTTP/2, Apple's checks, and any misbehaviour on request.

Apple's rules are those of "Sending notification requests to APNs", "Handling notification responses from APNs" and
"Establishing a token-based connection to APNs" (developer.apple.com, User Notifications).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import ssl
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import jwt
from cryptography import x509

from xaps_watch.authority import LocalAuthority, ProviderKey, PushCertificate
from xaps_watch.model import XapsError, mask_token
from xaps_watch.topics import topics_of

__all__ = [
    "Answer", "Fault", "LocalAuthority", "ProviderKey", "PushCertificate", "Received", "Simulator", "SimulatorError",
    "add_arguments", "run",
]  # fmt: skip

MAX_PAYLOAD = 4096  # bytes
MAX_COLLAPSE_ID = 64  # bytes
MAX_STREAMS = 1000  # what Apple's servers allow in practice
TOKEN_LIFETIME = 3600  # seconds from a provider token's iat; then ExpiredProviderToken
TOKEN_MIN_INTERVAL = 20 * 60  # seconds between the iat of two provider tokens; else TooManyProviderTokenUpdates
CLOCK_SKEW = 300  # seconds that a provider token's iat may lie in the future
PUSH_TYPES = frozenset((
    "alert", "background", "complication", "controls", "fileprovider", "liveactivity", "location", "mdm", "pushtotalk",
    "voip", "widgets",
))  # fmt: skip
DEFAULT_REASONS = {
    400: "BadDeviceToken",
    403: "InvalidProviderToken",
    404: "BadPath",
    405: "MethodNotAllowed",
    410: "Unregistered",
    413: "PayloadTooLarge",
    429: "TooManyRequests",
    500: "InternalServerError",
    503: "ServiceUnavailable",
}


class SimulatorError(XapsError):
    """The simulator can't do what was asked: the message says what and why."""


class Fault(NamedTuple):
    """Why Apple would refuse a request."""

    status: int
    reason: str  # as Apple calls it in the answer's body
    explanation: str


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived."""

    at: float  # time.perf_counter() when its end was read
    connection: int  # 1 is the first connection
    stream: int
    method: str
    path: str = field(repr=False)
    token: str = field(repr=False)  # the device token; empty if the path holds none
    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    payload: object  # the parsed JSON, or None
    faults: tuple[Fault, ...]  # the first is what Apple would answer


@dataclass(frozen=True, slots=True)
class Answer:
    """What the simulator does with a request.

    ``then``: "answer" it; "silence": never answer; "reset" or "refuse" its stream with INTERNAL_ERROR (it may have been
    processed) or REFUSED_STREAM (it was not); "goaway": answer, then GOAWAY, and drop what comes on later streams;
    "goaway-before": GOAWAY whose last stream lies before this one, so this one was not processed; "cut" the
    connection without an answer."""

    status: int = 200
    reason: str | None = None  # None: the usual one for the status
    timestamp: int | None = None  # ms, for 410: when the token became inactive; None: now
    retry_after: str | int | None = None
    delay: float = 0.0  # seconds before anything of it happens
    then: Literal["answer", "silence", "reset", "refuse", "goaway", "goaway-before", "cut"] = "answer"
    body: bytes | None = None  # instead of Apple's JSON


class Simulator:
    """An APNs on a local port. ``async with Simulator(LocalAuthority(directory)) as apns: … apns.url, apns.ca_file``.

    Unless told otherwise it accepts the certificates and the provider tokens of the keys that its authority made."""

    def __init__(
        self,
        authority: LocalAuthority,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        answer: Callable[[Received], Answer] | None = None,
        on_received: Callable[[Received], None] | None = None,
        on_answered: Callable[[Received, Answer], None] | None = None,
        strict: bool = True,
        max_concurrent_streams: int = MAX_STREAMS,
        provider_keys: Sequence[ProviderKey] | None = None,
        client_ca: Path | None = None,
        keep_received: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`strict`: requests with faults get Apple's refusal and `answer` isn't asked. Otherwise faults are only noted.
        `provider_keys`, `client_ca`: instead of the authority's. `clock`: unix time in seconds, for provider tokens."""
        self.authority = authority
        self.ca_file = authority.ca_file
        self.host, self.port = host, port
        self.answer = answer
        self.on_received, self.on_answered = on_received, on_answered
        self.strict = strict
        self.max_concurrent_streams = max_concurrent_streams
        self.clock = clock
        self.keep_received = keep_received
        self.received: list[Received] = []
        self.requests = 0  # received in all
        self.connections_made = 0  # in all, TLS and ALPN complete
        self.pings = 0
        self.resets: list[tuple[int, int]] = []  # (connection, stream) of each RST_STREAM from a client
        self.violations: list[str] = []  # of HTTP/2 by clients
        self._given_keys = provider_keys
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._tls = self._server_context(client_ca or authority.ca_file)

    def _server_context(self, client_ca: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.authority.server_file)
        context.set_alpn_protocols(["h2"])
        context.verify_mode = ssl.CERT_OPTIONAL  # a provider may authenticate with tokens instead
        context.load_verify_locations(client_ca)
        return context

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"

    @property
    def provider_keys(self) -> Sequence[ProviderKey]:
        return self.authority.provider_keys if self._given_keys is None else self._given_keys

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._connections)

    async def __aenter__(self) -> Simulator:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens; on the same port as before if it listened already. Raises SimulatorError if it can't."""
        await self._listen(lambda: _Connection(self), self._tls)

    resume = start

    async def stop(self) -> None:
        """Stops listening and cuts every connection. `start` begins again on the same port."""
        await self.stop_accepting()
        self.cut_all()

    async def stop_accepting(self) -> None:
        """New connections are refused by the kernel; those that are open live on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await asyncio.sleep(0)

    async def accept_silently(self) -> None:
        """New TCP connections succeed, and then nothing is ever said on them, not even TLS."""
        await self.stop_accepting()
        await self._listen(asyncio.Protocol, None)

    async def _listen(self, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None) -> None:
        await self.stop_accepting()
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(protocol, self.host, self.port, ssl=tls)
        except OSError as error:
            raise SimulatorError(f"can't listen on {self.host}:{self.port}: {error.strerror or error}") from error
        self.port = self._listener.sockets[0].getsockname()[1]

    async def wait_for(self, count: int, timeout: float = 30.0) -> list[Received]:
        """Waits until `count` requests have been received in all, and returns them. Raises TimeoutError."""
        await self.wait_until(lambda: self.requests >= count, timeout, f"{count} requests")
        return self.received[:count]

    async def wait_until(self, condition: Callable[[], bool], timeout: float = 30.0, what: str = "it") -> None:
        """Waits until `condition`, looked at whenever something happens on a connection. Raises TimeoutError."""
        if condition():
            return
        waiter = (condition, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await asyncio.wait_for(waiter[1], timeout)
        except asyncio.TimeoutError:
            got = f"{self.requests} requests, {self.connections} connections"
            raise TimeoutError(f"waited {timeout:g} s for {what}; there are {got}") from None
        finally:
            self._waiters.remove(waiter)

    # Misbehaviour

    def goaway_all(self, reason: str | None = "Shutdown") -> None:
        """GOAWAY on every connection: what was received is still answered, then the connection closes."""
        for connection in list(self._connections):
            connection.go_away(connection.last_stream, reason)

    def close_idle(self) -> None:
        """GOAWAY on, and the end of, every connection without an open request, as Apple does after long idleness."""
        for connection in list(self._connections):
            if not connection.pending:
                connection.go_away(connection.last_stream, "IdleTimeout")

    def cut_all(self) -> None:
        """Every connection ends at once, without a word."""
        for connection in list(self._connections):
            connection.cut()

    def freeze(self) -> None:
        """Every open connection stays open, but nothing is read or sent, as if the network swallowed all."""
        for connection in list(self._connections):
            connection.freeze()

    def thaw(self) -> None:
        for connection in list(self._connections):
            connection.thaw()

    def limit_streams(self, count: int) -> None:
        """Changes SETTINGS_MAX_CONCURRENT_STREAMS, also on open connections."""
        self.max_concurrent_streams = count
        for connection in list(self._connections):
            connection.limit_streams(count)

    # From the connections

    def _connected(self, connection: _Connection) -> None:
        self._connections.add(connection)
        self.connections_made += 1
        connection.number = self.connections_made
        self._notify()

    def _disconnected(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._notify()

    def _take(self, received: Received) -> Answer:
        """Decides on the answer, and remembers the request."""
        self.requests += 1
        if self.keep_received:
            self.received.append(received)
        if received.faults and self.strict:
            status, reason, _ = received.faults[0]
            decided = Answer(status, reason)
        else:
            decided = self.answer(received) if self.answer is not None else Answer()
        if self.on_received is not None:
            self.on_received(received)
        return decided

    def _notify(self) -> None:
        """Something happened: those who wait may look."""
        for condition, waiter in self._waiters:
            if not waiter.done() and condition():
                waiter.set_result(None)


@dataclass(slots=True)
class _Request:
    """A request that is still arriving."""

    headers: list[tuple[str, str]]
    body: bytearray = field(default_factory=bytearray)
    size: int = 0  # of the whole body; only the first part of one far too large is kept


class _Connection(asyncio.Protocol):
    """One client: TLS below, h2 for the frames."""

    def __init__(self, simulator: Simulator) -> None:
        self.number = 0
        self.last_stream = 0
        self.pending: set[int] = set()  # streams received and not answered
        self._simulator = simulator
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._requests: dict[int, _Request] = {}
        self._closing: int | None = None  # after GOAWAY: its last stream
        self._frozen = False
        self._authentication: _Authentication
        self._transport: asyncio.Transport

    # Connected, disconnected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        if tls.selected_alpn_protocol() != "h2":
            self._simulator.violations.append("the client didn't offer ALPN h2")
            self._transport.abort()
            return
        certificate = tls.getpeercert(binary_form=True)
        self._authentication = _Authentication(certificate, self._simulator.provider_keys, self._simulator.clock)
        # The limit goes into a second SETTINGS frame: the client may only be held to it once it acknowledged it.
        self._h2.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 65536}
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(2**30)
        self._simulator._connected(self)
        limit = self._simulator.max_concurrent_streams
        # "If you use token authentication, APNs allows one stream until it has seen a valid token."
        self.limit_streams(limit if self._authentication.established else min(1, limit))

    def connection_lost(self, error: Exception | None) -> None:
        self.pending.clear()
        self._transport.close()  # asyncio before 3.11 would miss it
        self._simulator._disconnected(self)

    # Receiving a request

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except (h2.exceptions.ProtocolError, ValueError) as error:
            self._simulator.violations.append(f"{type(error).__name__}: {error}")
            self._send()
            self._transport.close()
            return
        for event in events:
            self._handle(event)
        self._send()
        self._simulator._notify()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._requests[event.stream_id] = _Request(cast("list[tuple[str, str]]", event.headers))
        elif isinstance(event, h2.events.DataReceived):
            request = self._requests[event.stream_id]
            request.size += len(event.data)
            if len(request.body) <= MAX_PAYLOAD:
                request.body += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._complete(event.stream_id, self._requests.pop(event.stream_id))
        elif isinstance(event, h2.events.StreamReset):
            self._requests.pop(event.stream_id, None)
            self.pending.discard(event.stream_id)
            self._simulator.resets.append((self.number, event.stream_id))
        elif isinstance(event, h2.events.PingReceived):
            self._simulator.pings += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._transport.close()

    def _complete(self, stream: int, request: _Request) -> None:
        if self._closing is not None and stream > self._closing:
            return  # our GOAWAY said that it isn't processed
        self.last_stream = max(self.last_stream, stream)
        self.pending.add(stream)
        received = self._received(stream, request)
        answer = self._simulator._take(received)
        if answer.delay > 0:
            asyncio.get_running_loop().call_later(answer.delay, self._carry_out_late, received, answer)
        else:
            self._carry_out(received, answer)

    def _received(self, stream: int, request: _Request) -> Received:
        at = time.perf_counter()
        headers = dict(request.headers)
        body = bytes(request.body)
        path = headers.get(":path", "")
        try:
            payload = json.loads(body)
        except ValueError:
            payload = None
        established = self._authentication.established
        faults = tuple(_faults(request, headers, payload, self._authentication))
        if self._authentication.established and not established:
            self.limit_streams(self._simulator.max_concurrent_streams)
        token = path[len("/3/device/") :] if path.startswith("/3/device/") else ""
        return Received(
            at, self.number, stream, headers.get(":method", ""), path, token, headers, body, payload, faults
        )

    # Answering it

    def _carry_out_late(self, received: Received, answer: Answer) -> None:
        if self._transport.is_closing():
            return
        self._carry_out(received, answer)
        self._send()

    def _carry_out(self, received: Received, answer: Answer) -> None:
        stream = received.stream
        if stream not in self.pending:
            return  # reset by the client meanwhile
        if answer.then in ("answer", "goaway"):
            self._answer(stream, received, answer)
        elif answer.then == "reset":
            self._h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
        elif answer.then == "refuse":
            self._h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
        if answer.then != "silence":
            self.pending.discard(stream)
        if answer.then == "goaway":
            self.go_away(self.last_stream, "Shutdown")
        elif answer.then == "goaway-before":
            self.pending -= {later for later in self.pending if later >= stream}
            self.go_away(max(stream - 2, 0), "Shutdown")
        elif answer.then == "cut":
            self._send()  # what was answered before in the same turn
            self.cut()
        elif self._closing is not None and not self.pending:
            self._finish()
        if self._simulator.on_answered is not None:
            self._simulator.on_answered(received, answer)

    def _answer(self, stream: int, received: Received, answer: Answer) -> None:
        apns_id = received.headers.get("apns-id") or str(uuid.uuid4())
        headers = [(":status", str(answer.status)), ("apns-id", apns_id)]
        if answer.retry_after is not None:
            headers.append(("retry-after", str(answer.retry_after)))
        body = answer.body if answer.body is not None else _answer_body(answer, self._simulator.clock)
        if not body:
            self._h2.send_headers(stream, headers, end_stream=True)
            return
        headers.append(("content-type", "application/json"))
        self._h2.send_headers(stream, headers)
        self._h2.send_data(stream, body, end_stream=True)

    # Ending the connection, and other turns of fate

    def go_away(self, last_stream: int, reason: str | None) -> None:
        if self._closing is not None or self._transport.is_closing():
            return
        self._closing = last_stream
        # Not h2's own close_connection, which would forbid the answers that are still due.
        body = json.dumps({"reason": reason}).encode() if reason else b""
        frame = last_stream.to_bytes(4, "big") + bytes(4) + body
        head = len(frame).to_bytes(3, "big") + b"\x07\x00" + bytes(4)
        # In one TLS record with what is due before it, so that no request crosses it on its way.
        self._write(self._h2.data_to_send() + head + frame)
        if not self.pending:
            self._finish()

    def _finish(self) -> None:
        self._send()
        self._transport.close()

    def cut(self) -> None:
        self.pending.clear()
        self._transport.abort()

    def freeze(self) -> None:
        self._frozen = True
        self._transport.pause_reading()

    def thaw(self) -> None:
        if self._frozen:
            self._frozen = False
            self._transport.resume_reading()
            self._send()

    def limit_streams(self, count: int) -> None:
        self._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: count})
        self._send()

    def _send(self) -> None:
        if not self._frozen and (data := self._h2.data_to_send()):
            self._write(data)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


def _answer_body(answer: Answer, clock: Callable[[], float]) -> bytes:
    if answer.status == 200:
        return b""
    body: dict[str, object] = {"reason": answer.reason or DEFAULT_REASONS.get(answer.status, "InternalServerError")}
    if answer.status == 410:
        body["timestamp"] = answer.timestamp if answer.timestamp is not None else int(clock() * 1000)
    return json.dumps(body).encode()


# Apple's checks


class _Authentication:
    """How one connection proves who it is: by certificate, or by a provider token in each request.

    Apple counts the updates of provider tokens a connection, so a provider that restarts isn't punished."""

    def __init__(self, certificate: bytes | None, keys: Sequence[ProviderKey], clock: Callable[[], float]) -> None:
        topics = topics_of(x509.load_der_x509_certificate(certificate)) if certificate else None
        self.topics = None if topics is None else frozenset(topics)
        self._keys = keys
        self._clock = clock
        self._accepted: dict[str, float] = {}  # provider token → its iat

    @property
    def established(self) -> bool:
        """By certificate, or since a first valid provider token."""
        return self.topics is not None or bool(self._accepted)

    def faults(self, authorization: str | None) -> Iterator[Fault]:
        if self.topics is not None:
            return  # "APNs ignores this header if you use a certificate"
        if authorization is None:
            yield Fault(403, "MissingProviderToken", "no client certificate and no authorization header")
            return
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            yield Fault(403, "InvalidProviderToken", "authorization is not 'bearer <token>'")
            return
        if token not in self._accepted:
            fault = self._accept(token)
            if fault is not None:
                yield fault
                return
        age = self._clock() - self._accepted[token]
        if age > TOKEN_LIFETIME:
            yield Fault(403, "ExpiredProviderToken", f"the provider token is {age:.0f} s old, more than an hour")

    def _accept(self, token: str) -> Fault | None:
        claims = self._verified(token)
        if isinstance(claims, str):
            return Fault(403, "InvalidProviderToken", claims)
        issued = claims.get("iat")
        if not isinstance(issued, (int, float)) or isinstance(issued, bool):
            return Fault(403, "InvalidProviderToken", "the provider token has no numeric iat")
        if issued > self._clock() + CLOCK_SKEW:
            return Fault(403, "InvalidProviderToken", "the provider token's iat lies in the future")
        newest = max(self._accepted.values(), default=None)
        if newest is not None and abs(issued - newest) < TOKEN_MIN_INTERVAL:
            step = abs(issued - newest)
            return Fault(429, "TooManyProviderTokenUpdates", f"the last provider token is only {step:.0f} s older")
        self._accepted[token] = issued
        return None

    def _verified(self, token: str) -> dict[str, object] | str:
        """The token's claims, or what is wrong with it."""
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") != "ES256":
                return f"the provider token's alg is {header.get('alg')!r}, not ES256"
            if not header.get("kid"):
                return "the provider token has no kid"
            key = next((key for key in self._keys if key.key_id == header["kid"]), None)
            if key is None:
                return f"there is no key {header['kid']!r}"
            unchecked = {"verify_iat": False, "verify_exp": False, "verify_nbf": False, "verify_aud": False}
            claims: dict[str, object] = jwt.decode(token, key.public_key, algorithms=["ES256"], options=unchecked)  # type: ignore[arg-type]
        except jwt.InvalidTokenError as error:
            return f"the provider token is not valid: {error}"
        if claims.get("iss") != key.team_id:
            return f"the provider token's iss is {claims.get('iss')!r}, but key {key.key_id} is of team {key.team_id}"
        return claims


_DEVICE_TOKEN = re.compile(r"(?:[0-9a-fA-F]{2}){32,}")
_APNS_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _faults(
    request: _Request, headers: Mapping[str, str], payload: object, authentication: _Authentication
) -> Iterator[Fault]:
    """Everything that Apple would refuse, in the order of a request: method, path, who, headers, payload."""
    if headers.get(":method") != "POST":
        yield Fault(405, "MethodNotAllowed", f"the method is {headers.get(':method')}, not POST")
    yield from _path_faults(headers.get(":path", ""))
    yield from authentication.faults(headers.get("authorization"))
    yield from _topic_faults(headers.get("apns-topic"), authentication.topics)
    yield from _header_faults(headers)
    if len(headers) != len(request.headers):
        repeated = sorted({name for name, _ in request.headers if [n for n, _ in request.headers].count(name) > 1})
        yield Fault(400, "DuplicateHeaders", f"repeated: {', '.join(repeated)}")
    yield from _payload_faults(request.size, payload)


def _path_faults(path: str) -> Iterator[Fault]:
    if path in ("/3/device", "/3/device/"):
        yield Fault(400, "MissingDeviceToken", "the path ends before the device token")
    elif not path.startswith("/3/device/") or "/" in path[len("/3/device/") :]:
        yield Fault(404, "BadPath", "the path is not /3/device/<device token>")
    elif not _DEVICE_TOKEN.fullmatch(path[len("/3/device/") :]):
        yield Fault(400, "BadDeviceToken", "the device token is not an even number of at least 64 hex digits")


def _topic_faults(topic: str | None, allowed: frozenset[str] | None) -> Iterator[Fault]:
    if topic is None:
        # With a certificate for one topic, that is the default.
        if allowed is None or len(allowed) != 1:
            yield Fault(400, "MissingTopic", "no apns-topic, and no certificate for exactly one topic")
    elif not topic:
        yield Fault(400, "BadTopic", "apns-topic is empty")
    elif allowed is not None and topic not in allowed:
        yield Fault(400, "TopicDisallowed", f"{topic} is not a topic of the certificate: {', '.join(sorted(allowed))}")


def _header_faults(headers: Mapping[str, str]) -> Iterator[Fault]:
    push_type = headers.get("apns-push-type")
    if push_type not in PUSH_TYPES:
        said = "missing" if push_type is None else f"{push_type!r}"
        yield Fault(400, "InvalidPushType", f"apns-push-type is {said}, not one of {', '.join(sorted(PUSH_TYPES))}")
    expiration = headers.get("apns-expiration")
    if expiration is not None and not (expiration.isascii() and expiration.isdigit()):
        yield Fault(400, "BadExpirationDate", f"apns-expiration is {expiration!r}, not a unix time in seconds")
    priority = headers.get("apns-priority")
    if priority is not None and priority not in ("1", "5", "10"):
        yield Fault(400, "BadPriority", f"apns-priority is {priority!r}, not 1, 5 or 10")
    apns_id = headers.get("apns-id")
    if apns_id is not None and not _APNS_ID.fullmatch(apns_id):
        yield Fault(400, "BadMessageId", f"apns-id is {apns_id!r}, not a UUID in its 36 character form")
    if len(headers.get("apns-collapse-id", "").encode()) > MAX_COLLAPSE_ID:
        yield Fault(400, "BadCollapseId", f"apns-collapse-id is longer than {MAX_COLLAPSE_ID} bytes")


def _payload_faults(size: int, payload: object) -> Iterator[Fault]:
    if size > MAX_PAYLOAD:
        yield Fault(413, "PayloadTooLarge", f"the payload has {size} bytes, more than {MAX_PAYLOAD}")
    elif size == 0:
        yield Fault(400, "PayloadEmpty", "there is no payload")
    elif not isinstance(payload, dict) or not payload:
        yield Fault(400, "PayloadEmpty", "the payload is not a JSON object with something in it")


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``xaps-watch simulate``."""
    parser.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:2197", help="default: %(default)s")
    parser.add_argument(
        "--directory", type=Path, default=Path("xaps-simulator"), metavar="DIR",
        help="where the certificates and keys that it makes are kept (default: ./%(default)s)",
    )  # fmt: skip
    topic = "com.apple.mobilemail.push.org.example"
    parser.add_argument("--topic", default=topic, help="of the push certificate (default: %(default)s)")
    behaviour = parser.add_argument_group("how requests without a fault are answered")
    behaviour.add_argument("--status", type=int, default=200, help="default: %(default)s")
    behaviour.add_argument("--reason", help="Apple's reason, such as Unregistered (default: the status's usual one)")
    behaviour.add_argument("--timestamp", type=int, metavar="MS", help="for status 410: inactive since (default: now)")
    behaviour.add_argument("--retry-after", metavar="SECONDS", help="sent as a header")
    behaviour.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="before each answer")
    behaviour.add_argument("--goaway-after", type=int, metavar="N", help="GOAWAY after each N requests of a connection")
    behaviour.add_argument("--cut-after", type=int, metavar="N", help="cut instead of a connection's Nth answer")
    behaviour.add_argument("--silent", action="store_true", help="never answer")
    behaviour.add_argument("--max-streams", type=int, default=MAX_STREAMS, metavar="N", help="default: %(default)s")
    behaviour.add_argument("--lenient", action="store_true", help="report faults, but answer as if there were none")


def run(arguments: argparse.Namespace) -> int:
    """``xaps-watch simulate``: runs until SIGINT or SIGTERM. Exit status 0; 1 if it can't listen or write its files."""
    try:
        return asyncio.run(_simulate(arguments))
    except (OSError, SimulatorError) as error:
        print(f"xaps-watch simulate: {error}", file=sys.stderr)
        return 1


async def _simulate(arguments: argparse.Namespace) -> int:
    host, port = _host_and_port(arguments.listen)
    authority = LocalAuthority(arguments.directory)
    certificate = authority.push_certificate(arguments.topic, topics=(arguments.topic,))
    key = authority.provider_key()
    simulator = Simulator(
        authority,
        host=host,
        port=port,
        answer=_Script(arguments),
        on_answered=lambda received, answer: print(describe(received, answer), flush=True),
        strict=not arguments.lenient,
        max_concurrent_streams=arguments.max_streams,
        keep_received=False,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with simulator:
        print(_introduction(simulator, certificate, key), flush=True)
        await stopped.wait()
    print(f"{simulator.requests} requests on {simulator.connections_made} connections")
    for violation in simulator.violations:
        print(f"HTTP/2 violated: {violation}")
    return 0


def _host_and_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise SimulatorError(f"--listen {listen}: give HOST:PORT, such as 127.0.0.1:2197 or [::1]:2197")
    return host.strip("[]") or "127.0.0.1", int(port)


class _Script:
    """The answers that the command's options ask for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._options = arguments

    def __call__(self, received: Received) -> Answer:
        options = self._options
        return Answer(
            options.status, options.reason, options.timestamp, options.retry_after, options.delay, self._fate(received)
        )

    def _fate(self, received: Received) -> Literal["answer", "silence", "goaway", "cut"]:
        count = (received.stream + 1) // 2  # of this connection: clients number their streams 1, 3, 5, …
        if self._options.silent:
            return "silence"
        if self._options.cut_after and count >= self._options.cut_after:
            return "cut"
        if self._options.goaway_after and count >= self._options.goaway_after:
            return "goaway"
        return "answer"


def _introduction(simulator: Simulator, certificate: PushCertificate, key: ProviderKey) -> str:
    return f"""\
A stand-in for APNs listens on {simulator.url}. To use it, put this into the configuration of xaps-watch:

[apns]
url = {json.dumps(simulator.url)}
ca_file = {json.dumps(str(simulator.ca_file))}
certificate = {json.dumps(str(certificate.file))}

or, with a provider token instead of the certificate:

[apns]
url = {json.dumps(simulator.url)}
ca_file = {json.dumps(str(simulator.ca_file))}
token_key = {json.dumps(str(key.file))}
key_id = {json.dumps(key.key_id)}
team_id = {json.dumps(key.team_id)}
topic = {json.dumps(certificate.topic)}

Requests:"""


def describe(received: Received, answer: Answer) -> str:
    """A request and what became of it, on one line, the device token masked."""
    headers = received.headers
    path = received.path.replace(received.token, mask_token(received.token)) if received.token else received.path
    shown = [received.method, path]
    for name in ("topic", "push-type", "priority", "expiration", "id", "collapse-id"):
        if (value := headers.get(f"apns-{name}")) is not None:
            shown.append(f"{name}={value}")
    shown.append(received.body[:400].decode("utf-8", "backslashreplace").replace("\n", "\\n"))
    reason = answer.reason or DEFAULT_REASONS.get(answer.status)
    answered = f"{answer.status} {reason}" if reason else str(answer.status)
    fates = {"answer": answered, "goaway": f"{answered}, then GOAWAY", "cut": "cut", "silence": "no answer"}
    shown.append(f"→ {fates.get(answer.then, answer.then)}")
    shown += [f"[{fault.status} {fault.reason}: {fault.explanation}]" for fault in received.faults]
    return " ".join(shown)
