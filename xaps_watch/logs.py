"""What the journal shows: one line an event, its facts as ``key=value``."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping

# sd-daemon(3): journald takes the priority from the beginning of the line.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
_PLAIN = re.compile(r"[^\s\"=]+")
_ASCII = re.compile(r"[!#-<>-~]+")  # the same, and printable for sure


def fields(**facts: object) -> str:
    """``user=alice mailboxes="Sent Mail"``: facts that are None are left out; nothing can break the line."""
    return " ".join(f"{name.replace('_', '-')}={_value(fact)}" for name, fact in facts.items() if fact is not None)


def _value(fact: object) -> str:
    text = f"{fact:.1f}" if isinstance(fact, float) else str(fact)
    if _ASCII.fullmatch(text) or (_PLAIN.fullmatch(text) and text.isprintable()):
        return text
    escaped = "".join(c if c.isprintable() and c != '"' and c != "\\" else _escaped(c) for c in text)
    return f'"{escaped}"'


def _escaped(character: str) -> str:
    return f"\\{character}" if character in '"\\' else character.encode("unicode_escape").decode("ascii")


class _Formatter(logging.Formatter):
    def __init__(self, under_journald: bool) -> None:
        super().__init__("%(message)s" if under_journald else "%(asctime)s %(levelname)s %(message)s")
        self._under_journald = under_journald

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._under_journald:
            return text
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def set_up(*, verbose: bool = False, environ: Mapping[str, str] = os.environ) -> None:
    """Log to stderr; under journald with priorities and without timestamps, which it adds itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(_is_journal(environ.get("JOURNAL_STREAM"))))
    # What no line shows isn't asked for: half of what a line costs (Python's logging how-to, «Optimization»).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "hpack", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _is_journal(stream: str | None) -> bool:
    """systemd.exec(5): JOURNAL_STREAM holds device:inode, which are stderr's own unless it was redirected since."""
    found = os.fstat(sys.stderr.fileno())
    return stream == f"{found.st_dev}:{found.st_ino}"
