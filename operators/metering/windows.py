"""Windows: totals per key and window in flat columns, changed a batch at a time.

A key is a row number that the shard assigns to each pair of customer and meter. A batch is sorted once by key and event
time and folded into runs: neighbours of one key, hour and period. Hours, days and periods all grow with time, so each
of their windows is a few neighbouring runs, and the work per window is done on runs instead of readings.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.hash_table import Table, Words
from tidegate.operators.columns.quantity import (
    HI_MAX,
    LIMBS,
    UNIT,
    carry,
    join_limbs,
    may_overflow,
    split_total,
)
from tidegate.operators.events.chunk import Ints
from tidegate.operators.model.aggregates import FOLD_CODES
from tidegate.operators.model.periods import SECOND
from tidegate.operators.model.records import Window

HOUR_WINDOW, DAY_WINDOW, PERIOD_WINDOW = 0, 1, 2
WINDOW_NAMES: tuple[Window, ...] = ("hour", "day", "period")

UNSAVED, UNSENT = np.uint8(1), np.uint8(2)

# Limbs beside `hi` and wider counts are added to a table once a row needs them.
COLUMNS = {
    "hi": np.int64,
    "events": np.uint32,
    "late": np.uint32,
    "corrected": np.uint32,
    "as_of": np.int64,
    "dirty": np.uint8,
}
PERIOD_COLUMNS = {**COLUMNS, "end": np.int64, "next_up": np.int64}

_KEY, _START = 34, 0xFFFFFFFF
KEYS_MAX = 1 << 30
_COUNT_MAX = 0xFFFFFFFF

ADD, GREATEST, LEAST, LATEST = (FOLD_CODES[fold] for fold in ("add", "greatest", "least", "latest"))

Flags = NDArray[np.bool_]
Limbs = dict[str, Ints]
"""Quantities as columns by limb, those that are in use, from the most significant one."""


class Batch(NamedTuple):
    """Readings as columns, in order of arrival. `fold` is a code of FOLD_CODES; `mid` and `lo` may be None."""

    key: Ints
    at: Ints
    fold: Ints
    hi: Ints
    mid: Ints | None
    lo: Ints | None
    late: Flags
    corrected: Flags

    def list_limbs(self) -> Limbs:
        """Return the quantities, with as many limbs as are in use."""
        if self.mid is None:
            return {"hi": self.hi}
        limbs = {"hi": self.hi, "mid": self.mid}
        return limbs if self.lo is None else {**limbs, "lo": self.lo}


class Runs(NamedTuple):
    """A batch folded into runs. `limbs` has the quantities per kind of window, because `unique` counts differ.

    Run i holds the readings `order[cuts[i]:cuts[i + 1]]` of the batch, by event time; `cuts` has one more entry than
    there are runs. `first` is each run's first reading in the batch.
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


class WindowAdjustments(NamedTuple):
    """The adjustments of one window: their number, and their sum times 10²⁴."""

    times: int
    amount: int


class TouchedRows(NamedTuple):
    """Rows that a batch changed, one per window, and their values before.

    The readings of row i are `order[starts[i]:starts[i + 1]]` of the batch. `limbs` are those in use before.
    """

    rows: Ints
    new: Flags
    first: Ints
    order: Ints
    starts: Ints
    limbs: Limbs
    as_of: Ints
    corrected: Ints


def pack_window(key: Ints, window: int, start: Ints) -> Words:
    """Return one 64-bit word for key, kind of window and start: 30 bits, 2 bits, 32 bits of seconds since 1970."""
    packed = (key << _KEY) | (window << 32) | (start // SECOND)
    return packed.view(np.uint64)


def key_of(words: Words) -> Ints:
    """Return the key of each word."""
    return (words >> np.uint64(_KEY)).astype(np.int64)


def unpack_window(word: int) -> tuple[int, int]:
    """Return the key and the start (µs since the epoch) of one word."""
    return word >> _KEY, (word & _START) * SECOND


def replace_key(words: Words, number: Ints) -> Words:
    """Return the words with another number in place of the key.

    With the customer's number, the words are equal for all meters of one window.
    """
    return (words & np.uint64((1 << _KEY) - 1)) | (number.astype(np.uint64) << np.uint64(_KEY))


def window_of(words: Words) -> Ints:
    """Return the kind of window of each word."""
    return ((words >> np.uint64(32)) & np.uint64(3)).astype(np.int64)


def start_of(words: Words) -> Ints:
    """Return the start of each word's window, µs since the epoch."""
    return (words & np.uint64(_START)).astype(np.int64) * SECOND


def fold_batch(batch: Batch, hour: Ints, period: Ints, his: list[Ints] | None) -> Runs:
    """Fold a batch into runs. `hour` and `period` are each reading's windows, `his` its `hi` per kind of window."""
    order = np.lexsort((batch.at, batch.key))
    key, hour, period = batch.key[order], hour[order], period[order]
    changes = (key[1:] != key[:-1]) | (hour[1:] != hour[:-1]) | (period[1:] != period[:-1])
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    fold = batch.fold[order]
    limbs = {name: limb[order] for name, limb in batch.list_limbs().items()}
    split = _split_top if may_overflow(batch.hi) else _keep_limbs
    if his is None:
        folded = [_fold_neighbours(split(limbs, fold), fold, starts)] * 3
    else:
        folded = [_fold_neighbours(split({**limbs, "hi": hi[order]}, fold), fold, starts) for hi in his]
    cuts = np.append(starts, len(order))
    return Runs(
        order=order,
        cuts=cuts,
        first=order[starts],
        key=key[starts],
        fold=fold[starts],
        limbs=folded,
        last_at=batch.at[order[cuts[1:] - 1]],
        late=_count_flags(batch.late, order, starts),
        corrected=_count_flags(batch.corrected, order, starts),
    )


def add_runs(table: Table, runs: Runs, windows: list[tuple[int, Ints]]) -> TouchedRows:
    """Add runs to their windows. `windows` are kinds of window with the start of each run's window."""
    words = [pack_window(runs.key, window, start) for window, start in windows]
    firsts = [np.concatenate(([0], np.flatnonzero(word[1:] != word[:-1]) + 1)) for word in words]
    folded = [
        _fold_neighbours(runs.limbs[window], runs.fold, first)
        for (window, _), first in zip(windows, firsts, strict=True)
    ]
    limbs = {name: np.concatenate([part[name] for part in folded]) for name in folded[0]}
    ends = np.concatenate([np.append(first[1:], len(runs.key)) for first in firsts])
    first = np.concatenate(firsts)
    rows, new = table.claim(np.concatenate([word[at] for word, at in zip(words, firsts, strict=True)]))

    columns = table.columns
    before = _read_limbs(table, rows)
    as_of, corrected = columns["as_of"][rows], columns["corrected"][rows].astype(np.int64)
    last_at = runs.last_at[ends - 1]
    _set_limbs(table, rows, _merge_totals(before, limbs, runs.fold[first], last_at >= as_of, new))
    _add_counts(table, "events", rows, runs.cuts[ends] - runs.cuts[first])
    for name, counts in (("late", runs.late), ("corrected", runs.corrected)):
        if counts is not None:
            so_far = np.concatenate(([0], np.cumsum(counts)))
            _add_counts(table, name, rows, so_far[ends] - so_far[first])
    columns["as_of"][rows] = np.maximum(as_of, last_at)
    columns["dirty"][rows] = UNSAVED | UNSENT
    starts = np.append(runs.cuts[first], len(runs.order))
    return TouchedRows(rows, new, runs.first[first], runs.order, starts, before, as_of, corrected)


def read_total(table: Table, word: Words) -> int:
    """Return the total of one window times 10²⁴, 0 if there is none."""
    (row,) = table.find(word)
    return (
        0
        if row < 0
        else join_limbs(**{name: int(limb[0]) for name, limb in _read_limbs(table, [row]).items()})
    )


def add_amount(table: Table, word: Words, amount: int) -> tuple[int, bool]:
    """Add an amount, times 10²⁴ and possibly negative, to one additive window; return its row and whether it is new."""
    total = read_total(table, word) + amount
    rows, new = table.claim(word)
    _set_limbs(table, rows, {name: np.array([limb]) for name, limb in split_total(total).items() if limb})
    table.columns["dirty"][rows] = UNSAVED | UNSENT
    return int(rows[0]), bool(new[0])


def normalize(table: Table) -> None:
    """Move what is too large for `hi` into `top`, in rows of a version that let `hi` grow further."""
    rows = np.flatnonzero(table.columns["hi"][: len(table)] >= HI_MAX)
    if len(rows):
        limbs = _read_limbs(table, rows)
        carry(limbs)
        _set_limbs(table, rows, limbs)


def _read_limbs(table: Table, rows: Ints | list[int]) -> Limbs:
    return {name: table.columns[name][rows] for name in LIMBS if name in table.columns}


def _set_limbs(table: Table, rows: Ints, limbs: Limbs) -> None:
    """Set the quantities of rows; limbs that are not given are 0."""
    columns = table.columns
    for name in LIMBS:
        if name in limbs and name not in columns:
            table.add_column(name, np.int64)
        if name in columns:
            columns[name][rows] = limbs.get(name, 0)


def _add_counts(table: Table, name: str, rows: Ints, more: Ints) -> None:
    """Add to a column of counts, and widen the column once a count outgrows it."""
    counts = table.columns[name][rows] + more
    if table.columns[name].dtype == np.uint32 and counts.max() > _COUNT_MAX:
        table.columns[name] = table.columns[name].astype(np.int64)
    table.columns[name][rows] = counts


def _count_flags(flags: Flags, order: Ints, starts: Ints) -> Ints | None:
    return np.add.reduceat(flags[order].astype(np.int64), starts) if flags.any() else None


def _keep_limbs(limbs: Limbs, fold: Ints) -> Limbs:
    return limbs


def _split_top(limbs: Limbs, fold: Ints) -> Limbs:
    """Return the same quantities with parts of `hi` small enough to be added up any number of times."""
    top = np.where(fold == ADD, limbs["hi"] // UNIT, 0)
    return {"top": top, **limbs, "hi": limbs["hi"] - top * UNIT}


_EXTREMES: Final[tuple[tuple[int, Callable[[Iterable[Any]], Any], Callable[[Ints, Ints], Ints]], ...]] = (
    (GREATEST, max, np.maximum.reduceat),
    (LEAST, min, np.minimum.reduceat),
)


def _fold_neighbours(limbs: Limbs, fold: Ints, starts: Ints) -> Limbs:
    """Fold neighbours, from each start to the next, into one by their kind of fold. Sums are not carried."""
    if len(starts) == len(fold):
        return limbs
    folded = {name: np.add.reduceat(limb, starts) for name, limb in limbs.items()}
    kinds = fold[starts]
    if (kinds == ADD).all():
        return folded
    ends = np.append(starts[1:], len(fold))
    latest = np.flatnonzero(kinds == LATEST)
    for name, limb in limbs.items():
        folded[name][latest] = limb[ends[latest] - 1]
    for code, extreme, reduceat in _EXTREMES:
        rows = np.flatnonzero(kinds == code)
        if any(total[rows].any() for name, total in folded.items() if name != "hi"):
            for i in rows.tolist():
                values = zip(*(limb[starts[i] : ends[i]].tolist() for limb in limbs.values()), strict=True)
                for total, part in zip(folded.values(), extreme(values), strict=True):
                    total[i] = part
        elif len(rows):
            folded["hi"][rows] = reduceat(limbs["hi"], starts)[rows]
    return folded


def _merge_totals(before: Limbs, limbs: Limbs, fold: Ints, newer: Flags, new: Flags) -> Limbs:
    """Merge totals as they stood with what came, by their fold; `new` marks those that stand for nothing yet."""
    nothing = np.zeros(len(fold), np.int64)
    names = [name for name in LIMBS if name in before or name in limbs]
    pairs = [(before.get(name, nothing), limbs.get(name, nothing)) for name in names]
    totals = {name: old + limb for name, (old, limb) in zip(names, pairs, strict=True)}
    replaced = fold != ADD
    if replaced.any():
        # From the last limb to the first, so that the highest one decides.
        greater = less = np.zeros(len(fold), np.bool_)
        for old, limb in reversed(pairs):
            greater = (limb > old) | ((limb == old) & greater)
            less = (limb < old) | ((limb == old) & less)
        taken = new | np.select([fold == GREATEST, fold == LEAST], [greater, less], newer)
        for total, (old, limb) in zip(totals.values(), pairs, strict=True):
            total[replaced] = np.where(taken, limb, old)[replaced]
    carry(totals)
    return totals
