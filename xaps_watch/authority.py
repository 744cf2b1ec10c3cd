"""A certificate authority of one directory: what the simulator, the demo and the tests need to speak real TLS.

It makes a CA, a server certificate for localhost, push certificates as Apple issues them (topic in the subject's
UID, all topics in an extension) in every form that an admin may have them, and .p8 keys. The CA and the .p8 keys
stay as they are once made, so a configuration that names them keeps working; the rest is made anew when asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xaps_watch.topics import TOPICS_EXTENSION, encode_topics

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class PushCertificate:
    """A client certificate for APNs, and the files that hold it."""

    topic: str
    topics: tuple[str, ...]
    file: Path  # PEM: certificate and key
    certificate_file: Path  # PEM: the certificate alone
    key_file: Path  # PEM: its key, unencrypted
    encrypted_key_file: Path  # PEM: its key, encrypted with the password
    pkcs12_file: Path
    password: str = field(repr=False)
    password_file: Path


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """A .p8 key for token authentication. The simulator checks tokens with its public half."""

    file: Path
    key_id: str
    team_id: str
    public_key: ec.EllipticCurvePublicKey = field(repr=False)


class LocalAuthority:
    """Makes certificates and keys below one directory. Files with private keys have mode 0600."""

    def __init__(self, directory: Path, *, server_ends: timedelta = timedelta(days=825)) -> None:
        """Loads the directory's CA, or makes one, and makes a server certificate for localhost, valid until then.

        Raises OSError if the directory can't be used."""
        self.directory = directory.absolute()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ca_file = self.directory / "ca.pem"
        self.server_file = self.directory / "server.pem"
        self.provider_keys: list[ProviderKey] = []
        self._ca_key, self._ca = self._load_or_make_ca()
        self._make_server_certificate(server_ends)

    def _load_or_make_ca(self) -> tuple[PrivateKey, x509.Certificate]:
        key_file = self.directory / "ca.key"
        if key_file.exists() and self.ca_file.exists():
            loaded = serialization.load_pem_private_key(key_file.read_bytes(), None)
            assert isinstance(loaded, ec.EllipticCurvePrivateKey)
            return loaded, x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "xaps-watch local authority (for tests only)")])
        now = datetime.now(timezone.utc)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3650))  # so that it covers the expired certificates it issues
            .not_valid_after(now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write_secret(key_file, _pem_key(key))
        _write(self.ca_file, certificate.public_bytes(serialization.Encoding.PEM))
        return key, certificate

    def _make_server_certificate(self, ends: timedelta) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")), x509.IPAddress(ip_address("::1"))]
        certificate = self._issue(
            key,
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
            timedelta(days=-1),
            ends,
            [x509.SubjectAlternativeName(names), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])],
        )
        _write_secret(self.server_file, _pem(certificate) + _pem_key(key))

    def push_certificate(
        self,
        topic: str,
        *,
        name: str = "push",
        topics: tuple[str, ...] = (),
        starts: timedelta = timedelta(days=-1),
        ends: timedelta = timedelta(days=395),
        use_rsa: bool = False,
        password: str = "push certificate",  # noqa: S107 - it protects a certificate for tests
    ) -> PushCertificate:
        """Makes a push certificate for `topic`, valid from now + `starts` to now + `ends`, in files called `name`.*.

        `topics`, if given, are named in Apple's topics extension (the certificates of today have it, older ones not).
        The key is EC P-256 for speed; Apple's own certificates have RSA keys: `use_rsa` makes one like that."""
        key: PrivateKey
        key = rsa.generate_private_key(65537, 2048) if use_rsa else ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.USER_ID, topic), x509.NameAttribute(NameOID.COMMON_NAME, f"APSP:{topic}")]
        )
        extensions: list[x509.ExtensionType] = [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]
        if topics:
            extensions.append(x509.UnrecognizedExtension(TOPICS_EXTENSION, encode_topics(topics)))
        certificate = self._issue(key, subject, starts, ends, extensions)

        def path(suffix: str) -> Path:
            return self.directory / f"{name}{suffix}"

        made = PushCertificate(
            topic, topics, path(".pem"), path("-certificate.pem"), path(".key"), path("-encrypted.key"),
            path(".p12"), password, path(".password"),
        )  # fmt: skip
        encryption = serialization.BestAvailableEncryption(password.encode())
        _write_secret(made.file, _pem(certificate) + _pem_key(key))
        _write(made.certificate_file, _pem(certificate))
        _write_secret(made.key_file, _pem_key(key))
        _write_secret(made.encrypted_key_file, _pem_key(key, encryption))
        _write_secret(
            made.pkcs12_file,
            pkcs12.serialize_key_and_certificates(topic.encode(), key, certificate, [self._ca], encryption),
        )
        _write_secret(made.password_file, password.encode() + b"\n")
        return made

    def provider_key(self, key_id: str = "ABC123DEFG", team_id: str = "DEF123GHIJ") -> ProviderKey:
        """Makes the .p8 key `key_id`, or loads it if the directory has it."""
        file = self.directory / f"AuthKey_{key_id}.p8"
        if file.exists():
            key = serialization.load_pem_private_key(file.read_bytes(), None)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
            _write_secret(file, _pem_key(key))
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        made = ProviderKey(file, key_id, team_id, key.public_key())
        self.provider_keys = [*(known for known in self.provider_keys if known.key_id != key_id), made]
        return made

    def _issue(
        self,
        key: PrivateKey,
        subject: x509.Name,
        starts: timedelta,
        ends: timedelta,
        extensions: list[x509.ExtensionType],
    ) -> x509.Certificate:
        now = datetime.now(timezone.utc)
        builder = (
            x509.CertificateBuilder(self._ca.subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key()), critical=False
            )
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._ca_key, hashes.SHA256())


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


_PLAIN: serialization.KeySerializationEncryption = serialization.NoEncryption()


def _pem_key(key: PrivateKey, encryption: serialization.KeySerializationEncryption = _PLAIN) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replaces the file in one step, so that a program that reads it now sees the old or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
        file.write(content)
    fresh.replace(path)


def _write_secret(path: Path, content: bytes) -> None:
    _write(path, content, 0o600)
