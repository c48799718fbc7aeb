"""The state of a shard: flat columns of customers, keys, totals, alert states and remembered identities.

operators/metering/shard.py changes it chunk by chunk; operators/metering/snapshot.py writes what changed of it and
restores it.
"""

from datetime import timedelta
from typing import Literal, NamedTuple

import numpy as np

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.alerts import AlertStates
from tidegate.operators.metering.dedup import IdentityMemory
from tidegate.operators.metering.key_index import KeyIndex
from tidegate.operators.metering.stream_times import Stream, Streams
from tidegate.operators.metering.unmetered_rows import UnmeteredRows
from tidegate.operators.metering.windows import COLUMNS, PERIOD_COLUMNS, WINDOW_NAMES, WindowAdjustments
from tidegate.operators.model.adjustments import AdjustmentMemory
from tidegate.operators.model.catalog import Catalog, Meter


class SavedSettings(NamedTuple):
    """The settings and clocks that a shard was saved with; `lateness` is None if an older version did not record it."""

    lateness: int | None
    wall: bool
    floor: int
    partitions: dict[str, Stream]


class SaveProgress:
    """How much of a shard the deltas so far contain, and what changed since."""

    def __init__(self) -> None:
        self.whole = True
        self.names = 0
        self.keys = 0
        self.values: dict[str, int] = {}
        self.clocks: list[Ints] = []


class ShardState:
    """The state of one shard. `future` is how far one event alone may advance now."""

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
        self.key_index = KeyIndex(catalog, meters, number)
        self.memory = IdentityMemory()
        self.buckets = Table(1, COLUMNS)
        self.periods = Table(1, PERIOD_COLUMNS)
        self.values = {window: Table(2, {"word": np.uint64}) for window in WINDOW_NAMES}
        self.alert_states = AlertStates(self.key_index, self.periods)
        self.adjusted: dict[int, WindowAdjustments] = {}
        self.adjustments = AdjustmentMemory()
        self.counts: dict[str, int] = {}
        self.unmetered = UnmeteredRows()
        self.let_go = Table(1, {"start": np.int64, "version": np.int64})
        self.latest = 0
        self.saved = SaveProgress()
        self.lateness = lateness // timedelta(microseconds=1)
        self.streams = Streams(clock == "wall", future // timedelta(microseconds=1))
        self.store = ""
        """The store that has the totals which count as written."""
        self.floor = 0
        """Everything before it may be forgotten, also for customers that are not known yet."""

    def resume(self, left: SavedSettings) -> None:
        """Continue from a snapshot, keeping all that was forgotten below the floor.

        This holds under another lateness or clock too.
        """
        if left.lateness is None:
            clock = self.key_index.clock.values
            self.key_index.floor.values[:] = np.where(clock > 0, clock - self.lateness, 0)
            self.floor = 0 if clock.any() else max(0, self.latest - self.lateness)
            self.saved.whole = True
            return
        self.floor = left.floor
        self.streams.restore(left.partitions)
        if left.wall != self.streams.wall:
            self.streams.forget_progress()
            self.saved.whole = True
        self.streams.reopen()
