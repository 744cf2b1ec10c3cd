"""A private Dovecot of the installed version, 2.3 or 2.4, on loopback, with the plugin as built from this tree.

It needs root, as Dovecot does to serve several users, and leaves the installed Dovecot and its configuration alone.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.support.phone import Phone
from tests.support.values import TOPIC
from xaps_watch import registry
from xaps_watch.registry import Registry

PLUGIN_SOURCE = Path(__file__).parents[2] / "plugin"
PLUGIN_FILES = ("lib90_imap_xaps_plugin.so", "libimap_xaps_registry.so")
SETTINGS_FILE = "libimap_xaps_settings.so"
MODULES = Path("/usr/lib/dovecot/modules")
REGISTRY_GROUP = 64999
"""The registry's group. Numbers need no entry in /etc/group."""

_SHARED_23 = """
plugin {
  acl = vfile
}
namespace {
  type = shared
  separator = .
  prefix = shared.%%u.
  location = maildir:%%h/Maildir
  subscriptions = no
  list = children
}
namespace {
  type = public
  separator = .
  prefix = Public.
  location = maildir:DIRECTORY/public
  subscriptions = no
  list = children
}
"""
_SHARED_24 = """
acl_driver = vfile
namespace shared {
  type = shared
  separator = .
  prefix = shared.$user.
  mail_driver = maildir
  mail_path = %{owner_home}/Maildir
  subscriptions = no
  list = children
}
namespace public {
  type = public
  separator = .
  prefix = Public.
  mail_driver = maildir
  mail_path = DIRECTORY/public
  subscriptions = no
  list = children
}
"""

# What is in Dovecot's log only when something is broken.
FAULTS = ("Panic:", "Fatal:", "killed with signal", "Raw backtrace", "AddressSanitizer", "runtime error")


@functools.cache
def version() -> tuple[int, int, int]:
    """Of the Dovecot that is installed."""
    printed = subprocess.run(["dovecot", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", printed)  # "2.3.19.1 (9b53102964)", "2.4.1-4 (7d8c0e5759)"
    assert found is not None, printed
    return int(found[1]), int(found[2]), int(found[3])


def is_24() -> bool:
    return version() >= (2, 4, 0)


def shared_namespaces() -> str:
    """Configuration: the users' mailboxes as shared.USER.…, those in DIRECTORY/public as Public.…; acl tells rights."""
    return _SHARED_24 if is_24() else _SHARED_23


def build_plugin(directory: Path, *, sanitize: bool = False) -> Path:
    """Build the plugin there; the directory. With `sanitize`, AddressSanitizer and UBSan watch the imap processes."""
    make: tuple[str, ...] = ("make", "-s", "-C", str(PLUGIN_SOURCE), f"BUILD={directory}")
    subprocess.run([*make, "all"], check=True, timeout=120)
    if sanitize:  # but not the settings, which other processes load as well
        make += ("--always-make", "CFLAGS=-fsanitize=address,undefined")
        subprocess.run([*make, *(f"{directory}/{name}" for name in PLUGIN_FILES)], check=True, timeout=120)
        library = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
        run_imap_by(directory, f"env LD_PRELOAD={library.stdout.strip()}")
    return directory


def run_imap_by(plugin: Path, command: str) -> None:
    """Let a Dovecot with this plugin directory start its imap program by another one."""
    wrapper = plugin / "imap"
    wrapper.write_text(f'#!/bin/sh\nexec {command} /usr/lib/dovecot/imap "$@"\n')
    wrapper.chmod(0o755)


@dataclass(frozen=True)
class User:
    """A line of the passwd-file."""

    name: str
    uid: int = 5000
    extra: str = ""  # userdb_… fields


def make_registry(directory: Path, *, topic: str | None = TOPIC, group: int = REGISTRY_GROUP) -> Path:
    """A registry as the daemon makes it, in a directory of its own."""
    file = directory / "registry.sqlite3"
    directory.mkdir()
    os.chown(directory, 0, group)
    directory.chmod(registry.DIRECTORY_MODE)
    registry.create(file)
    if topic is not None:
        with Registry(file) as book:
            book.write(settings={"topic": topic})
    return file


@dataclass
class Dovecot:
    """Started on entering, stopped on leaving; a panic, or the end of a process by a signal, fails the test.

    `config` is added to the end of the configuration, DIRECTORY standing for the directory of all its files there and
    in users' fields; `plugins` go to mail_plugins of all protocols.
    With `plugin` None it runs without imap_xaps; if that isn't `enabled`, it is there, but not in the configuration.
    """

    plugin: Path | None  # a directory with the plugin as build_plugin() leaves it
    users: Sequence[User] = (User("alice"), User("bob", 5001))
    registry: Path | None = None  # one is made if none is given
    config: str = ""
    plugins: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # of imap_xaps, beside xaps_registry
    mail_path: str = "~/Maildir"
    enabled: bool = True
    may_fail: bool = False  # faults in the log are expected

    def __enter__(self) -> Dovecot:
        # Not pytest's own: all users must get in, and sockets' paths are short.
        self.directory = Path(tempfile.mkdtemp(prefix="dovecot-", dir="/tmp"))
        self.directory.chmod(0o755)
        try:
            self.port, self.lmtp_port = _free_port(), _free_port()
            if self.registry is None:
                self.registry = make_registry(self.directory / "registry")
            self._write_files()
            self._start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._stop()
            if kind is None and not self.may_fail:
                faults = [line for line in self.log.splitlines() if any(fault in line for fault in FAULTS)]
                assert not faults, "\n".join(faults)
        finally:
            self._clean_up()

    # --- what tests do with it ---------------------------------------------------------------------------------------

    def phone(self, username: str = "alice", **options: object) -> Phone:
        """A phone's connection, logged in."""
        return Phone(self.port, username, **options)  # type: ignore[arg-type]

    def home(self, username: str = "alice") -> Path:
        return self.directory / "home" / username

    def maildir(self, username: str = "alice", mailbox: str = "INBOX") -> Path:
        """Where a mailbox is, with the default layout."""
        inbox = self.home(username) / "Maildir"
        return inbox if mailbox == "INBOX" else inbox / f".{mailbox}"

    def run(self, *command: str, stdin: bytes = b"") -> str:
        """Run one of Dovecot's programs with this one's configuration (NAME -c FILE …); what it prints."""
        done = subprocess.run(
            [*self._prefix, command[0], "-c", str(self.config_file), *command[1:]],
            input=stdin, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr.decode()}"
        return done.stdout.decode()

    def doveadm(self, *arguments: str) -> str:
        return self.run("doveadm", *arguments)

    def create_mailboxes(self, username: str, *names: str) -> None:
        self.doveadm("mailbox", "create", "-u", username, *names)

    def deliver(self, username: str, message: bytes, *, mailbox: str = "INBOX") -> None:
        """By dovecot-lda."""
        self.run("/usr/lib/dovecot/dovecot-lda", "-d", username, "-m", mailbox, stdin=message)

    def deliver_by_lmtp(self, username: str, message: bytes) -> None:
        with smtplib.LMTP("127.0.0.1", self.lmtp_port) as lmtp:
            lmtp.sendmail("sender@example.org", [username], message)

    def recorded(self, username: str = "alice") -> dict[str, dict[str, Path]]:
        """The user's registrations: for each device token its mailboxes, and where they are."""
        assert self.registry is not None
        with Registry(self.registry) as book:
            return {
                device.token: {mailbox.name: Path(mailbox.path) for mailbox in book.mailboxes(device.id)}
                for device in book.devices(username)
            }

    def forget(self, username: str | None = None) -> None:
        """Remove the user's registrations, or all."""
        assert self.registry is not None
        with Registry(self.registry) as book:
            book.forget([device.id for device in book.devices(username)])

    def imap_processes(self, username: str = "alice") -> set[int]:
        """The processes of the user's sessions; users of one uid can't be told apart."""
        (uid,) = (user.uid for user in self.users if user.name == username)
        processes = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                command, _, numbers = (process / "stat").read_text().rpartition(")")
                is_ours = command.endswith("(imap") and int(numbers.split()[1]) == self._process.pid
                if is_ours and process.stat().st_uid == uid:
                    processes.add(int(process.name))
        return processes

    @property
    def log(self) -> str:
        file = self.directory / "dovecot.log"
        return file.read_text(errors="replace") if file.exists() else ""

    # --- how it is run -----------------------------------------------------------------------------------------------

    @property
    def _prefix(self) -> list[str]:
        """Where 2.4 looks for the settings that plugins bring is fixed: only its own processes see ours there."""
        if not is_24() or self.plugin is None:
            return []
        mount = 'mount --bind "$0" "$1" && shift && exec "$@"'
        return ["unshare", "-m", "sh", "-c", mount, str(self.directory / "settings"), str(MODULES / "settings")]

    @property
    def _imap_executable(self) -> str:
        if self.plugin is None or not (self.plugin / "imap").exists():
            return ""
        return f"executable = {self.plugin}/imap\n  vsz_limit = {'unlimited' if is_24() else 0}"

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [*self._prefix, "dovecot", "-F", "-c", str(self.config_file)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                    if connection.recv(64).startswith(b"* OK"):
                        return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                _, errors = self._process.communicate()
                raise AssertionError(f"Dovecot doesn't start:\n{errors.decode()}\n{self.log}")
            time.sleep(0.02)

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise

    def _clean_up(self) -> None:
        shutil.rmtree(self.directory)

    def _write_files(self) -> None:
        modules = self.directory / "modules"
        settings = self.directory / "settings"
        for directory, source in ((modules, MODULES), (settings, MODULES / "settings")):
            directory.mkdir()
            for module in source.glob("*.so"):
                shutil.copy(module, directory)  # no link: the directory will be mounted over the source
        if self.plugin is not None:
            for name in PLUGIN_FILES:
                shutil.copy(self.plugin / name, modules)
            if is_24():
                shutil.copy(self.plugin / SETTINGS_FILE, settings)
        lines = []
        for user in self.users:
            home = self.home(user.name)
            home.mkdir(parents=True)
            os.chown(home, user.uid, user.uid)
            lines.append(f"{user.name}:{{PLAIN}}pw:{user.uid}:{user.uid}::{home}::{user.extra}\n")
        users = self.directory / "users"
        users.write_text("".join(lines).replace("DIRECTORY", str(self.directory)))
        self.config_file = self.directory / "dovecot.conf"
        config = self._config_24() if is_24() else self._config_23()
        self.config_file.write_bytes(os.fsencode(config.replace("DIRECTORY", str(self.directory))))

    @property
    def _is_enabled(self) -> bool:
        return self.plugin is not None and self.enabled

    def _services(self) -> str:
        """What both versions write alike."""
        return f"""
namespace inbox {{
  inbox = yes
}}
service imap-login {{
  inet_listener imap {{
    port = {self.port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {self.lmtp_port}
  }}
}}
service imap {{
  {self._imap_executable}
}}"""

    def _config_23(self) -> str:
        settings = {"xaps_registry": str(self.registry), **self.settings} if self._is_enabled else {}
        imap_plugins = " imap_xaps" if self._is_enabled else ""
        return f"""
base_dir = {self.directory}/run
state_dir = {self.directory}/state
log_path = {self.directory}/dovecot.log
protocols = imap lmtp
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain
mail_location = maildir:{self.mail_path}
mail_plugin_dir = {self.directory}/modules
mail_plugins = {" ".join(self.plugins)}
passdb {{
  driver = passwd-file
  args = username_format=%u {self.directory}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {self.directory}/users
}}
{self._services()}
plugin {{
  {_lines(settings)}
}}
protocol imap {{
  mail_plugins = $mail_plugins{imap_plugins}
  mail_access_groups = {REGISTRY_GROUP}
}}
{self.config}
"""

    def _config_24(self) -> str:
        settings = {"xaps_registry": str(self.registry), **self.settings} if self._is_enabled else {}
        imap_plugins = ("imap_xaps",) if self._is_enabled else ()
        return f"""
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
base_dir = {self.directory}/run
state_dir = {self.directory}/state
log_path = {self.directory}/dovecot.log
protocols {{
  imap = yes
  lmtp = yes
}}
listen = 127.0.0.1
ssl = no
auth_allow_cleartext = yes
auth_mechanisms = plain
mail_driver = maildir
mail_path = {self.mail_path}
mail_plugin_dir = {self.directory}/modules
mail_plugins {{
  {_each_yes(self.plugins)}
}}
passdb passwd-file {{
  passwd_file_path = {self.directory}/users
}}
userdb passwd-file {{
  passwd_file_path = {self.directory}/users
}}
{self._services()}
{_lines(settings)}
protocol imap {{
  mail_plugins {{
    {_each_yes(imap_plugins)}
  }}
  mail_access_groups = {REGISTRY_GROUP}
}}
{self.config}
"""


def _lines(settings: Mapping[str, str]) -> str:
    return "\n".join(f"{key} = {value}" for key, value in settings.items())


def _each_yes(names: Sequence[str]) -> str:
    return "\n".join(f"{name} = yes" for name in names)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
