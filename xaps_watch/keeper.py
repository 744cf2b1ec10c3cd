"""Keeps the credentials that are in use: finds new ones when their files change, tells when they end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from xaps_watch import credentials
from xaps_watch.config import Config
from xaps_watch.credentials import Credentials, CredentialsError, CredentialsMisnamedError, CredentialsMissingError
from xaps_watch.logs import fields

log = logging.getLogger(__name__)

WARN_DAYS = (30, 7, 1)  # before the end; then daily
LOOK_AGAIN = 60.0  # seconds, while there are none in use: what mends them may be the clock, or a mount


class Keeper:
    """The credentials in use; the old ones are kept for as long as the new ones can't be used.

    What start(), configure() and renewed() find is in use once it was handed to use(); else refuse() is told why not.
    """

    def __init__(self, config: Config, *, time: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self.current: Credentials | None = None
        self.problem: str | None = None  # why there are none, or why newer ones aren't taken up
        self.named = True  # whether there are any, usable or not
        self._config = config
        self._time = time
        self._monotonic = monotonic
        self._stamps: object = None
        self._look_at = 0.0  # monotonic: when to look at the latest, without any in use
        self._warned: int | None = None  # days left when it was last told

    def start(self) -> Credentials | None:
        """What is configured; None where it can't be used yet, and may be replaced. Raises CredentialsMisnamedError."""
        self._stamps = self._look_at_files()
        try:
            return self._load()
        except CredentialsMisnamedError:
            raise
        except CredentialsError as error:
            self.refuse(error)
            return None

    def configure(self, config: Config) -> Credentials | None:
        """The configuration was read again: as renewed(), but look even if no file changed."""
        self._config = config
        self._stamps = None
        return self.renewed()

    def renewed(self) -> Credentials | None:
        """New credentials, if their files changed and they are good; None: go on with the current ones."""
        stamps = self._look_at_files()
        if stamps == self._stamps and (self.current is not None or self._monotonic() < self._look_at):
            return None
        self._stamps = stamps
        try:
            return self._load()
        except CredentialsError as error:
            self.refuse(error)
            return None

    def _load(self) -> Credentials:
        self._look_at = self._monotonic() + LOOK_AGAIN
        return credentials.load(self._config, self._time, self._monotonic)

    def use(self, found: Credentials) -> None:
        """From now on these are in use."""
        self.current, self.problem, self.named, self._warned = found, None, True, None
        expires = found.expires_at
        facts = fields(
            kind=found.kind, file=found.source, topic=found.topic, expires=f"{expires:%Y-%m-%d}" if expires else None
        )
        log.info("credentials in use %s", facts)

    def refuse(self, error: CredentialsError) -> None:
        """They can't be used: told once. Often it is half of a renewal, the certificate without its key."""
        self.named = not isinstance(error, CredentialsMissingError)
        if self.problem == str(error):
            return
        self.problem = str(error)
        if self.current is not None:
            log.error("new credentials not taken up %s", fields(why=error))
        else:
            log.log(logging.ERROR if self.named else logging.WARNING, "pushes wait %s", fields(why=error))

    def days_left(self) -> float | None:
        """Days until the credentials end; None where they don't."""
        if self.current is None or self.current.expires_at is None:
            return None
        return (self.current.expires_at.timestamp() - self._time()) / 86400

    def warn(self) -> None:
        """Tell 30, 7 and 1 days before the end, and each day after it. To be called now and then."""
        left = self.days_left()
        if left is None or left > WARN_DAYS[0]:
            return
        # The step that was reached: the smallest of WARN_DAYS that covers what is left; below, each day is a step.
        step = min(days for days in WARN_DAYS if left <= days) if left > 0 else int(left) - 1
        if step == self._warned:
            return
        self._warned = step
        assert self.current is not None
        what = f"expires in {left:.0f} days" if left > 0 else f"expired {-left:.0f} days ago"
        log.critical("push certificate %s %s", what, fields(file=self.current.source, mend="get a new one from Apple"))

    def _look_at_files(self) -> list[tuple[Path, int, int, int] | None]:
        return [_stamp(path) for path in credentials.files(self._config)]


def _stamp(path: Path) -> tuple[Path, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return path, found.st_ino, found.st_size, found.st_ctime_ns  # not mtime: permissions may be what is mended
