"""Totals, counts and adjustments far beyond what one 64-bit column holds: exact, and nobody else's business."""

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from tests.operators.strategies import NOON
from tidegate.operators.columns.quantity import QUANTITY_MAX
from tidegate.operators.events.decode import Decoder
from tidegate.operators.metering.shard import Shard
from tidegate.operators.metering.snapshot import Frame
from tidegate.operators.model.catalog import Catalog, Limit, Meter, Plan, Threshold
from tidegate.operators.model.periods import Calendar
from tidegate.operators.model.ports import Adjustment, Payloads
from tidegate.operators.model.records import Alert

LIMIT = Limit(cap=Decimal(10**15), thresholds=(Threshold(percent=Decimal(50)),))
CATALOG = Catalog(
    (Meter("tokens", "call", "sum", "n"), Meter("calls", "call", "count"), Meter("peak", "call", "max", "n")),
    {"p": Plan("p", Calendar("month"), None, {"tokens": LIMIT})},
    default_plan="p",
)
LATENESS = timedelta(hours=6)
MOST = "999999999999999." + "9" * 24


class Metered:
    """A decoder and its only shard, and the alerts that left it."""

    def __init__(self) -> None:
        self.decoder = Decoder(CATALOG, shards=1, clock="event")
        self.shard = Shard(0, CATALOG, LATENESS, "event")
        self.frames: list[Frame] = []
        self.alerts: list[Alert] = []

    def send(self, block: bytes) -> None:
        for _, chunk in self.decoder.decode(Payloads(block, NOON, None, "test")):
            self.alerts += self.shard.apply(chunk).alerts

    def restart(self) -> None:
        self.frames += self.shard.take_delta()
        self.shard = Shard.restore(0, CATALOG, LATENESS, "event", self.frames)

    def adjust(self, quantity: str) -> str | None:
        """The note why not, if there is one."""
        return self.shard.adjust(
            Adjustment(
                id=quantity, customer="acme", meter="tokens", at=NOON, quantity=quantity, reason="", by=""
            ),
            NOON,
        )[1]

    def total(self, meter: str = "tokens", customer: str = "acme") -> Decimal:
        """What all three windows stand at."""
        self.shard.republish()
        whose = (customer, meter)
        (found,) = {one.total for one in self.shard.drain_totals() if (one.customer, one.meter) == whose}
        return Decimal(found)


@pytest.fixture
def metered() -> Metered:
    return Metered()


def poll(first: int, count: int, number: str = str(QUANTITY_MAX), customer: str = "acme") -> bytes:
    return b"\n".join(
        b'{"event_id":"%d","customer_id":"%s","event_name":"call","timestamp":"2026-01-10T12:00:00Z",'
        b'"metadata":{"n":%s}}' % (i, customer.encode(), number.encode())
        for i in range(first, first + count)
    )


@pytest.mark.parametrize("number", [str(QUANTITY_MAX), MOST])
@pytest.mark.parametrize("polls", [[9_500], [9_000, 400, 100], [9_300, 9_300, 9_300]])
def test_thousands_of_the_largest_reading_add_up(metered: Metered, polls: list[int], number: str) -> None:
    sent = 0
    for size in polls:
        metered.send(poll(sent, size, number) + b"\n" + poll(sent, 1, "1", "other"))
        sent += size
        metered.restart()
    assert metered.total() == Fraction(number) * sent
    assert metered.total("peak") == Decimal(number)
    assert metered.total("calls") == sent
    assert metered.total("tokens", "other") == len(polls)
    assert [(alert.kind, alert.customer) for alert in metered.alerts] == [
        ("threshold", "acme"),
        ("cap_reached", "acme"),
    ]


def test_many_large_readings_leave_a_greater_one_greatest(metered: Metered) -> None:
    """Their sum is added up in parts; readings themselves are compared whole."""
    metered.send(poll(0, 1))
    metered.send(poll(1, 9_500, str(QUANTITY_MAX - 1)))
    assert metered.total("peak") == QUANTITY_MAX
    assert metered.total() == QUANTITY_MAX + 9_500 * (QUANTITY_MAX - 1)


def test_the_state_of_a_version_with_narrow_totals_goes_on(metered: Metered) -> None:
    """It let a total fill its one column up to 9*10^18, where a few more readings overflow."""
    metered.send(poll(0, 1))
    shard = metered.shard
    for table in (shard.periods, shard.buckets):
        table.columns["hi"][: len(table)][table.columns["hi"][: len(table)] == QUANTITY_MAX] = 9 * 10**18 - 1
    metered.restart()
    metered.send(poll(1, 300))
    assert metered.total() == 9 * 10**18 - 1 + 300 * QUANTITY_MAX


def test_more_events_than_32_bits_count_in_one_window(metered: Metered) -> None:
    metered.send(poll(0, 1))
    shard = metered.shard
    for table in (shard.periods, shard.buckets):
        assert table.columns["events"].dtype == np.uint32
        table.columns["events"][: len(table)] = 2**32 - 2
    for i in range(1, 4):
        metered.send(poll(i, 1))
        metered.restart()
        metered.shard.republish()
        assert {(one.events, one.version) for one in metered.shard.drain_totals()} == {(2**32 - 2 + i,) * 2}


def test_adjustments_move_a_large_total_down_again(metered: Metered) -> None:
    metered.send(poll(0, 9_500))
    assert metered.adjust(f"-{9_500 * QUANTITY_MAX - 5}") is None
    assert metered.total() == 5
    assert metered.adjust("-1000000000000000000000.5") is None
    assert metered.total() == Decimal("-999999999999999999995.5")
    metered.restart()
    metered.send(poll(9_500, 1, "2"))
    assert metered.total() == Decimal("-999999999999999999993.5")


@pytest.mark.parametrize(
    "quantity", ["1e30", "-1000000000000000000000000000002", "1e39", "1e40", "1e999999999", "NaN", "Infinity"]
)
def test_an_adjustment_that_no_total_holds_is_refused_and_changes_nothing(
    metered: Metered, quantity: str
) -> None:
    metered.send(poll(0, 1, "1"))
    note = metered.adjust(quantity)
    assert note is not None and note.startswith("quantity: ")
    assert metered.total() == 1 and not metered.shard.adjusted


def test_an_adjustment_up_to_the_last_unit_is_taken(metered: Metered) -> None:
    metered.send(poll(0, 1, "1"))
    assert metered.adjust(str(10**30 - 1)) is None
    assert f"{metered.total():f}" == "1" + "0" * 30
    metered.send(poll(1, 1, "0.5"))
    assert f"{metered.total():f}" == "1" + "0" * 30 + ".5"
