"""Push certificates and provider tokens, in every form that an admin may have them."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import time
from typing import Any

import jwt
import pytest

from tests.support.values import TOPIC
from xaps_watch import credentials
from xaps_watch.authority import LocalAuthority, PushCertificate
from xaps_watch.config import ApnsConfig, Config
from xaps_watch.credentials import Certificate, CredentialsError, CredentialsMissingError, TokenKey


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> LocalAuthority:
    return LocalAuthority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def push(authority: LocalAuthority) -> PushCertificate:
    return authority.push_certificate(TOPIC, topics=(TOPIC, f"{TOPIC}.voip"))


def load(directory: Path = Path("/nonexistent"), **apns: Any) -> Certificate | TokenKey:
    config = Config(source=directory / "config.toml", apns=ApnsConfig(**apns))
    return credentials.load(config, time, lambda: 0.0)


FORMS: dict[str, Callable[[PushCertificate], dict[str, Path]]] = {
    "one file": lambda p: {"certificate": p.file},
    "two files": lambda p: {"certificate": p.certificate_file, "key": p.key_file},
    "encrypted key": lambda p: {
        "certificate": p.certificate_file,
        "key": p.encrypted_key_file,
        "password_file": p.password_file,
    },
    "PKCS#12": lambda p: {"certificate": p.pkcs12_file, "password_file": p.password_file},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_certificate(form: Callable[[PushCertificate], dict[str, Path]], push: PushCertificate) -> None:
    loaded = load(**form(push))
    assert isinstance(loaded, Certificate)
    assert loaded.topic == TOPIC
    assert loaded.topics == (TOPIC, f"{TOPIC}.voip")
    assert isinstance(loaded.ssl_context(None), ssl.SSLContext)
    assert loaded.authorization() is None


def test_the_issuers_may_stand_before_the_certificate(
    authority: LocalAuthority, push: PushCertificate, tmp_path: Path
) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(authority.ca_file.read_bytes() + push.file.read_bytes())
    assert load(certificate=chain).topic == TOPIC


def test_an_older_certificate_names_its_topic_in_the_subject_alone(authority: LocalAuthority) -> None:
    old = authority.push_certificate("com.apple.mail.XServer.1234", name="old", use_rsa=True)
    assert load(certificate=old.file).topics == ("com.apple.mail.XServer.1234",)


def test_nothing_yet(tmp_path: Path) -> None:
    with pytest.raises(CredentialsMissingError, match=f"put the certificate and its key into {tmp_path}/mail.pem"):
        load(tmp_path)


def test_the_default_file_is_taken_up(tmp_path: Path, push: PushCertificate) -> None:
    (tmp_path / "mail.pem").write_bytes(push.file.read_bytes())
    assert load(tmp_path).topic == TOPIC


def wrong_certificates(authority: LocalAuthority, push: PushCertificate, tmp: Path) -> dict[str, tuple[Any, str]]:
    expired = authority.push_certificate(TOPIC, name="expired", starts=timedelta(-9), ends=timedelta(-2))
    early = authority.push_certificate(TOPIC, name="early", starts=timedelta(2))
    other = authority.push_certificate(TOPIC, name="other")
    app = authority.push_certificate("org.example.app", name="app")
    (tmp / "garbage").write_bytes(b"\x30\x82garbage")
    (tmp / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp / "password").write_text("wrong\n")
    (tmp / "headless.key").write_text("AAAA\n-----END PRIVATE KEY-----\n")
    return {
        "missing": ({"certificate": tmp / "none.pem"}, "cannot be read: No such file or directory; check the name"),
        "a directory": ({"certificate": tmp}, "cannot be read: Is a directory"),
        "garbage": ({"certificate": tmp / "garbage"}, "neither PEM nor PKCS#12"),
        "broken PEM": ({"certificate": tmp / "broken.pem"}, "holds no readable PEM certificate"),
        "no key": ({"certificate": push.certificate_file}, "holds no PEM private key; name the file that does"),
        "key that lost its first line": (
            {"certificate": push.certificate_file, "key": tmp / "headless.key"},
            f"[apns] key {tmp / 'headless.key'}: holds no PEM private key",
        ),
        "key of another": (
            {"certificate": push.certificate_file, "key": other.key_file},
            f"[apns] key {other.key_file}: does not fit the certificate in {push.certificate_file}",
        ),
        "expired": ({"certificate": expired.file}, "expired on "),
        "not yet valid": ({"certificate": early.file}, "check this machine's clock"),
        "no password": (
            {"certificate": push.certificate_file, "key": push.encrypted_key_file},
            "is encrypted; set password_file",
        ),
        "wrong password": (
            {"certificate": push.certificate_file, "key": push.encrypted_key_file, "password_file": tmp / "password"},
            "wrong password, or a damaged key",
        ),
        "PKCS#12 without password": ({"certificate": push.pkcs12_file}, "needs a password (set password_file)"),
        "PKCS#12, wrong password": (
            {"certificate": push.pkcs12_file, "password_file": tmp / "password"},
            "wrong password (password_file)",
        ),
        "no push certificate": ({"certificate": authority.server_file}, "its subject has no UID"),
        "another topic": (
            {"certificate": push.file, "topic": "com.apple.mail.x"},
            f"[apns] topic 'com.apple.mail.x': the certificate {push.file} is for {TOPIC}",
        ),
        "topic that iOS refuses": ({"certificate": app.file}, "would be refused by iOS Mail"),
    }


def test_every_wrong_certificate_has_its_one_line(
    authority: LocalAuthority, push: PushCertificate, tmp_path: Path
) -> None:
    for name, (apns, message) in wrong_certificates(authority, push, tmp_path).items():
        with pytest.raises(CredentialsError) as raised:
            load(**apns)
        assert message in str(raised.value), name
        assert str(raised.value).startswith("[apns] "), name
        assert "\n" not in str(raised.value), name


def test_secrets_are_in_no_representation(push: PushCertificate, authority: LocalAuthority) -> None:
    key = authority.provider_key()
    token_key = load(token_key=key.file, key_id=key.key_id, team_id=key.team_id, topic=TOPIC)
    token = token_key.authorization()
    assert "PRIVATE" not in repr(load(certificate=push.file))
    assert token is not None
    assert token not in repr(token_key)


class Clocks:
    """Unix time and monotonic time, as the test sets them."""

    def __init__(self) -> None:
        self.unix = 1_700_000_000.0
        self.monotonic = 500.0

    def pass_(self, seconds: float) -> None:
        self.unix += seconds
        self.monotonic += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def token_key(authority: LocalAuthority, clocks: Clocks) -> TokenKey:
    key = authority.provider_key()
    apns = ApnsConfig(token_key=key.file, key_id=key.key_id, team_id=key.team_id, topic=TOPIC)
    config = Config(source=Path("/nonexistent"), apns=apns)
    loaded = credentials.load(config, lambda: clocks.unix, lambda: clocks.monotonic)
    assert isinstance(loaded, TokenKey)
    return loaded


def test_a_token_says_what_apple_asks_for(token_key: TokenKey, authority: LocalAuthority, clocks: Clocks) -> None:
    authorization = token_key.authorization()
    assert authorization is not None
    token = authorization.removeprefix("bearer ")
    public = authority.provider_key().public_key
    options: Any = {"verify_iat": False}
    assert jwt.decode(token, public, algorithms=["ES256"], options=options) == {
        "iss": "DEF123GHIJ",
        "iat": int(clocks.unix),
    }
    assert jwt.get_unverified_header(token)["kid"] == "ABC123DEFG"


def test_a_token_is_renewed_between_20_and_60_minutes(token_key: TokenKey, clocks: Clocks) -> None:
    changes, last = [], token_key.authorization()
    for minute in range(1, 600):
        clocks.pass_(60)
        if token_key.authorization() != last:
            changes.append(minute)
            last = token_key.authorization()
    ages = [later - earlier for earlier, later in zip([0, *changes], changes, strict=False)]
    assert set(ages) == {50}


def test_many_refusals_of_one_token_renew_it_once(token_key: TokenKey, clocks: Clocks) -> None:
    refused = token_key.authorization()
    clocks.pass_(30 * 60)
    assert token_key.renew(refused) is None
    renewed = token_key.authorization()
    assert renewed != refused
    assert [token_key.renew(refused) for _ in range(100)] == [None] * 100
    assert token_key.authorization() == renewed


def test_a_young_token_is_not_renewed_whatever_apple_says(token_key: TokenKey, clocks: Clocks) -> None:
    refused = token_key.authorization()
    clocks.pass_(5 * 60)
    assert token_key.renew(refused) == 15 * 60
    assert token_key.authorization() == refused


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_set_clock_renews_the_token_when_it_may_be(token_key: TokenKey, clocks: Clocks, jump: float) -> None:
    before = token_key.authorization()
    clocks.unix += jump
    assert token_key.authorization() == before
    clocks.pass_(20 * 60)
    assert token_key.authorization() != before


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.p8").write_bytes(content)
    with pytest.raises(CredentialsError, match=r"not a readable \.p8 file as Apple issues it"):
        load(token_key=tmp_path / "a.p8", key_id="ABC123DEFG", team_id="DEF123GHIJ", topic=TOPIC)


def test_a_key_of_another_kind(authority: LocalAuthority) -> None:
    rsa = authority.push_certificate(TOPIC, name="rsa", use_rsa=True)
    with pytest.raises(CredentialsError, match="holds no P-256 key"):
        load(token_key=rsa.key_file, key_id="ABC123DEFG", team_id="DEF123GHIJ", topic=TOPIC)
