"""Usage that nobody bills, planted: each way is found from our totals, with ids, units and money."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.flows.reconcile.metered import BEGIN, END, METERS, MINUTE, System, causes, system, written
from tidegate.flows.reconcile.coverage import Prover
from tidegate.operators.billing.provider import to_micros
from tidegate.operators.model.wire import format_instant

# 10 free, then 2 cents each.
PRICED = {"price_per_unit": "2", "free_threshold": 10}


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[System]:
    with system(tmp_path, tier=2) as made:
        yield made


def product(m: System, *meters: str) -> str:
    return m.simulator.create_product([{"meter_id": m.meters[name]} | PRICED for name in meters])


def priced(m: System) -> list[dict[str, Any]]:
    return [{"meter_id": id} | PRICED for id in m.meters.values()]


def archive(m: System, acme: str) -> None:
    m.simulator.api.delete(f"/meters/{m.meters['tokens']}")


def recreate(m: System, acme: str) -> None:
    archive(m, acme)
    m.simulator.create_meter("llm.tokens", "sum", "tokens", name="tokens")


def change_filter(m: System, acme: str) -> None:
    archive(m, acme)
    paid = {"conjunction": "and", "clauses": [{"key": "tier", "operator": "equals", "value": "paid"}]}
    meter = m.simulator.create_meter("llm.tokens", "sum", "tokens", name="tokens", filter=paid)
    m.simulator.change_subscription(m.subscriptions[acme], product_id=m.simulator.create_product([meter]))


def change_aggregation(m: System, acme: str) -> None:
    archive(m, acme)
    meter = m.simulator.create_meter("llm.tokens", "count", name="tokens")
    m.simulator.change_subscription(m.subscriptions[acme], product_id=m.simulator.create_product([meter]))


def change_plan(m: System, acme: str) -> None:
    m.simulator.change_subscription(m.subscriptions[acme], product_id=product(m, "calls"))


# What was billed of 5,023 before and after; which cause is named for how much, and what it is worth in cents.
WAYS: list[tuple[Callable[[System, str], None], str, str, str]] = [
    (archive, "meter_archived", "5000", "10000"),
    (recreate, "meter_archived", "5000", "10000"),
    (change_filter, "meter_differs", "5023", "10026"),
    (change_aggregation, "meter_differs", "5023", "10026"),
    (change_plan, "not_on_plan", "5023", "10026"),
]


@pytest.mark.parametrize(
    ("way", "cause", "units", "worth"), WAYS, ids=lambda one: getattr(one, "__name__", "")
)
def test_usage_that_the_provider_counts_no_more_is_named(
    metered: System, way: Callable[[System, str], None], cause: str, units: str, worth: str
) -> None:
    other, acme = metered.customer(meters=priced(metered)), metered.customer(meters=priced(metered))
    metered.apply()
    metered.event(other, tokens=3)
    before = [metered.event(acme, tokens=n, at=metered.clock.now - 40 * MINUTE) for n in (5, 7, 11)]
    metered.run(900, step=60)
    way(metered, acme)
    metered.clock.sleep(2)
    after = [metered.event(acme, tokens=1000) for _ in range(5)]
    metered.run(1200, step=60)
    found = metered.reconcile()
    assert set(found) == {(acme, "tokens")}
    assert causes(found[acme, "tokens"]) == {cause: units}
    assert found[acme, "tokens"]["worth"] == worth
    (ids,) = [one["ids"] for one in found[acme, "tokens"]["findings"] if one["cause"] == cause]
    assert set(ids) == set(after if units == "5000" else before + after)
    adds_up(metered)


def adds_up(m: System) -> dict[str, Any]:
    """Check that the proof of the last run accounts for each of our units; its line of sums for tokens."""
    lines = m.lines("drift.ndjson")
    last = [line for line in lines if line["status"] == "ended"][-1]
    proof = [one for one in lines if one["status"] == "coverage" and one["pass"] == last["pass"]]
    for one in proof:
        parts = sum(Decimal(one[name]) for name in ("billed", "in_flight", "held_back", "unbilled"))
        assert Decimal(one["ours"]) == parts
        assert bool(one["cause"]) == (Decimal(one["unbilled"]) != 0)
    ours = sum(Decimal(total.total) for total in m.totals.values())
    assert sum(Decimal(one["ours"]) for one in proof) == ours
    assert sum(Decimal(one["ours"]) for one in last["coverage"]) == ours
    sums: dict[str, Any] = next(one for one in last["coverage"] if one["meter"] == "tokens")
    return sums


def test_a_customer_that_is_unknown_there_is_named(metered: System) -> None:
    metered.simulator.set_switches(unknown_customer="accept_unattributed")
    metered.customer(meters=priced(metered))
    edges = f"[{written(BEGIN)}, {written(END)}]"
    metered.apply(
        METERS + f"customers:\n  acme: {{billing_id: cus_typo, period: {{type: billing, edges: {edges}}}}}\n"
    )
    metered.event("acme", tokens=30)
    metered.run(900, step=60)
    found = metered.reconcile()["acme", "tokens"]
    assert causes(found) == {"no_subscription": "30"} and found["money"] == "0.40 USD"
    assert "no such customer" in found["findings"][0]["detail"]
    assert adds_up(metered)["unbilled"] == "30"


def test_usage_between_two_periods_is_named_and_leaves_the_list_when_it_is_billed(metered: System) -> None:
    acme = metered.customer(meters=priced(metered))
    metered.apply()
    metered.event(acme, tokens=20)
    metered.run(600, step=60)
    edge = metered.clock.now // 1_000_000 * 1_000_000
    metered.clock.sleep(1)
    metered.simulator.set_switches(auto_renew=False)
    begin = format_instant(edge + 180_000_000)
    metered.simulator.roll(
        metered.subscriptions[acme], at=format_instant(edge), start=begin, end=written(END)
    )
    metered.edges[acme] = [written(BEGIN), format_instant(edge)[:19] + "Z", begin[:19] + "Z", written(END)]
    metered.apply()
    ids = [metered.event(acme, tokens=n) for n in (100, 200)]
    metered.run(1200, step=60)
    found = metered.reconcile()[acme, "tokens"]
    assert causes(found) == {"gap": "300"} and set(found["findings"][0]["ids"]) == set(ids)
    adds_up(metered)
    metered.count(acme, "tokens", 0, edge + 1_000_000, "-300")
    assert metered.reconcile() == {}


@pytest.mark.parametrize("is_renewed", [True, False])
def test_usage_of_no_period_is_a_gap_also_where_the_catalog_has_not_followed(
    metered: System, is_renewed: bool
) -> None:
    """Here it is in the period that the catalog still has, there between two periods, or after the last."""
    acme = metered.customer(meters=priced(metered))
    metered.apply()
    metered.event(acme, tokens=20)
    metered.run(600, step=60)
    metered.simulator.set_switches(auto_renew=False)
    edge = metered.clock.now
    metered.clock.sleep(1)
    if is_renewed:
        begin = format_instant(edge + 180_000_000)
        metered.simulator.roll(
            metered.subscriptions[acme], at=format_instant(edge), start=begin, end=written(END)
        )
    else:
        metered.simulator.change_subscription(
            metered.subscriptions[acme], status="cancelled", end=format_instant(edge)
        )
    ids = [metered.event(acme, tokens=n) for n in (100, 200)]
    metered.run(1200, step=60)
    found = metered.reconcile()[acme, "tokens"]
    assert causes(found) == {"gap": "300"} and set(found["findings"][0]["ids"]) == set(ids)
    assert found["money"] == "6.00 USD"
    adds_up(metered)


def test_two_equal_meters_of_a_product_bill_twice(metered: System) -> None:
    second = metered.simulator.create_meter("llm.tokens", "sum", "tokens", name="tokens v2")
    acme = metered.customer(meters=[*priced(metered), {"meter_id": second} | PRICED])
    metered.apply()
    metered.event(acme, tokens=30)
    metered.run(900, step=60)
    found = metered.reconcile()[acme, "tokens"]
    assert causes(found) == {"billed_twice": "-30"}
    assert second in found["findings"][0]["detail"]
    assert adds_up(metered)["unbilled"] == "-30"


def test_two_subscriptions_of_equal_dates_that_bill_one_meter_bill_twice(metered: System) -> None:
    """Each for itself agrees with our total. Meters that only one of them has are no finding."""
    acme = metered.customer(meters=[{"meter_id": metered.meters["tokens"]} | PRICED])
    metered.apply()
    both = metered.simulator.create_product(priced(metered))
    second = metered.simulator.create_subscription(acme, both, start=written(BEGIN), end=written(END))
    metered.event(acme, tokens=30)
    metered.event(acme)
    metered.run(900, step=60)
    for _ in range(2):
        found = metered.reconcile(reconcile_repair="true")
        assert set(found) == {(acme, "tokens")}
        assert causes(found[acme, "tokens"]) == {"billed_twice": "-30"}
        assert found[acme, "tokens"]["money"] == "-0.40 USD"
        detail = found[acme, "tokens"]["findings"][0]["detail"]
        assert second in detail and metered.subscriptions[acme] in detail
        sums = adds_up(metered)
        assert (sums["billed"], sums["unbilled"], sums["worth"]) == ("60", "-30", "-40")
        metered.run(300, step=60)


def test_what_is_held_back_or_ours_alone_is_no_finding_of_the_proof(metered: System) -> None:
    """Usage of nobody's billing_id waits in the outbox; a meter that the provider never had bills nobody."""
    edges = f"[{written(BEGIN)}, {written(END)}]"
    metered.customer(meters=priced(metered))
    metered.apply(METERS + f"customers:\n  acme: {{period: {{type: billing, edges: {edges}}}}}\n")
    metered.event("acme", tokens=30)
    metered.count("acme", "peak", 30, metered.clock.now)
    metered.run(900, step=60)
    assert metered.reconcile() == {}
    lines = [one for one in metered.lines("drift.ndjson") if one["status"] == "coverage"]
    assert [(one["customer"], one["held_back"], one["unbilled"]) for one in lines] == [("acme", "30", "0")]


def test_a_tolerance_is_no_drift(metered: System) -> None:
    acme = metered.customer(meters=priced(metered))
    metered.apply()
    metered.event(acme, tokens=30)
    metered.run(900, step=60)
    metered.simulator.skew(metered.subscriptions[acme], metered.meters["tokens"], "-0.3")
    metered.run(120)
    assert metered.reconcile(reconcile_tolerance="0.5") == {}
    assert metered.reconcile(reconcile_tolerance="0.2") != {}


def test_a_healthy_busy_system_has_no_finding_and_each_unit_is_accounted_for(metered: System) -> None:
    customers = [metered.customer(meters=priced(metered)) for _ in range(6)]
    metered.apply()
    work = metered.work

    def busy() -> None:
        for place, customer in enumerate(customers):
            metered.event(customer, tokens=place + 1, at=metered.clock.now - place * 60_000_000)
        work()

    metered.work = busy  # type: ignore[method-assign]
    metered.run(600, step=15)
    for _ in range(3):
        assert metered.reconcile() == {}
    lines = [one for one in metered.lines("drift.ndjson") if one["status"] == "coverage"]
    assert lines and {one["unbilled"] for one in lines} == {"0"}


def test_a_kill_before_the_proof_leaves_it_to_the_next_start(
    metered: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = metered.customer(meters=priced(metered))
    metered.apply()
    metered.event(acme, tokens=30)
    metered.run(600, step=60)
    change_plan(metered, acme)
    metered.run(300, step=60)
    real = Prover.prove

    def killed(self: Prover, *given: Any) -> Any:
        raise RuntimeError("killed")

    monkeypatch.setattr(Prover, "prove", killed)
    with pytest.raises(RuntimeError):
        metered.reconcile()
    monkeypatch.setattr(Prover, "prove", real)
    assert causes(metered.reconcile()[acme, "tokens"]) == {"not_on_plan": "30"}
    assert metered.totals[acme, "tokens", to_micros(BEGIN)].total == "30"


def test_a_second_subscription_of_other_dates_is_named_with_units_and_money(metered: System) -> None:
    """What it bills, and what it alone bills of ours; one alert is of the conflict, none of a total, and no repair."""
    acme = metered.customer(meters=[{"meter_id": metered.meters["tokens"]} | PRICED])
    metered.apply()
    dates = {"start": written(BEGIN + timedelta(days=5)), "end": written(END + timedelta(days=5))}
    metered.simulator.create_subscription(acme, metered.simulator.create_product(priced(metered)), **dates)
    metered.event(acme, tokens=30)
    for _ in range(14):
        metered.event(acme)
    metered.run(900, step=60)
    for _ in range(2):
        metered.reconcile(reconcile_repair="true")
        metered.run(300, step=60)
    named = [json.loads(one.findings) | {"status": one.status} for one in metered.standings()]
    assert [(one["meter"], one["ours"], one["billers"], one["money"]) for one in named] == [
        ("calls", "14", "0", "0.08 USD"),
        ("calls", "0", "14", "-0.08 USD"),
        ("tokens", "0", "30", "-0.40 USD"),
    ]
    assert {one["status"] for one in named} == {"conflict"}
    assert {cause for one in named for cause in causes(one)} == {"second_subscription"}
    assert not [act for one in named for act in one["repairs"]]
    assert [line["level"] for line in metered.lines("alerts-drift.ndjson")] == ["conflict"]
    assert adds_up(metered)["unbilled"] == "-30"
    calls = next(one for one in metered.lines("drift.ndjson")[-1]["coverage"] if one["meter"] == "calls")
    assert (calls["ours"], calls["billed"], calls["unbilled"]) == ("14", "14", "0")
