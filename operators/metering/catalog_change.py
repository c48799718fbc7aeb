"""Catalog changes: how the windows that a shard holds follow a new catalog.

A window is identified by its start; its end is looked up. If its start is a boundary of the catalog in force, the
window ends where that catalog says, so it continues, or ends sooner, when its end moves. If its start is no longer a
boundary, no event falls into the window, and it keeps its end.

The column `end` of a table is 0 where the zone determines the end of a bucket. A table of buckets gets the column only
when one of its buckets keeps an end of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.key_index import KeyIndex, find_bucket_bounds
from tidegate.operators.metering.windows import (
    DAY_WINDOW,
    PERIOD_WINDOW,
    UNSAVED,
    UNSENT,
    WINDOW_NAMES,
    Flags,
    key_of,
    replace_key,
    start_of,
    unpack_window,
    window_of,
)
from tidegate.operators.model.periods import DAY, HOUR, MIN_AT
from tidegate.operators.model.periods import get_buckets as buckets_of
from tidegate.operators.model.records import Window
from tidegate.operators.model.wire import format_instant

# How long a period is held past its end and the lateness, in lengths of the period and in µs. So a month that becomes
# a quarter or a year, or an hour that becomes a day, continues from its total.
LENGTHS_HELD, HELD_MAX = 31, 366 * DAY
# A bucket ends within this time of its start in any zone.
HOUR_REACH, DAY_REACH = HOUR, 2 * DAY
EXAMPLES_MAX = 100

BOUNDARIES = "boundaries"
"""The kind of the note that a shard writes where a catalog version moved windows."""


class PreviousBoundaries(NamedTuple):
    """The boundaries that were in force when the windows were last updated.

    `zones[zone[row]]` is the zone of a customer row, unknown where `zone` is -1. `moved` marks customers whose periods
    may have changed.
    """

    zones: Sequence[str]
    zone: Ints
    moved: Flags


class WindowMove(NamedTuple):
    """A window with its end before and after.

    Both are equal if its start is no longer a boundary and it keeps its end.
    """

    customer: str
    window: Window
    start: int
    was: int
    end: int


class WindowMoves(NamedTuple):
    """The effect of a catalog: the number of windows with a new end, the number of open periods cut off, and examples.

    A window is counted once for all meters.
    """

    moved: int = 0
    cut_off: int = 0
    examples: tuple[WindowMove, ...] = ()


class _MovedRows(NamedTuple):
    """Rows of a table with their ends before and after, and whether their start is a boundary of the new catalog."""

    rows: Ints
    was: Ints
    end: Ints
    is_boundary: Flags


def find_ends(table: Table, rows: Ints, key_index: KeyIndex) -> Ints:
    """Return the present end of each row's window."""
    words = table.keys[0][rows]
    ends = table.columns["end"][rows] if "end" in table.columns else np.zeros(len(rows), np.int64)
    unset = np.flatnonzero(ends == 0)
    if len(unset):
        words = words[unset]
        customer, start = key_index.key_customer.values[key_of(words)], start_of(words)
        ends[unset] = key_index.find_bucket_bounds(customer, start, window_of(words) == DAY_WINDOW)[1]
    return ends


def capture_boundaries(old: KeyIndex, new: KeyIndex) -> PreviousBoundaries:
    """Return the boundaries of the old index that the new index of the same customers replaces."""
    return PreviousBoundaries(old.zone_names, old.zone, new.find_changed_periods(old))


def move_windows(
    periods: Table, buckets: Table, key_index: KeyIndex, was: PreviousBoundaries, now: Ints
) -> tuple[WindowMoves, bool]:
    """Move the ends of all windows to the key index's catalog; return the moves and whether any zone changed.

    `now` is given per customer. Windows whose end moved are marked as changed.
    """
    zone = _find_changed_zones(key_index, was)
    found = [
        (periods, _move_periods(periods, key_index, was.moved)),
        (buckets, _move_buckets(buckets, key_index, was, zone)),
    ]
    for table, each in found:
        moved = each.rows[each.end != each.was]
        table.columns["dirty"][moved] |= UNSAVED | UNSENT
    return _summarize(found, key_index, now), bool(zone.any())


def is_reachable(words: NDArray[np.uint64], key_index: KeyIndex) -> Flags:
    """Return whether an event may fall into each period under the catalog in force."""
    start = start_of(words)
    begins, _ = key_index.find_period_bounds(
        key_index.key_customer.values[key_of(words)], np.maximum(start, MIN_AT)
    )
    reachable: Flags = begins == start
    return reachable


def find_held_until(table: Table, key_index: KeyIndex, now: Ints) -> Ints:
    """Return until when each window is held, not including the lateness. `now` is each row's now minus the lateness."""
    words = table.keys[0][: len(table)]
    start = start_of(words)
    if "next_up" not in table.columns:
        return start + np.where(window_of(words) == DAY_WINDOW, DAY_REACH, HOUR_REACH)
    end = table.columns["end"][: len(table)]
    length = end - start
    until = end + np.maximum(length, np.minimum(LENGTHS_HELD * length, HELD_MAX))
    # A period without end that no event can reach any more would be held for ever.
    idle = table.columns["as_of"][: len(table)] + HELD_MAX
    idlers = np.flatnonzero((until > now) & (idle <= now))
    if len(idlers):
        idlers = idlers[~is_reachable(words[idlers], key_index)]
        until[idlers] = idle[idlers]
    return until


def _find_changed_zones(key_index: KeyIndex, was: PreviousBoundaries) -> Flags:
    numbers = {name: number for number, name in enumerate(key_index.zone_names)}
    same = np.array([*(numbers.get(name, -1) for name in was.zones), -1], np.int64)
    other: Flags = (was.zone >= 0) & (same[was.zone] != key_index.zone)
    return other


def _move_periods(periods: Table, key_index: KeyIndex, moved: Flags) -> _MovedRows:
    words = periods.keys[0][: len(periods)]
    rows = np.flatnonzero(moved[key_index.key_customer.values[key_of(words)]])
    start, was = start_of(words[rows]), periods.columns["end"][rows]
    customer = key_index.key_customer.values[key_of(words[rows])]
    # No event is older than MIN_AT, so the period of MIN_AT stands for one that begins earlier.
    begins, ends = key_index.find_period_bounds(customer, np.maximum(start, MIN_AT))
    is_boundary = begins == start
    end = np.where(is_boundary, ends, was)
    periods.columns["end"][rows] = end
    return _MovedRows(rows, was, end, is_boundary)


def _move_buckets(table: Table, key_index: KeyIndex, before: PreviousBoundaries, other: Flags) -> _MovedRows:
    words = table.keys[0][: len(table)]
    rows = np.flatnonzero(other[key_index.key_customer.values[key_of(words)]])
    if not len(rows):
        none = np.empty(0, np.int64)
        return _MovedRows(rows, none, none, none.astype(np.bool_))
    words = words[rows]
    customer, start, is_day = (
        key_index.key_customer.values[key_of(words)],
        start_of(words),
        window_of(words) == DAY_WINDOW,
    )
    zones = [buckets_of(name) for name in before.zones]
    was = find_bucket_bounds(zones, before.zone[customer], start, is_day)[1]
    if "end" in table.columns:
        own = table.columns["end"][rows]
        was = np.where(own, own, was)
    begins, ends = key_index.find_bucket_bounds(customer, start, is_day)
    is_boundary = begins == start
    if "end" not in table.columns and not is_boundary.all():
        table.add_column("end", np.int64)
    if "end" in table.columns:
        table.columns["end"][rows] = np.where(is_boundary, 0, was)
        table.columns["dirty"][rows] |= UNSAVED
    return _MovedRows(rows, was, np.where(is_boundary, ends, was), is_boundary)


def _summarize(found: list[tuple[Table, _MovedRows]], key_index: KeyIndex, now: Ints) -> WindowMoves:
    moved = cut_off = 0
    examples: list[WindowMove] = []
    for table, each in found:
        words = table.keys[0][each.rows]
        customer = key_index.key_customer.values[key_of(words)]
        is_moved = each.end != each.was
        is_cut_off = ~each.is_boundary & (each.was > now[customer]) & (window_of(words) == PERIOD_WINDOW)
        chosen = np.flatnonzero(is_moved | is_cut_off)
        _, first = np.unique(replace_key(words[chosen], customer[chosen]), return_index=True)
        chosen = chosen[first]
        moved += int(np.count_nonzero(is_moved[chosen]))
        cut_off += int(np.count_nonzero(is_cut_off[chosen]))
        for row in chosen[: EXAMPLES_MAX - len(examples)].tolist():
            word, name = int(words[row]), key_index.names[int(customer[row])]
            window, (_, start) = WINDOW_NAMES[word >> 32 & 3], unpack_window(word)
            examples.append(WindowMove(name, window, start, int(each.was[row]), int(each.end[row])))
    return WindowMoves(moved, cut_off, tuple(examples))


def render_moves(moves: WindowMoves) -> dict[str, object]:
    """Return the moves as a note has them, with times in RFC 3339."""
    examples = [
        {
            "customer": move.customer,
            "window": move.window,
            "start": format_instant(move.start),
            "was": format_instant(move.was),
            "end": format_instant(move.end),
        }
        for move in moves.examples
    ]
    return {"moved": moves.moved, "cut_off": moves.cut_off, "examples": examples}
