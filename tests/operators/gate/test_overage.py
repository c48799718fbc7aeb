"""The live bill is the invoice, as far as it has come."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.operators.gate.overage import compute_live_bill
from tidegate.operators.model.catalog import Limit, Tier

TIERS = (Tier(Decimal(100), Decimal("0.5")), Tier(Decimal(300), Decimal("0.25")), Tier(None, Decimal("0.1")))


@pytest.mark.parametrize(
    ("limit", "total", "cost"),
    [
        (Limit(included=Decimal(1000)), "5000", "0"),
        (Limit(included=Decimal(1000), tiers=TIERS), "1000", "0"),
        (Limit(included=Decimal(1000), tiers=TIERS), "1001", "0.5"),
        (Limit(included=Decimal(1000), tiers=TIERS), "1100", "50"),
        (Limit(included=Decimal(1000), tiers=TIERS), "1100.5", "50.125"),
        (Limit(included=Decimal(1000), tiers=TIERS), "1300", "100"),
        (Limit(included=Decimal(1000), tiers=TIERS), "1310", "101"),
        (
            Limit(tiers=(Tier(None, Decimal("0.000000000001")),)),
            "7.000000000003",
            "0.000000000007000000000003",
        ),
        (Limit(tiers=(Tier(Decimal(10), Decimal(1)),)), "15", "15"),
    ],
)
def test_each_part_of_the_overage_has_its_tiers_price(limit: Limit, total: str, cost: str) -> None:
    assert compute_live_bill(limit, Decimal(total)) == Decimal(cost)


@given(st.integers(0, 500), st.integers(0, 900))
def test_the_bill_is_the_sum_of_the_prices_of_single_units(included: int, total: int) -> None:
    prices = [Fraction(1, 2)] * 100 + [Fraction(1, 4)] * 200 + [Fraction(1, 10)] * 600
    bill = compute_live_bill(Limit(included=Decimal(included), tiers=TIERS), Decimal(total))
    assert Fraction(bill) == sum(prices[: max(total - included, 0)])
