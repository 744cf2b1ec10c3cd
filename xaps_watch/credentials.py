"""What Apple asks of a push provider: a push certificate, or a token key (.p8) and the provider tokens made with it."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12

from xaps_watch.config import ApnsConfig, Config, topic_fault
from xaps_watch.model import ConfigError
from xaps_watch.topics import topics_of

# Apple: «Refresh your token no more than once every 20 minutes and no less than once every 60 minutes.»
TOKEN_MIN_AGE = 20 * 60.0
TOKEN_MAX_AGE = 50 * 60.0  # ten minutes of room for a clock that differs from Apple's

_TOPICS_EXTENSION = x509.ObjectIdentifier("1.2.840.113635.100.6.3.6")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
_USER_ID = x509.NameOID.USER_ID  # 0.9.2342.19200300.100.1.1: Apple puts the topic there


class CredentialsError(ConfigError):
    """Credentials that can't be used: the message names the key, the file and the mend."""


class CredentialsMisnamedError(CredentialsError):
    """The configuration has to be mended: what it names is not there, or it contradicts the certificate."""


class CredentialsExpiredError(CredentialsError):
    """The certificate has to be replaced by a new one."""


class CredentialsMissingError(CredentialsError):
    """Nothing is configured and the default file isn't there: not a mistake, but nothing can be pushed yet."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A push certificate with its key. The private key never leaves this object but for the TLS library."""

    topic: str
    topics: tuple[str, ...]  # all that the certificate may push to
    expires_at: datetime
    source: Path
    chain: bytes = field(repr=False)  # PEM, the push certificate first
    key: bytes = field(repr=False)  # PEM, unencrypted

    @property
    def kind(self) -> str:
        return "certificate"

    def ssl_context(self, ca_file: Path | None) -> ssl.SSLContext:
        """A context that trusts `ca_file` (or the system's CAs) and shows the certificate. Raises CredentialsError."""
        context = trusting(ca_file)
        # Only files can be loaded: an anonymous one, so that the key never reaches a disk.
        file = os.memfd_create("push-certificate")
        try:
            os.write(file, self.key + self.chain)
            context.load_cert_chain(f"/proc/self/fd/{file}")
        except ssl.SSLError as error:
            raise CredentialsError(f"{self.source}: refused by OpenSSL: {error.reason or error}") from error
        finally:
            os.close(file)
        return context

    def authorization(self) -> str | None:
        """The ``authorization`` header: none, the TLS handshake has shown the certificate."""
        return None

    def renew(self, refused: str | None) -> float | None:
        """There is no token to renew: only time can tell."""
        return TOKEN_MIN_AGE


@dataclass(slots=True)
class TokenKey:
    """A .p8 key and the provider token (RFC 7519, ES256) that it signed last."""

    topic: str
    key_id: str
    team_id: str
    source: Path
    _key: ec.EllipticCurvePrivateKey = field(repr=False)
    _time: Callable[[], float] = field(repr=False)  # unix time, s
    _monotonic: Callable[[], float] = field(repr=False)
    _token: str | None = field(default=None, repr=False)
    _issued_at: float = field(default=0.0, repr=False)  # as Apple sees it: unix time
    _made_at: float = field(default=0.0, repr=False)  # as no clock adjustment can change it: monotonic

    @property
    def kind(self) -> str:
        return "token"

    @property
    def topics(self) -> tuple[str, ...]:
        return (self.topic,)

    @property
    def expires_at(self) -> None:
        """Keys don't expire; they are revoked."""
        return None

    def ssl_context(self, ca_file: Path | None) -> ssl.SSLContext:
        return trusting(ca_file)

    def authorization(self) -> str | None:
        """The ``authorization`` header with a provider token that is at most 50 minutes old."""
        age = self._monotonic() - self._made_at
        # After a clock adjustment the token's iat is wrong: too old, or in the future.
        adjusted = abs(self._time() - self._issued_at - age) > 60.0
        if self._token is None or age >= TOKEN_MAX_AGE or (adjusted and age >= TOKEN_MIN_AGE):
            self._make()
        return f"bearer {self._token}"

    def renew(self, refused: str | None) -> float | None:
        """Apple called this authorization expired: make sure that the next one is another.

        Returns the seconds until Apple allows a new token, or None where authorization() gives one at once.
        """
        if refused != f"bearer {self._token}":
            return None  # another push has seen to it
        wait = self._made_at + TOKEN_MIN_AGE - self._monotonic()
        if wait > 0:
            return wait
        self._make()
        return None

    def _make(self) -> None:
        self._issued_at = self._time()
        self._made_at = self._monotonic()
        claims = {"iss": self.team_id, "iat": int(self._issued_at)}
        self._token = jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self.key_id})


Credentials = Certificate | TokenKey


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """TLS ≥ 1.2, HTTP/2, trusting the given CA or the system's. Raises CredentialsError."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        kind = CredentialsMisnamedError if isinstance(error, FileNotFoundError) else CredentialsError
        what = error.strerror or error
        raise kind(f"[apns] ca_file {ca_file}: {what}; it must hold PEM certificates") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    return context


def load(config: Config, time: Callable[[], float], monotonic: Callable[[], float]) -> Credentials:
    """The configured credentials, checked. Raises CredentialsError, and its kinds."""
    apns = config.apns
    if apns.ca_file is not None:
        _read("ca_file", apns.ca_file)  # what is in it OpenSSL has to say
    if apns.token_key is not None:
        return _load_token_key(apns, apns.token_key, time, monotonic)
    certificate = apns.certificate
    if certificate is None:
        certificate = config.default_certificate
        if not certificate.exists():
            raise CredentialsMissingError(
                f"no push credentials yet: put the certificate and its key into {certificate}, "
                f"or name other files in {config.source}, section [apns]"
            )
    return _load_certificate(apns, certificate, datetime.fromtimestamp(time(), timezone.utc))


def files(config: Config) -> tuple[Path, ...]:
    """The files that the credentials come from, for noticing when they change."""
    apns = config.apns
    first = apns.token_key or apns.certificate or config.default_certificate
    return tuple(path for path in (first, apns.key, apns.password_file, apns.ca_file) if path is not None)


def _read(key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        kind = CredentialsMisnamedError if gone else CredentialsError
        mend = "check the name" if gone else "give group xaps-watch read permission"
        raise kind(f"[apns] {key} {path}: cannot be read: {error.strerror}; {mend}") from error


# --- certificate -----------------------------------------------------------------------------------------------------


def _load_certificate(apns: ApnsConfig, path: Path, now: datetime) -> Certificate:
    content = _read("certificate", path)
    password = _read("password_file", apns.password_file).rstrip(b"\r\n") if apns.password_file else None
    if b"-----BEGIN " in content:
        certificate, others, key = _from_pem(apns, path, content, password)
    else:
        certificate, others, key = _from_pkcs12(path, content, password)

    if key.public_key() != certificate.public_key():
        raise CredentialsError(f"[apns] key {apns.key or path}: does not fit the certificate in {path}")
    if certificate.not_valid_after_utc <= now:
        when = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        raise CredentialsExpiredError(f"[apns] certificate {path}: expired on {when}; get a new one from Apple")
    if certificate.not_valid_before_utc > now:
        raise CredentialsError(
            f"[apns] certificate {path}: not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC;"
            " check this machine's clock"
        )
    topics = topics_of(certificate)
    topic = apns.topic or next(iter(topics), None)
    if topic is None:
        raise CredentialsError(
            f"[apns] certificate {path}: its subject has no UID, so it names no topic; is it a push certificate?"
            " If it is, set topic"
        )
    if topics and topic not in topics:
        raise CredentialsMisnamedError(f"[apns] topic {topic!r}: the certificate {path} is for {', '.join(topics)}")
    if (fault := topic_fault(topic)) is not None:
        raise CredentialsError(f"[apns] certificate {path}: {fault}")
    return Certificate(
        topic=topic,
        topics=topics or (topic,),
        expires_at=certificate.not_valid_after_utc,
        source=path,
        chain=b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (certificate, *others)),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


_Loaded = tuple[x509.Certificate, list[x509.Certificate], CertificateIssuerPrivateKeyTypes]


def _from_pem(apns: ApnsConfig, path: Path, content: bytes, password: bytes | None) -> _Loaded:
    try:
        certificates = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise CredentialsError(f"[apns] certificate {path}: holds no readable PEM certificate") from error
    key_path = apns.key or path
    key_pem = _read("key", apns.key) if apns.key else content
    block = _PRIVATE_KEY.search(key_pem)
    if block is None:
        raise CredentialsError(f"[apns] key {key_path}: holds no PEM private key; name the file that does with key")
    # The key alone: the loader takes the first PEM block, which may be the certificate.
    key_pem = key_pem[block.start() :]
    try:
        key = serialization.load_pem_private_key(key_pem, password if b"ENCRYPTED" in key_pem else None)
    except TypeError as error:
        raise CredentialsError(f"[apns] key {key_path}: is encrypted; set password_file") from error
    except ValueError as error:
        what = "wrong password, or a damaged key" if b"ENCRYPTED" in key_pem else "not a readable private key"
        raise CredentialsError(f"[apns] key {key_path}: {what}") from error
    # A file may hold the issuers before or after: the one that fits the key is the push certificate.
    fitting = [c for c in certificates if c.public_key() == key.public_key()]
    first = fitting[0] if fitting else certificates[0]
    return first, [c for c in certificates if c is not first], key  # type: ignore[return-value]


def _from_pkcs12(path: Path, content: bytes, password: bytes | None) -> _Loaded:
    try:
        key, certificate, others = pkcs12.load_key_and_certificates(content, password)
    except ValueError as error:
        what = "wrong password (password_file), or" if password else "needs a password (set password_file), or is"
        raise CredentialsError(f"[apns] certificate {path}: {what} neither PEM nor PKCS#12") from error
    if certificate is None or key is None:
        raise CredentialsError(f"[apns] certificate {path}: the PKCS#12 file lacks the certificate or its private key")
    return certificate, others, key  # type: ignore[return-value]


# --- token key -------------------------------------------------------------------------------------------------------


def _load_token_key(
    apns: ApnsConfig, path: Path, time: Callable[[], float], monotonic: Callable[[], float]
) -> TokenKey:
    assert apns.key_id and apns.team_id and apns.topic  # config.py has seen to it
    try:
        key = serialization.load_pem_private_key(_read("token_key", path), None)
    except (TypeError, ValueError) as error:
        raise CredentialsError(f"[apns] token_key {path}: not a readable .p8 file as Apple issues it") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialsError(f"[apns] token_key {path}: holds no P-256 key; name the AuthKey_….p8 file from Apple")
    return TokenKey(
        topic=apns.topic,
        key_id=apns.key_id,
        team_id=apns.team_id,
        source=path,
        _key=key,
        _time=time,
        _monotonic=monotonic,
    )
