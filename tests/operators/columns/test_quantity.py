"""Quantities are exact: what is added up is what was used, to the last digit."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.columns.quantity import (
    HI_MAX,
    PLACES,
    SCALE,
    carry,
    format_limbs,
    format_quantity,
    join_limbs,
    scale_rounded,
    split_limbs,
    split_total,
    to_decimal,
    to_limb_columns,
    to_limbs,
)
from tidegate.operators.metering.windows import ADD, COLUMNS, PERIOD_WINDOW, Batch, add_runs, fold_batch

BEYOND = ["1e999999999", "-1e999999999", "1e-999999999", "Infinity"]


def has_few_places(value: Decimal) -> bool:
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and exponent >= -PLACES


READINGS = st.one_of(
    st.integers(0, 10**15),
    st.decimals(0, 10**15, allow_nan=False, allow_infinity=False, places=12),
    st.decimals(0, 1, allow_nan=False, allow_infinity=False, places=PLACES),
    st.floats(0, 10**6).map(lambda number: Decimal(repr(number))).filter(has_few_places),
)


@given(READINGS)
def test_limbs_hold_every_reading_exactly(value: int | Decimal) -> None:
    assert Fraction(join_limbs(*to_limbs(value)), SCALE) == Fraction(value)
    assert split_limbs(join_limbs(*to_limbs(value))) == to_limbs(value)


@given(st.integers(-(10**45), 10**45))
def test_text_reads_back_as_the_same_number(whole: int) -> None:
    with localcontext() as context:
        context.prec = 60
        assert Fraction(Decimal(format_quantity(whole))) == Fraction(whole, SCALE)
    assert "E" not in format_quantity(whole) and not (
        "." in format_quantity(whole) and format_quantity(whole).endswith("0")
    )


@given(st.lists(READINGS, min_size=1, max_size=50))
def test_a_column_gives_the_same_limbs_as_its_values_one_by_one(values: list[int | Decimal]) -> None:
    found = to_limb_columns(values)
    if found is not None:
        hi, mid, lo = (np.zeros(len(values), np.int64) if limb is None else limb for limb in found)
        assert list(zip(hi.tolist(), mid.tolist(), lo.tolist(), strict=True)) == list(map(to_limbs, values))


@given(st.lists(READINGS, min_size=1, max_size=50))
def test_sums_of_limbs_carry_without_loss(values: list[int | Decimal]) -> None:
    parts = np.array([to_limbs(value) for value in values], np.int64)
    limbs = {name: parts[:, i].sum(keepdims=True) for i, name in enumerate(("hi", "mid", "lo"))}
    carry(limbs)
    total = {name: int(limb[0]) for name, limb in limbs.items()}
    assert Fraction(join_limbs(**total), SCALE) == sum(map(Fraction, values))
    assert format_limbs(**total) == format_quantity(join_limbs(**total))


@settings(deadline=None)
@given(st.integers(-(10**30) * SCALE, 10**30 * SCALE), st.integers(0, 2**63 - 2**60))
def test_a_total_of_any_size_is_held_and_grows_without_loss(whole: int, more: int) -> None:
    limbs = {name: np.array([limb]) for name, limb in split_total(whole).items()}
    assert join_limbs(**{name: int(limb[0]) for name, limb in limbs.items()}) == whole
    if whole >= 0:
        limbs["hi"] += more
        carry(limbs)
        assert limbs["hi"][0] < HI_MAX
        assert join_limbs(**{name: int(limb[0]) for name, limb in limbs.items()}) == whole + more * SCALE


@pytest.mark.parametrize(
    "value",
    [-1, 10**15 + 1, *map(Decimal, ["-0.1", "1e16", "1e-25", "0." + "1" * 25, *BEYOND])],
)
def test_a_reading_out_of_bounds_is_refused_in_words(value: int | Decimal) -> None:
    with pytest.raises(ValueError, match="needs"):
        to_limbs(value)


def test_a_tenth_added_ten_million_times_is_one_million() -> None:
    """In floats it is 999999.9998389754, and a customer notices."""
    table, count = Table(1, COLUMNS), 100_000
    hi, mid, _ = to_limb_columns([Decimal("0.1")] * count) or pytest.fail("a tenth fits")
    key, no = np.zeros(count, np.int64), np.zeros(count, np.bool_)
    batch = Batch(key, np.arange(count), np.full(count, ADD), hi, mid, None, no, no)
    for _ in range(100):
        add_runs(table, fold_batch(batch, key, key, None), [(PERIOD_WINDOW, np.zeros(1, np.int64))])
    total = {name: int(table.columns[name][0]) for name in ("hi", "mid")}
    assert format_limbs(**total, lo=0) == "1000000"
    assert int(table.columns["events"][0]) == 10_000_000


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9))
def test_a_number_of_others_is_rounded_to_24_places(value: Decimal) -> None:
    assert abs(to_decimal(scale_rounded(value)) - value) <= Decimal(10) ** -24 / 2
