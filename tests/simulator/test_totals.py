"""Totals against a second count, event by event, with nothing remembered in between."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.client import Simulator
from tests.simulator.conftest import NOW, Inside, event, history, ingest

DAY = timedelta(days=1)
EDGES = [NOW - 2 * DAY, NOW - DAY, NOW, NOW + DAY]
METERS = {"calls": ("count", None), "tokens": ("sum", "n"), "peak": ("max", "n"), "level": ("last", "n")}
FILTER = {
    "conjunction": "or",
    "clauses": [
        {"key": "model", "operator": "equals", "value": "big"},
        {"conjunction": "and", "clauses": [{"key": "n", "operator": "greater_than", "value": 10}]},
    ],
}

values = st.one_of(
    st.integers(0, 2**53),
    st.floats(0, 1e15, allow_nan=False),
    st.sampled_from(["150", True, False, 0.1, 0.2, 1e-9]),
)
events = st.fixed_dictionaries(
    {
        "customer_id": st.sampled_from(["cus_a", "cus_b", "cus_A"]),
        "event_name": st.sampled_from(["use", "Use"]),
        # On the edges of cycles as well as between them.
        "at": st.one_of(
            st.sampled_from(EDGES),
            st.datetimes(EDGES[0].replace(tzinfo=None), EDGES[-1].replace(tzinfo=None)),
        ),
        "metadata": st.one_of(
            st.none(),
            st.fixed_dictionaries({}, optional={"n": values, "model": st.sampled_from(["big", "Big", 1])}),
        ),
    }
)


def wire(number: int, drawn: dict[str, Any]) -> dict[str, Any]:
    at = drawn["at"].replace(tzinfo=NOW.tzinfo)
    return {
        "event_id": f"e{number}",
        "customer_id": drawn["customer_id"],
        "event_name": drawn["event_name"],
        "timestamp": at.isoformat(),
        "metadata": drawn["metadata"],
    }


def passes(metadata: dict[str, Any]) -> bool:
    n = metadata.get("n")
    is_large = isinstance(n, int | float) and not isinstance(n, bool) and n > 10
    return metadata.get("model") == "big" or is_large


def counted(stored: list[dict[str, Any]], customer: str, kind: str, start: Any, end: Any) -> Decimal:
    """The total as a person would take it from a list of events."""
    mine = [
        one
        for one in stored
        if one["customer_id"] == customer and one["event_name"] == "use" and passes(one["metadata"] or {})
        if start.isoformat() <= one["timestamp"].replace("Z", "+00:00") < end.isoformat()
    ]
    if kind == "count":
        return Decimal(len(mine))
    numbers = [
        (one["timestamp"], number, Decimal(repr(one["metadata"]["n"])))
        for number, one in enumerate(mine)
        if type((one["metadata"] or {}).get("n")) in (int, float)
    ]
    if not numbers:
        return Decimal(0)
    if kind == "sum":
        with_room = sum((Units(value) for _, _, value in numbers), Units(Decimal(0)))
        return with_room.as_decimal()
    return max(value for *_, value in numbers) if kind == "max" else max(numbers, key=lambda n: n[:2])[2]


class Units:
    """Exact addition by integers of 10^-400, which any drawn number is a multiple of."""

    SCALE = 400

    def __init__(self, value: Decimal) -> None:
        sign, digits, exponent = value.as_tuple()
        whole = int("".join(map(str, digits))) * 10 ** (self.SCALE + int(exponent))
        self.units = -whole if sign else whole

    def __add__(self, other: "Units") -> "Units":
        total = Units(Decimal(0))
        total.units = self.units + other.units
        return total

    def as_decimal(self) -> Decimal:
        text = str(self.units).rjust(self.SCALE + 1, "0")
        return Decimal(f"{text[: -self.SCALE]}.{text[-self.SCALE :]}")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(events, max_size=8), max_size=6))
def test_totals_are_those_of_a_naive_count(batches: list[list[dict[str, Any]]]) -> None:
    """Per customer, meter and cycle, also where the totals were looked at between any two batches."""
    inside = Inside()
    sim = inside.sim
    try:
        subscriptions = subscribed(sim)
        number = 0
        for batch in batches:
            numbered = [wire(number + index, one) for index, one in enumerate(batch)]
            number += len(batch)
            sim.insert(*numbered)
            sim.advance(60)
            for subscription in subscriptions.values():
                history(sim, subscription)
        stored = list(sim.list_events())
        for customer, subscription in subscriptions.items():
            for item in history(sim, subscription):
                start, end = (NOW.fromisoformat(item[edge]) for edge in ("start_date", "end_date"))
                for used in item["meters"]:
                    kind = METERS[used["name"]][0]
                    assert Decimal(used["consumed_units"]) == counted(stored, customer, kind, start, end), (
                        used
                    )
    finally:
        inside.close()


def subscribed(sim: Simulator) -> dict[str, str]:
    meters = [
        sim.create_meter("use", kind, key, id=f"mtr_{name}", filter=FILTER, name=name)
        for name, (kind, key) in METERS.items()
    ]
    product = sim.create_product(meters)
    past = [(EDGES[0], EDGES[1]), (EDGES[1], EDGES[2])]
    return {
        customer: sim.create_subscription(
            sim.create_customer(customer), product, past=past, start=EDGES[2], end=EDGES[3]
        )
        for customer in ("cus_a", "cus_b")
    }


def test_decimals_add_up_as_decimals(sim: Simulator) -> None:
    """Ten times 0.1 is 1, as on an invoice, and not 0.9999999999999999."""
    meter = sim.create_meter("use", "sum", "n")
    subscription = sim.create_subscription(sim.create_customer("cus_a"), sim.create_product([meter]))
    ingest(sim, *(event(f"e{n}", name="use", metadata={"n": 0.1}) for n in range(10)))
    ingest(
        sim,
        event("large", name="use", metadata={"n": 2**63 - 1}),
        event("small", name="use", metadata={"n": 1e-12}),
    )
    sim.advance(60)
    [item] = history(sim, subscription)
    assert item["meters"][0]["consumed_units"] == f"{2**63}.000000000001"


def test_the_bill_is_what_is_over_the_free_units(sim: Simulator) -> None:
    meter = sim.create_meter("use")
    priced = {"meter_id": meter, "price_per_unit": "0.5", "free_threshold": 2}
    subscription = sim.create_subscription(sim.create_customer("cus_a"), sim.create_product([priced]))
    for number, (chargeable, price) in enumerate([("0", 0), ("0", 0), ("1", 1), ("2", 1), ("3", 2)]):
        ingest(sim, event(f"e{number}", name="use"))
        [item] = sim.read_usage(subscription)[0]["items"]
        [used] = item["meters"]
        # Half a cent rounds up.
        assert (used["chargeable_units"], used["total_price"]) == (chargeable, price)


@pytest.mark.parametrize(
    ("kind", "numbers", "total"),
    [
        ("last", [5, 7], "7"),
        ("last", [7, 5], "5"),
        ("last", [5, "9"], "5"),
        ("max", [-5, -7], "-5"),
        ("max", [], "0"),
        ("max", ["9", True], "0"),
        ("sum", ["150", True, 2], "2"),
        ("count", ["150", True, 2], "3"),
    ],
)
def test_edges_of_aggregates(sim: Simulator, kind: str, numbers: list[Any], total: str) -> None:
    """At one and the same time: what came later is `last`, and what is no number is none."""
    sim.set_switches(usage_visibility_lag_s=0)
    meter = sim.create_meter("use", kind, None if kind == "count" else "n")
    subscription = sim.create_subscription(sim.create_customer("cus_a"), sim.create_product([meter]))
    events = [event(f"e{n}", name="use", metadata={"n": number}) for n, number in enumerate(numbers)]
    ingest(sim, event("other", name="unused"), *events)
    [item] = history(sim, subscription)
    assert item["meters"][0]["consumed_units"] == total
