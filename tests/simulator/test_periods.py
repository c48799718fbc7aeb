"""Subscriptions in time: what a client reads as the edges of a bill."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from simulator.client import ControlError, Simulator
from tests.simulator.conftest import NOW, event, history, ingest


@pytest.fixture
def product(sim: Simulator) -> str:
    sim.set_switches(usage_visibility_lag_s=0)
    return sim.create_product([sim.create_meter("tokens")])


def edges(sim: Simulator, subscription: str) -> tuple[str, str]:
    read = sim.api.get(f"/subscriptions/{subscription}").json()
    return read["previous_billing_date"], read["next_billing_date"]


def cycles(sim: Simulator, subscription: str) -> list[tuple[str, str, str]]:
    return [
        (item["start_date"][:10], item["end_date"][:10], item["meters"][0]["consumed_units"])
        for item in history(sim, subscription, page_size=100)
    ]


def test_months_end_is_clamped_and_does_not_stick(sim: Simulator, product: str) -> None:
    sim.set_clock("2027-01-31T09:12:44Z")
    subscription = sim.create_subscription(sim.create_customer("cus_a"), product)
    seen = [edges(sim, subscription)]
    for _ in range(3):
        sim.set_clock(seen[-1][1])
        seen.append(edges(sim, subscription))
    assert [start for start, _ in seen] == [
        "2027-01-31T09:12:44Z",
        "2027-02-28T09:12:44Z",
        "2027-03-31T09:12:44Z",
        "2027-04-30T09:12:44Z",
    ]
    assert all(end == start for (_, end), (start, _) in pairwise(seen))


@pytest.mark.parametrize(
    ("count", "interval", "end"),
    [
        (1, "Day", "2026-11-23"),
        (2, "Week", "2026-12-06"),
        (3, "Month", "2027-02-22"),
        (1, "Year", "2027-11-22"),
    ],
)
def test_other_lengths(sim: Simulator, product: str, count: int, interval: str, end: str) -> None:
    price = {"payment_frequency_count": count, "payment_frequency_interval": interval}
    other = sim.create_product([], price=price)
    assert edges(sim, sim.create_subscription(sim.create_customer("cus_a"), other))[1] == f"{end}T12:00:00Z"


def test_an_event_on_the_edge_is_of_the_next_cycle(sim: Simulator, product: str) -> None:
    subscription = sim.create_subscription(
        sim.create_customer("cus_a"), product, start="2026-10-22T12:00:00Z", end=NOW
    )
    sim.set_switches(auto_renew=False)
    ingest(
        sim,
        event("a", timestamp=(NOW - timedelta(microseconds=1)).isoformat()),
        event("b", timestamp=NOW.isoformat()),
    )
    sim.roll(subscription)
    assert cycles(sim, subscription) == [("2026-11-22", "2026-12-22", "1"), ("2026-10-22", "2026-11-22", "1")]


def test_a_cycle_closed_early_and_a_gap_before_the_next(sim: Simulator, product: str) -> None:
    """As a real service period may begin minutes after the billing date; what falls between counts nowhere."""
    subscription = sim.create_subscription(
        sim.create_customer("cus_a"), product, start=NOW - timedelta(days=3)
    )
    ingest(sim, *(event(f"e{n}", timestamp=(NOW - timedelta(minutes=n)).isoformat()) for n in range(10)))
    sim.roll(subscription, at=NOW - timedelta(minutes=6), start=NOW - timedelta(minutes=2))
    assert [units for *_, units in cycles(sim, subscription)] == ["3", "3"]
    with pytest.raises(ControlError, match="needs to follow"):
        sim.roll(subscription, at=NOW, start=NOW - timedelta(minutes=1))


def test_history_pages_and_ranges(sim: Simulator, product: str) -> None:
    past = [(NOW - timedelta(days=n), NOW - timedelta(days=n - 1)) for n in range(30, 0, -1)]
    subscription = sim.create_subscription(sim.create_customer("cus_a"), product, past=past)
    assert len(history(sim, subscription)) == 10
    assert len(history(sim, subscription, page_size=20, page_number=1)) == 11
    assert len(history(sim, subscription, page_size=20, page_number=2)) == 0
    since = history(sim, subscription, start_date=(NOW - timedelta(days=2)).isoformat())
    assert [item["start_date"][:10] for item in since] == ["2026-11-22", "2026-11-21", "2026-11-20"]
    until = history(sim, subscription, end_date=(NOW - timedelta(days=29)).isoformat())
    assert [item["start_date"][:10] for item in until] == ["2026-10-24", "2026-10-23"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"start_date": NOW.isoformat(), "end_date": (NOW - timedelta(1)).isoformat()}, 400),
        ({"start_date": "yesterday"}, 422),
        ({"start_date": "2026-11-22"}, 422),
        ({"page_size": "-1"}, 422),
        ({"page_number": "one"}, 422),
        ({"meter_id": "mtr_unknown"}, 404),
    ],
)
def test_a_wrong_question(sim: Simulator, product: str, query: dict[str, Any], status: int) -> None:
    subscription = sim.create_subscription(sim.create_customer("cus_a"), product)
    answer = sim.api.get(f"/subscriptions/{subscription}/usage-history", params=query)
    assert answer.status_code == status


def test_a_changed_plan_leaves_closed_cycles_as_they_were(sim: Simulator, product: str) -> None:
    subscription = sim.create_subscription(
        sim.create_customer("cus_a"), product, start=NOW - timedelta(days=3)
    )
    ingest(sim, event("a"))
    sim.roll(subscription, at=NOW + timedelta(seconds=1))
    [meter] = [one["id"] for one in sim.read_state()["meters"]]
    dear = sim.create_product([{"meter_id": meter, "price_per_unit": "50"}])
    sim.change_subscription(subscription, product_id=dear)
    [current, closed] = history(sim, subscription)
    assert (closed["meters"][0]["price_per_unit"], current["meters"][0]["price_per_unit"]) == ("1", "50")


def test_the_end_of_a_subscription(sim: Simulator, product: str) -> None:
    leaving = sim.create_subscription(sim.create_customer("cus_a"), product, cancel_at_next_billing_date=True)
    ending = sim.create_subscription(sim.create_customer("cus_b"), product, expires_at="2026-12-22T12:00:00Z")
    staying = sim.create_subscription(sim.create_customer("cus_c"), product)
    sim.set_clock("2026-12-22T12:00:00Z")
    statuses = {
        one["subscription_id"]: one["status"] for one in sim.api.get("/subscriptions").json()["items"]
    }
    assert statuses == {leaving: "cancelled", ending: "expired", staying: "active"}
    assert len(history(sim, leaving)) == 1


def test_two_live_subscriptions_of_a_customer_both_count(sim: Simulator, product: str) -> None:
    both = [
        sim.create_subscription(sim.create_customer("cus_a"), product),
        sim.create_subscription("cus_a", product),
    ]
    ingest(sim, event())
    assert [cycles(sim, one)[0][2] for one in both] == ["1", "1"]


def test_lists_filter(sim: Simulator, product: str) -> None:
    one = sim.create_subscription(sim.create_customer("cus_a", email="a@x.io", name="Ada"), product)
    other = sim.create_subscription(
        sim.create_customer("cus_b", email="b@x.io", name="Bob"), sim.create_product([]), status="on_hold"
    )

    def listed(path: str, key: str, **query: str) -> list[str]:
        return [item[key] for item in sim.api.get(path, params=query).json()["items"]]

    assert listed("/subscriptions", "subscription_id", status="on_hold") == [other]
    assert listed("/subscriptions", "subscription_id", product_id=product) == [one]
    assert listed("/subscriptions", "subscription_id", customer_id="cus_b") == [other]
    assert listed("/customers", "customer_id", email="a@x.io") == ["cus_a"]
    assert listed("/customers", "customer_id", name="bo") == ["cus_b"]
    assert sim.api.get("/subscriptions", params={"status": "gone"}).status_code == 422


def test_events_by_meter_are_those_its_filter_takes(sim: Simulator) -> None:
    sim.set_switches(event_visibility_lag_s=0)
    clauses = [{"key": "model", "operator": "not_equals", "value": "small"}]
    meter = sim.create_meter("tokens", filter={"conjunction": "and", "clauses": clauses})
    sim.create_customer("cus_a")
    ingest(
        sim,
        event("a", metadata={"model": "big"}),
        event("b", metadata={"model": "small"}),
        event("c", metadata={"model": 7}),
        event("d"),
        event("e", name="other", metadata={"model": "big"}),
    )
    listed = sim.api.get("/events", params={"meter_id": meter}).json()["items"]
    assert [one["event_id"] for one in listed] == ["a"]
    assert sim.api.get("/events", params={"meter_id": meter, "event_name": "other"}).status_code == 400
    assert sim.api.get("/events", params={"meter_id": "mtr_unknown"}).status_code == 404


CONDITION = {"key": "k", "operator": "equals", "value": 1}


def nested(levels: int) -> dict[str, Any]:
    clause = CONDITION if levels == 0 else nested(levels - 1)
    return {"conjunction": "and", "clauses": [clause]}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 201),
        ({"aggregation": {"type": "sum"}}, 422),
        ({"aggregation": {"type": "unique", "key": "k"}}, 422),
        ({"aggregation": {"type": "max", "key": "k"}}, 201),
        ({"filter": nested(3)}, 201),
        ({"filter": nested(4)}, 422),
        ({"filter": {"conjunction": "and", "clauses": []}}, 422),
        ({"filter": {"conjunction": "and", "clauses": [CONDITION] * 11}}, 422),
        ({"filter": {"conjunction": "and", "clauses": [CONDITION, nested(0)]}}, 422),
        ({"filter": {"conjunction": "xor", "clauses": [CONDITION]}}, 422),
        ({"filter": {"conjunction": "or", "clauses": [CONDITION | {"key": "k" * 101}]}}, 422),
        ({"filter": {"conjunction": "or", "clauses": [CONDITION | {"operator": "like"}]}}, 422),
        ({"filter": {"conjunction": "or", "clauses": [CONDITION | {"value": None}]}}, 422),
    ],
)
def test_what_may_be_a_meter(sim: Simulator, fields: dict[str, Any], status: int) -> None:
    meter = {"name": "m", "event_name": "e", "measurement_unit": "u", "aggregation": {"type": "count"}}
    assert sim.api.post("/meters", json=meter | fields).status_code == status


def test_a_filter_that_mixes_conditions_and_filters_can_be_seeded(sim: Simulator) -> None:
    """The API takes none, but its documentation shows one: who reads meters must not stumble over it."""
    mixed = {"conjunction": "and", "clauses": [CONDITION, nested(0)]}
    meter = sim.create_meter("tokens", filter=mixed)
    assert {one["id"]: one["filter"] for one in sim.read_state()["meters"]} == {meter: mixed}


@pytest.mark.parametrize(
    ("priced", "status"),
    [
        ([{"price_per_unit": "0.000000000001"}], 200),
        ([{"price_per_unit": "99999"}], 200),
        ([{"price_per_unit": "100000"}], 422),
        ([{"price_per_unit": "0.0000000000001"}], 422),
        ([{"price_per_unit": "0"}], 422),
        ([{"price_per_unit": "cheap"}], 422),
        ([{"free_threshold": -1}], 422),
        ([{"meter_units_per_credit": "10"}], 422),
        ([{"meter_id": "mtr_unknown"}], 404),
        ([{}, {}], 400),
    ],
)
def test_what_may_be_a_price(sim: Simulator, priced: list[dict[str, Any]], status: int) -> None:
    meter = sim.create_meter("tokens")
    product = sim.read_state()["products"] or sim.create_product([])
    price = sim.read_state()["products"][0]["price"] | {
        "meters": [{"meter_id": meter} | one for one in priced]
    }
    answer = sim.api.post("/products", json={"name": str(product), "tax_category": "saas", "price": price})
    assert answer.status_code == status, answer.text
