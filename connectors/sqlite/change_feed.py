"""The embedded store's feed: a numbered row per write with the customers that it touched.

Writers append to it in the transaction of what they write, so its numbers are free of gaps and in the order of
commits. It reaches back FEED_WRITES writes or about FEED_BYTES. `SqliteFeed` is how near caches follow it: SQLite
counts in memory shared by all processes when a file was written to, which costs microseconds to ask.

Source: https://www.sqlite.org/pragma.html#pragma_data_version
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec

from tidegate.connectors.sqlite.connection import WAIT
from tidegate.connectors.sqlite.files import open_file
from tidegate.connectors.sqlite.store_schema import SCHEMA
from tidegate.operators.model.ports import Changes, News

FEED_WRITES = 10_000
FEED_BYTES = 32 * 1024 * 1024
TICK = timedelta(milliseconds=2)

_NEWS = """SELECT min(seq), coalesce((SELECT max(seq) FROM feed), 0), json_group_array(json(customers)),
    coalesce((SELECT max(number) FROM catalogs), 0) FROM feed WHERE seq > ?"""
_LISTS = msgspec.json.Decoder(list[list[str]])


def announce(db: sqlite3.Connection, customers: Sequence[str]) -> None:
    """Append to the feed, and delete its oldest rows; at least one remains, for its number."""
    text = msgspec.json.encode(customers).decode()
    last = db.execute("SELECT seq, bytes_so_far FROM feed ORDER BY seq DESC LIMIT 1").fetchone()
    seq, so_far = (last[0] + 1, last[1] + len(text)) if last else (1, len(text))
    db.execute("INSERT INTO feed VALUES (?, ?, ?)", (seq, so_far, text))
    db.execute(
        "DELETE FROM feed WHERE seq < "
        "(SELECT seq FROM feed WHERE seq > ? AND bytes_so_far > ? ORDER BY seq LIMIT 1)",
        (seq - FEED_WRITES, so_far - FEED_BYTES),
    )


def changes_after(db: sqlite3.Connection, after: int) -> Changes:
    """Who was written since the write numbered `after`; 0 is before the first. Cheap if nobody was.

    Where the feed no longer reaches back, no customers are named.
    """
    last = newest(db)
    if last == after:
        return Changes(after, frozenset(), True)
    query = "SELECT seq, customers FROM feed WHERE seq > ? ORDER BY seq"
    rows = db.execute(query, (after,)).fetchall()
    # A feed that ends before `after` is of another file, such as a backup put back.
    if not rows or rows[0][0] != after + 1:
        return Changes(last, frozenset(), False)
    touched = (msgspec.json.decode(customers, type=list[str]) for _, customers in rows)
    return Changes(rows[-1][0], frozenset().union(*touched), True)


def newest(db: sqlite3.Connection) -> int:
    """Return the number of the last write."""
    return int(db.execute("SELECT max(seq) FROM feed").fetchone()[0] or 0)


class SqliteFeed:
    """Follows the file at `path`. It looks every `tick`; a file that is gone or another one is an error.

    It asks as little of SQLite as it can, one row a time: each row makes its thread wait for the interpreter once more.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        wait: timedelta = WAIT,
        tick: timedelta = TICK,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._tick, self._sleep = tick.total_seconds(), sleep
        self._file = open_file(Path(path), SCHEMA, "ro", wait=wait)
        with self._file.reading() as self._db:
            self._version = self._data_version()
            self._seq = newest(self._db)
            self._catalog = self._newest_catalog()

    def wait(self, seconds: float) -> News:
        """As in `ports.Feed`: each look is a round trip to the file."""
        with self._file.reading():
            for _ in range(max(int(seconds / self._tick), 1)):
                version = self._data_version()
                if version != self._version:
                    return self._news(version)
                self._sleep(self._tick)
        return News(frozenset(), self._catalog)

    def close(self) -> None:
        self._file.close()

    def _news(self, version: int) -> News:
        # What is read here is as new as the version, or newer.
        first, last, customers, self._catalog = self._db.execute(_NEWS, (self._seq,)).fetchone()
        complete = last == self._seq or first == self._seq + 1
        self._seq, self._version = last, version
        if not complete:
            return News(None, self._catalog)
        return News(frozenset().union(*_LISTS.decode(customers)), self._catalog)

    def _data_version(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def _newest_catalog(self) -> int:
        return int(self._db.execute("SELECT max(number) FROM catalogs").fetchone()[0] or 0)
