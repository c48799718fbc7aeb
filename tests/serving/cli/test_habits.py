"""What holds for every command: `--json`, and that looking never makes a store."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.flows.conftest import SECONDS, Place, place
from tidegate.serving.cli.main import app

__all__ = ["place"]


def commands(group: Any, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not hasattr(group, "commands"):
        return {words: group}
    return {
        name: command
        for word, inner in group.commands.items()
        for name, command in commands(inner, (*words, word)).items()
    }


COMMANDS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != ("serve",)], ids=" ".join)
def test_every_command_that_prints_takes_json(words: tuple[str, ...]) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[words].params)


def tidegate(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: text for name, text in os.environ.items() if not name.startswith("TIDEGATE_")}
    command = [sys.executable, "-m", "tidegate", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "words",
    [
        ("usage", "acme"),
        ("check", "acme", "tokens"),
        ("top", "--once"),
        ("catalog", "history"),
        ("catalog", "diff", "1"),
        ("store", "rebuild"),
    ],
    ids=" ".join,
)
def test_in_a_wrong_folder_nothing_is_made_and_nothing_said_to_be_used(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    found = tidegate(tmp_path, *words)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.count("\n") == 1 and "there is no such file" in found.stderr
    assert str(tmp_path) in found.stderr and list(tmp_path.iterdir()) == []


def test_q_ends_top(place: Place) -> None:
    place.append("first.jsonl")
    place.run()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tidegate", "top", "--every", "60"]
    with subprocess.Popen(
        command, cwd=place.folder, env=place.environment(), stdin=theirs, stdout=subprocess.DEVNULL
    ) as process:
        try:
            # What is typed before it reads single keys is thrown away.
            until = time.monotonic() + SECONDS
            while process.poll() is None:
                assert time.monotonic() < until
                os.write(ours, b"xq")
                time.sleep(0.1)
            assert process.returncode == 0
        finally:
            process.kill()
