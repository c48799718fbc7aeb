"""Accounts and holds in the embedded store's file, as the gate reads and writes them.

`holds` has a row per hold, by the identity of the event that it waits for; `held` is, per customer and meter, the
sum of those that are held or committed, so that an account is read in one statement however many there are.
Whoever changes a customer's holds first takes the expired ones out of the sum; who only reads leaves them out.
The flow's writer ends holds in the transaction of the totals that count their events (`Settling`).

Guarantees: as connectors/sqlite/store.py. What a killed process held ends when it expires. Ended holds are remembered
for an hour past their expiry, so that late retries change nothing, then pruned a few at a time.

Limits: as connectors/sqlite/store.py; after a power cut the last holds may be missing.
"""

import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from xxhash import xxh3_64_intdigest

from tidegate.connectors.sqlite import heartbeats
from tidegate.connectors.sqlite.change_feed import SqliteFeed, announce
from tidegate.connectors.sqlite.database import BUCKETS, PACKED, check_same, connect, explained, transaction
from tidegate.operators.columns.quantity import scaled, text
from tidegate.operators.events.keys import identity, shard_of
from tidegate.operators.gate.holds import REMEMBERED, final_quantities, is_room
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import (
    Account,
    CatalogVersion,
    Closing,
    Held,
    Hold,
    Reserved,
    Scope,
    Settled,
    StoreError,
    Used,
)

Mode = Literal["ro", "rw"]

WAIT = timedelta(seconds=1)
# Those below EXPIRED are in the sum, and the event of those below SETTLED has not come. One that is held expires, one
# that is committed lapses: its first commit stands all the same.
HELD, COMMITTED, EXPIRED, LAPSED, RELEASED, SETTLED = range(6)
PRUNED_AT_ONCE = 16
# Below this many a list of identities is not worth being read anew.
FEW: Final = 1024

_HOLD = "SELECT customer, state, asked, quantities, until FROM holds WHERE identity = ?"
_OPEN = "SELECT identity FROM holds WHERE identity = ? AND state < ? AND until > ?"
_PUT = "INSERT OR REPLACE INTO holds (identity, customer, state, asked, quantities, until) VALUES (?, ?, ?, ?, ?, ?)"
_TOTALS = msgspec.json.Decoder(list[list[int | str | bool]])
_QUANTITIES = msgspec.json.Decoder(dict[str, str])
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
        self._idle: dict[Mode, list[tuple[sqlite3.Connection, os.stat_result]]] = {"ro": [], "rw": []}
        self._closed = False

    def account(self, customer: str, scope: Scope, now: int) -> Account:
        """One statement, so all of one moment."""
        with self._connection("ro", "read") as db:
            return _account(db, customer, scope, now)

    def reserve(
        self, hold: Hold, ceilings: Mapping[str, int], scope: Scope, now: int, seen: int | None = None
    ) -> Reserved:
        """As in `ports.Holds`. Who gets nothing takes no lock, and so never holds up the flow."""
        key = identity(hold.customer, hold.source, hold.id)
        with self._connection("rw", "reserve in") as db:
            with _snapshot(db):
                reserved = _judged(db, key, hold, ceilings, scope, now, seen)
            if reserved.outcome != "held":
                return reserved
            with transaction(db):
                reserved = _judged(db, key, hold, ceilings, scope, now, seen)
                if reserved.outcome == "held":
                    _sweep(db, hold.customer, now)
                    amounts = _written(hold.quantities)
                    db.execute(_PUT, (key, hold.customer, HELD, amounts, amounts, hold.until))
                    _add(db, hold.customer, hold.quantities)
                    reserved = Reserved("held", _account(db, hold.customer, scope, now))
                    announce(db, [hold.customer])
                    _prune(db, now)
        return reserved

    def commit(
        self, customer: str, source: str, id: str, quantities: Mapping[str, int] | None, until: int, now: int
    ) -> Closing:
        """As in `ports.Holds`."""
        key = identity(customer, source, id)
        with self._connection("rw", "commit in") as db, transaction(db):
            row = db.execute(_HOLD, (key,)).fetchone()
            if row is None:
                return Closing("unknown", {})
            _, state, asked_text, old_text, old_until = row
            asked, old = _read(asked_text), _read(old_text)
            if state in (RELEASED, SETTLED):
                return Closing("settled" if state == SETTLED else "released", asked)
            final = final_quantities(asked, quantities)
            is_committed = state in (COMMITTED, LAPSED)
            if final is None or (is_committed and final != old):
                return Closing("conflict", asked)
            if is_committed:
                return Closing("committed", asked)
            expired = state == EXPIRED or old_until <= now
            _sweep(db, customer, now)
            if not expired:
                _add(db, customer, {meter: -quantity for meter, quantity in old.items()})
            _add(db, customer, final)
            db.execute(
                "UPDATE holds SET state = ?, quantities = ?, until = ? WHERE identity = ?",
                (COMMITTED, _written(final), max(until, old_until), key),
            )
            announce(db, [customer])
        return Closing("committed", asked, expired)

    def release(self, customer: str, source: str, id: str, now: int) -> Closing:
        """As in `ports.Holds`."""
        key = identity(customer, source, id)
        with self._connection("rw", "release in") as db, transaction(db):
            row = db.execute(_HOLD, (key,)).fetchone()
            if row is None:
                return Closing("unknown", {})
            _, state, asked, quantities, _ = row
            if state in (COMMITTED, LAPSED, SETTLED):
                return Closing("settled" if state == SETTLED else "committed", _read(asked))
            if state == HELD:
                _add(db, customer, {meter: -quantity for meter, quantity in _read(quantities).items()})
                announce(db, [customer])
            db.execute("UPDATE holds SET state = ? WHERE identity = ?", (RELEASED, key))
        return Closing("released", _read(asked))

    def open_holds(self, customer: str, identities: Sequence[bytes], now: int) -> frozenset[bytes]:
        """As in `ports.Holds`."""
        with self._connection("ro", "read") as db:
            rows = (db.execute(_OPEN, (key, EXPIRED, now)).fetchone() for key in identities)
            return frozenset(row[0] for row in rows if row is not None)

    def catalog(self) -> CatalogVersion | None:
        """The newest catalog version, None where there is none."""
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
        """Closes what is idle at once, and what is in use by calls under way when these end."""
        self._closed = True
        for idle in self._idle.values():
            with suppress(IndexError):
                while True:
                    idle.pop()[0].close()

    @contextmanager
    def _connection(self, mode: Mode, act: str) -> Iterator[sqlite3.Connection]:
        """A connection to the file that the path names now. One on which anything failed is not used again."""
        with explained(self._path, act):
            db, opened = self._taken(mode) or self._opened(mode)
            try:
                yield db
            except BaseException:
                db.close()
                raise
            self._idle[mode].append((db, opened))
            # Asked afterwards, as another thread may close all meanwhile.
            if self._closed:
                self.close()

    def _taken(self, mode: Mode) -> tuple[sqlite3.Connection, os.stat_result] | None:
        with suppress(IndexError):
            while True:
                db, opened = self._idle[mode].pop()
                try:
                    check_same(self._path, opened)
                except StoreError:
                    db.close()
                else:
                    return db, opened
        return None

    def _opened(self, mode: Mode) -> tuple[sqlite3.Connection, os.stat_result]:
        db = connect(self._path, mode, self._wait[mode])
        try:
            if mode == "rw":
                db.execute("PRAGMA synchronous = NORMAL")
            return db, os.stat(self._path)
        except BaseException:
            db.close()
            raise


def read_held(db: sqlite3.Connection, now: int, customers: Collection[str] | None) -> dict[str, Held]:
    """Return what open holds hold at `now` (µs) by customer, of these or of all, as `ports.StoreReader` says."""
    if customers is None:
        return _held(db.execute(_held_sql(""), (now,)))
    query = _held_sql("AND customer = ?2")
    return {name: held for each in customers for name, held in _held(db.execute(query, (now, each))).items()}


def _held(rows: Iterable[tuple[str, str, str, Any]]) -> dict[str, Held]:
    sums: dict[str, dict[str, int]] = {}
    expiries: dict[str, int] = {}
    for kind, customer, what, value in rows:
        if kind == "next":
            expiries[customer] = value
            continue
        sum_of = sums.setdefault(customer, {})
        quantities = {what: _whole(value)} if kind == "held" else _read(what)
        for meter, quantity in quantities.items():
            sum_of[meter] = sum_of.get(meter, 0) + (quantity if kind == "held" else -quantity)
    return {
        customer: Held(
            {meter: quantity for meter, quantity in sums.get(customer, {}).items() if quantity}, expiry
        )
        for customer, expiry in expiries.items()
    }


def _held_sql(which: str) -> str:
    """The query of `read_held`; `which` chooses customers."""
    return f"""SELECT 'held', customer, meter, quantity FROM held WHERE 1 {which}
        UNION ALL SELECT 'expired', customer, quantities, 0 FROM holds WHERE state < 2 AND until <= ?1 {which}
        UNION ALL SELECT 'next', customer, '', min(until) FROM holds WHERE state < 2 AND until > ?1 {which}
            GROUP BY customer"""


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
        """Ends the holds of these events; the customers whose accounts that changes."""
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
    row = db.execute(_HOLD, (key,)).fetchone()
    if row is None or row[1] == SETTLED:
        return []
    customer, state, _, quantities, _ = row
    db.execute("UPDATE holds SET state = ? WHERE identity = ?", (SETTLED, key))
    if state > COMMITTED:
        return []
    _add(db, customer, {meter: -quantity for meter, quantity in _read(quantities).items()})
    return [customer]


def _judged(
    db: sqlite3.Connection,
    key: bytes,
    hold: Hold,
    ceilings: Mapping[str, int],
    scope: Scope,
    now: int,
    seen: int | None,
) -> Reserved:
    """How the reserve ends as things are: `held` says that it may be."""
    row = db.execute(_HOLD, (key,)).fetchone()
    account = _account(db, hold.customer, scope, now)
    if row is not None and row[1] == SETTLED:
        return Reserved("settled", account)
    if row is not None and row[1] <= COMMITTED and row[4] > now:
        same = _read(row[2]) == hold.quantities
        return Reserved("repeated" if same else "conflict", account)
    if not is_room(account, hold.quantities, ceilings):
        return Reserved("full", account)
    return Reserved("held" if seen is None or account.revision == seen else "moved", account)


def _account(db: sqlite3.Connection, customer: str, scope: Scope, now: int) -> Account:
    used: dict[str, Used] = {}
    held: dict[str, int] = {}
    expired: list[dict[str, int]] = []
    next_expiry, catalog = None, 0
    query = _account_sql(shard_of(customer, BUCKETS))
    for kind, what, value in db.execute(query, (customer, scope.start, now)):
        if kind == "totals":
            used = {meter: one for meter, one in _used(what, value, scope.start) if meter in scope.meters}
        elif kind == "held":
            held[what] = _whole(value)
        elif kind == "expired":
            expired.append(_read(what))
        elif kind == "next":
            next_expiry = value
        else:
            catalog = value or 0
    for quantities in expired:
        for meter, quantity in quantities.items():
            held[meter] = held.get(meter, 0) - quantity
    held = {meter: quantity for meter, quantity in held.items() if quantity}
    revision = xxh3_64_intdigest(repr((sorted(used.items()), sorted(held.items()))).encode())
    return Account(used, held, next_expiry, catalog, revision)


@cache
def _account_sql(bucket: int) -> str:
    return f"""SELECT 'totals', body, written_at FROM {PACKED[bucket]}
            WHERE customer = ?1 AND window = 'period' AND start = ?2
        UNION ALL SELECT 'held', meter, quantity FROM held WHERE customer = ?1
        UNION ALL SELECT 'expired', quantities, 0 FROM holds WHERE state < 2 AND customer = ?1 AND until <= ?3
        UNION ALL SELECT 'next', '', min(until) FROM holds WHERE state < 2 AND customer = ?1 AND until > ?3
        UNION ALL SELECT 'catalog', '', max(number) FROM catalogs"""


def _used(body: Any, written_at: int, start: int) -> Iterator[tuple[str, Used]]:
    """The totals of a period, as connectors/sqlite/table_layout.py packs them: times count from the period's start."""
    try:
        entries = _TOTALS.decode(body)
        for meter, _, total, _, as_of, *_ in entries:
            yield str(meter), Used(_whole(total), start + int(as_of), written_at)
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise StoreError(f"store: needs packed totals, got {str(body)[:60]!r} ({error})") from None


def _sweep(db: sqlite3.Connection, customer: str, now: int) -> None:
    """Takes the customer's expired holds out of the sum."""
    query = "SELECT identity, state, quantities FROM holds WHERE state < 2 AND customer = ? AND until <= ?"
    for key, state, quantities in db.execute(query, (customer, now)).fetchall():
        _add(db, customer, {meter: -quantity for meter, quantity in _read(quantities).items()})
        ended = LAPSED if state == COMMITTED else EXPIRED
        db.execute("UPDATE holds SET state = ? WHERE identity = ?", (ended, key))


def _prune(db: sqlite3.Connection, now: int) -> None:
    """Forgets some of the holds that expired long ago."""
    query = "SELECT n, customer, state, quantities FROM holds WHERE until < ? ORDER BY until LIMIT ?"
    for n, customer, state, quantities in db.execute(query, (now - REMEMBERED, PRUNED_AT_ONCE)).fetchall():
        if state <= COMMITTED:
            _add(db, customer, {meter: -quantity for meter, quantity in _read(quantities).items()})
        db.execute("DELETE FROM holds WHERE n = ?", (n,))


def _add(db: sqlite3.Connection, customer: str, quantities: Mapping[str, int]) -> None:
    """Adds to the customer's sums; what comes to nothing goes."""
    for meter, quantity in quantities.items():
        row = db.execute(
            "SELECT quantity FROM held WHERE customer = ? AND meter = ?", (customer, meter)
        ).fetchone()
        after = (_whole(row[0]) if row else 0) + quantity
        if after:
            db.execute("INSERT OR REPLACE INTO held VALUES (?, ?, ?)", (customer, meter, text(after)))
        elif row:
            db.execute("DELETE FROM held WHERE customer = ? AND meter = ?", (customer, meter))


@contextmanager
def _snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """What is read inside is of one moment."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("COMMIT")


def _written(quantities: Mapping[str, int]) -> str:
    return msgspec.json.encode({meter: text(quantity) for meter, quantity in quantities.items()}).decode()


def _read(quantities: Any) -> dict[str, int]:
    try:
        return {meter: _whole(quantity) for meter, quantity in _QUANTITIES.decode(quantities).items()}
    except (msgspec.DecodeError, TypeError) as error:
        raise StoreError(f"holds: need quantities by meter, got {str(quantities)[:60]!r} ({error})") from None


def _whole(value: Any) -> int:
    """A stored quantity times 10²⁴."""
    try:
        if type(value) is int:
            return scaled(value)
        if type(value) is str:
            return scaled(Decimal(value))
    except (InvalidOperation, ValueError):
        # Told below, like what is neither.
        pass
    raise StoreError(f"store: needs decimal quantities, got {str(value)[:60]!r}; restore it, or replay")
