"""What a changed catalog does to the windows a shard holds.

A window is identified by its start. Its end is looked up: where its start is a boundary of the catalog in force, it
ends where that catalog says, so a window goes on, or ends sooner, when its end moves. Where its start is no boundary
any more no event falls into it, and it keeps the end it had.

A table's column `end` is 0 where the zone says when a bucket ends; a table of buckets has the column only once one of
them keeps an end of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.key_index import Roster, bucket_bounds
from tidegate.operators.metering.windows import (
    DAY_WINDOW,
    PERIOD_WINDOW,
    UNSAVED,
    UNSENT,
    WINDOW_NAMES,
    Flags,
    key_of,
    place_of,
    start_of,
    unpacked,
    window_of,
)
from tidegate.operators.model.periods import DAY, HOUR, MIN_AT
from tidegate.operators.model.periods import buckets as buckets_of
from tidegate.operators.model.records import Window
from tidegate.operators.model.wire import instant

# How long a period is held past its end, and the lateness: so a month that becomes a quarter or a year, or an hour
# that becomes a day, goes on from what it had.
LENGTHS_HELD, HELD_MAX = 31, 366 * DAY
# From a bucket's start, whatever the zone becomes.
HOUR_REACH, DAY_REACH = HOUR, 2 * DAY
EXAMPLES_MAX = 100

BOUNDARIES = "boundaries"
"""The kind of the note that a shard writes where a catalog version moved windows."""


class Before(NamedTuple):
    """What was in force when windows were last looked at.

    `zones[zone[row]]` is the zone of a customer row, which is unknown where `zone` is -1. `moved` marks customers whose
    periods may be others now.
    """

    zones: Sequence[str]
    zone: Ints
    moved: Flags


class Move(NamedTuple):
    """A window, and its end before and now. Equal where its start is no boundary any more and it keeps its end."""

    customer: str
    window: Window
    start: int
    was: int
    end: int


class Moves(NamedTuple):
    """What a catalog did: how many windows have another end, how many open periods were cut off, and the first ones.

    Windows are counted once for all meters.
    """

    moved: int = 0
    cut_off: int = 0
    examples: tuple[Move, ...] = ()


class _Found(NamedTuple):
    """Rows of a table, with their ends before and now, and whether their start is a boundary now."""

    rows: Ints
    was: Ints
    end: Ints
    is_boundary: Flags


def ends_of(table: Table, rows: Ints, roster: Roster) -> Ints:
    """Return the present end of each row's window."""
    words = table.keys[0][rows]
    ends = table.columns["end"][rows] if "end" in table.columns else np.zeros(len(rows), np.int64)
    unset = np.flatnonzero(ends == 0)
    if len(unset):
        words = words[unset]
        customer, start = roster.key_customer.values[key_of(words)], start_of(words)
        ends[unset] = roster.bucket_bounds(customer, start, window_of(words) == DAY_WINDOW)[1]
    return ends


def before(old: Roster, new: Roster) -> Before:
    """Compare two rosters of the same customers."""
    return Before(old.zone_names, old.zone, new.has_other_periods(old))


def follow(periods: Table, buckets: Table, roster: Roster, was: Before, now: Ints) -> tuple[Moves, bool]:
    """Move the ends of all windows to where the roster's catalog has them. Also return whether any zone changed.

    `now` is each customer's. Windows whose end moved count as changed.
    """
    zone = _other_zones(roster, was)
    found = [
        (periods, _of_periods(periods, roster, was.moved)),
        (buckets, _of_buckets(buckets, roster, was, zone)),
    ]
    for table, each in found:
        moved = each.rows[each.end != each.was]
        table.columns["dirty"][moved] |= UNSAVED | UNSENT
    return _moves(found, roster, now), bool(zone.any())


def is_reachable(words: NDArray[np.uint64], roster: Roster) -> Flags:
    """Whether an event may fall into each period, as far as the catalog in force goes."""
    start = start_of(words)
    begins, _ = roster.period_bounds(roster.key_customer.values[key_of(words)], np.maximum(start, MIN_AT))
    reachable: Flags = begins == start
    return reachable


def held_until(table: Table, roster: Roster, now: Ints) -> Ints:
    """Return until when each window is held, to which the lateness is to be added. `now` is each row's, less that."""
    words = table.keys[0][: len(table)]
    start = start_of(words)
    if "next_up" not in table.columns:
        return start + np.where(window_of(words) == DAY_WINDOW, DAY_REACH, HOUR_REACH)
    end = table.columns["end"][: len(table)]
    length = end - start
    until = end + np.maximum(length, np.minimum(LENGTHS_HELD * length, HELD_MAX))
    # A period that does not end, and into which nothing falls any more, would be held for ever.
    idle = table.columns["as_of"][: len(table)] + HELD_MAX
    idlers = np.flatnonzero((until > now) & (idle <= now))
    if len(idlers):
        idlers = idlers[~is_reachable(words[idlers], roster)]
        until[idlers] = idle[idlers]
    return until


def _other_zones(roster: Roster, was: Before) -> Flags:
    numbers = {name: number for number, name in enumerate(roster.zone_names)}
    same = np.array([*(numbers.get(name, -1) for name in was.zones), -1], np.int64)
    other: Flags = (was.zone >= 0) & (same[was.zone] != roster.zone)
    return other


def _of_periods(periods: Table, roster: Roster, moved: Flags) -> _Found:
    words = periods.keys[0][: len(periods)]
    rows = np.flatnonzero(moved[roster.key_customer.values[key_of(words)]])
    start, was = start_of(words[rows]), periods.columns["end"][rows]
    customer = roster.key_customer.values[key_of(words[rows])]
    # No event is older than MIN_AT, so a period that begins before holds it.
    begins, ends = roster.period_bounds(customer, np.maximum(start, MIN_AT))
    is_boundary = begins == start
    end = np.where(is_boundary, ends, was)
    periods.columns["end"][rows] = end
    return _Found(rows, was, end, is_boundary)


def _of_buckets(table: Table, roster: Roster, before: Before, other: Flags) -> _Found:
    words = table.keys[0][: len(table)]
    rows = np.flatnonzero(other[roster.key_customer.values[key_of(words)]])
    if not len(rows):
        none = np.empty(0, np.int64)
        return _Found(rows, none, none, none.astype(np.bool_))
    words = words[rows]
    customer, start, is_day = (
        roster.key_customer.values[key_of(words)],
        start_of(words),
        window_of(words) == DAY_WINDOW,
    )
    zones = [buckets_of(name) for name in before.zones]
    was = bucket_bounds(zones, before.zone[customer], start, is_day)[1]
    if "end" in table.columns:
        own = table.columns["end"][rows]
        was = np.where(own, own, was)
    begins, ends = roster.bucket_bounds(customer, start, is_day)
    is_boundary = begins == start
    if "end" not in table.columns and not is_boundary.all():
        table.add_column("end", np.int64)
    if "end" in table.columns:
        table.columns["end"][rows] = np.where(is_boundary, 0, was)
        table.columns["dirty"][rows] |= UNSAVED
    return _Found(rows, was, np.where(is_boundary, ends, was), is_boundary)


def _moves(found: list[tuple[Table, _Found]], roster: Roster, now: Ints) -> Moves:
    moved = cut_off = 0
    examples: list[Move] = []
    for table, each in found:
        words = table.keys[0][each.rows]
        customer = roster.key_customer.values[key_of(words)]
        is_moved = each.end != each.was
        is_cut_off = ~each.is_boundary & (each.was > now[customer]) & (window_of(words) == PERIOD_WINDOW)
        chosen = np.flatnonzero(is_moved | is_cut_off)
        _, first = np.unique(place_of(words[chosen], customer[chosen]), return_index=True)
        chosen = chosen[first]
        moved += int(np.count_nonzero(is_moved[chosen]))
        cut_off += int(np.count_nonzero(is_cut_off[chosen]))
        for row in chosen[: EXAMPLES_MAX - len(examples)].tolist():
            word, name = int(words[row]), roster.names[int(customer[row])]
            window, (_, start) = WINDOW_NAMES[word >> 32 & 3], unpacked(word)
            examples.append(Move(name, window, start, int(each.was[row]), int(each.end[row])))
    return Moves(moved, cut_off, tuple(examples))


def moves_body(moves: Moves) -> dict[str, object]:
    """Return the moves as a note has them, times in RFC 3339."""
    examples = [
        {
            "customer": move.customer,
            "window": move.window,
            "start": instant(move.start),
            "was": instant(move.was),
            "end": instant(move.end),
        }
        for move in moves.examples
    ]
    return {"moved": moves.moved, "cut_off": moves.cut_off, "examples": examples}
