"""The man pages and the shell completion know all commands, options and settings that there are, and no others."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from xaps_watch.cli import main
from xaps_watch.config import Config

SYSTEMD = Path(__file__).parents[2] / "systemd"
MANUAL = (SYSTEMD / "xaps-watch.8").read_text()
SETTINGS_MANUAL = (SYSTEMD / "xaps-watch.toml.5").read_text()

COMMANDS = ("run", "check", "status", "devices", "push", "forget", "import", "simulate", "demo")


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out


def completed(*words: str) -> set[str]:
    """What bash offers for the last word."""
    script = '. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _xaps_watch; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", script, str(SYSTEMD / "xaps-watch.bash-completion"), "xaps-watch", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    listed = re.findall(r"^    ([a-z]+)  ", help_of(capsys), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    for name in COMMANDS:
        assert re.search(rf"^\.BR? ?I? \"?{name}\b", MANUAL, re.MULTILINE), name
    assert set(COMMANDS) <= completed("")


@pytest.mark.parametrize("name", COMMANDS)
def test_options(capsys: pytest.CaptureFixture[str], name: str) -> None:
    options = set(re.findall(r"--[a-z][a-z-]*", help_of(capsys, name)))
    assert completed(name, "--") == options
    if name != "simulate":  # for developers: --help tells
        (told,) = (part for part in MANUAL.split(".TP\n") if re.match(rf"\.B[RI]? {name}\b", part))
        assert set(re.findall(r"--[a-z][a-z-]*", told.replace("\\-", "-"))) == options - {"--help"}


def test_settings() -> None:
    sections = {name: kind for name, kind in get_type_hints(Config).items() if name != "source"}
    assert re.findall(r"^\.SS \[(\w+)\]$", SETTINGS_MANUAL, re.MULTILINE) == list(sections)
    known = {field.name for kind in sections.values() for field in fields(kind)}
    told = re.findall(r"^\.BR? (.*)$", SETTINGS_MANUAL.partition(".SS [apns]")[2].partition(".SH")[0], re.MULTILINE)
    named = {word for line in told for word in re.findall(r"\b[a-z_]+\b", line.partition(" = ")[0] + " ")}
    assert known - named == set(), "not in xaps-watch.toml(5)"
