"""The latest event time of each customer, as it grows event by event."""

import numpy as np

from operators.chunk import Ints


def running_latest(customer: Ints, at: Ints, clock: Ints) -> tuple[Ints, Ints, Ints]:
    """For each event, in order of arrival, its customer's latest event time up to and with this event.

    `clock` holds each customer's latest time before. Also returns the customers that occur and their latest times
    now; `clock` itself is left alone.
    """
    order = np.argsort(customer, kind="stable")
    who, times = customer[order], at[order]
    first = np.flatnonzero(np.concatenate(([True], who[1:] != who[:-1])))
    times[first] = np.maximum(times[first], clock[who[first]])
    running = _segmented_maximum(times, first)
    latest = running[np.append(first[1:], len(who)) - 1]
    now = np.empty_like(at)
    now[order] = running
    return now, who[first], latest


def _segmented_maximum(values: Ints, first: Ints) -> Ints:
    """The running maximum, begun anew at each index in `first`."""
    low, sizes = int(values.min()), np.diff(first, append=len(values))
    step = int(values.max()) - low + 1
    if step * len(first) >= 2**62:
        return np.concatenate([np.maximum.accumulate(part) for part in np.split(values, first[1:])])
    # Each segment is lifted above all before it, so that one pass serves them all.
    lift = np.repeat(np.arange(len(first)) * step, sizes) - low
    return np.maximum.accumulate(values + lift) - lift
