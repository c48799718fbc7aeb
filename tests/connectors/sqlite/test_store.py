"""The SQLite store keeps the contract; and what only a file can do wrong."""

import json
import os
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from tests.connectors.contracts.store import (
    HOUR,
    SHARE,
    Place,
    StoreContract,
    _write_share,
    batch_of,
    child,
    holds,
    key_of,
    processes,
    share_of,
    total_of,
    versions_in,
    written,
)
from tidegate.connectors.sqlite import change_feed, store_schema, table_layout
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter, make_store
from tidegate.operators.events.keys import shard_of
from tidegate.operators.model.ports import Changes, StoreError
from tidegate.operators.model.records import Counter, Total

NO_WAIT = timedelta(0)


@dataclass(frozen=True)
class FilePlace:
    path: Path

    def open_writer(self) -> SqliteWriter:
        return SqliteWriter(self.path)

    def open_reader(self) -> SqliteReader:
        make_store(self.path)
        return SqliteReader(self.path)


class SqliteContract(StoreContract):
    @contextmanager
    def fresh(self) -> Iterator[Place]:
        with tempfile.TemporaryDirectory() as folder:
            yield FilePlace(Path(folder, "new", "store.db"))


class TestSqlite(SqliteContract):
    pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def of_one_bucket(rows: int, version: int = 1) -> list[Total]:
    customers = (customer for customer in map(str, count()) if shard_of(customer, store_schema.BUCKETS) == 3)
    return [total_of(next(customers), version=version) for _ in range(rows)]


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 144, 145, 300])
def test_no_row_falls_between_two_statements(path: Path, rows: int) -> None:
    """Rows go in statements of three sizes; each number of them is put together from these."""
    with closing(SqliteWriter(path)) as writer, closing(SqliteReader(path)) as reader:
        for version in (1, 2):
            totals = of_one_bucket(rows, version)
            writer.write(totals[::-1], [])
            holds(reader, written([totals]))


def test_a_customer_stays_in_its_table(path: Path) -> None:
    """Files outlive releases: another hash would hide every total written before."""
    with closing(SqliteWriter(path)) as writer:
        writer.write([total_of("cus_1"), total_of("a")], [])
    with closing(sqlite3.connect(path)) as db:
        tables = [table for table in store_schema.TABLES if db.execute(f"SELECT 1 FROM {table}").fetchone()]
    assert tables == ["totals_03", "totals_15"]


# The feed


def test_a_replay_tells_nobody(path: Path) -> None:
    """Else a restart would empty every cache of every gate."""
    with closing(SqliteWriter(path)) as writer, closing(SqliteReader(path)) as reader:
        for _ in range(2):
            writer.write(batch_of(1), [Counter(0, "events", 1)])
            assert reader.changes(0).seq == 1
        writer.write([], [Counter(0, "events", 2)])
        assert reader.changes(0).seq == 1


def test_two_processes_number_the_feed_without_gaps(path: Path) -> None:
    """A gap would have a reader take its cache for outdated; a number out of order, for fresh."""
    start = processes.Barrier(2)
    place = FilePlace(path)
    with child(_write_share, place, 0, start) as one, child(_write_share, place, 1, start) as other:
        one.join()
        other.join()
    with closing(sqlite3.connect(path)) as db:
        feed = db.execute("SELECT seq, customers FROM feed ORDER BY seq").fetchall()
    assert [seq for seq, _ in feed] == list(range(1, 2 * SHARE + 1))
    for writer in (0, 1):
        told = [set(json.loads(names)) for _, names in feed if f"own_{writer}" in names]
        assert told == [{total.customer for total in share_of(writer, n)} for n in range(SHARE)]


def test_the_feed_is_bounded_by_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_feed, "FEED_WRITES", 3)
    with closing(SqliteWriter(path)) as writer, closing(SqliteReader(path)) as reader:
        for n in range(1, 11):
            writer.write([total_of(f"cus_{n}")], [])
        assert reader.changes(7) == Changes(10, frozenset({"cus_8", "cus_9", "cus_10"}), True)
        assert reader.changes(6) == (10, frozenset(), False)
        assert reader.changes(0) == (10, frozenset(), False)


def test_the_feed_is_bounded_by_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One write may be larger than the bound: it is still told, as the last."""
    monkeypatch.setattr(change_feed, "FEED_BYTES", 100)
    with closing(SqliteWriter(path)) as writer, closing(SqliteReader(path)) as reader:
        for n in range(9):
            writer.write([total_of(f"{n}" * 26)], [])
        assert reader.changes(5).complete and not reader.changes(4).complete
        writer.write([total_of("x" * 500)], [])
        assert reader.changes(9) == Changes(10, frozenset({"x" * 500}), True)
        assert not reader.changes(8).complete


# Crashes and errors


def _die_before(path: Path, statement: int) -> None:
    writer = SqliteWriter(path)
    seen = count(1)
    writer._db.set_trace_callback(
        lambda _: os.kill(os.getpid(), signal.SIGKILL) if next(seen) == statement else None
    )
    writer.write([total_of("a", version=2), *of_one_bucket(17, 2)], [Counter(0, "events", 2)])
    writer.close()


def test_killed_before_any_statement_a_write_leaves_nothing(path: Path) -> None:
    """Each statement of a write is tried, from BEGIN to the one after COMMIT, where all of it is there."""
    with closing(SqliteWriter(path)) as writer:
        writer.write([total_of("a"), *of_one_bucket(17)], [Counter(0, "events", 1)])
    codes = []
    for statement in count(1):
        with child(_die_before, path, statement) as dying:
            dying.join()
            codes.append(dying.exitcode)
        whole = {2} if codes[-1] == 0 else {1}
        with closing(SqliteReader(path)) as reader:
            assert {stored.total.version for stored in reader.totals()} == whole
            assert {counter.value for counter in reader.counters()} == whole
            assert {reader.changes(0).seq} == whole
        if codes[-1] == 0:
            break
    assert set(codes[:-1]) == {-signal.SIGKILL} and len(codes) > 8


def test_many_may_create_it_at_once(path: Path) -> None:
    """Processes of a flow and the gate start together; no one finds half a store."""
    failed: list[BaseException] = []
    start = threading.Barrier(8)

    def create() -> None:
        try:
            start.wait()
            for n in range(10):
                with closing(SqliteWriter(path.with_name(f"{n}.db"))) as writer:
                    writer.write(batch_of(1), [])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert not list(path.parent.glob("*.new"))


def _no_sqlite(path: Path) -> None:
    path.write_bytes(b"customer,total\n" * 1000)


def _another_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE meta (key, value)")


def _another_schema(path: Path) -> None:
    SqliteWriter(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE meta SET value = 7")
        db.commit()


def _a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (_no_sqlite, "this is no SQLite file"),
        (_another_database, "needs Tidegate's store, got another database"),
        (_another_schema, "needs schema 4, got 7; run the version of Tidegate that wrote it"),
        (_a_folder, "needs a file, got something else"),
    ],
)
def test_what_is_no_store_is_named(path: Path, made: Callable[[Path], None], says: str) -> None:
    """A wrong path is an error at the start, and the file that was there stays as it is."""
    made(path)
    before = path.read_bytes() if path.is_file() else None
    for opened in (SqliteWriter, SqliteReader):
        with pytest.raises(StoreError) as caught:
            opened(path)
        assert says in str(caught.value) and repr(str(path)) in str(caught.value)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_reader_before_the_first_writer_is_told(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such file; start the flow"):
        SqliteReader(path)
    assert not list(path.parent.iterdir())


def test_a_folder_that_cannot_be_made_is_named(path: Path) -> None:
    path.touch()
    with pytest.raises(StoreError, match="File exists"):
        SqliteWriter(path / "store.db")
    with pytest.raises(StoreError, match="Not a directory"):
        SqliteWriter(path / "folder" / "store.db")


def test_a_lock_is_waited_for_and_then_named(path: Path) -> None:
    """A hanging process must not stop the flow for ever and in silence."""
    with closing(SqliteWriter(path, wait=NO_WAIT)) as writer, closing(SqliteWriter(path)) as other:
        with other._transaction(), pytest.raises(StoreError, match="another process kept the write lock"):
            writer.write(batch_of(1), [])
        writer.write(batch_of(2), [])
    assert versions_in(FilePlace(path)) == {2}


def test_a_lock_on_opening_is_named_too(path: Path) -> None:
    with closing(SqliteWriter(path)) as hog:
        hog._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        hog.write(batch_of(1), [])
        for opened in (SqliteWriter, SqliteReader):
            with pytest.raises(StoreError, match="another process kept the write lock"):
                opened(path, wait=NO_WAIT)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_goes_away_is_an_error(path: Path, replaced: bool) -> None:
    """Writes would go nowhere, and a gate would read old totals for ever, without a word from SQLite."""
    with closing(SqliteWriter(path)) as writer, closing(SqliteReader(path)) as reader:
        writer.write(batch_of(1), [])
        for file in path.parent.iterdir():
            file.rename(file.with_name(f"old-{file.name}"))
        if replaced:
            SqliteWriter(path).close()
        for act in (
            lambda: writer.write(batch_of(2), []),
            lambda: reader.read("a"),
            lambda: reader.changes(0),
        ):
            with pytest.raises(StoreError, match="moved, replaced or deleted while open; start again"):
                act()


def test_an_error_in_detail_gets_the_advice_of_its_kind(path: Path) -> None:
    """SQLite tells failures of a disk from one another by numbers above the kind's."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    with pytest.raises(StoreError, match="the disk fails"), store_schema.SCHEMA.explained(path, "write"):
        raise error


@pytest.mark.parametrize(
    ("pragma", "undone", "says"),
    [
        ("max_page_count = 60", "max_page_count = 100000", "the disk is full"),
        ("query_only = 1", "query_only = 0", "read-only for this user"),
    ],
)
def test_a_failed_write_leaves_nothing_and_may_be_repeated(
    path: Path, pragma: str, undone: str, says: str
) -> None:
    with closing(SqliteWriter(path)) as writer, closing(SqliteReader(path)) as reader:
        writer.write([total_of("a")], [Counter(0, "events", 1)])
        writer._db.execute(f"PRAGMA {pragma}")
        with pytest.raises(StoreError, match=says):
            writer.write([total_of("x" * 1000, start=n) for n in range(1000)], [Counter(0, "events", 2)])
        holds(reader, written([[total_of("a")]]))
        assert reader.counters() == [Counter(0, "events", 1)] and reader.changes(0).seq == 1
        writer._db.execute(f"PRAGMA {undone}")
        writer.write(batch_of(1), [])
        holds(reader, written([[total_of("a")], batch_of(1)]))


def test_a_damaged_file_is_named(path: Path) -> None:
    with closing(SqliteWriter(path)) as writer:
        writer.write(batch_of(1), [])
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with (
        pytest.raises(StoreError, match="the file is damaged; restore it"),
        closing(SqliteReader(path)) as reader,
    ):
        list(reader.totals())


def test_an_interrupted_write_leaves_the_writer_usable(path: Path) -> None:
    """A number SQLite cannot hold is our bug: it is raised as it is, and nothing is written."""
    with closing(SqliteWriter(path)) as writer, closing(SqliteReader(path)) as reader:
        with pytest.raises(OverflowError):
            writer.write([*batch_of(1), total_of("a", total=2**63)], [])
        holds(reader, {})
        writer.write(batch_of(1), [])
        holds(reader, written([batch_of(1)]))


# What people and machines see


def test_usage_is_for_people(path: Path) -> None:
    day = 24 * HOUR
    forever = total_of("a", window="period", end=2**62, total="0.1", version=3, events=2)
    of_a_day = total_of("a", window="day", start=19_723 * day, end=19_724 * day)
    with closing(SqliteWriter(path)) as writer:
        writer.write([forever, of_a_day], [])
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT * FROM usage WHERE customer = 'a' ORDER BY window").fetchall()
        columns = [column[1] for column in db.execute("PRAGMA table_info(usage)")]
        plan = [row[3] for row in db.execute("EXPLAIN QUERY PLAN SELECT * FROM usage WHERE customer = 'a'")]
    assert columns == ["customer", "meter", "window", "starts", "ends", "total", "events", "version"]
    assert rows == [
        ("a", "calls", "day", "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", 1, 1, 1),
        ("a", "calls", "period", "1970-01-01T00:00:00Z", None, "0.1", 2, 3),
    ]
    assert not [step for step in plan if step.startswith("SCAN packed")]


def test_written_at_is_when_it_was_written(path: Path) -> None:
    now = count(100, 100)
    with (
        closing(SqliteWriter(path, clock=lambda: next(now))) as writer,
        closing(SqliteReader(path)) as reader,
    ):
        for version, expected in ((1, 100), (2, 200), (2, 200)):
            writer.write([total._replace(version=version) for total in batch_of(1)], [])
            assert {stored.written_at for stored in reader.totals()} == {expected}


def test_all_totals_are_read_without_sorting_them(path: Path) -> None:
    """Ten million totals stream through a reader that holds one of them."""
    with closing(SqliteWriter(path)) as writer:
        plan = [row[3] for row in writer._db.execute(f"EXPLAIN QUERY PLAN {table_layout.SELECT_ALL}")]
    assert not [step for step in plan if "TEMP B-TREE" in step]


@pytest.mark.parametrize(("full_sync", "synchronous"), [(False, 1), (True, 2)])
def test_a_writer_is_set_up_as_it_says(path: Path, full_sync: bool, synchronous: int) -> None:
    """None of it shows in a test that runs for a second, all of it in a month."""
    expected: dict[str, str | int] = {
        "synchronous": synchronous,
        "journal_mode": "wal",
        "busy_timeout": 1500,
        "cache_size": -64 * 1024,
        "wal_autocheckpoint": 10_000,
        "journal_size_limit": 64 * 1024 * 1024,
        "secure_delete": 0,
    }
    with closing(SqliteWriter(path, wait=timedelta(seconds=1.5), full_sync=full_sync)) as writer:
        assert {p: writer._db.execute(f"PRAGMA {p}").fetchone()[0] for p in expected} == expected


def test_a_reader_cannot_write(path: Path) -> None:
    SqliteWriter(path).close()
    with closing(SqliteReader(path)) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._file.db.execute("DELETE FROM feed")


def test_keys_of_the_contract_lie_in_many_tables() -> None:
    """Else it would not try the ways between tables."""
    assert (
        len({shard_of(key_of(total)[0], store_schema.BUCKETS) for total in batch_of(1)})
        == store_schema.BUCKETS
    )
