"""What the provider's webhooks said, in one SQLite file: ids that were seen, and each subscription's latest state.

Webhooks come at least once and in any order, and each carries the state at its delivery. So of two the one that was
sent later counts, whenever it comes. A state waits until it was applied to the catalog; a kill in between applies it
again, which changes nothing.
"""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

import msgspec

from tidegate.connectors.sqlite.files import open_file
from tidegate.connectors.sqlite.schema import Schema
from tidegate.operators.billing.provider import Subscription
from tidegate.operators.model.errors import TidegateError

WAIT: Final = timedelta(seconds=10)
# The provider tries for a day and a half.
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


SCHEMA: Final = Schema(
    name="webhooks",
    error=InboxError,
    mark="SELECT 1 FROM sqlite_schema WHERE name = 'seen'",
    migrations=(_SCHEMA,),
    maker="start the service with TIDEGATE_DODO_WEBHOOK_SECRETS",
    if_damaged="move it away, and run `tidegate catalog pull` for the subscriptions as they are",
)


class State(NamedTuple):
    """A subscription as it was when this was sent (seconds since the epoch)."""

    sent_at: int
    subscription: Subscription


class Inbox:
    """Shared by the threads of a process, and by processes of a machine."""

    def __init__(self, path: Path) -> None:
        self._lock = Lock()
        self._file = open_file(path, SCHEMA, "rwc", wait=WAIT, pragmas={"synchronous": "FULL"})

    def take(self, id: str, sent_at: int, subscription: Subscription | None) -> bool:
        """Store the content of a webhook durably; return False if it was seen before."""
        with self._lock, self._file.transaction() as db:
            is_new = db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (id, sent_at)).rowcount > 0
            if is_new and subscription is not None:
                row = (subscription.subscription_id, sent_at, msgspec.json.encode(subscription))
                db.execute(
                    """INSERT INTO subscriptions VALUES (?, ?, ?, 0) ON CONFLICT DO UPDATE
                    SET sent_at = excluded.sent_at, record = excluded.record, applied = 0
                    WHERE excluded.sent_at >= sent_at""",
                    row,
                )
            db.execute("DELETE FROM seen WHERE at < ?", (sent_at - SEEN_KEPT_S,))
        return is_new

    def waiting(self) -> list[State]:
        """Return the states that were not applied yet."""
        with self._lock:
            rows = self._file.rows("SELECT sent_at, record FROM subscriptions WHERE applied = 0 ORDER BY id")
        return [State(sent_at, msgspec.json.decode(record, type=Subscription)) for sent_at, record in rows]

    def of_customers(self, ids: Iterable[str]) -> list[Subscription]:
        """Return the latest state of each subscription of these customers that a webhook was about."""
        query = """SELECT record FROM subscriptions
            WHERE json_extract(CAST(record AS TEXT), '$.customer.customer_id') = ? ORDER BY id"""
        with self._lock:
            rows = [row for id in sorted(set(ids)) for row in self._file.rows(query, (id,))]
        return [msgspec.json.decode(record, type=Subscription) for (record,) in rows]

    def applied(self, states: Iterable[State]) -> None:
        """Note that these need not be applied again, unless a later state arrived meanwhile."""
        rows = [(state.subscription.subscription_id, state.sent_at) for state in states]
        with self._lock, self._file.transaction() as db:
            db.executemany("UPDATE subscriptions SET applied = 1 WHERE id = ? AND sent_at = ?", rows)

    def close(self) -> None:
        with self._lock:
            self._file.close()
