"""Changed totals in columns, as they pass from a shard to a store.

A shard that worked off a backlog has some hundred thousand of them. As Python objects they would outgrow every cache
before the first one is written, so a store may take them in columns; for any other store they are a sequence.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.columns.quantity import SCALE, format_limbs, format_quantity, join_limbs
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.catalog_change import find_ends
from tidegate.operators.metering.key_index import KeyIndex
from tidegate.operators.metering.windows import (
    UNSENT,
    WINDOW_NAMES,
    WindowAdjustments,
    key_of,
    replace_key,
    start_of,
    window_of,
)
from tidegate.operators.model.records import Total, Window

Amount = int | str

# The same as `Total._make`, without a Python call for each of some hundred thousand rows a second.
_TOTAL = partial(tuple.__new__, Total)
_PIECE = 4096


class ShardTotals(NamedTuple):
    """The changed totals of one shard, those of one customer, window and start side by side.

    `place` is equal for these and only for these: window and start as in a window's word, and the customer, an index
    into `names`, in place of the key. `names` ascend. Quantities are limbs; `apart` has the total and the adjustment of
    rows that were adjusted, or whose total needs more than these limbs.
    """

    names: Sequence[str]
    meters: Sequence[str]
    place: NDArray[np.uint64]
    meter: Ints
    end: Ints
    hi: Ints
    mid: Ints
    lo: Ints
    version: Ints
    events: Ints
    as_of: Ints
    late: Ints
    corrected: Ints
    steady: NDArray[np.bool_]
    apart: Mapping[int, tuple[Amount, Amount]]

    def select(self, rows: Ints) -> "ShardTotals":
        """Return these rows."""
        columns: Iterable[Any] = self[2:-1]
        apart = {new: self.apart[old] for new, old in enumerate(rows.tolist()) if old in self.apart}
        return ShardTotals._make((self.names, self.meters, *(column[rows] for column in columns), apart))

    def list_customers(self, rows: slice | Ints) -> list[str]:
        """Return the customer of each row."""
        names = self.names
        return [names[customer] for customer in key_of(self.place[rows]).tolist()]

    def list_windows(self, rows: slice | Ints) -> list[Window]:
        """Return the kind of window of each row."""
        return [WINDOW_NAMES[window] for window in window_of(self.place[rows]).tolist()]

    def list_starts(self, rows: slice | Ints) -> list[int]:
        """Return the start of each row's window, µs since the epoch."""
        starts: list[int] = start_of(self.place[rows]).tolist()
        return starts

    def list_amounts(self, rows: slice) -> list[Amount]:
        """Return the totals of neighbouring rows."""
        hi, mid, lo = self.hi[rows], self.mid[rows], self.lo[rows]
        amounts: list[Amount] = hi.tolist()
        broken = np.flatnonzero(mid | lo)
        texts = map(format_limbs, *(limb[broken].tolist() for limb in (hi, mid, lo)))
        for row, found in zip(broken.tolist(), texts, strict=True):
            amounts[row] = found
        for row, (amount, _) in self._list_apart(rows):
            amounts[row] = amount
        return amounts

    def list_adjustments(self, rows: slice) -> list[Amount]:
        """Return the part of each total, of neighbouring rows, that comes from adjustments."""
        adjustments: list[Amount] = [0] * len(self.hi[rows])
        for row, (_, amount) in self._list_apart(rows):
            adjustments[row] = amount
        return adjustments

    def _list_apart(self, rows: slice) -> Iterable[tuple[int, tuple[Amount, Amount]]]:
        return (
            (row - rows.start, found) for row, found in self.apart.items() if rows.start <= row < rows.stop
        )

    def iterate_totals(self) -> Iterator[Total]:
        """Return the totals row by row."""
        return chain.from_iterable(map(self._build_piece, range(0, len(self.place), _PIECE)))

    def _build_piece(self, begin: int) -> Iterator[Total]:
        rows, meters = slice(begin, begin + _PIECE), self.meters
        return map(
            _TOTAL,
            zip(
                self.list_customers(rows),
                self.list_windows(rows),
                [meters[meter] for meter in self.meter[rows].tolist()],
                self.list_starts(rows),
                self.end[rows].tolist(),
                self.list_amounts(rows),
                self.version[rows].tolist(),
                self.events[rows].tolist(),
                self.as_of[rows].tolist(),
                self.late[rows].tolist(),
                self.corrected[rows].tolist(),
                self.list_adjustments(rows),
                self.steady[rows].tolist(),
                strict=True,
            ),
        )


class ChangedTotals(NamedTuple):
    """The changed totals of one shard as its tables have them, unordered; ordering them needs no state of the shard.

    `customer` is an index into `names`; other columns are as in `ShardTotals`.
    """

    names: Sequence[str]
    meters: Sequence[str]
    words: NDArray[np.uint64]
    customer: Ints
    meter: Ints
    steady: NDArray[np.bool_]
    columns: Sequence[NDArray[Any]]
    """`end`, `hi`, `mid`, `lo`, `events`, `as_of`, `late` and `corrected`, of any integer type."""
    adjusted: Mapping[int, WindowAdjustments]
    tops: Mapping[int, int]
    """By word, the limbs `top` that are not 0."""

    def sort(self) -> ShardTotals:
        """Return the totals in order."""
        ascending = sorted(range(len(self.names)), key=self.names.__getitem__)
        rank = np.empty(len(ascending), np.int64)
        rank[ascending] = np.arange(len(ascending))
        place = replace_key(self.words, rank[self.customer])
        order = np.argsort(place, kind="stable")
        columns = (column[order].astype(np.int64, copy=False) for column in self.columns)
        end, hi, mid, lo, events, as_of, late, corrected = columns
        part = ShardTotals(
            names=[self.names[i] for i in ascending],
            meters=self.meters,
            place=place[order],
            meter=self.meter[order],
            end=end,
            hi=hi,
            mid=mid,
            lo=lo,
            version=events,
            events=events,
            as_of=as_of,
            late=late,
            corrected=corrected,
            steady=self.steady[order],
            apart={},
        )
        if not self.adjusted and not self.tops:
            return part
        return _set_apart(part, self.words[order], self.adjusted, self.tops)


class Totals(Sequence[Total]):
    """Totals of one or more shards: a sequence made of columns, which are put in order when they are first used."""

    def __init__(self, taken: Iterable[ChangedTotals] = ()) -> None:
        self.changed = tuple(taken)

    @cached_property
    def parts(self) -> tuple[ShardTotals, ...]:
        """The sorted totals of each shard."""
        return tuple(taken.sort() for taken in self.changed)

    def __len__(self) -> int:
        return sum(len(taken.words) for taken in self.changed)

    def __iter__(self) -> Iterator[Total]:
        return chain.from_iterable(part.iterate_totals() for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> Total: ...
    @overload
    def __getitem__(self, index: slice) -> list[Total]: ...
    def __getitem__(self, index: int | slice) -> Total | list[Total]:
        return list(self)[index]


def drain_changed(
    tables: Sequence[Table], key_index: KeyIndex, adjusted: Mapping[int, WindowAdjustments]
) -> Totals:
    """Return the totals of these tables that were not sent yet, and mark them as sent."""
    tops: dict[int, int] = {}
    changed = [_drain_unsent(table, key_index, tops) for table in tables]
    words, *columns = map(np.concatenate, zip(*changed, strict=True))
    if not len(words):
        return Totals()
    key = key_of(words)
    row = key_index.key_customer.values[key]
    used = np.zeros(len(key_index.names), np.int64)
    used[row] = 1
    known = np.flatnonzero(used)
    used[known] = np.arange(len(known))
    meter = key_index.key_meter.values[key]
    names = key_index.names
    return Totals(
        [
            ChangedTotals(
                names=[names[i] for i in known.tolist()],
                meters=[each.name for each in key_index.meters],
                words=words,
                customer=used[row],
                meter=meter,
                steady=~key_index.falls[meter],
                columns=columns,
                adjusted=dict(adjusted),
                tops=tops,
            )
        ]
    )


def _drain_unsent(table: Table, key_index: KeyIndex, tops: dict[int, int]) -> tuple[NDArray[Any], ...]:
    dirty, columns = table.columns["dirty"], table.columns
    rows = np.flatnonzero(dirty[: len(table)] & UNSENT)
    dirty[rows] &= ~UNSENT
    words = table.keys[0][rows]
    end = find_ends(table, rows, key_index)
    if "top" in columns:
        top = columns["top"][rows]
        wide = np.flatnonzero(top)
        tops.update(zip(words[wide].tolist(), top[wide].tolist(), strict=True))
    nothing = np.zeros(len(table), np.int64)
    names = ("hi", "mid", "lo", "events", "as_of", "late", "corrected")
    return words, end, *(columns.get(name, nothing)[rows] for name in names)


def _set_apart(
    part: ShardTotals,
    words: NDArray[np.uint64],
    adjusted: Mapping[int, WindowAdjustments],
    tops: Mapping[int, int],
) -> ShardTotals:
    """Return the totals with what the columns do not hold: large totals, and adjustments.

    An adjusted total may fall, so only its version shows whether it is newer.
    """
    version, steady, apart = part.version.copy(), part.steady.copy(), dict[int, tuple[Amount, Amount]]()
    for row in np.flatnonzero(np.isin(words, np.array([*adjusted, *tops], np.uint64))).tolist():
        word = int(words[row])
        known = adjusted.get(word)
        if known is not None:
            version[row] += known.times
            steady[row] = False
        whole = join_limbs(int(part.hi[row]), int(part.mid[row]), int(part.lo[row]), tops.get(word, 0))
        apart[row] = _to_amount(whole), _to_amount(known.amount if known else 0)
    return part._replace(version=version, steady=steady, apart=apart)


def _to_amount(whole: int) -> Amount:
    """Return a quantity given times 10²⁴ as a total is written: an int if it is whole and fits 64 bits, else text."""
    hi, rest = divmod(whole, SCALE)
    return hi if not rest and -(2**63) <= hi < 2**63 else format_quantity(whole)
