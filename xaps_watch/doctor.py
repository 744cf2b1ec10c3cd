"""``xaps-watch check``: every precondition, one line each, with the command that mends what is missing."""

from __future__ import annotations

import argparse
import ctypes
import grp
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from xaps_watch import __version__, credentials, mounts, status
from xaps_watch import config as configuration
from xaps_watch.config import Config, RegistryConfig
from xaps_watch.credentials import Credentials, CredentialsError, CredentialsExpiredError, CredentialsMissingError
from xaps_watch.keeper import WARN_DAYS
from xaps_watch.model import ConfigError
from xaps_watch.registry import (
    DIRECTORY_MODE,
    FILE_MODE,
    Registry,
    RegistryError,
    RegistryVersionError,
    published_topic,
    topic_file,
)
from xaps_watch.terminal import printable
from xaps_watch.watches import WATCHES_EACH

OK, WARNING, FAILURE = "ok", "warning", "failure"
_SIGNS = {OK: "✔", WARNING: "!", FAILURE: "✘"}
_EXIT_STATUS = {OK: 0, WARNING: 1, FAILURE: 2}  # as monitoring plugins have it

_PATIENCE = 10.0  # seconds, for the push host and for Dovecot's programs
_UNSYNCHRONISED = 16.0  # seconds: NTP_PHASE_MAX; timedatectl draws the line there, too
_SPARE_WATCHES = 16  # for parents of what is missing
_LABEL = len("configuration:")  # the longest subject
_SHOWN = 5  # mailboxes of which the same is to be said
WATCH_LIMIT = Path("/proc/sys/fs/inotify/max_user_watches")
MOUNTS = Path("/proc/self/mountinfo")
PLUGIN = "imap_xaps"
_MODULES = ("lib90_imap_xaps_plugin.so", "libimap_xaps_registry.so")  # the second is loaded by the first
_INSTALL = "sudo systemd/install.sh"
_SNIPPET = f"{_INSTALL} --enable-dovecot"
_RESTART = "sudo systemctl restart xaps-watch"
SAMPLE = Path("/usr/local/share/doc/xaps-watch/config.toml")  # where install.sh puts it


@dataclass(frozen=True, slots=True)
class Finding:
    """One line."""

    subject: str
    state: str
    said: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """What the examinations are about."""

    config: Config
    credentials: Credentials | None
    paths: Collection[str]  # the registered mailboxes; none where the registry can't be read, which is a finding itself
    offline: bool
    filesystems: mounts.Filesystems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit status: 0 all is well, 1 something should be looked at, 2 something does not work."
    parser.add_argument("--offline", action="store_true", help="don't connect to the push host")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0: all is well; 1: something should be looked at; 2: something does not work."""
    findings = list(examine(arguments.config, offline=arguments.offline))
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{_SIGNS[finding.state]} {finding.subject + ':':{_LABEL}} {printable(finding.said)}")
            if finding.mend is not None:
                print(f"    → {finding.mend}")
    return max((_EXIT_STATUS[finding.state] for finding in findings), default=0)


def examine(path: Path, *, offline: bool = False) -> Iterator[Finding]:
    """All findings, in the order in which an installation is made."""
    try:
        config = configuration.load(path)
    except ConfigError as error:
        yield Finding("configuration", FAILURE, str(error), _configuration_mend(path))
        return
    yield Finding("configuration", OK, str(path))
    loaded: Credentials | None = None
    try:
        loaded = credentials.load(config, time.time, time.monotonic)
    except (CredentialsMissingError, CredentialsExpiredError) as error:
        yield Finding("credentials", FAILURE, str(error), _new_certificate(credentials.files(config)[0]))
    except CredentialsError as error:
        yield Finding("credentials", FAILURE, str(error), _permission_mend(config) or f"sudoedit {path}")
    case = Case(config, loaded, _registered(config), offline, mounts.Filesystems(mounts.parse(MOUNTS.read_text())))
    for examination in EXAMINATIONS:
        yield from examination(case)


def _configuration_mend(path: Path) -> str:
    if not path.exists():
        return f"sudo install -m 640 -g xaps-watch {SAMPLE} {path}"
    return f"sudoedit {path}" if os.access(path, os.R_OK) else "sudo xaps-watch check"


def _registered(config: Config) -> Collection[str]:
    try:
        with Registry(config.registry.path) as registry:
            return registry.paths().keys()
    except RegistryError:
        return ()


def _permission_mend(config: Config) -> str | None:
    """How to make a credentials file readable, where that is what's wrong."""
    for file in credentials.files(config):
        if file.exists() and not os.access(file, os.R_OK):
            return f"sudo chgrp xaps-watch {file} && sudo chmod 640 {file}"
    return None


def _new_certificate(file: Path) -> str:
    return f"sudo install -m 640 -g xaps-watch NEW.pem {file}   # NEW.pem: from Apple, with its key"


# --- Apple -----------------------------------------------------------------------------------------------------------


def _credentials(case: Case) -> Iterator[Finding]:
    found = case.credentials
    if found is None:
        return
    yield Finding("credentials", OK, f"{found.kind} {found.source}, topic {found.topic}")
    others = [topic for topic in found.topics if topic != found.topic]
    if others:
        yield Finding("credentials", OK, f"also for {', '.join(others)}")
    if found.expires_at is not None:
        left = (found.expires_at.timestamp() - time.time()) / 86400
        state = OK if left > WARN_DAYS[0] else WARNING if left > WARN_DAYS[1] else FAILURE
        mend = None if state == OK else _new_certificate(found.source)
        yield Finding("credentials", state, f"valid for {left:.0f} more days", mend)
    for file in credentials.files(case.config):
        if file.exists() and file.stat().st_mode & stat.S_IROTH and file != case.config.apns.ca_file:
            yield Finding("credentials", FAILURE, f"{file} may be read by everybody", f"sudo chmod o-rwx {file}")


def _push_host(case: Case) -> Iterator[Finding]:
    if case.offline or case.credentials is None:
        return
    url = urlsplit(case.config.apns.push_url)
    host, port = str(url.hostname), url.port or 443
    try:
        context = case.credentials.ssl_context(case.config.apns.ca_file)
        with (
            socket.create_connection((host, port), timeout=_PATIENCE) as connection,
            context.wrap_socket(connection, server_hostname=host) as tls,
        ):
            protocol, version = tls.selected_alpn_protocol(), tls.version()
    except CredentialsError as error:
        yield Finding("push host", FAILURE, str(error), f"sudoedit {case.config.source}")
    except ssl.SSLError as error:
        mend = "a proxy in between must let TLS through"
        if isinstance(error, ssl.SSLCertVerificationError):
            own = case.config.apns.ca_file
            mend = f"sudoedit {case.config.source}" if own else "sudo update-ca-certificates"
        yield Finding("push host", FAILURE, f"{host}:{port}: TLS failed: {error.reason or error}", mend)
    except OSError as error:
        mend = f"let this machine connect to {host}, TCP port {port} (outgoing)"
        if case.config.apns.url is not None:
            mend = f"sudoedit {case.config.source}"
        yield Finding("push host", FAILURE, f"{host}:{port}: {error.strerror or error}", mend)
    else:
        if protocol == "h2":
            yield Finding("push host", OK, f"{host}:{port} speaks HTTP/2 over {version}")
        else:
            yield Finding("push host", FAILURE, f"{host}:{port} speaks no HTTP/2", "no proxy may be in between")


# --- the registry and what is registered -----------------------------------------------------------------------------


def _registry(case: Case) -> Iterator[Finding]:
    path = case.config.registry.path
    try:
        with Registry(path) as registry:
            census, topic = registry.census(), registry.settings().get("topic")
            registry.check()
    except RegistryError as error:
        other = isinstance(error, RegistryVersionError)
        yield Finding("registry", FAILURE, str(error), _INSTALL if other else _RESTART)
        return
    yield Finding("registry", OK, f"{path}: {census.devices} devices of {census.users} users")
    if not topic:
        mend = _RESTART
        if case.credentials is None:
            mend = "none needed here: the topic comes with the credentials, see above"
        yield Finding("registry", FAILURE, "the plugin is told no topic, so Dovecot announces no push", mend)
    elif published_topic(path) != topic:
        said = f"{topic_file(path)} doesn't hold the topic {topic}, so Dovecot announces no push, or in vain"
        yield Finding("registry", FAILURE, said, _RESTART)
    kind = case.filesystems.at(str(path.parent))
    if mounts.is_remote(kind):
        mend = "name a file on a local file system: path in [registry], and xaps_registry in Dovecot's configuration"
        yield Finding("registry", FAILURE, f"{path} is on {kind}, over which SQLite's WAL mode does not work", mend)
    yield from _modes(path.parent, DIRECTORY_MODE)
    yield from _modes(path, FILE_MODE)
    if path.stat().st_gid != path.parent.stat().st_gid:
        mend = f"sudo chgrp -R {_group(path.parent)} {path.parent}"
        yield Finding("registry", FAILURE, f"{path} has not the group of its directory", mend)
    if census.suspended:
        said = f"{census.suspended} devices are suspended until they register again"
        yield Finding("registry", WARNING, said, "xaps-watch devices")


def _modes(path: Path, wanted: int) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & wanted != wanted:
        said = f"{path} has mode {mode:04o}; imap processes of all users must be able to write, by group"
        yield Finding("registry", FAILURE, said, f"sudo chmod {wanted:04o} {path}")
    elif mode & 0o007:
        yield Finding("registry", FAILURE, f"{path} is open to everybody", f"sudo chmod {wanted:04o} {path}")


def _group(path: Path) -> str:
    gid = path.stat().st_gid
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _mailboxes(case: Case) -> Iterator[Finding]:
    gone, closed = [], []
    kinds: Counter[str] = Counter()
    for path in sorted(case.paths):
        try:
            kind = case.filesystems.at(path)
        except OSError:
            gone.append(path)
            continue
        if os.access(f"{path}/new", os.R_OK | os.X_OK):
            kinds[kind] += 1
        else:
            closed.append(path)
    yield from _out_of_reach(gone, closed)
    if case.paths and not gone and not closed:
        yield Finding("mailboxes", OK, f"all {len(case.paths)} are there")
    for kind, count in kinds.most_common():
        how = "watched by inotify"
        if mounts.is_remote(kind):
            how = f"polled every {case.config.watch.poll_interval:g} s, since other machines' deliveries make no events"
        yield Finding("mailboxes", OK, f"{count} on {kind}, {how}")


def _out_of_reach(gone: list[str], closed: list[str]) -> Iterator[Finding]:
    for path in gone[:_SHOWN]:
        mend = "none needed: the phone forgets it when it registers again, within a day"
        yield Finding("mailboxes", WARNING, f"{path} is gone", mend)
    for path in closed[:_SHOWN]:
        mend = "run this as root; the service reads it by CAP_DAC_READ_SEARCH: systemctl cat xaps-watch"
        yield Finding("mailboxes", FAILURE, f"{path}/new can't be read", mend)
    more = max(0, len(gone) - _SHOWN) + max(0, len(closed) - _SHOWN)
    if more:
        yield Finding("mailboxes", WARNING, f"{more} more are gone or unreadable")


# --- the machine -----------------------------------------------------------------------------------------------------


def _inotify(case: Case) -> Iterator[Finding]:
    need = WATCHES_EACH * len(case.paths) + _SPARE_WATCHES
    limit = int(WATCH_LIMIT.read_text())
    if limit < need:
        sysctl = f"fs.inotify.max_user_watches={2 * need}"
        mend = f"echo {sysctl} | sudo tee /etc/sysctl.d/61-xaps-watch.conf && sudo sysctl -w {sysctl}"
        yield Finding("inotify", FAILURE, f"max_user_watches is {limit}, {need} are needed", mend)
    else:
        yield Finding("inotify", OK, f"{limit} watches allowed, {need} needed")


class _Timex(ctypes.Structure):
    """The beginning of struct timex, adjtimex(2), and room for its end."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("frequency", ctypes.c_long),
        ("maximum_error", ctypes.c_long), ("_", ctypes.c_char * 256),
    )  # fmt: skip


def clock_error() -> float:
    """By how many seconds the clock may be wrong at most, as the kernel keeps account. Raises OSError.

    It grows by half a millisecond a second since NTP, PTP or the like last set it; 16 is the end of the scale.
    """
    timex = _Timex()  # no modes: nothing is changed
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return float(timex.maximum_error) / 1e6


def _clock(case: Case) -> Iterator[Finding]:
    try:
        error = clock_error()
    except OSError as refused:
        yield Finding("clock", WARNING, f"the kernel doesn't say whether it is right: {refused.strerror}")
        return
    if error < _UNSYNCHRONISED:
        yield Finding("clock", OK, f"synchronised, wrong by {max(error, 0.001):.3f} s at most")
    else:
        tokens = case.credentials is not None and case.credentials.kind == "token"
        matters = "Apple refuses provider tokens of another hour" if tokens else "it should have the right time"
        yield Finding("clock", WARNING, f"not synchronised: {matters}", "sudo timedatectl set-ntp true")


def _daemon(case: Case) -> Iterator[Finding]:
    try:
        answer = status.ask(case.config.status.socket)
    except status.StatusError as error:
        yield Finding("service", FAILURE, str(error), f"sudo systemctl enable xaps-watch && {_RESTART}")
        return
    troubles = answer.get("troubles") or []
    yield Finding("service", OK if not troubles else WARNING, status.brief(answer["state"]))
    if answer["version"] != __version__:
        said = f"version {answer['version']} runs, {__version__} is installed"
        yield Finding("service", WARNING, said, _RESTART)
    for trouble in troubles:
        yield Finding("service", WARNING, str(trouble), "xaps-watch status; journalctl -u xaps-watch -n 50")


# --- Dovecot ---------------------------------------------------------------------------------------------------------


def _dovecot(case: Case) -> Iterator[Finding]:
    version = _output("dovecot", "--version")
    if version is None:
        said = "not installed here; where it runs in a container or elsewhere, check it there"
        yield Finding("Dovecot", WARNING, said, "sudo apt-get install dovecot-imapd")
        return
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if number < (2, 3):
        yield Finding("Dovecot", FAILURE, f"{version.strip()} is too old", "Dovecot 2.3 or 2.4 is needed")
        return
    yield Finding("Dovecot", OK, version.split()[0])
    yield from _plugin_file(version)
    yield from _plugin_settings(case, number >= (2, 4))


def _plugin_file(version: str) -> Iterator[Finding]:
    directory = Path((_doveconf("mail_plugin_dir") or "/usr/lib/dovecot/modules").strip())
    faults = [fault for name in _MODULES if (fault := _module_fault(directory / name, version)) is not None]
    if faults:
        yield Finding("plugin", FAILURE, faults[0], _INSTALL)
    else:
        yield Finding("plugin", OK, str(directory / _MODULES[0]))


def _module_fault(module: Path, version: str) -> str | None:
    try:
        content = module.read_bytes()
    except OSError as error:
        return f"{module}: {error.strerror}"
    # Dovecot loads only what was built for its own version; the module names it, as "2.3.ABIv19(2.3.19.1)" or, from
    # 2.4 on, "2.4.ABIv1": releases with one ABI share their plugins.
    named = re.search(rb"(\d+\.\d+)\.ABIv[0-9a-z]+(?:\(([0-9.]+)\))?", content)
    built = (named[2] or named[1]).decode() if named else "(unknown)"
    running = version.split()[0]
    if running != built and not (named and not named[2] and running.startswith(f"{built}.")):
        return f"{module} was built for Dovecot {built}, {running} is installed"
    return None


def _plugin_settings(case: Case, is_24: bool) -> Iterator[Finding]:
    plugins = _doveconf("mail_plugins", protocol="imap")
    if plugins is None:
        yield Finding("plugin", FAILURE, "Dovecot's configuration can't be read", "sudo doveconf -n")
        return
    if not re.search(rf"\b{PLUGIN}\b", plugins):
        yield Finding("plugin", FAILURE, f"{PLUGIN} is not in mail_plugins of protocol imap", _SNIPPET)
    else:
        yield Finding("plugin", OK, f"{PLUGIN} is loaded in protocol imap")
    group = _group(case.config.registry.path.parent) if case.config.registry.path.parent.exists() else "xaps-watch"
    if group not in re.split(r"[\s,]+", _doveconf("mail_access_groups", protocol="imap") or ""):
        said = f"protocol imap lacks mail_access_groups = {group}: the plugin can't open the registry"
        yield Finding("plugin", FAILURE, said, _SNIPPET)
    if (_doveconf("imap_capability", protocol="imap") or "").strip() and not is_24:
        said = "imap_capability is set explicitly, so that no plugin's capability is announced"
        yield Finding("plugin", FAILURE, said, "write imap_capability = +… with only what is to be added")
    for setting in ("mail_chroot", "service/imap/chroot"):
        if (_doveconf(setting, protocol="imap") or "").strip():
            name = setting.replace("/", " ")
            said = f"{name} hides the registry from the plugin"
            yield Finding("plugin", FAILURE, said, f"without chroot: {name} =")
    path, setting = case.config.registry.path, "xaps_registry" if is_24 else "plugin/xaps_registry"
    named = (_doveconf(setting, protocol="imap") or "").strip() or str(RegistryConfig().path)
    if named != str(path):
        said = f"Dovecot's xaps_registry is {named}, but path in [registry] is {path}"
        text = f"xaps_registry = {path}" if is_24 else f"plugin {{\\n  xaps_registry = {path}\\n}}"
        mend = f"printf '{text}\\n' | sudo tee /etc/dovecot/conf.d/96-xaps-registry.conf && sudo doveadm reload"
        yield Finding("plugin", FAILURE, said, mend)


def _doveconf(setting: str, protocol: str | None = None) -> str | None:
    """The value of a Dovecot setting; None if it can't be had."""
    return _output("doveconf", *(["-f", f"protocol={protocol}"] if protocol else []), "-h", setting)


def _output(*command: str) -> str | None:
    """What a program prints; None if it isn't there or fails."""
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


EXAMINATIONS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    _credentials,
    _push_host,
    _registry,
    _mailboxes,
    _inotify,
    _clock,
    _dovecot,
    _daemon,
)
