"""The statement's lines in one SQLite file: written by reconciliation at a run's end, read by anyone.

A line of a later run replaces the one of its cycle and meter, so closed cycles stay as they were last seen. Lines of
cycles that ended three years ago are forgotten.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from tidegate.connectors.reconciliation.book_schema import BookError
from tidegate.connectors.sqlite.files import open_file
from tidegate.connectors.sqlite.schema import Schema
from tidegate.operators.billing.statement import StatementLine
from tidegate.operators.model.wire import format_instant

FILE = "statement.db"
KEPT_US = 3 * 366 * 86_400 * 1_000_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS lines (
    key TEXT PRIMARY KEY, customer TEXT NOT NULL, invoice TEXT NOT NULL, payment TEXT NOT NULL, start TEXT NOT NULL,
    end TEXT NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_customer ON lines (customer, start);
CREATE INDEX IF NOT EXISTS by_invoice ON lines (invoice);
CREATE INDEX IF NOT EXISTS by_payment ON lines (payment);
"""
SCHEMA: Final = Schema(
    name="statement",
    error=BookError,
    mark="SELECT 1 FROM sqlite_schema WHERE name = 'lines'",
    migrations=(_SCHEMA,),
    maker="run `tidegate reconcile`",
    if_damaged="restore it from a backup, or move it away: the next run writes the cycles that are still open",
)
_LINE = msgspec.json.Decoder(StatementLine)


def write_statement(folder: Path, lines: Sequence[StatementLine], since: int, now: int) -> None:
    """Replace the lines of cycles that ended after `since` (µs); those of before stay.

    Raises: BookError where the file cannot be written.
    """
    with closing(open_file(folder / FILE, SCHEMA, "rwc")) as file, file.transaction() as db:
        db.execute(
            "DELETE FROM lines WHERE end > ? OR end < ?",
            (format_instant(since), format_instant(now - KEPT_US)),
        )
        db.executemany("INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?, ?, ?, ?)", map(_row, lines))


def read_statement(
    folder: Path, customer: str | None = None, invoice: str | None = None, limit: int | None = None
) -> list[StatementLine]:
    """Return the lines, by customer and period; `invoice` is an invoice's or a payment's id.

    Raises: BookError where there is no statement yet.
    """
    wanted: list[str] = []
    given: list[str | int] = []
    if customer is not None:
        wanted.append("customer = ?")
        given.append(customer)
    if invoice is not None:
        wanted.append("(invoice = ? OR payment = ?)")
        given += [invoice, invoice]
    where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    query = f"SELECT body FROM lines {where} ORDER BY customer, start, key LIMIT ?"
    with closing(open_file(folder / FILE, SCHEMA, "ro")) as file:
        return [_LINE.decode(body) for (body,) in file.rows(query, (*given, -1 if limit is None else limit))]


def _row(line: StatementLine) -> tuple[object, ...]:
    body = msgspec.json.encode(line)
    return line.key, line.customer, line.invoice, line.payment, line.period_start, line.period_end, body
