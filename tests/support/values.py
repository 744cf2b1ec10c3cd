"""Values of the straight line, where a test doesn't care for their details."""

from __future__ import annotations

from tests.support.daemon import ACCOUNT_ID, TOPIC, device_token
from xaps_watch.model import Device


def device(number: int = 1, *, version: int = 2, registered_at: int = 1_700_000_000_000) -> Device:
    """A registered device like no other."""
    return Device(
        id=number,
        username=f"user{number}",
        account_id=ACCOUNT_ID,
        token=device_token(number),
        topic=TOPIC,
        version=version,
        registered_at=registered_at,
    )
