"""What a person runs: the command ``xaps-watch``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from xaps_watch import __version__, config
from xaps_watch.model import ConfigError, XapsError

EX_CONFIG = 78  # sysexits.h; systemd's RestartPreventExitStatus= knows it


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    if arguments is None and sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        # Names are UTF-8 to phones and to Dovecot, whatever the locale (PEP 540); what is shown goes by that.
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 (itself)
    for stream in (sys.stdout, sys.stderr):
        # A mailbox may have any name, the terminal any locale.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(config.load(parsed.config), parsed) if parsed.configured else parsed.run(parsed))
    except ConfigError as error:
        print(f"xaps-watch: {error}", file=sys.stderr)
        return EX_CONFIG
    except XapsError as error:
        print(f"xaps-watch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone, as with head(1)
        return 1


class _Command(argparse.ArgumentParser):
    """A command, in a module that is imported only when it is called: many start faster without the others."""

    def __init__(self, *, module: str, configured: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.set_defaults(configured=configured)
        self._module: str | None = module

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._module is not None:
            module = import_module(f"xaps_watch.{self._module}")
            self._module = None
            module.add_arguments(self)
            self.set_defaults(run=module.run)
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xaps-watch",
        description="New-mail push to the Mail app of iPhones and iPads, for Dovecot servers with Maildirs.",
    )
    parser.add_argument(
        "-c", "--config", type=Path, default=config.DEFAULT_PATH, metavar="FILE",
        help="the configuration; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is looked at, too")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)

    def command(name: str, help: str, *, module: str | None = None, configured: bool = True) -> None:
        description = f"{help[0].upper()}{help[1:]}."
        commands.add_parser(name, module=module or name, help=help, description=description, configured=configured)

    command("run", "the daemon, in the foreground (what systemd starts)", module="daemon")
    command("check", "every precondition, and the mend of what is missing", module="doctor", configured=False)
    command("status", "what the running daemon does now")
    command("devices", "registered devices, their mailboxes, last push and outcome")
    command("push", "send a test push now, and show Apple's answer")
    command("forget", "remove registrations")
    command("import", "registrations from xapsd's database.json", module="xapsd")
    command("simulate", "a local stand-in for APNs", module="simulator", configured=False)
    command("demo", "all of it in a temporary directory: register, deliver, see the push", configured=False)
    return parser
