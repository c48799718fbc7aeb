"""docs/kafka.md is followed to the letter: its files are written, its commands run, and what they print compared.

Only addresses and names of topics are others, as many tests run at a time. A command that looks is asked again until it
prints what the page says, as events take a moment to be counted; all others run once.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults.support.harness import ROOT
from tests.support.kafka_server import Mock
from tests.support.ports import free_ports

PAGE = ROOT / "docs" / "kafka.md"
WAIT_S = 60
LOOKS = re.compile(r"tidegate (counters|usage|alerts|check)|curl (?!.*--data)")


class Block(NamedTuple):
    """An indented block: a file of this name, or what is typed and printed where the name is empty."""

    name: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yield the indented blocks of a page. One that types nothing is the file that was named last before it."""
    name = ""
    for part in re.split(r"\n(?!    )", page.replace("\n\n    ", "\n    ")):
        words, _, block = part.partition("\n    ")
        name = (re.findall(r"`([\w.]+\.\w+|\.env)`", words) or [name])[-1]
        if block:
            text = re.sub(r"\n {4}", "\n", block) + "\n"
            yield Block("" if text.startswith("$ ") else name, text)


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
        printed = []
        while (line := self._bash.stdout.readline()) != "--it-ended--\n":
            assert line, f"bash ended: {printed}"
            printed.append(line)
        return "".join(printed)

    def close(self) -> None:
        # With all that it has started.
        os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.communicate()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEGATE_", "BYTEWAX_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    found = Shell(tmp_path, kept | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"})
    yield found
    found.close()


def elsewhere(text: str, kafka: Any, ports: list[int], topics: Mapping[str, str]) -> str:
    text = text.replace("localhost:9092", kafka.bootstrap)
    for shown, port in zip(("localhost:8080", "localhost:2101", "localhost:2102"), ports, strict=True):
        text = text.replace(shown, f"127.0.0.1:{port}")
    text = text.replace("tidegate serve", f"tidegate serve --listen 127.0.0.1:{ports[0]}")
    for name, topic in topics.items():
        text = text.replace(name, topic)
    return text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_is_followed_from_topics_to_the_dashboard(kafka: Any, shell: Shell, tmp_path: Path) -> None:
    if isinstance(kafka, Mock):
        pytest.skip(f"creates topics: {kafka.described}")
    topics = {name: kafka.unused() for name in ("usage-events", "dead-letters")} | {
        "/alerts": f"/{(alerts := kafka.unused())}",
        "consume.py alerts": f"consume.py {alerts}",
        "alerts: ": f"{alerts}: ",
    }
    ports = free_ports(3)
    steps = 0
    for block in blocks(PAGE.read_text()):
        if block.name:
            (tmp_path / block.name).write_text(elsewhere(block.text, kafka, ports, topics))
            continue
        for one in typed(elsewhere(block.text, kafka, ports, topics)):
            steps += 1
            found, deadline = shell.run(one.command), time.monotonic() + WAIT_S
            while LOOKS.match(one.command) and not one.matches(found) and time.monotonic() < deadline:
                time.sleep(0.1)
                found = shell.run(one.command)
            if not one.command.endswith("&") and "kill" not in one.command:
                logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
                assert one.matches(found), f"{one.command}\n{found}\n--- expected\n{one.printed}\n{logs}"
    assert steps > 20
