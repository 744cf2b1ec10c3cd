"""What the plugin costs a login, and how long a registration takes. Needs root.

The logins go in turn to three Dovecots: one with the plugin, one with a plugin that does nothing, one without; each
waits for the tagged OK of LOGIN, which a new imap process sends. Registrations stand beside a LIST of the same
mailboxes in the same session.

``python -m tests.bench.bench_plugin trixie`` measures with that Debian's Dovecot.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from tests.bench.report import Report
from tests.plugin.__main__ import run_python
from tests.support.dovecot import PLUGIN_FILES, Dovecot, build_plugin, version
from tests.support.phone import Phone
from xaps_watch.registry import Registry

MANY = 1000
WARM_UP = 20  # rounds
NOTHING = "void imap_xaps_plugin_init(void) {} void imap_xaps_plugin_deinit(void) {}"


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def login(dovecot: Dovecot) -> float:
    """Seconds from LOGIN to its OK."""
    with Phone(dovecot.port, "alice", login=False) as phone:
        return timed(phone.login)


def build_nothing(plugin: Path, directory: Path) -> Path:
    """A plugin that does nothing, as the least that any costs; the directory."""
    shutil.copytree(plugin, directory)
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(directory / PLUGIN_FILES[0]), "-"]
    subprocess.run(command, input=NOTHING, text=True, check=True)
    return directory


def logins(plugin: Path, nothing: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds, by the plugin: this one, one that does nothing, none."""
    with Dovecot(plugin) as with_it, Dovecot(nothing) as idle, Dovecot(plugin, enabled=False) as without:
        dovecots = {"with the plugin": with_it, "with one that does nothing": idle, "without": without}
        found: dict[str, list[float]] = {name: [] for name in dovecots}
        assert with_it.registry is not None
        with Registry(with_it.registry) as daemon:  # it holds the registry open all the time
            assert daemon.changed()
            for round_ in range(-WARM_UP, rounds):
                for name in random.sample([*dovecots], len(dovecots)):  # so that none comes always after the same one
                    seconds = login(dovecots[name])
                    if round_ >= 0:
                        found[name].append(seconds)
    return found


def registrations(plugin: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds, by what was measured."""
    found: dict[str, list[float]] = {}
    with Dovecot(plugin) as dovecot:
        names = [f"many.{number:04}" for number in range(MANY)]
        dovecot.create_mailboxes("alice", *names)
        assert dovecot.registry is not None
        # The daemon holds the registry open: without it each registration would be the first, and recover the -wal.
        with Registry(dovecot.registry), dovecot.phone() as phone:
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
    plugin = build_plugin(directory / "plugin")
    by_plugin = logins(plugin, build_nothing(plugin, directory / "nothing"), rounds)
    others = registrations(plugin, max(rounds // 20, 3))
    rows = [
        [name, f"{median(figures) * 1000:.2f} ms", f"{quantiles(figures, n=10)[8] * 1000:.2f} ms"]
        for name, figures in {**{f"login {name}": figures for name, figures in by_plugin.items()}, **others}.items()
    ]
    *others_than_none, none = (median(figures) for figures in by_plugin.values())
    for name, seconds in zip(by_plugin, others_than_none, strict=False):
        rows.append([f"login {name}, to without", f"{seconds / none:.3f} ×", ""])
    return Report(f"What the plugin costs Dovecot {'.'.join(map(str, version()))}", ["", "median", "90 %"], rows)


def main(release: str, *here: str) -> int:
    if not here:
        return run_python(release, "-m", "tests.bench.bench_plugin", release, "here")
    with TemporaryDirectory(prefix="xaps-watch-plugin-") as directory:
        print(run(Path(directory), quick=False).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
