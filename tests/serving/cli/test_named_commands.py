"""Commands that messages of the product tell people to run are there, with their options."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from tests.support.places import ROOT
from tidegate.serving.cli.main import app

SOURCES = ("connectors", "flows", "operators", "serving", "settings")
NAMED = re.compile(r"(?:`|: )tidegate ((?:[a-z][a-z-]*)(?: (?:--)?[a-z][a-z-]*)*)")


def named() -> Iterator[str]:
    """Yield what follows `tidegate` in each string that names a command."""
    for folder in SOURCES:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from NAMED.findall(node.value)


@pytest.mark.parametrize("words", sorted(set(named())))
def test_a_command_that_is_named_is_there(words: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in words.split():
        if word.startswith("--"):
            assert any(word in option.opts for option in command.params), f"{words}: {word}"
            continue
        commands = getattr(command, "commands", {})
        if word not in commands:
            # What follows a command that acts by itself is prose.
            assert not commands or command.invoke_without_command, f"{words}: {word}"
            return
        command = commands[word]


def test_messages_name_commands() -> None:
    assert len(set(named())) > 5
