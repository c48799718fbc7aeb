"""Totals per key and window, in flat columns, changed a batch at a time.

A key is a row number that the shard gives to each pair of customer and meter. A batch is sorted once by key and
event time; since hours, days and periods all grow with time, each kind of window is then a run of neighbours, and
one `reduceat` per column folds it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.chunk import Ints
from operators.periods import SECOND
from operators.quantity import TOTAL_MAX, carry
from operators.table import Table, Words

HOUR_WINDOW, DAY_WINDOW, PERIOD_WINDOW = 0, 1, 2

ADD, MAX, LAST = 0, 1, 2
FOLD_OF = {"count": ADD, "sum": ADD, "unique": ADD, "max": MAX, "last": LAST}

UNSAVED, UNSENT = np.uint8(1), np.uint8(2)

COLUMNS = {
    "hi": np.int64,
    "events": np.uint32,
    "late": np.uint32,
    "corrected": np.uint32,
    "as_of": np.int64,
    "dirty": np.uint8,
}
PERIOD_COLUMNS = {**COLUMNS, "end": np.int64, "next_up": np.int64}
FRACTIONS = ("mid", "lo")


class Batch(NamedTuple):
    """Readings as columns, in order of arrival. `fold` is ADD, MAX or LAST; `mid` and `lo` may be None."""

    key: Ints
    at: Ints
    fold: Ints
    hi: Ints
    mid: Ints | None
    lo: Ints | None
    late: NDArray[np.bool_]
    corrected: NDArray[np.bool_]


class Touched(NamedTuple):
    """Rows that a batch changed, one per window, with what stood there before and the readings that came.

    Readings of row i are `order[starts[i]:starts[i + 1]]` of the batch, by event time; `starts` has one more
    entry than there are rows.
    """

    rows: Ints
    new: NDArray[np.bool_]
    starts: Ints
    order: Ints
    hi: Ints
    mid: Ints
    lo: Ints
    as_of: Ints
    corrected: Ints


def window_key(key: Ints, window: int, start: Ints) -> Words:
    """One 64-bit word for key, kind of window and start: 30 bits, 2 bits, 32 bits of seconds since 1970."""
    packed = (key << 34) | (window << 32) | (start // SECOND)
    return packed.view(np.uint64)


def key_of(words: Words) -> Ints:
    """The key of each word."""
    return (words >> np.uint64(34)).astype(np.int64)


def window_of(words: Words) -> Ints:
    """The kind of window of each word."""
    return ((words >> np.uint64(32)) & np.uint64(3)).astype(np.int64)


def start_of(words: Words) -> Ints:
    """The start of each word's window, µs since the epoch."""
    return (words & np.uint64(0xFFFFFFFF)).astype(np.int64) * SECOND


def order_of(batch: Batch) -> Ints:
    """The batch by key, then event time, then arrival."""
    return np.lexsort((batch.at, batch.key))


def fold(table: Table, window: int, batch: Batch, order: Ints, start: Ints) -> Touched:
    """Folds a batch into its windows of one kind. `start` is each reading's window, in order of arrival."""
    words = window_key(batch.key, window, start)[order]
    cuts = np.flatnonzero(np.concatenate(([True], words[1:] != words[:-1])))
    rows, new = table.claim(words[cuts])
    columns = table.columns
    if batch.mid is not None and "mid" not in columns:
        for name in FRACTIONS:
            table.add_column(name, np.int64)
    starts = np.append(cuts, len(order))
    touched = Touched(rows, new, starts, order, *_before(table, rows))

    limbs = [batch.hi, batch.mid, batch.lo] if "mid" in columns else [batch.hi]
    limbs = [np.zeros(len(order), np.int64) if limb is None else limb[order] for limb in limbs]
    before = [touched.hi, touched.mid, touched.lo][: len(limbs)]
    sums = [old + np.add.reduceat(limb, cuts) for old, limb in zip(before, limbs, strict=True)]
    if len(sums) == 3:
        carry(sums[0], sums[1], sums[2])
    folds = batch.fold[order[cuts]]
    for kind, replace in ((MAX, _greatest), (LAST, _latest)):
        of_kind = np.flatnonzero(folds == kind)
        if len(of_kind):
            replace(of_kind, sums, before, limbs, starts, batch.at[order], touched.as_of)
    assert sums[0].max() < TOTAL_MAX, "a total outgrew its column"
    for name, limb in zip(("hi", *FRACTIONS), sums, strict=False):
        columns[name][rows] = limb
    columns["events"][rows] += np.diff(starts).astype(np.uint32)
    for name, marked in (("late", batch.late), ("corrected", batch.corrected)):
        if marked.any():
            columns[name][rows] += np.add.reduceat(marked[order].astype(np.uint32), cuts)
    columns["as_of"][rows] = np.maximum(touched.as_of, batch.at[order[starts[1:] - 1]])
    columns["dirty"][rows] = UNSAVED | UNSENT
    return touched


def _before(table: Table, rows: Ints) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    columns = table.columns
    none = np.zeros(len(rows), np.int64)
    mid, lo = (columns[name][rows] if name in columns else none for name in FRACTIONS)
    return columns["hi"][rows], mid, lo, columns["as_of"][rows], columns["corrected"][rows].astype(np.int64)


def _greatest(
    places: Ints, sums: list[Ints], before: list[Ints], limbs: list[Ints], starts: Ints, at: Ints, as_of: Ints
) -> None:
    """Sets these totals to the greatest of what stood there and what came."""
    cuts = starts[:-1]
    fractional = [limb[places].any() for limb in before[1:]]
    fractional += [np.maximum.reduceat(limb, cuts)[places].any() for limb in limbs[1:]]
    if not any(fractional):
        sums[0][places] = np.maximum(before[0], np.maximum.reduceat(limbs[0], cuts))[places]
        return
    for i in places.tolist():
        readings = zip(*(limb[starts[i] : starts[i + 1]].tolist() for limb in limbs), strict=True)
        value = max(tuple(int(limb[i]) for limb in before), *readings)
        for limb, part in zip(sums, value, strict=True):
            limb[i] = part


def _latest(
    places: Ints, sums: list[Ints], before: list[Ints], limbs: list[Ints], starts: Ints, at: Ints, as_of: Ints
) -> None:
    """Sets these totals to the reading with the latest event time; of equal times the later arrival stands."""
    ends = starts[1:][places] - 1
    newer = at[ends] >= as_of[places]
    for total, old, limb in zip(sums, before, limbs, strict=True):
        total[places] = np.where(newer, limb[ends], old[places])
