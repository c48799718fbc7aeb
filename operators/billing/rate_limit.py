"""A rate limiter: how many requests may be sent under a burst limit and a sustained limit that hold at every instant.

The provider counts requests per second and per minute. A request is admitted if three rules allow it: no second and no
minute, wherever it begins, has more requests than its limit; and a bucket of one burst that fills at the sustained rate
has room, so that a minute's share is not spent in its first seconds.
Source: Dodo Payments, rate limits; GCRA, ITU-T I.371, for the bucket.
"""

from collections import deque
from math import floor
from typing import NamedTuple

SECOND = 1_000_000
MINUTE = 60 * SECOND
# Requests take different times to arrive, so the provider may see them in a shorter window than ours.
BURST_SLACK, MINUTE_SLACK = SECOND // 4, 3 * SECOND // 2


class Rate(NamedTuple):
    """Requests per second and per minute; both limits hold."""

    burst: int
    sustained: int

    def scale(self, part: float) -> "Rate":
        """Return this part of the rate, at least one request per second and minute."""
        return Rate(max(1, floor(self.burst * part)), max(1, floor(self.sustained * part)))


TIERS = (Rate(40, 240), Rate(100, 1000), Rate(500, 5000))


class Pace:
    """Admits requests at a rate. Times are µs on any clock that does not go back."""

    def __init__(self, rate: Rate) -> None:
        burst = min(rate.burst, rate.sustained)
        self._windows = ((burst, SECOND + BURST_SLACK), (rate.sustained, MINUTE + MINUTE_SLACK))
        self._admitted: deque[int] = deque(maxlen=rate.sustained)
        self._gap = MINUTE / rate.sustained
        self._slack = (burst - 1) * self._gap
        # The time at which the bucket is full again, in µs.
        self._full_at = 0.0

    def admit(self, now: int) -> int:
        """Count a request and return 0 if it may be sent now, otherwise return the µs until one may."""
        due = self._find_due(now)
        if due > now:
            return due - now
        self._admitted.append(now)
        self._full_at = max(self._full_at, now) + self._gap
        return 0

    def _find_due(self, now: int) -> int:
        # Rounded up, because a wait that ends too early would only lead to another one.
        due = max(now, -floor(self._slack - self._full_at))
        for requests, length in self._windows:
            if len(self._admitted) >= requests:
                due = max(due, self._admitted[-requests] + length)
        return due
