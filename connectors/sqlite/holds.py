"""The gate's end of accounts and holds in the embedded store's file: read, reserve, commit, release.

The flow's writer ends holds in the transaction of the totals that count their events (connectors/sqlite/settling.py).

Guarantees: as connectors/sqlite/store.py. What a killed process held ends when it expires. Ended holds are remembered
for an hour past their expiry, so that late retries change nothing, then pruned a few at a time.

Limits: as connectors/sqlite/store.py; after a power cut the last holds may be missing.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Literal

import msgspec

from tidegate.connectors.sqlite import heartbeats
from tidegate.connectors.sqlite.change_feed import SqliteFeed, announce
from tidegate.connectors.sqlite.connection import snapshot, transaction
from tidegate.connectors.sqlite.files import DatabaseFile, open_file
from tidegate.connectors.sqlite.hold_tables import (
    COMMITTED,
    EXPIRED,
    HELD,
    HOLD,
    LAPSED,
    RELEASED,
    SETTLED,
    add_to_sums,
    decode_quantities,
    encode_quantities,
    end_expired,
    forget_some,
    read_account,
    take_from_sums,
)
from tidegate.connectors.sqlite.store_schema import SCHEMA
from tidegate.operators.events.keys import compute_identity
from tidegate.operators.gate.holds import find_final_quantities, has_room
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import (
    Account,
    CatalogVersion,
    Closing,
    Hold,
    Reserved,
    Scope,
    StoreError,
)

Mode = Literal["ro", "rw"]

WAIT = timedelta(seconds=1)

_OPEN = "SELECT identity FROM holds WHERE identity = ? AND state < ? AND until > ?"
_PUT = "INSERT OR REPLACE INTO holds (identity, customer, state, asked, quantities, until) VALUES (?, ?, ?, ?, ?, ?)"
_VERSION = "SELECT number, text, applied_at, origin, author, note FROM catalogs ORDER BY number DESC LIMIT 1"


class SqliteHolds:
    """Accounts and holds in the file at `path`, from any thread. Connects at the first call, and again when it must.

    `read_wait` and `write_wait` bound how long a lock is waited for. A file that was replaced is taken up as it is
    now. Raises StoreError; a file that is not there is one, as an empty one in its place would forget all usage.
    """

    self_timed = False

    def __init__(
        self, path: str | Path, *, read_wait: timedelta = WAIT, write_wait: timedelta = WAIT
    ) -> None:
        self._path = Path(path).absolute()
        self._wait: dict[Mode, timedelta] = {"ro": read_wait, "rw": write_wait}
        # Lists take and give at the end, and atomically so.
        self._idle: dict[Mode, list[DatabaseFile]] = {"ro": [], "rw": []}
        self._closed = False

    def account(self, customer: str, scope: Scope, now: int) -> Account:
        """One statement, so all of one moment."""
        with self._connection("ro", "read") as db:
            return read_account(db, customer, scope, now)

    def reserve(
        self, hold: Hold, ceilings: Mapping[str, int], scope: Scope, now: int, seen: int | None = None
    ) -> Reserved:
        """As in `ports.Holds`. Who gets nothing takes no lock, and so never holds up the flow."""
        key = compute_identity(hold.customer, hold.source, hold.id)
        with self._connection("rw", "reserve in") as db:
            with snapshot(db):
                reserved = _judge(db, key, hold, ceilings, scope, now, seen)
            if reserved.outcome != "held":
                return reserved
            with transaction(db):
                reserved = _judge(db, key, hold, ceilings, scope, now, seen)
                if reserved.outcome == "held":
                    end_expired(db, hold.customer, now)
                    amounts = encode_quantities(hold.quantities)
                    db.execute(_PUT, (key, hold.customer, HELD, amounts, amounts, hold.until))
                    add_to_sums(db, hold.customer, hold.quantities)
                    reserved = Reserved("held", read_account(db, hold.customer, scope, now))
                    announce(db, [hold.customer])
                    forget_some(db, now)
        return reserved

    def commit(
        self, customer: str, source: str, id: str, quantities: Mapping[str, int] | None, until: int, now: int
    ) -> Closing:
        """As in `ports.Holds`."""
        key = compute_identity(customer, source, id)
        with self._connection("rw", "commit in") as db, transaction(db):
            row = db.execute(HOLD, (key,)).fetchone()
            if row is None:
                return Closing("unknown", {})
            _, state, asked_text, old_text, old_until = row
            asked, old = decode_quantities(asked_text), decode_quantities(old_text)
            if state in (RELEASED, SETTLED):
                return Closing("settled" if state == SETTLED else "released", asked)
            final = find_final_quantities(asked, quantities)
            is_committed = state in (COMMITTED, LAPSED)
            if final is None or (is_committed and final != old):
                return Closing("conflict", asked)
            if is_committed:
                return Closing("committed", asked)
            expired = state == EXPIRED or old_until <= now
            end_expired(db, customer, now)
            if not expired:
                take_from_sums(db, customer, old)
            add_to_sums(db, customer, final)
            db.execute(
                "UPDATE holds SET state = ?, quantities = ?, until = ? WHERE identity = ?",
                (COMMITTED, encode_quantities(final), max(until, old_until), key),
            )
            announce(db, [customer])
        return Closing("committed", asked, expired)

    def release(self, customer: str, source: str, id: str, now: int) -> Closing:
        """As in `ports.Holds`."""
        key = compute_identity(customer, source, id)
        with self._connection("rw", "release in") as db, transaction(db):
            row = db.execute(HOLD, (key,)).fetchone()
            if row is None:
                return Closing("unknown", {})
            _, state, asked, quantities, _ = row
            if state in (COMMITTED, LAPSED, SETTLED):
                return Closing("settled" if state == SETTLED else "committed", decode_quantities(asked))
            if state == HELD:
                take_from_sums(db, customer, decode_quantities(quantities))
                announce(db, [customer])
            db.execute("UPDATE holds SET state = ? WHERE identity = ?", (RELEASED, key))
        return Closing("released", decode_quantities(asked))

    def open_holds(self, customer: str, identities: Sequence[bytes], now: int) -> frozenset[bytes]:
        """As in `ports.Holds`."""
        with self._connection("ro", "read") as db:
            rows = (db.execute(_OPEN, (key, EXPIRED, now)).fetchone() for key in identities)
            return frozenset(row[0] for row in rows if row is not None)

    def catalog(self) -> CatalogVersion | None:
        """Return the newest catalog version, None where there is none."""
        with self._connection("ro", "read") as db:
            row = db.execute(_VERSION).fetchone()
        names = ("number", "text", "applied_at", "origin", "by", "note")
        return msgspec.convert(dict(zip(names, row, strict=True)), CatalogVersion) if row else None

    def heartbeats(self) -> list[Heartbeat]:
        with self._connection("ro", "read") as db:
            return heartbeats.read(db)

    def feed(self) -> SqliteFeed:
        return SqliteFeed(self._path, wait=self._wait["ro"])

    def close(self) -> None:
        """Close what is idle at once, and what is in use by calls under way when these end."""
        self._closed = True
        for idle in self._idle.values():
            with suppress(IndexError):
                while True:
                    idle.pop().close()

    @contextmanager
    def _connection(self, mode: Mode, act: str) -> Iterator[sqlite3.Connection]:
        """Return a connection to the file that the path names now. One on which anything failed is not used again."""
        with SCHEMA.explained(self._path, act):
            file = self._take_idle(mode) or self._open(mode)
            try:
                yield file.db
            except BaseException:
                file.close()
                raise
            self._idle[mode].append(file)
            # Asked afterwards, as another thread may close all meanwhile.
            if self._closed:
                self.close()

    def _take_idle(self, mode: Mode) -> DatabaseFile | None:
        with suppress(IndexError):
            while True:
                file = self._idle[mode].pop()
                try:
                    file.check_same()
                except StoreError:
                    file.close()
                else:
                    return file
        return None

    def _open(self, mode: Mode) -> DatabaseFile:
        pragmas = {"synchronous": "NORMAL"} if mode == "rw" else {}
        return open_file(self._path, SCHEMA, mode, wait=self._wait[mode], pragmas=pragmas)


def _judge(
    db: sqlite3.Connection,
    key: bytes,
    hold: Hold,
    ceilings: Mapping[str, int],
    scope: Scope,
    now: int,
    seen: int | None,
) -> Reserved:
    """Return how the reserve ends as things are: `held` says that it may be."""
    row = db.execute(HOLD, (key,)).fetchone()
    account = read_account(db, hold.customer, scope, now)
    if row is not None and row[1] == SETTLED:
        return Reserved("settled", account)
    if row is not None and row[1] <= COMMITTED and row[4] > now:
        same = decode_quantities(row[2]) == hold.quantities
        return Reserved("repeated" if same else "conflict", account)
    if not has_room(account, hold.quantities, ceilings):
        return Reserved("full", account)
    return Reserved("held" if seen is None or account.revision == seen else "moved", account)
