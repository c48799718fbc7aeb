"""How many requests may leave, under a burst and a sustained limit that both hold at every instant.

The platform counts requests per second and per minute. Three rules admit a request together: in any second and in
any minute, wherever they begin, no more than their number; and a bucket of one burst that fills at the sustained
rate, so that a minute's share is not spent in its first seconds. Source: Dodo Payments, rate limits; GCRA,
ITU-T I.371, for the bucket.
"""

from collections import deque
from math import floor
from typing import NamedTuple

SECOND = 1_000_000
MINUTE = 60 * SECOND
# Requests travel for differing times, so windows at the far end may be shorter than ours.
BURST_SLACK, MINUTE_SLACK = SECOND // 4, 3 * SECOND // 2


class Rate(NamedTuple):
    """Requests per second and per minute; both hold."""

    burst: int
    sustained: int

    def share(self, part: float) -> "Rate":
        """This part of it, of which at least one request a second and a minute is left."""
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
        # When the bucket will be full again.
        self._full_at = 0.0

    def take(self, now: int) -> int:
        """0 if a request may leave now, which is then counted; else the µs until one may."""
        due = self._due(now)
        if due > now:
            return due - now
        self._admitted.append(now)
        self._full_at = max(self._full_at, now) + self._gap
        return 0

    def _due(self, now: int) -> int:
        # Rounded up, for a wait that ends too early would end in another.
        due = max(now, -floor(self._slack - self._full_at))
        for requests, length in self._windows:
            if len(self._admitted) >= requests:
                due = max(due, self._admitted[-requests] + length)
        return due
