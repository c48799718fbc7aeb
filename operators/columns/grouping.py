"""Grouping rows by small integers, cheaper than sorting them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_SPAN_MAX = 1 << 14


def distinct(values: Ints) -> list[int]:
    """The values that occur, ascending."""
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max())
    if low == high:
        return [low]
    if high - low >= _SPAN_MAX:
        found: list[int] = np.unique(values).tolist()
        return found
    return (np.flatnonzero(np.bincount(values - low)) + low).tolist()


def groups(values: Ints) -> Iterator[tuple[int, slice | Ints]]:
    """Each value that occurs, and its rows; all of them as one slice where there is only one value."""
    found = distinct(values)
    if len(found) == 1:
        yield found[0], slice(None)
        return
    for value in found:
        yield value, np.flatnonzero(values == value)
