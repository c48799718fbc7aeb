"""Remembered identities, a table per event hour, so that old hours are neither touched nor written again.

Each entry is 20 to 24 bytes of columns and 8 to 12 of index (operators/table.py). Looking a chunk up is a few numpy
calls per hour that it touches; only where an identity turns up across an hour's edge do events go one by one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.chunk import Ints
from operators.groups import distinct, groups
from operators.periods import HOUR
from operators.table import Table, Words

Marks = NDArray[np.uint32]
Verdicts = NDArray[np.int8]

NEW, DUPLICATE, CONFLICT = 0, 1, 2

EDGE = HOUR // 4  # how far from the neighbouring hour an event is still looked for there


class Identities(NamedTuple):
    """Identities in two words, fingerprints of the rest, and event times (µs), in order of arrival.

    `oldest` is the earliest time that the event's customer could still be accepted with (µs). Hours wholly before
    it count as forgotten, also while they are still there, so that verdicts do not depend on when they are dropped.
    """

    lo: Words
    hi: Words
    mark: Marks
    at: Ints
    oldest: Ints

    def part(self, rows: Ints | slice) -> "Identities":
        """These rows alone."""
        return Identities(self.lo[rows], self.hi[rows], self.mark[rows], self.at[rows], self.oldest[rows])


class Memory:
    """The identities of one shard's accepted events, by event hour (hours since the epoch, UTC)."""

    def __init__(self) -> None:
        self.hours: dict[int, Table] = {}

    def __len__(self) -> int:
        return sum(map(len, list(self.hours.values())))

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(table.nbytes for table in list(self.hours.values()))

    def settle(self, events: Identities) -> Verdicts:
        """NEW, DUPLICATE or CONFLICT for each event; the new ones are remembered."""
        verdicts = np.empty(len(events.lo), np.int8)
        start = 0
        for straddler in self._straddlers(events):
            verdicts[start:straddler] = self._claim(events.part(slice(start, straddler)))
            verdicts[straddler] = self._settle_one(events.part(slice(straddler, straddler + 1)))
            start = straddler + 1
        verdicts[start:] = self._claim(events.part(slice(start, None)) if start else events)
        return verdicts

    def forget(self, hour: int) -> None:
        """Drops an hour of which no event can be accepted any more."""
        del self.hours[hour]

    def table(self, hour: int) -> Table:
        """The hour's table, empty if nothing was remembered there."""
        found = self.hours.get(hour)
        if found is None:
            # What is remembered of an event may cost 40 bytes, and most of them are here.
            found = self.hours[hour] = Table(2, {"mark": np.uint32}, growth=1.2)
        return found

    def _claim(self, events: Identities) -> Verdicts:
        """Verdicts by each event's own hour alone."""
        verdicts = np.empty(len(events.lo), np.int8)
        for hour, rows in groups(events.at // HOUR):
            same_hour = events.part(rows)
            table = self.table(hour)
            places, new = table.claim(same_hour.lo, same_hour.hi)
            marks = table.columns["mark"]
            marks[places[new]] = same_hour.mark[new]
            found = np.where(marks[places] == same_hour.mark, DUPLICATE, CONFLICT)
            verdicts[rows] = np.where(new, NEW, found)
        return verdicts

    def _settle_one(self, event: Identities) -> int:
        hour, past = divmod(int(event.at[0]), HOUR)
        own = self.hours.get(hour)
        if own is None or own.find(event.lo, event.hi)[0] < 0:
            for neighbour in self._neighbours(hour, past, int(event.oldest[0])):
                if neighbour.find(event.lo, event.hi)[0] >= 0:
                    return CONFLICT
        return int(self._claim(event)[0])

    def _neighbours(self, hour: int, past: int, oldest: int) -> Iterator[Table]:
        if past < EDGE and hour * HOUR > oldest and hour - 1 in self.hours:
            yield self.hours[hour - 1]
        if past >= HOUR - EDGE and hour + 1 in self.hours:
            yield self.hours[hour + 1]

    def _straddlers(self, events: Identities) -> list[int]:
        """Events near an hour's edge whose identity is, or may by then be, remembered beyond it."""
        past = events.at % HOUR
        hour = events.at // HOUR
        found = np.zeros(len(past), np.bool_)
        begun, ending = (past < EDGE) & (hour * HOUR > events.oldest), past >= HOUR - EDGE
        near = begun | ending
        if not near.any():
            return []
        for side, close in ((-1, begun), (1, ending)):
            for own in distinct(hour[close]):
                table = self.hours.get(own + side)
                if table is not None and len(table):
                    rows = np.flatnonzero(close & (hour == own))
                    found[rows] |= table.find(events.lo[rows], events.hi[rows]) >= 0
        if hour.min() != hour.max():
            # Within the chunk: every event of an identity that turns up in more than one hour.
            order = np.argsort(events.lo, kind="stable")
            lo, hours = events.lo[order], hour[order]
            groups = np.flatnonzero(np.concatenate(([True], lo[1:] != lo[:-1])))
            spread = np.maximum.reduceat(hours, groups) != np.minimum.reduceat(hours, groups)
            found[order] |= np.repeat(spread, np.diff(groups, append=len(lo)))
            found &= near
        return np.flatnonzero(found).tolist()
