"""What a flow process tells of itself: Prometheus metrics of every stage, by the standard client.

The hot path keeps plain numbers; the collector reads them when it is asked. Only what needs a distribution is
observed as it happens, once per batch. Names follow https://prometheus.io/docs/practices/naming/.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import NamedTuple, Protocol
from weakref import WeakSet

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tidegate.flows.runtime.tracing import Span, no_span
from tidegate.operators.events.unmetered import REASONS
from tidegate.operators.model.freshness import Heartbeat

US = 1_000_000
STORE_SILENT_S = 3.0
"""A write that takes so long is not slow: the store is away."""
LAGS = {"messages": "tidegate_lag_messages", "bytes": "tidegate_lag_bytes"}

_PHASES = {
    "starting": "opens its store and source",
    "waiting": "waits for the other processes of its cluster",
    "draining": "has stopped reading, and ends",
}
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
_OUTCOMES = ("rejects", "too_late", "duplicates", "conflicts", "accepted")


class ShardNumbers(NamedTuple):
    """A shard at a glance. `counts` are its counters since this process started, `watermark` is µs since the epoch."""

    counts: dict[str, int]
    customers: int
    keys: int
    remembered: int
    state_bytes: int
    identity_bytes: int
    watermark: int
    catalog: int


class ShardView(Protocol):
    def numbers(self) -> ShardNumbers | None: ...


class PartitionView(Protocol):
    """A source's partition: its name, what it has handed out, and what it has not yet, None where that is not known.

    `unit` is what that is counted in, `messages` or `bytes`.
    """

    name: str
    unit: str
    handed_out: int
    caught_up_at: float

    def behind(self) -> int | None: ...


class OutboxView(Protocol):
    """How an outbox stands (connectors/outbox/reader.py)."""

    @property
    def waiting(self) -> int: ...
    @property
    def oldest_at(self) -> int | None: ...
    @property
    def parked(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def counts(self) -> Mapping[str, int]: ...


class Telemetry:
    """The metrics of one process, in a registry of their own."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.registry = CollectorRegistry()
        self.shards: WeakSet[ShardView] = WeakSet()
        self.partitions: WeakSet[PartitionView] = WeakSet()
        self.left: list[PartitionView] = []
        """Partitions that are read no more though something is left in them."""
        self.phase: Callable[[], str] = lambda: "running"
        self.heartbeats: dict[int, Heartbeat] = {}
        """The last heartbeat of each shard that the store has."""
        self.stalled = False
        self.catalog_problem: Callable[[], str] = lambda: ""
        self._asked: dict[int, float] = {}
        self.span: Span = no_span
        self.outbox: Callable[[], OutboxView | None] = lambda: None
        self.clock = clock
        self.visible = Histogram(
            "tidegate_visible_seconds",
            "From an event's receipt to its total in the store.",
            buckets=_FAST,
            registry=self.registry,
        )
        self.age = Histogram(
            "tidegate_event_age_seconds",
            "From an event's own time to its total in the store, of the latest event in a write.",
            buckets=_FAST,
            registry=self.registry,
        )
        self.write_seconds = Histogram(
            "tidegate_store_write_seconds", "Round trips to the store.", buckets=_FAST, registry=self.registry
        )
        self.rows = Counter("tidegate_store_rows", "Totals handed to the store.", registry=self.registry)
        self.snapshot_seconds = Histogram(
            "tidegate_snapshot_seconds",
            "Gathering a shard's changes for its journal.",
            buckets=_FAST,
            registry=self.registry,
        )
        self.journal_seconds = Histogram(
            "tidegate_journal_write_seconds",
            "Writing one file of a journal, and forcing it to disk.",
            buckets=_FAST,
            registry=self.registry,
        )
        self.snapshot_bytes = Counter(
            "tidegate_snapshot_bytes", "Bytes appended to journals.", registry=self.registry
        )
        self.epoch_seconds = Histogram(
            "tidegate_epoch_seconds",
            "From one snapshot of a shard to its next.",
            buckets=_FAST,
            registry=self.registry,
        )
        self.alerts = Counter(
            "tidegate_alerts", "Alerts by kind and state.", ["kind", "state"], registry=self.registry
        )
        self.registry.register(_Collector(self))

    @contextmanager
    def track_store_wait(self) -> Iterator[None]:
        """Note that this thread waits for the store, for as long as the block takes."""
        thread = get_ident()
        self._asked[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._asked[thread]

    def store_waits(self) -> float:
        """Return for how many seconds the store has owed an answer, 0 where it owes none."""
        now = time.monotonic()
        return max((now - began for began in list(self._asked.values())), default=0.0)

    def trouble(self) -> tuple[str, str] | None:
        """Return why the process is not ready, as a word and a sentence; None where it is."""
        phase = self.phase()
        if phase != "running":
            return phase, _PHASES[phase]
        if (waits := self.store_waits()) > STORE_SILENT_S:
            return "store_away", f"the store has not answered for {waits:.0f} s"
        if self.stalled:
            return "stalled", "there is input, and nothing is metered"
        return None

    def events(self) -> int:
        """How many events this process's shards have counted since its start."""
        return sum(found.counts.get("events", 0) for found in self._shards())

    def behind(self) -> int:
        """How much the sources have that was not handed out yet; messages or bytes."""
        return sum(partition.behind() or 0 for partition in list(self.partitions))

    def handed_out(self) -> int:
        """How many polls the sources have handed out."""
        return sum(partition.handed_out for partition in list(self.partitions))

    def _shards(self) -> list[ShardNumbers]:
        return [found for shard in list(self.shards) if (found := shard.numbers()) is not None]


class _Collector(Collector):
    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterable[Metric]:
        yield from _of_shards(self._telemetry._shards())
        yield from self._of_partitions()
        outbox = self._telemetry.outbox()
        if outbox is not None:
            yield from _of_outbox(outbox, self._telemetry.clock())
        yield GaugeMetricFamily(
            "tidegate_stalled",
            "1 while there is something to read and nothing is metered.",
            value=float(self._telemetry.stalled),
        )
        yield GaugeMetricFamily(
            "tidegate_catalog_refused",
            "1 while the catalog file or the newest version can't be used, so that the last good one is in force.",
            value=float(bool(self._telemetry.catalog_problem())),
        )
        yield from self._of_process()

    def _of_process(self) -> Iterator[Metric]:
        telemetry = self._telemetry
        yield GaugeMetricFamily(
            "tidegate_ready", "1 while /readyz says so.", value=float(telemetry.trouble() is None)
        )
        phases = GaugeMetricFamily(
            "tidegate_phase", "1 for the phase that the process is in.", labels=["phase"]
        )
        for phase in ("running", *_PHASES):
            phases.add_metric([phase], float(phase == telemetry.phase()))
        yield phases
        yield GaugeMetricFamily(
            "tidegate_store_waits_seconds",
            "For how long the store has owed an answer.",
            value=telemetry.store_waits(),
        )
        ages = GaugeMetricFamily(
            "tidegate_totals_age_seconds",
            "How old the totals of a shard of this process may be in the store.",
            labels=["shard"],
        )
        now = telemetry.clock()
        for shard, one in sorted(telemetry.heartbeats.items()):
            if one.counted_until:
                ages.add_metric([str(shard)], 0 if one.ended else max(now - one.counted_until / US, 0))
        yield ages

    def _of_partitions(self) -> Iterator[Metric]:
        lags = {
            unit: GaugeMetricFamily(
                name, f"What a source has that was not read, in {unit}.", labels=["partition"]
            )
            for unit, name in LAGS.items()
        }
        seconds = GaugeMetricFamily(
            "tidegate_lag_seconds", "Since a source was last read to its end.", labels=["partition"]
        )
        now = self._telemetry.clock()
        for partition in {*self._telemetry.partitions, *self._telemetry.left}:
            behind = partition.behind()
            if behind is not None:
                lags[partition.unit].add_metric([partition.name], behind)
                seconds.add_metric([partition.name], now - partition.caught_up_at if behind else 0)
        yield from lags.values()
        yield seconds


def _of_outbox(outbox: OutboxView, now: float) -> Iterator[Metric]:
    oldest = 0.0 if outbox.oldest_at is None else now - outbox.oldest_at / US
    for name, words, value in (
        ("tidegate_outbox_waiting", "Usage that waits for the provider.", outbox.waiting),
        ("tidegate_outbox_oldest_seconds", "Age of the oldest of it.", oldest),
        ("tidegate_outbox_parked", "Usage that was held back.", outbox.parked),
        ("tidegate_outbox_refused", "Usage that the provider refused.", outbox.refused),
        ("tidegate_outbox_bytes", "Disk in use.", outbox.bytes),
    ):
        yield GaugeMetricFamily(name, words, value=value)
    counts = CounterMetricFamily("tidegate_billing", "What became of usage to be billed.", labels=["outcome"])
    for outcome, count in outbox.counts.items():
        counts.add_metric([outcome], count)
    yield counts


def _of_shards(shards: list[ShardNumbers]) -> Iterator[Metric]:
    """Return the sums over the shards of this process."""
    events = CounterMetricFamily("tidegate_events", "Events by how they ended.", labels=["outcome"])
    readings = CounterMetricFamily(
        "tidegate_readings", "What meters made of events.", labels=["meter", "outcome"]
    )
    unmetered = CounterMetricFamily(
        "tidegate_unmetered", "Accepted events that no meter read, by why not.", labels=["reason"]
    )
    sums: dict[str, int] = dict.fromkeys(_OUTCOMES, 0)
    sums |= {f"unmetered:{reason}": 0 for reason in REASONS}
    for shard in shards:
        for name, count in list(shard.counts.items()):
            sums[name] = sums.get(name, 0) + count
    for name, count in sums.items():
        outcome, _, meter = name.partition(":")
        if outcome == "unmetered":
            if meter:
                unmetered.add_metric([meter], count)
        elif meter:
            readings.add_metric([meter, outcome], count)
        elif outcome in _OUTCOMES:
            events.add_metric([outcome], count)
    yield events
    yield readings
    yield unmetered
    yield CounterMetricFamily(
        "tidegate_adjustments", "Adjustments applied.", value=sums.get("adjustments", 0)
    )
    yield CounterMetricFamily(
        "tidegate_outliers",
        "Times far ahead of those before and after them, which move nothing.",
        value=sums.get("outliers", 0),
    )
    for name, words, value in (
        ("tidegate_customers", "Customers that were ever seen.", sum(shard.customers for shard in shards)),
        ("tidegate_keys", "Pairs of customer and meter.", sum(shard.keys for shard in shards)),
        (
            "tidegate_remembered_ids",
            "Identities held against repeats.",
            sum(shard.remembered for shard in shards),
        ),
        ("tidegate_state_bytes", "Memory of totals.", sum(shard.state_bytes for shard in shards)),
        ("tidegate_identity_bytes", "Memory of identities.", sum(shard.identity_bytes for shard in shards)),
        (
            "tidegate_catalog_version",
            "The oldest catalog in use.",
            min((s.catalog for s in shards), default=0),
        ),
        ("tidegate_watermark_seconds", "The latest now.", max((s.watermark for s in shards), default=0) / US),
    ):
        yield GaugeMetricFamily(name, words, value=value)
