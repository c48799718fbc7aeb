"""The decision under all caps: a table of what an application sees, and a naive judge that it must agree with."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.operators.columns.quantity import SCALE, scale
from tidegate.operators.gate.customer_limits import CatalogLimits, CustomerLimits
from tidegate.operators.gate.decision import AccountView, Decision, decide_blind
from tidegate.operators.gate.holds import find_final_quantities, has_room
from tidegate.operators.model.catalog import Catalog, Customer, Limit, Meter, Plan, SpendCap, Tier
from tidegate.operators.model.periods import NEVER_END, Calendar, Never
from tidegate.operators.model.ports import Account, Used

METERS = (
    Meter("calls", "c", "count"),
    Meter("tokens", "t", "sum", "n"),
    Meter("users", "u", "unique", "id"),
    Meter("peak", "p", "max", "n"),
    Meter("seats", "s", "last", "n"),
)
PRICED = (Tier(Decimal(10), Decimal("0.5")), Tier(None, Decimal(2)))
START, END = 1_000, 2_000


def own_of(limits: dict[str, Limit], spend: SpendCap | None = None, **plan: Any) -> CustomerLimits:
    catalog = Catalog(METERS, {"p": Plan("p", limits=limits, spend_cap=spend, **plan)}, default_plan="p")
    return CatalogLimits(catalog, 7).find("acme")


def account_of(
    used: dict[str, Any] | None = None, held: dict[str, Any] | None = None, next_expiry: int | None = None
) -> Account:
    totals = {meter: Used(scale(Decimal(total)), 1_500, 1_520) for meter, total in (used or {}).items()}
    holds = {meter: scale(Decimal(quantity)) for meter, quantity in (held or {}).items()}
    return Account(totals, holds, next_expiry, 7, 1)


def asked_of(asked: dict[str, Any]) -> dict[str, int]:
    return {meter: scale(Decimal(quantity)) for meter, quantity in asked.items()}


def decide(own: CustomerLimits, account: Account, **asked: Any) -> Decision:
    return AccountView(own, account, START, END).decide(asked_of(asked))


def cap(limit: int | str, **fields: Any) -> Limit:
    return Limit(cap=Decimal(limit), **fields)


# limits, used, held, asked for: allowed, reason, meter, remaining.
TABLE: list[tuple[dict[str, Limit], dict[str, Any], dict[str, Any], dict[str, Any], tuple[Any, ...]]] = [
    # One meter.
    ({}, {"calls": 5}, {}, {"calls": 1}, (True, "no_cap", "calls", None)),
    ({}, {}, {}, {"typo": 1}, (True, "unknown_meter", "typo", None)),
    ({"calls": cap(10)}, {}, {}, {"calls": 10}, (True, "within", "calls", "10")),
    ({"calls": cap(10)}, {}, {}, {"calls": 11}, (False, "cap_reached", "calls", "10")),
    ({"calls": cap(10)}, {"calls": 9}, {}, {"calls": 1}, (True, "within", "calls", "1")),
    ({"calls": cap(10)}, {"calls": 10}, {}, {"calls": 0}, (True, "within", "calls", "0")),
    ({"calls": cap(10)}, {"calls": 12}, {}, {"calls": 0}, (False, "cap_reached", "calls", "0")),
    ({"calls": cap(0)}, {}, {}, {"calls": 1}, (False, "cap_reached", "calls", "0")),
    ({"tokens": cap("0.3")}, {"tokens": "0.1"}, {}, {"tokens": "0.2"}, (True, "within", "tokens", "0.2")),
    # Holds take room as usage does.
    ({"calls": cap(10)}, {"calls": 5}, {"calls": 4}, {"calls": 1}, (True, "within", "calls", "1")),
    ({"calls": cap(10)}, {"calls": 5}, {"calls": 4}, {"calls": 2}, (False, "cap_reached", "calls", "1")),
    ({"users": cap(3)}, {"users": 2}, {"users": 1}, {"users": 1}, (False, "cap_reached", "users", "0")),
    # What lets pass beyond the cap.
    (
        {"calls": cap(10, grace_pct=Decimal(10))},
        {"calls": 10},
        {},
        {"calls": 1},
        (True, "grace", "calls", "0"),
    ),
    (
        {"calls": cap(10, grace_pct=Decimal(10))},
        {"calls": 11},
        {},
        {"calls": 1},
        (False, "cap_reached", "calls", "0"),
    ),
    ({"calls": cap(10, on_cap="allow")}, {"calls": 99}, {}, {"calls": 1}, (True, "overage", "calls", "0")),
    ({"calls": cap(10, on_cap="warn")}, {"calls": 99}, {}, {"calls": 1}, (True, "warn", "calls", "0")),
    # Levels are asked for as such: one below the cap takes nobody past it, and holds are no part of them.
    ({"peak": cap(10)}, {"peak": 12}, {"peak": 9}, {"peak": 10}, (True, "within", "peak", "10")),
    ({"peak": cap(10)}, {"peak": 2}, {}, {"peak": 11}, (False, "cap_reached", "peak", "10")),
    ({"seats": cap(10)}, {"seats": 10}, {}, {"seats": 10}, (True, "within", "seats", "10")),
    # Of several the worst is told: denied before grace before overage before room.
    (
        {"calls": cap(10), "tokens": cap(100)},
        {"calls": 5, "tokens": 99},
        {},
        {"calls": 1, "tokens": 2},
        (False, "cap_reached", "tokens", "1"),
    ),
    (
        {"calls": cap(10), "tokens": cap(100)},
        {"calls": 5, "tokens": 90},
        {},
        {"calls": 1, "tokens": 2},
        (True, "within", "tokens", "10"),
    ),
    (
        {"calls": cap(10, on_cap="allow"), "tokens": cap(100)},
        {"calls": 10, "tokens": 90},
        {},
        {"calls": 1, "tokens": 2},
        (True, "overage", "calls", "0"),
    ),
    (
        {"calls": cap(10), "tokens": cap(100)},
        {"calls": 10, "tokens": 100},
        {},
        {"tokens": 0, "calls": 1},
        (False, "cap_reached", "calls", "0"),
    ),
    ({"calls": cap(10)}, {}, {}, {"tokens": 5, "calls": 1}, (True, "within", "calls", "10")),
    # A cap in shadow denies nobody, also beside one that does.
    (
        {"calls": cap(1, shadow=True), "tokens": cap(1)},
        {"calls": 1, "tokens": 1},
        {},
        {"calls": 1, "tokens": 1},
        (False, "cap_reached", "tokens", "0"),
    ),
]


@pytest.mark.parametrize(("limits", "used", "held", "asked", "expected"), TABLE)
def test_decisions(
    limits: dict[str, Limit],
    used: dict[str, Any],
    held: dict[str, Any],
    asked: dict[str, Any],
    expected: tuple[Any, ...],
) -> None:
    decision = decide(own_of(limits), account_of(used, held), **asked)
    remaining = None if decision.remaining is None else str(decision.remaining)
    assert (decision.allowed, decision.reason, decision.meter, remaining) == expected
    assert not decision.degraded and not decision.denied_in_shadow


def test_a_cap_in_shadow_only_reports() -> None:
    decision = decide(own_of({"calls": cap(1, shadow=True)}), account_of({"calls": 1}), calls=1)
    assert (decision.allowed, decision.reason, decision.denied_in_shadow) == (True, "cap_reached", True)


def test_a_decision_says_all_that_it_rests_on() -> None:
    own = own_of({"calls": cap(10)})
    decision = decide(own, account_of({"calls": "5.50"}, {"calls": "0.25"}), calls=1)
    assert decision == Decision(
        customer="acme",
        meter="calls",
        allowed=True,
        reason="within",
        used=Decimal("5.5"),
        reserved=Decimal("0.25"),
        limit=Decimal(10),
        remaining=Decimal("4.25"),
        resets_at=END,
        as_of=1_500,
        catalog=7,
    )
    with pytest.raises(AttributeError):
        decision.allowed = False  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(decision))["used"] == "5.5"


def test_without_a_total_there_is_nothing_to_be_fresh() -> None:
    decision = decide(own_of({"calls": cap(10)}), account_of(), calls=1)
    assert (decision.used, decision.as_of) == (Decimal(0), None)


def test_a_period_without_end_never_resets() -> None:
    own = own_of({"calls": cap(1)}, period=Never())
    assert (
        AccountView(own, account_of(), *own.find_period(10**15)).decide(asked_of({"calls": 1})).resets_at
        is None
    )
    assert own.find_period(10**15)[1] == NEVER_END


def test_the_period_is_the_one_that_holds_now() -> None:
    """Also in the customer's own zone: in Kathmandu the day begins at 18:15 UTC."""
    day = 86_400 * 10**6
    noon = 20_000 * day + day // 2
    own = own_of({}, period=Calendar("day"), zone="Asia/Kathmandu")
    start, end = own.find_period(noon)
    assert (start, end) == (20_000 * day - 5 * day // 24 - 45 * 60 * 10**6, start + day)
    assert own.build_scope(start).start == start and set(own.build_scope(start).meters) == {
        meter.name for meter in METERS
    }


# Money over all meters


MONEY: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], tuple[Any, ...]]] = [
    # tokens: 5 free, then 10 at 0.5, then 2 each; calls: 1 each.
    ("10", {}, {}, {"calls": 1}, (True, "within", "0", "0", "10")),
    ("10", {"tokens": 15}, {}, {"calls": 5}, (True, "within", "5", "0", "5")),
    ("10", {"tokens": 15}, {}, {"calls": 6}, (False, "cap_reached", "5", "0", "5")),
    ("10", {"tokens": 15}, {}, {"tokens": "2.5"}, (True, "within", "5", "0", "5")),
    ("10", {"tokens": 15}, {}, {"tokens": "2.5000000001"}, (False, "cap_reached", "5", "0", "5")),
    ("10", {"tokens": 10}, {"tokens": 5, "calls": 4}, {"calls": 1}, (True, "within", "2.5", "6.5", "1")),
    (
        "10",
        {"tokens": 10},
        {"tokens": 5, "calls": 4},
        {"calls": 2},
        (False, "cap_reached", "2.5", "6.5", "1"),
    ),
    ("10", {"tokens": 10}, {}, {"calls": 4, "tokens": 7}, (False, "cap_reached", "2.5", "0", "7.5")),
    # Nothing left, and more than that: what costs nothing passes.
    ("0", {}, {}, {"tokens": 5}, (True, "within", "0", "0", "0")),
    ("0", {}, {}, {"tokens": "5.1"}, (False, "cap_reached", "0", "0", "0")),
    ("1", {"calls": 3}, {}, {"tokens": 5}, (True, "within", "3", "0", "0")),
    ("1", {"calls": 3}, {}, {"users": 5}, (True, "within", "3", "0", "0")),
]


@pytest.mark.parametrize(("limit", "used", "held", "asked", "expected"), MONEY)
def test_a_spend_cap_looks_at_all_meters(
    limit: str, used: dict[str, Any], held: dict[str, Any], asked: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    limits = {
        "tokens": Limit(included=Decimal(5), tiers=PRICED),
        "calls": Limit(tiers=(Tier(None, Decimal(1)),)),
    }
    decision = decide(own_of(limits, SpendCap(Decimal(limit))), account_of(used, held), **asked)
    assert (decision.allowed, decision.reason) == expected[:2]
    numbers = (decision.used, decision.reserved, decision.remaining)
    assert numbers == tuple(map(Decimal, expected[2:]))
    assert (decision.scope, decision.meter, decision.limit) == ("spend", "", Decimal(limit))


def test_a_levels_cost_is_that_of_the_greatest_level() -> None:
    own = own_of({"seats": Limit(tiers=(Tier(None, Decimal(3)),))}, SpendCap(Decimal(30)))
    account = account_of({"seats": 9})
    assert decide(own, account, seats=10).allowed and not decide(own, account, seats=11).allowed
    assert decide(own, account_of({"seats": 12}), seats=5).allowed


@pytest.mark.parametrize(
    ("fields", "asked", "expected"),
    [
        ({"grace_pct": Decimal("33.3")}, "13.33", (True, "grace")),
        ({"grace_pct": Decimal("33.3")}, "13.3300001", (False, "cap_reached")),
        ({"on_cap": "warn"}, "99", (True, "warn")),
        ({"on_cap": "allow"}, "99", (True, "overage")),
        ({"shadow": True}, "99", (True, "cap_reached")),
    ],
)
def test_a_spend_cap_has_all_that_caps_have(
    fields: dict[str, Any], asked: str, expected: tuple[Any, ...]
) -> None:
    own = own_of({"tokens": Limit(tiers=(Tier(None, Decimal(1)),))}, SpendCap(Decimal(10), **fields))
    decision = decide(own, account_of(), tokens=asked)
    assert (decision.allowed, decision.reason) == expected
    assert decision.denied_in_shadow == ("shadow" in fields)


def test_money_and_meter_are_told_by_who_is_closer_to_its_end() -> None:
    limits = {"tokens": Limit(cap=Decimal(100), tiers=(Tier(None, Decimal(1)),))}
    decision = decide(own_of(limits, SpendCap(Decimal(50))), account_of({"tokens": 40}), tokens=1)
    assert (decision.scope, decision.remaining) == ("spend", Decimal(10))
    decision = decide(own_of(limits, SpendCap(Decimal(5000))), account_of({"tokens": 40}), tokens=1)
    assert (decision.scope, decision.remaining) == ("meter", Decimal(60))


# Any caps against a naive judge


QUANTITY = st.decimals(0, 30, places=2)
LIMITS = st.builds(
    Limit,
    included=st.none() | QUANTITY,
    cap=st.none() | QUANTITY,
    on_cap=st.sampled_from(["block", "block", "allow", "warn"]),
    grace_pct=st.sampled_from([Decimal(0), Decimal(10), Decimal("33.333")]),
    shadow=st.booleans(),
    tiers=st.sampled_from([(), PRICED, (Tier(None, Decimal("0.07")),)]),
)
SPENDS = st.none() | st.builds(
    SpendCap,
    QUANTITY,
    st.sampled_from(["block", "block", "allow"]),
    st.sampled_from([Decimal(0), Decimal("12.5")]),
    shadow=st.booleans(),
)
NAMES = [meter.name for meter in METERS]
AMOUNTS = st.dictionaries(st.sampled_from(NAMES), QUANTITY)
ASKED = st.dictionaries(st.sampled_from(NAMES), QUANTITY, min_size=1)


def naive_price(limit: Limit, total: Fraction) -> Fraction:
    """By the unit, in steps of a millionth of what is over: each step costs what its tier says."""
    over, cost, begin = max(total - Fraction(limit.included or 0), Fraction(0)), Fraction(0), Fraction(0)
    for place, tier in enumerate(limit.tiers):
        last = place == len(limit.tiers) - 1
        end = over if last or tier.up_to is None else min(over, Fraction(tier.up_to))
        cost += max(end - begin, Fraction(0)) * Fraction(tier.price)
        begin = max(begin, end)
    return cost


def naive_allows(
    limits: dict[str, Limit],
    spend: SpendCap | None,
    used: dict[str, Decimal],
    held: dict[str, Decimal],
    asked: dict[str, Decimal],
) -> bool:
    """Every cap by itself, in fractions; all must let pass."""

    def edge(cap: Limit | SpendCap) -> Fraction | None:
        if cap.cap is None or cap.on_cap != "block" or cap.shadow:
            return None
        return Fraction(cap.cap) * (1 + Fraction(cap.grace_pct) / 100)

    def total(meter: str, asked: dict[str, Decimal]) -> Fraction:
        base, more = Fraction(used.get(meter, 0)), Fraction(asked.get(meter, 0))
        return max(base, more) if meter in ("peak", "seats") else base + Fraction(held.get(meter, 0)) + more

    for meter, quantity in asked.items():
        most = edge(limits.get(meter, Limit()))
        wanted = Fraction(quantity) if meter in ("peak", "seats") else total(meter, asked)
        if most is not None and wanted > most:
            return False
    most = edge(spend) if spend else None
    if most is None:
        return True
    before = sum((naive_price(limits.get(meter, Limit()), total(meter, {})) for meter in NAMES), Fraction(0))
    after = sum(
        (naive_price(limits.get(meter, Limit()), total(meter, asked)) for meter in NAMES), Fraction(0)
    )
    return after <= before or after <= most


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), LIMITS), SPENDS, AMOUNTS, AMOUNTS, ASKED)
def test_any_caps_decide_as_each_by_itself(
    limits: dict[str, Limit],
    spend: SpendCap | None,
    used: dict[str, Decimal],
    held: dict[str, Decimal],
    asked: dict[str, Decimal],
) -> None:
    own, account = own_of(limits, spend), account_of(used, held)
    decision = decide(own, account, **asked)
    assert decision.allowed == naive_allows(limits, spend, used, held, asked)
    # What the store looks at by itself never lets pass what a meter's cap denies.
    if not has_room(account, asked_of(asked), own.compute_ceilings(asked_of(asked))):
        assert not decision.allowed
    elif not own.may_spend_cap_deny():
        assert decision.allowed


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), LIMITS), SPENDS, AMOUNTS, AMOUNTS, ASKED)
def test_what_was_just_held_is_told_with_what_is_left_for_others(
    limits: dict[str, Limit],
    spend: SpendCap | None,
    used: dict[str, Decimal],
    held: dict[str, Decimal],
    asked: dict[str, Decimal],
) -> None:
    own = own_of(limits, spend)
    before = decide(own, account_of(used, held), **asked)
    more = {meter: held.get(meter, Decimal(0)) + asked.get(meter, Decimal(0)) for meter in {*held, *asked}}
    after = AccountView(own, account_of(used, more), START, END)
    taken = after.decide_reserved(asked_of(asked))
    assert (taken.allowed, taken.reason, taken.meter) == (before.allowed, before.reason, before.meter)
    if taken.scope == "meter" and taken.remaining is not None and taken.meter not in ("peak", "seats"):
        left = before.remaining or Decimal(0)
        assert taken.remaining == max(left - asked[taken.meter], Decimal(0)) or left == 0


# Without the store


@pytest.mark.parametrize(
    ("limits", "spend", "asked", "expected"),
    [
        ({}, None, ["calls"], (True, "calls")),
        ({"calls": cap(1)}, None, ["calls"], (True, "calls")),
        ({"calls": cap(1, fail="closed")}, None, ["calls"], (False, "calls")),
        ({"calls": cap(1, fail="closed")}, None, ["tokens"], (True, "tokens")),
        ({"calls": cap(1, fail="closed")}, None, ["tokens", "calls"], (False, "calls")),
        ({"calls": cap(1, fail="closed", shadow=True)}, None, ["calls"], (True, "calls")),
        ({"calls": cap(1, fail="closed", on_cap="warn")}, None, ["calls"], (True, "calls")),
        ({"calls": Limit(fail="closed")}, None, ["calls"], (True, "calls")),
        ({}, SpendCap(Decimal(1), fail="closed"), ["calls"], (False, "")),
        ({}, SpendCap(Decimal(1)), ["calls"], (True, "calls")),
    ],
)
def test_without_the_store_each_cap_says_what_it_does(
    limits: dict[str, Limit], spend: SpendCap | None, asked: list[str], expected: tuple[bool, str]
) -> None:
    decision = decide_blind(own_of(limits, spend), "acme", asked, "closed", "why")
    assert (decision.allowed, decision.meter) == expected
    assert (decision.reason, decision.degraded, decision.detail, decision.catalog) == (
        "unavailable",
        True,
        "why",
        7,
    )


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_without_a_catalog_the_gate_says_what_it_does(fail: Any) -> None:
    decision = decide_blind(None, "acme", ["calls"], fail, "why")
    assert (decision.allowed, decision.meter, decision.catalog) == (fail == "open", "calls", 0)


# Customers differ


def test_customers_differ() -> None:
    plan = Plan("p", limits={"calls": cap(5)}, spend_cap=SpendCap(Decimal(1)))
    rich = Customer("rich", "p", limits={"calls": cap(50)}, spend_cap=SpendCap(None))
    bounds = CatalogLimits(Catalog(METERS, {"p": plan}, {"rich": rich}, "p"), 3)
    assert (bounds.find("rich").bounds["calls"].cap, bounds.find("rich").spend) == (50 * SCALE, None)
    assert (bounds.find("x").bounds["calls"].cap, bounds.find("x").spend) == (5 * SCALE, SpendCap(Decimal(1)))


@pytest.mark.parametrize(
    ("given_", "final"),
    [
        (None, {"a": 1, "b": 2}),
        ({"a": 5}, {"a": 5, "b": 2}),
        ({"a": 5, "b": 0}, {"a": 5, "b": 0}),
        ({"c": 5}, None),
        ({"": 5}, None),
    ],
)
def test_a_commit_is_by_meter(given_: dict[str, int] | None, final: dict[str, int] | None) -> None:
    assert find_final_quantities({"a": 1, "b": 2}, given_) == final


def test_a_commit_of_the_only_meter_needs_no_name() -> None:
    assert find_final_quantities({"a": 1}, {"": 5}) == {"a": 5}


def test_where_holds_alone_are_in_the_way_the_first_to_end_gives_room() -> None:
    """Not the period's end, which may be weeks away."""
    held = account_of({"calls": 5}, {"calls": 5}, next_expiry=1_200)
    own = own_of({"calls": cap(10)})
    assert decide(own, held, calls=3).retry_at == 1_200
    assert decide(own, held, calls=5).retry_at == 1_200
    for nothing_helps in (decide(own, held, calls=6), decide(own, account_of({"calls": 10}), calls=1)):
        assert (nothing_helps.allowed, nothing_helps.retry_at) == (False, None)
    # At the period's end there is room in any case.
    assert decide(own, account_of({"calls": 5}, {"calls": 5}, next_expiry=9_000), calls=3).retry_at == END


def test_where_held_money_alone_is_in_the_way_the_first_to_end_gives_room() -> None:
    own = own_of({"calls": Limit(included=Decimal(0), tiers=PRICED)}, SpendCap(cap=Decimal(5)))
    assert decide(own, account_of({}, {"calls": 10}, next_expiry=1_200), calls=1).retry_at == 1_200
    assert decide(own, account_of({"calls": 10}), calls=1).retry_at is None
