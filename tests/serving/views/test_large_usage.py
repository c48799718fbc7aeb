"""What is shown of totals and caps of every acceptable size: exact decimal text, and always an answer."""

from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.operators.columns.quantity import SCALE, format_quantity, scale
from tidegate.operators.gate.customer_limits import CatalogLimits
from tidegate.operators.gate.decision import AccountView
from tidegate.operators.model.catalog import (
    Catalog,
    Limit,
    Meter,
    Plan,
    SpendCap,
    Threshold,
    Tier,
    VersionedCatalog,
)
from tidegate.operators.model.ports import Account, StoredTotal, Used
from tidegate.operators.model.records import Total
from tidegate.serving.http.readers.usage import period, usage_body
from tidegate.serving.http.serialization import decision_body, rate_headers

NOW = 1_768_046_400_000_000
PART = Decimal("0.000000000001")
AMOUNTS = st.integers(0, 10**27).map(lambda parts: Decimal(parts).scaleb(-12))
"""What a catalog may name: up to 10¹⁵ with twelve places."""
TOTALS = st.integers(-(10**30) * SCALE, 10**30 * SCALE)


def catalog_of(limit: Limit, spend: Decimal | None = None) -> Catalog:
    plan = Plan("p", limits={"tokens": limit}, spend_cap=SpendCap(spend) if spend else None)
    return Catalog((Meter("tokens", "call", "sum", "n"),), {"p": plan}, {}, "p")


def stored(catalog: Catalog, total: int) -> StoredTotal:
    start, end = period(catalog, "acme", NOW)
    number: int | str = format_quantity(total)
    return StoredTotal(Total("acme", "period", "tokens", start, end, number, 1, 1, NOW, 0, 0, 0, True), NOW)


@settings(deadline=None)
@given(TOTALS, AMOUNTS.filter(bool), AMOUNTS, st.integers(1, 100 * 10**12), AMOUNTS)
def test_the_usage_of_any_total_is_exact(
    total: int, cap: Decimal, price: Decimal, parts: int, spend: Decimal
) -> None:
    percent = Decimal(parts).scaleb(-12)
    limit = Limit(cap=cap, thresholds=(Threshold(percent=percent),), tiers=(Tier(None, price),))
    catalog = catalog_of(limit, spend)
    sent = usage_body(
        VersionedCatalog(1, catalog),
        "acme",
        [stored(catalog, total)],
        None,
        [],
        [],
        now=NOW,
        at=NOW,
        hours=1,
        days=1,
    )
    body = msgspec.json.decode(msgspec.json.encode(sent))
    (meter,) = body["meters"]
    exact = Fraction(total, SCALE)
    bill = max(exact, Fraction(0)) * Fraction(price)
    assert Fraction(meter["total"]) == exact
    assert Fraction(meter["remaining"]) == max(Fraction(cap) - exact, 0)
    assert Fraction(meter["share"]) == int(100 * exact / Fraction(cap))
    assert Fraction(meter["thresholds"][0]["value"]) == Fraction(cap) * Fraction(percent) / 100
    assert Fraction(meter["bill"]) == Fraction(body["bill"]) == bill
    if spend:
        assert Fraction(body["spend_cap"]["remaining"]) == max(Fraction(spend) - bill, 0)
    assert not any(
        "E" in value for value in meter.values() if isinstance(value, str) and value[-1:].isdigit()
    )


@settings(deadline=None)
@given(TOTALS, st.integers(0, 10**30 * SCALE), AMOUNTS.filter(bool), AMOUNTS, AMOUNTS, st.integers(0, 10**15))
def test_the_gate_decides_exactly_and_says_so(
    total: int, held: int, cap: Decimal, price: Decimal, spend: Decimal, asked: int
) -> None:
    catalog = catalog_of(Limit(cap=cap, tiers=(Tier(None, price),)), spend)
    account = Account({"tokens": Used(total, NOW, NOW)}, {"tokens": held}, None, 1, 0)
    start, end = period(catalog, "acme", NOW)
    decision = AccountView(CatalogLimits(catalog, 1).find("acme"), account, start, end).decide(
        {"tokens": asked * SCALE}
    )
    before = Fraction(total + held, SCALE)
    after = before + asked
    bills = [max(value, Fraction(0)) * Fraction(price) for value in (before, after)]
    over_spend = bool(spend) and bills[1] > bills[0] and bills[1] > Fraction(spend)
    assert decision.allowed == (after <= Fraction(cap) and not over_spend)
    body = msgspec.json.decode(msgspec.json.encode(decision_body(decision)))
    if body["scope"] == "meter":
        assert (Fraction(body["used"]), Fraction(body["reserved"])) == (
            Fraction(total, SCALE),
            Fraction(held, SCALE),
        )
        assert Fraction(body["remaining"]) == max(Fraction(cap) - before, 0)
    else:
        assert Fraction(body["remaining"]) == max(Fraction(spend) - bills[0], 0)


@pytest.mark.parametrize("cap", [PART, Decimal(10**15)])
def test_rate_headers_stay_within_what_a_structured_field_holds(cap: Decimal) -> None:
    catalog = catalog_of(Limit(cap=cap))
    start, end = period(catalog, "acme", NOW)
    decision = AccountView(
        CatalogLimits(catalog, 1).find("acme"), Account({}, {}, None, 1, 0), start, end
    ).decide({"tokens": 0})
    headers = dict(rate_headers(decision, NOW))
    numbers = [
        int(headers["ratelimit-policy"].split("q=")[1]),
        int(headers["ratelimit"].split("r=")[1].split(";")[0]),
    ]
    assert numbers == [min(int(cap), 999_999_999_999_999)] * 2
    assert scale(cap) > 0
