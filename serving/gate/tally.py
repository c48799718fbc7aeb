"""What a gate counts and says: how decisions ended, and, now and then, that the store is away."""

import logging
from collections import Counter
from collections.abc import Callable
from threading import Lock

LOG = logging.getLogger("tidegate.gate")
SAID_EVERY = 1.0


class Tally:
    """Counters by name, and log lines at most one a second, so that an outage does not fill a disk."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = Lock()
        self._counts: Counter[str] = Counter()
        self._unsaid = 0
        self._say_from = float("-inf")
        self._degraded = False

    def add(self, *names: str) -> None:
        with self._lock:
            for name in names:
                self._counts[name] += 1

    def counts(self) -> dict[str, int]:
        """All counters so far, by name."""
        with self._lock:
            return dict(self._counts)

    def degraded(self, detail: str) -> None:
        """One decision was made without the store."""
        with self._lock:
            self._counts["degraded"] += 1
            self._unsaid += 1
            self._degraded = True
            now = self._monotonic()
            if now < self._say_from:
                return
            said, self._unsaid, self._say_from = self._unsaid, 0, now + SAID_EVERY
        LOG.warning("degraded, %d decision(s) made without the store: %s", said, detail)

    def recovered(self) -> None:
        """The store answers; says so if it did not before."""
        if not self._degraded:
            return
        with self._lock:
            was, self._degraded, self._unsaid, self._say_from = self._degraded, False, 0, float("-inf")
        if was:
            LOG.warning("the store answers again")
