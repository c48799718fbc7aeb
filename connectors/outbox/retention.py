"""What the outbox lets go of: bytes that are kept long enough, to the ledger, and rows that no replay can bring again.

A row is remembered for two hours of running time, of which the time while nothing runs is no part, and never past the
last snapshot that the flow took. Restamped events stay on the books longer than any billing period.
"""

import sqlite3

from tidegate.connectors.outbox.ledger import Kept, Ledger, LedgerError
from tidegate.connectors.outbox.outbox_file import OutboxFile
from tidegate.connectors.outbox.schema import SETTLED, State
from tidegate.operators.billing.outgoing import SECOND

REMEMBERED = 2 * 3600 * SECOND
BYTES_KEPT = 15 * 60 * SECOND
# Many at once, as the ledger compresses what comes together.
STRIPPED_EVERY = 10 * 60 * SECOND
# As long as the latest event may come, and some.
WINDOWS_KEPT = 36 * 24 * 3600 * SECOND
BOOKS_KEPT = 400 * 24 * 3600 * SECOND
# What is added to the running time at once: a machine that slept has not run.
TICK_MAX = 30 * SECOND
SWEPT_AT_ONCE = 5000
SWEPT_ANEW = 24 * 3600 * SECOND


class Retention:
    """Lets go, little by little; remembers how far it is. The `ledger` takes the bytes, where there is one."""

    def __init__(self, outbox: OutboxFile, ledger: Ledger | None) -> None:
        self._outbox, self._ledger = outbox, ledger
        self._stripping = False
        self._ticked: int | None = None
        self._swept, self._swept_from = 0, 0

    def tidy(self) -> bool:
        """Let go of what is remembered long enough, little by little; return whether there may be more."""
        now = self._outbox.clock()
        with self._outbox.transaction() as db:
            past = 0 if self._ticked is None else min(max(now - self._ticked, 0), TICK_MAX)
            self._ticked = now
            db.execute("UPDATE meta SET value = value + ? WHERE key = 'running'", (past,))
            more = self._strip(db, now)
            db.execute("DELETE FROM rollups WHERE due_at IS NULL AND start < ?", (now - WINDOWS_KEPT,))
            return self._forget(db, now) or more

    def _strip(self, db: sqlite3.Connection, now: int) -> bool:
        """Let go of bytes that are kept long enough, to the ledger; return whether there may be more."""
        if not self._stripping:
            query = "SELECT 1 FROM events WHERE state = 1 AND body IS NOT NULL AND settled_at < ?"
            self._stripping = bool(db.execute(query, (now - BYTES_KEPT - STRIPPED_EVERY,)).fetchone())
        if not self._stripping:
            return False
        rows = db.execute(
            """SELECT seq, id, customer, at, sent_at, restamped_at, settled_at, body FROM events
            WHERE state = 1 AND body IS NOT NULL AND settled_at < ? ORDER BY settled_at LIMIT ?""",
            (now - BYTES_KEPT, SWEPT_AT_ONCE),
        ).fetchall()
        if not self._hand_over([Kept(*row[1:]) for row in rows]):
            return False
        db.executemany("UPDATE events SET body = NULL WHERE seq = ?", [(row[0],) for row in rows])
        self._stripping = len(rows) == SWEPT_AT_ONCE
        return self._stripping

    def _hand_over(self, events: list[Kept]) -> bool:
        """Give events to the ledger; return whether it has them. Where not they stay here, and an alert says so."""
        if self._ledger is None:
            return True
        try:
            self._ledger.add(events)
        except LedgerError as error:
            self._outbox.alert("ledger", str(error))
            return False
        self._outbox.alert("ledger", None)
        return True

    def _forget(self, db: sqlite3.Connection, now: int) -> bool:
        """Delete settled rows that no replay can bring again. Rows come in the order of running time."""
        until = min(self._outbox.meta("running") - REMEMBERED, self._outbox.meta("snapshot"))
        if now - self._swept_from > SWEPT_ANEW:
            # For the sake of what was held back when it was passed by, and has been settled since.
            self._swept, self._swept_from = 0, now
        query = """SELECT seq, state, came_up, restamped_at, state = 1 AND body IS NOT NULL FROM events
            WHERE seq > ? ORDER BY seq LIMIT ?"""
        gone: dict[int, list[tuple[int]]] = {}
        looked_at = 0
        for seq, state, came_up, restamped_at, is_whole in db.execute(query, (self._swept, SWEPT_AT_ONCE)):
            if came_up >= until:
                break
            self._swept, looked_at = seq, looked_at + 1
            if (
                state in SETTLED
                and not is_whole
                and (restamped_at is None or restamped_at < now - BOOKS_KEPT)
            ):
                gone.setdefault(state, []).append((seq,))
        for state, seqs in gone.items():
            db.executemany("DELETE FROM events WHERE seq = ?", seqs)
            self._outbox.count(**{f"now_{State(state).name}": -len(seqs), "forgotten": len(seqs)})
        return looked_at == SWEPT_AT_ONCE
