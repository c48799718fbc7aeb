"""The tables of the embedded store's file: totals, counters, feed, notes, control log, catalogs, holds, heartbeats."""

from typing import Final

from tidegate.connectors.sqlite.schema import Schema
from tidegate.operators.model.ports import StoreError, StoreReplaced

BUCKETS = 16

PACKED = [f"packed_{bucket:02}" for bucket in range(BUCKETS)]
"""The tables of totals (connectors/sqlite/table_layout.py)."""

TABLES = [f"totals_{bucket:02}" for bucket in range(BUCKETS)]
"""The same for readers, as views with a row for each total."""

KEY = "customer, window, start"


def _packed(name: str) -> str:
    return f"""CREATE TABLE IF NOT EXISTS {name} (
        customer TEXT, window TEXT, start INTEGER, body TEXT, written_at INTEGER, PRIMARY KEY ({KEY})
    ) WITHOUT ROWID;"""


def _view(name: str, packed: str) -> str:
    def entry(place: int) -> str:
        return f"json_extract(entry.value, '$[{place}]')"

    return f"""CREATE VIEW IF NOT EXISTS {name} AS SELECT
        customer, window, {entry(0)} AS meter, start, start + {entry(1)} AS "end", {entry(2)} AS total,
        {entry(3)} AS version, coalesce({entry(5)}, {entry(3)}) AS events, start + {entry(4)} AS as_of,
        coalesce({entry(6)}, 0) AS late,
        coalesce({entry(7)}, 0) AS corrected, coalesce({entry(8)}, 0) AS adjustment, coalesce({entry(9)}, 1) AS steady,
        written_at FROM {packed}, json_each(body) AS entry;"""


def _usage(view: str) -> str:
    return f"""SELECT customer, meter, window,
        strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch') AS starts,
        strftime('%Y-%m-%dT%H:%M:%SZ', "end" / 1000000, 'unixepoch') AS ends,
        total, events, version FROM {view}"""


_TABLES = f"""
{"".join(map(_packed, PACKED))}
{"".join(map(_view, TABLES, PACKED))}
CREATE TABLE IF NOT EXISTS counters (shard INTEGER, name TEXT, value INTEGER, PRIMARY KEY (shard, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feed (seq INTEGER PRIMARY KEY, bytes_so_far INTEGER, customers TEXT);
CREATE TABLE IF NOT EXISTS notes (
    seq INTEGER PRIMARY KEY, kind TEXT, id TEXT, customer TEXT, at INTEGER, body BLOB, UNIQUE (kind, id)
);
CREATE INDEX IF NOT EXISTS notes_by_time ON notes (kind, at);
CREATE INDEX IF NOT EXISTS notes_by_customer ON notes (kind, customer, at);
CREATE TABLE IF NOT EXISTS control (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, body BLOB);
CREATE TABLE IF NOT EXISTS catalogs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT, applied_at INTEGER, origin TEXT, author TEXT, note TEXT
);
CREATE TABLE IF NOT EXISTS holds (
    n INTEGER PRIMARY KEY AUTOINCREMENT, identity BLOB UNIQUE, customer TEXT, state INTEGER, asked TEXT,
    quantities TEXT, until INTEGER
);
CREATE INDEX IF NOT EXISTS holds_open ON holds (customer, until) WHERE state < 2;
CREATE INDEX IF NOT EXISTS holds_waiting ON holds (state) WHERE state < 5;
CREATE INDEX IF NOT EXISTS holds_until ON holds (until);
CREATE TABLE IF NOT EXISTS held (customer TEXT, meter TEXT, quantity TEXT, PRIMARY KEY (customer, meter)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heartbeats (shard INTEGER PRIMARY KEY, body BLOB);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('tidegate_schema', 4);
CREATE VIEW IF NOT EXISTS usage AS {" UNION ALL ".join(map(_usage, TABLES))};
"""

SCHEMA: Final = Schema(
    name="store",
    error=StoreError,
    mark="SELECT value FROM meta WHERE key = 'tidegate_schema'",
    marked=4,
    migrations=(_TABLES,),
    maker="start the flow",
    if_damaged="restore it from a backup, or move it away and replay",
    replaced=StoreReplaced,
)
