"""How totals lie in the embedded store: the meters of one customer and window side by side in one row.

A new row costs SQLite about the same however much is in it, and a customer's meters move together: so three meters
are written in a third of the time, and read in one piece. A row's `body` is JSON, a list of entries [meter, end,
total, version, as_of], or [..., events, late, corrected, adjustment, steady] where these are not just [version, 0, 0,
0, true]. A total is an integer or, as decimal text, a string; `end` and `as_of` are counted from the row's start. The
views `totals_NN` take rows apart again.

An insert that meets a row calls back for each entry to be judged by itself: it stays unless the other is newer.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import cache, lru_cache
from itertools import chain, groupby, pairwise
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np

from tidegate.connectors.sqlite.store_schema import BUCKETS, KEY, PACKED
from tidegate.operators.events.keys import shard_of
from tidegate.operators.metering.totals import ShardTotals, Totals
from tidegate.operators.metering.windows import key_of, start_of
from tidegate.operators.model.ports import StoredTotal
from tidegate.operators.model.records import Total, is_requested

# Rows per statement: one of its own would cost a row twice the time; beyond 128 nothing is gained.
ROWS_PER_STATEMENT = (128, 16, 1)

Entry = Sequence[Any]
METER, END, TOTAL, VERSION, SHORT, STEADY = 0, 1, 2, 3, 5, 9
NOTHING_ODD = (0, 0, 0, True)

# However clocks are changed; µs.
LONGEST_DAY, LONGEST_HOUR = 3 * 86_400_000_000, 3 * 3_600_000_000

_PARAMETERS = 4
_PIECE = 1024
_INTEGER_MAX = 2**63

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[list[Any]]).decode

_SELECT = "SELECT customer, window, start, body, written_at FROM"
SELECT_ALL = f"{' UNION ALL '.join(f'{_SELECT} {table}' for table in PACKED)} ORDER BY {KEY}"


class Rows:
    """What is to be written: the parameters of rows, four each, per table, and the customers they are of."""

    def __init__(self, totals: Sequence[Total]) -> None:
        self._parameters: list[list[Any]] = [[] for _ in range(BUCKETS)]
        if isinstance(totals, Totals):
            self.customers = [name for part in totals.parts for name in part.names]
            for part in totals.parts:
                for bucket, own in _in_buckets(part):
                    self._parameters[bucket] += chain.from_iterable(_packed(own))
        else:
            self.customers = sorted({total.customer for total in totals})
            for row in _packed_singly(totals):
                self._parameters[shard_of(row[0], BUCKETS)] += row

    def write(self, db: sqlite3.Connection, now: int) -> None:
        """Insert the rows, or what is newer of them. The connection was made ready by `prepare`."""
        for bucket, parameters in enumerate(self._parameters):
            begin = 0
            for rows in ROWS_PER_STATEMENT:
                size = rows * _PARAMETERS
                while begin + size <= len(parameters):
                    db.execute(_upsert(bucket, rows), [now, *parameters[begin : begin + size]])
                    begin += size


def prepare(db: sqlite3.Connection) -> None:
    """Teaches a connection what the statements of `Rows` call."""
    db.create_function("merged", 2, _merged, deterministic=True)


def read(db: sqlite3.Connection, customer: str, since: int = 0) -> list[StoredTotal]:
    """Read a customer's periods, and hours and days that end after `since`, in the order of window, meter and start."""
    bounds = (since - LONGEST_DAY, since - LONGEST_HOUR) if since else (-_INTEGER_MAX, -_INTEGER_MAX)
    found = _taken_apart(db.execute(_read(shard_of(customer, BUCKETS)), (customer, *bounds)))
    return [stored for stored in found if is_requested(stored.total, since)] if since else found


def read_all(db: sqlite3.Connection) -> Iterator[StoredTotal]:
    """All totals, in the order of customer, window, meter and start."""
    for _, rows in groupby(db.execute(SELECT_ALL), itemgetter(0)):
        yield from _taken_apart(rows)


def _in_buckets(part: ShardTotals) -> Iterator[tuple[int, ShardTotals]]:
    """Split the part by table; that of one shard is mostly all of one table."""
    buckets = np.array([shard_of(name, BUCKETS) for name in part.names])
    for bucket in np.unique(buckets).tolist():
        own = buckets == bucket
        yield bucket, part if own.all() else part.select(np.flatnonzero(own[key_of(part.place)]))


def _packed(part: ShardTotals) -> Iterator[tuple[str, str, int, str]]:
    """Return customer, window, start and body of each row."""
    place = part.place
    cuts = np.concatenate(([0], np.flatnonzero(place[1:] != place[:-1]) + 1, [len(place)]))
    for begin in range(0, len(cuts) - 1, _PIECE):
        bounds = cuts[begin : begin + _PIECE + 1]
        first = bounds[:-1]
        entries = _entries(part, slice(int(bounds[0]), int(bounds[-1])))
        bodies = [_encode(entries[i:j]).decode() for i, j in pairwise((bounds - bounds[0]).tolist())]
        yield from zip(
            part.list_customers(first), part.list_windows(first), part.list_starts(first), bodies, strict=True
        )


def _entries(part: ShardTotals, rows: slice) -> list[Entry]:
    """Return the entries of neighbouring rows of a part."""
    meters, version = part.meters, part.version[rows]
    start = start_of(part.place[rows])
    columns = (part.end[rows] - start, version, part.as_of[rows] - start)
    end, versions, as_of = (column.tolist() for column in columns)
    names = [meters[meter] for meter in part.meter[rows].tolist()]
    entries: list[Entry] = list(zip(names, end, part.list_amounts(rows), versions, as_of, strict=True))
    counts = part.events[rows], part.late[rows], part.corrected[rows]
    odd = np.flatnonzero((counts[0] != version) | counts[1] | counts[2] | ~part.steady[rows])
    if len(odd):
        adjustments = part.list_adjustments(rows)
        rests = zip(*(count[odd].tolist() for count in (*counts, part.steady[rows])), strict=True)
        for i, (events, late, corrected, steady) in zip(odd.tolist(), rests, strict=True):
            entries[i] = (*entries[i], events, late, corrected, adjustments[i], steady)
    return entries


def _packed_singly(totals: Iterable[Total]) -> Iterator[tuple[str, str, int, str]]:
    """Return the rows of single totals, in any order, several of one key too."""
    turns: dict[tuple[Any, ...], int] = {}
    rows: dict[tuple[int, str, str, int], list[Entry]] = {}
    for total in totals:
        for amount in (total.total, total.adjustment):
            if isinstance(amount, int) and not -_INTEGER_MAX <= amount < _INTEGER_MAX:
                raise OverflowError(f"total: an integer needs to fit 64 bits, got {amount} of {total[:4]}")
        # What comes of several of one key depends on their order, so each has a row to itself.
        turn = turns[total[:4]] = turns.get(total[:4], 0) + 1
        rows.setdefault((turn, total.customer, total.window, total.start), []).append(_entry(total))
    for key in sorted(rows):
        yield *key[1:], _encode(rows[key]).decode()


def _entry(total: Total) -> Entry:
    # As a plain tuple, so that it is no record.
    meter, end, amount, version, events, as_of, *rest = total[2:3] + total[4:]
    short = (meter, end - total.start, amount, version, as_of - total.start)
    return short if (events, *rest) == (version, *NOTHING_ODD) else (*short, events, *rest)


def _taken_apart(rows: Iterable[tuple[str, Any, int, str, int]]) -> list[StoredTotal]:
    """Return the totals of one customer's rows, in the order of window, meter and start."""
    found = []
    for customer, window, start, body, written_at in rows:
        for meter, end, total, version, as_of, *rest in _decode(body):
            events, *others = rest or (version, *NOTHING_ODD)
            record = (
                customer,
                window,
                meter,
                start,
                start + end,
                total,
                version,
                events,
                start + as_of,
                *others,
            )
            found.append(StoredTotal(Total._make(record), written_at))
    return sorted(found, key=lambda stored: stored.total[1:4])


# Twice in a row for one row: to ask whether anything is newer, and for what comes of it.
@lru_cache(maxsize=1)
def _merged(old: str, new: str) -> str | None:
    """Merge another body of a row into it; return None if nothing in it is newer."""
    kept: dict[Any, Entry] = {entry[METER]: entry for entry in _decode(old)}
    newer = [
        entry for entry in _decode(new) if entry[METER] not in kept or _is_newer(entry, kept[entry[METER]])
    ]
    kept.update((entry[METER], entry) for entry in newer)
    return _encode(list(kept.values())).decode() if newer else None


def _is_newer(new: Entry, old: Entry) -> bool:
    """Compare versions. A steady total that went back can only be an older one; an end moves without a new version."""
    if new[VERSION] <= old[VERSION]:
        return bool(new[VERSION] == old[VERSION] and new[TOTAL] == old[TOTAL] and new[END] != old[END])
    if len(new) > SHORT and not new[STEADY]:
        return True
    ours, theirs = new[TOTAL], old[TOTAL]
    if type(ours) is int and type(theirs) is int:
        return ours >= theirs
    return Decimal(ours) >= Decimal(theirs)


@cache
def _upsert(bucket: int, rows: int) -> str:
    row = f"(?1{', ?' * _PARAMETERS})"
    return f"""INSERT INTO {PACKED[bucket]} (written_at, customer, window, start, body)
        VALUES {", ".join([row] * rows)}
        ON CONFLICT DO UPDATE SET body = merged(body, excluded.body), written_at = excluded.written_at
        WHERE merged(body, excluded.body) IS NOT NULL"""


@cache
def _read(bucket: int) -> str:
    select = f"{_SELECT} {PACKED[bucket]} WHERE customer = ?1 AND window ="
    return f"""{select} 'period' UNION ALL {select} 'day' AND start >= ?2
        UNION ALL {select} 'hour' AND start >= ?3"""
