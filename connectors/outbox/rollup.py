"""Rolls up in the outbox: events that came are folded into windows, windows that are due become events to send.

Both are one transaction each, with what they took and what they made; so a replay or a crash counts nothing twice.
"""

from datetime import timedelta

from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.schema import State
from tidegate.operators.billing.outgoing import AGE_MAX, MINUTE
from tidegate.operators.billing.rollup import RollupReader, RollupWindow, build_event, split_exact
from tidegate.operators.model.catalog import Catalog

FOLDED_AT_ONCE = 5000
EMITTED_AT_ONCE = 1000
# After a window's end, what is added to it goes out at once: it may be sent until it is 55 minutes old.
LATE_WAITS_UNTIL = AGE_MAX - 15 * MINUTE


class Rollup:
    """The rolling up of one outbox by windows of `length`; `grace` is how long after its end one is still open."""

    def __init__(self, outbox: Outbox, catalog: Catalog, length: timedelta, grace: timedelta) -> None:
        self._outbox = outbox
        self._readings = RollupReader(catalog)
        self._length = length // timedelta(microseconds=1)
        self._grace = grace // timedelta(microseconds=1)

    def fold(self, now: int) -> bool:
        """Fold events into their windows; return whether there may be more."""
        with self._outbox.transaction() as db:
            query = "SELECT seq, customer, at, body FROM events WHERE state = 6 ORDER BY seq LIMIT ?"
            rows = db.execute(query, (FOLDED_AT_ONCE,)).fetchall()
            added: dict[RollupWindow, list[int]] = {}
            for place, meter, quantity in self._readings.read([row[3] for row in rows]):
                _, customer, at, _ = rows[place]
                sums = added.setdefault(self._readings.find_window(customer, meter, at, self._length), [0, 0])
                sums[0] += quantity
                sums[1] += 1
            for window, (quantity, count) in added.items():
                self._add(window, quantity, count, now)
            seqs = [(now, seq) for seq, *_ in rows]
            db.executemany("UPDATE events SET state = 5, settled_at = ?, body = NULL WHERE seq = ?", seqs)
            self._outbox.count(folded=len(rows), now_unfolded=-len(rows), now_folded=len(rows))
        return len(rows) == FOLDED_AT_ONCE

    def emit(self, now: int) -> bool:
        """Make events of the windows that are due; return whether there may be more."""
        with self._outbox.transaction() as db:
            query = """SELECT customer, meter, start, length, at, total, billed, events - billed_events, revision
                FROM rollups WHERE due_at <= ? ORDER BY due_at LIMIT ?"""
            rows = db.execute(query, (now, EMITTED_AT_ONCE)).fetchall()
            for *key, total, billed, count, revision in rows:
                window = RollupWindow._make(key)
                made = self._outgo(window, int(total) - int(billed), count, revision, now)
                db.execute(
                    """UPDATE rollups SET billed = total, billed_events = events, revision = ?, due_at = NULL
                    WHERE customer = ? AND meter = ? AND start = ? AND length = ? AND at = ?""",
                    (revision + made, *window),
                )
        return len(rows) == EMITTED_AT_ONCE

    def _add(self, window: RollupWindow, quantity: int, count: int, now: int) -> None:
        with self._outbox.transaction() as db:
            where = "customer = ? AND meter = ? AND start = ? AND length = ? AND at = ?"
            known = db.execute(f"SELECT total, due_at FROM rollups WHERE {where}", window).fetchone()
            total, due_at = (int(known[0]), known[1]) if known else (0, None)
            if due_at is None:
                end = window.start + window.length + self._grace
                # What comes late seldom comes alone, but must not become too old by waiting.
                due_at = end if now < end else min(now + window.length, max(now, end + LATE_WAITS_UNTIL))
            db.execute(
                """INSERT INTO rollups (customer, meter, start, length, at, total, events, due_at)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
                SET total = excluded.total, events = events + excluded.events, due_at = excluded.due_at""",
                (*window, str(total + quantity), count, due_at),
            )

    def _outgo(self, window: RollupWindow, more: int, count: int, revision: int, now: int) -> int:
        """Put the events for a difference into the outbox; return how many they are."""
        if not more:
            return 0
        quantities = split_exact(more) if more > 0 else [-one for one in split_exact(-more)]
        for place, quantity in enumerate(quantities):
            id, body = build_event(window, quantity, 0 if place else count, revision + place)
            state = State.waiting if more > 0 else State.parked
            at, reason = self._readings.compute_event_time(window), "" if more > 0 else "not_positive"
            self._outbox.put(id, window.customer, at, body, state, reason)
        return len(quantities)
