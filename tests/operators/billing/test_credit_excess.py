"""What was deducted for usage that should not be there, as a table."""

from decimal import Decimal

import pytest

from tidegate.operators.billing.credit_excess import add_amounts, compute_excess
from tidegate.operators.columns.quantity import SCALE, to_decimal

MINUTE = 60_000_000


@pytest.mark.parametrize(
    ("deductions", "refills", "arrived", "too_much"),
    [
        ([], [], [(0, 5)], 0),
        ([(1, 5)], [], [(0, 5)], 0),
        ([(1, 9)], [], [(0, 5)], 4),
        ([(1, 5), (200, 4)], [], [(0, 5)], 4),
        # The balance gave less than was due, so nothing of it was too much; nor is what came from it later.
        ([(1, 3)], [], [(0, 5)], 0),
        ([(100, 3)], [50], [(0, 5)], 3),
        ([(100, 3)], [8], [(0, 5)], 0),
        ([(2, 5), (100, 7)], [], [(0, 5), (90, 7)], 0),
        ([(2, 5), (100, 8)], [], [(0, 5), (90, 7)], 1),
    ],
)
def test_what_no_usage_explains_is_too_much(
    deductions: list[tuple[int, int]], refills: list[int], arrived: list[tuple[int, int]], too_much: int
) -> None:
    found = compute_excess(
        [(at * MINUTE, Decimal(amount)) for at, amount in deductions],
        [at * MINUTE for at in refills],
        [(at * MINUTE, quantity * SCALE) for at, quantity in arrived],
        to_decimal,
    )
    assert found == too_much


LARGE = Decimal("9876543210987654321098765432.1")


def test_amounts_beyond_28_digits_are_not_rounded() -> None:
    tiny = Decimal("0.000001")
    assert add_amounts([LARGE, tiny, LARGE.copy_negate()]) == tiny
    assert compute_excess([(1, LARGE), (2, LARGE)], [], [], to_decimal) == add_amounts([LARGE, LARGE])
    assert (
        compute_excess(
            [(1, add_amounts([LARGE, tiny]))], [], [(0, 10**24)], lambda total: LARGE if total else Decimal(0)
        )
        == tiny
    )
