"""Totals per key and window, in flat columns, changed a batch at a time.

A key is a row number that the shard gives to each pair of customer and meter. A batch is sorted once by key
and event time and folded into runs: neighbours of one key, hour and period. Hours, days and periods all grow
with time, so each of their windows is a few neighbouring runs, and what is left to do per window works on runs
instead of readings.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.chunk import Ints
from operators.periods import SECOND
from operators.quantity import TOTAL_MAX, carry, joined, split
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

_KEY, _START = 34, 0xFFFFFFFF

Flags = NDArray[np.bool_]
Limbs = list[Ints]
"""Quantities as columns of limbs, `hi` alone where all are whole."""


class Batch(NamedTuple):
    """Readings as columns, in order of arrival. `fold` is ADD, MAX or LAST; `mid` and `lo` may be None."""

    key: Ints
    at: Ints
    fold: Ints
    hi: Ints
    mid: Ints | None
    lo: Ints | None
    late: Flags
    corrected: Flags

    def limbs(self) -> Limbs:
        """The quantities, with as many limbs as are in use."""
        if self.mid is None:
            return [self.hi]
        return [self.hi, self.mid] if self.lo is None else [self.hi, self.mid, self.lo]


class Runs(NamedTuple):
    """A batch folded into runs. `limbs` has the quantities per kind of window, since `unique` counts differ.

    Run i holds the readings `order[cuts[i]:cuts[i + 1]]` of the batch, by event time; `cuts` has one more entry
    than there are runs. `first` is each run's first reading in the batch.
    """

    order: Ints
    cuts: Ints
    first: Ints
    key: Ints
    fold: Ints
    limbs: list[Limbs]
    last_at: Ints
    late: Ints | None
    corrected: Ints | None


class Adjusted(NamedTuple):
    """The adjustments of one window: how many times, and their sum times 10²⁴."""

    times: int
    amount: int


class Touched(NamedTuple):
    """Rows that a batch changed, one per window, and what stood there before.

    The readings of row i are `order[starts[i]:starts[i + 1]]` of the batch.
    """

    rows: Ints
    new: Flags
    first: Ints
    order: Ints
    starts: Ints
    hi: Ints
    mid: Ints
    lo: Ints
    as_of: Ints
    corrected: Ints


def window_key(key: Ints, window: int, start: Ints) -> Words:
    """One 64-bit word for key, kind of window and start: 30 bits, 2 bits, 32 bits of seconds since 1970."""
    packed = (key << _KEY) | (window << 32) | (start // SECOND)
    return packed.view(np.uint64)


def key_of(words: Words) -> Ints:
    """The key of each word."""
    return (words >> np.uint64(_KEY)).astype(np.int64)


def unpacked(word: int) -> tuple[int, int]:
    """The key and the start (µs since the epoch) of one word."""
    return word >> _KEY, (word & _START) * SECOND


def place_of(words: Words, number: Ints) -> Words:
    """The words with another number in place of the key, such as the customer's: equal for all meters of one window."""
    return (words & np.uint64((1 << _KEY) - 1)) | (number.astype(np.uint64) << np.uint64(_KEY))


def window_of(words: Words) -> Ints:
    """The kind of window of each word."""
    return ((words >> np.uint64(32)) & np.uint64(3)).astype(np.int64)


def start_of(words: Words) -> Ints:
    """The start of each word's window, µs since the epoch."""
    return (words & np.uint64(_START)).astype(np.int64) * SECOND


def runs_of(batch: Batch, hour: Ints, period: Ints, his: list[Ints] | None) -> Runs:
    """Folds a batch. `hour` and `period` are each reading's windows, `his` its `hi` per kind of window."""
    order = np.lexsort((batch.at, batch.key))
    key, hour, period = batch.key[order], hour[order], period[order]
    changes = (key[1:] != key[:-1]) | (hour[1:] != hour[:-1]) | (period[1:] != period[:-1])
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    fold = batch.fold[order]
    limbs = [limb[order] for limb in batch.limbs()]
    if his is None:
        folded = [_folded(limbs, fold, starts)] * 3
    else:
        folded = [_folded([hi[order], *limbs[1:]], fold, starts) for hi in his]
    cuts = np.append(starts, len(order))
    return Runs(
        order=order,
        cuts=cuts,
        first=order[starts],
        key=key[starts],
        fold=fold[starts],
        limbs=folded,
        last_at=batch.at[order[cuts[1:] - 1]],
        late=_counted(batch.late, order, starts),
        corrected=_counted(batch.corrected, order, starts),
    )


def add(table: Table, runs: Runs, windows: list[tuple[int, Ints]]) -> Touched:
    """Adds runs to their windows. `windows` are kinds of window with the start of each run's window."""
    words = [window_key(runs.key, window, start) for window, start in windows]
    firsts = [np.concatenate(([0], np.flatnonzero(word[1:] != word[:-1]) + 1)) for word in words]
    folded = [
        _folded(runs.limbs[window], runs.fold, first)
        for (window, _), first in zip(windows, firsts, strict=True)
    ]
    limbs = [np.concatenate(parts) for parts in zip(*folded, strict=True)]
    ends = np.concatenate([np.append(first[1:], len(runs.key)) for first in firsts])
    first = np.concatenate(firsts)
    rows, new = table.claim(np.concatenate([word[at] for word, at in zip(words, firsts, strict=True)]))

    columns = table.columns
    for name in FRACTIONS[: len(limbs) - 1]:
        if name not in columns:
            table.add_column(name, np.int64)
    names = ["hi", *(name for name in FRACTIONS if name in columns)]
    nothing = np.zeros(len(rows), np.int64)
    before = [columns[name][rows] for name in names]
    as_of, corrected = columns["as_of"][rows], columns["corrected"][rows].astype(np.int64)
    limbs += [nothing] * (len(names) - len(limbs))
    last_at = runs.last_at[ends - 1]
    totals = _merged(before, limbs, runs.fold[first], last_at >= as_of)
    assert totals[0].max() < TOTAL_MAX, "a total outgrew its column"
    for name, limb in zip(names, totals, strict=True):
        columns[name][rows] = limb
    columns["events"][rows] += (runs.cuts[ends] - runs.cuts[first]).astype(np.uint32)
    for name, counts in (("late", runs.late), ("corrected", runs.corrected)):
        if counts is not None:
            so_far = np.concatenate(([0], np.cumsum(counts)))
            columns[name][rows] += (so_far[ends] - so_far[first]).astype(np.uint32)
    columns["as_of"][rows] = np.maximum(as_of, last_at)
    columns["dirty"][rows] = UNSAVED | UNSENT
    hi, mid, lo = before + [nothing] * (3 - len(before))
    starts = np.append(runs.cuts[first], len(runs.order))
    return Touched(rows, new, runs.first[first], runs.order, starts, hi, mid, lo, as_of, corrected)


def add_amount(table: Table, word: Words, amount: int) -> tuple[int, bool]:
    """Adds an amount, times 10²⁴ and perhaps negative, to one window that adds up. Its row, and whether it is new."""
    rows, new = table.claim(word)
    row, columns = int(rows[0]), table.columns
    before = [int(columns[name][row]) if name in columns else 0 for name in ("hi", *FRACTIONS)]
    limbs = split(joined(*before) + amount)
    assert abs(limbs[0]) < TOTAL_MAX, "a total outgrew its column"
    for name, limb in zip(("hi", *FRACTIONS), limbs, strict=True):
        if limb and name not in columns:
            table.add_column(name, np.int64)
        if name in columns:
            columns[name][row] = limb
    columns["dirty"][row] = UNSAVED | UNSENT
    return row, bool(new[0])


def _counted(flags: Flags, order: Ints, starts: Ints) -> Ints | None:
    return np.add.reduceat(flags[order].astype(np.int64), starts) if flags.any() else None


def _folded(limbs: Limbs, fold: Ints, starts: Ints) -> Limbs:
    """Neighbours from each start to the next, made one by their kind of fold. Sums are not carried."""
    if len(starts) == len(fold):
        return limbs
    folded = [np.add.reduceat(limb, starts) for limb in limbs]
    kinds = fold[starts]
    if not kinds.any():
        return folded
    ends = np.append(starts[1:], len(fold))
    last = np.flatnonzero(kinds == LAST)
    for total, limb in zip(folded, limbs, strict=True):
        total[last] = limb[ends[last] - 1]
    greatest = np.flatnonzero(kinds == MAX)
    if not len(greatest):
        return folded
    if any(total[greatest].any() for total in folded[1:]):
        for i in greatest.tolist():
            values = zip(*(limb[starts[i] : ends[i]].tolist() for limb in limbs), strict=True)
            for total, part in zip(folded, max(values), strict=True):
                total[i] = part
    else:
        folded[0][greatest] = np.maximum.reduceat(limbs[0], starts)[greatest]
    return folded


def _merged(before: Limbs, limbs: Limbs, fold: Ints, newer: Flags) -> Limbs:
    """Totals as they stood and what came, made one by their kind of fold."""
    totals = [old + limb for old, limb in zip(before, limbs, strict=True)]
    if fold.any():
        # From the last limb to the first, so that the highest one decides.
        greater = np.zeros(len(fold), np.bool_)
        for old, limb in zip(reversed(before), reversed(limbs), strict=True):
            greater = (limb > old) | ((limb == old) & greater)
        taken = np.where(fold == MAX, greater, newer)
        for total, old, limb in zip(totals, before, limbs, strict=True):
            total[fold != ADD] = np.where(taken, limb, old)[fold != ADD]
    carry(totals)
    return totals
