"""What the outbox's file holds: events and their states, windows that are rolled up, counters, alerts, acts by hand."""

from enum import IntEnum
from typing import Final

from tidegate.connectors.sqlite.schema import Schema
from tidegate.operators.model.ports import StoreError


class State(IntEnum):
    """What became of an event. The numbers are in files."""

    waiting = 0
    acknowledged = 1
    parked = 2
    refused = 3
    skipped = 4
    folded = 5
    unfolded = 6


SETTLED = (State.acknowledged, State.skipped, State.folded)
HELD_BACK = (State.parked, State.refused)

ADD: Final = """INSERT OR IGNORE INTO events (id, customer, at, state, body, came_at, came_up)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""


class OutboxError(StoreError):
    """The outbox cannot be opened, read or written; says what to do."""


_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, customer TEXT NOT NULL, at INTEGER NOT NULL,
    state INTEGER NOT NULL, body BLOB, came_at INTEGER NOT NULL, came_up INTEGER NOT NULL,
    hold_until INTEGER NOT NULL DEFAULT 0, sent_at INTEGER, unsure_at INTEGER, restamped_at INTEGER,
    settled_at INTEGER, reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS waiting ON events (at) WHERE state = 0;
CREATE INDEX IF NOT EXISTS unfolded ON events (seq) WHERE state = 6;
CREATE INDEX IF NOT EXISTS acknowledged ON events (settled_at) WHERE state = 1 AND body IS NOT NULL;
CREATE INDEX IF NOT EXISTS kept_back ON events (state, reason, customer) WHERE state IN (2, 3);
CREATE INDEX IF NOT EXISTS restamped ON events (restamped_at) WHERE restamped_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS rollups (
    customer TEXT, meter TEXT, start INTEGER, length INTEGER, at INTEGER NOT NULL, total TEXT NOT NULL,
    events INTEGER NOT NULL, billed TEXT NOT NULL DEFAULT '0', billed_events INTEGER NOT NULL DEFAULT 0,
    revision INTEGER NOT NULL DEFAULT 0, due_at INTEGER, PRIMARY KEY (customer, meter, start, length, at)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS due ON rollups (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alerts (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, at INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS standing (kind TEXT PRIMARY KEY, at INTEGER NOT NULL, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS acts (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, by TEXT NOT NULL, act TEXT NOT NULL, id TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('tidegate_outbox', 1), ('running', 0), ('snapshot', 0), ('noted', 0);
"""

SCHEMA: Final = Schema(
    name="outbox",
    error=OutboxError,
    mark="SELECT value FROM meta WHERE key = 'tidegate_outbox'",
    migrations=(_TABLES,),
    maker="start a flow with the billing branch",
    if_damaged="restore it from a backup, or move it away: reconciliation then finds what waited as missing",
)
