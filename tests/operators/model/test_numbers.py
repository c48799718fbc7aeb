"""Numbers are equal, and ordered, by value: also those whose exponents nothing computes with."""

import random
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.model import Number, compare, holds
from tidegate.operators.events.filters import compile_condition, digest_unique
from tidegate.operators.model.catalog import Condition, Operator
from tidegate.operators.model.numbers import OutOfRangeNumber, canonicalize_number, read_number

TEXTS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(("", "-")),
    st.sampled_from(("0", "1", "10", "100", "12", "9" * 5000)),
    st.sampled_from(("", ".0", ".10", ".012", ".000")),
    st.one_of(
        st.just(""),
        st.integers(-4, 4).map("e{}".format),
        st.integers(-(10**22), 10**22).map("E{}".format),
        st.sampled_from(
            ("e+" + "9" * 30, "e-" + "9" * 30, "e1" + "0" * 30, "e999999999999999999", "e" + "9" * 5000)
        ),
    ),
)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_numbers_count_as_one_if_their_values_are_equal(one: str, other: str) -> None:
    same = compare(Number(one), Number(other)) == 0
    assert (digest_unique(read_number(one)) == digest_unique(read_number(other))) == same


OPERATORS: tuple[Operator, ...] = ("equals", "not_equals", "greater_than", "less_than_or_equals")


@settings(deadline=None)
@given(
    TEXTS,
    st.sampled_from(OPERATORS),
    st.sampled_from((0, 1, -1, 10, Decimal("0.000000000001"), 10**15, -(10**15))),
)
def test_filters_compare_them_by_value(text: str, operator: Operator, wanted: int | Decimal) -> None:
    condition = Condition("n", operator, wanted)
    found = compile_condition(condition)(lambda _: [read_number(text)])
    assert found.tolist() == [holds(condition, {"n": Number(text)})]


@pytest.mark.parametrize("text", ["1e99999999999999999999", "-3.50e-99999999999999999999"])
def test_a_number_out_of_reach_is_no_other_one(text: str) -> None:
    value = read_number(text)
    others: list[int | Decimal] = [0, Decimal("Infinity"), read_number(text.replace("9" * 20, "9" * 21))]
    assert isinstance(value, OutOfRangeNumber)
    assert canonicalize_number(value) not in [canonicalize_number(other) for other in others]


def test_a_seen_value_of_the_version_before_is_still_the_same() -> None:
    """The state keeps digests, made from sign, digits and exponent."""
    rng = random.Random(0)
    for _ in range(1000):
        value = Decimal(
            (
                rng.randrange(2),
                [rng.randrange(10) for _ in range(rng.randrange(1, 30))],
                rng.randrange(-30, 30),
            )
        )
        sign, digits, exponent = value.as_tuple()
        significant = "".join(map(str, digits)).lstrip("0")
        stripped = significant.rstrip("0")
        known = f"{sign}{stripped}e{int(exponent) + len(significant) - len(stripped)}" if stripped else "0"
        assert canonicalize_number(value) == known
