"""Which meters an event feeds, and what each reads from it."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from xxhash import xxh3_128_digest

from operators.catalog import Condition, Filter

Properties = Mapping[str, Any]
Predicate = Callable[[Properties], bool]

_MISSING = object()


def compile_filter(filter: Filter) -> Predicate:
    """A function that says whether an event with these properties passes.

    A condition on a missing property, or on one of another type, is false under every operator.
    Source: dodo/CONTRACT.md 6.2.
    """
    parts = tuple(
        compile_filter(clause) if isinstance(clause, Filter) else compile_condition(clause)
        for clause in filter.clauses
    )
    if len(parts) == 1:
        return parts[0]
    if filter.conjunction == "and":
        return lambda properties: all(part(properties) for part in parts)
    return lambda properties: any(part(properties) for part in parts)


def compile_condition(condition: Condition) -> Predicate:
    """A function for one comparison; numbers compare exactly, texts by code point."""
    key, wanted = condition.key, condition.value
    compare = _COMPARISONS[condition.operator]
    kind = kind_of(wanted)
    # Equality with a text or a boolean needs no look at the type, which is most of the cost.
    if condition.operator == "equals" and kind == "text":
        return lambda properties: bool(properties.get(key) == wanted)
    if condition.operator == "equals" and kind == "boolean":
        return lambda properties: properties.get(key) is wanted

    def holds(properties: Properties) -> bool:
        value = properties.get(key, _MISSING)
        return kind_of(value) == kind and compare(value, wanted)

    return holds


def kind_of(value: object) -> str:
    """`number`, `text`, `boolean` or `other`: values of different kinds never compare."""
    return _KINDS.get(type(value), "other")


_KINDS: dict[type, str] = {int: "number", Decimal: "number", str: "text", bool: "boolean"}

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "equals": lambda value, wanted: value == wanted,
    "not_equals": lambda value, wanted: value != wanted,
    "greater_than": lambda value, wanted: kind_of(wanted) == "number" and value > wanted,
    "greater_than_or_equals": lambda value, wanted: kind_of(wanted) == "number" and value >= wanted,
    "less_than": lambda value, wanted: kind_of(wanted) == "number" and value < wanted,
    "less_than_or_equals": lambda value, wanted: kind_of(wanted) == "number" and value <= wanted,
    "contains": lambda value, wanted: kind_of(wanted) == "text" and wanted in value,
    "does_not_contain": lambda value, wanted: kind_of(wanted) == "text" and wanted not in value,
}


def unique_digest(value: object) -> bytes | None:
    """16 bytes that are equal for equal values of a `unique` meter; None where the value does not count.

    Numbers are equal by value (1, 1.0 and 1e0 are one), texts by their characters; 1, "1" and true differ.
    """
    if isinstance(value, str):
        return xxh3_128_digest(b"t" + value.encode())
    if isinstance(value, bool):
        return xxh3_128_digest(b"b1" if value else b"b0")
    if isinstance(value, int | Decimal):
        sign, digits, exponent = Decimal(value).as_tuple()
        significant = "".join(map(str, digits)).lstrip("0")
        if not significant:
            return xxh3_128_digest(b"n0")
        stripped = significant.rstrip("0")
        assert isinstance(exponent, int)
        exponent += len(significant) - len(stripped)
        return xxh3_128_digest(f"n{sign}{stripped}e{exponent}".encode())
    return None
