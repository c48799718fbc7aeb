"""An orderly end: on SIGTERM sources end where they are, so the flow closes its epoch, flushes its sinks and exits.

Any source can be wrapped. What the source has handed out is metered and saved; what it has not is read after the next
start. In a cluster all processes have to be told, as the flow ends when every source has: whoever stops one alone
waits for the others until its time is up.
"""

import signal
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from connectors.marking import Marking
from connectors.reporting import reported
from connectors.telemetry import Telemetry

LOOK_EVERY = timedelta(milliseconds=100)


class Drain:
    """Whether the end was asked for. `install` has SIGTERM ask for it."""

    def __init__(self) -> None:
        self._asked = Event()

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
    named by their partition, and marks say how far it is read.
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

    @reported
    def list_parts(self) -> list[str]:
        self._begin()
        parts = self._source.list_parts()
        if self._marking is not None:
            self._marking.parts = tuple(parts)
        return parts

    @reported
    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> "_DrainedPartition":
        partition = self._source.build_part(step_id, for_part, resume_state)
        if self._marking is not None:
            partition = self._marking.marked(for_part, partition)
        drained = _DrainedPartition(for_part, partition, self._drain)
        if self._telemetry is not None:
            self._telemetry.partitions.add(drained)
        return drained


class _DrainedPartition(StatefulSourcePartition[Any, Any]):
    def __init__(self, name: str, partition: StatefulSourcePartition[Any, Any], drain: Drain) -> None:
        self.name = name
        self.handed_out = 0
        self.caught_up_at = time.time()
        self._partition = partition
        self._drain = drain
        self._awake = partition.next_awake()
        self._behind: Callable[[], int | None] = getattr(partition, "behind", lambda: None)

    @reported
    def next_batch(self) -> Iterable[Any]:
        if self._drain.asked:
            raise StopIteration
        if self._awake is not None and self._awake > datetime.now(UTC):
            return ()
        batch = list(self._partition.next_batch())
        self.handed_out += len(batch)
        if not batch:
            self.caught_up_at = time.time()
        self._awake = self._partition.next_awake()
        return batch

    def behind(self) -> int | None:
        """What the partition has and has not handed out yet, where it can tell."""
        return self._behind()

    def next_awake(self) -> datetime | None:
        # A source may sleep longer than who stops it wants to wait.
        return self._awake and min(self._awake, datetime.now(UTC) + LOOK_EVERY)

    @reported
    def snapshot(self) -> Any:
        return self._partition.snapshot()

    @reported
    def close(self) -> None:
        self._partition.close()
