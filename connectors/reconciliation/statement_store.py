"""The statement's lines in one SQLite file: written by reconciliation at a run's end, read by anyone.

A line of a later run replaces the one of its cycle and meter, so closed cycles stay as they were last seen. Lines of
cycles that ended three years ago are forgotten.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from tidegate.connectors.files.private_files import make_private_file
from tidegate.connectors.reconciliation.findings import BookError
from tidegate.operators.billing.outgoing import instant
from tidegate.operators.billing.statement import StatementLine

FILE = "statement.db"
WAIT_S = 30.0
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
_LINE = msgspec.json.Decoder(StatementLine)


def write_statement(folder: Path, lines: Sequence[StatementLine], since: int, now: int) -> None:
    """Replace the lines of cycles that ended after `since` (µs); those of before stay.

    Raises: BookError where the file cannot be written.
    """
    path = folder / FILE
    make_private_file(path)
    with _explained(path, "written"), closing(sqlite3.connect(path, WAIT_S, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM lines WHERE end > ? OR end < ?", (instant(since), instant(now - KEPT_US)))
        db.executemany("INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?, ?, ?, ?)", map(_row, lines))
        db.execute("COMMIT")


def read_statement(
    folder: Path, customer: str | None = None, invoice: str | None = None, limit: int | None = None
) -> list[StatementLine]:
    """Return the lines, by customer and period; `invoice` is an invoice's or a payment's id.

    Raises: BookError where there is no statement yet.
    """
    path = folder / FILE
    if not path.is_file():
        raise BookError(
            f"statement {str(path)!r}: there is none yet; `tidegate reconcile` writes it at a run's end"
        )
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
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with _explained(path, "read"), closing(sqlite3.connect(uri, WAIT_S, uri=True)) as db:
        return [_LINE.decode(body) for (body,) in db.execute(query, (*given, -1 if limit is None else limit))]


def _row(line: StatementLine) -> tuple[object, ...]:
    body = msgspec.json.encode(line)
    return line.key, line.customer, line.invoice, line.payment, line.period_start, line.period_end, body


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise BookError(
            f"statement {str(path)!r}: cannot be {what} ({error}); it needs a local disk"
        ) from error
