"""Who was owed a push, and who got one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from xaps_watch.apns import mailbox_hash
from xaps_watch.model import is_inbox
from xaps_watch.simulator import Received


@dataclass(slots=True)
class Account:
    """What is owed to one device for one mailbox."""

    owed_since: float | None = None  # perf_counter() of the first delivery that no push has covered yet
    deliveries: int = 0  # that the next push covers


@dataclass(slots=True)
class Ledger:
    """Every delivery to a registered mailbox opens a debt to each device; a push that names the mailbox pays it.

    A push that reaches the phone after the mail was there shows the mail, for whatever earlier mail it was sent: so
    any accepted push that was received later than the delivery counts.
    """

    deliveries: int = 0
    pushes: int = 0  # accepted
    needless: int = 0  # accepted pushes that named only mailboxes in which nothing new was
    outcomes: Counter[str] = field(default_factory=Counter)  # what the local APNs answered
    waits: list[float] = field(default_factory=list)  # seconds from a delivery to the push that covered it
    _accounts: dict[tuple[str, str], Account] = field(default_factory=dict)  # (token, mailbox)

    def registered(self, token: str, mailboxes: Iterable[str]) -> None:
        """From now on this device is owed pushes for these mailboxes, and for no other."""
        names = set(mailboxes)
        for key in [key for key in self._accounts if key[0] == token and key[1] not in names]:
            del self._accounts[key]
        for name in names:
            self._accounts.setdefault((token, name), Account())

    def delivered(self, tokens: Collection[str], mailbox: str) -> None:
        """To be called before the mail gets its place: it may be seen the moment it has it."""
        self.deliveries += 1
        now = time.perf_counter()
        for token in tokens:
            account = self._accounts[token, mailbox]
            account.deliveries += 1
            if account.owed_since is None:
                account.owed_since = now

    def forgive(self, tokens: Collection[str], mailbox: str) -> None:
        """The mail itself is about to be removed: nobody can be told of it any longer."""
        for token in tokens:
            self._accounts[token, mailbox] = Account()

    def accepted(self, received: Received) -> None:
        """The local APNs took this push."""
        self.pushes += 1
        payload = received.payload
        assert isinstance(payload, dict), f"not a JSON object: {received.body!r}"
        hashes = payload["aps"].get("m")
        paid = 0
        for (token, mailbox), account in self._accounts.items():
            named = is_inbox(mailbox) if hashes is None else mailbox_hash(mailbox) in hashes
            owed_since = account.owed_since
            if token == received.token and named and owed_since is not None and received.at >= owed_since:
                self.waits.append(received.at - owed_since)
                account.owed_since, account.deliveries = None, 0
                paid += 1
        self.needless += not paid

    def debts(self) -> list[str]:
        """The deliveries that nobody was told of, in words."""
        now = time.perf_counter()
        return [
            f"{account.deliveries} deliveries to {mailbox}, device {token[-4:]}, since {now - account.owed_since:.1f} s"
            for (token, mailbox), account in self._accounts.items()
            if account.owed_since is not None
        ]

    def owed(self) -> int:
        """How many deliveries are still to be told of, each device counted."""
        return sum(account.deliveries for account in self._accounts.values() if account.owed_since is not None)
