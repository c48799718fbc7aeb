"""The last heartbeat of each shard in the embedded store, as JSON in the table `heartbeats`.

A store made before there were heartbeats gets the table when the flow opens it (connectors/sqlite/store_schema.py);
until then readers find none.
"""

import sqlite3
from collections.abc import Sequence

import msgspec

from tidegate.operators.model.freshness import Heartbeat

_PUT = "INSERT OR REPLACE INTO heartbeats VALUES (?, ?)"


def write(db: sqlite3.Connection, heartbeats: Sequence[Heartbeat]) -> None:
    """Replace the heartbeats of these shards."""
    db.executemany(_PUT, [(one.shard, msgspec.json.encode(one)) for one in heartbeats])


def read(db: sqlite3.Connection) -> list[Heartbeat]:
    """Return the heartbeats of all shards, by shard."""
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'heartbeats'").fetchone() is None:
        return []
    rows = db.execute("SELECT body FROM heartbeats ORDER BY shard").fetchall()
    return [msgspec.json.decode(body, type=Heartbeat) for (body,) in rows]
