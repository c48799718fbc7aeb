"""Around every source: the orderly end on SIGTERM, and the marks by which the flow reports how far it has counted.

On SIGTERM sources end where they are, so the flow closes its epoch, flushes its sinks and exits.

Any source can be wrapped. What the source has handed out is metered and saved; what it has not is read after the next
start. The flow ends when every source of its cluster has: flows/runtime/lifecycle.py passes the end on to all
processes.
"""

import signal
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.engine import FixedPartitionedSource, StatefulSourcePartition
from tidegate.flows.runtime.error_logging import log_errors
from tidegate.flows.runtime.marking import Marking
from tidegate.flows.runtime.metrics import Telemetry
from tidegate.operators.model.freshness import ProgressMark
from tidegate.operators.model.ports import Payloads

LOOK_EVERY = timedelta(milliseconds=100)
MARK_EVERY = 500_000
"""Microseconds between two marks of a partition."""


class Drain:
    """Whether the end was asked for. `install` has SIGTERM ask for it.

    `has_begun` says that all processes of the cluster have met, `is_open` that the source was opened as well.
    """

    def __init__(self) -> None:
        self._asked = Event()
        self.has_begun = self.is_open = False

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        self._asked.set()

    def install(self) -> None:
        """To be called on the main thread, which is the one that gets signals."""
        signal.signal(signal.SIGTERM, lambda *_: self.ask())


class DrainedSource(FixedPartitionedSource[Any, Any]):
    """The partitions of `source`, which end when `drain` is asked, and are seen by `telemetry`. Errors are logged.

    `begin` is called as Bytewax builds the source, when all processes of a cluster have met. With `marking` polls are
    named by their partition, and marks say how far it is read, for what may be forgotten and for heartbeats
    (operators/model/freshness.py). The position of the latter is what the partition's `reached` returns, their time
    what its `taken_until` returns, or when it was last read to its end. Both methods are optional.
    """

    def __init__(
        self,
        source: FixedPartitionedSource[Any, Any],
        drain: Drain,
        telemetry: Telemetry | None = None,
        begin: Callable[[], object] = lambda: None,
        marking: Marking | None = None,
    ) -> None:
        self._source = source
        self._marking = marking
        self._drain = drain
        self._telemetry = telemetry
        self._begin = begin
        self._parts = 0

    @log_errors
    def list_parts(self) -> list[str]:
        self._begin()
        self._drain.has_begun = True
        parts = self._source.list_parts()
        if self._marking is not None:
            self._marking.parts = tuple(parts)
        self._parts = len(parts)
        if self._telemetry is not None:
            self._drain.is_open = True
        return parts

    @log_errors
    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> "_DrainedPartition":
        read = partition = self._source.build_part(step_id, for_part, resume_state)
        if self._marking is not None:
            partition = self._marking.marked(for_part, partition)
        streams = self._parts if self._marking is not None else 0
        drained = _DrainedPartition(for_part, partition, self._drain, streams, read)
        if self._telemetry is not None:
            drained.telemetry = self._telemetry
            self._telemetry.partitions.add(drained)
        return drained


class _DrainedPartition(StatefulSourcePartition[Any, Any]):
    """`read` is the source's own partition, inside of `partition`; `streams` is 0 where no marks are wanted."""

    def __init__(
        self,
        name: str,
        partition: StatefulSourcePartition[Any, Any],
        drain: Drain,
        streams: int,
        read: StatefulSourcePartition[Any, Any],
    ) -> None:
        self.name = name
        self.unit: str = getattr(read, "unit", "bytes")
        self.telemetry: Telemetry | None = None
        self.handed_out = 0
        self.caught_up_at = time.time()
        self._partition = partition
        self._drain = drain
        self._awake = partition.next_awake()
        self._behind: Callable[[], int | None] = getattr(partition, "behind", lambda: None)
        self._reached: Callable[[], int] = getattr(read, "reached", lambda: 0)
        self._taken_until: Callable[[], int] = getattr(read, "taken_until", lambda: 0)
        self._streams = streams
        self._read_to_end_at = self._mark_at = 0
        self._ended = False
        self._left: int | None = None

    @log_errors
    def next_batch(self) -> Iterable[Any]:
        if self._drain.asked or self._ended:
            self._leave()
            raise StopIteration
        now = wall_clock()
        if self._awake is not None and self._awake > datetime.now(UTC):
            return self._marked([], now)
        try:
            batch = list(self._partition.next_batch())
        except StopIteration:
            if not self._streams:
                raise
            self._ended = True
            return self._marked([], now)
        self.handed_out += len(batch)
        if not batch:
            self.caught_up_at = time.time()
            self._read_to_end_at = now
        self._awake = self._partition.next_awake()
        return self._marked(batch, now)

    def _marked(self, batch: list[Any], now: int) -> list[Any]:
        """Return the batch with its position, and a mark behind it if one is due."""
        if not self._streams:
            return batch
        position = self._reached()
        if batch:
            batch[-1] = self._placed(batch[-1], position)
        if not self._ended and now - self._mark_at < MARK_EVERY:
            return batch
        self._mark_at = now
        taken_until = max(self._read_to_end_at, min(self._taken_until(), now))
        mark = ProgressMark(self.name, self._streams, position, taken_until, self._behind(), self._ended)
        return [*batch, mark]

    def _placed(self, poll: Payloads, position: int) -> Payloads:
        return msgspec.structs.replace(poll, position=position)

    def _leave(self) -> None:
        """Keep reporting what is left to read, for as long as the process waits for others."""
        self._left = self._behind()
        if self._left and self.telemetry is not None:
            self.telemetry.left.append(self)

    def behind(self) -> int | None:
        """Return the bytes that the partition has and has not handed out; None where it cannot tell."""
        return self._behind() if self._left is None else self._left

    def next_awake(self) -> datetime | None:
        # A source may sleep longer than who stops it wants to wait.
        return self._awake and min(self._awake, datetime.now(UTC) + LOOK_EVERY)

    @log_errors
    def snapshot(self) -> Any:
        return self._partition.snapshot()

    @log_errors
    def close(self) -> None:
        self._partition.close()
