"""Remembered identities that no longer change, in sorted columns: a table without an index, searched by bisection.

28 bytes an identity: two words of digest, a fingerprint, the hour until which it counts as fresh, and its customer.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.hash_table import Words
from tidegate.operators.events.chunk import Ints

Halves = NDArray[np.uint32]

STREAMS_MAX = 16
STREAM_ROWS = 1 << 14

NOBODY = 2**32 - 1
"""The customer of an identity that a version remembered which did not note customers."""


class Rows(NamedTuple):
    """Columns of remembered identities, in any order.

    `mark` fingerprints name and data, `seen` is an hour since the epoch (UTC), `customer` a row of the roster.
    """

    lo: Words
    hi: Words
    mark: Halves
    seen: Halves
    customer: Halves

    def part(self, rows: Ints | NDArray[np.bool_] | slice) -> "Rows":
        """These rows alone."""
        return Rows(self.lo[rows], self.hi[rows], self.mark[rows], self.seen[rows], self.customer[rows])


def joined(parts: Iterable[Rows]) -> Rows:
    """All rows, one part after the other."""
    return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class Run:
    """Identities by ascending `lo`, each once.

    `streams` are the journal's streams that hold the rows, and `stored` is how many rows those have.
    """

    def __init__(self, rows: Rows, streams: list[str], stored: int) -> None:
        self.rows = rows
        self.first = int(rows.seen.min(initial=NOBODY))
        self.streams, self.stored = streams, stored

    def __len__(self) -> int:
        return len(self.rows.lo)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(column.nbytes for column in self.rows)

    @property
    def is_scattered(self) -> bool:
        """Whether half of what the journal holds of it was dropped, or it lies in many streams for its size."""
        streams = len(self.streams)
        return 2 * len(self) < self.stored or (streams > STREAMS_MAX and self.stored < streams * STREAM_ROWS)

    def left(self, kept: NDArray[np.bool_]) -> "Run":
        """What is left of it with these rows alone; the journal still holds them all."""
        return Run(self.rows.part(kept), self.streams, self.stored)

    def find(self, lo: Words, hi: Words, since: Ints) -> tuple[Ints, Ints]:
        """Which of these identities were seen in the hour `since` or later, and the row of each."""
        at = np.minimum(self.rows.lo.searchsorted(lo), len(self) - 1)
        which = np.flatnonzero(self.rows.lo[at] == lo)
        if not len(which):
            return which, which
        rows = at[which]
        for i in np.flatnonzero(self.rows.hi[rows] != hi[which]).tolist():
            rows[i] = self._seek(lo[which[i]], hi[which[i]], int(rows[i]))
        known = (rows >= 0) & (self.rows.seen[rows] >= since[which])
        return which[known], rows[known]

    def _seek(self, lo: np.uint64, hi: np.uint64, at: int) -> int:
        """The row of one identity, from the first of those whose `lo` is alike; -1 where there is none."""
        while at < len(self) and self.rows.lo[at] == lo:
            if self.rows.hi[at] == hi:
                return at
            at += 1
        return -1


def merged(runs: list[Run]) -> Run:
    """Neighbouring runs as one."""
    rows = joined(run.rows for run in runs)
    streams = [stream for run in runs for stream in run.streams]
    return Run(by_digest(rows), streams, sum(run.stored for run in runs))


def by_digest(rows: Rows) -> Rows:
    """The rows by ascending `lo`; of one identity only the one that was seen latest."""
    rows = rows.part(np.argsort(rows.lo))
    if not (rows.lo[1:] == rows.lo[:-1]).any():
        return rows
    rows = rows.part(np.lexsort((rows.seen, rows.hi, rows.lo)))
    is_last = np.append((rows.lo[1:] != rows.lo[:-1]) | (rows.hi[1:] != rows.hi[:-1]), True)
    return rows.part(is_last)
