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
        self._say_from = self._fault_from = float("-inf")
        self._degraded_at: float | None = None

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
        now = self._monotonic()
        with self._lock:
            self._counts["degraded"] += 1
            self._unsaid += 1
            self._degraded_at = now
            if now < self._say_from:
                return
            said, self._unsaid, self._say_from = self._unsaid, 0, now + SAID_EVERY
        LOG.warning("degraded, %d decision(s) made without the store: %s", said, detail)

    def fault(self, error: Exception) -> None:
        """Log an answer that no store should give, or a bug of the gate, with its traceback."""
        now = self._monotonic()
        with self._lock:
            self._counts["faults"] += 1
            if now < self._fault_from:
                return
            self._fault_from = now + SAID_EVERY
        LOG.error("the store answered nonsense, or the gate has a fault", exc_info=error)

    def recovered(self) -> None:
        """Note that the store answers, and log it if it did not before and nothing was degraded since."""
        degraded_at = self._degraded_at
        if degraded_at is None or self._monotonic() < degraded_at + SAID_EVERY:
            return
        with self._lock:
            was, self._degraded_at, self._unsaid = self._degraded_at, None, 0
        if was is not None:
            LOG.warning("the store answers again")
