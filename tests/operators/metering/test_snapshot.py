"""What a snapshot writes is in proportion to what changed since the last one."""

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tidegate.operators.events.decode import Decoder
from tidegate.operators.metering import dedup
from tidegate.operators.metering.shard import Shard
from tidegate.operators.metering.snapshot import Frame
from tidegate.operators.model.catalog import Catalog, Meter
from tidegate.operators.model.ports import Payloads

EARLIER = Path(__file__).parent / "earlier_state.bin"
"""Frames of a shard as the version that remembered identities by their event hour wrote them."""

CATALOG = Catalog((Meter("calls", "call", "count"),))


class Metered:
    """A shard, and a snapshot after each of the polls that it was given."""

    def __init__(self) -> None:
        self.shard = Shard(0, CATALOG, timedelta(days=1), "event")
        self._decoder = Decoder(CATALOG, shards=1, clock="event")

    def poll(self, hour: int, customers: range) -> dict[str, int]:
        """Bytes per stream that a snapshot writes after one event of each customer in this hour."""
        lines = (
            f'{{"specversion":"1.0","id":"{hour}-{n}","source":"s","type":"call","subject":"cus_{n}",'
            f'"time":"2026-01-10T{hour:02}:00:00Z"}}'
            for n in customers
        )
        for _, chunk in self._decoder.decode(Payloads("\n".join(lines).encode(), 0, None, "")):
            self.shard.apply(chunk)
        self.shard.drain_totals()
        return {frame.stream: len(frame.body) for frame in self.shard.take_delta()}


def test_identities_of_before_cost_a_snapshot_nothing() -> None:
    """However many are remembered, only the new ones are written."""
    metered = Metered()
    first = metered.poll(8, range(500))
    later = metered.poll(9, range(10))
    (stream,) = first.keys() - {"state"}
    assert later[stream] < first[stream] / 20
    assert set(metered.shard.files) == {stream}


def test_identities_in_closed_streams_cost_a_snapshot_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "YOUNG_MAX", 400)
    metered = Metered()
    first = metered.poll(8, range(500))
    assert not first.keys() & (metered.poll(9, range(10)).keys() - {"state"})
    assert set(metered.shard.files) > first.keys() - {"state"}


@pytest.mark.parametrize("is_saved_again", [False, True])
def test_the_state_of_an_earlier_version_is_read(is_saved_again: bool) -> None:
    """Its events stay counted once. Of a repeat at another time nothing says whether its data is the same."""
    catalog = Catalog((Meter("calls", "call", "sum", "n"),))
    frames = [Frame(*each) for each in msgspec.msgpack.decode(EARLIER.read_bytes())]
    restore = partial(Shard.restore, 0, catalog, timedelta(days=1), "event")
    shard = restore(frames)
    if is_saved_again:
        shard = restore([*frames, *shard.take_delta()])

    def counted(*events: tuple[str, str, int]) -> dict[str, int]:
        before = dict(shard.counts)
        lines = "\n".join(
            f'{{"specversion":"1.0","id":"{id}","source":"s","type":"call","subject":"cus_{n % 3}",'
            f'"time":"2026-01-10T{time}Z","data":{{"n":{n}}}}}'
            for id, time, n in events
        )
        for _, chunk in Decoder(catalog, shards=1, clock="event").decode(
            Payloads(lines.encode(), 0, None, "")
        ):
            shard.apply(chunk)
        return {
            name: shard.counts.get(name, 0) - before.get(name, 0)
            for name in ("accepted", "duplicates", "conflicts")
        }

    every = [(f"{hour}-{n}", f"{hour:02}:{n:02}:00", n) for hour in (8, 9, 12) for n in range(10)]
    assert counted(*every) == {"accepted": 0, "duplicates": 30, "conflicts": 0}
    assert counted(("8-4", "08:04:01", 4), ("8-4", "10:04:00", 4)) == {
        "accepted": 0,
        "duplicates": 0,
        "conflicts": 2,
    }
    assert counted(("new", "12:00:00", 4), ("new", "10:00:00", 4)) == {
        "accepted": 1,
        "duplicates": 1,
        "conflicts": 0,
    }
    # Once the hour of its event lies wholly before the lateness it is forgotten, as it was.
    assert shard.memory.runs
    shard.memory.sweep(
        np.full(
            len(shard.key_index.names), int(datetime(2026, 1, 10, 10, tzinfo=UTC).timestamp()) * 1_000_000
        )
    )
    assert len(shard.memory) == 11


def test_customers_who_did_nothing_cost_a_snapshot_nothing() -> None:
    metered = Metered()
    whole = metered.poll(8, range(500))["state"]
    metered.poll(9, range(500))
    assert metered.poll(9, range(500, 501))["state"] < whole / 20
    assert metered.poll(9, range(0))["state"] < whole / 20


def test_a_snapshot_without_news_leaves_identities_alone() -> None:
    metered = Metered()
    metered.poll(8, range(50))
    assert metered.poll(8, range(0)).keys() == {"state"}
