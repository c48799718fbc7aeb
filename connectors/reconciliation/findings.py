"""The book of reconciliation: how far a pass is, what was found of each total, and what a person should know of it.

One SQLite file. What comes of looking at a subscription is one transaction: its task is done, its totals' standings are
as they were judged. So a pass that is killed goes on with the tasks that are not done, and no miss counts twice.
One reconciliation has it at a time (a lock beside it); any number may read.
"""

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from tidegate.connectors.files.private_files import make_private_folder
from tidegate.connectors.reconciliation.book_reader import BookReader
from tidegate.connectors.reconciliation.book_schema import OPEN, SCHEMA, BookError, read_status
from tidegate.connectors.sqlite.files import open_file
from tidegate.operators.billing.coverage import BilledCycle
from tidegate.operators.billing.drift_status import DriftStatus
from tidegate.operators.billing.provider import Subscription

_CYCLE = msgspec.json.Decoder(BilledCycle)
PASSES_KEPT = 100

Outcome = Literal["compared", "unread", "nothing"]

# The proof is a task as a subscription is.
PROOF = ""

_KEEP = "INSERT OR REPLACE INTO standings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Task(NamedTuple):
    """A subscription to compare, in the first round of a run or, as something was off, once more in the second.

    Without one it is the proof: what of our totals no subscription bills.
    """

    number: int
    round: int
    subscription: Subscription | None

    @property
    def id(self) -> str:
        return PROOF if self.subscription is None else self.subscription.subscription_id


class Book:
    """The writing end; raises BookError where another process has it."""

    def __init__(self, folder: Path) -> None:
        make_private_folder(folder)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BookError(
                f"{folder}: another reconciliation runs on it; wait until it ends, or stop it"
            ) from None
        self.path = folder / "book.db"
        try:
            self._file = open_file(self.path, SCHEMA, "rwc", pragmas={"synchronous": "NORMAL"})
        except BaseException:
            os.close(self._lock)
            raise
        self._db = self._file.db

    def begin(self, now: int, subscriptions: Sequence[Subscription], meters: bytes) -> int:
        """Begins the next pass over these subscriptions; its number. `meters` is the caller's own."""
        with self._file.transaction():
            number = int(self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM passes").fetchone()[0])
            self._db.execute(
                "INSERT INTO passes (number, started_at, meters) VALUES (?, ?, ?)", (number, now, meters)
            )
            rows = [(number, 1, s.subscription_id, msgspec.json.encode(s), now) for s in subscriptions]
            self._add(rows)
            for table in ("tasks", "cycles"):
                self._db.execute(f"DELETE FROM {table} WHERE pass < ?", (number,))
            self._db.execute("DELETE FROM passes WHERE number <= ?", (number - PASSES_KEPT,))
        return number

    def under_way(self) -> tuple[int, bytes] | None:
        """Return the number of the run that has not ended, and its meters; None if there is none."""
        query = "SELECT number, meters FROM passes WHERE ended_at IS NULL ORDER BY number DESC LIMIT 1"
        found: list[tuple[int, bytes]] = self._file.rows(query)
        return found[0] if found else None

    def tasks(self, now: int, limit: int) -> list[Task]:
        """Tasks that are due and not done, those of the first round before all."""
        query = """SELECT pass, round, record FROM tasks WHERE outcome IS NULL AND due_at <= ?
            ORDER BY round, due_at, subscription_id LIMIT ?"""
        rows = self._file.rows(query, (now, limit))
        return [
            Task(number, round, msgspec.json.decode(record, type=Subscription | None))
            for number, round, record in rows
        ]

    def due_at(self) -> int | None:
        """When the next task is due; None where all are done."""
        found: int | None = self._file.value("SELECT min(due_at) FROM tasks WHERE outcome IS NULL")
        return found

    def prove(self, number: int, now: int) -> bool:
        """Add the proof to a run whose subscriptions are all compared; return whether it was not there yet."""
        row = number, 1, PROOF, msgspec.json.encode(None), now
        with self._file.transaction():
            query = """INSERT OR IGNORE INTO tasks (pass, round, subscription_id, record, due_at)
                VALUES (?, ?, ?, ?, ?)"""
            return self._db.execute(query, row).rowcount > 0

    def look_again(self, number: int, due_at: int) -> int:
        """Queue a second comparison of what differed in the first, if there is none yet; return how many they are."""
        with self._file.transaction():
            query = """INSERT OR IGNORE INTO tasks (pass, round, subscription_id, record, due_at)
                SELECT pass, 2, subscription_id, record, ? FROM tasks WHERE pass = ? AND round = 1 AND suspects > 0"""
            return self._db.execute(query, (due_at, number)).rowcount

    def settle(
        self,
        task: Task,
        outcome: Outcome,
        standings: Sequence[DriftStatus],
        figures: Mapping[str, int],
        detail: str = "",
        cycles: Sequence[BilledCycle] = (),
    ) -> None:
        """Complete a task: store its statuses and cycles, and add its figures to those of the run."""
        suspects = sum(one.status == "suspect" for one in standings)
        with self._file.transaction():
            self._db.execute(
                """UPDATE tasks SET outcome = ?, suspects = ?, detail = ?
                WHERE pass = ? AND round = ? AND subscription_id = ?""",
                (outcome, suspects, detail, task.number, task.round, task.id),
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO cycles VALUES (?, ?, ?, ?, ?)",
                [
                    (task.number, c.subscription_id, c.span.start, c.customer, msgspec.json.encode(c))
                    for c in cycles
                ],
            )
            self._db.executemany(_KEEP, map(_row, standings))
            self._count(task.number, figures)

    def count(self, number: int, figures: Mapping[str, int]) -> None:
        """Add to the figures of a run."""
        with self._file.transaction():
            self._count(number, figures)

    def end(self, number: int, now: int, until: int) -> None:
        """End a run, and forget the statuses of periods that ended before `until`."""
        with self._file.transaction():
            self._db.execute("UPDATE passes SET ended_at = ? WHERE number = ?", (now, number))
            self._db.execute("DELETE FROM standings WHERE end < ?", (until,))

    def keep_proof(self, lines: Iterable[tuple[str, bytes]]) -> None:
        """Keep the proof of a run, as customer and line of JSON, in place of the one before."""
        with self._file.transaction():
            self._db.execute("DELETE FROM proved")
            self._db.executemany("INSERT INTO proved (customer, body) VALUES (?, ?)", lines)

    def cycles(self, number: int) -> dict[str, list[BilledCycle]]:
        """Return what the cycles of a run bill, by customer."""
        found: dict[str, list[BilledCycle]] = {}
        for (body,) in self._file.rows("SELECT body FROM cycles WHERE pass = ?", (number,)):
            cycle = _CYCLE.decode(body)
            found.setdefault(cycle.customer, []).append(cycle)
        return found

    def subscriptions(self, number: int) -> list[Subscription]:
        """Return all subscriptions of a run."""
        query = "SELECT record FROM tasks WHERE pass = ? AND round = 1 AND subscription_id != ?"
        rows = self._file.rows(query, (number, PROOF))
        return [msgspec.json.decode(record, type=Subscription) for (record,) in rows]

    def unread(self, number: int) -> set[str]:
        """Return the provider's customers of whom a subscription could not be read in a run."""
        query = "SELECT record FROM tasks WHERE pass = ? AND outcome = 'unread' AND subscription_id != ?"
        rows = self._file.rows(query, (number, PROOF))
        return {msgspec.json.decode(record, type=Subscription).customer.customer_id for (record,) in rows}

    def open(self) -> list[DriftStatus]:
        """Return all that is suspect, drift or acknowledged."""
        return list(map(read_status, self._file.rows(OPEN)))

    def read_status(self, customer: str, meter: str, start: int) -> DriftStatus | None:
        """Return what is known of this total."""
        query = "SELECT * FROM standings WHERE customer = ? AND meter = ? AND start = ?"
        rows = self._file.rows(query, (customer, meter, start))
        return read_status(rows[0]) if rows else None

    def last_started_at(self) -> int | None:
        """When the newest pass began."""
        found: int | None = self._file.value("SELECT max(started_at) FROM passes")
        return found

    def reader(self) -> BookReader:
        return BookReader(self.path.parent)

    def close(self) -> None:
        self._file.close()
        os.close(self._lock)

    def _count(self, number: int, figures: Mapping[str, int]) -> None:
        row = self._db.execute("SELECT figures FROM passes WHERE number = ?", (number,)).fetchone()
        known: dict[str, int] = msgspec.json.decode(row[0])
        for name, value in figures.items():
            known[name] = known.get(name, 0) + value
        self._db.execute(
            "UPDATE passes SET figures = ? WHERE number = ?", (msgspec.json.encode(known), number)
        )

    def _add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        query = "INSERT INTO tasks (pass, round, subscription_id, record, due_at) VALUES (?, ?, ?, ?, ?)"
        self._db.executemany(query, rows)


def _row(one: DriftStatus) -> tuple[Any, ...]:
    return (
        *(one.customer, one.meter, *one.span, one.status),
        *(one.misses, one.compared_at, one.first_at, one.turn, one.findings),
    )
