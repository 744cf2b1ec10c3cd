"""``xaps-watch status``: what the running daemon does now, as it tells on its Unix socket (see snapshot.py)."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xaps_watch.config import Config
from xaps_watch.model import XapsError
from xaps_watch.terminal import duration, printable

PATIENCE = 5.0  # seconds to wait for the daemon's answer

FINE, UNREACHABLE, TROUBLED = 0, 1, 2  # exit status
_LABEL = 14  # cells


class StatusError(XapsError):
    """The daemon can't be asked: it doesn't run, or the caller may not open its socket."""


def ask(path: Path) -> dict[str, Any]:
    """The running daemon's snapshot. Raises StatusError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(path))
            content = b"".join(iter(lambda: connection.recv(65536), b""))
        except PermissionError as error:
            raise StatusError(f"{path}: {error.strerror}; call it as root, or join group xaps-watch") from error
        except OSError as error:
            what = error.strerror or "no answer"
            raise StatusError(f"{path}: {what}; is the service running? systemctl status xaps-watch") from error
    try:
        answer: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise StatusError(f"{path}: the answer is cut short; the service may be stopping") from error
    return answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit status: 0 all is well, 1 the daemon can't be asked, 2 it runs, but not all is well."
    parser.add_argument("--json", action="store_true", help="everything, for programs")


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Print what the daemon tells. Raises StatusError (exit status 1)."""
    snapshot = ask(config.status.socket)
    if arguments.json:
        json.dump(snapshot, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(_text(snapshot, time.time())))
    return TROUBLED if snapshot["troubles"] else FINE


def _text(snapshot: dict[str, Any], now: float) -> Iterator[str]:
    """The snapshot for people; `now`: unix time."""
    up = duration(now - snapshot["started_at"])
    yield f"xaps-watch {snapshot['version']} (pid {snapshot['pid']}), up {up}: {printable(brief(snapshot['state']))}"
    for label, text in (
        ("pushes to", _connection(snapshot["connection"])),
        ("credentials", _credentials(snapshot["credentials"])),
        ("registered", _registered(snapshot["registry"])),
        ("mailboxes", _mailboxes(snapshot["watcher"])),
        ("pending", _pending(snapshot, now)),
        ("last push", _ago(snapshot["last_push_at"], now)),
        ("since start", _activity(snapshot)),
        ("latency", _latency(snapshot["latencies"])),
    ):
        yield f"  {label:{_LABEL}}{text}"
    for trouble in snapshot["troubles"]:
        yield f"✘ {printable(trouble)}"


def brief(state: str) -> str:
    """The state without its reason, which stands among the troubles."""
    return state.partition(": ")[0]


def _connection(connection: dict[str, Any]) -> str:
    if connection["why_waiting"] is None:
        return str(connection["url"])
    retry_in = connection["retry_in"]
    again = "being tried now" if retry_in is None else f"tried again in {duration(retry_in)}"
    return f"{connection['url']}, failed {connection['failures_in_a_row']} times in a row, {again}"


def _credentials(credentials: dict[str, Any]) -> str:
    if credentials["kind"] is None:
        return "none"
    left = credentials["days_left"]
    end = "" if left is None else f", {left:.0f} days left" if left > 0 else ", expired"
    return f"{credentials['kind']} {printable(credentials['file'])}{end}; topic {printable(credentials['topic'])}"


def _registered(registry: dict[str, Any]) -> str:
    registered = registry["registered"]
    if registered is None:
        return f"unknown ({printable(registry['path'])})"
    suspended = f" ({registered['suspended']} suspended)" if registered["suspended"] else ""
    return f"{_count(registered['devices'], 'device')}{suspended} of {_count(registered['users'], 'user')}"


def _mailboxes(watcher: dict[str, Any]) -> str:
    parts = [f"{watcher['watched']} watched"]
    parts += [f"{watcher[how]} {how}" for how in ("polled", "missing") if watcher[how]]
    if watcher["waiting"]:
        parts.append(f"{watcher['waiting']} to be looked at")
    if watcher["overflows"]:
        parts.append(f"events lost and made up for {_count(watcher['overflows'], 'time')}")
    return ", ".join(parts)


def _pending(snapshot: dict[str, Any], now: float) -> str:
    behind = now - snapshot["caught_up_to"]
    return (
        f"{_count(snapshot['pending'], 'device')}, {snapshot['connection']['in_flight']} in flight;"
        f" all mail older than {duration(max(1.0, behind))} is pushed"
    )


def _ago(at: float | None, now: float) -> str:
    if at is None:
        return "none accepted yet"
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}, {duration(now - at)} ago"


def _activity(snapshot: dict[str, Any]) -> str:
    outcomes = sorted(snapshot["outcomes"].items(), key=lambda item: -item[1])
    answers = ", ".join(f"{count} × {printable(outcome)}" for outcome, count in outcomes) or "none"
    return f"{_count(snapshot['deliveries'], 'delivery', 'deliveries')}; answers: {answers}"


def _latency(latencies: Iterable[dict[str, Any]]) -> str:
    """From the histogram of accepted pushes: bounds, since the exact figures are not kept."""
    rows = list(latencies)
    total = sum(row["pushes"] for row in rows)
    if not total:
        return "-"
    parts = []
    for share in (50, 99):
        kept = 0
        for row in rows:
            kept += row["pushes"]
            if kept * 100 >= total * share:
                bound = "longer than a minute" if row["within"] is None else f"within {duration(row['within'])}"
                parts.append(f"{share} % {bound}")
                break
    return ", ".join(parts) + " (mail there → Apple's answer)"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
