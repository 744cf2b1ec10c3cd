"""What the plugin costs a login, and how long a registration takes. Needs root.

The logins go in turn to two Dovecots, one with the plugin and one without; each waits for the tagged OK of LOGIN, which
a new imap process sends. Registrations stand beside a LIST of the same mailboxes in the same session.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

from tests.bench.report import Report
from tests.support.dovecot import Dovecot, build_plugin, version
from tests.support.phone import Phone
from xaps_watch.registry import Registry

MANY = 1000


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def login(dovecot: Dovecot) -> float:
    """Seconds from LOGIN to its OK."""
    with Phone(dovecot.port, "alice", login=False) as phone:
        return timed(phone.login)


def logins(plugin: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds with the plugin, and without."""
    with Dovecot(plugin) as with_it, Dovecot(plugin, enabled=False) as without:
        assert with_it.registry is not None
        with Registry(with_it.registry) as daemon:  # it holds the registry open all the time
            assert daemon.changed()
            for _ in range(20):
                login(with_it), login(without)
            pairs = [(login(with_it), login(without)) for _ in range(rounds)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def registrations(plugin: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds, by what was measured."""
    found: dict[str, list[float]] = {}
    with Dovecot(plugin) as dovecot:
        names = [f"many.{number:04}" for number in range(MANY)]
        dovecot.create_mailboxes("alice", *names)
        with dovecot.phone() as phone:
            measures: dict[str, Callable[[], object]] = {
                "1 mailbox, new device": lambda: phone.register(["INBOX"]),
                "1 mailbox, renewed": lambda: phone.register(["INBOX"]),
                f"{MANY} mailboxes, new device": lambda: phone.register(names),
                f"{MANY} mailboxes, renewed": lambda: phone.register(names),
                f"LIST of {MANY} mailboxes": lambda: phone.command(b'LIST "" *'),
            }
            for round_ in range(rounds):
                for number, (name, measure) in enumerate(measures.items()):
                    if name.endswith("new device"):
                        phone.device_token = f"{round_ * 10 + number:064x}"
                    found.setdefault(name, []).append(timed(measure))
    return found


def run(directory: Path, *, quick: bool) -> Report:
    rounds = 40 if quick else 500
    plugin = build_plugin(directory)
    with_it, without = logins(plugin, rounds)
    others = registrations(plugin, max(rounds // 20, 3))
    rows = [
        [name, f"{median(figures) * 1000:.2f} ms", f"{quantiles(figures, n=10)[8] * 1000:.2f} ms"]
        for name, figures in {"login with the plugin": with_it, "login without": without, **others}.items()
    ]
    rows.append(["login with to without", f"{median(with_it) / median(without):.3f} ×", ""])
    title = f"What the plugin costs Dovecot {'.'.join(map(str, version()))}"
    return Report(title, ["", "median", "90 %"], rows)
