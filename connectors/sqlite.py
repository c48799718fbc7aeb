"""Totals in one SQLite file: the store that needs no server.

What lies where: a customer's totals in one of 16 tables, chosen by the hash that also routes it to a shard.
So a shard writes into a small tree of its own, which on updates took a sixth off the time of one tree with
the hash in front of the key, and a reader knows the table from the customer. Rows are clustered by
(customer, window, meter, start). `feed` (connectors/sqlite_feed.py) has a numbered row per write with the customers
it touched, `counters` the counters, `notes` the newest NOTES_KEPT notes, `meta` the schema; sqlite_control.py and
sqlite_holds.py say the rest. The view `usage` is for people with the `sqlite3` shell.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from datetime import timedelta
from decimal import Decimal
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from connectors.clock import wall_clock
from connectors.sqlite_feed import announce, changes_after
from connectors.sqlite_file import (
    BUCKETS,
    KEY,
    TABLES,
    WAIT,
    check_same,
    connect,
    explained,
    make,
    transaction,
)
from connectors.sqlite_holds import Settling
from operators.keys import shard_of
from operators.ports import Changes, Note, Settled, StoredTotal
from operators.records import Counter, Total

CACHE_KIB = 64 * 1024
NOTES_KEPT = 200_000
CHECKPOINT_PAGES = 10_000
LOG_BYTES_KEPT = 64 * 1024 * 1024
# Rows per statement: one of its own would cost a row twice the time; beyond 128 nothing is gained.
ROWS_PER_STATEMENT = (128, 16, 1)

FIELDS = ", ".join(f'"{field}"' for field in Total._fields)
STEADY = Total._fields.index("steady")


_SELECT = f"SELECT {FIELDS}, written_at FROM"
_SELECT_ALL = f"{' UNION ALL '.join(f'{_SELECT} {table}' for table in TABLES)} ORDER BY {KEY}"

# Integers sort before texts, so the first comparison is true of two integers only; the function sees
# what is left: decimals, and the rare integer that is about to be turned down.
_IF_NEWER = """excluded.version > version AND (NOT excluded.steady
    OR (excluded.total < '' AND excluded.total >= total) OR reaches(excluded.total, total))"""

_COUNT = """INSERT INTO counters VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET value = excluded.value WHERE excluded.value > value"""
_NOTE = """INSERT INTO notes (kind, id, customer, at, body) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (kind, id) DO UPDATE SET customer = excluded.customer, at = excluded.at, body = excluded.body
    WHERE excluded.at >= at AND excluded.body != body"""
_TRIM_NOTES = "DELETE FROM notes WHERE seq <= (SELECT max(seq) FROM notes) - ?"


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
        self._settling = Settling()
        with explained(self._path, "open"):
            make(self._path)
            self._db = connect(self._path, "rw", wait)
            self._opened = os.stat(self._path)
            self._db.create_function("reaches", 2, _reaches, deterministic=True)
            self._db.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
            self._db.execute(f"PRAGMA cache_size = {-CACHE_KIB}")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_KEPT}")
            # Some builds overwrite with zeros what they free, which only costs time here.
            self._db.execute("PRAGMA secure_delete = OFF")

    def write(
        self,
        totals: Sequence[Total],
        counters: Sequence[Counter],
        notes: Sequence[Note] = (),
        settled: Sequence[Settled] = (),
    ) -> None:
        """Stores what is newer, in one transaction. Best in few large calls, of one or few shards each."""
        if not (totals or counters or notes or settled):
            return
        # Before the lock is taken, which another process may be waiting for.
        buckets, customers = _in_buckets(totals)
        with explained(self._path, "write"), self._transaction():
            check_same(self._path, self._opened)
            before = self._db.total_changes
            now = self._clock()
            for bucket, rows in enumerate(buckets):
                self._upsert(now, bucket, rows)
            if notes:
                customers = sorted({*customers, *(note.customer for note in notes)})
                self._db.executemany(_NOTE, notes)
                self._db.execute(_TRIM_NOTES, (NOTES_KEPT,))
            if settled:
                customers = sorted({*customers, *self._settling.settle(self._db, settled)})
            if self._db.total_changes > before:
                announce(self._db, customers)
            self._db.executemany(_COUNT, counters)

    def close(self) -> None:
        with explained(self._path, "close"):
            self._db.close()

    def _transaction(self) -> AbstractContextManager[None]:
        return transaction(self._db)

    def _upsert(self, now: int, bucket: int, rows: list[Total]) -> None:
        begin = 0
        for size in ROWS_PER_STATEMENT:
            for at in range(begin, len(rows) - size + 1, size):
                self._db.execute(_upsert_sql(bucket, size), _parameters(now, rows[at : at + size]))
                begin = at + size


class SqliteReader:
    """Reads the file at `path` while others write it; sees each write as soon as it is committed.

    Where there is no file, that is an error, or with `create` an empty store. Raises StoreError.
    """

    def __init__(self, path: str | Path, *, create: bool = False, wait: timedelta = WAIT) -> None:
        self._path, self._wait = Path(path).absolute(), wait
        with explained(self._path, "open"):
            if create:
                make(self._path)
            self._db = connect(self._path, "ro", wait)
            self._opened = os.stat(self._path)

    def read(self, customer: str) -> list[StoredTotal]:
        """All totals of one customer, in one query, in the order of window, meter and start."""
        with explained(self._path, "read"):
            check_same(self._path, self._opened)
            rows = self._db.execute(_read_sql(shard_of(customer, BUCKETS)), (customer,)).fetchall()
        return [_stored(row) for row in rows]

    def totals(self, customer: str | None = None) -> Iterator[StoredTotal]:
        """Totals as of the first one taken, in the order of customer, window, meter and start."""
        if customer is not None:
            yield from self.read(customer)
            return
        # On a connection of its own: an open query would hold back what `read` sees.
        with explained(self._path, "read"), closing(connect(self._path, "ro", self._wait)) as db:
            yield from map(_stored, db.execute(_SELECT_ALL))

    def counters(self) -> list[Counter]:
        with explained(self._path, "read"):
            rows = self._db.execute("SELECT shard, name, value FROM counters").fetchall()
        return [Counter(*row) for row in rows]

    def notes(self, kind: str, customer: str | None = None, limit: int = 100) -> list[Note]:
        """The newest notes of a kind, the newest first."""
        which, given = ("", ()) if customer is None else (" AND customer = ?", (customer,))
        query = f"""SELECT kind, id, customer, at, body FROM notes WHERE kind = ?{which}
            ORDER BY at DESC, seq DESC LIMIT ?"""
        with explained(self._path, "read"):
            return [Note._make(row) for row in self._db.execute(query, (kind, *given, limit))]

    def changes(self, after: int) -> Changes:
        """Who was written since the write numbered `after`; 0 is before the first. Cheap if nobody was.

        Where the feed no longer reaches back, no customers are named.
        """
        with explained(self._path, "read"):
            check_same(self._path, self._opened)
            return changes_after(self._db, after)

    def close(self) -> None:
        with explained(self._path, "close"):
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
