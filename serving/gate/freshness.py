"""How old the totals of a customer are, by the heartbeats of the flow as this process saw them come.

The age of a heartbeat is counted by this process's own monotonic clock from when it was first seen, so that a flow on
a machine whose clock differs is taken neither for dead nor for alive by mistake. Between two reads it is dated by the
wall clocks of both, as it may have been written right after the first read; the very first one may be of any age.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from tidegate.operators.events.keys import shard_of
from tidegate.operators.model.freshness import Heartbeat, select_newest_generation
from tidegate.operators.model.ports import Holds

READ_EVERY: Final = 0.1
"""Seconds between two looks at the heartbeats."""
SECOND: Final = 1_000_000


class _Seen(NamedTuple):
    """A heartbeat, and the monotonic time (seconds) at which everything that it counted was new; None if unknown."""

    written_at: int
    fresh_at: float | None
    ended: bool
    positions: Mapping[str, int]


class FlowState(NamedTuple):
    """How the flow is doing: how many of its `shards` have totals that are too old, and the greatest lag (µs).

    `lag` is None where a shard has not said, or no flow has reported.
    """

    shards: int
    behind: int
    lag: int | None

    @property
    def is_live(self) -> bool:
        return self.shards > 0 and self.behind == 0


class Freshness:
    """The lag of each shard. Shared by threads: what is read is swapped whole."""

    def __init__(self, wall: Callable[[], int]) -> None:
        self._wall = wall
        self._seen: dict[int, _Seen] = {}
        self._shards = 0
        self._read_at = self._taken_at = float("-inf")

    def follow(self, store: Holds, now: float, every: float = READ_EVERY) -> None:
        """Read the heartbeats if the last look is `every` seconds ago. `now` is monotonic. Raises StoreError."""
        if now - self._read_at >= every:
            self.take(store.heartbeats(), now)
            self._read_at = now

    def take(self, heartbeats: Iterable[Heartbeat], now: float) -> None:
        """Note the heartbeats as they are at monotonic time `now`."""
        found = select_newest_generation(heartbeats)
        shards = found[0].shards if found else 0
        before = self._seen if shards == self._shards else {}
        unseen = now - self._taken_at
        self._seen = {one.shard: self._note(one, before.get(one.shard), now, unseen) for one in found}
        self._shards, self._taken_at = shards, now

    def lag(self, customer: str, now: float) -> int | None:
        """Return how old the customer's totals may be at monotonic time `now` (µs); None if no flow has said."""
        return self._lag_of(shard_of(customer, self._shards), now) if self._shards else None

    def _lag_of(self, shard: int, now: float) -> int | None:
        seen = self._seen.get(shard)
        if seen is None or seen.fresh_at is None:
            return None
        return 0 if seen.ended else max(int((now - seen.fresh_at) * SECOND), 0)

    def state(self, now: float, most: int) -> FlowState:
        """Return the state of the flow at monotonic time `now`, where totals may be `most` µs old."""
        lags = [self._lag_of(shard, now) for shard in range(self._shards)]
        known = [lag for lag in lags if lag is not None]
        behind = sum(lag is None or lag > most for lag in lags)
        return FlowState(len(lags), behind, max(known) if known and len(known) == len(lags) else None)

    def positions(self, customer: str) -> Mapping[str, int]:
        """Return what has been counted of each partition in the customer's shard."""
        seen = self._seen.get(shard_of(customer, self._shards)) if self._shards else None
        return seen.positions if seen is not None else {}

    def _note(self, beat: Heartbeat, before: _Seen | None, now: float, unseen: float) -> _Seen:
        """`unseen` are the seconds since the read before."""
        if before is not None and before.written_at == beat.written_at:
            return before
        lag = beat.lag
        if lag is None:
            return _Seen(beat.written_at, None, False, beat.positions)
        age = max(self._wall() - beat.written_at, 0) / SECOND
        if before is not None:
            age = min(age, unseen)
        return _Seen(beat.written_at, now - lag / SECOND - age, beat.ended, beat.positions)


def describe_state(state: FlowState) -> str:
    """Return what is wrong with the flow, in words; empty where nothing is."""
    if state.is_live:
        return ""
    if not state.shards or state.behind == state.shards:
        return describe(state.lag)
    return f"{state.behind} of {state.shards} shards: {describe(state.lag)}"


def describe(lag: int | None) -> str:
    """Return what is wrong with totals of this age, in words."""
    if lag is None:
        return "no flow has reported that it counts this customer's events; start it, or see its log"
    return (
        f"events of the last {lag / SECOND:.1f} s may not be counted; see whether the flow runs and keeps up"
    )
