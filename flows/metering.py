"""The metering flow: usage events in, exact totals, alerts and billable events out.

    source ─ decode ─ meter (per shard) ─┬─ store
                                         ├─ alerts
                                         ├─ dead letters
                                         └─ billing

`python -m bytewax.run flows.metering` reads the settings and runs it, with recovery on unless a setting says
otherwise. An item of the stream is never an event: a poll is parted into chunks, one per shard, and a chunk becomes one
emission.
"""

import gc
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple

import bytewax.operators as op
import msgspec
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from connectors import recovery
from connectors.journal import Journal, Position
from operators.catalog import Catalog
from operators.chunk import Chunk
from operators.decode import Decoder
from operators.ports import Payloads, StoreWriter
from operators.records import Accepted, Alert, Counter, DeadLetter, Total
from operators.routing import shard_names, shard_of_name
from operators.shard import Outcome, Shard
from settings.catalog import CatalogError, load_catalog
from settings.problems import SettingsError
from settings.settings import Settings, load_settings

# Outside of texts, where JSON has neither, a line break is white space like any other.
_NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")

_EPOCH = datetime(1970, 1, 1)

# Between two writes of a shard, per total written: a little while events trickle in, more while a backlog comes in
# chunks of many, which is when writing less often lets it be worked off sooner.
PACE, BACKLOG_PACE = timedelta(microseconds=5), timedelta(microseconds=80)
BACKLOG_EVENTS = 200
COUNTERS_EVERY = timedelta(seconds=1)


class Emission(NamedTuple):
    """What leaves the keyed step at once."""

    totals: list[Total]
    counters: list[Counter]
    alerts: list[Alert]
    dead: list[DeadLetter]
    accepted: list[Accepted]


class ShardLogic(StatefulBatchLogic[tuple[int, Chunk], Emission, Position | None]):
    """One shard as Bytewax drives it: chunks in, emissions out at their pace, the journal at snapshots.

    Alerts and dead letters leave at once. Totals leave at once too, then pause for `coalesce` or for a pace per total
    and shard, whichever is longer; in a backlog writing then takes about a twentieth of the time.
    """

    def __init__(self, settings: Settings, catalog: Catalog, position: Position | None) -> None:
        self._settings = settings
        self._catalog = catalog
        self._shard: Shard | None = None
        self._journal: Journal | None = None
        self._pending = False
        self._events = 0
        self._counters_due: datetime | None = None
        self._next = datetime.now(UTC)
        if position is not None:
            self._open(position.shard, position)
            # What was changed but not yet written when the snapshot was taken is written now.
            self._pending = True

    def on_batch(self, values: list[tuple[int, Chunk]]) -> tuple[Iterable[Emission], bool]:
        if self._shard is None:
            self._open(values[0][0], None)
        shard = self._shard
        assert shard is not None
        outcomes = [shard.apply(chunk) for _, chunk in values]
        self._events = sum(len(chunk) for _, chunk in values)
        self._pending = True
        now = datetime.now(UTC)
        return self._emit(shard, outcomes, now, now >= self._next), StatefulBatchLogic.RETAIN

    def on_notify(self) -> tuple[Iterable[Emission], bool]:
        assert self._shard is not None
        return self._emit(self._shard, [], datetime.now(UTC), True), StatefulBatchLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[Emission], bool]:
        if self._shard is None:
            return (), StatefulBatchLogic.RETAIN
        self._counters_due = datetime.now(UTC)
        return self._emit(self._shard, [], datetime.now(UTC), True), StatefulBatchLogic.RETAIN

    def notify_at(self) -> datetime | None:
        due = [self._next] if self._pending else []
        due += [self._counters_due] if self._counters_due else []
        return min(due, default=None)

    def snapshot(self) -> Position | None:
        assert self._shard is not None
        if self._journal is None:
            self._shard.forget()
            return None
        frames = self._shard.delta()
        return self._journal.append(frames, self._shard.streams)

    def _open(self, number: int, position: Position | None) -> None:
        settings = self._settings
        build = (number, self._catalog, settings.lateness, settings.now)
        forward = "billing" in settings.branches
        if not settings.recovery:
            self._shard = Shard(*build, forward=forward)
            return
        self._journal = Journal(settings.data_dir / "journal", number, settings.sync)
        frames = self._journal.resume(position)
        self._shard = Shard.restore(*build, frames, forward=forward)
        if position is not None and not self._journal.survived(position):
            # A power cut may have cost the store its last commits, which nothing else would write again.
            self._shard.resend()

    def _emit(self, shard: Shard, outcomes: list[Outcome], now: datetime, due: bool) -> list[Emission]:
        totals: list[Total] = []
        counters: list[Counter] = []
        if due:
            totals = shard.totals()
            self._pending = False
            pace = BACKLOG_PACE if self._events >= BACKLOG_EVENTS else PACE
            self._next = now + max(self._settings.coalesce, len(totals) * self._settings.shards * pace)
        if self._counters_due is None:
            self._counters_due = now + COUNTERS_EVERY
        if now >= self._counters_due:
            counters = shard.counters()
            self._counters_due = None
        alerts = [*shard.review(), *chain.from_iterable(outcome.alerts for outcome in outcomes)]
        dead = list(chain.from_iterable(outcome.dead for outcome in outcomes))
        accepted = list(chain.from_iterable(outcome.accepted for outcome in outcomes))
        emission = Emission(totals, counters, alerts, dead, accepted)
        return [emission] if any(emission) else []


class StoreSink(DynamicSink[Emission]):
    """Writes totals and counters on the worker that made them, one transaction per batch of emissions."""

    def __init__(self, open_writer: Callable[[], StoreWriter]) -> None:
        self._open_writer = open_writer

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_StorePartition":
        return _StorePartition(self._open_writer())


class _StorePartition(StatelessSinkPartition[Emission]):
    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer

    def write_batch(self, items: list[Emission]) -> None:
        totals = list(chain.from_iterable(emission.totals for emission in items))
        counters = list(chain.from_iterable(emission.counters for emission in items))
        self._writer.write(totals, counters)

    def close(self) -> None:
        self._writer.close()


def flow() -> Dataflow:
    """The flow that the settings describe; ends the process with one clear line if they can't be."""
    try:
        settings = load_settings()
        catalog = load_catalog(settings.catalog)
        if settings.recovery:
            folder = recovery.prepare(settings.data_dir, settings.recovery_parts, settings.shards)
            recovery.hold(settings.data_dir)
            if not recovery.is_on():
                recovery.start_over(folder, settings.epoch)
        return build(settings, catalog)
    except (SettingsError, CatalogError, recovery.RecoveryError) as error:
        sys.exit(str(error))


def build(settings: Settings, catalog: Catalog) -> Dataflow:
    """The flow for these settings, ready to run."""
    decoder = Decoder(
        catalog,
        shards=settings.shards,
        clock=settings.now,
        future=settings.future,
        payload_bytes_max=settings.payload_bytes_max,
    )
    branches = settings.branches
    # Decoded events are thousands of short-lived dicts without cycles, which the collector would visit for nothing.
    gc.set_threshold(200_000, 50, 50)

    names = shard_names(settings.shards)

    def chunks_of(polls: list[Payloads]) -> Iterable[tuple[str, tuple[int, Chunk]]]:
        return ((names[shard], (shard, chunk)) for poll in polls for shard, chunk in decoder.decode(poll))

    def logic(position: Position | None) -> ShardLogic:
        return ShardLogic(settings, catalog, position)

    metering = Dataflow("metering")
    polls = op.input("source", metering, settings.source.open(**_source_limits(settings)))
    chunks = op.flat_map_batch("decode", polls, chunks_of)
    emissions = op.stateful_batch("meter", chunks, logic)
    if "store" in branches:
        written = op.map("totals", emissions, lambda keyed: keyed[1])
        op.output("store", written, StoreSink(settings.store.open))
    if "alerts" in branches:
        alerts = op.flat_map("alert", emissions, lambda keyed: _lines(keyed[0], keyed[1].alerts, encode_alert))
        op.output("alerts", alerts, _sink(settings.alerts, settings))
    dead = op.flat_map("dead", emissions, lambda keyed: _lines(keyed[0], keyed[1].dead, encode_dead_letter))
    op.output("dead_letters", dead, _sink(settings.dead_letters, settings))
    if "billing" in branches:
        accepted = op.flat_map("bill", emissions, lambda keyed: _lines(keyed[0], keyed[1].accepted, encode_accepted))
        op.output("billing", accepted, _sink(settings.billing, settings, parts=settings.shards))
    return metering


def encode_alert(alert: Alert) -> bytes:
    """An alert as one line of JSON, times as RFC 3339."""
    fields = msgspec.structs.asdict(alert)
    for name in ("period_start", "period_end", "at"):
        fields[name] = instant(fields[name])
    return msgspec.json.encode(fields)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """A dead letter as one line of JSON; the payload as text, or in base64 where it is not UTF-8."""
    fields = msgspec.structs.asdict(letter)
    payload = fields.pop("payload")
    try:
        fields["payload"] = payload.decode()
    except UnicodeDecodeError:
        fields["payload_base64"] = payload
    fields["received_at"] = instant(letter.received_at)
    return msgspec.json.encode(fields)


def encode_accepted(event: Accepted) -> bytes:
    """An accepted event as one line of JSON: its safe id, its customer, time and lateness, and the event itself."""
    fields = {
        "event_id": event.id,
        "customer_id": event.customer,
        "timestamp": instant(event.at),
        "late": event.late,
        "event": msgspec.Raw(event.payload.translate(_NO_BREAKS)),
    }
    return msgspec.json.encode(fields)


def instant(at: int) -> str:
    """Microseconds since the epoch as RFC 3339, UTC."""
    return f"{(_EPOCH + timedelta(microseconds=at)).isoformat(timespec='microseconds')}Z"


def _lines(key: str, records: list[Any], encode: Callable[[Any], bytes]) -> list[tuple[str, bytes]]:
    shard = str(shard_of_name(key))
    return [(shard, encode(record)) for record in records]


def _source_limits(settings: Settings) -> dict[str, Any]:
    return {"poll_bytes": settings.poll_bytes} if settings.source.scheme == "file" else {}


def _sink(address: Any, settings: Settings, **given: Any) -> Any:
    """A sink that takes back what a resume replays, where it can: files do."""
    if address.scheme != "file":
        return address.open(**given)
    lineage = recovery.lineage(settings.data_dir) if settings.recovery else ""
    return address.open(lineage=lineage, fsync=settings.sync, **given)
