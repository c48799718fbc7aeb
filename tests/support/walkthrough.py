"""Follow a page of the docs to the letter: write its files, run its commands, compare what they print.

An indented block that begins with `$ ` is typed in a shell; any other is the file whose name the text before it gives
last. `…` in what is printed stands for anything. A command that asks is repeated until it prints what the page says, as
events take a moment to be counted; all others run once.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.places import ROOT

WAIT_S = 60
ASKS = re.compile(
    r"tidegate (counters|usage|alerts|check|outbox|dead-letters|reconcile)|curl (?!.*(--data|-d ))"
)


class Block(NamedTuple):
    """An indented block: a file of this name, or what is typed and printed where the name is empty."""

    name: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yield the indented blocks of a page, as files and as commands."""
    for words, block in re.findall(
        r"((?:^(?! {4}).*\n)*)((?:^ {4}.*\n|^\n(?=\n* {4}))+)", page, re.MULTILINE
    ):
        names = re.findall(r"`([\w./]+\.\w+|\.env)`", words)
        # A file may be followed by the commands that use it.
        for text in re.split(r"\n\n(?=\$ )", re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip("\n")):
            yield Block("" if text.startswith("$ ") else names[-1], f"{text}\n")


class Typed(NamedTuple):
    command: str
    printed: str

    def matches(self, found: str) -> bool:
        """Whether this is what the page says; `…` stands for anything, and columns may be wider."""
        parts = ("".join(part.split()) for part in self.printed.split("…"))
        return re.fullmatch(".*".join(map(re.escape, parts)), "".join(found.split())) is not None


def typed(text: str) -> Iterator[Typed]:
    for part in text.removeprefix("$ ").split("\n$ "):
        command, _, printed = part.partition("\n")
        yield Typed(command, printed)


class Shell:
    """One bash in a folder, so that what runs in the background goes on from command to command."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.run("exec 2> stderr.log")

    def run(self, command: str) -> str:
        """Return what a command prints. It may not print what ends it here."""
        assert self._bash.stdin and self._bash.stdout
        self._bash.stdin.write(f"{command}\necho; echo --it-ended--\n")
        self._bash.stdin.flush()
        printed: list[str] = []
        while (line := self._bash.stdout.readline()) != "--it-ended--\n":
            assert line, f"bash ended: {printed}"
            printed.append(line)
        return "".join(printed)

    def close(self) -> None:
        # With all that it has started.
        os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.communicate()


def open_shell(folder: Path, root: Path = ROOT) -> Shell:
    """Return a shell in `folder` that finds our programs, the code at `root`, and none of the caller's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEGATE_", "BYTEWAX_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return Shell(folder, kept | {"PATH": path, "PYTHONPATH": str(root), "COLUMNS": "200"})


def follow(
    page: str,
    shell: Shell,
    folder: Path,
    adapt: Callable[[str], str] = str,
    write: Callable[[Path, str], object] = Path.write_text,
) -> int:
    """Follow `page` in `folder` and return how many commands ran.

    `adapt` changes addresses and names in what is written, typed and expected. `write` puts a block into its file.
    """
    steps = 0
    for block in blocks(page):
        if block.name:
            write(folder / block.name, adapt(block.text))
            continue
        for step in typed(adapt(block.text)):
            steps += 1
            found, deadline = shell.run(step.command), time.monotonic() + WAIT_S
            while ASKS.match(step.command) and not step.matches(found) and time.monotonic() < deadline:
                time.sleep(0.1)
                found = shell.run(step.command)
            if not step.command.endswith("&") and "kill" not in step.command:
                logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
                assert step.matches(found), f"{step.command}\n{found}\n--- expected\n{step.printed}\n{logs}"
    return steps
