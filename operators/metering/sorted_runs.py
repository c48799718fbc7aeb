"""Sorted runs: remembered identities that no longer change, in sorted columns without an index, searched by bisection.

An identity has 28 bytes: two words of digest, a fingerprint, the hour in which it was last seen, and its customer.
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
"""The customer of an identity that was stored by a version which did not record customers."""


class Rows(NamedTuple):
    """Columns of remembered identities, in any order.

    `mark` is a fingerprint of name and data, `seen` an hour since the epoch (UTC), `customer` a row of the key index.
    """

    lo: Words
    hi: Words
    mark: Halves
    seen: Halves
    customer: Halves

    def select(self, rows: Ints | NDArray[np.bool_] | slice) -> "Rows":
        """Return these rows."""
        return Rows(self.lo[rows], self.hi[rows], self.mark[rows], self.seen[rows], self.customer[rows])


def concatenate_rows(parts: Iterable[Rows]) -> Rows:
    """Return all rows, one part after the other."""
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
        """The memory held, in bytes."""
        return sum(column.nbytes for column in self.rows)

    @property
    def is_scattered(self) -> bool:
        """Whether half of the run's rows in the journal were dropped, or the run lies in many streams for its size."""
        streams = len(self.streams)
        return 2 * len(self) < self.stored or (streams > STREAMS_MAX and self.stored < streams * STREAM_ROWS)

    def keep(self, kept: NDArray[np.bool_]) -> "Run":
        """Return a run with the marked rows alone; the journal still holds all rows."""
        return Run(self.rows.select(kept), self.streams, self.stored)

    def find(self, lo: Words, hi: Words, since: Ints) -> tuple[Ints, Ints]:
        """Return which of these identities were seen in the hour `since` or later, and the row of each."""
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
        """Return the row of one identity, searching from the first row with this `lo`; -1 if there is none."""
        while at < len(self) and self.rows.lo[at] == lo:
            if self.rows.hi[at] == hi:
                return at
            at += 1
        return -1


def merge_runs(runs: list[Run]) -> Run:
    """Return neighbouring runs as one."""
    rows = concatenate_rows(run.rows for run in runs)
    streams = [stream for run in runs for stream in run.streams]
    return Run(sort_by_digest(rows), streams, sum(run.stored for run in runs))


def sort_by_digest(rows: Rows) -> Rows:
    """Return the rows by ascending `lo`, of each identity only the one that was seen latest."""
    rows = rows.select(np.argsort(rows.lo))
    if not (rows.lo[1:] == rows.lo[:-1]).any():
        return rows
    rows = rows.select(np.lexsort((rows.seen, rows.hi, rows.lo)))
    is_last = np.append((rows.lo[1:] != rows.lo[:-1]) | (rows.hi[1:] != rows.hi[:-1]), True)
    return rows.select(is_last)
