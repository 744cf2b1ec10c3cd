"""The command line as a person uses it: a process, its output, its exit status."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WARNINGS = "error,ignore:The asyncore module is deprecated:DeprecationWarning"  # pyinotify imports it


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command said."""

    status: int
    out: str
    error: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


async def xaps_watch(
    config_file: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> Ran:
    """Run ``xaps-watch -c CONFIG ARGUMENTS…``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xaps_watch", "-c", str(config_file), *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": _WARNINGS, **(environment or {})},
    )  # fmt: skip
    out, error = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), error.decode())
