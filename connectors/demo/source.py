"""Traffic without a producer, for the demo: a made-up AI product, live.

One block per poll of the events that are due, paced by the wall clock. Its position is the start of the run
and the number of the next event. Guarantee: resumed anywhere, the same events come again to the byte; what
fell due while nothing ran is caught up with, a block after the other. Limits: one partition, a few tens of
thousands of events a second; on resume, options other than `count` must be as they were.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.demo.traffic import Traffic
from tidegate.connectors.engine import FixedPartitionedSource, StatefulSourcePartition
from tidegate.operators.model.ports import Payloads

POLL_EVENTS_MAX = 1000
PAUSE_US_MIN = 1000


class DemoPosition(NamedTuple):
    """Where the run goes on: when it started (µs since the epoch), and the number of the next event."""

    start: int
    next: int


class DemoSource(FixedPartitionedSource[Payloads, DemoPosition]):
    """`rate` events a second, for ever or `count` in all; the same `seed` makes the same traffic."""

    def __init__(
        self,
        seed: int = 1,
        customers: int = 40,
        rate: float = 200.0,
        count: int | None = None,
        speed: float = 1.0,
        *,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        if customers < 1 or rate <= 0 or speed <= 0:
            raise ValueError(
                f"demo: needs 1 customer or more and a rate and speed above 0,"
                f" got customers={customers}, rate={rate}, speed={speed}"
            )
        self._seed = seed
        self._customers = customers
        self._rate = rate
        self._count = count
        self._speed = speed
        self._clock = clock

    def list_parts(self) -> list[str]:
        return ["demo"]

    def build_part(self, step_id: str, for_part: str, resume_state: DemoPosition | None) -> "_DemoPartition":
        position = resume_state or DemoPosition(self._clock(), 0)
        traffic = Traffic(self._seed, position.start, self._rate, self._customers, self._speed)
        return _DemoPartition(traffic, position.next, self._count, self._clock)


class _DemoPartition(StatefulSourcePartition[Payloads, DemoPosition]):
    def __init__(self, traffic: Traffic, at: int, count: int | None, clock: Callable[[], int]) -> None:
        self._traffic = traffic
        self._next = at
        self._count = count
        self._clock = clock
        self._awake: datetime | None = None

    def next_batch(self) -> list[Payloads]:
        if self._is_over():
            raise StopIteration
        now = self._clock()
        first = self._next
        lines: list[bytes] = []
        while len(lines) < POLL_EVENTS_MAX and not self._is_over() and self._traffic.due(self._next) <= now:
            lines.append(self._traffic.event(self._next))
            self._next += 1
        self._pace(now)
        if not lines:
            return []
        due = self._traffic.due(self._next - 1)
        return [Payloads(b"\n".join(lines) + b"\n", now, due, f"demo:{first}")]

    def next_awake(self) -> datetime | None:
        return self._awake

    def snapshot(self) -> DemoPosition:
        return DemoPosition(self._traffic.start, self._next)

    def _is_over(self) -> bool:
        return self._count is not None and self._next >= self._count

    def _pace(self, now: int) -> None:
        due = self._traffic.due(self._next)
        if self._is_over() or due <= now:
            self._awake = None
        else:
            self._awake = datetime.fromtimestamp(max(due, now + PAUSE_US_MIN) / 1e6, UTC)
