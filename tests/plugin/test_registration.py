"""What a phone says, what it is answered, and what is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.dovecot import Dovecot
from tests.support.phone import FORMS
from xaps_watch.registry import Registry

MAILBOXES = ("INBOX", "Notes", "My Folder", "Entwürfe", "Tom & Jerry", "a.b", 'back\\slash "quoted"', "🐈 emoji")


@pytest.fixture(scope="module", autouse=True)
def _mailboxes(dovecot: Dovecot) -> None:
    dovecot.create_mailboxes("alice", *MAILBOXES[1:])


def recorded(dovecot: Dovecot, username: str = "alice") -> dict[str, Path]:
    """The mailboxes of the user's only device."""
    assert dovecot.registry is not None
    with Registry(dovecot.registry) as book:
        (device,) = book.devices(username)
        return {mailbox.name: Path(mailbox.path) for mailbox in book.mailboxes(device.id)}


@pytest.mark.parametrize("form", FORMS)
def test_every_mailbox_is_echoed_and_recorded_in_whatever_form_it_is_written(dovecot: Dovecot, form: str) -> None:
    asked = [name for name in MAILBOXES if form != "atom" or name in ("INBOX", "Notes", "Entwürfe", "a.b")]
    with dovecot.phone() as phone:
        registration = phone.register([*asked, "Missing"], form=form)
        assert phone.is_alive()
    assert set(registration.mailboxes) == set(asked)
    assert set(recorded(dovecot)) == set(asked)
    for path in recorded(dovecot).values():
        assert (path / "cur").is_dir()
