from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dovecot import Dovecot, build_plugin


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the plugin, built for the Dovecot of this machine; with sanitizers if SANITIZE is set."""
    return build_plugin(tmp_path_factory.mktemp("plugin"), sanitize=bool(os.environ.get("SANITIZE")))


@pytest.fixture(scope="session")
def plain_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, always without sanitizers: for where these can't work."""
    return build_plugin(tmp_path_factory.mktemp("plain-plugin"))


@pytest.fixture(scope="module")
def dovecot(plugin: Path) -> Iterator[Dovecot]:
    """One for all tests of a file, with a user for each."""
    with Dovecot(plugin) as running:
        yield running
