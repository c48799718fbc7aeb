"""What a shard knows: flat columns of customers, keys, totals, alert states and remembered identities.

operators/metering/shard.py changes it chunk by chunk; operators/metering/snapshot.py writes what changed of it and
builds it up again.
"""

from datetime import timedelta
from typing import Literal, NamedTuple

import numpy as np

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.alerts import Watch
from tidegate.operators.metering.dedup import Memory
from tidegate.operators.metering.key_index import Roster
from tidegate.operators.metering.stream_times import Stream, Streams
from tidegate.operators.metering.unmetered_rows import UnmeteredRows
from tidegate.operators.metering.windows import COLUMNS, PERIOD_COLUMNS, WINDOW_NAMES, Adjusted
from tidegate.operators.model.adjustments import Remembered
from tidegate.operators.model.catalog import Catalog, Meter


class Left(NamedTuple):
    """What a shard went by when it was saved; `lateness` is None of a version that did not say so."""

    lateness: int | None
    wall: bool
    floor: int
    partitions: dict[str, Stream]


class Saved:
    """How much of a shard the deltas so far hold, and what was touched since."""

    def __init__(self) -> None:
        self.whole = True
        self.names = 0
        self.keys = 0
        self.values: dict[str, int] = {}
        self.clocks: list[Ints] = []


class ShardState:
    """The state of one shard. `future` is how far one event alone moves now."""

    def __init__(
        self,
        catalog: Catalog,
        lateness: timedelta,
        clock: Literal["event", "wall"],
        *,
        meters: list[Meter] | None,
        number: int,
        future: timedelta,
    ) -> None:
        self.roster = Roster(catalog, meters, number)
        self.memory = Memory()
        self.buckets = Table(1, COLUMNS)
        self.periods = Table(1, PERIOD_COLUMNS)
        self.values = {window: Table(2, {"word": np.uint64}) for window in WINDOW_NAMES}
        self.watch = Watch(self.roster, self.periods)
        self.adjusted: dict[int, Adjusted] = {}
        self.adjustments = Remembered()
        self.counts: dict[str, int] = {}
        self.unmetered = UnmeteredRows()
        self.let_go = Table(1, {"start": np.int64, "version": np.int64})
        self.latest = 0
        self.saved = Saved()
        self.lateness = lateness // timedelta(microseconds=1)
        self.streams = Streams(clock == "wall", future // timedelta(microseconds=1))
        self.store = ""
        """Where the totals that count as written are."""
        self.floor = 0
        """Before it everything may be forgotten, of customers that are still to come too."""

    def resume(self, left: Left) -> None:
        """Go on from a snapshot. All that was forgotten is below the floor, also under another lateness or clock."""
        if left.lateness is None:
            clock = self.roster.clock.values
            self.roster.floor.values[:] = np.where(clock > 0, clock - self.lateness, 0)
            self.floor = 0 if clock.any() else max(0, self.latest - self.lateness)
            self.saved.whole = True
            return
        self.floor = left.floor
        self.streams.restore(left.partitions)
        if left.wall != self.streams.wall:
            self.streams.forget_progress()
            self.saved.whole = True
        self.streams.reopen()
