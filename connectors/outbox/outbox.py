"""The outbox: what waits for the biller, and what became of the rest, in one SQLite file that survives kill -9.

A row is an accepted event, known by its id. It is `waiting` until the platform said that it has it; then it is
`acknowledged`. What cannot be sent is `parked` (may become sendable) or `refused` (a dead letter), with a reason,
until somebody retries or drops it. Every change is one transaction.

The flow replays what came after its last snapshot, with the same ids, so a row is remembered after it is settled: for
two hours of running time, of which the time while nothing runs is no part, and never past the last snapshot that the
flow took. The bytes of what is acknowledged are kept for 15 to 25 minutes; then they go to the ledger
(connectors/outbox/ledger.py), if there is one, for reconciliation to compare and resend.
Limits: one machine and its own disk; `bytes_max`, beyond which `add` raises, as nothing else would lose nothing.
"""

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from threading import RLock
from typing import NamedTuple

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.files.one_machine import claim
from tidegate.connectors.files.private_files import make_private_file, make_private_folder
from tidegate.connectors.outbox.ledger import Kept, Ledger, LedgerError
from tidegate.operators.billing.outgoing import AGE_MAX, AHEAD_MAX, SECOND
from tidegate.operators.model.ports import StoreError
from tidegate.operators.model.records import Accepted

SCHEMA = 1
WAIT = timedelta(seconds=30)
REMEMBERED = 2 * 3600 * SECOND
BYTES_KEPT = 15 * 60 * SECOND
# Many at once, as the ledger compresses what comes together.
STRIPPED_EVERY = 10 * 60 * SECOND
# Restamped events stay on the books longer than any billing period.
# As long as the latest event may come, and some.
WINDOWS_KEPT = 36 * 24 * 3600 * SECOND
BOOKS_KEPT = 400 * 24 * 3600 * SECOND
# What is added to the running time at once: a machine that slept has not run.
TICK_MAX = 30 * SECOND
SWEPT_AT_ONCE = 5000
SWEPT_ANEW = 24 * 3600 * SECOND
ALERTS_KEPT = 10_000
CHECKPOINT_PAGES = 4000
CACHE_KIB = 32 * 1024
LOG_BYTES_KEPT = 64 << 20


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
KEPT_BACK = (State.parked, State.refused)

_SCHEMA = f"""
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, customer TEXT NOT NULL, at INTEGER NOT NULL,
    state INTEGER NOT NULL, body BLOB, came_at INTEGER NOT NULL, came_up INTEGER NOT NULL,
    hold_until INTEGER NOT NULL DEFAULT 0, sent_at INTEGER, unsure_at INTEGER, restamped_at INTEGER,
    settled_at INTEGER, reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT ''
);
CREATE INDEX waiting ON events (at) WHERE state = 0;
CREATE INDEX unfolded ON events (seq) WHERE state = 6;
CREATE INDEX acknowledged ON events (settled_at) WHERE state = 1 AND body IS NOT NULL;
CREATE INDEX kept_back ON events (state, reason, customer) WHERE state IN (2, 3);
CREATE INDEX restamped ON events (restamped_at) WHERE restamped_at IS NOT NULL;
CREATE TABLE rollups (
    customer TEXT, meter TEXT, start INTEGER, length INTEGER, at INTEGER NOT NULL, total TEXT NOT NULL,
    events INTEGER NOT NULL, billed TEXT NOT NULL DEFAULT '0', billed_events INTEGER NOT NULL DEFAULT 0,
    revision INTEGER NOT NULL DEFAULT 0, due_at INTEGER, PRIMARY KEY (customer, meter, start, length, at)
) WITHOUT ROWID;
CREATE INDEX due ON rollups (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE alerts (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, at INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE TABLE standing (kind TEXT PRIMARY KEY, at INTEGER NOT NULL, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE acts (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, by TEXT NOT NULL, act TEXT NOT NULL, id TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('tidegate_outbox', {SCHEMA}), ('running', 0), ('snapshot', 0), ('noted', 0);
"""

_COUNT = "INSERT INTO counts VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value"
_ADD = """INSERT OR IGNORE INTO events (id, customer, at, state, body, came_at, came_up)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
_ROW = "SELECT seq, id, customer, at, body, came_at, sent_at, unsure_at, restamped_at, reason, detail FROM events"


class OutboxError(StoreError):
    """The outbox cannot be opened, read or written; says what to do."""


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


class Outbox:
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
        self.path = Path(path).absolute()
        self._bytes_max, self._sync, self._clock = bytes_max, sync, clock
        self._ledger, self._stripping = ledger, False
        self._added_as = State.unfolded if unfolded else State.waiting
        self._lock = RLock()
        self._ticked: int | None = None
        self._swept, self._swept_from = 0, 0
        with explained(self.path, "open"):
            make_private_folder(self.path.parent)
            self._machine = claim(self.path)
            if self._machine is None:
                raise OutboxError(
                    f"outbox {str(self.path)!r}: another machine has it open, and it can be on one only; name a path"
                    " on a disk of its own for each (outbox=…), and shares of the limit that add up to 1 (share=…)"
                )
            _create(self.path)
            self._db = connect(self.path, "rw")
            self._db.execute(f"PRAGMA cache_size = {-CACHE_KIB}")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_KEPT}")
        if not unfolded:
            # Rolling up was switched off: what was not yet rolled up goes out as it is.
            with self.transaction():
                self._moved(self._db.execute("UPDATE events SET state = 0 WHERE state = 6"), State.unfolded)

    def add(self, events: Sequence[Accepted], *, snapshot: bool = False) -> int:
        """Keeps these events, each once however often it comes; how many were new.

        With `snapshot` they and all before survive a power cut, as the flow will not replay them after its snapshot.
        """
        with self.transaction(durable=snapshot):
            self._check_room(len(events))
            running = self.meta("running")
            if snapshot:
                self._db.execute("UPDATE meta SET value = ? WHERE key = 'snapshot'", (running,))
            now = self._clock()
            state = int(self._added_as)
            rows = [(e.id, e.customer, e.at, state, e.payload, now, running) for e in events]
            new = self._db.executemany(_ADD, rows).rowcount if rows else 0
            self.count(came=new, replayed=len(rows) - new, **{f"now_{self._added_as.name}": new})
        return new

    def put(self, id: str, customer: str, at: int, body: bytes, state: State, reason: str = "") -> None:
        """Adds an event that was made here."""
        with self.transaction() as db:
            now, running = self._clock(), self.meta("running")
            db.execute(_ADD, (id, customer, at, int(state), body, now, running))
            if reason:
                db.execute("UPDATE events SET reason = ? WHERE id = ?", (reason, id))
            self.count(made=1, **{f"now_{state.name}": 1})

    def oldest(self, limit: int, now: int | None = None) -> list[Row]:
        """Events that may go out with their own time, the oldest first. `now` makes one cut of several questions."""
        now = self._clock() if now is None else now
        return self._rows(
            "WHERE state = 0 AND at BETWEEN ? AND ? AND hold_until <= ? ORDER BY at LIMIT ?",
            now - AGE_MAX, now + AHEAD_MAX, now, limit,
        )  # fmt: skip

    def youngest(self, limit: int, now: int | None = None) -> list[Row]:
        """As `oldest`, the youngest first."""
        now = self._clock() if now is None else now
        return self._rows(
            "WHERE state = 0 AND at BETWEEN ? AND ? AND hold_until <= ? ORDER BY at DESC LIMIT ?",
            now - AGE_MAX, now + AHEAD_MAX, now, limit,
        )  # fmt: skip

    def again(self, seqs: Sequence[int]) -> list[Row]:
        """Those of these rows that still wait and may go out with their own time."""
        now = self._clock()
        marks = ", ".join("?" * len(seqs))
        return self._rows(
            f"WHERE seq IN ({marks}) AND state = 0 AND at BETWEEN ? AND ? AND hold_until <= ?",
            *seqs, now - AGE_MAX, now + AHEAD_MAX, now,
        )  # fmt: skip

    def too_old(self, limit: int, now: int | None = None) -> list[Row]:
        """Events that wait and are too old to go out with their own time, the oldest first."""
        now = self._clock() if now is None else now
        return self._rows(
            "WHERE state = 0 AND at < ? AND hold_until <= ? ORDER BY at LIMIT ?", now - AGE_MAX, now, limit
        )

    def sending(self, rows: Iterable[Row], restamped: Iterable[Row] = ()) -> None:
        """Writes down that these are about to be sent, before they are: nothing else is known after a crash."""
        now = self._clock()
        with self.transaction(durable=True):
            plain = [(now, now, row.seq) for row in rows]
            self._db.executemany(
                "UPDATE events SET sent_at = coalesce(sent_at, ?), unsure_at = ? WHERE seq = ?", plain
            )
            moved = [(now, row.seq) for row in restamped]
            self._db.executemany("UPDATE events SET restamped_at = ? WHERE seq = ?", moved)

    def acknowledge(self, rows: Sequence[Row]) -> None:
        """The platform has them."""
        with self.transaction():
            self.count(acknowledged=self._settle(rows, State.acknowledged))

    def not_taken(self, rows: Iterable[Row]) -> None:
        """The platform said that it did not take them, so what is known of them is what was known before."""
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
                released += self._moved(found, State.parked)
            self.count(released=released)
        return released

    def parked_for(self, reason: str) -> list[str]:
        """The customers of whom something is parked for this reason."""
        with self._reading():
            found = self._db.execute(
                "SELECT DISTINCT customer FROM events WHERE state = 2 AND reason = ?", (reason,)
            )
            return [customer for (customer,) in found]

    def retry(self, ids: Iterable[str], *, by: str, why: str = "") -> list[str]:
        """Lets events that are parked, refused or acknowledged wait again, under the same ids; which were found.

        What the platform has already it ignores. Needs their bytes, which are kept 15 minutes of what is acknowledged.
        """
        query = """UPDATE events SET state = 0, settled_at = NULL, hold_until = 0, reason = '', detail = ''
            WHERE id = ? AND state = ? AND body IS NOT NULL"""
        return self._act("retry", query, (*KEPT_BACK, State.acknowledged), State.waiting, ids, by, why)

    def restore(self, events: Sequence[Accepted], *, by: str, why: str) -> list[str]:
        """Lets events wait again that were acknowledged, and maybe forgotten since; which of them do now.

        Each once for one `why`, however often it is asked. What the platform has already it ignores.
        """
        restored = []
        asked = "SELECT 1 FROM acts WHERE act = 'restore' AND id = ? AND reason = ?"
        query = """UPDATE events SET state = 0, body = ?, settled_at = NULL, hold_until = 0, reason = '', detail = ''
            WHERE id = ? AND state = 1"""
        with self.transaction(durable=True):
            now, running = self._clock(), self.meta("running")
            for event in events:
                if self._db.execute(asked, (event.id, why)).fetchone():
                    continue
                if not self._moved(self._db.execute(query, (event.payload, event.id)), State.acknowledged):
                    row = (
                        event.id,
                        event.customer,
                        event.at,
                        int(State.waiting),
                        event.payload,
                        now,
                        running,
                    )
                    if not self._db.execute(_ADD, row).rowcount:
                        continue
                    self.count(now_waiting=1)
                restored.append(event.id)
                act = (now, by, "restore", event.id, why)
                self._db.execute("INSERT INTO acts (at, by, act, id, reason) VALUES (?, ?, ?, ?, ?)", act)
            self.count(restored=len(restored))
        return restored

    def drop(self, ids: Iterable[str], *, by: str, why: str) -> list[str]:
        """Gives up events that are parked or refused, for good; which were found. The act is written down."""
        query = "UPDATE events SET state = 4, body = NULL WHERE id = ? AND state = ?"
        return self._act("drop", query, KEPT_BACK, State.skipped, ids, by, why)

    def alert(self, kind: str, text: str | None) -> bool:
        """Raises an alert, or with None resolves it; whether that changed anything."""
        with self.transaction():
            found = self._db.execute("SELECT text FROM standing WHERE kind = ?", (kind,)).fetchone()
            if (found is None) == (text is None):
                if text is not None and found != (text,):
                    self._db.execute("UPDATE standing SET text = ? WHERE kind = ?", (text, kind))
                return False
            now = self._clock()
            if text is None:
                self._db.execute("DELETE FROM standing WHERE kind = ?", (kind,))
            else:
                self._db.execute("INSERT INTO standing VALUES (?, ?, ?)", (kind, now, text))
            said = (kind, "resolved", now, found[0]) if text is None else (kind, "raised", now, text)
            added = self._db.execute("INSERT INTO alerts (kind, state, at, text) VALUES (?, ?, ?, ?)", said)
            self._db.execute("DELETE FROM alerts WHERE seq <= ?", ((added.lastrowid or 0) - ALERTS_KEPT,))
        return True

    def unnoted(self, limit: int = 100) -> list[tuple[int, str, str, int, str]]:
        """Changes of alerts that were not yet passed on: number, kind, state, time and text."""
        query = "SELECT seq, kind, state, at, text FROM alerts WHERE seq > ? ORDER BY seq LIMIT ?"
        with self._reading():
            return self._db.execute(query, (self.meta("noted"), limit)).fetchall()

    def noted(self, seq: int) -> None:
        """Alerts were passed on up to this number."""
        with self.transaction() as db:
            db.execute("UPDATE meta SET value = ? WHERE key = 'noted'", (seq,))

    def count(self, **counts: int) -> None:
        """Adds to the counters; inside of a transaction or as one."""
        changed = [(name, by) for name, by in counts.items() if by]
        if changed:
            with self.transaction():
                self._db.executemany(_COUNT, changed)

    def meta(self, key: str) -> int:
        with self._reading():
            value: int = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0]
        return value

    def waits_since_before(self, at: int, came_at: int) -> bool:
        """Whether an event waits that is older than `at` and came before `came_at`."""
        query = "SELECT 1 FROM events WHERE state = 0 AND at < ? AND came_at < ? ORDER BY at LIMIT 1"
        with self._reading():
            return self._db.execute(query, (at, came_at)).fetchone() is not None

    def kept_back(self) -> int:
        """How many events are parked or refused."""
        with self._reading():
            query = "SELECT sum(value) FROM counts WHERE name IN ('now_parked', 'now_refused')"
            return self._db.execute(query).fetchone()[0] or 0

    def used(self) -> float:
        """How full it is, of 1."""
        with self._reading():
            return bytes_used(self._db) / self._bytes_max

    def tidy(self) -> bool:
        """Lets go of what is remembered long enough, little by little; whether there may be more."""
        now = self._clock()
        with self.transaction():
            past = 0 if self._ticked is None else min(max(now - self._ticked, 0), TICK_MAX)
            self._ticked = now
            self._db.execute("UPDATE meta SET value = value + ? WHERE key = 'running'", (past,))
            more = self._strip(now)
            self._db.execute("DELETE FROM rollups WHERE due_at IS NULL AND start < ?", (now - WINDOWS_KEPT,))
            return self._forget(now) or more

    def close(self) -> None:
        with self._lock, explained(self.path, "close"):
            self._db.close()
            if self._machine is not None:
                os.close(self._machine)
                self._machine = None
            if self._ledger is not None:
                self._ledger.close()

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction, or a part of the one that is under way. `durable` ones wait for the disk."""
        with self._lock, explained(self.path, "write"):
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable and self._sync else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock, explained(self.path, "read"):
            yield

    def _rows(self, condition: str, *parameters: int) -> list[Row]:
        with self._reading():
            return list(map(Row._make, self._db.execute(f"{_ROW} {condition}", parameters)))

    def _settle(self, rows: Iterable[Row], state: State, reason: str = "", detail: str = "") -> int:
        now, forget_bytes = self._clock(), state is State.skipped
        query = """UPDATE events SET state = ?, settled_at = ?, hold_until = 0, reason = ?, detail = ?,
            body = iif(?, NULL, body) WHERE seq = ? AND state = 0"""
        changes = [(int(state), now, reason, detail, forget_bytes, row.seq) for row in rows]
        return self._moved(self._db.executemany(query, changes), State.waiting, state)

    def _moved(self, cursor: sqlite3.Cursor, before: State, after: State = State.waiting) -> int:
        count = max(cursor.rowcount, 0)
        self.count(**{f"now_{before.name}": -count})
        self.count(**{f"now_{after.name}": count})
        return count

    def _act(
        self,
        act: str,
        query: str,
        states: Iterable[State],
        after: State,
        ids: Iterable[str],
        by: str,
        why: str,
    ) -> list[str]:
        found = []
        with self.transaction():
            now = self._clock()
            for id in ids:
                if any(
                    self._moved(self._db.execute(query, (id, int(state))), state, after) for state in states
                ):
                    found.append(id)
                    self._db.execute(
                        "INSERT INTO acts (at, by, act, id, reason) VALUES (?, ?, ?, ?, ?)",
                        (now, by, act, id, why),
                    )
            self.count(**{f"{act}_by_hand": len(found)})
        return found

    def _strip(self, now: int) -> bool:
        """Lets go of bytes that are kept long enough, by way of the ledger; whether there may be more."""
        if not self._stripping:
            query = "SELECT 1 FROM events WHERE state = 1 AND body IS NOT NULL AND settled_at < ?"
            self._stripping = bool(self._db.execute(query, (now - BYTES_KEPT - STRIPPED_EVERY,)).fetchone())
        if not self._stripping:
            return False
        rows = self._db.execute(
            """SELECT seq, id, customer, at, sent_at, restamped_at, settled_at, body FROM events
            WHERE state = 1 AND body IS NOT NULL AND settled_at < ? ORDER BY settled_at LIMIT ?""",
            (now - BYTES_KEPT, SWEPT_AT_ONCE),
        ).fetchall()
        if not self._hand_over([Kept(*row[1:]) for row in rows]):
            return False
        self._db.executemany("UPDATE events SET body = NULL WHERE seq = ?", [(row[0],) for row in rows])
        self._stripping = len(rows) == SWEPT_AT_ONCE
        return self._stripping

    def _hand_over(self, events: list[Kept]) -> bool:
        """Gives events to the ledger. Where that fails they stay here, and an alert says so: billing goes on."""
        if self._ledger is None:
            return True
        try:
            self._ledger.add(events)
        except LedgerError as error:
            self.alert("ledger", str(error))
            return False
        self.alert("ledger", None)
        return True

    def _forget(self, now: int) -> bool:
        """Deletes settled rows that no replay can bring again. Rows come in the order of running time."""
        until = min(self.meta("running") - REMEMBERED, self.meta("snapshot"))
        if now - self._swept_from > SWEPT_ANEW:
            # For the sake of what was kept back when it was passed by, and has been settled since.
            self._swept, self._swept_from = 0, now
        query = """SELECT seq, state, came_up, restamped_at, state = 1 AND body IS NOT NULL FROM events
            WHERE seq > ? ORDER BY seq LIMIT ?"""
        gone: dict[int, list[tuple[int]]] = {}
        looked_at = 0
        for seq, state, came_up, restamped_at, is_whole in self._db.execute(
            query, (self._swept, SWEPT_AT_ONCE)
        ):
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
            self._db.executemany("DELETE FROM events WHERE seq = ?", seqs)
            self.count(**{f"now_{State(state).name}": -len(seqs), "forgotten": len(seqs)})
        return looked_at == SWEPT_AT_ONCE

    def _check_room(self, events: int) -> None:
        used = bytes_used(self._db)
        if events and used >= self._bytes_max:
            raise OutboxError(
                f"outbox {str(self.path)!r}: holds {used} bytes of {self._bytes_max} that are allowed, and is added to"
                " no more, so that nothing is lost; see why nothing is sent with `tidegate outbox`, or raise bytes_max"
            )


def bytes_used(db: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, size = (
        db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to a file that is an outbox of this schema, else OutboxError."""
    if not path.is_file():
        raise OutboxError(
            f"outbox {str(path)!r}: there is no such file; a flow with the billing branch creates it"
        )
    db = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        timeout=WAIT.total_seconds(),
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        found = db.execute("SELECT value FROM meta WHERE key = 'tidegate_outbox'").fetchone()
    except sqlite3.DatabaseError as error:
        db.close()
        if error.sqlite_errorcode not in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB):
            raise
        found = None
    if found != (SCHEMA,):
        db.close()
        raise OutboxError(f"outbox {str(path)!r}: needs schema {SCHEMA}, got another file; name another path")
    return db


def _create(path: Path) -> None:
    """Makes an empty outbox, if there is no file. It appears whole, so two may try at once."""
    if path.exists():
        return
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        make_private_file(new)
        with closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def explained(path: Path, act: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise OutboxError(
            f"outbox {str(path)!r}: cannot {act} it ({error}); it needs a writable folder on a local disk with room,"
            " and nobody who keeps it locked"
        ) from error
