"""Keeps the credentials that are in use: takes up new ones when their files change, tells when they end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from xaps_watch import credentials
from xaps_watch.config import Config
from xaps_watch.credentials import Credentials, CredentialsError, CredentialsMissingError
from xaps_watch.logs import fields

log = logging.getLogger(__name__)

WARN_DAYS = (30, 7, 1)  # before the end; then daily


class Keeper:
    """The credentials in use; the old ones are kept for as long as the new ones can't be used."""

    def __init__(self, config: Config, *, time: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self.current: Credentials | None = None
        self.problem: str | None = None  # why there are none, or why newer ones aren't taken up
        self._config = config
        self._time = time
        self._monotonic = monotonic
        self._stamps: object = None
        self._warned: int | None = None  # days left when it was last told

    def start(self) -> Credentials | None:
        """Load what is configured; None where nothing is configured yet. Raises CredentialsError."""
        self._stamps = self._look_at_files()
        try:
            self.current = credentials.load(self._config, self._time, self._monotonic)
        except CredentialsMissingError as missing:
            self.problem = str(missing)
            log.warning("pushes wait %s", fields(why=missing))
        else:
            self._tell()
        return self.current

    def configure(self, config: Config) -> Credentials | None:
        """The configuration was read again: as renewed(), but look even if no file changed."""
        self._config = config
        self._stamps = None
        return self.renewed()

    def renewed(self) -> Credentials | None:
        """New credentials, if their files changed and they are good; None: go on with the current ones."""
        stamps = self._look_at_files()
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        try:
            self.current = credentials.load(self._config, self._time, self._monotonic)
        except CredentialsError as error:
            # Often half of a renewal: the certificate is there, its key not yet.
            if self.problem != str(error):
                log.error("new credentials not taken up %s", fields(why=error, in_use=self.current is not None))
                self.problem = str(error)
            return None
        self.problem, self._warned = None, None
        self._tell()
        return self.current

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

    def _tell(self) -> None:
        assert self.current is not None
        expires_at = self.current.expires_at
        facts = fields(
            kind=self.current.kind,
            file=self.current.source,
            topic=self.current.topic,
            expires=f"{expires_at:%Y-%m-%d}" if expires_at else None,
        )
        log.info("credentials in use %s", facts)

    def _look_at_files(self) -> list[tuple[Path, int, int, int] | None]:
        return [_stamp(path) for path in credentials.files(self._config)]


def _stamp(path: Path) -> tuple[Path, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return path, found.st_ino, found.st_size, found.st_mtime_ns
