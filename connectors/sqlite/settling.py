"""The writer's end of holds: those whose events have come end in the transaction of the totals that count them."""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from tidegate.connectors.sqlite.hold_tables import COMMITTED, HOLD, SETTLED, decode_quantities, take_from_sums
from tidegate.operators.model.ports import Settled

# Below this many a list of identities is not worth being read again.
FEW: Final = 1024


class Settling:
    """Ends holds whose events have come, for the flow's writer, inside its transactions.

    It knows the holds that wait, by half of their identity, from what was added to the table since it last looked: so
    a write costs next to nothing while there are none, and a set look-up per event while there are. Whether one
    still waits is what its row says, so those that have ended can be forgotten when they are many.
    """

    def __init__(self) -> None:
        self._last = 0
        self._waiting: set[int] = set()
        self._enough = FEW

    def __len__(self) -> int:
        return len(self._waiting)

    def settle(self, db: sqlite3.Connection, settled: Sequence[Settled]) -> list[str]:
        """End the holds of these events; return the customers whose accounts that changes."""
        self._look(db)
        if not self._waiting:
            return []
        return [
            customer for events in settled for key in self._found(events) for customer in _settle(db, key)
        ]

    def _look(self, db: sqlite3.Connection) -> None:
        if len(self._waiting) > self._enough:
            last = db.execute("SELECT max(n) FROM holds").fetchone()[0] or 0
            rows = db.execute("SELECT n, identity FROM holds INDEXED BY holds_waiting WHERE state < 5")
            self._waiting.clear()
            self._learn(rows)
            self._last, self._enough = max(last, self._last), max(FEW, 2 * len(self._waiting))
        else:
            self._learn(db.execute("SELECT n, identity FROM holds WHERE n > ?", (self._last,)))

    def _learn(self, rows: Iterable[tuple[int, bytes]]) -> None:
        for n, key in rows:
            self._last = max(self._last, n)
            self._waiting.add(int.from_bytes(key[:8], "little"))

    def _found(self, events: Settled) -> list[bytes]:
        words = events.lo.tolist()
        hits = self._waiting.intersection(words)
        if not hits:
            return []
        places = [place for place, lo in enumerate(words) if lo in hits]
        return [words[n].to_bytes(8, "little") + int(events.hi[n]).to_bytes(8, "little") for n in places]


def _settle(db: sqlite3.Connection, key: bytes) -> list[str]:
    row = db.execute(HOLD, (key,)).fetchone()
    if row is None or row[1] == SETTLED:
        return []
    customer, state, _, quantities, _ = row
    db.execute("UPDATE holds SET state = ? WHERE identity = ?", (SETTLED, key))
    if state > COMMITTED:
        return []
    take_from_sums(db, customer, decode_quantities(quantities))
    return [customer]
