"""A writer in another process keeps the contract of a store; and what only another process can do wrong."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests.connectors.contracts.store import Place, StoreContract, batch_of, holds, written
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter, make_store
from tidegate.connectors.sqlite.writer_process import AsideWriter
from tidegate.operators.model.ports import StoreError

SECONDS = 60
DIED = "ended with exit code -9; start again"

OWNER = """
import sys, time
from functools import partial
from tidegate.connectors.sqlite.writer_process import AsideWriter
from tidegate.connectors.sqlite.store import SqliteWriter, make_store
writer = AsideWriter(partial(SqliteWriter, sys.argv[1]))
writer.write([], [])
print(writer.pid, flush=True)
time.sleep(1000)
"""


@dataclass(frozen=True)
class AsidePlace:
    path: Path

    def open_writer(self) -> AsideWriter:
        return AsideWriter(partial(SqliteWriter, self.path))

    def open_reader(self) -> SqliteReader:
        make_store(self.path)
        return SqliteReader(self.path)


class Odd:
    """A writer that prints, and says in a file that it was closed; or it dies at its work."""

    def __init__(self, log: Path, dies: bool = False) -> None:
        self._log, self._dies = log, dies

    def write(self, *_: object) -> None:
        if self._dies:
            os.kill(os.getpid(), signal.SIGKILL)
        print("writing", flush=True)

    def close(self) -> None:
        self._log.write_text("closed")


class TestAside(StoreContract):
    # Which of two totals stays is the other writer's affair, tried in TestSqlite; each example here starts a process.
    test_a_replay_changes_nothing: Any = None
    test_order_does_not_matter: Any = None
    test_what_was_written_is_read: Any = None
    test_only_newer_totals_are_written: Any = None
    test_counters_only_grow: Any = None

    @contextmanager
    def fresh(self) -> Iterator[Place]:
        with tempfile.TemporaryDirectory() as folder:
            yield AsidePlace(Path(folder, "new", "store.db"))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually_gone(pid: int) -> None:
    """Waits until a process has ended; far longer than it ever takes."""
    deadline = monotonic() + SECONDS
    while is_running(pid):
        assert monotonic() < deadline
        sleep(0.01)


def test_what_cannot_be_opened_is_told_at_the_first_write(tmp_path: Path) -> None:
    """In the words of the store, as from a writer in this process."""
    (tmp_path / "store.db").mkdir()
    with (
        closing(AsideWriter(partial(SqliteWriter, tmp_path / "store.db"))) as writer,
        pytest.raises(StoreError, match="needs a file, got something else"),
    ):
        writer.write(batch_of(1), [])


def test_what_cannot_be_written_is_told_and_the_next_write_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(AsideWriter(partial(SqliteWriter, path))) as writer:
        writer.write(batch_of(1), [])
        path.rename(tmp_path / "away.db")
        with pytest.raises(StoreError, match="store"):
            writer.write(batch_of(2), [])
        (tmp_path / "away.db").rename(path)
        writer.write(batch_of(3), [])
        with closing(SqliteReader(path)) as reader:
            holds(reader, written([batch_of(1), batch_of(3)]))


def test_a_writer_that_dies_is_an_error_whenever_it_is_used_again(tmp_path: Path) -> None:
    """Else a flow would go on and count what nobody stores. Closing it has nothing more to complain of."""
    with closing(AsideWriter(partial(SqliteWriter, tmp_path / "store.db"))) as writer:
        writer.write(batch_of(1), [])
        os.kill(writer.pid, signal.SIGKILL)
        eventually_gone(writer.pid)
        for totals in (batch_of(2), []):
            with pytest.raises(StoreError, match=DIED):
                writer.write(totals, [])


def test_a_writer_that_dies_at_its_work_is_an_error(tmp_path: Path) -> None:
    """Nobody can say whether that was stored; it is written again after the next start."""
    with (
        closing(AsideWriter(partial(Odd, tmp_path / "log", dies=True))) as writer,
        pytest.raises(StoreError, match=DIED),
    ):
        writer.write(batch_of(1), [])


def test_what_a_writer_prints_is_no_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(AsideWriter(partial(Odd, tmp_path / "log"))) as writer:
        writer.write(batch_of(1), [])
        writer.write(batch_of(2), [])
    assert capfd.readouterr() == ("", "writing\nwriting\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_sent_to_all_processes_does_not_end_it(tmp_path: Path, number: int) -> None:
    """A service manager tells every process to stop; the flow then has its last totals to write."""
    path = tmp_path / "store.db"
    with closing(AsideWriter(partial(SqliteWriter, path))) as writer, closing(SqliteWriter(path)):
        writer.write(batch_of(1), [])
        os.kill(writer.pid, number)
        writer.write(batch_of(2), [])
        with closing(SqliteReader(path)) as reader:
            holds(reader, written([batch_of(2)]))


def test_it_ends_with_its_owner_however_that_ends(tmp_path: Path) -> None:
    """What is left behind would hold the file, and write what a new flow no longer knows of."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path / "store.db"], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_running(pid)
        owner.kill()
    eventually_gone(pid)


def test_closing_ends_it_in_good_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What it opened is closed, and nobody complains."""
    writer = AsideWriter(partial(Odd, tmp_path / "log"))
    writer.close()
    assert not is_running(writer.pid)
    assert (tmp_path / "log").read_text() == "closed"
    assert capfd.readouterr() == ("", "")
