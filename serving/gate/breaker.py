"""A circuit breaker: a store that fails again and again is left alone for a while, so that nobody waits for it."""

from collections.abc import Callable
from threading import Lock

FAILURES = 3
PAUSE_FIRST, PAUSE_MAX = 0.1, 2.0


class Breaker:
    """Opens at the third failure in a row, then lets one call through per pause, until one succeeds.

    Pauses double from 0.1 s to 2 s, each cut by up to a half by `chance`, so that processes do not come back in step.
    Times are monotonic seconds. Safe to share between threads.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._lock = Lock()
        self._failures = 0
        self._pause = PAUSE_FIRST
        self._closed_at = 0.0
        self.opened = 0

    @property
    def is_open(self) -> bool:
        return self._failures >= FAILURES

    def lets(self, now: float) -> bool:
        """Whether a call may be made; who is let through while it is open has to say how it ended."""
        if self._failures < FAILURES:
            return True
        with self._lock:
            if now < self._closed_at:
                return False
            # The next one waits for another pause, should this one never say.
            self._closed_at = now + self._pause
            return True

    def succeeded(self) -> None:
        if self._failures:
            with self._lock:
                self._failures = 0
                self._pause = PAUSE_FIRST

    def failed(self, now: float) -> None:
        with self._lock:
            self._failures += 1
            if self._failures < FAILURES:
                return
            if self._failures == FAILURES:
                self.opened += 1
            self._closed_at = now + self._pause * (1 - self._chance() / 2)
            self._pause = min(2 * self._pause, PAUSE_MAX)
