"""Totals, counts and adjustments far beyond what one 64-bit column holds: exact, and nobody else's business."""

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from operators.catalog import Catalog, Limit, Meter, Plan, Threshold
from operators.keys import shard_of
from operators.periods import Calendar
from operators.ports import Adjustment
from operators.quantity import QUANTITY_MAX
from operators.shard import Shard
from tests.operators.strategies import NOON
from tests.operators.test_shard_oracle import SHARDS, Fleet

LIMIT = Limit(cap=Decimal(10**15), thresholds=(Threshold(percent=Decimal(50)),))
CATALOG = Catalog(
    (Meter("tokens", "call", "sum", "n"), Meter("calls", "call", "count"), Meter("peak", "call", "max", "n")),
    {"p": Plan("p", Calendar("month"), None, {"tokens": LIMIT})},
    default_plan="p",
)
MOST = "999999999999999." + "9" * 24


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(CATALOG, timedelta(hours=6), "event")


def poll(first: int, count: int, number: str = str(QUANTITY_MAX), customer: str = "acme") -> bytes:
    return b"\n".join(
        b'{"event_id":"%d","customer_id":"%s","event_name":"call","timestamp":"2026-01-10T12:00:00Z",'
        b'"metadata":{"n":%s}}' % (i, customer.encode(), number.encode())
        for i in range(first, first + count)
    )


def total(fleet: Fleet, meter: str = "tokens", customer: str = "acme") -> Decimal:
    fleet.write()
    (found,) = {
        Decimal(one.total) for one in fleet.totals.values() if (one.customer, one.meter) == (customer, meter)
    }
    return found


def adjusted(fleet: Fleet, quantity: str, meter: str = "tokens") -> str | None:
    shard = fleet.shards[shard_of("acme", SHARDS)]
    adjustment = Adjustment(
        id=quantity, customer="acme", meter=meter, at=NOON, quantity=quantity, reason="", by=""
    )
    return shard.adjust(adjustment, NOON)[1]


def shard_of_acme(fleet: Fleet) -> Shard:
    return fleet.shards[shard_of("acme", SHARDS)]


@pytest.mark.parametrize("number", [str(QUANTITY_MAX), MOST])
@pytest.mark.parametrize("polls", [[9_500], [9_000, 400, 100], [9_300, 9_300, 9_300]])
def test_thousands_of_the_largest_reading_add_up(fleet: Fleet, polls: list[int], number: str) -> None:
    sent = 0
    for size in polls:
        fleet.send(poll(sent, size, number) + b"\n" + poll(sent, 1, "1", "other"), NOON, None)
        sent += size
        fleet.restart()
    assert total(fleet) == Fraction(number) * sent
    assert total(fleet, "peak") == Decimal(number)
    assert total(fleet, "calls") == sent
    assert total(fleet, "tokens", "other") == len(polls)
    assert [(alert.kind, alert.customer) for alert in fleet.alerts] == [
        ("threshold", "acme"),
        ("cap_reached", "acme"),
    ]


def test_the_state_of_a_version_with_narrow_totals_goes_on(fleet: Fleet) -> None:
    """It let a total fill its one column up to 9*10^18, where a few more readings overflow."""
    fleet.send(poll(0, 1), NOON, None)
    shard = shard_of_acme(fleet)
    for table in (shard.periods, shard.buckets):
        table.columns["hi"][: len(table)][table.columns["hi"][: len(table)] == QUANTITY_MAX] = 9 * 10**18 - 1
    fleet.restart()
    fleet.send(poll(1, 300), NOON, None)
    assert total(fleet) == 9 * 10**18 - 1 + 300 * QUANTITY_MAX


def test_more_events_than_32_bits_count_in_one_window(fleet: Fleet) -> None:
    fleet.send(poll(0, 1), NOON, None)
    shard = shard_of_acme(fleet)
    for table in (shard.periods, shard.buckets):
        assert table.columns["events"].dtype == np.uint32
        table.columns["events"][: len(table)] = 2**32 - 2
    for i in range(1, 4):
        fleet.send(poll(i, 1), NOON, None)
        fleet.restart()
        fleet.write()
        assert {(one.events, one.version) for one in fleet.totals.values()} == {(2**32 - 2 + i,) * 2}


def test_adjustments_move_a_large_total_down_again(fleet: Fleet) -> None:
    fleet.send(poll(0, 9_500), NOON, None)
    assert adjusted(fleet, f"-{9_500 * QUANTITY_MAX - 5}") is None
    assert total(fleet) == 5
    assert adjusted(fleet, "-1000000000000000000000.5") is None
    assert total(fleet) == Decimal("-999999999999999999995.5")
    fleet.restart()
    fleet.send(poll(9_500, 1, "2"), NOON, None)
    assert total(fleet) == Decimal("-999999999999999999993.5")


@pytest.mark.parametrize(
    "quantity", ["1e30", "-1000000000000000000000000000002", "1e39", "1e40", "1e999999999", "NaN", "Infinity"]
)
def test_an_adjustment_that_no_total_holds_is_refused_and_changes_nothing(
    fleet: Fleet, quantity: str
) -> None:
    fleet.send(poll(0, 1, "1"), NOON, None)
    note = adjusted(fleet, quantity)
    assert note is not None and note.startswith("quantity: ")
    assert total(fleet) == 1 and not shard_of_acme(fleet).adjusted


def test_an_adjustment_up_to_the_last_unit_is_taken(fleet: Fleet) -> None:
    fleet.send(poll(0, 1, "1"), NOON, None)
    assert adjusted(fleet, str(10**30 - 1)) is None
    assert f"{total(fleet):f}" == "1" + "0" * 30
    fleet.send(poll(1, 1, "0.5"), NOON, None)
    assert f"{total(fleet):f}" == "1" + "0" * 30 + ".5"
