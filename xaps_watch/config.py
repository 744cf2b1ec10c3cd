"""The configuration file: TOML → frozen values. Every default stands here; every error names the key and the file."""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints
from urllib.parse import urlsplit

from xaps_watch.model import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_PATH = Path("/etc/xaps-watch/config.toml")
SERVICE_CREDENTIALS = Path("/run/credentials/xaps-watch.service")  # while it runs

# The only topics that iOS Mail accepts in an XAPPLEPUSHSERVICE answer: macOS Server's, and Apple's for providers.
TOPIC_PREFIXES = ("com.apple.mail.", "com.apple.mobilemail.push.")

HOSTS = {"production": "https://api.push.apple.com", "sandbox": "https://api.sandbox.push.apple.com"}


def _identifier(what: str) -> dict[str, Any]:
    return {"pattern": (re.compile(r"[A-Z0-9]{10}"), f"the 10 capital letters and digits of {what}")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApnsConfig:
    """``[apns]``: where pushes go, and with which credentials."""

    environment: str = field(default="production", metadata={"choices": tuple(HOSTS)})
    url: str | None = None  # instead of Apple: a simulator or gateway
    ca_file: Path | None = None  # trust this CA instead of the system's
    certificate: Path | None = None  # PEM (may hold the key) or PKCS#12
    key: Path | None = None
    password_file: Path | None = None  # of the key or the PKCS#12 file
    token_key: Path | None = None  # .p8, instead of a certificate
    key_id: str | None = field(default=None, metadata=_identifier("the key's ID"))
    team_id: str | None = field(default=None, metadata=_identifier("the developer team's ID"))
    topic: str | None = None
    priority: int | None = field(default=None, metadata={"choices": (5, 10)})  # None: leave the header out
    timeout: float = field(default=30.0, metadata={"minimum": 1.0})  # seconds, for one push
    transport: str = field(default="fast", metadata={"choices": ("fast", "httpx")})

    @property
    def push_url(self) -> str:
        return self.url or HOSTS[self.environment]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """``[registry]``: the file shared with the Dovecot plugin."""

    path: Path = Path("/var/lib/xaps-watch/registry.sqlite3")
    expire_after_days: float = field(default=30.0, metadata={"minimum": 2.0})  # phones renew every 23 hours


@dataclass(frozen=True, slots=True, kw_only=True)
class PushConfig:
    """``[push]``: when pushes go."""

    min_interval: float = field(default=3.0, metadata={"minimum": 0.0})  # seconds between two pushes to one device
    sync_changes: bool = False  # also push when mail was read, moved or deleted elsewhere
    change_delay: float = field(default=30.0, metadata={"minimum": 0.0})  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchConfig:
    """``[watch]``: mailboxes that inotify can't watch."""

    poll_interval: float = field(default=30.0, metadata={"minimum": 1.0})  # seconds, for one polled mailbox


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusConfig:
    """``[status]``: what ``xaps-watch status`` talks to."""

    socket: Path = Path("/run/xaps-watch/status.sock")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """``[metrics]``: an optional Prometheus listener."""

    listen: str | None = field(
        default=None,
        metadata={
            "pattern": (
                re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):(?!0)\d{1,5}"),
                "an address and a port, such as 127.0.0.1:9617",
            )
        },
    )

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port."""
        host, _, port = (self.listen or "").rpartition(":")
        return (host.strip("[]"), int(port)) if port else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file."""

    source: Path
    apns: ApnsConfig = field(default_factory=ApnsConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    push: PushConfig = field(default_factory=PushConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    status: StatusConfig = field(default_factory=StatusConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    @property
    def default_certificate(self) -> Path:
        """Looked for while [apns] names no credentials, so that the service can be started before Apple gave any."""
        return self.source.parent / "mail.pem"


def load(path: Path) -> Config:
    """Read and check the file. Raises ConfigError; the credentials that it names are checked by whoever loads them."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        mend = "call it as root" if isinstance(error, PermissionError) else "name the file with -c FILE"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; {mend}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    return parse(text, path)


def parse(text: str, source: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Turn the text of the file into a Config. Relative file names are taken from the directory of `source`."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    sections = {name: kind for name, kind in get_type_hints(Config).items() if name != "source"}
    values: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in sections:
            raise ConfigError(f"{source}: unknown {'section' if isinstance(table, dict) else 'key'} {name!r}"
                              + _did_you_mean(name, sections))  # fmt: skip
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {name} must be a section: [{name}]")
        values[name] = _Section(name, source, environ).read(sections[name], table)
    config = Config(source=source, **values)
    _check_apns(config.apns, source)
    if config.metrics.address is not None and config.metrics.address[1] > 65535:
        raise ConfigError(f"{source}: [metrics] listen must end in a port below 65536, not {config.metrics.listen!r}")
    return config


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Section:
    """Reads one table of the file into the dataclass that describes it."""

    name: str
    source: Path
    environ: Mapping[str, str]

    def read(self, kind: type[_T], table: Mapping[str, Any]) -> _T:
        hints = get_type_hints(kind)
        known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
        values = {}
        for key, raw in table.items():
            if key not in known:
                raise ConfigError(f"{self.source}: [{self.name}] unknown key {key!r}{_did_you_mean(key, known)}")
            value = self._typed(key, raw, hints[key])
            self._check(key, value, known[key].metadata)
            values[key] = value
        return kind(**values)

    def _typed(self, key: str, raw: Any, hint: Any) -> Any:
        kinds = getattr(hint, "__args__", (hint,))  # X | None → (X, None)
        if bool in kinds and isinstance(raw, bool):
            return raw
        if float in kinds and isinstance(raw, (int, float)) and not isinstance(raw, bool):
            return float(raw)
        if int in kinds and isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and raw and Path in kinds:
            return self._path(key, raw)
        if isinstance(raw, str) and raw and str in kinds:
            return raw
        wanted = {bool: "true or false", float: "a number", int: "a whole number"}.get(kinds[0], "a string, not empty")
        raise self._error(key, f"must be {wanted}, not {raw!r}")

    def _path(self, key: str, raw: str) -> Path:
        """A file name; ``$CREDENTIALS_DIRECTORY/…`` names a systemd credential (systemd.exec(5), LoadCredential=)."""
        marker = "$CREDENTIALS_DIRECTORY"
        if raw.startswith(marker):
            directory = self.environ.get(marker[1:])
            if directory is None and SERVICE_CREDENTIALS.is_dir():
                directory = str(SERVICE_CREDENTIALS)  # for the commands, which are not started by systemd
            if directory is None:
                raise self._error(
                    key, f"{marker} isn't set: start the service with LoadCredential= in its unit, or name a plain file"
                )
            raw = directory + raw[len(marker) :]
        return self.source.parent / raw

    def _check(self, key: str, value: Any, rules: Mapping[str, Any]) -> None:
        if "choices" in rules and value not in rules["choices"]:
            raise self._error(key, f"must be one of {', '.join(map(repr, rules['choices']))}, not {value!r}")
        if "minimum" in rules and not rules["minimum"] <= value < math.inf:  # so that nan is refused, too
            raise self._error(key, f"must be a number of at least {rules['minimum']}, not {value!r}")
        if "pattern" in rules and not rules["pattern"][0].fullmatch(value):
            raise self._error(key, f"must be {rules['pattern'][1]}, not {value!r}")

    def _error(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"{self.source}: [{self.name}] {key} {what}")


def _did_you_mean(word: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def topic_fault(topic: str) -> str | None:
    """Why iOS Mail would refuse the topic; None if it would not."""
    if topic.startswith(TOPIC_PREFIXES) and re.fullmatch(r"[A-Za-z0-9._-]+", topic):
        return None
    return f"topic {topic!r} would be refused by iOS Mail: it must begin with {' or '.join(TOPIC_PREFIXES)}"


def _check_apns(apns: ApnsConfig, source: Path) -> None:
    """What one key demands of another."""

    def error(key: str, what: str) -> ConfigError:
        return ConfigError(f"{source}: [apns] {key} {what}")

    if apns.url is not None:
        try:
            parts = urlsplit(apns.url)
            plain = parts.scheme == "https" and parts.hostname and parts.path in ("", "/") and not parts.query
            _ = parts.port  # raises on a bad one
        except ValueError:
            plain = False
        if not plain:
            raise error("url", f"must be of the form https://host:port, not {apns.url!r}")
    if apns.certificate and apns.token_key:
        raise error("token_key", "and certificate exclude each other: keep one of them")
    if apns.token_key:
        for key in ("key_id", "team_id", "topic"):
            if getattr(apns, key) is None:
                raise error(key, "is missing: token_key needs it")
    else:
        for key in ("key_id", "team_id"):
            if getattr(apns, key) is not None:
                raise error(key, "goes with token_key, which is missing")
        for key in ("key", "password_file"):
            if getattr(apns, key) is not None and apns.certificate is None:
                raise error(key, "goes with certificate, which is missing")
    if apns.topic is not None and (fault := topic_fault(apns.topic)) is not None:
        raise error("topic:", fault)
