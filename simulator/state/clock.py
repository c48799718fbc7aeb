"""The provider's own time, which tests set, stop and speed up."""

import time
from collections.abc import Callable

import msgspec


class Hand(msgspec.Struct):
    """What the clock showed (`at`) when the wall clock showed `wall`, and how fast it runs; all in µs.

    `rate` 1 is real time, 0 stands still, 3600 lets an hour pass each second.
    """

    at: int
    wall: int
    rate: float = 1.0


class Clock:
    """The provider's time, microseconds since the epoch. `wall` is the clock of this machine."""

    def __init__(
        self, hand: Hand | None = None, wall: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        self._wall = wall
        self.hand = hand or Hand(wall(), wall())

    def now(self) -> int:
        hand = self.hand
        return hand.at + int((self._wall() - hand.wall) * hand.rate)

    def set(self, at: int | None = None, rate: float | None = None) -> None:
        """Continue from `at`, else from the present time, at `rate`, else as fast as before."""
        self.hand = Hand(
            self.now() if at is None else at,
            self._wall(),
            self.hand.rate if rate is None else rate,
        )

    def advance(self, by: int) -> None:
        self.set(self.now() + by)
