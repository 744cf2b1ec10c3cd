"""What a person runs: the command ``xaps-watch``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xaps_watch import __version__, config, demo, devices, logs, simulator
from xaps_watch.model import ConfigError, XapsError

EX_CONFIG = 78  # sysexits.h; systemd's RestartPreventExitStatus= knows it


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except ConfigError as error:
        print(f"xaps-watch: {error}", file=sys.stderr)
        return EX_CONFIG
    except XapsError as error:
        print(f"xaps-watch: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone, as with head(1)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xaps-watch",
        description="New-mail push to the Mail app of iPhones and iPads, for Dovecot servers with Maildirs.",
    )
    parser.add_argument("-c", "--config", type=Path, default=config.DEFAULT_PATH, metavar="FILE", help="%(default)s")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is looked at, too")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="the daemon, in the foreground (what systemd starts)")
    run.set_defaults(run=_run)

    listing = commands.add_parser("devices", help="registered devices, their mailboxes, last push and outcome")
    devices.add_arguments(listing)
    listing.set_defaults(run=lambda parsed: devices.run(config.load(parsed.config), parsed))

    stand_in = commands.add_parser("simulate", help="a local stand-in for APNs")
    simulator.add_arguments(stand_in)
    stand_in.set_defaults(run=simulator.run)

    show = commands.add_parser("demo", help="all of it in a temporary directory: register, deliver, see the push")
    demo.add_arguments(show)
    show.set_defaults(run=demo.run)
    return parser


def _run(parsed: argparse.Namespace) -> int:
    from xaps_watch import daemon  # brings everything; the other commands start faster without it

    logs.set_up(verbose=parsed.verbose)
    daemon.run(config.load(parsed.config))
    return 0
