"""Marks between the polls of a source: which partitions there are, and which have nothing more to bring for now.

What a partition may still bring holds up what the flow forgets, so a shard has to know of each one, also of those that
bring it nothing. A mark goes to all shards: at the start, when a partition has been read to its end for `IDLE_AFTER`,
before the first poll after that, and at its end. A partition that can say whether it is read to its end has
`caught_up()`; of others that have `behind()` it is taken as said where nothing is left.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from time import monotonic
from typing import Any, Literal

import msgspec

from tidegate.connectors.engine import StatefulSourcePartition
from tidegate.operators.model.ports import Payloads, StreamMark

IDLE_AFTER = 10.0

State = Literal["open", "idle", "ended"]


class Marking:
    """Marks the partitions of one source, whose streams are named after its `place`."""

    def __init__(self, place: str, now: Callable[[], float] = monotonic) -> None:
        self._place = place
        self._now = now
        self.parts: tuple[str, ...] = ()

    def marked(
        self, part: str, partition: StatefulSourcePartition[Payloads, Any]
    ) -> StatefulSourcePartition[Payloads, Any]:
        """Return the partition with marks between its polls."""
        return _Marked(
            self._stream(part), tuple(self._stream(each) for each in self.parts), partition, self._now
        )

    def _stream(self, part: str) -> str:
        return f"{self._place}{part}"


class _Marked(StatefulSourcePartition[Payloads, Any]):
    def __init__(
        self,
        stream: str,
        parts: tuple[str, ...],
        partition: StatefulSourcePartition[Payloads, Any],
        now: Callable[[], float],
    ) -> None:
        self._stream, self._parts, self._partition, self._now = stream, parts, partition, now
        self._state: State | None = None
        self._empty_since: float | None = None
        self._caught_up = getattr(partition, "caught_up", lambda: self.behind() == 0)

    def next_batch(self) -> Iterable[Payloads]:
        if self._state is None:
            # Before the first poll, which may take a while.
            return [self._mark("open")]
        if self._state == "ended":
            raise StopIteration
        try:
            batch = list(self._partition.next_batch())
        except StopIteration:
            return [self._mark("ended")]
        if batch:
            return self._named(batch)
        return self._while_empty()

    def next_awake(self) -> datetime | None:
        return self._partition.next_awake()

    def snapshot(self) -> Any:
        return self._partition.snapshot()

    def close(self) -> None:
        self._partition.close()

    def behind(self) -> int | None:
        """Return what the partition has and has not handed out yet, where it is known."""
        behind: Callable[[], int | None] = getattr(self._partition, "behind", lambda: None)
        return behind()

    def _named(self, batch: list[Payloads]) -> list[Payloads]:
        self._empty_since = None
        named = [msgspec.structs.replace(poll, stream=self._stream) for poll in batch]
        return [self._mark("open"), *named] if self._state == "idle" else named

    def _while_empty(self) -> list[Payloads]:
        now = self._now()
        if self._empty_since is None:
            self._empty_since = now
        if self._state == "idle" or now - self._empty_since < IDLE_AFTER or not self._caught_up():
            return []
        return [self._mark("idle")]

    def _mark(self, state: State) -> Payloads:
        self._state = state
        mark = StreamMark(self._stream, state, 0, self._parts)
        return Payloads(b"", 0, None, self._stream, stream=self._stream, mark=mark)
