"""Storage for the provider's records: none, or an SQLite file."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from simulator.state.records import Metadata, StoredEvent

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (kind TEXT, id TEXT, body BLOB, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (position INTEGER PRIMARY KEY, event_id TEXT, customer_id TEXT, event_name TEXT,
    at INTEGER, stored_at INTEGER, metadata TEXT);
"""


class Storage(Protocol):
    """Stores records by kind and id, and events by position; everything stored is durable after `commit`."""

    def put(self, kind: str, id: str, record: msgspec.Struct) -> None: ...
    def discard(self, kind: str, id: str) -> None: ...
    def records(self, kind: str) -> Iterable[tuple[str, bytes]]: ...
    def add(self, events: Sequence[StoredEvent]) -> None: ...
    def remove(self, events: Sequence[StoredEvent]) -> None: ...
    def events(self) -> Iterable[StoredEvent]: ...
    def commit(self) -> None: ...
    def clear(self) -> None: ...
    def close(self) -> None: ...


class Nowhere:
    """Stores nothing: the state exists in memory only."""

    def put(self, kind: str, id: str, record: msgspec.Struct) -> None:
        pass

    def discard(self, kind: str, id: str) -> None:
        pass

    def records(self, kind: str) -> Iterable[tuple[str, bytes]]:
        return ()

    def add(self, events: Sequence[StoredEvent]) -> None:
        pass

    def remove(self, events: Sequence[StoredEvent]) -> None:
        pass

    def events(self) -> Iterable[StoredEvent]:
        return ()

    def commit(self) -> None:
        pass

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


class SqliteFile:
    """The file at `path`. It survives a kill of the process, not a power cut."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        # The kernel writes what it has; waiting for the disk would only protect against a power cut.
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(_SCHEMA)

    def put(self, kind: str, id: str, record: msgspec.Struct) -> None:
        self._begin()
        self._db.execute("REPLACE INTO records VALUES (?, ?, ?)", (kind, id, msgspec.json.encode(record)))

    def discard(self, kind: str, id: str) -> None:
        self._begin()
        self._db.execute("DELETE FROM records WHERE kind = ? AND id = ?", (kind, id))

    def records(self, kind: str) -> Iterator[tuple[str, bytes]]:
        yield from self._db.execute("SELECT id, body FROM records WHERE kind = ? ORDER BY id", (kind,))

    def add(self, events: Sequence[StoredEvent]) -> None:
        self._begin()
        self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", map(_row, events))

    def remove(self, events: Sequence[StoredEvent]) -> None:
        self._begin()
        self._db.executemany("DELETE FROM events WHERE position = ?", [(event.position,) for event in events])

    def events(self) -> Iterator[StoredEvent]:
        for row in self._db.execute("SELECT * FROM events ORDER BY position"):
            metadata = msgspec.json.decode(row[-1], type=Metadata | None)
            yield StoredEvent(row[0], row[1], row[2], row[3], row[4], row[5], metadata)

    def commit(self) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def clear(self) -> None:
        self._begin()
        self._db.execute("DELETE FROM records")
        self._db.execute("DELETE FROM events")

    def close(self) -> None:
        self.commit()
        self._db.close()

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")


def _row(event: StoredEvent) -> tuple[int, str, str, str, int, int, str]:
    metadata = msgspec.json.encode(event.metadata).decode()
    return (
        event.position,
        event.event_id,
        event.customer_id,
        event.event_name,
        event.at,
        event.stored_at,
        metadata,
    )
