"""Totals for the tests of what reads them."""

from tidegate.operators.model.records import Total


def total(
    customer: str = "cus_1", *, total: int | str, version: int, start: int = 0, end: int = 10**12
) -> Total:
    """A period's total of the meter `calls`."""
    return Total(customer, "period", "calls", start, end, total, version, version, 1_500_000, 0, 0, 0, True)
