"""The transport over real TLS: against the simulator, and against a server that says any bytes we like."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import frames
from tests.support.frames import DATA, END_STREAM, HEADERS, RST_STREAM, Frame
from tests.support.scripted import ScriptedServer
from tests.support.values import TOPIC
from xaps_watch.http2 import ErrorCode, Setting, error_name
from xaps_watch.simulator import Answer, LocalAuthority, PushCertificate, Received, Simulator
from xaps_watch.transport import HttpxTransport, NotProcessed, PushTransport, open_transport

TOKEN = "0a1b2c3d" * 8
BODY = b'{"aps":{"account-id":"0715A26B-CA09-4730-A419-793000CA982E"}}'
HEADER_FIELDS = {"apns-topic": TOPIC, "apns-push-type": "background", "apns-expiration": "1700000000"}
PATIENCE = {"connect": 30.0, "pool": 30.0, "read": 30.0, "write": 30.0}


def tls(authority: LocalAuthority, certificate: PushCertificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    if certificate is not None:
        context.load_cert_chain(certificate.file)
    return context


async def post(
    transport: httpx.AsyncBaseTransport, url: str, token: str = TOKEN, *, body: bytes = BODY, **changed: float
) -> tuple[int, bytes]:
    """One push; `changed`: timeouts."""
    request = httpx.Request(
        "POST", f"{url}/3/device/{token}", headers=HEADER_FIELDS, content=body,
        extensions={"timeout": {**PATIENCE, **changed}},
    )  # fmt: skip
    response = await transport.handle_async_request(request)
    return response.status_code, await response.aread()


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


# A good server


@pytest.mark.parametrize("kind", ["fast", "httpx"])
async def test_pushes_arrive_without_a_fault(
    authority: LocalAuthority, certificate: PushCertificate, kind: str
) -> None:
    tokens = [f"{number:064x}" for number in range(300)]
    transport = open_transport(kind, tls(authority, certificate))
    async with Simulator(authority) as apns, transport:
        answers = await asyncio.gather(*(post(transport, apns.url, token) for token in tokens))
        assert answers == [(200, b"")] * 300
        assert apns.connections_made == 1
    assert sorted(received.token for received in apns.received) == tokens
    assert all(received.faults == () and received.body == BODY for received in apns.received)
    assert apns.violations == []


async def test_a_response_has_all_that_httpx_gives(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with (
        Simulator(authority, answer=lambda _: Answer(503, retry_after=7)) as apns,
        httpx.AsyncClient(transport=PushTransport(tls(authority, certificate)), base_url=apns.url) as client,
    ):
        apns_id = "123e4567-e89b-12d3-a456-42665544000a"
        headers = {**HEADER_FIELDS, "apns-id": apns_id}
        response = await client.post(f"/3/device/{TOKEN}", headers=headers, content=BODY)
    assert (response.status_code, response.http_version) == (503, "HTTP/2")
    assert (response.headers["retry-after"], response.headers["apns-id"]) == ("7", apns_id)
    assert response.json() == {"reason": "ServiceUnavailable"}
    assert apns.received[0].headers["user-agent"].startswith("python-httpx")
    assert apns.received[0].faults == ()


async def test_a_connection_can_be_there_before_the_first_request(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    transport = PushTransport(tls(authority, certificate))
    async with Simulator(authority) as apns, transport:
        transport.connect(httpx.URL(apns.url), 30.0)
        await eventually(lambda: apns.connections == 1)
        assert await post(transport, apns.url) == (200, b"")
        assert apns.connections_made == 1


async def test_connecting_ahead_of_the_first_request_may_fail(authority: LocalAuthority) -> None:
    transport = PushTransport(tls(authority))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
    transport.connect(httpx.URL(url), 30.0)
    async with transport:
        with pytest.raises(httpx.ConnectError):
            await post(transport, url)


async def test_the_target_extension_spares_the_url(authority: LocalAuthority, certificate: PushCertificate) -> None:
    for kind in ("fast", "httpx"):
        transport = open_transport(kind, tls(authority, certificate))
        async with Simulator(authority) as apns, transport:
            target = {"target": f"/3/device/{TOKEN}".encode()}
            request = httpx.Request("POST", apns.url, headers=HEADER_FIELDS, content=BODY, extensions=target)
            assert (await transport.handle_async_request(request)).status_code == 200
        assert apns.received[0].path == f"/3/device/{TOKEN}"


async def test_changed_headers_are_sent_as_changed(authority: LocalAuthority, certificate: PushCertificate) -> None:
    transport = PushTransport(tls(authority, certificate))
    async with Simulator(authority) as apns, transport:
        for number in range(3):
            fields = {**HEADER_FIELDS, "apns-expiration": str(number), "authorization": f"bearer {number // 2}"}
            request = httpx.Request("POST", f"{apns.url}/3/device/{TOKEN}", headers=fields, content=BODY)
            await transport.handle_async_request(request)
    got = [(received.headers["apns-expiration"], received.headers["authorization"]) for received in apns.received]
    assert got == [("0", "bearer 0"), ("1", "bearer 0"), ("2", "bearer 1")]


async def test_a_large_body_keeps_to_the_windows(authority: LocalAuthority, certificate: PushCertificate) -> None:
    transport = PushTransport(tls(authority, certificate))
    async with Simulator(authority, strict=False) as apns, transport:
        assert (await post(transport, apns.url, body=b"x" * 3_000_000))[0] == 200
    assert "3000000 bytes" in apns.received[0].faults[0].explanation
    assert apns.violations == []


@pytest.mark.parametrize("limit", [1, 7])
async def test_the_stream_limit_is_obeyed(authority: LocalAuthority, certificate: PushCertificate, limit: int) -> None:
    open_now = most = 0

    def answer(_: Received) -> Answer:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        return Answer(delay=0.005)

    def answered(*_: object) -> None:
        nonlocal open_now
        open_now -= 1

    transport = PushTransport(tls(authority, certificate))
    async with (
        Simulator(authority, answer=answer, on_answered=answered, max_concurrent_streams=limit) as apns,
        transport,
    ):
        answers = await asyncio.gather(*(post(transport, apns.url) for _ in range(50)))
    assert answers == [(200, b"")] * 50
    assert (most, apns.violations, apns.connections_made) == (limit, [], 1)


async def test_a_changed_stream_limit_is_obeyed(authority: LocalAuthority, certificate: PushCertificate) -> None:
    silent = True
    transport = PushTransport(tls(authority, certificate))
    script: Callable[[Received], Answer] = lambda _: Answer(then="silence" if silent else "answer")  # noqa: E731
    async with Simulator(authority, answer=script, max_concurrent_streams=2) as apns, transport:
        pushes = [asyncio.create_task(post(transport, apns.url)) for _ in range(10)]
        await apns.wait_for(2)
        silent = False
        apns.limit_streams(3)
        await apns.wait_for(10)
        await eventually(lambda: sum(push.done() for push in pushes) == 8)
        assert apns.violations == []
        for push in pushes:
            push.cancel()
        await asyncio.gather(*pushes, return_exceptions=True)


async def test_one_stream_until_the_token_is_accepted_then_many(authority: LocalAuthority) -> None:
    """With a certificate the limit is the server's from the start; without one, 403 answers come one by one."""
    transport = PushTransport(tls(authority))
    async with Simulator(authority) as apns, transport:
        answers = await asyncio.gather(*(post(transport, apns.url) for _ in range(20)))
    assert {status for status, _ in answers} == {403}
    assert (apns.violations, apns.connections_made) == ([], 1)


# Lost connections


def fates(*fates: Any) -> Callable[[Received], Answer]:
    left = list(fates)
    return lambda _: Answer(then=left.pop(0)) if left else Answer()


@pytest.mark.parametrize(
    ("fate", "error", "message"),
    [
        ("cut", (httpx.ReadError, httpx.RemoteProtocolError), "connection"),
        ("reset", httpx.RemoteProtocolError, "INTERNAL_ERROR"),
        ("refuse", NotProcessed, "REFUSED_STREAM"),
        ("goaway-before", NotProcessed, "GOAWAY"),
    ],
)
async def test_an_unanswered_request_fails_at_once(
    authority: LocalAuthority, certificate: PushCertificate, fate: str, error: Any, message: str
) -> None:
    transport = PushTransport(tls(authority, certificate))
    async with Simulator(authority, answer=fates("answer", fate)) as apns, transport:
        assert (await post(transport, apns.url))[0] == 200
        with pytest.raises(error, match=message) as caught:
            await post(transport, apns.url)
        assert isinstance(caught.value, NotProcessed) == (error is NotProcessed)
        assert (await post(transport, apns.url))[0] == 200
        assert apns.connections_made == (1 if fate in ("reset", "refuse") else 2)


@pytest.mark.parametrize("code", [*ErrorCode, 99], ids=error_name)
async def test_a_reset_is_told_by_its_name_and_ends_one_request(authority: LocalAuthority, code: int) -> None:
    """REFUSED_STREAM alone says that nothing was done with the request (RFC 9113, 8.7)."""

    def said(stream: int) -> bytes:
        return frames.reset(stream, code) if stream == 1 else frames.headers(stream)

    async with ScriptedServer(authority, answering(said)) as server, PushTransport(tls(authority)) as transport:
        with pytest.raises(httpx.RemoteProtocolError, match=f"reset the request: {error_name(code)}") as caught:
            await post(transport, server.url)
        assert isinstance(caught.value, NotProcessed) == (code == ErrorCode.REFUSED_STREAM)
        assert await post(transport, server.url) == (200, b"")
        assert server.connections == 1


async def test_goaway_lets_the_rest_be_answered_and_what_waits_go_elsewhere(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    number = 0

    def answer(_: Received) -> Answer:
        nonlocal number
        number += 1
        if number == 2:
            return Answer(then="goaway", delay=0.05)
        return Answer(delay=0.2 if number < 6 else 0.0)

    transport = PushTransport(tls(authority, certificate))
    async with Simulator(authority, answer=answer, max_concurrent_streams=4) as apns, transport:
        assert (await post(transport, apns.url))[0] == 200  # a connection that has proved itself
        answers = await asyncio.gather(*(post(transport, apns.url) for _ in range(20)))
        assert answers == [(200, b"")] * 20
        assert apns.connections_made == 2
        assert [received.connection for received in apns.received].count(1) == 5
        await apns.wait_until(lambda: apns.connections == 1)


async def test_idle_connections_that_end_are_replaced(authority: LocalAuthority, certificate: PushCertificate) -> None:
    transport = PushTransport(tls(authority, certificate))
    async with Simulator(authority) as apns, transport:
        for number, end in enumerate((apns.close_idle, apns.cut_all, apns.goaway_all), 1):
            assert (await post(transport, apns.url))[0] == 200
            end()
            await apns.wait_until(lambda: apns.connections == 0)
            await eventually(lambda: transport._connection is None)
            assert apns.connections_made == number
        assert (await post(transport, apns.url))[0] == 200


async def test_a_server_that_always_ends_at_once_does_not_make_us_loop(authority: LocalAuthority) -> None:
    async with (
        ScriptedServer(authority, lambda _: None, frames.settings((Setting.MAX_CONCURRENT_STREAMS, 1))) as server,
        PushTransport(tls(authority)) as transport,
    ):
        results = await asyncio.gather(*(post(transport, server.url) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(result, httpx.TransportError) for result in results)
        assert sum(isinstance(result, NotProcessed) for result in results) == 49  # they were never sent
        assert server.connections == 1


async def test_connecting_fails_with_httpx_errors(
    authority: LocalAuthority, certificate: PushCertificate, tmp_path: Any
) -> None:
    async with Simulator(authority) as apns:
        await apns.stop_accepting()
        async with PushTransport(tls(authority, certificate)) as transport:
            with pytest.raises(httpx.ConnectError, match=rf"can't connect to 127.0.0.1:{apns.port}: .*refused"):
                await post(transport, apns.url)
            await apns.accept_silently()
            with pytest.raises(httpx.ConnectTimeout, match=r"after 0\.2 s"):
                await post(transport, apns.url, connect=0.2)
            await apns.resume()
            assert (await post(transport, apns.url))[0] == 200
        async with PushTransport(tls(LocalAuthority(tmp_path))) as distrustful:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await post(distrustful, apns.url)
    async with PushTransport(tls(authority)) as transport:
        with pytest.raises(httpx.ConnectError, match=r"nowhere\.invalid"):
            await post(transport, "https://nowhere.invalid")


async def test_a_refused_client_certificate_fails_all_at_once(authority: LocalAuthority) -> None:
    expired = authority.push_certificate(TOPIC, name="expired", starts=timedelta(-9), ends=timedelta(-1))
    async with Simulator(authority) as apns, PushTransport(tls(authority, expired)) as transport:
        results = await asyncio.gather(*(post(transport, apns.url) for _ in range(9)), return_exceptions=True)
        assert all(isinstance(result, httpx.TransportError) for result in results)
        assert transport.connections_made == 1


async def test_the_alert_of_a_server_that_refuses_the_certificate_is_told(authority: LocalAuthority) -> None:
    expired = authority.push_certificate(TOPIC, name="expired", starts=timedelta(-9), ends=timedelta(-1))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_file)
    context.set_alpn_protocols(["h2"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca_file)

    def refuse(listener: socket.socket) -> None:
        # A blocking server, since asyncio's doesn't send the alert.
        connection, _ = listener.accept()
        with connection, pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True, do_handshake_on_connect=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(asyncio.to_thread(refuse, listener))
        async with PushTransport(tls(authority, expired)) as transport:
            with pytest.raises(httpx.TransportError, match=r"(?i)certificate"):
                await post(transport, f"https://127.0.0.1:{listener.getsockname()[1]}")
        await serving


@pytest.mark.parametrize("kind", ["fast", "httpx"])
async def test_a_server_by_another_name_is_not_trusted(
    authority: LocalAuthority, certificate: PushCertificate, kind: str
) -> None:
    transport = open_transport(kind, tls(authority, certificate))
    async with Simulator(authority, host="127.0.0.2") as apns, transport:
        with pytest.raises(httpx.ConnectError, match=r"CERTIFICATE_VERIFY_FAILED.*not valid for '127\.0\.0\.2'"):
            await post(transport, apns.url)
        assert apns.requests == 0


@pytest.mark.parametrize("kind", ["fast", "httpx"])
async def test_a_server_whose_certificate_has_expired_is_not_trusted(tmp_path: Path, kind: str) -> None:
    authority = LocalAuthority(tmp_path, server_ends=timedelta(minutes=-1))
    transport = open_transport(kind, tls(authority))
    async with Simulator(authority) as apns, transport:
        with pytest.raises(httpx.ConnectError, match=r"CERTIFICATE_VERIFY_FAILED.*has expired"):
            await post(transport, apns.url)
        assert apns.requests == 0


async def test_a_server_without_http2_is_a_connect_error(authority: LocalAuthority) -> None:
    server = ScriptedServer(authority, lambda _: b"")
    server._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server._tls.load_cert_chain(authority.server_file)
    async with server, PushTransport(tls(authority)) as transport:
        with pytest.raises(httpx.ConnectError, match="doesn't speak HTTP/2"):
            await post(transport, server.url)


async def test_only_https_and_one_origin(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with Simulator(authority) as apns, PushTransport(tls(authority, certificate)) as transport:
        with pytest.raises(httpx.UnsupportedProtocol, match="only https"):
            await post(transport, "http://127.0.0.1")
        assert (await post(transport, apns.url))[0] == 200
        with pytest.raises(httpx.UnsupportedProtocol, match=r"not example\.org"):
            await post(transport, "https://example.org")


async def test_a_header_that_http_forbids_is_refused_and_harms_nothing(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    async with Simulator(authority) as apns, PushTransport(tls(authority, certificate)) as transport:
        request = httpx.Request("POST", apns.url, headers={"apns-topic": "a\r\nb: c"})
        with pytest.raises(httpx.LocalProtocolError, match="apns-topic"):
            await transport.handle_async_request(request)
        assert (await post(transport, apns.url))[0] == 200


# Deadlines and cancellation


@pytest.mark.parametrize("kind", ["fast", "httpx"])
async def test_a_silent_request_ends_at_its_deadline_alone(
    authority: LocalAuthority, certificate: PushCertificate, kind: str
) -> None:
    transport = open_transport(kind, tls(authority, certificate))
    async with Simulator(authority, answer=fates("answer", "silence")) as apns, transport:
        await post(transport, apns.url)
        silent = asyncio.create_task(post(transport, apns.url, read=1.0))
        await apns.wait_for(2)
        busy = asyncio.create_task(_keep_busy(lambda: post(transport, apns.url)))
        with pytest.raises(httpx.ReadTimeout, match="1 s"):
            await silent
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
        assert (await post(transport, apns.url))[0] == 200
        if kind == "fast":  # httpx needs a new connection
            assert (1, 3) in apns.resets
            assert apns.connections_made == 1


async def _keep_busy(action: Callable[[], Awaitable[object]]) -> None:
    while True:
        await action()
        await asyncio.sleep(0.01)


async def test_waiting_for_a_stream_ends_at_its_deadline(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    script = fates("answer", "silence")
    async with (
        Simulator(authority, answer=script, max_concurrent_streams=1) as apns,
        PushTransport(tls(authority, certificate)) as transport,
    ):
        await post(transport, apns.url)
        blocking = asyncio.create_task(post(transport, apns.url))
        await apns.wait_for(2)
        with pytest.raises(httpx.PoolTimeout, match=r"0\.1 s"):
            await post(transport, apns.url, pool=0.1)
        blocking.cancel()
        await asyncio.gather(blocking, return_exceptions=True)
        assert (await post(transport, apns.url))[0] == 200
        assert apns.requests == 3


async def test_cancellation_resets_the_stream_and_frees_it(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    script = fates("answer", "silence")
    async with (
        Simulator(authority, answer=script, max_concurrent_streams=1) as apns,
        PushTransport(tls(authority, certificate)) as transport,
    ):
        await post(transport, apns.url)
        sent, waiting = (asyncio.create_task(post(transport, apns.url)) for _ in range(2))
        await apns.wait_for(2)
        waiting.cancel()
        sent.cancel()
        await asyncio.gather(sent, waiting, return_exceptions=True)
        await apns.wait_until(lambda: apns.resets == [(1, 3)])
        assert (await post(transport, apns.url))[0] == 200
        assert (apns.requests, transport._exchanges) == (3, set())


async def test_cancelled_while_connecting(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with Simulator(authority) as apns, PushTransport(tls(authority, certificate)) as transport:
        push = asyncio.create_task(post(transport, apns.url))
        await asyncio.sleep(0)
        push.cancel()
        await asyncio.gather(push, return_exceptions=True)
        await apns.wait_until(lambda: apns.connections == 1)
        assert (await post(transport, apns.url))[0] == 200
        assert (apns.requests, apns.connections_made) == (1, 1)


async def test_closing_fails_what_is_under_way(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with Simulator(authority, answer=fates("silence")) as apns:
        transport = PushTransport(tls(authority, certificate))
        push = asyncio.create_task(post(transport, apns.url))
        await apns.wait_for(1)
        await transport.aclose()
        with pytest.raises(httpx.ReadError, match="closed"):
            await push
        with pytest.raises(httpx.LocalProtocolError, match="closed"):
            await post(transport, apns.url)
        await apns.wait_until(lambda: apns.connections == 0)


async def test_closing_while_connecting_leaves_no_connection_behind(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    """Closed after each number of turns of the loop: in some of them asyncio loses what is cancelled."""
    async with Simulator(authority) as apns:
        for turns in range(60):
            transport = PushTransport(tls(authority, certificate))
            transport.connect(httpx.URL(apns.url), 30.0)
            for _ in range(turns):
                await asyncio.sleep(0)
            await transport.aclose()
        assert apns.connections_made > 0
        await eventually(lambda: apns.connections == 0)


# PING


async def test_an_idle_connection_is_pinged_and_kept(authority: LocalAuthority, certificate: PushCertificate) -> None:
    transport = PushTransport(tls(authority, certificate), ping_after=0.1)
    async with Simulator(authority) as apns, transport:
        await post(transport, apns.url)
        await eventually(lambda: apns.pings >= 3)
        await post(transport, apns.url)
        assert apns.connections_made == 1


async def test_an_idle_connection_that_is_dead_is_dropped(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    transport = PushTransport(tls(authority, certificate), ping_after=0.1, ping_timeout=0.1)
    async with Simulator(authority) as apns, transport:
        await post(transport, apns.url)
        apns.freeze()
        await eventually(lambda: transport._connection is None)
        transport.ping_after = 3600.0
        assert (await post(transport, apns.url))[0] == 200
        assert apns.connections_made == 2
        apns.cut_all()


async def test_a_request_after_silence_finds_out_soon_that_the_connection_is_dead(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    transport = PushTransport(tls(authority, certificate), doubt_after=0.05)
    async with Simulator(authority) as apns, transport:
        await post(transport, apns.url)
        await asyncio.sleep(0.1)
        assert (await post(transport, apns.url))[0] == 200
        await apns.wait_until(lambda: apns.pings == 1)
        apns.freeze()
        await asyncio.sleep(0.1)
        transport.ping_timeout = 0.1
        with pytest.raises(httpx.ReadError, match="PING"):
            await post(transport, apns.url)
        transport.ping_timeout = 10.0
        assert (await post(transport, apns.url))[0] == 200
        apns.cut_all()


@pytest.mark.parametrize("kind", ["fast", "httpx"])
async def test_a_connection_that_fell_silent_is_replaced_at_the_first_deadline(
    authority: LocalAuthority, certificate: PushCertificate, kind: str
) -> None:
    transport = open_transport(kind, tls(authority, certificate))
    async with Simulator(authority) as apns, transport:
        await post(transport, apns.url)
        apns.freeze()
        patient = asyncio.create_task(post(transport, apns.url))
        with pytest.raises(httpx.ReadTimeout, match=r"0\.1 s"):
            await post(transport, apns.url, read=0.1)
        with pytest.raises(httpx.TransportError):
            await patient  # at once, not at its own deadline
        assert (await post(transport, apns.url))[0] == 200
        assert apns.connections_made == 2
        apns.cut_all()


# Malformed input, over the wire


def answering(said: Callable[[int], bytes | None]) -> Callable[[Frame], bytes | None]:
    """Says `said(stream)` when a request is complete."""

    def reply(frame: Frame) -> bytes | None:
        return said(frame.stream) if frame.kind in (HEADERS, DATA) and frame.flags & END_STREAM else b""

    return reply


GARBAGE = [
    ("DATA on stream 0", lambda stream: frames.data(0, b"x")),
    ("a frame too large", lambda stream: b"\xff\xff\xff\0\0\0\0\0\0"),
    ("damaged HPACK", lambda stream: frames.headers(stream, b"\xff\xff\xff\xff\xff\xff")),
    ("padding too long", lambda stream: frames.frame(DATA, 8, stream, b"\xff")),
    ("PUSH_PROMISE", lambda stream: frames.frame(5, 4, stream, b"\0\0\0\2\x88")),
    ("window overflow", lambda stream: frames.window_update(0, 2**31 - 1)),
    ("HTTP/1.1", lambda stream: b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    ("CONTINUATION flood", lambda stream: frames.frame(HEADERS, 0, stream) + frames.frame(9, 0, stream) * 1000),
    ("half a frame, then the end", lambda stream: None),
]


@pytest.mark.parametrize("said", [case[1] for case in GARBAGE], ids=[case[0] for case in GARBAGE])
async def test_garbage_fails_the_request_and_the_next_reconnects(
    authority: LocalAuthority, said: Callable[[int], bytes | None]
) -> None:
    good = False

    def reply(stream: int) -> bytes | None:
        return frames.headers(stream) if good else said(stream)

    async with ScriptedServer(authority, answering(reply)) as server, PushTransport(tls(authority)) as transport:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await post(transport, server.url)
        good = True
        assert await post(transport, server.url) == (200, b"")
        assert server.connections == 2
        assert transport._exchanges == set()


async def test_random_bytes_never_hang_or_crash(authority: LocalAuthority) -> None:
    """Half of it well-formed frames with random content, half noise; every request ends, and so does every error."""
    random.seed(7)

    def said(stream: int) -> bytes | None:
        if random.random() < 0.3:
            return frames.headers(stream)
        if random.random() < 0.5:
            return random.randbytes(random.randrange(200))
        kind, flags = random.randrange(11), random.choice((0, 1, 4, 5, 8, 0x2D))
        return frames.frame(kind, flags, random.choice((0, stream)), random.randbytes(random.choice((0, 4, 6, 8, 50))))

    async with ScriptedServer(authority, answering(said)) as server, PushTransport(tls(authority)) as transport:
        results = await asyncio.gather(
            *(post(transport, server.url, read=1.0, pool=2.0) for _ in range(60)), return_exceptions=True
        )
        for _ in range(100):
            results += await asyncio.gather(post(transport, server.url, read=0.1), return_exceptions=True)
        assert all(isinstance(result, (tuple, httpx.TransportError)) for result in results)
        assert any(isinstance(result, tuple) for result in results)
        assert transport._exchanges == set()


async def test_a_flood_of_pings_that_is_never_read_ends_the_connection(authority: LocalAuthority) -> None:
    """A server that makes us owe it answers but reads none must not fill our memory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_file)
    context.set_alpn_protocols(["h2"])
    ended = asyncio.Event()

    class Flood(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            transport.write(frames.settings())
            transport.pause_reading()
            self.task = asyncio.ensure_future(self.flood())

        async def flood(self) -> None:
            while not ended.is_set():
                self.transport.write(frames.ping(bytes(8)) * 4000)
                await asyncio.sleep(0)

        def connection_lost(self, error: Exception | None) -> None:
            self.transport.close()  # asyncio before 3.11 would miss it
            ended.set()

    server = await asyncio.get_running_loop().create_server(Flood, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with PushTransport(tls(authority)) as transport:
        with pytest.raises(httpx.RemoteProtocolError, match="doesn't read"):
            await post(transport, url, read=30.0)
    ended.set()
    server.close()


async def test_a_reset_of_what_was_given_up_frees_no_one_else(authority: LocalAuthority) -> None:
    """After a deadline the server still answers the old stream: that must not reach another request."""
    held: list[int] = []

    def said(stream: int) -> bytes | None:
        if not held:
            held.append(stream)
            return frames.ping(bytes(8))  # it lives
        return frames.headers(held[0], frames.BAD) + frames.headers(stream)

    async with ScriptedServer(authority, answering(said)) as server, PushTransport(tls(authority)) as transport:
        with pytest.raises(httpx.ReadTimeout):
            await post(transport, server.url, read=1.0)
        assert await post(transport, server.url) == (200, b"")
        assert [frame.stream for frame in server.got if frame.kind == RST_STREAM] == held


async def test_settings_and_continuations_of_a_real_answer(authority: LocalAuthority) -> None:
    def said(stream: int) -> bytes | None:
        return (
            frames.settings((Setting.INITIAL_WINDOW_SIZE, 10))
            + frames.frame(HEADERS, 0, stream, b"\x8c\x00\x07apns")
            + frames.frame(9, 4, stream, b"-id\x011")
            + frames.frame(DATA, 9, stream, frames.padded(b'{"reason":"BadTopic"}', 7))
        )

    async with ScriptedServer(authority, answering(said)) as server, PushTransport(tls(authority)) as transport:
        status, body = await post(transport, server.url)
        assert (status, json.loads(body)) == (400, {"reason": "BadTopic"})
        # The new window of 10 bytes holds for the next request's body.
        with pytest.raises(httpx.ReadTimeout):
            await post(transport, server.url, read=0.5)
        assert [len(frame.payload) for frame in server.got if frame.kind == DATA] == [len(BODY), 10]


def test_unknown_transports_are_refused(authority: LocalAuthority) -> None:
    with pytest.raises(ValueError, match="quick"):
        open_transport("quick", tls(authority))


async def test_the_fallback_is_httpx(authority: LocalAuthority) -> None:
    transport = open_transport("httpx", tls(authority))
    assert isinstance(transport, HttpxTransport)
    await transport.aclose()


async def test_nothing_is_done_while_idle(authority: LocalAuthority, certificate: PushCertificate) -> None:
    """An idle connection has one timer, an hour away, and no task."""
    async with Simulator(authority) as apns, PushTransport(tls(authority, certificate)) as transport:
        await post(transport, apns.url)
        await asyncio.sleep(0.05)
        connection = transport._connection
        assert connection is not None and connection._pulse is not None
        assert connection._pulse.when() - asyncio.get_running_loop().time() > 3500
        assert transport._connecting is None
        sock: socket.socket = connection._socket.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
