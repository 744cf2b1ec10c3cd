"""The README's tables name the agents and clients that are tested."""

from __future__ import annotations

from pathlib import Path

from tests.agents.table import agents_named, clients_named, replaced
from tests.support.agents.catalog import AGENTS
from tests.support.agents.clients import CLIENTS

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_names_the_agents_of_the_tests() -> None:
    assert agents_named(README.read_text(encoding="utf-8")) == [agent.name for agent in AGENTS], (
        "python -m tests.agents.table --write README.md"
    )


def test_the_readme_names_the_clients_of_the_tests() -> None:
    assert clients_named(README.read_text(encoding="utf-8")) == [client.name for client in CLIENTS]


def test_a_new_table_takes_the_place_of_the_old() -> None:
    readme = README.read_text(encoding="utf-8")
    assert replaced(replaced(readme, "| new |", "| old |"), "| newer |", "| old |").count("newer") == 1
