"""imap-hibernate takes an idling client's connection, and gives it to a new imap process when the client speaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.dovecot import Dovecot

CONFIG = """
imap_hibernate_timeout = 1 s
service imap {
  unix_listener imap-master {
    user = dovecot
  }
}
service imap-hibernate {
  unix_listener imap-hibernate {
    mode = 0666
  }
}
"""


@pytest.fixture
def dovecot(plugin: Path) -> Iterator[Dovecot]:
    with Dovecot(plugin, config=CONFIG) as running:
        running.create_mailboxes("alice", "Notes")
        yield running


def test_a_session_comes_back_with_the_capability(dovecot: Dovecot) -> None:
    with dovecot.phone() as phone:
        assert phone.register(["INBOX", "Notes"]).mailboxes == ("INBOX", "Notes")
        assert phone.command(b"SELECT INBOX").status == "OK"
        for _ in range(2):
            processes = dovecot.imap_processes()
            assert len(processes) == 1
            phone.send(b"idle IDLE\r\n")
            assert phone.line().startswith("+")
            _wait_until(lambda: not dovecot.imap_processes())
            phone.send(b"DONE\r\n")
            assert phone.answer("idle").status == "OK"
            assert dovecot.imap_processes() != processes
            assert "XAPPLEPUSHSERVICE" in phone.command(b"CAPABILITY").untagged[0]
            assert phone.register(["Notes"]).mailboxes == ("Notes",)
    assert "imap-xaps" not in dovecot.log


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
