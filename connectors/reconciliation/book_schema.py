"""What the book of reconciliation holds: passes, their tasks, the drift status of each total, cycles and the proof."""

from typing import Any, Final

from tidegate.connectors.sqlite.schema import Schema
from tidegate.operators.billing.drift import Span
from tidegate.operators.billing.drift_status import DriftStatus
from tidegate.operators.model.errors import TidegateError

_IS_OPEN = "status IN ('suspect', 'drift', 'acknowledged', 'conflict')"
OPEN = f"SELECT * FROM standings WHERE {_IS_OPEN}"

# `cycles` has what each cycle of this run bills, for the proof at its end; `proved` the lines of the last run's proof.
# The indexes `open` and `named` are those of earlier releases, which knew fewer statuses.
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS passes (
    number INTEGER PRIMARY KEY, started_at INTEGER NOT NULL, ended_at INTEGER, meters BLOB NOT NULL,
    figures BLOB NOT NULL DEFAULT '{{}}'
);
CREATE TABLE IF NOT EXISTS tasks (
    pass INTEGER NOT NULL, round INTEGER NOT NULL, subscription_id TEXT NOT NULL, record BLOB NOT NULL,
    due_at INTEGER NOT NULL, outcome TEXT, suspects INTEGER NOT NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (pass, round, subscription_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS to_do ON tasks (round, due_at) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS standings (
    customer TEXT, meter TEXT, start INTEGER, end INTEGER NOT NULL, status TEXT NOT NULL, misses INTEGER NOT NULL,
    looked_at INTEGER NOT NULL, first_at INTEGER, turn INTEGER NOT NULL, findings BLOB NOT NULL,
    PRIMARY KEY (customer, meter, start)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cycles (
    pass INTEGER, subscription_id TEXT, start INTEGER, customer TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (pass, subscription_id, start)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS proved (line INTEGER PRIMARY KEY, customer TEXT NOT NULL, body BLOB NOT NULL);
DROP INDEX IF EXISTS open;
DROP INDEX IF EXISTS named;
CREATE INDEX IF NOT EXISTS listed ON standings (status) WHERE {_IS_OPEN};
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('tidegate_reconciliation', 1);
"""


class BookError(TidegateError):
    """The book of reconciliation cannot be used; says what to do."""


SCHEMA: Final = Schema(
    name="book",
    error=BookError,
    mark="SELECT value FROM meta WHERE key = 'tidegate_reconciliation'",
    migrations=(_SCHEMA,),
    maker="run `tidegate reconcile`",
    if_damaged="move it away: the next run begins another, and what was suspect is counted from there",
)


def read_status(row: tuple[Any, ...]) -> DriftStatus:
    """Return the drift status that a row of `standings` holds."""
    customer, meter, start, end, *rest = row
    return DriftStatus(customer, meter, Span(start, end), *rest)
