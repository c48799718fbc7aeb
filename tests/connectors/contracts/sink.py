"""What every sink of lines promises, as tests to inherit: each line once, crash where it may.

The test plays Bytewax: it hands out lines, takes snapshots of the partitions that were written to since
the last one, commits them later or never, crashes, and replays from the last commit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Sink = FixedPartitionedSink[bytes, Any]
Step = int | Literal["snapshot", "commit"]

LINES = 24
KEYS = 5

lives = st.lists(
    st.tuples(
        st.lists(st.one_of(st.integers(1, 4), st.just("snapshot"), st.just("commit")), max_size=8),
        st.booleans(),
    ),
    max_size=5,
)


class Place(NamedTuple):
    """An outside system: what opens a sink to it, what it holds, and what tears its last write."""

    opened: Callable[[], Sink]
    lines: Callable[[], list[bytes]]
    tear: Callable[[], None]


class SinkContract(ABC):
    @abstractmethod
    def place(self) -> AbstractContextManager[Place]:
        """An empty place to write to, with one lineage."""

    @settings(
        max_examples=80,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(lives)
    def test_each_line_is_there_once_after_any_crash(self, lives: list[tuple[list[Step], bool]]) -> None:
        """A line twice is an event billed twice by whoever reads the file."""
        with self.place() as place:
            replay = _Replay(place)
            for steps, torn in lives:
                replay.live(steps)
                if torn:
                    place.tear()
            replay.live([LINES, "snapshot", "commit"])
            lines = place.lines()
            replay.bury()
        assert sorted(lines) == sorted(line for _, line in replay.items)
        for key in range(KEYS):
            mine = [line for line in lines if line.startswith(b"%d:" % key)]
            assert mine == [line for at, line in replay.items if at == str(key)], "order within a key"


class _Replay:
    def __init__(self, place: Place) -> None:
        self._place = place
        self.items = [(str(n % KEYS), b"%d:%d" % (n % KEYS, n)) for n in range(LINES)]
        self._committed: tuple[int, dict[str, Any]] = (0, {})
        self._dead: list[StatefulSinkPartition[bytes, Any]] = []

    def live(self, steps: list[Step]) -> None:
        """One life of the flow; the partitions are left without a word, as by a crash."""
        sink = self._place.opened()
        position, states = self._committed
        names = sorted(sink.list_parts())
        parts: dict[str, StatefulSinkPartition[bytes, Any]] = {
            name: sink.build_part("out", name, states.get(name)) for name in names
        }
        self._dead += parts.values()
        taken = self._committed
        awoken: set[str] = set()
        for step in steps:
            if step == "snapshot":
                taken = (position, {**taken[1], **{name: parts[name].snapshot() for name in sorted(awoken)}})
                awoken.clear()
            elif step == "commit":
                self._committed = taken
            else:
                batch = self.items[position : position + step]
                position += len(batch)
                for name in names:
                    values = [v for key, v in batch if names[sink.part_fn(key) % len(names)] == name]
                    if values:
                        parts[name].write_batch(values)
                        awoken.add(name)

    def bury(self) -> None:
        """Closes what crashes left open; a crash itself closes nothing."""
        for partition in self._dead:
            partition.close()
