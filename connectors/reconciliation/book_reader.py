"""Reads the book of reconciliation while one is under way, from any process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tidegate.connectors.reconciliation.book_schema import OPEN, SCHEMA, read_status
from tidegate.connectors.sqlite.files import open_file
from tidegate.operators.billing.drift_status import DriftStatus


class Pass(NamedTuple):
    """A pass: how far it is, and its figures once it has ended. `left` counts tasks that are not done."""

    number: int
    started_at: int
    ended_at: int | None
    round: int
    done: int
    left: int
    figures: Mapping[str, int]


class BookReader:
    """Reads the book while a reconciliation writes it. BookError where there is none yet."""

    def __init__(self, folder: Path) -> None:
        self._file = open_file(folder / "book.db", SCHEMA, "ro")

    def last(self) -> Pass | None:
        """Return the newest run, ended or in progress."""
        query = "SELECT number, started_at, ended_at, figures FROM passes ORDER BY number DESC LIMIT 1"
        if not (rows := self._file.rows(query)):
            return None
        row = rows[0]
        query = """SELECT coalesce(max(round), 1), sum(outcome IS NOT NULL), sum(outcome IS NULL) FROM tasks
            WHERE pass = ?"""
        ((round, done, left),) = self._file.rows(query, (row[0],))
        return Pass(row[0], row[1], row[2], round, done or 0, left or 0, msgspec.json.decode(row[3]))

    def due_at(self) -> int | None:
        """When the next task is due."""
        found: int | None = self._file.value("SELECT min(due_at) FROM tasks WHERE outcome IS NULL")
        return found

    def open(self) -> list[DriftStatus]:
        """Return all that is suspect, drift or acknowledged, by customer, meter and period."""
        return list(map(read_status, self._file.rows(f"{OPEN} ORDER BY customer, meter, start")))

    def proof(self, customer: str | None = None) -> list[dict[str, Any]]:
        """Return the proof of the last run that ended, line by line; of one customer, if it is given."""
        if not self._file.rows("SELECT 1 FROM sqlite_schema WHERE name = 'proved'"):
            return []
        query = "SELECT body FROM proved WHERE ?1 IS NULL OR customer = ?1 ORDER BY line"
        return [msgspec.json.decode(body) for (body,) in self._file.rows(query, (customer,))]

    def unread(self) -> list[tuple[str, str]]:
        """Return the subscriptions of the newest run that could not be read, and why."""
        query = "SELECT subscription_id, detail FROM tasks WHERE outcome = 'unread' ORDER BY subscription_id"
        return self._file.rows(query)

    def close(self) -> None:
        self._file.close()
