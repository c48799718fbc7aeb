"""Group rows by small integers, at a lower cost than sorting them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_SPAN_MAX = 1 << 14


def find_distinct(values: Ints) -> list[int]:
    """Return the distinct values, ascending."""
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max())
    if low == high:
        return [low]
    if high - low >= _SPAN_MAX:
        found: list[int] = np.unique(values).tolist()
        return found
    return (np.flatnonzero(np.bincount(values - low)) + low).tolist()


def group_rows(values: Ints) -> Iterator[tuple[int, slice | Ints]]:
    """Yield each distinct value and its rows; all rows as one slice if there is only one value."""
    found = find_distinct(values)
    if len(found) == 1:
        yield found[0], slice(None)
        return
    for value in found:
        yield value, np.flatnonzero(values == value)
