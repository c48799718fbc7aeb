"""What ends a flow is one line that says what to do, without pages about the insides of Rust and Python."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.flows.conftest import SECONDS, Place


def said(place: Place, before: str = "", **settings: str) -> str:
    """What a flow complains of that has to end with 1; `before` is done by the shell that starts it."""
    command = f'{before} exec "$0" -m bytewax.run tidegate.flows.metering'
    found = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable],
        cwd=place.folder,
        env=place.environment(**settings),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert found.returncode == 1
    return found.stderr


def no_data_dir(place: Place) -> str:
    place.append("first.jsonl")
    return said(place, DATA_DIR="/proc/nowhere")


def lost_database(place: Place) -> str:
    place.append("first.jsonl")
    place.run()
    (place.folder / "state/recovery/part-0.sqlite3").unlink()
    return said(place)


def full_disk(place: Place) -> str:
    """A restart after which nothing can be written: no file may grow past one block."""
    place.append("first.jsonl")
    place.run()
    place.append("second.jsonl")
    return said(place, before="ulimit -f 1;")


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (no_data_dir, "/proc/nowhere"),
        (lost_database, "part-0.sqlite3: is missing; restore"),
        (full_disk, ""),
    ],
)
def test_it_is_one_line(place: Place, breaks: Callable[[Place], str], words: str) -> None:
    complained = breaks(place)
    assert complained.count("\n") == 1 and words in complained, complained
    assert "Traceback" not in complained and "panicked" not in complained
