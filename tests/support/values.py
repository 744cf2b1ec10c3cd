"""Values of the straight line, where a test doesn't care for their details."""

from __future__ import annotations

from xaps_watch.model import Device

TOPIC = "com.apple.mobilemail.push.org.example"
ACCOUNT_ID = "0715A26B-CA09-4730-A419-793000CA982E"


def device_token(number: int) -> str:
    """A device token like no other's."""
    return f"{number:064x}"


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
