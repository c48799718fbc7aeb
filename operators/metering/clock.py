"""Clocks that advance only as far as a stream confirms.

An event advances its clock to at most `tolerance` beyond the event before it. One wrong date, however far in the
future, therefore advances now by at most the tolerance, and a real jump takes effect from the second event that
confirms it. An event with exactly the time of its predecessor confirms nothing: it may be a retry of the same wrong
date.
"""

import numpy as np

from tidegate.operators.events.chunk import Ints


def advance(now: int, last: int, at: int, tolerance: int) -> tuple[int, int]:
    """Return a clock and the last time it saw, after the event at `at`.

    All in µs since the epoch, 0 before the first event.
    """
    return (max(now, min(at, last + tolerance)) if last and at != last else now), at


def is_outlier(before: int, at: int, now: int, lateness: int) -> bool:
    """Return whether the time before `at` would have made the event at `at` too late if the clock had followed it."""
    return before - lateness > max(now, at)


def prepare_clocks(customer: Ints, at: Ints, tolerance: int) -> "BatchClocks":
    """Group a batch of events, given in order of arrival, by customer for `BatchClocks`."""
    order = np.argsort(customer, kind="stable")
    who = customer[order]
    first = np.flatnonzero(np.concatenate(([True], who[1:] != who[:-1])))
    return BatchClocks(order, first, who[first], at[order], tolerance)


class BatchClocks:
    """A batch of events grouped by customer; `customers` lists each customer once."""

    def __init__(self, order: Ints, first: Ints, customers: Ints, times: Ints, tolerance: int) -> None:
        self.customers = customers
        self._before = self._running = times
        self._order, self._first, self._times, self._tolerance = order, first, times, tolerance

    def advance(self, now: Ints, last: Ints) -> tuple[Ints, Ints, Ints]:
        """Return now for each event in order of arrival, and each customer's now and last time after the batch.

        `now` and `last` are those of `customers` before the batch. The result is that of the function `advance`, event
        by event.
        """
        first, times = self._first, self._times
        before = np.empty_like(times)
        before[1:] = times[:-1]
        before[first] = last
        moved = np.minimum(times, before + self._tolerance)
        moved[(before == 0) | (times == before)] = 0
        moved[first] = np.maximum(moved[first], now)
        running = _accumulate_segments(moved, first)
        self._before, self._running = before, running
        ends = np.append(first[1:], len(times)) - 1
        found = np.empty_like(running)
        found[self._order] = running
        return found, running[ends], times[ends]

    def count_outliers(self, lateness: int) -> int:
        """Count the times that the following event showed to be outliers, as `is_outlier`; valid after `advance`."""
        return int(np.count_nonzero(self._before - lateness > np.maximum(self._running, self._times)))


def _accumulate_segments(values: Ints, first: Ints) -> Ints:
    """Return the running maximum, restarted at each index in `first`."""
    # An unconfirmed clock is 0, which would make the span of values too wide.
    known = values > 0
    if not known.any():
        return np.zeros_like(values)
    low = int(values.min(where=known, initial=_FAR)) - 1
    sizes = np.diff(first, append=len(values))
    step = int(values.max()) - low + 1
    if step * len(first) >= 2**62:
        return _accumulate_separately(values, first)
    # Each segment is lifted above all earlier ones, so that one accumulation serves them all.
    lift = np.repeat(np.arange(len(first)) * step, sizes) - low
    running = np.maximum.accumulate(np.where(known, values, low) + lift) - lift
    return np.where(running > low, running, 0)


def _accumulate_separately(values: Ints, first: Ints) -> Ints:
    return np.concatenate([np.maximum.accumulate(part) for part in np.split(values, first[1:])])


_FAR = 2**62
