"""Apple's push service: one push → one Outcome.

Sources: Apple, «Sending notification requests to APNs» and «Handling notification responses from APNs»; RFC 9113.
The order below is that on the wire: the request, the connection, the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType

import httpx

from xaps_watch.credentials import Credentials
from xaps_watch.model import Outcome, Push, Registration, Request, Ruling, is_inbox
from xaps_watch.transport import PushTransport, open_transport

PAYLOAD_LIMIT = 4096  # bytes
EXPIRATION = 24 * 3600  # seconds for which Apple keeps a push for a phone that is off

# --- The request -----------------------------------------------------------------------------------------------------


def mailbox_hash(name: str) -> str:
    """How iOS Mail names an echoed mailbox: the MD5 of its name in UTF-8 (observed; nothing secret about it)."""
    return hashlib.md5(name.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()


def pushable(version: int, mailboxes: Iterable[str]) -> tuple[str, ...]:
    """The mailboxes of which a phone of this aps-version wants to hear: with version 1, INBOX alone."""
    return tuple(sorted(name for name in mailboxes if version >= 2 or is_inbox(name)))


def payloads(push: Push) -> Iterator[bytes]:
    """The bodies for one push: one, but for very many mailboxes.

    iOS Mail refreshes INBOX on a push without "m", and exactly the mailboxes whose hash it knows on a push with it
    (observed). So "m" is left out where INBOX alone changed: that works whatever was echoed.
    """
    head = '{"aps":{"account-id":' + _quoted(push.device.account_id)
    if all(is_inbox(name) for name in push.mailboxes):
        yield (head + "}}").encode()
        return
    head += ',"m":['
    hashes = [f'"{mailbox_hash(name)}"' for name in push.mailboxes]
    tail = "]}}"
    at_once = (PAYLOAD_LIMIT - len(head + tail)) // len(hashes[0] + ",")
    for start in range(0, len(hashes), at_once):
        yield (head + ",".join(hashes[start : start + at_once]) + tail).encode()


_quoted = json.encoder.encode_basestring_ascii  # json.dumps makes an encoder for each call: five times as long


# --- The answer ------------------------------------------------------------------------------------------------------

_REJECTED = Ruling(Request.DROP, meaning="Apple refuses the request itself: please report this as a bug")
_CREDENTIALS = "Apple does not accept the credentials: see xaps-watch check"
_TOPIC = "these credentials may not push to the topic: compare topic in the configuration with what Apple allowed"
_SLOW = Ruling(Request.ALL_WAIT, meaning="Apple's service is out of order or overloaded; tried again by itself")

ANSWERS = MappingProxyType(
    {
        (200, None): Ruling(Request.DONE, Registration.ACCEPTED),
        (410, None): Ruling(Request.DROP, Registration.REMOVE, "the account was removed from the phone, or reset"),
        (400, "BadDeviceToken"): Ruling(
            Request.DROP, Registration.SUSPEND, "no token of this environment (production or sandbox)"
        ),
        (400, "DeviceTokenNotForTopic"): Ruling(
            Request.DROP, Registration.SUSPEND, "the phone registered for another topic; it learns ours when it renews"
        ),
        (400, "TopicDisallowed"): Ruling(Request.HOLD, meaning=_TOPIC),
        (400, "BadTopic"): Ruling(Request.HOLD, meaning=_TOPIC),
        (400, "MissingTopic"): Ruling(Request.HOLD, meaning=_TOPIC),
        (400, None): _REJECTED,
        (403, "ExpiredProviderToken"): Ruling(
            Request.RENEW_TOKEN, meaning="if this repeats, this machine's clock is wrong by more than an hour"
        ),
        (403, None): Ruling(Request.HOLD, meaning=_CREDENTIALS),
        (404, None): _REJECTED,
        (405, None): _REJECTED,
        (413, None): _REJECTED,
        (429, "TooManyProviderTokenUpdates"): Ruling(
            Request.ALL_WAIT, meaning="another program, or many restarts, made provider tokens with the same key"
        ),
        (429, None): Ruling(Request.DEVICE_WAITS, meaning="too many pushes to this phone"),
    }
)
"""(status, reason) → what it means; a reason of None stands for all reasons that are not listed themselves."""

_UNKNOWN = Ruling(Request.DROP, meaning="an answer that Apple doesn't document: please report it")
_NO_ANSWER = Ruling(Request.ALL_WAIT, meaning="no answer from Apple's service; tried again by itself")


def ruling(status: int, reason: str | None) -> Ruling:
    """What Apple's answer means."""
    found = ANSWERS.get((status, reason)) or ANSWERS.get((status, None))
    if found is None:
        return _SLOW if status >= 500 else _UNKNOWN
    return found


def outcome_of(response: httpx.Response, body: bytes, now: float) -> Outcome:
    """The Outcome of an answer; `now` is unix time. Whatever a broken gateway may send, there is one."""
    reason, timestamp = None, None
    if response.status_code != 200:
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        if isinstance(content, dict):
            reason = content["reason"] if isinstance(content.get("reason"), str) else None
            timestamp = content["timestamp"] if isinstance(content.get("timestamp"), int) else None
    headers = dict(response.headers.raw)  # httpx's own look-up takes ten times as long; HTTP/2 has lower case only
    apns_id, retry_after = headers.get(b"apns-id"), headers.get(b"retry-after")
    return Outcome(
        ruling(response.status_code, reason),
        status=response.status_code,
        reason=reason,
        apns_id=apns_id.decode("latin-1") if apns_id is not None else None,
        timestamp=timestamp,
        retry_after=_retry_after(retry_after.decode("latin-1"), now) if retry_after is not None else None,
    )


def _retry_after(value: str, now: float) -> float | None:
    """Seconds, from either form of the header (RFC 9110, 10.2.3); None where there is no sense in it."""
    if value.strip().isdecimal():
        return min(float(value), EXPIRATION)
    try:
        return min(max(0.0, parsedate_to_datetime(value).timestamp() - now), EXPIRATION)
    except ValueError:
        return None


# --- The connection --------------------------------------------------------------------------------------------------


class Apns:
    """One long-lived HTTP/2 connection to the push service, made when it is needed and made anew when it is lost."""

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        *,
        ca_file: Path | None,
        time: Callable[[], float],
        priority: int | None = None,
        timeout: float = 30.0,
        transport: str = "fast",
    ) -> None:
        """Raises CredentialsError. `timeout`: seconds for one push, from its sending to the end of its answer, and as
        many again for each of what comes before: a connection, and leave to send one request more on it."""
        self.credentials = credentials
        self._url = httpx.URL(url)
        self._time = time
        self._timeouts = dict.fromkeys(("connect", "pool", "write", "read"), timeout)
        self._priority = priority
        self._headers_made: dict[tuple[str, str | None, int], httpx.Headers] = {}
        self._headers_until = 0  # the apns-expiration that they have
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._transport = open_transport(transport, credentials.ssl_context(ca_file))

    def connect(self) -> None:
        """Begin to connect, so that the first push needs not wait for it; Apple asks to keep connections open."""
        if isinstance(self._transport, PushTransport):
            self._transport.connect(self._url, self._timeouts["connect"])

    async def aclose(self) -> None:
        """Close the connection when the pushes that are in flight on it have ended."""
        await self._idle.wait()
        await self._transport.aclose()

    async def push(self, push: Push) -> Outcome:
        """Send one push and wait for the answer. Trouble of any kind with the network is an Outcome, too."""
        self._in_flight += 1
        self._idle.clear()
        try:
            outcome = Outcome(_UNKNOWN)
            for body in payloads(push):
                outcome = await self._post(push, body)
                if outcome.status != 200:
                    break
            return outcome
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def _post(self, push: Push, body: bytes) -> Outcome:
        try:
            return await self._authorized(push, body)
        except httpx.TransportError as error:
            return Outcome(_NO_ANSWER, reason=f"{type(error).__name__}: {error}".rstrip(": "))

    async def _authorized(self, push: Push, body: bytes) -> Outcome:
        authorization = self.credentials.authorization()
        outcome = await self._exchange_twice(push, body, authorization)
        if outcome.ruling.request is Request.RENEW_TOKEN:
            wait = self.credentials.renew(authorization)
            if wait is not None:
                return replace(outcome, retry_after=wait)
            outcome = await self._exchange_twice(push, body, self.credentials.authorization())
        return outcome

    async def _exchange_twice(self, push: Push, body: bytes, authorization: str | None) -> Outcome:
        try:
            return await self._exchange(push, body, authorization)
        except (httpx.ReadError, httpx.WriteError, httpx.ProtocolError):
            # The connection was lost, likely while it was idle: that says nothing of a new one. Apple may have
            # had the request already; a push too many is harmless.
            return await self._exchange(push, body, authorization)

    async def _exchange(self, push: Push, body: bytes, authorization: str | None) -> Outcome:
        # The path goes past httpx.URL, which takes longer to parse it than all the rest of the request.
        extensions = {"target": b"/3/device/" + push.device.token.encode(), "timeout": self._timeouts}
        headers = self._headers(push.device.topic, authorization, int(self._time()) + EXPIRATION, len(body))
        request = httpx.Request(
            "POST", self._url, headers=headers, stream=httpx.ByteStream(body), extensions=extensions
        )
        response = await self._transport.handle_async_request(request)
        return outcome_of(response, b"" if response.status_code == 200 else await response.aread(), self._time())

    def _headers(self, topic: str, authorization: str | None, expiration: int, length: int) -> httpx.Headers:
        """The same object for all pushes of a second: httpx takes longer to make it than all the rest of a request."""
        if expiration != self._headers_until:
            self._headers_made.clear()
            self._headers_until = expiration
        made = self._headers_made.get((topic, authorization, length))
        if made is None:
            headers = {
                "host": self._url.netloc.decode("ascii"),
                "apns-topic": topic,
                "apns-push-type": "background",
                "apns-expiration": str(expiration),
                "content-length": str(length),
            }
            if self._priority is not None:
                headers["apns-priority"] = str(self._priority)
            if authorization is not None:
                headers["authorization"] = authorization
            made = self._headers_made[topic, authorization, length] = httpx.Headers(headers)
        return made
