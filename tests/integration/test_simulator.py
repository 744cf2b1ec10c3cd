"""The simulator against httpx and against frames sent by h2: Apple's checks one by one, and each misbehaviour."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import httpx
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

from tests.support.values import TOPIC
from xaps_watch import simulator as simulator_module
from xaps_watch.simulator import (
    Answer,
    Fault,
    LocalAuthority,
    ProviderKey,
    PushCertificate,
    Received,
    Simulator,
    SimulatorError,
)
from xaps_watch.topics import decode_topics, encode_topics, topics_of

TOKEN = "0a1b2c3d" * 8
PATH = f"/3/device/{TOKEN}"
HEADERS = {"apns-topic": TOPIC, "apns-push-type": "background"}
BODY = b'{"aps":{"account-id":"0715A26B-CA09-4730-A419-793000CA982E"}}'


@pytest.fixture(scope="module")
def key(authority: LocalAuthority) -> ProviderKey:
    return authority.provider_key()


@pytest.fixture
async def apns(authority: LocalAuthority) -> AsyncIterator[Simulator]:
    async with Simulator(authority) as simulator:
        yield simulator


def tls(authority: LocalAuthority, certificate: PushCertificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(certificate.file)
    return context


def client(apns: Simulator, certificate: PushCertificate | None = None) -> httpx.AsyncClient:
    context = tls(apns.authority, certificate)
    return httpx.AsyncClient(base_url=apns.url, http2=True, http1=False, verify=context, timeout=5.0)


def provider_token(key: ProviderKey, *, age: float = 0.0, **changed: Any) -> str:
    """A token as Apple wants it, `age` seconds old; `changed` headers (kid, alg) and claims (iss, iat)."""
    private = load_pem_private_key(key.file.read_bytes(), None)
    claims = {"iss": changed.get("iss", key.team_id), "iat": changed.get("iat", time.time() - age)}
    return jwt.encode(claims, private, algorithm="ES256", headers={"kid": changed.get("kid", key.key_id)})  # type: ignore[arg-type]


class RawClient:
    """A client at the level of HTTP/2 frames, that can do what httpx wouldn't."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.events: list[h2.events.Event] = []
        self.h2.initiate_connection()
        self.flush()

    @classmethod
    async def connect(cls, apns: Simulator, certificate: PushCertificate | None = None) -> RawClient:
        reader, writer = await asyncio.open_connection(
            apns.host, apns.port, ssl=tls(apns.authority, certificate), server_hostname="localhost"
        )
        return cls(reader, writer)

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def post(self, path: str = PATH, headers: list[tuple[str, str]] | None = None, body: bytes = BODY) -> int:
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "localhost")]
        self.h2.send_headers(stream, pseudo + (list(HEADERS.items()) if headers is None else headers))
        self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    async def next(self, kind: type[h2.events.Event]) -> Any:
        """The next event of this kind; None when the connection ends first. Events before it are dropped."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, kind):
                    return event
            data = await asyncio.wait_for(self.reader.read(65536), 5.0)
            if not data:
                return None
            self.events += self.h2.receive_data(data)
            self.flush()

    def close(self) -> None:
        self.writer.close()


# Answers


async def test_a_good_request_is_answered_200_and_remembered(apns: Simulator, certificate: PushCertificate) -> None:
    async with client(apns, certificate) as http:
        before = time.perf_counter()
        response = await http.post(PATH, headers=HEADERS, content=BODY)
    assert (response.status_code, response.content, response.http_version) == (200, b"", "HTTP/2")
    assert re.fullmatch(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", response.headers["apns-id"])
    (received,) = apns.received
    assert received.faults == ()
    assert (received.connection, received.stream, received.method, received.token) == (1, 1, "POST", TOKEN)
    assert received.payload == json.loads(BODY)
    assert received.headers["apns-topic"] == TOPIC
    assert before < received.at < time.perf_counter()
    assert TOKEN not in repr(received)


async def test_the_apns_id_is_echoed(apns: Simulator, certificate: PushCertificate) -> None:
    given = "123e4567-e89b-12d3-a456-42665544000a"
    async with client(apns, certificate) as http:
        response = await http.post(PATH, headers={**HEADERS, "apns-id": given}, content=BODY)
    assert response.headers["apns-id"] == given


async def test_the_answer_is_decided_by_the_request(authority: LocalAuthority, certificate: PushCertificate) -> None:
    def answer(received: Received) -> Answer:
        if received.token.startswith("dead"):
            return Answer(410, timestamp=1_700_000_000_000)
        if received.token.startswith("beef"):
            return Answer(503, retry_after=7)
        return Answer(400, "DeviceTokenNotForTopic") if received.token.startswith("aa") else Answer(body=b"not JSON")

    answered: list[tuple[str, int]] = []
    async with (
        Simulator(authority, answer=answer, on_answered=lambda r, a: answered.append((r.token[:4], a.status))) as apns,
        client(apns, certificate) as http,
    ):
        gone = await http.post("/3/device/" + "dead" * 16, headers=HEADERS, content=BODY)
        busy = await http.post("/3/device/" + "beef" * 16, headers=HEADERS, content=BODY)
        wrong = await http.post("/3/device/" + "aa" * 32, headers=HEADERS, content=BODY)
        odd = await http.post(PATH, headers=HEADERS, content=BODY)
    assert (gone.status_code, gone.json()) == (410, {"reason": "Unregistered", "timestamp": 1_700_000_000_000})
    assert (busy.status_code, busy.json(), busy.headers["retry-after"]) == (503, {"reason": "ServiceUnavailable"}, "7")
    assert (wrong.status_code, wrong.json()) == (400, {"reason": "DeviceTokenNotForTopic"})
    assert (odd.status_code, odd.content) == (200, b"not JSON")
    assert answered == [("dead", 410), ("beef", 503), ("aaaa", 400), (TOKEN[:4], 200)]


async def test_a_410_without_a_timestamp_says_now(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with (
        Simulator(authority, answer=lambda _: Answer(410, "ExpiredToken"), clock=lambda: 1.5e9) as apns,
        client(apns, certificate) as http,
    ):
        response = await http.post(PATH, headers=HEADERS, content=BODY)
    assert response.json() == {"reason": "ExpiredToken", "timestamp": 1_500_000_000_000}


# Apple's checks

CHECKS = [
    ("method", "GET", PATH, HEADERS, b"", 405, "MethodNotAllowed"),
    ("other path", "POST", "/2/device/" + TOKEN, HEADERS, BODY, 404, "BadPath"),
    ("path goes on", "POST", PATH + "/x", HEADERS, BODY, 404, "BadPath"),
    ("no device token", "POST", "/3/device/", HEADERS, BODY, 400, "MissingDeviceToken"),
    ("no slash either", "POST", "/3/device", HEADERS, BODY, 400, "MissingDeviceToken"),
    ("short device token", "POST", PATH[:-2], HEADERS, BODY, 400, "BadDeviceToken"),
    ("odd device token", "POST", PATH + "a", HEADERS, BODY, 400, "BadDeviceToken"),
    ("device token not hex", "POST", PATH[:-2] + "zz", HEADERS, BODY, 400, "BadDeviceToken"),
    ("another's topic", "POST", PATH, {**HEADERS, "apns-topic": "org.example"}, BODY, 400, "TopicDisallowed"),
    ("empty topic", "POST", PATH, {**HEADERS, "apns-topic": ""}, BODY, 400, "BadTopic"),
    ("no push type", "POST", PATH, {"apns-topic": TOPIC}, BODY, 400, "InvalidPushType"),
    ("odd push type", "POST", PATH, {**HEADERS, "apns-push-type": "mail"}, BODY, 400, "InvalidPushType"),
    ("expiration", "POST", PATH, {**HEADERS, "apns-expiration": "1.5"}, BODY, 400, "BadExpirationDate"),
    ("expiration in words", "POST", PATH, {**HEADERS, "apns-expiration": "never"}, BODY, 400, "BadExpirationDate"),
    ("priority", "POST", PATH, {**HEADERS, "apns-priority": "7"}, BODY, 400, "BadPriority"),
    ("apns-id", "POST", PATH, {**HEADERS, "apns-id": "42"}, BODY, 400, "BadMessageId"),
    ("collapse-id", "POST", PATH, {**HEADERS, "apns-collapse-id": "x" * 65}, BODY, 400, "BadCollapseId"),
    ("no payload", "POST", PATH, HEADERS, b"", 400, "PayloadEmpty"),
    ("payload not JSON", "POST", PATH, HEADERS, b"{aps", 400, "PayloadEmpty"),
    ("payload not an object", "POST", PATH, HEADERS, b"[1]", 400, "PayloadEmpty"),
    ("payload too large", "POST", PATH, HEADERS, b'{"aps":"' + b"x" * 4087 + b'"}', 413, "PayloadTooLarge"),
    ("payload far too large", "POST", PATH, HEADERS, b'{"aps":"' + b"x" * 300_000 + b'"}', 413, "PayloadTooLarge"),
]


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "reason"), [c[1:] for c in CHECKS], ids=[c[0] for c in CHECKS]
)
async def test_a_fault_is_refused_as_apple_would(
    apns: Simulator, certificate: PushCertificate, method: str, path: str, headers: dict[str, str], body: bytes,
    status: int, reason: str,
) -> None:  # fmt: skip
    async with client(apns, certificate) as http:
        response = await http.request(method, path, headers=headers, content=body)
    assert (response.status_code, response.json()["reason"]) == (status, reason)
    fault = apns.received[0].faults[0]
    assert fault[:2] == (status, reason)
    assert fault.explanation


async def test_limits_are_inclusive(apns: Simulator, certificate: PushCertificate) -> None:
    body = b'{"aps":"' + b"x" * 4086 + b'"}'
    extremes = {"apns-priority": "1", "apns-expiration": "0", "apns-collapse-id": "x" * 64}
    assert len(body) == 4096
    async with client(apns, certificate) as http:
        response = await http.post("/3/device/" + "AB" * 100, headers={**HEADERS, **extremes}, content=body)
    assert (response.status_code, apns.received[0].faults) == (200, ())


async def test_repeated_headers_are_refused(apns: Simulator, certificate: PushCertificate) -> None:
    raw = await RawClient.connect(apns, certificate)
    raw.post(headers=[*HEADERS.items(), ("apns-push-type", "alert")])
    response = await raw.next(h2.events.ResponseReceived)
    assert (":status", "400") in response.headers
    assert [fault.reason for fault in apns.received[0].faults] == ["DuplicateHeaders"]
    assert "apns-push-type" in apns.received[0].faults[0].explanation
    raw.close()


async def test_lenient_notes_faults_and_answers_all_the_same(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    async with Simulator(authority, strict=False) as apns, client(apns, certificate) as http:
        response = await http.post(PATH, headers={**HEADERS, "apns-priority": "7"}, content=b"")
    assert response.status_code == 200
    assert [fault.reason for fault in apns.received[0].faults] == ["BadPriority", "PayloadEmpty"]


# Certificates


async def test_the_topic_may_be_missing_only_with_a_certificate_for_one(
    authority: LocalAuthority, apns: Simulator, certificate: PushCertificate
) -> None:
    several = authority.push_certificate(TOPIC, name="several", topics=(TOPIC, TOPIC + ".voip"))
    background = {"apns-push-type": "background"}
    async with client(apns, certificate) as http:
        assert (await http.post(PATH, headers=background, content=BODY)).status_code == 200
    async with client(apns, several) as http:
        response = await http.post(PATH, headers=background, content=BODY)
        assert (response.status_code, response.json()["reason"]) == (400, "MissingTopic")
        voip = {"apns-push-type": "voip", "apns-topic": TOPIC + ".voip"}
        assert (await http.post(PATH, headers=voip, content=BODY)).status_code == 200


async def test_an_expired_certificate_gets_no_connection(authority: LocalAuthority, apns: Simulator) -> None:
    expired = authority.push_certificate(TOPIC, name="expired", starts=timedelta(-9), ends=timedelta(-1))
    async with client(apns, expired) as http:
        with pytest.raises(httpx.TransportError):
            await http.post(PATH, headers=HEADERS, content=BODY)
    assert apns.received == []


async def test_a_certificate_of_another_authority_gets_no_connection(apns: Simulator, tmp_path: Path) -> None:
    foreign = LocalAuthority(tmp_path).push_certificate(TOPIC)
    async with client(apns, foreign) as http:
        with pytest.raises(httpx.TransportError):
            await http.post(PATH, headers=HEADERS, content=BODY)
    assert apns.received == []


async def test_a_client_without_alpn_h2_is_cut(apns: Simulator) -> None:
    context = ssl.create_default_context(cafile=str(apns.ca_file))
    reader, writer = await asyncio.open_connection(apns.host, apns.port, ssl=context, server_hostname="localhost")
    with pytest.raises(ConnectionError):
        assert await reader.read() == b""
        raise ConnectionError  # a FIN is as good as a reset
    writer.close()
    assert apns.violations == ["the client didn't offer ALPN h2"]


def test_every_form_of_a_certificate_holds_the_same_pair(authority: LocalAuthority) -> None:
    made = authority.push_certificate(TOPIC, name="forms", topics=(TOPIC, "a" * 200), use_rsa=True)
    password = made.password.encode()
    certificate = x509.load_pem_x509_certificate(made.certificate_file.read_bytes())
    numbers = certificate.public_key().public_numbers()  # type: ignore[union-attr]
    archive_key, archive_certificate, _ = pkcs12.load_key_and_certificates(made.pkcs12_file.read_bytes(), password)
    assert archive_key is not None and archive_certificate == certificate
    keys = [
        load_pem_private_key(made.key_file.read_bytes(), None),
        load_pem_private_key(made.file.read_bytes(), None),
        load_pem_private_key(made.encrypted_key_file.read_bytes(), password),
        archive_key,
    ]
    for key in keys:
        assert key.public_key().public_numbers() == numbers  # type: ignore[union-attr]
    assert made.password_file.read_text().rstrip("\n") == made.password
    der = ssl.PEM_cert_to_DER_cert(made.certificate_file.read_text())
    assert set(topics_of(x509.load_der_x509_certificate(der))) == {TOPIC, "a" * 200}


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    authority = LocalAuthority(tmp_path / "new")
    authority.push_certificate(TOPIC)
    authority.provider_key()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in authority.directory.iterdir()}
    public = {name for name, mode in modes.items() if mode != 0o600}
    assert public == {"ca.pem", "push-certificate.pem"}
    assert stat.S_IMODE(authority.directory.stat().st_mode) == 0o700


def test_the_authority_and_its_provider_keys_persist(tmp_path: Path) -> None:
    first = LocalAuthority(tmp_path)
    key = first.provider_key("KEY0000001", "TEAM000001")
    second = LocalAuthority(tmp_path)
    again = second.provider_key("KEY0000001", "TEAM000001")
    assert second.ca_file.read_bytes() == first.ca_file.read_bytes()
    assert again.public_key.public_numbers() == key.public_key.public_numbers()


@pytest.mark.parametrize("topics", [(), ("a",), ("a" * 127, "b" * 128, "c" * 70_000)])
def test_topics_survive_der(topics: tuple[str, ...]) -> None:
    assert decode_topics(encode_topics(topics)) == list(topics)


@pytest.mark.parametrize("der", [b"\x30\x05\x0c\x01", b"\x30", b"\x0c\x01a", b"", b"\x30\x84\xff\xff\xff\xff"])
def test_damaged_topics_are_a_value_error(der: bytes) -> None:
    with pytest.raises(ValueError, match=r"DER|SEQUENCE"):
        decode_topics(der)


# Provider tokens


def bearer(token: str) -> dict[str, str]:
    return {**HEADERS, "authorization": f"bearer {token}"}


async def test_a_good_provider_token_is_accepted(apns: Simulator, key: ProviderKey) -> None:
    async with client(apns) as http:
        for _ in range(2):
            response = await http.post(PATH, headers=bearer(provider_token(key)), content=BODY)
            assert response.status_code in (200, 429)
        assert apns.received[0].faults == ()


BAD_TOKENS: list[tuple[str, dict[str, Any], int, str]] = [
    ("an hour old", {"age": 3601}, 403, "ExpiredProviderToken"),
    ("from the future", {"age": -301}, 403, "InvalidProviderToken"),
    ("iat in words", {"iat": "now"}, 403, "InvalidProviderToken"),
    ("another team", {"iss": "WRONG00000"}, 403, "InvalidProviderToken"),
    ("unknown key", {"kid": "WRONG00000"}, 403, "InvalidProviderToken"),
]


@pytest.mark.parametrize(
    ("changes", "status", "reason"), [c[1:] for c in BAD_TOKENS], ids=[case[0] for case in BAD_TOKENS]
)
async def test_a_bad_provider_token_is_refused(
    apns: Simulator, key: ProviderKey, changes: dict[str, Any], status: int, reason: str
) -> None:
    async with client(apns) as http:
        response = await http.post(PATH, headers=bearer(provider_token(key, **changes)), content=BODY)
    assert (response.status_code, response.json()["reason"]) == (status, reason)


async def test_odd_authorizations_are_refused(apns: Simulator, key: ProviderKey, tmp_path: Path) -> None:
    forged = LocalAuthority(tmp_path).provider_key(key.key_id, key.team_id)
    hs256 = jwt.encode({"iss": key.team_id, "iat": time.time()}, "x" * 32, "HS256", {"kid": key.key_id})
    no_kid = jwt.encode({}, load_pem_private_key(key.file.read_bytes(), None), "ES256")  # type: ignore[arg-type]
    reasons = []
    async with client(apns) as http:
        reasons.append((await http.post(PATH, headers=HEADERS, content=BODY)).json()["reason"])
        tokens = [f"bearer {token}" for token in (provider_token(forged), hs256, no_kid)]
        for value in ("bearer", "basic abc", "bearer abc", *tokens):
            response = await http.post(PATH, headers={**HEADERS, "authorization": value}, content=BODY)
            assert response.status_code == 403
            reasons.append(response.json()["reason"])
    assert reasons == ["MissingProviderToken"] + ["InvalidProviderToken"] * 6
    assert len({received.faults[0].explanation for received in apns.received}) == 6


async def test_tokens_renewed_too_often_are_refused_and_the_old_one_stays_good(
    authority: LocalAuthority, key: ProviderKey
) -> None:
    now = 1_700_000_000.0

    async def post(http: httpx.AsyncClient, token: str) -> tuple[int, str | None]:
        response = await http.post(PATH, headers=bearer(token), content=BODY)
        return response.status_code, response.json()["reason"] if response.content else None

    async with Simulator(authority, clock=lambda: now) as apns, client(apns) as http:
        first, hasty, fair = (provider_token(key, iat=now + seconds) for seconds in (0, 1199, 1200))
        assert await post(http, first) == (200, None)
        now += 1200
        assert await post(http, hasty) == (429, "TooManyProviderTokenUpdates")
        assert await post(http, first) == (200, None)
        assert await post(http, fair) == (200, None)
        now += 2401
        assert await post(http, first) == (403, "ExpiredProviderToken")
        assert await post(http, fair) == (200, None)


async def test_a_certificate_makes_the_provider_token_irrelevant(apns: Simulator, certificate: PushCertificate) -> None:
    async with client(apns, certificate) as http:
        response = await http.post(PATH, headers={**HEADERS, "authorization": "bearer x"}, content=BODY)
    assert response.status_code == 200


async def test_one_stream_until_the_first_valid_token(authority: LocalAuthority, key: ProviderKey) -> None:
    def limit(raw: RawClient) -> int:
        return raw.h2.remote_settings.max_concurrent_streams

    async with Simulator(authority, max_concurrent_streams=77) as apns:
        raw = await RawClient.connect(apns)
        await raw.next(h2.events.RemoteSettingsChanged)
        await raw.next(h2.events.RemoteSettingsChanged)
        assert limit(raw) == 1
        raw.post()
        assert (":status", "403") in (await raw.next(h2.events.ResponseReceived)).headers
        assert limit(raw) == 1
        raw.post(headers=list(bearer(provider_token(key)).items()))
        await raw.next(h2.events.RemoteSettingsChanged)
        assert limit(raw) == 77
        raw.close()


# Streams and flow control


async def test_the_stream_limit_binds_once_acknowledged_and_can_change(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    silent = lambda _: Answer(then="silence")  # noqa: E731
    async with Simulator(authority, answer=silent, max_concurrent_streams=2) as apns:
        raw = await RawClient.connect(apns, certificate)
        for _ in range(3):
            raw.post()  # before it can know the limit: no offence
        await apns.wait_for(3)
        assert apns.violations == []
        await raw.next(h2.events.RemoteSettingsChanged)
        await raw.next(h2.events.RemoteSettingsChanged)
        assert raw.h2.remote_settings.max_concurrent_streams == 2
        apns.limit_streams(5)
        await raw.next(h2.events.RemoteSettingsChanged)
        raw.post()
        raw.post()
        await apns.wait_for(5)
        assert apns.violations == []
        raw.h2.remote_settings._settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS][0] = 100
        raw.post()
        ended = await raw.next(h2.events.ConnectionTerminated)
        assert ended.error_code == h2.errors.ErrorCodes.PROTOCOL_ERROR
        assert "TooManyStreams" in apns.violations[0]
        raw.close()


async def test_httpx_sends_many_at_once(apns: Simulator, certificate: PushCertificate) -> None:
    async with client(apns, certificate) as http:
        responses = await asyncio.gather(*(http.post(PATH, headers=HEADERS, content=BODY) for _ in range(200)))
    assert [response.status_code for response in responses] == [200] * 200
    assert (apns.requests, apns.connections_made) == (200, 1)


async def test_garbage_ends_the_connection_and_nothing_else(apns: Simulator, certificate: PushCertificate) -> None:
    raw = await RawClient.connect(apns, certificate)
    raw.writer.write(b"\x00\x00\x04\x00\x00\x00\x00\x00\x00junk")  # DATA on stream 0
    ended = await raw.next(h2.events.ConnectionTerminated)
    assert ended.error_code == h2.errors.ErrorCodes.PROTOCOL_ERROR
    raw.close()
    async with client(apns, certificate) as http:
        assert (await http.post(PATH, headers=HEADERS, content=BODY)).status_code == 200


# Misbehaviour


def fates(*fates: Answer) -> Any:
    """The nth request meets the nth fate; after the last, 200."""
    left = list(fates)
    return lambda _: left.pop(0) if left else Answer()


async def test_delay(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with Simulator(authority, answer=fates(Answer(delay=0.2))) as apns, client(apns, certificate) as http:
        slow = asyncio.create_task(http.post(PATH, headers=HEADERS, content=BODY))
        await apns.wait_for(1)
        quick = await http.post(PATH, headers=HEADERS, content=BODY)
        assert quick.status_code == 200 and not slow.done()
        assert (await slow).status_code == 200


async def test_silence_and_a_reset_by_the_client(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with Simulator(authority, answer=fates(Answer(then="silence"))) as apns:
        raw = await RawClient.connect(apns, certificate)
        stream = raw.post()
        await apns.wait_for(1)
        raw.h2.reset_stream(stream)
        raw.flush()
        await apns.wait_until(lambda: apns.resets == [(1, stream)])
        raw.post()
        assert (await raw.next(h2.events.ResponseReceived)).stream_id == stream + 2
        raw.close()


@pytest.mark.parametrize(
    ("fate", "code"),
    [("reset", h2.errors.ErrorCodes.INTERNAL_ERROR), ("refuse", h2.errors.ErrorCodes.REFUSED_STREAM)],
)
async def test_resets(authority: LocalAuthority, certificate: PushCertificate, fate: Any, code: int) -> None:
    async with Simulator(authority, answer=fates(Answer(then=fate))) as apns:
        raw = await RawClient.connect(apns, certificate)
        raw.post()
        assert (await raw.next(h2.events.StreamReset)).error_code == code
        raw.post()
        assert (":status", "200") in (await raw.next(h2.events.ResponseReceived)).headers
        raw.close()


async def test_goaway_answers_what_came_before_and_drops_what_comes_after(
    authority: LocalAuthority, certificate: PushCertificate
) -> None:
    script = fates(Answer(delay=0.1), Answer(then="goaway"))
    async with Simulator(authority, answer=script) as apns:
        raw = await RawClient.connect(apns, certificate)
        first, second, third = raw.post(), raw.post(), raw.post()
        answered = [(await raw.next(h2.events.ResponseReceived)).stream_id]
        gone = await raw.next(h2.events.ConnectionTerminated)
        assert (gone.error_code, gone.last_stream_id) == (0, second)
        assert json.loads(gone.additional_data) == {"reason": "Shutdown"}
        assert (answered, third, first) == ([second], 5, 1)
        # h2 forgets the open stream at GOAWAY; the answer's bytes and the end still come.
        assert await asyncio.wait_for(raw.reader.read(), 5.0) != b""
        assert [received.stream for received in apns.received] == [first, second]
        await apns.wait_until(lambda: apns.connections == 0)
        raw.close()


async def test_goaway_before_means_not_processed(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with Simulator(authority, answer=fates(Answer(), Answer(then="goaway-before"))) as apns:
        raw = await RawClient.connect(apns, certificate)
        first = raw.post()
        await raw.next(h2.events.StreamEnded)
        raw.post()
        gone = await raw.next(h2.events.ConnectionTerminated)
        assert gone.last_stream_id == first
        assert await raw.reader.read() == b""
        raw.close()


async def test_cut_and_reconnect(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with Simulator(authority, answer=fates(Answer(then="cut"))) as apns, client(apns, certificate) as http:
        with pytest.raises(httpx.TransportError):
            await http.post(PATH, headers=HEADERS, content=BODY)
        assert (await http.post(PATH, headers=HEADERS, content=BODY)).status_code == 200
        assert (apns.connections, apns.connections_made) == (1, 2)


async def test_everything_on_all_connections(authority: LocalAuthority, certificate: PushCertificate) -> None:
    async with Simulator(authority, answer=fates(Answer(then="silence"))) as apns:
        busy, idle = [await RawClient.connect(apns, certificate) for _ in range(2)]
        busy.post()
        await apns.wait_for(1)
        apns.close_idle()
        gone = await idle.next(h2.events.ConnectionTerminated)
        assert json.loads(gone.additional_data) == {"reason": "IdleTimeout"}
        await apns.wait_until(lambda: apns.connections == 1)
        apns.goaway_all()
        assert (await busy.next(h2.events.ConnectionTerminated)).last_stream_id == 1
        assert apns.connections == 1  # its request is still open
        apns.cut_all()
        await apns.wait_until(lambda: apns.connections == 0)
        busy.close()
        idle.close()


async def test_a_frozen_connection_says_nothing_until_thawed(apns: Simulator, certificate: PushCertificate) -> None:
    raw = await RawClient.connect(apns, certificate)
    raw.h2.ping(b"12345678")
    raw.flush()
    assert (await raw.next(h2.events.PingAckReceived)).ping_data == b"12345678"
    assert apns.pings == 1
    apns.freeze()
    raw.h2.ping(b"abcdefgh")
    raw.flush()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(raw.next(h2.events.PingAckReceived), 0.2)
    apns.thaw()
    assert (await raw.next(h2.events.PingAckReceived)).ping_data == b"abcdefgh"
    raw.close()


async def test_refused_silent_and_resumed_on_the_same_port(apns: Simulator, certificate: PushCertificate) -> None:
    url = apns.url
    await apns.stop_accepting()
    async with client(apns, certificate) as http:
        with pytest.raises(httpx.ConnectError):
            await http.post(PATH, headers=HEADERS, content=BODY)
    await apns.accept_silently()
    async with client(apns, certificate) as http:
        with pytest.raises(httpx.ConnectTimeout):
            await http.post(PATH, headers=HEADERS, content=BODY, timeout=0.2)
    await apns.resume()
    assert apns.url == url
    async with client(apns, certificate) as http:
        assert (await http.post(PATH, headers=HEADERS, content=BODY)).status_code == 200
    await apns.stop()
    await apns.wait_until(lambda: apns.connections == 0)


async def test_a_taken_port_is_said_clearly(apns: Simulator) -> None:
    with pytest.raises(SimulatorError, match=rf"can't listen on 127.0.0.1:{apns.port}: .*in use"):
        await Simulator(apns.authority, port=apns.port).start()


async def test_waiting_in_vain_says_what_is_there(apns: Simulator) -> None:
    with pytest.raises(TimeoutError, match=r"waited 0.05 s for 3 requests; there are 0 requests, 0 connections"):
        await apns.wait_for(3, timeout=0.05)


# The command


async def test_the_command_runs_until_it_is_told_to_end(tmp_path: Path) -> None:
    program = (
        "import argparse, sys; from xaps_watch import simulator; p = argparse.ArgumentParser();"
        "simulator.add_arguments(p); sys.exit(simulator.run(p.parse_args()))"
    )
    options = ["--listen=127.0.0.1:0", f"--directory={tmp_path / 'sim'}", "--status=410", "--goaway-after=3"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *options, stdout=subprocess.PIPE, cwd=Path(simulator_module.__file__).parents[1]
    )
    assert process.stdout is not None
    said = (await process.stdout.readuntil(b"Requests:\n")).decode()
    found = re.search(r'url = "(https://127\.0\.0\.1:\d+)"\nca_file = "(.+)"\ncertificate = "(.+)"\n', said)
    assert found, said
    assert 'key_id = "ABC123DEFG"' in said and f'topic = "{TOPIC}"' in said
    context = ssl.create_default_context(cafile=found[2])
    context.load_cert_chain(found[3])
    async with httpx.AsyncClient(base_url=found[1], http2=True, http1=False, verify=context) as http:
        for priority in ("5", "7", "5", "5"):  # GOAWAY with the third: the fourth is on a new connection
            response = await http.post(PATH, headers={**HEADERS, "apns-priority": priority}, content=BODY)
            assert response.status_code == (400 if priority == "7" else 410)
    lines = [(await process.stdout.readline()).decode() for _ in range(4)]
    assert lines[0].endswith("→ 410 Unregistered\n")
    assert lines[2].endswith("→ 410 Unregistered, then GOAWAY\n")
    assert "[400 BadPriority: apns-priority is '7', not 1, 5 or 10]" in lines[1]
    assert all(TOKEN not in line and "0a1b2c…3d" in line for line in lines)
    process.terminate()
    assert (await process.stdout.read()).decode() == "4 requests on 2 connections\n"
    assert await process.wait() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--listen", "2197"], None),
        (["--listen", "localhost:https"], "--listen localhost:https: give HOST:PORT"),
        (["--directory", "/proc/nothing"], "/proc/nothing"),
    ],
)
def test_the_command_says_what_is_wrong(
    options: list[str], message: str | None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parser = argparse.ArgumentParser()
    simulator_module.add_arguments(parser)
    if message is None:
        assert simulator_module._host_and_port(options[1]) == ("127.0.0.1", 2197)
        return
    arguments = parser.parse_args(["--directory", str(tmp_path), *options])
    assert simulator_module.run(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_request_is_described_on_one_line() -> None:
    received = Received(
        0.0, 1, 1, "POST", PATH, TOKEN, {"apns-topic": TOPIC}, b'{"aps":\n"\xff"}', None,
        (Fault(400, "PayloadEmpty", "why"),),
    )  # fmt: skip
    line = simulator_module.describe(received, Answer(then="cut"))
    assert line == (
        f'POST /3/device/0a1b2c…3d topic={TOPIC} {{"aps":\\n"\\xff"}} → cut [400 PayloadEmpty: why]'
    )
