"""The proof that each unit is billed once, as values."""

from decimal import Decimal

import pytest

from tidegate.operators.billing.coverage import (
    BilledCycle,
    Charge,
    CoverageLine,
    Price,
    add_up,
    compute_undercharge,
    explain_gap,
    find_price,
    format_money,
    mark_repeated,
    sum_units,
)
from tidegate.operators.billing.drift import Span
from tidegate.operators.columns.quantity import SCALE

PRICE = Price("USD", Decimal("0.5"), 10 * SCALE)
DEARER = Price("USD", Decimal(3), 0)


def cycle(start: int, end: int, *charges: Charge, product: str = "pdt_1") -> BilledCycle:
    return BilledCycle("sub_1", "acme", "active", product, Span(start, end), start, charges)


TOKENS = Charge("mtr_1", "tokens", "Tokens", 5, PRICE)
CALLS = Charge("mtr_2", "calls", "Calls", 5)
LIKE = Charge("mtr_3", "", "Tokens", 5)


@pytest.mark.parametrize(
    ("cycles", "cause"),
    [
        ([], "no_subscription"),
        ([cycle(0, 10, TOKENS), cycle(20, 30, TOKENS)], "gap"),
        ([cycle(0, 10, TOKENS)], "gap"),
        ([cycle(20, 30, TOKENS)], "gap"),
        ([cycle(5, 25, CALLS)], "not_on_plan"),
        ([cycle(5, 25, CALLS, LIKE)], "meter_differs"),
        ([cycle(5, 25, TOKENS)], "boundary"),
    ],
)
def test_what_nobody_bills_has_a_cause(cycles: list[BilledCycle], cause: str) -> None:
    assert explain_gap(cycles, Span(10, 20), "tokens", {"mtr_3": "its filter differs"})[0] == cause


def test_units_are_worth_what_is_beyond_the_free_ones() -> None:
    assert PRICE.compute_worth(0, 30 * SCALE) == 10
    assert PRICE.compute_worth(20 * SCALE, 10 * SCALE) == 5
    assert PRICE.compute_worth(20 * SCALE, -20 * SCALE) == -5
    assert find_price([cycle(0, 10, TOKENS), cycle(10, 20, CALLS)], "tokens") == PRICE


def test_lines_add_up_by_meter_and_currency() -> None:
    span = Span(0, 10)
    lines = [
        CoverageLine("a", "tokens", span, 9, 4, 1, 1, "gap", "USD", Decimal(6), True),
        CoverageLine("b", "tokens", span, 5, 5, 0, 0, "", "USD", Decimal(0)),
        CoverageLine("c", "tokens", span, 2, 0, 0, 0, "gap", "", None),
    ]
    dollars, none = sorted(add_up(lines), key=lambda one: one.currency, reverse=True)
    assert dollars[2:] == (2, 14, 9, 1, 1, 3, Decimal(6), 0, 3)
    assert (none.unbilled, none.unpriced) == (2, 2)


@pytest.mark.parametrize(
    ("amount", "currency", "written"),
    [("1050", "USD", "10.50 USD"), ("-7", "JPY", "-7 JPY"), ("1234567.5", "EUR", "12,345.68 EUR")],
)
def test_money_is_written_in_the_currencys_own_places(amount: str, currency: str, written: str) -> None:
    assert format_money(Decimal(amount), currency) == written


def test_money_beyond_28_digits_is_not_rounded() -> None:
    price = Price("USD", Decimal("0.000000001"), 0)
    units = 10**33 * SCALE
    assert price.compute_worth(units, SCALE) == Decimal("0.000000001")
    assert price.compute_charge(units + SCALE) == Decimal("1000000000000000000000000.000000001")


def test_lines_of_one_meter_price_the_same_units() -> None:
    """Where their units are equal; otherwise each has a part. What should be charged is what all its lines cost."""
    line = Charge("mtr_1", "tokens", "Tokens", 30 * SCALE, PRICE)
    same = mark_repeated([line, line._replace(price=DEARER)])
    assert sum_units(same) == 30 * SCALE
    due = PRICE.compute_charge(40 * SCALE) + DEARER.compute_charge(40 * SCALE)
    assert compute_undercharge(same, 10 * SCALE) == due - PRICE.compute_charge(
        30 * SCALE
    ) - DEARER.compute_charge(30 * SCALE)
    parts = mark_repeated([line, line._replace(quantity=12 * SCALE)])
    assert sum_units(parts) == 42 * SCALE


def test_what_two_meters_charge_twice_is_worth_what_one_of_them_charges() -> None:
    twice = mark_repeated([Charge(id, "tokens", "Tokens", 30 * SCALE, PRICE) for id in ("mtr_1", "mtr_2")])
    assert sum_units(twice) == 60 * SCALE
    assert compute_undercharge(twice, -30 * SCALE) == -PRICE.compute_charge(30 * SCALE)
    assert compute_undercharge([twice[0]._replace(price=None)], 0) is None
