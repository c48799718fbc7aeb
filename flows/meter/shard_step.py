"""How Bytewax drives a shard: chunks and control records in, emissions out at their pace, the journal at snapshots."""

import logging
from collections import Counter as Tally
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import chain
from time import monotonic

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.engine import StatefulBatchLogic
from tidegate.flows.meter.control_source import CatalogNews, ControlItem
from tidegate.flows.meter.emission import Emission
from tidegate.flows.meter.store_step import StoreStep
from tidegate.flows.runtime.error_logging import log_errors
from tidegate.flows.runtime.journal import Journal, Position
from tidegate.flows.runtime.metrics import ShardNumbers, Telemetry
from tidegate.operators.events.chunk import Chunk
from tidegate.operators.metering.catalog_change import BOUNDARIES, render_moves
from tidegate.operators.metering.republish import REPUBLISH_KIND
from tidegate.operators.metering.shard import Outcome, Shard
from tidegate.operators.metering.totals import Totals
from tidegate.operators.model.adjustments import USED_BEFORE, compute_fingerprint
from tidegate.operators.model.freshness import HEARTBEAT_EVERY, Heartbeat, Progress, ProgressMark
from tidegate.operators.model.ports import Adjustment, Note, Resend, Settled, StreamMark
from tidegate.operators.model.records import Alert, Counter
from tidegate.operators.model.wire import encode_alert
from tidegate.settings.catalog.versions import CatalogFollower
from tidegate.settings.settings import Settings

_LOG = logging.getLogger(__name__)

# Between two writes of a shard, per total written: a little while events trickle in, more while a backlog comes in
# chunks of many, which is when writing less often lets it be worked off sooner.
PACE, BACKLOG_PACE = timedelta(microseconds=5), timedelta(microseconds=80)
BACKLOG_EVENTS = 200
# Totals of events that are an hour old are not much fresher for being written each second, those of now are.
AGE_SHARE, PAUSE_MAX = 10, timedelta(seconds=10)
# Where totals are written on another core.
PAUSE_MAX_ASIDE, LOOK_FOR_ROOM = timedelta(seconds=2), timedelta(milliseconds=20)
COUNTERS_EVERY = timedelta(seconds=1)
HEARTBEAT_PERIOD = timedelta(microseconds=HEARTBEAT_EVERY)
# A mark is reported soon, but not each one of many partitions by itself.
HEARTBEAT_GAP = HEARTBEAT_PERIOD * 2 / 5

_LOG = logging.getLogger("tidegate.flow")

Item = Chunk | ControlItem | StreamMark | ProgressMark


def pause(settings: Settings, totals: int, events: int, age: timedelta, longest: timedelta) -> timedelta:
    """From a write of so many totals of a shard to its next, `events` being its last batch, the latest that old.

    `coalesce`, or a pace per total and shard if that is longer. In a backlog writing then takes about a twentieth of
    the time, or more where that would make totals much older than their events are anyway.
    """
    rows = totals * settings.shards
    found = max(settings.coalesce, rows * PACE)
    return (
        max(found, min(rows * BACKLOG_PACE, age / AGE_SHARE, longest)) if events >= BACKLOG_EVENTS else found
    )


class ShardLogic(StatefulBatchLogic[tuple[int, Item], Emission, Position | None]):
    """One shard.

    Alerts and dead letters leave at once. Totals leave at once too, then after a `pause` each time, as soon as the
    store has room for them. What they settle leaves with them, and a heartbeat that says what they contain; without
    totals to write a heartbeat leaves each HEARTBEAT_PERIOD.
    """

    def __init__(
        self,
        settings: Settings,
        catalogs: CatalogFollower,
        telemetry: Telemetry,
        storing: StoreStep,
        position: Position | None,
        process: str = "",
    ) -> None:
        self._settings = settings
        self._catalogs = catalogs
        self._telemetry = telemetry
        self._storing = storing
        self._received_at = self._happened_at = 0
        self._saved_at = monotonic()
        self._number = 0
        self._shard: Shard | None = None
        self._resumed: dict[str, int] = {}
        """Its counters when this process took it over."""
        self._journal: Journal | None = None
        self._pending = False
        self._settled: list[Settled] = []
        self._notes: list[Note] = []
        self._refused: set[str] = set()
        self._events = 0
        self._outliers_logged = 1
        self._counters_due: datetime | None = None
        self._process = process
        self._progress: Progress | None = None
        self._heartbeat_at = self._heartbeat_due = datetime.now(UTC)
        self._next = datetime.now(UTC)
        self._latest = self._next + PAUSE_MAX
        telemetry.shards.add(self)
        if position is not None:
            self._settled += self._open(position.shard, position).list_identities()
            # What was changed but not yet written when the snapshot was taken is written now.
            self._pending = True
            self._counters_due = self._next

    @log_errors
    def on_batch(self, values: list[tuple[int, Item]]) -> tuple[Iterable[Emission], bool]:
        shard = self._shard or self._open(values[0][0], None)
        self._events = 0
        outcomes: list[Outcome] = []
        alerts: list[Alert] = []
        progress = self._progress
        assert progress is not None
        for _, item in values:
            if isinstance(item, ProgressMark):
                progress.receive(item)
                self._heartbeat_due = min(self._heartbeat_due, self._heartbeat_at + HEARTBEAT_GAP)
            elif isinstance(item, Chunk):
                self._pending = True
                progress.advance(item.stream.removeprefix(self._settings.source.place), item.position)
                self._meet(shard, item.catalog)
                outcomes.append(shard.apply(item))
                self._warn_of_outliers(shard)
                self._events += len(item)
                self._received_at = self._received_at or item.received_at
                if len(item):
                    self._happened_at = max(self._happened_at, int(item.at[-1]))
            elif isinstance(item, StreamMark):
                shard.note_mark(item)
            else:
                self._pending = True
                alerts += self._apply_control(shard, item)
        self._settled += [outcome.settled for outcome in outcomes if outcome.settled is not None]
        now = datetime.now(UTC)
        if self._pending and self._counters_due is None:
            self._counters_due = now + COUNTERS_EVERY
        due = self._pending and self._is_due(now)
        return self._emit(shard, outcomes, alerts, now, due), StatefulBatchLogic.RETAIN

    def _warn_of_outliers(self, shard: Shard) -> None:
        """Log that dates or clocks are wrong, the first time and whenever there are twice as many."""
        outliers = shard.counts.get("outliers", 0)
        if outliers >= self._outliers_logged:
            self._outliers_logged = 2 * outliers
            _LOG.warning(
                "shard %d: %d times so far lay ahead of those before and after them by more than the lateness; a date"
                " or a clock is wrong there, which makes nothing late (counter `outliers`)",
                shard.index,
                outliers,
            )

    @log_errors
    def on_notify(self) -> tuple[Iterable[Emission], bool]:
        assert self._shard is not None
        now = datetime.now(UTC)
        # It may be the counters or the heartbeat alone that are due.
        return self._emit(
            self._shard, [], [], now, self._pending and self._is_due(now)
        ), StatefulBatchLogic.RETAIN

    @log_errors
    def on_eof(self) -> tuple[Iterable[Emission], bool]:
        if self._shard is None:
            return (), StatefulBatchLogic.RETAIN
        self._counters_due = datetime.now(UTC)
        emissions = self._emit(self._shard, [], [], datetime.now(UTC), True, ended=True)
        return emissions, StatefulBatchLogic.RETAIN

    def notify_at(self) -> datetime | None:
        due = [self._next] if self._pending else []
        due += [self._counters_due] if self._counters_due else []
        due += [self._heartbeat_due] if self._shard is not None else []
        return min(due, default=None)

    @log_errors
    def snapshot(self) -> Position | None:
        assert self._shard is not None
        if self._journal is None:
            self._shard.discard_unsaved()
            return None
        began = monotonic()
        with self._telemetry.span("snapshot", shard=self._shard.index):
            position = self._journal.append(self._shard.take_delta(), self._shard.files)
        now = monotonic()
        telemetry = self._telemetry
        telemetry.snapshot_seconds.observe(now - began)
        telemetry.epoch_seconds.observe(now - self._saved_at)
        telemetry.snapshot_bytes.inc(self._journal.appended)
        self._saved_at = now
        return position

    def numbers(self) -> ShardNumbers | None:
        """Return the shard's statistics, for readers on another thread."""
        shard = self._shard
        if shard is None:
            return None
        state, identities = shard.nbytes
        return ShardNumbers(
            counts={name: n - self._resumed.get(name, 0) for name, n in list(shard.counts.items())},
            customers=len(shard.key_index.names),
            keys=shard.key_index.key_customer.size,
            remembered=len(shard.memory),
            state_bytes=state,
            identity_bytes=identities,
            watermark=shard.latest,
            catalog=self._number,
        )

    def _open(self, number: int, position: Position | None) -> Shard:
        settings = self._settings
        self._progress = Progress(number, settings.shards, self._process)
        version = self._catalogs.current
        self._number = version.number
        build = (number, version.catalog, settings.lateness, settings.now)
        forward = "billing" in settings.branches
        if not settings.recovery:
            self._shard = Shard(*build, forward=forward, number=self._number, future=settings.future)
            return self._shard
        self._journal = Journal(
            settings.data_dir / "journal", number, settings.sync, self._telemetry.journal_seconds.observe
        )
        frames = self._journal.resume(position)
        restored = Shard.restore(
            *build,
            frames,
            forward=forward,
            number=self._number,
            future=settings.future,
            applied_at=version.applied_at,
            received_at=wall_clock(),
        )
        # Before the shard is seen by other threads, which would take what it resumed for new events.
        self._resumed = dict(restored.counts)
        self._shard = restored
        self._catalogs.remember(self._shard.key_index.meters)
        self._report_refused(self._shard)
        self._note_moves(self._shard)
        if position is not None and not self._journal.survived(position):
            # A power cut may have cost the store its last commits, which nothing else would write again.
            self._shard.republish()
        self._shard.write_to(str(settings.store))
        return self._shard

    def _meet(self, shard: Shard, number: int) -> None:
        """Sees to it that chunks under this catalog can be read: they come before its news, or after the next one's."""
        if number > self._number:
            version = self._catalogs.get(number)
            shard.adopt_catalog(number, version.catalog, version.applied_at, wall_clock())
            self._number = number
            self._note_moves(shard)
        elif number not in shard.key_index.meter_numbers:
            shard.key_index.learn_catalog(number, self._catalogs.get(number).catalog)
        self._report_refused(shard)

    def _report_refused(self, shard: Shard) -> None:
        """Says once of each meter that this shard can't count it."""
        for name, why in shard.key_index.refused.items():
            if name not in self._refused:
                self._refused.add(name)
                _LOG.error("shard %d does not count what the catalog says: %s", shard.index, why)

    def _apply_control(self, shard: Shard, item: ControlItem) -> list[Alert]:
        """Apply a control record, and write a note that it was applied."""
        match item:
            case Adjustment():
                alerts, refused = shard.adjust(item, wall_clock())
                fields = msgspec.structs.asdict(item) | {"refused": refused}
                # A note of its own, as the note under the id is of the adjustment that stands.
                id = f"{item.id}/{compute_fingerprint(item):016x}" if refused == USED_BEFORE else item.id
                self._note("adjustment", id, item.customer, fields)
                return alerts
            case Resend():
                shard.republish()
                # At once, all of it: a snapshot in between would know the request as done.
                self._next = self._counters_due = datetime.now(UTC)
                fields = {"shard": shard.index, "shards": self._settings.shards}
                self._note(REPUBLISH_KIND, f"{item.id}/{shard.index}", "", fields)
            case CatalogNews():
                self._meet(shard, item.number)
        return []

    def _heartbeat(self, now: datetime, due: bool) -> Heartbeat | None:
        """Return the heartbeat that leaves with this emission, if one does."""
        progress = self._progress
        assert progress is not None
        if due or not self._pending:
            # All that was counted is stored, or leaves with this.
            progress.mark_stored()
        if not due and now < self._heartbeat_due:
            return None
        self._heartbeat_at, self._heartbeat_due = now, now + HEARTBEAT_PERIOD
        return progress.build_heartbeat(wall_clock())

    def _note_moves(self, shard: Shard) -> None:
        """Note which windows a catalog moved: one note per catalog version and shard."""
        for moves in shard.drain_moves():
            fields = {"catalog": self._number, "shard": shard.index} | render_moves(moves)
            self._note(BOUNDARIES, f"{self._number}/{shard.index}", "", fields)

    def _note(self, kind: str, id: str, customer: str, fields: dict[str, object]) -> None:
        self._notes.append(Note(kind, id, customer, wall_clock(), msgspec.json.encode(fields)))

    def _is_due(self, now: datetime) -> bool:
        """Whether totals are to leave. While the store has no room for them they gather here, for a bounded time."""
        if now < self._next:
            return False
        if self._storing.has_room() or now >= self._latest:
            return True
        self._next = now + LOOK_FOR_ROOM
        return False

    def _emit(
        self,
        shard: Shard,
        outcomes: list[Outcome],
        alerts: list[Alert],
        now: datetime,
        due: bool,
        ended: bool = False,
    ) -> list[Emission]:
        totals = Totals()
        counters: list[Counter] = []
        notes: list[Note] = []
        settled: list[Settled] = []
        if due:
            totals = shard.drain_totals()
            notes, self._notes = self._notes, notes
            settled, self._settled = self._settled, settled
            self._pending = False
            age = timedelta(microseconds=wall_clock() - self._happened_at)
            longest = PAUSE_MAX_ASIDE if self._storing.is_aside else PAUSE_MAX
            self._next = now + pause(self._settings, len(totals), self._events, age, longest)
            self._latest = now + PAUSE_MAX
            if totals:
                self._storing.expect(len(totals))
        if self._counters_due is not None and now >= self._counters_due:
            counters = shard.list_counters()
            notes += shard.unmetered.drain_notes(shard.index, all=ended)
            self._counters_due = now + COUNTERS_EVERY if shard.unmetered.is_behind else None
        alerts = [
            *shard.drain_reviewed(),
            *alerts,
            *chain.from_iterable(outcome.alerts for outcome in outcomes),
        ]
        told = [(alert, encode_alert(alert)) for alert in alerts]
        notes += [Note("alert", alert.id, alert.customer, alert.at, line) for alert, line in told]
        for labels, times in Tally((alert.kind, alert.state) for alert in alerts).items():
            self._telemetry.alerts.labels(*labels).inc(times)
        dead = list(chain.from_iterable(outcome.dead for outcome in outcomes))
        accepted = list(chain.from_iterable(outcome.accepted for outcome in outcomes))
        heartbeat = self._heartbeat(now, due)
        received_at = happened_at = 0
        if totals:
            received_at, self._received_at = self._received_at, 0
            happened_at, self._happened_at = self._happened_at, 0
        emission = Emission(
            totals, counters, told, dead, accepted, notes, settled, received_at, happened_at, heartbeat
        )
        return [emission] if any(emission) else []
