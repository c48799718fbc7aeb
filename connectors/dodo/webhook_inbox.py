"""What the platform's webhooks said, in one SQLite file: ids that were seen, and each subscription's latest state.

Webhooks come at least once and in any order, and each carries the state at its delivery. So of two the one that was
sent later counts, whenever it comes. A state waits until it was applied to the catalog; a kill in between applies it
again, which changes nothing.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import msgspec

from tidegate.connectors.files.private_files import make_private_file, make_private_folder
from tidegate.operators.billing.provider import Subscription
from tidegate.operators.model.errors import TidegateError

WAIT_S = 10.0
# The platform tries for a day and a half.
SEEN_KEPT_S = 7 * 24 * 3600

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS seen_at ON seen (at);
CREATE TABLE IF NOT EXISTS subscriptions (
    id TEXT PRIMARY KEY, sent_at INTEGER NOT NULL, record BLOB NOT NULL, applied INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting ON subscriptions (id) WHERE applied = 0;
CREATE INDEX IF NOT EXISTS by_customer ON subscriptions (json_extract(CAST(record AS TEXT), '$.customer.customer_id'));
"""


class InboxError(TidegateError):
    """The inbox cannot be opened, read or written; says what to do."""


class State(NamedTuple):
    """A subscription as it was when this was sent (seconds since the epoch)."""

    sent_at: int
    subscription: Subscription


class Inbox:
    """Shared by the threads of a process, and by processes of a machine."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        with self._explained():
            make_private_folder(path.parent)
            make_private_file(path)
            self._db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)

    def take(self, id: str, sent_at: int, subscription: Subscription | None) -> bool:
        """Keeps what a webhook said; False where it was seen before. On disk when this returns."""
        with self._explained(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                is_new = (
                    self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (id, sent_at)).rowcount > 0
                )
                if is_new and subscription is not None:
                    row = (subscription.subscription_id, sent_at, msgspec.json.encode(subscription))
                    self._db.execute(
                        """INSERT INTO subscriptions VALUES (?, ?, ?, 0) ON CONFLICT DO UPDATE
                        SET sent_at = excluded.sent_at, record = excluded.record, applied = 0
                        WHERE excluded.sent_at >= sent_at""",
                        row,
                    )
                self._db.execute("DELETE FROM seen WHERE at < ?", (sent_at - SEEN_KEPT_S,))
            finally:
                self._db.execute("COMMIT")
        return is_new

    def waiting(self) -> list[State]:
        """The states that were not applied yet."""
        with self._explained(), self._lock:
            query = "SELECT sent_at, record FROM subscriptions WHERE applied = 0 ORDER BY id"
            rows = self._db.execute(query).fetchall()
        return [State(sent_at, msgspec.json.decode(record, type=Subscription)) for sent_at, record in rows]

    def of_customers(self, ids: Iterable[str]) -> list[Subscription]:
        """Return the latest state of each subscription of these customers that a webhook was about."""
        query = """SELECT record FROM subscriptions
            WHERE json_extract(CAST(record AS TEXT), '$.customer.customer_id') = ? ORDER BY id"""
        with self._explained(), self._lock:
            rows = [row for id in sorted(set(ids)) for row in self._db.execute(query, (id,))]
        return [msgspec.json.decode(record, type=Subscription) for (record,) in rows]

    def applied(self, states: Iterable[State]) -> None:
        """These need not be applied again, unless a later state came meanwhile."""
        rows = [(state.subscription.subscription_id, state.sent_at) for state in states]
        with self._explained(), self._lock:
            self._db.executemany("UPDATE subscriptions SET applied = 1 WHERE id = ? AND sent_at = ?", rows)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise InboxError(
                f"webhooks {str(self._path)!r}: cannot be used ({error}); it needs a writable folder on a local disk"
            ) from error
