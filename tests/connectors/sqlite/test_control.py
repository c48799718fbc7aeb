"""The embedded store's control log keeps the contract."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.connectors.contracts.control import ControlContract, ControlPlace, adjustment, ids, reading
from tidegate.connectors.sqlite.control import SqliteControl


@dataclass(frozen=True)
class FileControlPlace:
    path: Path

    def open_control(self) -> SqliteControl:
        return SqliteControl(self.path)


class TestSqliteControl(ControlContract):
    @contextmanager
    def fresh_control(self) -> Iterator[ControlPlace]:
        with tempfile.TemporaryDirectory() as folder:
            yield FileControlPlace(Path(folder, "new", "store.db"))


def test_a_log_put_back_from_an_older_copy_is_read_from_its_start(tmp_path: Path) -> None:
    """A copy has its original's name: that the record read last is gone, or is another one, shows it."""
    place = FileControlPlace(tmp_path / "store.db")
    with closing(place.open_control()) as log:
        log.append(adjustment("1"))
        copy(tmp_path / "store.db", tmp_path / "copy.db")
        log.append(adjustment("2"))
    state = reading(place)
    assert ids(state.next_batch()) == ["1", "2"]
    copy(tmp_path / "copy.db", tmp_path / "store.db")
    with closing(place.open_control()) as log:
        log.append(adjustment("3"))
        log.append(adjustment("4"))
    assert ids(reading(place, state.snapshot()).next_batch())[1:] == ["1", "3", "4"]


def copy(of: Path, to: Path) -> None:
    """By SQLite's own backup, as docs/operations.md has it."""
    to.unlink(missing_ok=True)
    with closing(sqlite3.connect(of)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


@pytest.mark.parametrize(
    "body",
    [
        b'{"type": "grant", "id": "g1"}',
        b'{"type":"adjustment","id":"a"}',
        b'{"type":"adjustment","id":"a","customer":"c","meter":"m","at":1e99,"quantity":"1","reason":"","by":""}',
        b'{"type":"adjustment","id":"\\ud800","customer":"c","meter":"m","at":1,"quantity":"1","reason":"","by":""}',
        b"\xff not json",
        b"",
        None,
        5,
        b"[" * 5000,
    ],
)
def test_a_record_that_cannot_be_read_is_passed_over(
    body: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of a newer version would end the flow at every start, and with it all metering."""
    place = FileControlPlace(tmp_path / "store.db")
    with closing(place.open_control()) as log:
        log.append(adjustment("1"))
        with closing(sqlite3.connect(tmp_path / "store.db")) as db, db:
            db.execute("INSERT INTO control (id, body) VALUES ('x', ?)", (body,))
        log.append(adjustment("2"))
    read = reading(place)
    assert ids(read.next_batch()) == ["1", "2"]
    assert "control record 2 is passed over" in caplog.text
    assert ids(reading(place, read.snapshot()).next_batch()) == []
