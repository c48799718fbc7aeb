"""Clocks that only move as far as a stream confirms.

An event moves its clock at most `tolerance` beyond the event before it. So one wrong date, however far ahead, moves
now by the tolerance at most, and a true jump counts from the second event on that agrees with it. An event that carries
the very time of the one before it says nothing new: it may be a retry of the same wrong date.
"""

import numpy as np

from tidegate.operators.events.chunk import Ints


def advance(now: int, last: int, at: int, tolerance: int) -> tuple[int, int]:
    """Return a clock and the time it saw last, after it saw `at`. All in µs since the epoch, 0 before the first."""
    return (max(now, min(at, last + tolerance)) if last and at != last else now), at


def is_outlier(before: int, at: int, now: int, lateness: int) -> bool:
    """Return whether the time before `at` would have made it too late, had it moved the clock to where it was."""
    return before - lateness > max(now, at)


def running_now(customer: Ints, at: Ints, tolerance: int) -> "Running":
    """Prepare the clocks of a batch of events, in order of arrival, that belong to these customers."""
    order = np.argsort(customer, kind="stable")
    who = customer[order]
    first = np.flatnonzero(np.concatenate(([True], who[1:] != who[:-1])))
    return Running(order, first, who[first], at[order], tolerance)


class Running:
    """Events in order of their customers: `customers` lists those that occur, once each."""

    def __init__(self, order: Ints, first: Ints, customers: Ints, times: Ints, tolerance: int) -> None:
        self.customers = customers
        self._before = self._running = times
        self._order, self._first, self._times, self._tolerance = order, first, times, tolerance

    def advance(self, now: Ints, last: Ints) -> tuple[Ints, Ints, Ints]:
        """Return now for each event, in order of arrival, and each customer's now and last time after them.

        `now` and `last` are those of `customers` before; as `advance`, event by event.
        """
        first, times = self._first, self._times
        before = np.empty_like(times)
        before[1:] = times[:-1]
        before[first] = last
        moved = np.minimum(times, before + self._tolerance)
        moved[(before == 0) | (times == before)] = 0
        moved[first] = np.maximum(moved[first], now)
        running = _segmented_maximum(moved, first)
        self._before, self._running = before, running
        ends = np.append(first[1:], len(times)) - 1
        found = np.empty_like(running)
        found[self._order] = running
        return found, running[ends], times[ends]

    def outliers(self, lateness: int) -> int:
        """Count the times that were outliers by the event after them, as `is_outlier`; after `advance`."""
        return int(np.count_nonzero(self._before - lateness > np.maximum(self._running, self._times)))


def _segmented_maximum(values: Ints, first: Ints) -> Ints:
    """Return the running maximum, started again at each index in `first`."""
    # A clock that nothing has confirmed yet is 0, which would make the span of values too wide.
    known = values > 0
    if not known.any():
        return np.zeros_like(values)
    low = int(values.min(where=known, initial=_FAR)) - 1
    sizes = np.diff(first, append=len(values))
    step = int(values.max()) - low + 1
    if step * len(first) >= 2**62:
        return _parts_maximum(values, first)
    # Each segment is lifted above all before it, so that one pass serves them all.
    lift = np.repeat(np.arange(len(first)) * step, sizes) - low
    running = np.maximum.accumulate(np.where(known, values, low) + lift) - lift
    return np.where(running > low, running, 0)


def _parts_maximum(values: Ints, first: Ints) -> Ints:
    return np.concatenate([np.maximum.accumulate(part) for part in np.split(values, first[1:])])


_FAR = 2**62
