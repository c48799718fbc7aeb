"""An orderly end: on SIGTERM sources end where they are, so the flow closes its epoch, flushes its sinks and exits.

Any source can be wrapped. What the source has handed out is metered and saved; what it has not is read after the next
start. In a cluster all processes have to be told, as the flow ends when every source has: whoever stops one alone
waits for the others until its time is up.
"""

import signal
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

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
    """The partitions of `source`, which end when `drain` is asked."""

    def __init__(self, source: FixedPartitionedSource[Any, Any], drain: Drain) -> None:
        self._source = source
        self._drain = drain

    def list_parts(self) -> list[str]:
        return self._source.list_parts()

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> "_DrainedPartition":
        return _DrainedPartition(self._source.build_part(step_id, for_part, resume_state), self._drain)


class _DrainedPartition(StatefulSourcePartition[Any, Any]):
    def __init__(self, partition: StatefulSourcePartition[Any, Any], drain: Drain) -> None:
        self._partition = partition
        self._drain = drain

    def next_batch(self) -> Iterable[Any]:
        if self._drain.asked:
            raise StopIteration
        awake = self._partition.next_awake()
        if awake is not None and awake > datetime.now(UTC):
            return ()
        return self._partition.next_batch()

    def next_awake(self) -> datetime | None:
        awake = self._partition.next_awake()
        # A source may sleep longer than who stops it wants to wait.
        return awake and min(awake, datetime.now(UTC) + LOOK_EVERY)

    def snapshot(self) -> Any:
        return self._partition.snapshot()

    def close(self) -> None:
        self._partition.close()
