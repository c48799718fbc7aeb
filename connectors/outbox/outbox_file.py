"""The outbox's file as its parts use it: transactions that may be nested, counters, and the alerts that it raises."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.files.one_machine import claim
from tidegate.connectors.files.private_files import make_private_folder
from tidegate.connectors.outbox.schema import SCHEMA, OutboxError, State
from tidegate.connectors.sqlite.files import open_file

ALERTS_KEPT = 10_000
CHECKPOINT_PAGES = 4000
CACHE_KIB = 32 * 1024
LOG_BYTES_KEPT = 64 << 20

_COUNT = "INSERT INTO counts VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value"


class OutboxFile:
    """Safe to share between the threads of a process. `sync` has durable transactions wait for the disk."""

    def __init__(self, path: str | Path, *, sync: bool = True, clock: Callable[[], int] = wall_clock) -> None:
        self.path = Path(path).absolute()
        self.clock, self._sync = clock, sync
        self._lock = RLock()
        with SCHEMA.explained(self.path, "open"):
            make_private_folder(self.path.parent)
            self._machine = claim(self.path)
        if self._machine is None:
            raise OutboxError(
                f"outbox {str(self.path)!r}: another machine has it open, and it can be on one only; name a path"
                " on a disk of its own for each (outbox=…), and shares of the limit that add up to 1 (share=…)"
            )
        pragmas = {
            "cache_size": -CACHE_KIB,
            "wal_autocheckpoint": CHECKPOINT_PAGES,
            "journal_size_limit": LOG_BYTES_KEPT,
        }
        try:
            self._file = open_file(self.path, SCHEMA, "rwc", pragmas=pragmas)
        except BaseException:
            os.close(self._machine)
            raise
        self._db = self._file.db

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Begin one transaction, or be a part of the one that is under way. `durable` ones wait for the disk."""
        with self._lock:
            if self._db.in_transaction:
                with self._file.explained("write"):
                    yield self._db
                return
            with self._file.explained("write"):
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable and self._sync else 'NORMAL'}")
            with self._file.transaction() as db:
                yield db

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to a block that reads."""
        with self._lock, self._file.reading() as db:
            yield db

    def alert(self, kind: str, text: str | None) -> bool:
        """Raise an alert, or with None resolve it; return whether that changed anything."""
        with self.transaction():
            found = self._db.execute("SELECT text FROM standing WHERE kind = ?", (kind,)).fetchone()
            if (found is None) == (text is None):
                if text is not None and found != (text,):
                    self._db.execute("UPDATE standing SET text = ? WHERE kind = ?", (text, kind))
                return False
            now = self.clock()
            if text is None:
                self._db.execute("DELETE FROM standing WHERE kind = ?", (kind,))
            else:
                self._db.execute("INSERT INTO standing VALUES (?, ?, ?)", (kind, now, text))
            said = (kind, "resolved", now, found[0]) if text is None else (kind, "raised", now, text)
            added = self._db.execute("INSERT INTO alerts (kind, state, at, text) VALUES (?, ?, ?, ?)", said)
            self._db.execute("DELETE FROM alerts WHERE seq <= ?", ((added.lastrowid or 0) - ALERTS_KEPT,))
        return True

    def unnoted(self, limit: int = 100) -> list[tuple[int, str, str, int, str]]:
        """Return changes of alerts that were not yet passed on: number, kind, state, time and text."""
        query = "SELECT seq, kind, state, at, text FROM alerts WHERE seq > ? ORDER BY seq LIMIT ?"
        with self.reading():
            return self._db.execute(query, (self.meta("noted"), limit)).fetchall()

    def noted(self, seq: int) -> None:
        """Write down that alerts were passed on up to this number."""
        with self.transaction() as db:
            db.execute("UPDATE meta SET value = ? WHERE key = 'noted'", (seq,))

    def count(self, **counts: int) -> None:
        """Add to the counters, inside of a transaction or as one."""
        changed = [(name, by) for name, by in counts.items() if by]
        if changed:
            with self.transaction():
                self._db.executemany(_COUNT, changed)

    def meta(self, key: str) -> int:
        """Return one of the numbers that the file has once."""
        with self.reading():
            value: int = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0]
        return value

    def move_counts(self, cursor: sqlite3.Cursor, before: State, after: State = State.waiting) -> int:
        """Count as many events from one state to another as a statement changed; return how many."""
        count = max(cursor.rowcount, 0)
        self.count(**{f"now_{before.name}": -count})
        self.count(**{f"now_{after.name}": count})
        return count

    def bytes_used(self) -> int:
        """Return how many bytes of the file hold something."""
        with self._lock:
            return self._file.bytes_used()

    def close(self) -> None:
        with self._lock:
            self._file.close()
            if self._machine is not None:
                os.close(self._machine)
                self._machine = None
