"""An iPhone's Mail app, as far as push goes: its IMAP dialogue, what it remembers, what it does on a push."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.support.values import ACCOUNT_ID

DEVICE_TOKEN = "2918390218931890821908309283098109381029309829018310983092892829"  # noqa: S105 - nobody's token
SUBTOPIC = "com.apple.mobilemail"
COMMAND = "XAPPLEPUSHSERVICE"


def encode_name(name: str) -> bytes:
    """A mailbox name in modified UTF-7 (RFC 3501, 5.1.3)."""
    encoded = b""
    for run in re.findall(r"[\x20-\x7e]+|[^\x20-\x7e]+", name):
        if run.isascii() and run.isprintable():
            encoded += run.replace("&", "&-").encode()
        else:
            digits = base64.b64encode(run.encode("utf-16-be")).rstrip(b"=").replace(b"/", b",")
            encoded += b"&" + digits + b"-"
    return encoded


def decode_name(name: str) -> str:
    """A mailbox name out of modified UTF-7."""

    def decode(match: re.Match[str]) -> str:
        digits = match[1].replace(",", "/")
        return base64.b64decode(digits + "=" * (-len(digits) % 4)).decode("utf-16-be") if digits else "&"

    return re.sub(r"&([^-]*)-", decode, name)


def atom(value: bytes) -> bytes:
    return value


def quoted(value: bytes) -> bytes:
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def literal(value: bytes) -> bytes:
    """A literal that waits for the server's consent."""
    return b"{%d}\r\n" % len(value) + value


def literal_plus(value: bytes) -> bytes:
    """A non-synchronising literal (RFC 7888)."""
    return b"{%d+}\r\n" % len(value) + value


FORMS = {form.__name__: form for form in (atom, quoted, literal, literal_plus)}
"""How a string may be written. An atom must be made of characters that may stand in one."""


@dataclass(frozen=True)
class Answer:
    """What the server said to one command."""

    status: str  # OK, NO or BAD
    text: str
    untagged: tuple[str, ...]


@dataclass(frozen=True)
class Registration:
    """What the phone remembers of a registration."""

    account_id: str
    topic: str
    version: int
    mailboxes: tuple[str, ...]  # as echoed

    def refreshes(self, payload: Mapping[str, Any], *, topic: str | None = None, waited: bool = False) -> set[str]:
        """The mailboxes that the phone looks into on this push. `waited`: it was off, and Apple kept the push."""
        aps = payload.get("aps", {})
        if (topic is not None and topic != self.topic) or aps.get("account-id") != self.account_id:
            return set()
        changed = aps.get("m")
        if not isinstance(changed, list):
            return {"INBOX"}
        if waited:
            return set(self.mailboxes)
        hashes = {digest.lower() for digest in changed if isinstance(digest, str)}
        return {name for name in self.mailboxes if mailbox_hash(name) in hashes}


def mailbox_hash(name: str) -> str:
    """By this a push names a mailbox."""
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


class RefusedError(Exception):
    """The server answered a registration with NO or BAD: the phone won't try again for 23 hours."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.text}")
        self.answer = answer


class Phone:
    """One connection of a phone, logged in unless told otherwise. Raises ConnectionError when the server ends it."""

    def __init__(
        self,
        port: int,
        username: str,
        password: str = "pw",  # noqa: S107 - of the tests' users
        *,
        account_id: str = ACCOUNT_ID,
        device_token: str = DEVICE_TOKEN,
        host: str = "127.0.0.1",
        timeout: float = 20.0,
        login: bool = True,
    ) -> None:
        self.username, self.password = username, password
        self.account_id = account_id
        self.capabilities: frozenset[str] = frozenset()  # after login
        self.device_token = device_token
        self._tags = 0
        self.utf8_names = False  # mailbox names are in UTF-8, not in modified UTF-7
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self._reader = self.socket.makefile("rb")
        try:
            self.greeting = self.line()
            if login:
                self.login()
        except BaseException:
            self.close()
            raise

    def login(self) -> None:
        """Raises RefusedError."""
        answer = self.command(b"LOGIN " + quoted(self.username.encode()) + b" " + quoted(self.password.encode()))
        if answer.status != "OK":
            raise RefusedError(answer)
        capability = re.search(r"CAPABILITY ([^\]]*)", " ".join([answer.text, *answer.untagged]))
        self.capabilities = frozenset(capability[1].split() if capability else ())

    @property
    def is_offered_push(self) -> bool:
        return COMMAND in self.capabilities

    # --- IMAP --------------------------------------------------------------------------------------------------------

    def line(self) -> str:
        """One line from the server."""
        line = self._reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError(f"the server ended the connection {line!r}")
        return line[:-2].decode()

    def send(self, data: bytes) -> None:
        """Send this, stopping at each synchronising literal until the server wants it."""
        for part in re.split(rb"(?<=[0-9]}\r\n)", data):
            if not part:
                continue
            self.socket.sendall(part)
            if re.search(rb"{[0-9]+}\r\n\Z", part):
                reply = self.line()
                if not reply.startswith("+"):
                    raise ConnectionError(f"the server wants no literal: {reply}")

    def answer(self, tag: str) -> Answer:
        """Read until the command of that tag is done."""
        untagged: list[str] = []
        while True:
            line = self.line()
            if line.startswith(f"{tag} "):
                status, _, text = line[len(tag) + 1 :].partition(" ")
                return Answer(status, text, tuple(untagged))
            untagged.append(line)

    def next_tag(self) -> str:
        self._tags += 1
        return f"a{self._tags}"

    def command(self, line: bytes) -> Answer:
        tag = self.next_tag()
        self.send(f"{tag} ".encode() + line + b"\r\n")
        return self.answer(tag)

    def is_alive(self) -> bool:
        """Whether the session still answers."""
        return self.command(b"NOOP").status == "OK"

    def enable_utf8(self) -> bool:
        """UTF8=ACCEPT (RFC 6855); False where the server hasn't got it. For the names set `utf8_names`."""
        return "UTF8=ACCEPT" in " ".join(self.command(b"ENABLE UTF8=ACCEPT").untagged)

    # --- registration ------------------------------------------------------------------------------------------------

    def register(
        self,
        mailboxes: Iterable[str] | None = ("INBOX",),
        *,
        form: str = "quoted",
        version: int | None = 2,
        pairs: Sequence[tuple[bytes, bytes]] = (),
    ) -> Registration:
        """Ask for pushes as iOS does; `form` is how strings are written, `pairs` are added. Raises RefusedError."""
        return self.registered(self.command(self.request(mailboxes, form=form, version=version, pairs=pairs)))

    def request(
        self,
        mailboxes: Iterable[str] | None = ("INBOX",),
        *,
        form: str = "quoted",
        version: int | None = 2,
        pairs: Sequence[tuple[bytes, bytes]] = (),
    ) -> bytes:
        """The command that register() sends."""
        write = FORMS[form]
        written = [(b"aps-version", b"%d" % version)] if version is not None else []
        written += [
            (b"aps-account-id", write(self.account_id.encode())),
            (b"aps-device-token", write(self.device_token.encode())),
            (b"aps-subtopic", write(SUBTOPIC.encode())),
        ]
        if mailboxes is not None:
            encode = str.encode if self.utf8_names else encode_name
            written.append((b"mailboxes", b"(" + b" ".join(write(encode(name)) for name in mailboxes) + b")"))
        return b" ".join([COMMAND.encode(), *(key + b" " + value for key, value in (*written, *pairs))])

    def registered(self, answer: Answer) -> Registration:
        """What the phone makes of the answer. Raises RefusedError."""
        if answer.status != "OK":
            raise RefusedError(answer)
        names: list[str] = []
        values: dict[str, str] = {}
        for line in answer.untagged:
            if not line.startswith(f"* {COMMAND} "):
                continue
            strings = [re.sub(r"\\(.)", r"\1", string) for string in re.findall(r'"((?:[^"\\]|\\.)*)"', line)]
            for key, value in zip(strings[::2], strings[1::2], strict=True):
                if key == "mailbox":
                    names.append(value if self.utf8_names else decode_name(value))
                else:
                    values[key] = value
        return Registration(self.account_id, values["aps-topic"], int(values["aps-version"]), tuple(names))

    # --- its end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._reader.close()
        self.socket.close()

    def __enter__(self) -> Phone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
