"""API keys in their file, as processes share it."""

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.sqlite_keys import LOOK, KeyFile

CREATE = """
import sys
from contextlib import closing
from connectors.sqlite_keys import KeyFile
with closing(KeyFile(sys.argv[1])) as keys:
    print(keys.create("one", frozenset({"read"}))[0])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def keys(path: Path) -> Iterator[KeyFile]:
    keys = KeyFile(path)
    yield keys
    keys.close()


def create(path: Path) -> str:
    """The token of a key that another process makes."""
    made = subprocess.run(
        [sys.executable, "-c", CREATE, str(path)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip()


def test_keys_that_others_make_are_known_even_after_a_second_look_at_the_file(
    path: Path, keys: KeyFile
) -> None:
    """As `tidegate serve` does, which counts the keys once it listens: the first connection must keep its locks."""
    KeyFile(path).close()
    for turn in range(3):
        assert keys.find(create(path), turn * 2 * LOOK) is not None, turn


def test_the_file_is_its_owners_alone(path: Path, keys: KeyFile) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
