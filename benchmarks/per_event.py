"""The same metering as one writes it first with Bytewax: an event at a time through the library's steps.

    lines ─ filter_map decode ─ key_on customer ─ stateful_flat_map dedup ─ flat_map readings
          ─ key_on customer+meter ─ stateful_flat_map totals ─ SQLite

Everything is as the documentation shows it: a dict or a set per key as state, one key per customer for dedup
and one per customer and meter for totals, recovery on. Totals are upserted into SQLite, each batch that
reaches the sink as one transaction with the last of several values of a total. PER_EVENT_FLUSH_S=1 collects
changes for a second before they are written: faster, but what waits when the process dies is missing until
its key changes again, as the snapshot is ahead of it. Left out, in its favour: conflicts, alerts, time
classes, zones, the bodies of dead letters, counters.

    PER_EVENT_SOURCE=events.ndjson PER_EVENT_STORE=totals.db \\
        python -m bytewax.run benchmarks.per_event:flow -r recovery/ -s 10 -b 0
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import bytewax.operators as op
import msgspec
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from msgspec import Meta

from benchmarks.oracle import Row

LATENESS = timedelta(hours=24)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Identifier = Annotated[str, Meta(min_length=1, max_length=1024)]
Number = int | Decimal


class Event(msgspec.Struct):
    specversion: str
    id: Identifier
    source: Identifier
    type: Name
    subject: Name
    time: Annotated[datetime, Meta(tz=True)]
    data: dict[str, Any]


class Reading(NamedTuple):
    meter: str
    at: datetime
    quantity: Number


# Window, start, total and number of events.
Change = tuple[str, datetime, Number, int]

DECODER = msgspec.json.Decoder(Event, float_hook=Decimal)
METERS = {
    "llm.completion": (("tokens_in", "input_tokens"), ("tokens_out", "output_tokens"), ("requests", None)),
    "gpu.job": (("gpu_seconds", "seconds"),),
    "llm.session": (("context", "context"),),
}


def decode(line: str) -> Event | None:
    try:
        return DECODER.decode(line)
    except msgspec.MsgspecError:
        return None


Seen = tuple[datetime, dict[datetime, set[tuple[str, str]]]]


def dedup(state: Seen | None, event: Event) -> tuple[Seen, Iterable[Event]]:
    """The event, if its identity is new and it is not too late."""
    latest, hours = state or (event.time, {})
    latest = max(latest, event.time)
    hour = event.time.replace(minute=0, second=0, microsecond=0)
    ids = hours.get(hour)
    if ids is None:
        hours = {kept: ids for kept, ids in hours.items() if kept > latest - LATENESS - timedelta(hours=1)}
        ids = hours[hour] = set()
    identity = (event.source, event.id)
    if event.time < latest - LATENESS or identity in ids:
        return (latest, hours), ()
    ids.add(identity)
    return (latest, hours), (event,)


def readings(keyed: tuple[str, Event]) -> Iterator[tuple[str, Reading]]:
    """What the event adds to each meter, under the meter's key."""
    customer, event = keyed
    for meter, key in METERS.get(event.type, ()):
        if meter == "tokens_in" and event.data.get("cached") is not False:
            continue
        quantity = event.data.get(key) if key else 1
        if type(quantity) in (int, Decimal):
            yield f"{customer}|{meter}", Reading(meter, event.time, cast(Number, quantity))


Totals = dict[tuple[str, datetime], tuple[Number, int]]


def add(state: Totals | None, reading: Reading) -> tuple[Totals, Iterable[Change]]:
    """The totals of hour, day and month with the reading in them."""
    totals = state if state is not None else {}
    hour = reading.at.replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    changed = []
    for window in (("hour", hour), ("day", day), ("period", day.replace(day=1))):
        total, events = totals.get(window, (0, 0))
        total = max(total, reading.quantity) if reading.meter == "context" else total + reading.quantity
        totals[window] = (total, events + 1)
        changed.append((*window, total, events + 1))
    return totals, changed


class TotalsSink(DynamicSink[tuple[str, Change]]):
    def __init__(self, path: Path, flush_s: float) -> None:
        self.path = path
        self.flush_s = flush_s

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "TotalsWritten":
        return TotalsWritten(self.path, self.flush_s)


class TotalsWritten(StatelessSinkPartition[tuple[str, Change]]):
    def __init__(self, path: Path, flush_s: float) -> None:
        self.flush_s = flush_s
        self.written = time.monotonic()
        self.last: dict[tuple[str, str, datetime], tuple[Number, int]] = {}
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS totals (key TEXT, window TEXT, start INTEGER, total TEXT,"
            " events INTEGER, PRIMARY KEY (key, window, start)) WITHOUT ROWID"
        )

    def write_batch(self, items: list[tuple[str, Change]]) -> None:
        self.last.update(
            {(key, window, start): (total, events) for key, (window, start, total, events) in items}
        )
        if time.monotonic() - self.written >= self.flush_s:
            self.flush()

    def flush(self) -> None:
        rows = [
            (key, window, (start - EPOCH) // timedelta(microseconds=1), str(total), events)
            for (key, window, start), (total, events) in self.last.items()
        ]
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR REPLACE INTO totals VALUES (?, ?, ?, ?, ?)", rows)
        self.db.execute("COMMIT")
        self.last.clear()
        self.written = time.monotonic()

    def close(self) -> None:
        self.flush()
        self.db.close()


def flow() -> Dataflow:
    """The whole of it, between PER_EVENT_SOURCE and PER_EVENT_STORE."""
    dataflow = Dataflow("per_event")
    lines = op.input("lines", dataflow, FileSource(os.environ["PER_EVENT_SOURCE"]))
    events = op.filter_map("decode", lines, decode)
    keyed = op.key_on("customer", events, lambda event: event.subject)
    accepted = op.stateful_flat_map("dedup", keyed, dedup)
    metered = op.flat_map("readings", accepted, readings)
    changes = op.stateful_flat_map("totals", metered, add)
    flush_s = float(os.environ.get("PER_EVENT_FLUSH_S", "0"))
    op.output("store", changes, TotalsSink(Path(os.environ["PER_EVENT_STORE"]), flush_s))
    return dataflow


def stored(path: Path) -> Iterator[Row]:
    """Every total in the table, as the oracle tells it."""
    db = sqlite3.connect(path)
    for key, window, start, total, events in db.execute("SELECT * FROM totals"):
        customer, meter = key.rsplit("|", 1)
        text = total.rstrip("0").rstrip(".") if "." in total else total
        yield Row(customer, meter, window, start, text, events)
    db.close()
