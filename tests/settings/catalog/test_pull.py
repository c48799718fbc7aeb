"""The catalog from the provider: what it says is taken over, and nothing else is touched."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.places import ROOT
from tidegate.operators.billing.provider import (
    Aggregation,
    ProviderMeter,
    ScheduledChange,
    SubscribedCustomer,
    SubscribedMeter,
    Subscription,
)
from tidegate.operators.model.catalog import Catalog, Customer
from tidegate.operators.model.periods import Billing, find_period
from tidegate.settings.catalog.file import CatalogError, parse_catalog
from tidegate.settings.catalog.pull import boundaries_of, pull_catalog
from tidegate.settings.catalog.yaml_edit import Into, YamlEdit, flow

EXAMPLE = (ROOT / "examples" / "catalog.yaml").read_text()
DAY = datetime(2026, 11, 3, 9, 12, 44, tzinfo=UTC)
NEXT = datetime(2026, 12, 3, 9, 12, 44, tzinfo=UTC)


def subscription(customer: str, start: datetime = DAY, end: datetime = NEXT, **fields: Any) -> Subscription:
    base: dict[str, Any] = dict(subscription_id=f"sub_{customer}", status="active", product_id="pdt_1")
    base["is_short"] = "meters" not in fields
    customers = SubscribedCustomer(customer)
    dates = dict(previous_billing_date=start, next_billing_date=end)
    return Subscription(**base | dict(customer=customers) | dates | fields)


def meter(
    name: str, event_name: str, type: str = "count", key: str | None = None, **fields: Any
) -> ProviderMeter:
    made = Aggregation(type, key)
    return ProviderMeter(
        id=f"mtr_{name}", name=name, event_name=event_name, aggregation=made, created_at=DAY, **fields
    )


def without(catalog: Catalog, *customers: str) -> Catalog:
    kept = {name: one for name, one in catalog.customers.items() if name not in customers}
    return Catalog(catalog.meters, catalog.plans, kept, catalog.default_plan)


def test_only_what_differs_is_changed_and_comments_stay() -> None:
    """Whoever keeps the file by hand finds it as it was."""
    made = pull_catalog(
        EXAMPLE, [], [subscription("cus_001"), subscription("cus_Ab12"), subscription("cus_006")]
    )
    before, after = EXAMPLE.splitlines(), made.text.splitlines()
    assert [line for line in before if line.lstrip().startswith("#")] == [
        line for line in after if line.lstrip().startswith("#")
    ]
    changed = [line for line in before if line not in after]
    assert [line.split(":")[0].strip() for line in changed] == [
        "cus_001",
        "cus_002",
        "period",
        "type",
        "edges",
    ]
    old, new = parse_catalog(EXAMPLE), parse_catalog(made.text)
    assert without(new, "cus_001", "cus_002", "cus_006") == without(old, "cus_001", "cus_002", "cus_006")
    assert new.customers["cus_001"] == Customer("cus_001", "pro", None, Billing((DAY, NEXT)), {}, None)
    assert new.customers["cus_002"].period == Billing((DAY, NEXT))


@pytest.mark.parametrize(
    "text", ["", EXAMPLE, "meters: [{name: a, event_name: b, aggregation: {type: count}}]"]
)
def test_to_pull_again_changes_nothing(text: str) -> None:
    meters = [meter("tokens", "llm.tokens", "sum", "tokens"), meter("calls", "api.call")]
    free = (SubscribedMeter(meter_id="mtr_calls", free_threshold=100),)
    found = [subscription("cus_001", meters=free), subscription("cus_new", meters=free)]
    once = pull_catalog(text, meters, found)
    assert once.changes and once.text != text
    again = pull_catalog(once.text, meters, found)
    assert (again.text, again.changes) == (once.text, ())
    catalog = parse_catalog(once.text)
    name = next(m.name for m in catalog.meters if (m.event_name, m.kind) == ("api.call", "count"))
    assert [str(catalog.limit_of(who, name).included) for who in ("cus_001", "cus_new")] == ["100", "100"]


def test_a_known_meter_is_known_by_what_it_counts() -> None:
    """Not by its name: another one of the same name gets a name of its own."""
    dear: dict[str, Any] = {
        "conjunction": "and",
        "clauses": [{"key": "dear", "operator": "equals", "value": True}],
    }
    made = pull_catalog(
        EXAMPLE,
        [
            meter("Input", "llm.tokens", "sum", "input_tokens"),
            meter("calls", "api.call", filter=dear),
            meter("?", "x"),
        ],
        [],
    )
    assert made.changes == ("meter calls_2: new, reads api.call", "meter meter: new, reads x")
    known = {m.name: m for m in parse_catalog(made.text).meters}
    assert known["calls_2"].filter is not None and known["calls_2"].filter.clauses[0].value is True  # type: ignore[union-attr]


USED = (SubscribedMeter(meter_id="mtr_calls", free_threshold=100),)
CALLS = "meters: [{name: calls, event_name: api.call, aggregation: {type: count}}]\n"


def test_two_metered_subscriptions_with_different_periods_are_a_conflict() -> None:
    """Neither is applied; the one that has ended does not count, and others of the catalog go on."""
    later = subscription("cus_001", DAY + timedelta(days=1), NEXT, subscription_id="sub_later", meters=USED)
    ended = subscription(
        "cus_001", DAY + timedelta(days=2), NEXT, subscription_id="sub_ended", status="cancelled", meters=USED
    )
    both = [later, subscription("cus_001", meters=USED)]
    made = pull_catalog(EXAMPLE, [], [*both, ended, subscription("cus_006")])
    [conflict] = made.conflicts
    assert (conflict.customer, conflict.subscriptions) == ("cus_001", ("sub_cus_001", "sub_later"))
    old, new = parse_catalog(EXAMPLE), parse_catalog(made.text)
    assert new.customers["cus_001"] == old.customers["cus_001"] and "cus_006" in new.customers
    resolved = pull_catalog(EXAMPLE, [], [later, ended])
    assert not resolved.conflicts
    assert parse_catalog(resolved.text).customers["cus_001"].period == Billing(
        (DAY + timedelta(days=1), NEXT)
    )


@pytest.mark.parametrize("is_first", [True, False])
def test_a_subscription_without_meters_changes_nothing(is_first: bool) -> None:
    """Neither the period of a customer who has a metered one too, nor one who has no other."""
    seats = subscription("cus_001", DAY + timedelta(days=9), NEXT, subscription_id="sub_seats", meters=())
    found = [seats, subscription("cus_001", meters=USED)]
    made = pull_catalog(EXAMPLE, [], found if is_first else found[::-1])
    assert not made.conflicts and parse_catalog(made.text).customers["cus_001"].period == Billing((DAY, NEXT))
    alone = pull_catalog(EXAMPLE, [], [seats, subscription("cus_new", meters=())])
    assert (alone.text, alone.changes) == (EXAMPLE, ())


def test_equal_periods_of_two_subscriptions_go_together() -> None:
    """Each brings its own free quantities; a meter that both bill is reported, and its free quantity stays."""
    other = (*USED, SubscribedMeter(meter_id="mtr_tokens", free_threshold=7))
    meters = [meter("tokens", "llm.tokens", "sum", "n"), meter("calls", "api.call")]
    first = subscription("cus_new", meters=USED)
    made = pull_catalog(CALLS, meters, [first])
    second = subscription("cus_new", subscription_id="sub_2", product_id="pdt_2", meters=other)
    again = pull_catalog(made.text, meters, [first, second])
    catalog = parse_catalog(again.text)
    assert not again.conflicts and "2 lines" in again.warnings[0]
    assert [catalog.limit_of("cus_new", m).included for m in ("calls", "tokens")] == [100, 7]
    assert catalog.customers["cus_new"].plan == "pdt_1"


def capped(text: str) -> str:
    """The pulled free plan with the cap that the merchant gives it."""
    return text.replace("included: 100, on_cap: allow", "included: 100, cap: 100, on_cap: block")


@pytest.mark.parametrize("plan", ["pulled", "linked", "by hand"])
def test_an_upgrade_moves_plan_and_cap(plan: str) -> None:
    """To the product's own plan; who pays is not stopped by the cap of the plan before."""
    meters = [meter("calls", "api.call")]
    text = capped(pull_catalog(CALLS, meters, [subscription("cus_new", meters=USED)]).text)
    if plan == "by hand":
        text = text.replace("pdt_1:", "free:").replace("plan: pdt_1", "plan: free")
    if plan == "linked":
        text = text.replace("plans:\n", "plans:\n  gold: {billing_id: pdt_2, limits: {calls: {cap: 9000}}}\n")
    assert parse_catalog(text).limit_of("cus_new", "calls").cap == 100
    more = (SubscribedMeter(meter_id="mtr_calls", free_threshold=5000),)
    made = pull_catalog(text, meters, [subscription("cus_new", product_id="pdt_2", meters=more)])
    catalog = parse_catalog(made.text)
    assert catalog.plan_of("cus_new").name == ("gold" if plan == "linked" else "pdt_2")
    limit = catalog.limit_of("cus_new", "calls")
    assert (limit.included, limit.cap) == (Decimal(5000), Decimal(9000) if plan == "linked" else None)
    again = pull_catalog(made.text, meters, [subscription("cus_new", product_id="pdt_2", meters=more)])
    assert (again.text, again.changes) == (made.text, ())


def test_a_change_of_plan_to_come_is_announced() -> None:
    """With the plan that it will be, or that there is none yet; the plan stays until then."""
    coming = subscription("cus_new", meters=USED, scheduled_change=ScheduledChange("pdt_pro", NEXT))
    at = "customer cus_new: its product becomes pdt_pro at 2026-12-03 09:12 UTC; "
    assert f"{at}no plan has that billing_id yet" in pull_catalog(CALLS, [], [coming]).warnings
    made = pull_catalog(CALLS + "plans: {pro: {billing_id: pdt_pro}}\ndefault_plan: pro\n", [], [coming])
    assert f"{at}its plan becomes pro" in made.warnings
    assert parse_catalog(made.text).customers["cus_new"].plan == "pdt_1"


def test_a_plan_that_was_chosen_by_hand_stays_while_the_product_does() -> None:
    meters = [meter("calls", "api.call")]
    text = pull_catalog(CALLS, meters, [subscription("cus_new", meters=USED)]).text
    text = text.replace("plans:\n", "plans:\n  vip: {limits: {calls: {included: 100, cap: 900}}}\n")
    text = text.replace("plan: pdt_1", "plan: vip")
    made = pull_catalog(text, meters, [subscription("cus_new", meters=USED)])
    assert (made.text, made.changes) == (text, ())


def test_an_own_cap_stays_and_is_reported() -> None:
    text = pull_catalog(CALLS, [meter("calls", "api.call")], [subscription("cus_new", meters=USED)]).text
    text = text.replace("cus_new: {", "cus_new: {limits: {calls: {cap: 50}}, ")
    moved = subscription("cus_new", product_id="pdt_2", meters=USED)
    made = pull_catalog(text, [meter("calls", "api.call")], [moved])
    assert parse_catalog(made.text).limit_of("cus_new", "calls").cap == 50
    assert any("its own cap on calls stays" in warning for warning in made.warnings)


def test_a_threshold_that_wrapped_there_is_warned_of() -> None:
    many = (SubscribedMeter(meter_id="mtr_calls", free_threshold=2**31),)
    made = pull_catalog(CALLS, [meter("calls", "api.call")], [subscription("cus_new", meters=many)])
    assert "2.1 billion" in made.warnings[0]
    fewer = (SubscribedMeter(meter_id="mtr_calls", free_threshold=2**31 - 1),)
    assert not pull_catalog(
        CALLS, [meter("calls", "api.call")], [subscription("cus_new", meters=fewer)]
    ).warnings


def test_two_plans_of_one_product_are_refused() -> None:
    with pytest.raises(CatalogError, match="plan a has it too"):
        parse_catalog(CALLS + "plans: {a: {billing_id: pdt_1}, b: {billing_id: pdt_1}}\n")


def test_a_catalog_that_is_wrong_is_not_touched() -> None:
    with pytest.raises(CatalogError):
        pull_catalog("meters: [", [], [subscription("cus_1")])


steps = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(steps, st.lists(st.sampled_from(["renew", "early", "longer", "same"]), max_size=10))
@settings(max_examples=200)
def test_periods_of_before_stay_what_they_were(lengths: list[int], happened: list[str]) -> None:
    """Whatever boundaries the provider has, what had ended keeps its own: a closed bill can always be compared."""
    start, end = DAY, DAY + timedelta(days=30)
    edges = boundaries_of((), start, end)
    closed: list[tuple[datetime, datetime]] = []
    for what, days in zip(happened, lengths, strict=False):
        if what == "renew":
            closed.append((start, end))
            start, end = end, end + timedelta(days=days)
        elif what == "early" and (end - start) > timedelta(days=2):
            cut = start + (end - start) / 2
            cut = cut.replace(microsecond=0)
            closed.append((start, cut))
            start, end = cut, cut + timedelta(days=days)
        elif what == "longer":
            end += timedelta(days=days)
        edges = boundaries_of(edges, start, end)
    policy = Billing(edges)
    for begin, finish in [*closed, (start, end)]:
        at = int(begin.timestamp() * 1_000_000)
        assert find_period(policy, "UTC", at) == (at, int(finish.timestamp() * 1_000_000))


texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=12)
values = st.recursive(
    st.integers(-100, 100) | st.booleans() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
mappings = st.dictionaries(texts, values, max_size=4)


def read(text: str) -> Any:
    return yaml.safe_load(text)


def merged(base: Any, into: Any) -> Any:
    if not isinstance(into, Into) or not isinstance(base, dict):
        return plain(into)
    return base | {key: merged(base.get(key), value) for key, value in into.items()}


def plain(value: Any) -> Any:
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def as_into(value: Any, depth: int) -> Any:
    if isinstance(value, dict) and depth:
        return Into({key: as_into(item, depth - 1) for key, item in value.items()})
    return value


@given(mappings, mappings, st.integers(0, 3), st.sampled_from([True, False, None]))
@settings(max_examples=300)
def test_an_edit_is_what_a_reader_would_expect(
    base: Any, change: Any, depth: int, style: bool | None
) -> None:
    """Whatever stands there, in blocks or on one line: read again, it is the old with the new put in."""
    text = yaml.safe_dump(base, default_flow_style=style, allow_unicode=True, sort_keys=False) if base else ""
    change = Into({key: as_into(value, depth) for key, value in change.items()})
    edit = YamlEdit(text)
    edit.put(change)
    assert (read(edit.text()) or {}) == merged(base, change)


@given(values)
def test_a_value_on_one_line_reads_as_itself(value: Any) -> None:
    assert read(flow({"a": value})) == {"a": value}
