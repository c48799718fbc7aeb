"""Customers and keys by number, and what the catalog says of each."""

from datetime import timedelta
from decimal import Decimal

import numpy as np
import pytest

from tests.operators.strategies import NOON
from tidegate.operators.events.customers import Customers
from tidegate.operators.events.decode import Decoder
from tidegate.operators.metering.key_index import KeyIndex
from tidegate.operators.metering.shard import Shard
from tidegate.operators.model.catalog import Catalog, Customer, Limit, Meter, Plan
from tidegate.operators.model.periods import DAY, HOUR, Calendar
from tidegate.operators.model.ports import Payloads

METERS = (Meter("calls", "call", "count"), Meter("tokens", "call", "sum", "n"))
FREE = Plan("free", Calendar("month"), None, {"calls": Limit(cap=Decimal(10))})
PRO = Plan("pro", Calendar("day"), "Asia/Kathmandu", {"calls": Limit(cap=Decimal(1000))})
CATALOG = Catalog(
    METERS,
    {"free": FREE, "pro": PRO},
    {
        "big": Customer("big", "pro"),
        "also big": Customer("also big", "pro"),
        "special": Customer("special", "free", limits={"calls": Limit(cap=Decimal(77))}),
    },
    default_plan="free",
)
NAMES = ["stranger", "big", "another stranger", "special", "also big"]


def limit_of(key_index: KeyIndex, name: str, meter: int) -> str | None:
    key = key_index.assign_keys(key_index.assign_rows([name]), np.array([meter]))
    return key_index.rules[int(key_index.key_rules.values[key[0]])].limit


def test_a_customer_keeps_its_row() -> None:
    """State is kept by row: another one would give a customer somebody else's totals."""
    key_index = KeyIndex(CATALOG)
    assert key_index.assign_rows(["a", "b", "a"]).tolist() == [0, 1, 0]
    assert key_index.assign_rows(["c", "b", "a"]).tolist() == [2, 1, 0]
    assert key_index.names == ["a", "b", "c"] and key_index.assign_row("b") == 1


def test_many_at_once_get_the_limits_that_each_would_get_alone() -> None:
    """Strangers are alike, customers of one plan too, and who has limits of their own is like nobody else."""
    together = KeyIndex(CATALOG)
    rows = together.assign_rows(NAMES)
    together.assign_keys(np.repeat(rows, 2), np.tile([0, 1], len(rows)))
    limits = {"stranger": "10", "another stranger": "10", "big": "1000", "also big": "1000", "special": "77"}
    for name, limit in limits.items():
        assert limit_of(together, name, 0) == limit_of(KeyIndex(CATALOG), name, 0) == limit
        assert limit_of(together, name, 1) is None


def test_each_has_the_windows_of_its_own_zone_and_period() -> None:
    key_index = KeyIndex(CATALOG)
    edges = key_index.find_windows(key_index.assign_rows(["stranger", "big"]), np.full(2, 20_000 * DAY))
    # Kathmandu is 5:45 ahead, and its plan bills by the day.
    assert (edges.day - 20_000 * DAY).tolist() == [0, -(5 * HOUR + 45 * HOUR // 60)]
    assert edges.period[1] == edges.day[1] and edges.period_end[1] - edges.period[1] == DAY
    assert edges.period_end[0] - edges.period[0] == 31 * DAY


def test_more_keys_than_a_window_can_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window's word has 30 bits for its key: one more would be counted for somebody else."""
    monkeypatch.setattr("tidegate.operators.metering.key_index.KEYS_MAX", 3)
    key_index = KeyIndex(CATALOG)
    key_index.assign_keys(key_index.assign_rows(["a", "b", "c"]), np.array([0, 0, 1]))
    with pytest.raises(OverflowError, match="use more shards"):
        key_index.assign_keys(key_index.assign_rows(["a"]), np.array([1]))


def test_a_meter_that_clashes_with_what_was_counted_counts_nothing_and_ends_nothing() -> None:
    """An older program applied it, or a store without the flow's past: what it was can return."""
    own, other = (Meter("tok", "call", kind, "n") for kind in ("sum", "max"))
    calls = Meter("calls", "call", "count")
    customers = Customers(1)

    def send(number: int, meters: tuple[Meter, ...], ids: str) -> None:
        values = dict.fromkeys(ids, "7") | {f"{ids}, no number": '"x"'}
        lines = "\n".join(
            f'{{"event_id":"{id}","customer_id":"a","event_name":"call",'
            f'"timestamp":"2026-01-10T12:00:00Z","metadata":{{"n":{n}}}}}'
            for id, n in values.items()
        )
        decoder = Decoder(Catalog(meters), shards=1, clock="event", number=number, customers=customers)
        for _, chunk in decoder.decode(Payloads(lines.encode(), NOON, NOON, "test")):
            shard.apply(chunk)

    shard = Shard(0, Catalog((own, calls)), timedelta(days=1), "event", number=1)
    send(1, (own, calls), "12")
    for frames in (None, shard.take_delta()):
        if frames is not None:
            shard = Shard.restore(0, Catalog((other, calls)), timedelta(days=1), "event", frames, number=2)
        else:
            shard.adopt_catalog(2, Catalog((other, calls)), 0, 0)
        assert list(shard.key_index.refused) == ["tok"]
        send(2, (other, calls), "34" if frames is None else "56")
    shard.adopt_catalog(3, Catalog((own, calls)), 0, 0)
    assert shard.key_index.refused == {}
    send(3, (own, calls), "7")
    shard.republish()
    found = {total.meter: total.total for total in shard.drain_totals() if total.window == "period"}
    assert found == {"tok": 21, "calls": 8}
