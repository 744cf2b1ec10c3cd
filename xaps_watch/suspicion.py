"""Whether BadDeviceToken speaks against one phone, or against the whole configuration. Pure.

Apple gives this answer to a token that is no longer any, and also to every token of the other environment (production
or sandbox). A single accepted push shows that the environment is right.
"""

from __future__ import annotations

from xaps_watch.model import Device

ENOUGH = 3  # phones that were all refused, with none accepted: rather the environment than each of them


class Suspicion:
    """What was answered since the credentials and the environment in use were taken up."""

    def __init__(self) -> None:
        self._environment_is_right = False
        self._suspects: dict[int, Device] = {}

    def accepted(self) -> None:
        """A push was accepted."""
        self._environment_is_right = True
        self._suspects.clear()

    def falls_on(self, device: Device) -> bool:
        """A push was answered by BadDeviceToken. True: suspend the device. False: it is the environment."""
        if self._environment_is_right:
            return True
        self._suspects[device.id] = device
        return len(self._suspects) < ENOUGH

    def acquitted(self) -> list[Device]:
        """The devices that were suspended before it turned out to be the environment."""
        return list(self._suspects.values())
