"""Totals in one SQLite file: the store that needs no server.

What lies where: a customer's totals in one of 16 tables, chosen by the hash that also routes it to a shard. So a
shard writes into a small tree of its own, which on updates took a sixth off the time of one tree with the hash in
front of the key, and a reader knows the table from the customer. connectors/sqlite/table_layout.py says how they lie
there, and control.py, holds.py and change_feed.py beside it what `control`, `holds` and `feed` are. `counters`
has the counters, `notes` the newest NOTES_KEPT notes, `meta` the schema. The view `usage` is for people with the
`sqlite3` shell.

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

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from datetime import timedelta
from pathlib import Path

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.sqlite import heartbeats as heartbeat_table
from tidegate.connectors.sqlite import table_layout
from tidegate.connectors.sqlite.change_feed import announce, changes_after
from tidegate.connectors.sqlite.connection import WAIT
from tidegate.connectors.sqlite.files import open_file
from tidegate.connectors.sqlite.hold_tables import read_held
from tidegate.connectors.sqlite.settling import Settling
from tidegate.connectors.sqlite.store_schema import SCHEMA
from tidegate.connectors.sqlite.table_layout import Rows
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Changes, Held, Note, Settled, StoredTotal
from tidegate.operators.model.records import Counter, Total

CACHE_KIB = 64 * 1024
NOTES_KEPT = 200_000
CHECKPOINT_PAGES = 10_000
LOG_BYTES_KEPT = 64 * 1024 * 1024

_COUNT = """INSERT INTO counters VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET value = excluded.value WHERE excluded.value > value"""
_NOTE = """INSERT INTO notes (kind, id, customer, at, body) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (kind, id) DO UPDATE SET customer = excluded.customer, at = excluded.at, body = excluded.body
    WHERE excluded.at >= at AND excluded.body != body"""
_TRIM_NOTES = "DELETE FROM notes WHERE seq <= (SELECT max(seq) FROM notes) - ?"


def make_store(path: str | Path, *, wait: timedelta = WAIT) -> None:
    """Make the file at `path`, with its folder, where there is none, or bring it to this release's version.

    Raises StoreError.
    """
    open_file(Path(path), SCHEMA, "rwc", wait=wait).close()


class SqliteWriter:
    """Writes totals and counters into the file at `path`, made if it is not there, unless `create` is off.

    `wait` bounds how long another writer is waited for. `full_sync` makes each write survive a power cut,
    at the price of waiting for the disk. Raises StoreError, after which nothing of that write is stored.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        wait: timedelta = WAIT,
        create: bool = True,
        full_sync: bool = False,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self._clock = clock
        self._settling = Settling()
        pragmas = {
            "synchronous": "FULL" if full_sync else "NORMAL",
            "cache_size": -CACHE_KIB,
            "wal_autocheckpoint": CHECKPOINT_PAGES,
            "journal_size_limit": LOG_BYTES_KEPT,
            # Some builds overwrite with zeros what they free, which only costs time here.
            "secure_delete": "OFF",
        }
        self._file = open_file(Path(path), SCHEMA, "rwc" if create else "rw", wait=wait, pragmas=pragmas)
        self._db = self._file.db
        table_layout.prepare(self._db)

    def write(
        self,
        totals: Sequence[Total],
        counters: Sequence[Counter],
        notes: Sequence[Note] = (),
        settled: Sequence[Settled] = (),
        heartbeats: Sequence[Heartbeat] = (),
    ) -> None:
        """Store what is newer, in one transaction. Best in few large calls, of one or few shards each."""
        if not (totals or counters or notes or settled or heartbeats):
            return
        # Before the lock is taken, which another process may be waiting for.
        rows = Rows(totals)
        customers = rows.customers
        with self._transaction():
            before = self._db.total_changes
            rows.write(self._db, self._clock())
            if notes:
                customers = sorted({*customers, *(note.customer for note in notes)})
                self._db.executemany(_NOTE, notes)
                self._db.execute(_TRIM_NOTES, (NOTES_KEPT,))
            if settled:
                customers = sorted({*customers, *self._settling.settle(self._db, settled)})
            if self._db.total_changes > before:
                self._announce(customers)
            self._db.executemany(_COUNT, counters)
            heartbeat_table.write(self._db, heartbeats)

    def close(self) -> None:
        self._file.close()

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._file.transaction()

    def _announce(self, customers: list[str]) -> None:
        announce(self._db, customers)


class SqliteReader:
    """Reads the file at `path` while others write it; sees each write as soon as it is committed.

    Where there is no file, that is an error. Raises StoreError.
    """

    def __init__(self, path: str | Path, *, wait: timedelta = WAIT) -> None:
        self._path, self._wait = Path(path).absolute(), wait
        self._file = open_file(self._path, SCHEMA, "ro", wait=wait)

    def read(self, customer: str, since: int = 0) -> list[StoredTotal]:
        """Totals of one customer, in one query, in the order of window, meter and start."""
        with self._file.reading() as db:
            return table_layout.read(db, customer, since)

    def totals(self, customer: str | None = None) -> Iterator[StoredTotal]:
        """Totals as of the first one taken, in the order of customer, window, meter and start."""
        if customer is not None:
            yield from self.read(customer)
            return
        # On a connection of its own: an open query would hold back what `read` sees.
        with closing(open_file(self._path, SCHEMA, "ro", wait=self._wait)) as file, file.reading() as db:
            yield from table_layout.read_all(db)

    def read_held(self, now: int, customers: Collection[str] | None = None) -> dict[str, Held]:
        """As in `ports.StoreReader`; of one customer, or of all, as of one moment."""
        with self._file.reading() as db:
            return read_held(db, now, customers)

    def heartbeats(self) -> list[Heartbeat]:
        with self._file.reading() as db:
            return heartbeat_table.read(db)

    def counters(self) -> list[Counter]:
        with self._file.reading() as db:
            rows = db.execute("SELECT shard, name, value FROM counters").fetchall()
        return [Counter(*row) for row in rows]

    def notes(self, kind: str, customer: str | None = None, limit: int = 100) -> list[Note]:
        """Return the newest notes of a kind, the newest first."""
        which, given = ("", ()) if customer is None else (" AND customer = ?", (customer,))
        query = f"""SELECT kind, id, customer, at, body FROM notes WHERE kind = ?{which} AND body != x''
            ORDER BY at DESC, seq DESC LIMIT ?"""
        with self._file.reading() as db:
            return [Note._make(row) for row in db.execute(query, (kind, *given, limit))]

    def changes(self, after: int) -> Changes:
        """Who was written since the write numbered `after`; 0 is before the first. Cheap if nobody was.

        Where the feed no longer reaches back, no customers are named.
        """
        with self._file.reading() as db:
            return changes_after(db, after)

    def close(self) -> None:
        self._file.close()
