"""New credentials are taken up when they are good, and the end of the old ones is told in time."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from time import time

import pytest

from tests.support.values import TOPIC
from xaps_watch.authority import LocalAuthority
from xaps_watch.config import ApnsConfig, Config
from xaps_watch.credentials import Credentials, CredentialsMisnamedError
from xaps_watch.keeper import LOOK_AGAIN, Keeper

DAY = 86400.0


class Place:
    """Where an admin keeps certificate and key."""

    def __init__(self, directory: Path) -> None:
        self.authority = LocalAuthority(directory / "authority")
        self.certificate = directory / "mail.pem"
        self.key = directory / "mail.key"
        self.now = time()
        self.monotonic = 1000.0
        self.config = Config(
            source=directory / "config.toml", apns=ApnsConfig(certificate=self.certificate, key=self.key)
        )
        self.keeper = Keeper(self.config, time=lambda: self.now, monotonic=lambda: self.monotonic)

    def put(self, *, days: float = 395.0, starts: float = -1.0) -> None:
        made = self.authority.push_certificate(TOPIC, starts=timedelta(starts), ends=timedelta(days))
        self.certificate.write_bytes(made.certificate_file.read_bytes())
        self.key.write_bytes(made.key_file.read_bytes())

    def started(self) -> Credentials:
        """Those that are in use after a start."""
        return self.used(self.keeper.start())

    def used(self, found: Credentials | None) -> Credentials:
        """As the daemon does with what was found."""
        assert found is not None
        self.keeper.use(found)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_nothing_is_read_again_while_nothing_changes(place: Place) -> None:
    place.put()
    place.started()
    place.monotonic += 10 * LOOK_AGAIN
    assert place.keeper.renewed() is None


def test_a_renewal_in_two_steps_keeps_the_old_until_both_files_are_there(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.put()
    first = place.started()
    new = place.authority.push_certificate(TOPIC, name="new")
    place.certificate.write_bytes(new.certificate_file.read_bytes())
    assert place.keeper.renewed() is None
    assert place.keeper.current is first
    assert "does not fit the certificate" in str(place.keeper.problem)
    assert place.keeper.renewed() is None
    assert caplog.text.count("new credentials not taken up") == 1
    place.key.write_bytes(new.key_file.read_bytes())
    assert place.used(place.keeper.renewed()) is not first
    assert place.keeper.problem is None


def test_a_file_that_vanishes_takes_nothing_away(place: Place) -> None:
    place.put()
    first = place.started()
    place.key.unlink()
    assert place.keeper.renewed() is None
    assert place.keeper.current is first


def test_a_start_with_an_expired_certificate_waits_for_a_new_one(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.put(starts=-9, days=-2)
    assert place.keeper.start() is None
    assert place.keeper.named
    assert "expired on" in str(place.keeper.problem)
    assert caplog.text.count("pushes wait") == 1
    assert place.keeper.renewed() is None
    place.put()
    place.used(place.keeper.renewed())
    assert place.keeper.problem is None


def test_a_start_with_a_wrong_clock_waits_until_it_is_right(place: Place) -> None:
    """No file changes then: a machine without a battery for its clock starts in the past."""
    place.put()
    right, place.now = place.now, place.now - 365 * DAY
    assert place.keeper.start() is None
    assert "check this machine's clock" in str(place.keeper.problem)
    place.now = right
    assert place.keeper.renewed() is None
    place.monotonic += LOOK_AGAIN
    place.used(place.keeper.renewed())


def test_a_start_with_a_name_of_nothing_is_an_error(place: Place) -> None:
    with pytest.raises(CredentialsMisnamedError, match="No such file"):
        place.keeper.start()


def test_credentials_that_come_later_are_taken_up(tmp_path: Path) -> None:
    config = Config(source=tmp_path / "config.toml")
    keeper = Keeper(config, time=time, monotonic=lambda: 0.0)
    assert keeper.start() is None
    assert not keeper.named
    assert "no push credentials yet" in str(keeper.problem)
    made = LocalAuthority(tmp_path / "authority").push_certificate(TOPIC)
    (tmp_path / "mail.pem").write_bytes(made.file.read_bytes())
    assert keeper.renewed() is not None


def test_the_end_is_told_at_30_7_and_1_days_and_daily_after_it(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.put(days=40)
    place.started()
    caplog.clear()
    caplog.set_level(logging.WARNING)
    told = []
    for hour in range(24 * 44):
        place.keeper.warn()
        if caplog.records:
            told.append(hour / 24)
            caplog.clear()
        place.now += DAY / 24
    assert [round(day) for day in told] == [10, 33, 39, 40, 41, 42, 43]
