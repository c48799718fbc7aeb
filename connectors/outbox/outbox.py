"""The outbox: what waits for the provider, and what became of the rest, in one SQLite file that survives kill -9.

A row is an accepted event, known by its id. It is `waiting` until the provider said that it has it; then it is
`acknowledged`. What cannot be sent is `parked` (may become sendable) or `refused` (a dead letter), with a reason,
until somebody retries or drops it. Every change is one transaction.

The flow replays what came after its last snapshot, with the same ids, so a row is remembered after it is settled: for
two hours of running time, of which the time while nothing runs is no part, and never past the last snapshot that the
flow took. The bytes of what is acknowledged are kept for 15 to 25 minutes; then they go to the ledger
(connectors/outbox/ledger.py), if there is one, for reconciliation to compare and resend.
Limits: one machine and its own disk; `bytes_max`, beyond which `add` raises, as nothing else would lose nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.outbox.ledger import Ledger
from tidegate.connectors.outbox.outbox_file import OutboxFile
from tidegate.connectors.outbox.retention import Retention
from tidegate.connectors.outbox.schema import ADD, OutboxError, State
from tidegate.operators.billing.outgoing import AGE_MAX, AHEAD_MAX
from tidegate.operators.model.records import Accepted

_ROW = "SELECT seq, id, customer, at, body, came_at, sent_at, unsure_at, restamped_at, reason, detail FROM events"


class Row(NamedTuple):
    """An event that waits. Times are µs since the epoch.

    `sent_at` is when it was first given to a request, `unsure_at` when it last was without an answer that says that
    it was not taken; `restamped_at` when it went without its own time. A `reason` is what it was refused for, if the
    platform does not turn out to have it all the same.
    """

    seq: int
    id: str
    customer: str
    at: int
    body: bytes
    came_at: int
    sent_at: int | None
    unsure_at: int | None
    restamped_at: int | None
    reason: str
    detail: str


class Outbox(OutboxFile):
    """The writing end, safe to share between the threads of a process. Others may write the file as well.

    `sync` has what must survive a power cut forced to disk. `unfolded` says that events added are to be rolled up.
    The `ledger` takes the bytes that are let go of; it is closed with the outbox.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        bytes_max: int = 16 << 30,
        sync: bool = True,
        unfolded: bool = False,
        ledger: Ledger | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        super().__init__(path, sync=sync, clock=clock)
        self._bytes_max, self._ledger = bytes_max, ledger
        self._added_as = State.unfolded if unfolded else State.waiting
        self._retention = Retention(self, ledger)
        if not unfolded:
            # Rolling up was switched off: what was not yet rolled up goes out as it is.
            with self.transaction() as db:
                self.move_counts(db.execute("UPDATE events SET state = 0 WHERE state = 6"), State.unfolded)

    def add(self, events: Sequence[Accepted], *, snapshot: bool = False) -> int:
        """Store these events, each once however often it comes; return how many were new.

        With `snapshot` they and all before survive a power cut, as the flow will not replay them after its snapshot.
        """
        with self.transaction(durable=snapshot):
            self._check_room(len(events))
            running = self.meta("running")
            if snapshot:
                self._db.execute("UPDATE meta SET value = ? WHERE key = 'snapshot'", (running,))
            now = self.clock()
            state = int(self._added_as)
            rows = [(e.id, e.customer, e.at, state, e.payload, now, running) for e in events]
            new = self._db.executemany(ADD, rows).rowcount if rows else 0
            self.count(came=new, replayed=len(rows) - new, **{f"now_{self._added_as.name}": new})
        return new

    def put(self, id: str, customer: str, at: int, body: bytes, state: State, reason: str = "") -> None:
        """Add an event that was made here."""
        with self.transaction() as db:
            now, running = self.clock(), self.meta("running")
            db.execute(ADD, (id, customer, at, int(state), body, now, running))
            if reason:
                db.execute("UPDATE events SET reason = ? WHERE id = ?", (reason, id))
            self.count(made=1, **{f"now_{state.name}": 1})

    def oldest(self, limit: int, now: int | None = None) -> list[Row]:
        """Events that may go out with their own time, the oldest first. `now` makes one cut of several questions."""
        now = self.clock() if now is None else now
        return self._rows(
            "WHERE state = 0 AND at BETWEEN ? AND ? AND hold_until <= ? ORDER BY at LIMIT ?",
            now - AGE_MAX, now + AHEAD_MAX, now, limit,
        )  # fmt: skip

    def youngest(self, limit: int, now: int | None = None) -> list[Row]:
        """As `oldest`, the youngest first."""
        now = self.clock() if now is None else now
        return self._rows(
            "WHERE state = 0 AND at BETWEEN ? AND ? AND hold_until <= ? ORDER BY at DESC LIMIT ?",
            now - AGE_MAX, now + AHEAD_MAX, now, limit,
        )  # fmt: skip

    def again(self, seqs: Sequence[int]) -> list[Row]:
        """Those of these rows that still wait and may go out with their own time."""
        now = self.clock()
        marks = ", ".join("?" * len(seqs))
        return self._rows(
            f"WHERE seq IN ({marks}) AND state = 0 AND at BETWEEN ? AND ? AND hold_until <= ?",
            *seqs, now - AGE_MAX, now + AHEAD_MAX, now,
        )  # fmt: skip

    def too_old(self, limit: int, now: int | None = None) -> list[Row]:
        """Events that wait and are too old to go out with their own time, the oldest first."""
        now = self.clock() if now is None else now
        return self._rows(
            "WHERE state = 0 AND at < ? AND hold_until <= ? ORDER BY at LIMIT ?", now - AGE_MAX, now, limit
        )

    def sending(self, rows: Iterable[Row], restamped: Iterable[Row] = ()) -> None:
        """Record that these are about to be sent, before they are: after a crash nothing else is known."""
        now = self.clock()
        with self.transaction(durable=True):
            plain = [(now, now, row.seq) for row in rows]
            self._db.executemany(
                "UPDATE events SET sent_at = coalesce(sent_at, ?), unsure_at = ? WHERE seq = ?", plain
            )
            moved = [(now, row.seq) for row in restamped]
            self._db.executemany("UPDATE events SET restamped_at = ? WHERE seq = ?", moved)

    def acknowledge(self, rows: Sequence[Row]) -> None:
        """Note that the provider has these."""
        with self.transaction():
            self.count(acknowledged=self._settle(rows, State.acknowledged))

    def not_taken(self, rows: Iterable[Row]) -> None:
        """Note that the provider did not take these: their state is the one before they were sent."""
        with self.transaction():
            before = [(row.unsure_at, row.restamped_at, row.seq) for row in rows]
            self._db.executemany(
                "UPDATE events SET unsure_at = ?, restamped_at = ? WHERE seq = ? AND state = 0", before
            )

    def hold(self, rows: Iterable[Row], until: int) -> None:
        """Leaves them out until then (µs since the epoch)."""
        with self.transaction():
            self._db.executemany(
                "UPDATE events SET hold_until = ? WHERE seq = ?", [(until, r.seq) for r in rows]
            )

    def suspect(self, row: Row, until: int, reason: str, detail: str) -> None:
        """Leaves an event out until then that was refused, and writes down what for."""
        with self.transaction() as db:
            query = "UPDATE events SET hold_until = ?, reason = ?, detail = ? WHERE seq = ? AND state = 0"
            db.execute(query, (until, reason, detail, row.seq))

    def keep_back(self, rows: Sequence[Row], state: State, reason: str, detail: str = "") -> None:
        """Parks or refuses them, or skips them for good, with the reason."""
        with self.transaction():
            self.count(**{state.name: self._settle(rows, state, reason, detail)})

    def release(self, reason: str, customers: Iterable[str]) -> int:
        """Lets what is parked for this reason wait again, of these customers; how many events that are."""
        released = 0
        with self.transaction():
            for customer in customers:
                query = "UPDATE events SET state = 0, settled_at = NULL, reason = '', detail = ''"
                found = self._db.execute(
                    f"{query} WHERE state = 2 AND reason = ? AND customer = ?", (reason, customer)
                )
                released += self.move_counts(found, State.parked)
            self.count(released=released)
        return released

    def parked_for(self, reason: str) -> list[str]:
        """Return the customers with usage held back for this reason."""
        with self.reading():
            found = self._db.execute(
                "SELECT DISTINCT customer FROM events WHERE state = 2 AND reason = ?", (reason,)
            )
            return [customer for (customer,) in found]

    def waits_since_before(self, at: int, came_at: int) -> bool:
        """Whether an event waits that is older than `at` and came before `came_at`."""
        query = "SELECT 1 FROM events WHERE state = 0 AND at < ? AND came_at < ? ORDER BY at LIMIT 1"
        with self.reading():
            return self._db.execute(query, (at, came_at)).fetchone() is not None

    def kept_back(self) -> int:
        """How many events are parked or refused."""
        with self.reading():
            query = "SELECT sum(value) FROM counts WHERE name IN ('now_parked', 'now_refused')"
            return self._db.execute(query).fetchone()[0] or 0

    def used(self) -> float:
        """How full it is, of 1."""
        return self.bytes_used() / self._bytes_max

    def tidy(self) -> bool:
        """Let go of what is remembered long enough, little by little; return whether there may be more."""
        return self._retention.tidy()

    def close(self) -> None:
        super().close()
        if self._ledger is not None:
            self._ledger.close()

    def _rows(self, condition: str, *parameters: int) -> list[Row]:
        with self.reading():
            return list(map(Row._make, self._db.execute(f"{_ROW} {condition}", parameters)))

    def _settle(self, rows: Iterable[Row], state: State, reason: str = "", detail: str = "") -> int:
        now, forget_bytes = self.clock(), state is State.skipped
        query = """UPDATE events SET state = ?, settled_at = ?, hold_until = 0, reason = ?, detail = ?,
            body = iif(?, NULL, body) WHERE seq = ? AND state = 0"""
        changes = [(int(state), now, reason, detail, forget_bytes, row.seq) for row in rows]
        return self.move_counts(self._db.executemany(query, changes), State.waiting, state)

    def _check_room(self, events: int) -> None:
        used = self.bytes_used()
        if events and used >= self._bytes_max:
            raise OutboxError(
                f"outbox {str(self.path)!r}: holds {used} bytes of {self._bytes_max} that are allowed, and is added to"
                " no more, so that nothing is lost; see why nothing is sent with `tidegate outbox`, or raise bytes_max"
            )
