"""Totals in one SQLite file: the store that needs no server.

What lies where: a customer's totals in one of 16 tables, chosen by the hash that also routes it to a shard.
So a shard writes into a small tree of its own, which on updates took a sixth off the time of one tree with
the hash in front of the key, and a reader knows the table from the customer. Rows are clustered by
(customer, window, meter, start). `feed` has a numbered row per write with the customers it touched,
`counters` the counters, `meta` the schema. The view `usage` is for people with the `sqlite3` shell.

Guarantees: a `write` is one transaction, seen whole or not at all, by readers in any process. A total
replaces a stored one only if its version is newer and it is not a steady total that would go back;
a counter only grows; so a replay changes nothing, nor does the order of writes. Numbers of the feed are
free of gaps and in the order of commits, whoever writes. Any process may be killed at any time.

Limits: one machine and a local disk, as write-ahead logs need shared memory. One writer commits at a time,
the others wait `wait` and then raise. After a power cut the last commits may be missing, unless
`full_sync`: the flow has to write again what its own snapshots are ahead of. The feed reaches back
FEED_WRITES writes or about FEED_BYTES. A `totals()` under way keeps the log from being reset, so it
grows meanwhile. Nothing is ever deleted. A writer or reader is used by one thread at a time.

Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/lang_upsert.html
"""

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from operators.keys import shard_of
from operators.ports import Changes, StoredTotal, StoreError
from operators.records import Counter, Total

SCHEMA = 1
BUCKETS = 16
FEED_WRITES = 10_000
FEED_BYTES = 32 * 1024 * 1024
CACHE_KIB = 64 * 1024
CHECKPOINT_PAGES = 10_000
LOG_BYTES_KEPT = 64 * 1024 * 1024
WAIT = timedelta(seconds=30)
# Rows per statement: one of its own would cost a row twice the time; beyond 128 nothing is gained.
ROWS_PER_STATEMENT = (128, 16, 1)

TABLES = [f"totals_{bucket:02}" for bucket in range(BUCKETS)]
FIELDS = ", ".join(f'"{field}"' for field in Total._fields)
KEY = "customer, window, meter, start"
STEADY = Total._fields.index("steady")


def _table(name: str) -> str:
    # `total` and `adjustment` have no type, so that SQLite keeps the integer or the text that came.
    return f"""CREATE TABLE {name} (
        customer TEXT, window TEXT, meter TEXT, start INTEGER, "end" INTEGER, total, version INTEGER,
        events INTEGER, as_of INTEGER, late INTEGER, corrected INTEGER, adjustment, steady INTEGER,
        written_at INTEGER, PRIMARY KEY ({KEY})
    ) WITHOUT ROWID;"""


def _usage(table: str) -> str:
    return f"""SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM {table}"""


_SCHEMA = f"""
{"".join(map(_table, TABLES))}
CREATE TABLE counters (shard INTEGER, name TEXT, value INTEGER, PRIMARY KEY (shard, name)) WITHOUT ROWID;
CREATE TABLE feed (seq INTEGER PRIMARY KEY, bytes_so_far INTEGER, customers TEXT);
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('tidegate_schema', {SCHEMA});
CREATE VIEW usage AS {" UNION ALL ".join(map(_usage, TABLES))};
"""

_SELECT = f"SELECT {FIELDS}, written_at FROM"
_SELECT_ALL = f"{' UNION ALL '.join(f'{_SELECT} {table}' for table in TABLES)} ORDER BY {KEY}"

# Integers sort before texts, so the first comparison is true of two integers only; the function sees
# what is left: decimals, and the rare integer that is about to be turned down.
_IF_NEWER = """excluded.version > version AND (NOT excluded.steady
    OR (excluded.total < '' AND excluded.total >= total) OR reaches(excluded.total, total))"""

_COUNT = """INSERT INTO counters VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET value = excluded.value WHERE excluded.value > value"""

_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process kept the write lock; look for one that hangs, or a sqlite3 shell "
    "inside a transaction",
    sqlite3.SQLITE_FULL: "the disk is full; free space and start again, nothing that was written is lost",
    sqlite3.SQLITE_READONLY: "the file, its folder or the disk is read-only for this user; allow writing",
    sqlite3.SQLITE_CANTOPEN: "the file and its folder must exist and be writable, also for readers, "
    "who share the -shm file beside it",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a backup, or move it away and replay",
    sqlite3.SQLITE_NOTADB: "this is no SQLite file; name another path",
    sqlite3.SQLITE_IOERR: "the disk fails or is no local disk; see the system's log",
}


def wall_clock() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class SqliteWriter:
    """Writes totals and counters into the file at `path`, made with its folder if it is not there.

    `wait` bounds how long another writer is waited for. `full_sync` makes each write survive a power cut,
    at the price of waiting for the disk. Raises StoreError, after which nothing of that write is stored.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        wait: timedelta = WAIT,
        full_sync: bool = False,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self._path = Path(path).absolute()
        self._clock = clock
        with _explained(self._path, "open"):
            _create(self._path)
            self._db = _connect(self._path, "rw", wait)
            self._opened = os.stat(self._path)
            self._db.create_function("reaches", 2, _reaches, deterministic=True)
            self._db.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
            self._db.execute(f"PRAGMA cache_size = {-CACHE_KIB}")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_KEPT}")
            # Some builds overwrite with zeros what they free, which only costs time here.
            self._db.execute("PRAGMA secure_delete = OFF")

    def write(self, totals: Sequence[Total], counters: Sequence[Counter]) -> None:
        """Stores what is newer, in one transaction. Best in few large calls, of one or few shards each."""
        if not totals and not counters:
            return
        # Before the lock is taken, which another process may be waiting for.
        buckets, customers = _in_buckets(totals)
        with _explained(self._path, "write"), self._transaction():
            _check_same(self._path, self._opened)
            before = self._db.total_changes
            now = self._clock()
            for bucket, rows in enumerate(buckets):
                self._upsert(now, bucket, rows)
            if self._db.total_changes > before:
                self._announce(customers)
            self._db.executemany(_COUNT, counters)

    def close(self) -> None:
        with _explained(self._path, "close"):
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE waits for the lock here; a lock asked for later, after reading, could only fail.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _upsert(self, now: int, bucket: int, rows: list[Total]) -> None:
        begin = 0
        for size in ROWS_PER_STATEMENT:
            for at in range(begin, len(rows) - size + 1, size):
                self._db.execute(_upsert_sql(bucket, size), _parameters(now, rows[at : at + size]))
                begin = at + size

    def _announce(self, customers: list[str]) -> None:
        """Appends to the feed, and cuts off its far end; one row at least remains, for its number."""
        text = msgspec.json.encode(customers).decode()
        last = self._db.execute("SELECT seq, bytes_so_far FROM feed ORDER BY seq DESC LIMIT 1").fetchone()
        seq, so_far = (last[0] + 1, last[1] + len(text)) if last else (1, len(text))
        self._db.execute("INSERT INTO feed VALUES (?, ?, ?)", (seq, so_far, text))
        self._db.execute(
            "DELETE FROM feed WHERE seq < "
            "(SELECT seq FROM feed WHERE seq > ? AND bytes_so_far > ? ORDER BY seq LIMIT 1)",
            (seq - FEED_WRITES, so_far - FEED_BYTES),
        )


class SqliteReader:
    """Reads the file at `path` while others write it; sees each write as soon as it is committed.

    Where there is no file, that is an error, or with `create` an empty store. Raises StoreError.
    """

    def __init__(self, path: str | Path, *, create: bool = False, wait: timedelta = WAIT) -> None:
        self._path, self._wait = Path(path).absolute(), wait
        with _explained(self._path, "open"):
            if create:
                _create(self._path)
            self._db = _connect(self._path, "ro", wait)
            self._opened = os.stat(self._path)

    def read(self, customer: str) -> list[StoredTotal]:
        """All totals of one customer, in one query, in the order of window, meter and start."""
        with _explained(self._path, "read"):
            _check_same(self._path, self._opened)
            rows = self._db.execute(_read_sql(shard_of(customer, BUCKETS)), (customer,)).fetchall()
        return [_stored(row) for row in rows]

    def totals(self, customer: str | None = None) -> Iterator[StoredTotal]:
        """Totals as of the first one taken, in the order of customer, window, meter and start."""
        if customer is not None:
            yield from self.read(customer)
            return
        # On a connection of its own: an open query would hold back what `read` sees.
        with _explained(self._path, "read"), closing(_connect(self._path, "ro", self._wait)) as db:
            yield from map(_stored, db.execute(_SELECT_ALL))

    def counters(self) -> list[Counter]:
        with _explained(self._path, "read"):
            rows = self._db.execute("SELECT shard, name, value FROM counters").fetchall()
        return [Counter(*row) for row in rows]

    def changes(self, after: int) -> Changes:
        """Who was written since the write numbered `after`; 0 is before the first. Cheap if nobody was.

        Where the feed no longer reaches back, no customers are named.
        """
        with _explained(self._path, "read"):
            _check_same(self._path, self._opened)
            last = self._db.execute("SELECT max(seq) FROM feed").fetchone()[0] or 0
            if last == after:
                return Changes(after, frozenset(), True)
            query = "SELECT seq, customers FROM feed WHERE seq > ? ORDER BY seq"
            rows = self._db.execute(query, (after,)).fetchall()
        # A feed that ends before `after` is of another file, such as a backup put back.
        if not rows or rows[0][0] != after + 1:
            return Changes(last, frozenset(), False)
        touched = (msgspec.json.decode(customers, type=list[str]) for _, customers in rows)
        return Changes(rows[-1][0], frozenset().union(*touched), True)

    def close(self) -> None:
        with _explained(self._path, "close"):
            self._db.close()


@cache
def _upsert_sql(bucket: int, rows: int) -> str:
    row = f"(?1{', ?' * len(Total._fields)})"
    sets = ", ".join(f'"{field}" = excluded."{field}"' for field in Total._fields[4:])
    return f"""INSERT INTO {TABLES[bucket]} (written_at, {FIELDS}) VALUES {", ".join([row] * rows)}
        ON CONFLICT DO UPDATE SET {sets}, written_at = excluded.written_at WHERE {_IF_NEWER}"""


@cache
def _read_sql(bucket: int) -> str:
    return f"{_SELECT} {TABLES[bucket]} WHERE customer = ? ORDER BY {KEY}"


def _in_buckets(totals: Sequence[Total]) -> tuple[list[list[Total]], list[str]]:
    """The totals per table, each in the order of customers, as neighbours share a page; the customers."""
    buckets: list[list[Total]] = [[] for _ in range(BUCKETS)]
    customers: list[str] = []
    last = None
    for total in sorted(totals, key=itemgetter(0)):
        if total[0] != last:
            last = total[0]
            customers.append(last)
            append = buckets[shard_of(last, BUCKETS)].append
        append(total)
    return buckets, customers


def _parameters(now: int, rows: list[Total]) -> list[Any]:
    """The columns of the rows, one after the other.

    A slice of a named tuple is a plain one, which a list takes over faster; and a bool, unlike an integer,
    would have the sqlite3 module look for adapters, which takes nine times as long.
    """
    parameters: list[Any] = [now]
    for row in rows:
        parameters += row[:STEADY]
        parameters.append(1 if row[STEADY] else 0)
    return parameters


def _stored(row: tuple[Any, ...]) -> StoredTotal:
    return StoredTotal(Total._make((*row[:STEADY], bool(row[STEADY]))), row[STEADY + 1])


def _reaches(new: int | str, old: int | str) -> bool:
    return Decimal(new) >= Decimal(old)


def _create(path: Path) -> None:
    """Makes an empty store, if there is no file. It appears whole, so two may try at once."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def _connect(path: Path, mode: str, wait: timedelta) -> sqlite3.Connection:
    """A connection to a file that is a store of this schema, else StoreError."""
    if not path.exists():
        raise StoreError(f"store {str(path)!r}: there is no such file; start the flow, which creates it")
    if not path.is_file():
        raise StoreError(f"store {str(path)!r}: needs a file, got something else; name another path")
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=wait.total_seconds(),
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        _check(path, db)
    except BaseException:
        db.close()
        raise
    return db


def _check(path: Path, db: sqlite3.Connection) -> None:
    try:
        found = db.execute("SELECT value FROM meta WHERE key = 'tidegate_schema'").fetchone()
    except sqlite3.OperationalError as error:
        # SQLITE_ERROR is what a missing table or column gives.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        found = None
    if found is None:
        raise StoreError(
            f"store {str(path)!r}: needs a store of Tidegate, got another database; name another path"
        )
    if found[0] != SCHEMA:
        raise StoreError(
            f"store {str(path)!r}: needs schema {SCHEMA}, got {found[0]}; "
            "run the version of Tidegate that wrote it, or name another path and replay"
        )


def _check_same(path: Path, opened: os.stat_result) -> None:
    """What is open is what the path names, else StoreError: a deleted file would take writes in silence."""
    try:
        same = os.path.samestat(os.stat(path), opened)
    except FileNotFoundError:
        same = False
    if not same:
        raise StoreError(
            f"store {str(path)!r}: the file was moved, replaced or deleted while open; start again"
        )


@contextmanager
def _explained(path: Path, act: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"store {str(path)!r}: cannot {act} it ({error}); name another path") from error
    except sqlite3.Error as error:
        # The low byte is the kind, what is above it the detail.
        advice = _ADVICE.get(
            getattr(error, "sqlite_errorcode", 0) & 0xFF, "this is unexpected, please report it"
        )
        raise StoreError(f"store {str(path)!r}: cannot {act} it ({error}); {advice}") from error
