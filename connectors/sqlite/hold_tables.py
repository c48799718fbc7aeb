"""Accounts and holds as rows of the embedded store, for both ends: the gate's (holds.py), the writer's (settling.py).

`holds` has a row per hold, by the identity of the event that it waits for; `held` is, per customer and meter, the
sum of those that are held or committed, so that an account is read in one statement however many there are.
Whoever changes a customer's holds first takes the expired ones out of the sum; who only reads leaves them out.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from tidegate.connectors.sqlite.store_schema import BUCKETS, PACKED
from tidegate.operators.columns.quantity import format_quantity, scale
from tidegate.operators.events.keys import shard_of
from tidegate.operators.gate.holds import REMEMBERED
from tidegate.operators.model.ports import Account, Held, Scope, StoreError, Used

# Those below EXPIRED are in the sum, and the event of those below SETTLED has not come. One that is held expires, one
# that is committed lapses: its first commit stands all the same.
HELD, COMMITTED, EXPIRED, LAPSED, RELEASED, SETTLED = range(6)
PRUNED_AT_ONCE = 16

HOLD = "SELECT customer, state, asked, quantities, until FROM holds WHERE identity = ?"

_TOTALS = msgspec.json.Decoder(list[list[int | str | bool]])
_QUANTITIES = msgspec.json.Decoder(dict[str, str])


def read_account(db: sqlite3.Connection, customer: str, scope: Scope, now: int) -> Account:
    """Return a customer's account in a period, in one statement."""
    used: dict[str, Used] = {}
    held: dict[str, int] = {}
    expired: list[dict[str, int]] = []
    next_expiry, catalog = None, 0
    query = account_sql(shard_of(customer, BUCKETS))
    for kind, what, value in db.execute(query, (customer, scope.start, now)):
        if kind == "totals":
            used = {meter: one for meter, one in _used(what, value, scope.start) if meter in scope.meters}
        elif kind == "held":
            held[what] = _whole(value)
        elif kind == "expired":
            expired.append(decode_quantities(what))
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
def account_sql(bucket: int) -> str:
    """Return the statement that reads an account of this bucket."""
    return f"""SELECT 'totals', body, written_at FROM {PACKED[bucket]}
            WHERE customer = ?1 AND window = 'period' AND start = ?2
        UNION ALL SELECT 'held', meter, quantity FROM held WHERE customer = ?1
        UNION ALL SELECT 'expired', quantities, 0 FROM holds WHERE state < 2 AND customer = ?1 AND until <= ?3
        UNION ALL SELECT 'next', '', min(until) FROM holds WHERE state < 2 AND customer = ?1 AND until > ?3
        UNION ALL SELECT 'catalog', '', max(number) FROM catalogs"""


def _used(body: Any, written_at: int, start: int) -> Iterator[tuple[str, Used]]:
    """Return the totals of a period, packed as in connectors/sqlite/table_layout.py: times from the period's start."""
    try:
        entries = _TOTALS.decode(body)
        for meter, _, total, _, as_of, *_ in entries:
            yield str(meter), Used(_whole(total), start + int(as_of), written_at)
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise StoreError(f"store: needs packed totals, got {str(body)[:60]!r} ({error})") from None


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
        quantities = {what: _whole(value)} if kind == "held" else decode_quantities(what)
        for meter, quantity in quantities.items():
            sum_of[meter] = sum_of.get(meter, 0) + (quantity if kind == "held" else -quantity)
    return {
        customer: Held(
            {meter: quantity for meter, quantity in sums.get(customer, {}).items() if quantity}, expiry
        )
        for customer, expiry in expiries.items()
    }


def _held_sql(which: str) -> str:
    """Return the query of `read_held`; `which` chooses customers."""
    return f"""SELECT 'held', customer, meter, quantity FROM held WHERE 1 {which}
        UNION ALL SELECT 'expired', customer, quantities, 0 FROM holds WHERE state < 2 AND until <= ?1 {which}
        UNION ALL SELECT 'next', customer, '', min(until) FROM holds WHERE state < 2 AND until > ?1 {which}
            GROUP BY customer"""


def end_expired(db: sqlite3.Connection, customer: str, now: int) -> None:
    """Take the customer's expired holds out of the sum."""
    query = "SELECT identity, state, quantities FROM holds WHERE state < 2 AND customer = ? AND until <= ?"
    for key, state, quantities in db.execute(query, (customer, now)).fetchall():
        take_from_sums(db, customer, decode_quantities(quantities))
        ended = LAPSED if state == COMMITTED else EXPIRED
        db.execute("UPDATE holds SET state = ? WHERE identity = ?", (ended, key))


def forget_some(db: sqlite3.Connection, now: int) -> None:
    """Forget some of the holds that expired long ago."""
    query = "SELECT n, customer, state, quantities FROM holds WHERE until < ? ORDER BY until LIMIT ?"
    for n, customer, state, quantities in db.execute(query, (now - REMEMBERED, PRUNED_AT_ONCE)).fetchall():
        if state <= COMMITTED:
            take_from_sums(db, customer, decode_quantities(quantities))
        db.execute("DELETE FROM holds WHERE n = ?", (n,))


def add_to_sums(db: sqlite3.Connection, customer: str, quantities: Mapping[str, int]) -> None:
    """Add to the customer's sums; what comes to nothing goes."""
    for meter, quantity in quantities.items():
        row = db.execute(
            "SELECT quantity FROM held WHERE customer = ? AND meter = ?", (customer, meter)
        ).fetchone()
        after = (_whole(row[0]) if row else 0) + quantity
        if after:
            db.execute(
                "INSERT OR REPLACE INTO held VALUES (?, ?, ?)", (customer, meter, format_quantity(after))
            )
        elif row:
            db.execute("DELETE FROM held WHERE customer = ? AND meter = ?", (customer, meter))


def take_from_sums(db: sqlite3.Connection, customer: str, quantities: Mapping[str, int]) -> None:
    """Take what a hold held out of the customer's sums."""
    add_to_sums(db, customer, {meter: -quantity for meter, quantity in quantities.items()})


def encode_quantities(quantities: Mapping[str, int]) -> str:
    """Return quantities by meter as they are stored."""
    return msgspec.json.encode(
        {meter: format_quantity(quantity) for meter, quantity in quantities.items()}
    ).decode()


def decode_quantities(quantities: Any) -> dict[str, int]:
    """Return stored quantities by meter, times 10²⁴. Raises StoreError."""
    try:
        return {meter: _whole(quantity) for meter, quantity in _QUANTITIES.decode(quantities).items()}
    except (msgspec.DecodeError, TypeError) as error:
        raise StoreError(f"holds: need quantities by meter, got {str(quantities)[:60]!r} ({error})") from None


def _whole(value: Any) -> int:
    """Return a stored quantity times 10²⁴."""
    try:
        if type(value) is int:
            return scale(value)
        if type(value) is str:
            return scale(Decimal(value))
    except (InvalidOperation, ValueError):
        # Told below, like what is neither.
        pass
    raise StoreError(f"store: needs decimal quantities, got {str(value)[:60]!r}; restore it, or replay")
