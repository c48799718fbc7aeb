"""Filters: which events a meter takes, compiled to work on whole columns of properties."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from tidegate.operators.model.catalog import Condition, Filter
from tidegate.operators.model.numbers import OutOfRangeNumber, canonicalize_number

Column = list[Any]
Columns = Callable[[str], Column]
"""Returns the values of a property, one per event, `UNSET` if an event lacks it."""

Passed = NDArray[np.bool_]
Predicate = Callable[[Columns], Passed]


def compile_filter(filter: Filter) -> Predicate:
    """Return a function that tells which events pass the filter.

    A condition on a missing property, or on one of another type, is false under every operator.
    Source: dodo/CONTRACT.md 6.2.
    """
    parts = [
        compile_filter(clause) if isinstance(clause, Filter) else compile_condition(clause)
        for clause in filter.clauses
    ]
    join = np.logical_and if filter.conjunction == "and" else np.logical_or

    def passes(columns: Columns) -> Passed:
        passed = parts[0](columns)
        for part in parts[1:]:
            passed = join(passed, part(columns))
        return passed

    return passes


def compile_condition(condition: Condition) -> Predicate:
    """Return a function for one comparison; numbers compare exactly, texts by code point."""
    key, wanted = condition.key, condition.value
    compare = _COMPARISONS[condition.operator]
    kind = kind_of(wanted)

    def holds(columns: Columns) -> Passed:
        values = columns(key)
        return np.array([kind_of(value) == kind and compare(value, wanted) for value in values], np.bool_)

    # Equality with a text or a boolean needs no check of the type, which would be most of the cost.
    if condition.operator == "equals" and kind == "text":
        return lambda columns: np.array([value == wanted for value in columns(key)], np.bool_)
    if condition.operator == "equals" and kind == "boolean":
        return lambda columns: np.array([value is wanted for value in columns(key)], np.bool_)
    return holds


def keys_of(filter: Filter) -> set[str]:
    """Return the properties that a filter reads."""
    return {
        key
        for clause in filter.clauses
        for key in (keys_of(clause) if isinstance(clause, Filter) else {clause.key})
    }


def kind_of(value: object) -> str:
    """Return `number`, `text`, `boolean` or `other`: values of different kinds never compare."""
    return _KINDS.get(type(value), "other")


_KINDS: dict[type, str] = {
    int: "number",
    Decimal: "number",
    OutOfRangeNumber: "number",
    str: "text",
    bool: "boolean",
}


def _compare_numbers(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda value, wanted: kind_of(wanted) == "number" and compare(value, wanted)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "equals": lambda value, wanted: bool(value == wanted),
    "not_equals": lambda value, wanted: bool(value != wanted),
    "greater_than": _compare_numbers(lambda value, wanted: bool(value > wanted)),
    "greater_than_or_equals": _compare_numbers(lambda value, wanted: bool(value >= wanted)),
    "less_than": _compare_numbers(lambda value, wanted: bool(value < wanted)),
    "less_than_or_equals": _compare_numbers(lambda value, wanted: bool(value <= wanted)),
    "contains": lambda value, wanted: kind_of(wanted) == "text" and wanted in value,
    "does_not_contain": lambda value, wanted: kind_of(wanted) == "text" and wanted not in value,
}


def digest_unique(value: object) -> bytes | None:
    """Return 16 bytes that are equal for equal values of a `unique` meter; None if the value does not count.

    Numbers are equal by value (1, 1.0 and 1e0 are one), texts by their characters; 1, "1" and true differ.
    """
    if isinstance(value, str):
        return xxh3_128_digest(b"t" + value.encode())
    if isinstance(value, bool):
        return xxh3_128_digest(b"b1" if value else b"b0")
    if isinstance(value, int | Decimal):
        return xxh3_128_digest(f"n{canonicalize_number(value)}".encode())
    return None
