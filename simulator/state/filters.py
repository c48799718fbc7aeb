"""Meter filters: which are allowed, and which events pass.

They are written independently of operators/events/filters, to check it.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, get_args

from simulator.state.problems import malformed
from simulator.state.records import Metadata, Scalar

Operator = Literal[
    "equals",
    "not_equals",
    "greater_than",
    "greater_than_or_equals",
    "less_than",
    "less_than_or_equals",
    "contains",
    "does_not_contain",
]

NESTED_MAX: Final = 3
CLAUSES_MAX: Final = 10
KEY_MAX: Final = 100


def check_filter(filter: Any, *, may_mix: bool, level: int = 0) -> None:
    """Check that `filter` is one that the provider allows.

    A level has conditions or filters; both only if it `may_mix`, as an example of the documentation does.

    Raises:
        Problem: status 422.
    """
    if level > NESTED_MAX:
        raise malformed(f"filter: needs {NESTED_MAX} nested levels or less")
    if not isinstance(filter, dict) or filter.get("conjunction") not in ("and", "or"):
        raise malformed(f"filter: needs a conjunction, and or or, at level {level}")
    clauses = filter.get("clauses")
    if not isinstance(clauses, list) or not 1 <= len(clauses) <= CLAUSES_MAX:
        raise malformed(f"filter: needs 1 to {CLAUSES_MAX} clauses at level {level}")
    kinds = {isinstance(clause, dict) and "clauses" in clause for clause in clauses}
    if len(kinds) == 2 and not may_mix:
        raise malformed(f"filter: needs conditions or filters at level {level}, not both")
    for clause in clauses:
        if isinstance(clause, dict) and "clauses" in clause:
            check_filter(clause, may_mix=may_mix, level=level + 1)
        else:
            _check_condition(clause)


def _check_condition(clause: Any) -> None:
    if not isinstance(clause, dict):
        raise malformed("filter: a clause needs key, operator and value")
    key, value = clause.get("key"), clause.get("value")
    if not isinstance(key, str) or not 1 <= len(key) <= KEY_MAX:
        raise malformed(f"filter: key needs 1 to {KEY_MAX} characters")
    if clause.get("operator") not in get_args(Operator):
        raise malformed(f"filter: operator needs one of {', '.join(get_args(Operator))}")
    if not isinstance(value, str | int | float | bool):
        raise malformed("filter: value needs a string, a number or a boolean")


def passes(filter: dict[str, Any] | None, metadata: Metadata | None) -> bool:
    """Return whether an event with this metadata passes. A missing property, or one of another type, fails."""
    if filter is None:
        return True
    values = metadata or {}
    verdicts = (
        passes(clause, values)
        if "clauses" in clause
        else clause["key"] in values and _holds(clause["operator"], values[clause["key"]], clause["value"])
        for clause in filter["clauses"]
    )
    return all(verdicts) if filter["conjunction"] == "and" else any(verdicts)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holds(operator: Operator, value: Scalar, wanted: Scalar) -> bool:
    if is_number(value) and is_number(wanted):
        return operator in _OF_NUMBERS and _OF_NUMBERS[operator](value, wanted)
    if isinstance(value, str) and isinstance(wanted, str):
        return operator in _OF_TEXTS and _OF_TEXTS[operator](value, wanted)
    if isinstance(value, bool) and isinstance(wanted, bool):
        return operator in _OF_BOOLEANS and _OF_BOOLEANS[operator](value, wanted)
    return False


_Compare = Callable[[Any, Any], bool]
_OF_BOOLEANS: Final[dict[str, _Compare]] = {
    "equals": lambda value, wanted: bool(value == wanted),
    "not_equals": lambda value, wanted: bool(value != wanted),
}
_OF_NUMBERS: Final[dict[str, _Compare]] = _OF_BOOLEANS | {
    "greater_than": lambda value, wanted: bool(value > wanted),
    "greater_than_or_equals": lambda value, wanted: bool(value >= wanted),
    "less_than": lambda value, wanted: bool(value < wanted),
    "less_than_or_equals": lambda value, wanted: bool(value <= wanted),
}
_OF_TEXTS: Final[dict[str, _Compare]] = _OF_BOOLEANS | {
    "contains": lambda value, wanted: wanted in value,
    "does_not_contain": lambda value, wanted: wanted not in value,
}
