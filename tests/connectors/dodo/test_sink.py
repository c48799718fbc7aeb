"""The sink in its process: what is handed over never waits for the provider, and never gets lost on the way."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import pytest

from simulator.client import Simulator
from tests.connectors.dodo.billing_world import MINUTE, accepted
from tests.support.platform import KEY, platform, platform_process  # noqa: F401
from tidegate.connectors.clock import wall_clock
from tidegate.connectors.dodo.sink import DodoSink
from tidegate.connectors.outbox.reader import OutboxReader, QueueStatistics
from tidegate.connectors.outbox.schema import OutboxError, State
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter
from tidegate.operators.billing.outgoing import pack
from tidegate.operators.billing.rate_limit import TIERS
from tidegate.operators.model.catalog import Catalog, Customer, Meter, Plan
from tidegate.operators.model.records import Accepted

CATALOG = Catalog(
    (Meter("tokens", "llm", "sum", "tokens"),),
    {"p": Plan("p")},
    {"acme": Customer("acme", "p", billing_id="cus_acme")},
)
SECONDS = 60


def usage(count: int) -> list[Accepted]:
    return [accepted(wall_clock() - MINUTE + place, tokens=place) for place in range(count)]


@contextmanager
def opened(folder: Path, url: str, **given: Any) -> Iterator[tuple[DodoSink, list[Any]]]:
    """A sink with all its partitions, as one process has them."""
    chosen: dict[str, Any] = {"linger": timedelta(0), "bytes_max": 1 << 30, "sync": False} | given
    key = chosen.pop("api_key", KEY)
    sink = DodoSink(url, key, TIERS[2], folder / "outbox.db", parts=4, catalog=lambda: CATALOG, **chosen)
    parts = [sink.build_part("billing", name, None) for name in sink.list_parts()]
    try:
        yield sink, parts
    finally:
        for part in parts:
            part.close()


def read_statistics(folder: Path) -> QueueStatistics:
    with closing(OutboxReader(folder / "outbox.db")) as reader:
        return reader.read_statistics()


def until(condition: Callable[[], object]) -> None:
    deadline = monotonic() + SECONDS
    while not condition():
        assert monotonic() < deadline, "it did not come"
        sleep(0.01)


def test_shards_go_to_partitions_of_their_own(tmp_path: Path) -> None:
    sink = DodoSink("http://x", KEY, TIERS[0], tmp_path / "o", parts=16, catalog=lambda: CATALOG, bytes_max=1)
    names = sink.list_parts()
    assert names == sorted(names) and len(set(names)) == 16
    assert [sink.part_fn(str(shard)) for shard in range(16)] == list(range(16))


def test_what_every_shard_hands_over_arrives_once(tmp_path: Path, platform: Simulator) -> None:  # noqa: F811
    platform.create_customer("cus_acme")
    batches = [usage(30) for _ in range(8)]
    with opened(tmp_path, platform.url, drain=timedelta(seconds=SECONDS)) as (_, parts):
        for place, events in enumerate(batches):
            parts[place % 4].write_batch([pack(events[:10]), pack(events[10:])])
            parts[place % 4].snapshot()
            # What a crash would have the flow hand over again.
            parts[place % 4].write_batch([pack(events)])
    stored = [event["event_id"] for event in platform.list_events()]
    assert sorted(stored) == sorted(event.id for events in batches for event in events)
    assert read_statistics(tmp_path).counts["replayed"] == 240


def test_handing_over_waits_for_nobody_and_a_snapshot_only_for_the_disk(
    tmp_path: Path,
    platform: Simulator,  # noqa: F811
) -> None:
    """The provider does not answer and another process keeps the outbox locked: events flow on."""
    platform.create_customer("cus_acme")
    platform.add_fault("hang", times=None, delay_s=0.1)
    with opened(tmp_path, platform.url) as (_, parts):
        until((tmp_path / "outbox.db").exists)
        parts[0].write_batch([pack(usage(1))])
        parts[0].snapshot()
        db = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        for _ in range(100):
            parts[0].write_batch([pack(usage(10))])
        saved = Event()

        def save() -> None:
            parts[0].snapshot()
            saved.set()

        Thread(target=save).start()
        assert not saved.wait(0.3), "a snapshot without what it covers"
        db.execute("COMMIT")
        db.close()
        assert saved.wait(SECONDS)
        assert read_statistics(tmp_path).counts["came"] == 1001
        platform.clear_faults()


def test_a_snapshot_without_anything_new_costs_nothing(tmp_path: Path, platform: Simulator) -> None:  # noqa: F811
    with opened(tmp_path, platform.url) as (_, parts):
        parts[0].write_batch([pack(usage(1))])
        parts[0].snapshot()
        db = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        for part in parts:
            part.snapshot()
        db.execute("ROLLBACK")
        db.close()


def test_an_outbox_that_cannot_be_written_stops_the_flow_with_the_reason(
    tmp_path: Path,
    platform: Simulator,  # noqa: F811
) -> None:
    platform.add_fault("error", times=None)
    full = pytest.raises(OutboxError, match="that are allowed")
    with full, opened(tmp_path, platform.url, bytes_max=400_000) as (_, parts):
        for _ in range(1000):
            parts[0].write_batch([pack(usage(100))])
            parts[0].snapshot()


def test_of_two_processes_one_sends_and_the_other_takes_over(tmp_path: Path, platform: Simulator) -> None:  # noqa: F811
    platform.create_customer("cus_acme")
    with opened(tmp_path, platform.url) as (_, second):
        with opened(tmp_path, platform.url) as (_, first):
            first[0].write_batch([pack(usage(20))])
            second[0].write_batch([pack(usage(20))])
            until(lambda: read_statistics(tmp_path).counts.get("acknowledged") == 40)
            # Two who send would send the same.
            assert read_statistics(tmp_path).counts["sent"] == 40
        second[0].write_batch([pack(usage(5))])
        until(lambda: read_statistics(tmp_path).counts.get("acknowledged") == 45)
    stored = [event["event_id"] for event in platform.list_events()]
    assert len(stored) == len(set(stored)) == 45


def test_the_end_of_the_input_waits_no_longer_than_it_may(tmp_path: Path, platform: Simulator) -> None:  # noqa: F811
    platform.add_fault("error", status=503, times=None)
    with opened(tmp_path, platform.url, drain=timedelta(seconds=0.5)) as (_, parts):
        parts[0].write_batch([pack(usage(5))])
        began = monotonic()
    assert 0.4 < monotonic() - began < SECONDS
    assert read_statistics(tmp_path).waiting == 5


def test_alerts_are_noted_in_the_store_for_whoever_reads_it(tmp_path: Path, platform: Simulator) -> None:  # noqa: F811
    platform.set_key_mode("revoked")
    store = tmp_path / "store.db"
    with opened(tmp_path, platform.url, open_store=lambda: SqliteWriter(store)) as (_, parts):
        parts[0].write_batch([pack(usage(5))])
        until(lambda: store.exists() and noted(store))
        (note,) = noted(store)
        assert b'"kind":"billing_unauthorized","state":"raised"' in note.body
        platform.set_key_mode("read_write")
        platform.create_customer("cus_acme")
        until(lambda: len(noted(store)) == 2)


def noted(store: Path) -> list[Any]:
    with closing(SqliteReader(store)) as reader:
        return reader.notes("alert")


def test_the_key_is_in_no_file(tmp_path: Path, platform: Simulator) -> None:  # noqa: F811
    given = {"api_key": "hunter2", "open_store": lambda: SqliteWriter(tmp_path / "s.db")}
    with opened(tmp_path, platform.url, **given) as (sink, parts):
        parts[0].write_batch([pack(usage(5))])
        until(lambda: "unauthorized" in read_statistics(tmp_path).alerts)
        assert "hunter2" not in f"{sink!r} {vars(sink)} {parts[0]!r} {vars(parts[0]._works)}"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()
    with closing(OutboxReader(tmp_path / "outbox.db")) as reader:
        assert len(reader.held_back(State.refused)) == 0
