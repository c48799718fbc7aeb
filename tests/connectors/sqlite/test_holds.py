"""Holds in the embedded store keep the contract; and what only a file can do wrong."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.connectors.contracts.holds import (
    CEILINGS,
    NOW,
    SCOPE,
    HoldsContract,
    Place,
    hold_of,
    settled_of,
)
from tidegate.connectors.sqlite import change_feed, hold_tables
from tidegate.connectors.sqlite import holds as sqlite_holds
from tidegate.connectors.sqlite import settling as settling_module
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.holds import SqliteHolds
from tidegate.connectors.sqlite.settling import Settling
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter
from tidegate.operators.columns.quantity import SCALE
from tidegate.operators.model.ports import StoreError


@dataclass(frozen=True)
class FilePlace:
    path: Path

    def open_writer(self) -> SqliteWriter:
        return SqliteWriter(self.path)

    def open_reader(self) -> SqliteReader:
        return SqliteReader(self.path)

    def open_holds(self) -> SqliteHolds:
        return SqliteHolds(self.path)

    def open_control(self) -> SqliteControl:
        return SqliteControl(self.path)


class TestSqliteHolds(HoldsContract):
    @contextmanager
    def fresh(self) -> Iterator[Place]:
        with tempfile.TemporaryDirectory() as folder:
            place = FilePlace(Path(folder, "store.db"))
            with closing(place.open_writer()):
                pass
            yield place


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    with closing(SqliteWriter(path)):
        pass
    return path


def test_who_gets_nothing_takes_no_lock(path: Path) -> None:
    """A client that is denied ten thousand times a second must not hold up the flow."""
    with (
        closing(SqliteHolds(path, write_wait=timedelta(0))) as holds,
        closing(sqlite3.connect(path)) as other,
    ):
        assert holds.reserve(hold_of("a", "1", calls=9), CEILINGS, SCOPE, NOW).outcome == "held"
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        for hold, outcome in ((hold_of("a", "2", calls=2), "full"), (hold_of("a", "1", calls=9), "repeated")):
            assert holds.reserve(hold, CEILINGS, SCOPE, NOW).outcome == outcome
        with pytest.raises(StoreError, match="lock"):
            holds.reserve(hold_of("a", "2", calls=1), CEILINGS, SCOPE, NOW)
        other.execute("ROLLBACK")
        assert holds.reserve(hold_of("a", "2", calls=1), CEILINGS, SCOPE, NOW).outcome == "held"


def test_events_that_come_again_tell_nobody(path: Path) -> None:
    """Else a restart of the flow would empty every near cache."""
    with (
        closing(SqliteWriter(path)) as writer,
        closing(SqliteReader(path)) as reader,
        closing(SqliteHolds(path)) as holds,
    ):
        holds.reserve(hold_of("a", "1", calls=1), CEILINGS, SCOPE, NOW)
        events = [settled_of(("a", "", "1"), ("b", "", "1"))]
        writer.write([], [], settled=events)
        before = reader.changes(0)
        assert before.customers == {"a"}
        for _ in range(3):
            writer.write([], [], settled=events)
        assert reader.changes(0) == before


def test_a_writer_forgets_holds_that_others_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several processes, most holds wait for events that another one meters."""
    monkeypatch.setattr(settling_module, "FEW", 20)
    settling = Settling()
    with closing(sqlite3.connect(path)) as db, closing(SqliteHolds(path)) as holds:
        with closing(SqliteWriter(path)) as other:
            for n in range(100):
                ids = [f"{n}-{m}" for m in range(5)]
                for id in ids:
                    holds.reserve(hold_of("a", id, calls=1), {}, SCOPE, NOW)
                other.write([], [], settled=[settled_of(*(("a", "", id) for id in ids))])
                settling.settle(db, [settled_of(("nobody", "", ""))])
                assert len(settling) <= 30
        holds.reserve(hold_of("a", "last", calls=1), {}, SCOPE, NOW)
        assert settling.settle(db, [settled_of(("a", "", "last"))]) == ["a"]


def test_a_write_that_fails_ends_no_hold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it forget it: the same write once more ends it."""
    with closing(SqliteWriter(path)) as writer, closing(SqliteHolds(path)) as holds:
        holds.reserve(hold_of("a", "1", calls=1), CEILINGS, SCOPE, NOW)
        events = [settled_of(("a", "", "1"))]

        def full(customers: list[str]) -> None:
            raise sqlite3.OperationalError("disk full")

        with monkeypatch.context() as patched:
            patched.setattr(writer, "_announce", full)
            with pytest.raises(StoreError):
                writer.write([], [], settled=events)
        assert holds.account("a", SCOPE, NOW).held == {"calls": SCALE}
        writer.write([], [], settled=events)
        assert holds.account("a", SCOPE, NOW).held == {}


def test_a_store_of_many_open_holds_is_read_in_one_piece(path: Path) -> None:
    """Ten thousand open holds of one customer are one sum, not ten thousand rows at each check."""
    with closing(SqliteHolds(path)) as holds, closing(sqlite3.connect(path)) as db:
        for n in range(50):
            holds.reserve(hold_of("a", str(n), calls=1), {}, SCOPE, NOW)
        assert db.execute("SELECT * FROM held").fetchall() == [("a", "calls", "50")]
        plan = " ".join(
            str(row) for row in db.execute(f"EXPLAIN QUERY PLAN {hold_tables.account_sql(0)}", ("a", 0, 0))
        )
        assert "SCAN" not in plan and "holds_open" in plan


def test_a_call_under_way_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds = SqliteHolds(path)
    account = hold_tables.read_account

    def closed_meanwhile(*given: Any) -> Any:
        holds.close()
        return account(*given)

    monkeypatch.setattr(sqlite_holds, "read_account", closed_meanwhile)
    assert holds.account("a", SCOPE, NOW).held == {}
    assert path not in [Path(os.readlink(fd)) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_feed_of_a_file_that_is_gone_says_so(path: Path, replaced: bool) -> None:
    """Nobody writes to it any more, so its silence proves nothing."""
    with closing(SqliteHolds(path)) as holds, closing(holds.feed()) as feed:
        assert feed.wait(0).customers == frozenset()
        path.rename(path.with_name("away"))
        if replaced:
            with closing(SqliteWriter(path)):
                pass
        with pytest.raises(StoreError, match="moved"):
            feed.wait(0)


def test_a_feed_that_was_left_behind_tells_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that slept through more writes than the feed keeps cannot say who was written."""
    monkeypatch.setattr(change_feed, "FEED_WRITES", 3)
    with (
        closing(SqliteHolds(path)) as holds,
        closing(SqliteHolds(path)) as other,
        closing(other.feed()) as feed,
    ):
        for n, told in ((3, {"0", "1", "2"}), (9, None)):
            for customer in range(n):
                holds.reserve(hold_of(str(customer), str(n), calls=1), {}, SCOPE, NOW)
            assert feed.wait(0).customers == told
            assert feed.wait(0).customers == frozenset()
