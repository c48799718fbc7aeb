"""Freshness of totals: what the flow has read, counted and stored, as each shard reports it.

A source adds marks to its stream, which follow the events of their partition to every shard. A shard that has received
a mark has counted everything that the partition handed out before it, and reports so in a heartbeat, which is written
with the totals of these events or after them. A reader therefore knows, per shard, up to when everything that the
transports took is in the totals, and a service that put an event at a position knows when the event is counted.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

SECOND: Final = 1_000_000
HEARTBEAT_EVERY: Final = SECOND
"""How often a shard writes its heartbeat at least (µs), whether it has work or not."""


class ProgressMark(msgspec.Struct, frozen=True):
    """How far partition `stream` of a source has been handed out, of `streams` partitions in all.

    Everything before `position` was handed out, and everything that the transport took until `taken_until` (µs since
    the epoch, 0 if unknown). `behind` is what is left to read, None if the transport does not say. `ended` marks the
    end of the input.
    """

    stream: str
    streams: int
    position: int
    taken_until: int
    behind: int | None = None
    ended: bool = False


class Heartbeat(msgspec.Struct, frozen=True):
    """What shard `shard` of `shards` has counted and stored by `written_at` (µs since the epoch).

    Everything that the transports took until `counted_until` is in its totals; 0 if a partition was never read to its
    end and its transport gives no times. `positions` says the same per partition. `ended` says that the input has ended
    and was counted to its end.
    """

    shard: int
    shards: int
    process: str
    written_at: int
    counted_until: int
    positions: dict[str, int]
    behind: int | None = None
    ended: bool = False

    @property
    def lag(self) -> int | None:
        """The age of what may not have been counted when this was written (µs); None if unknown."""
        if self.ended:
            return 0
        return max(self.written_at - self.counted_until, 0) if self.counted_until else None


class Progress:
    """What one shard has received of each partition.

    `build_heartbeat` reports what was stored at the last `mark_stored`.
    """

    def __init__(self, shard: int, shards: int, process: str) -> None:
        self._names = (shard, shards, process)
        self._marks: dict[str, ProgressMark] = {}
        self._positions: dict[str, int] = {}
        self._stored_marks: tuple[ProgressMark, ...] = ()
        self._stored_positions: dict[str, int] = {}

    def receive(self, mark: ProgressMark) -> None:
        """Record that all events before the mark were counted."""
        self._marks[mark.stream] = mark
        self.advance(mark.stream, mark.position)

    def advance(self, stream: str, position: int) -> None:
        """Record that the events of this partition before `position` were counted."""
        if position > self._positions.get(stream, -1):
            self._positions[stream] = position

    def mark_stored(self) -> None:
        """Record that the totals so far are in the write that the next heartbeat accompanies."""
        self._stored_marks = tuple(self._marks.values())
        self._stored_positions = dict(self._positions)

    def build_heartbeat(self, now: int) -> Heartbeat | None:
        """Return the report of what is stored, None until every partition has sent a mark."""
        marks = self._stored_marks
        if not marks or len(marks) < max(mark.streams for mark in marks):
            return None
        behinds = [mark.behind for mark in marks if mark.behind is not None]
        live = [mark.taken_until for mark in marks if not mark.ended]
        return Heartbeat(
            *self._names,
            written_at=now,
            counted_until=min(live, default=now),
            positions=self._stored_positions,
            behind=sum(behinds) if behinds else None,
            ended=not live,
        )


def select_newest_generation(heartbeats: Iterable[Heartbeat]) -> list[Heartbeat]:
    """Return the heartbeats of the newest number of shards, because those of an earlier layout are obsolete."""
    found = list(heartbeats)
    if not found:
        return []
    shards = max(found, key=lambda one: one.written_at).shards
    return [one for one in found if one.shards == shards and one.shard < shards]
