"""Filters, written a second time: where ours and the platform's part ways, a meter counts what is not billed."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from simulator.state.filters import check_filter, passes
from tests.operators.strategies import filters
from tidegate.operators.events.filters import compile_filter
from tidegate.operators.model.catalog import Condition, Filter

TABLE: list[tuple[str, Any, Any, bool]] = [
    ("equals", "a", "a", True),
    ("equals", "a", "A", False),
    ("equals", 1, 1.0, True),
    ("equals", 1, True, False),
    ("equals", False, 0, False),
    ("equals", "1", 1, False),
    ("equals", True, True, True),
    ("not_equals", "a", "b", True),
    ("not_equals", "a", "a", False),
    ("not_equals", "a", 1, False),
    ("not_equals", True, 0, False),
    ("greater_than", 2, 1, True),
    ("greater_than", 1, 1, False),
    ("greater_than", "b", "a", False),
    ("greater_than", True, 0, False),
    ("greater_than_or_equals", 1, 1, True),
    ("less_than", 0.5, 1, True),
    ("less_than", 1, 1, False),
    ("less_than_or_equals", 1, 1, True),
    ("less_than_or_equals", 2**53 + 1, 2**53, False),
    ("contains", "gpt-4-mini", "4", True),
    ("contains", "gpt", "", True),
    ("contains", 1234, "23", False),
    ("does_not_contain", "gpt", "4", True),
    ("does_not_contain", "gpt-4", "4", False),
    ("does_not_contain", 7, "4", False),
]


@pytest.mark.parametrize(("operator", "value", "wanted", "verdict"), TABLE)
def test_conditions(operator: str, value: Any, wanted: Any, verdict: bool) -> None:
    filter = {"conjunction": "and", "clauses": [{"key": "k", "operator": operator, "value": wanted}]}
    check_filter(filter, may_mix=False)
    assert passes(filter, {"k": value}) == verdict
    assert not passes(filter, {"other": value})
    assert not passes(filter, None)


def test_no_filter_takes_all() -> None:
    assert passes(None, None)


tenths = st.integers(-50, 50).map(lambda number: number / 10)
metadata = st.dictionaries(
    st.sampled_from(["n", "region"]),
    st.one_of(st.sampled_from(["", "e", "eu", "EU", True, False]), st.integers(-5, 5), tenths),
)


@given(filters(), metadata)
def test_ours_and_the_platforms_agree(filter: Filter, values: dict[str, Any]) -> None:
    on_the_wire = as_wire(filter)
    check_filter(on_the_wire, may_mix=True)
    exact = {key: Decimal(repr(value)) if type(value) is float else value for key, value in values.items()}
    [ours] = compile_filter(filter)(lambda key: [exact.get(key, UNSET)])
    assert passes(on_the_wire, values) == ours


def as_wire(clause: Filter | Condition) -> dict[str, Any]:
    if isinstance(clause, Filter):
        return {"conjunction": clause.conjunction, "clauses": [as_wire(one) for one in clause.clauses]}
    value = clause.value
    # As JSON has it: what is no integer is a double.
    number = float(value) if isinstance(value, Decimal) else value
    return {"key": clause.key, "operator": clause.operator, "value": number}
