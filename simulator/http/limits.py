"""The rate limits: two windows at once, both must hold."""

from collections import deque
from typing import Final, Literal, NamedTuple

from simulator.state.instants import SECOND
from simulator.state.switches import Switches

MINUTE: Final = 60 * SECOND


class Tier(NamedTuple):
    per_second: int
    per_minute: int


TIERS: Final = {"0": Tier(40, 240), "1": Tier(100, 1000), "2": Tier(500, 5000)}
UNAUTHENTICATED: Final = Tier(20, 100)


def read_tier(text: str) -> Tier | None:
    """Return the limits of `0`, `1` or `2`, of a pair such as `10/60`, or of `unlimited`, which is None.

    A pair gives the requests per second and per minute.
    """
    if text == "unlimited":
        return None
    if text in TIERS:
        return TIERS[text]
    parts = text.split("/")
    if len(parts) != 2 or not all(
        part.isascii() and part.isdigit() and 0 < int(part) < 10**9 for part in parts
    ):
        raise ValueError(f"tier: needs 0, 1, 2, unlimited or PER_SECOND/PER_MINUTE, got {text!r}")
    return Tier(int(parts[0]), int(parts[1]))


class Window:
    """At most `limit` requests in `length` µs: in any such stretch (sliding) or in consecutive ones (fixed)."""

    def __init__(self, limit: int, length: int, kind: Literal["sliding", "fixed"]) -> None:
        self.limit, self._length, self._kind = limit, length, kind
        self._taken: deque[int] = deque()

    def count_remaining(self, now: int) -> int:
        oldest = now - now % self._length if self._kind == "fixed" else now - self._length + 1
        while self._taken and self._taken[0] < oldest:
            self._taken.popleft()
        # After the clock was set back, entries lie in its future; they must not lock out a client for hours.
        while self._taken and self._taken[-1] > now:
            self._taken.pop()
        return self.limit - len(self._taken)

    def take(self, now: int) -> None:
        self._taken.append(now)

    def find_free_time(self, now: int) -> int:
        """Return when there is room for one more request at the latest; `now` if the window is empty."""
        if not self._taken:
            return now
        return (self._taken[0] if self._kind == "sliding" else now - now % self._length) + self._length


class Verdict(NamedTuple):
    allowed: bool
    headers: dict[str, str]


class Limiter:
    """Counts the requests of one client; refused ones do not count."""

    def __init__(self, tier: Tier | None, switches: Switches) -> None:
        self._switches = switches
        kind = switches.limit_window
        self._windows = (
            [Window(tier.per_second, SECOND, kind), Window(tier.per_minute, MINUTE, kind)] if tier else []
        )

    def admit(self, now: int) -> Verdict:
        """Return whether one more request may pass now, and the answer's headers for the tighter window."""
        if not self._windows:
            return Verdict(True, {})
        allowed = all(window.count_remaining(now) > 0 for window in self._windows)
        if allowed:
            for window in self._windows:
                window.take(now)
        tight = min(self._windows, key=lambda window: (window.count_remaining(now), -window.limit))
        headers = {
            "X-RateLimit-Limit": str(tight.limit),
            "X-RateLimit-Remaining": str(tight.count_remaining(now)),
            "X-RateLimit-Reset": str(self._reset(tight.find_free_time(now), now)),
        }
        if not allowed and self._switches.send_retry_after:
            headers["Retry-After"] = str(max(1, -(-(tight.find_free_time(now) - now) // SECOND)))
        return Verdict(allowed, headers)

    def _reset(self, at: int, now: int) -> int:
        left = at if self._switches.reset_unit == "epoch" else max(0, at - now)
        return -(-left // SECOND)
