"""What may be written under `meters`."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, PlainValidator, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from tidegate.operators.events.filters import keys_of
from tidegate.operators.model.aggregates import AGGREGATES, Kind
from tidegate.operators.model.catalog import Condition, Filter, Meter, Numbers, Operator
from tidegate.settings.catalog.fields import Label, MeterName, Name
from tidegate.settings.catalog.numbers import read_constant
from tidegate.settings.problems import MISSING, Strict

# The provider's own limits, so that a meter that is good here is good there.
FILTER_DEPTH_MAX: Final = 3
CLAUSES_MAX: Final = 10
ORDERINGS: Final = ("greater_than", "greater_than_or_equals", "less_than", "less_than_or_equals")


class AggregationEntry(Strict):
    type: Kind
    key: Name | None = Field(None, validate_default=True)

    @field_validator("key")
    @classmethod
    def _fits(cls, key: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("type")
        reads = AGGREGATES[kind].reads if kind else None
        if reads == "nothing" and key is not None:
            raise ValueError(f"needs none with {kind}, which counts events")
        if reads not in (None, "nothing") and key is None:
            raise PydanticCustomError(MISSING, "is missing: the property that {kind} reads", {"kind": kind})
        return key


class ConditionEntry(Strict):
    key: Name
    operator: Operator
    value: Annotated[str | int | Decimal | bool, PlainValidator(read_constant)]

    @field_validator("value")
    @classmethod
    def _fits(cls, value: str | int | Decimal | bool, info: ValidationInfo) -> str | int | Decimal | bool:
        operator = info.data.get("operator")
        if operator in ORDERINGS and (isinstance(value, bool) or not isinstance(value, int | Decimal)):
            raise ValueError(f"needs a number with {operator}")
        if operator in ("contains", "does_not_contain") and not isinstance(value, str):
            raise ValueError(f"needs text with {operator}, in quotes if it looks like a number")
        return value

    def clause(self) -> Condition:
        return Condition(self.key, self.operator, self.value)


def _clause_kind(value: Any) -> str:
    nested = isinstance(value, Mapping) and ("clauses" in value or "conjunction" in value)
    return "filter" if nested else "condition"


Clause = Annotated[
    Annotated[ConditionEntry, Tag("condition")] | Annotated["FilterEntry", Tag("filter")],
    Discriminator(_clause_kind),
]


class FilterEntry(Strict):
    conjunction: Literal["and", "or"]
    clauses: list[Clause] = Field(min_length=1, max_length=CLAUSES_MAX)

    def clause(self) -> Filter:
        return Filter(self.conjunction, tuple(clause.clause() for clause in self.clauses))

    def depth(self) -> int:
        """Levels of filters, this one included."""
        nested = (clause.depth() for clause in self.clauses if isinstance(clause, FilterEntry))
        return 1 + max(nested, default=0)


class MeterEntry(Strict):
    name: MeterName
    event_name: Name
    aggregation: AggregationEntry
    filter: FilterEntry | None = None
    unit: Label = ""
    numbers: Numbers = "strict"

    @field_validator("filter")
    @classmethod
    def _is_shallow(cls, found: FilterEntry | None) -> FilterEntry | None:
        if found and found.depth() > FILTER_DEPTH_MAX:
            raise ValueError(f"needs {FILTER_DEPTH_MAX} levels of filters or less")
        return found

    @field_validator("numbers")
    @classmethod
    def _reads_numbers(cls, found: Numbers, info: ValidationInfo) -> Numbers:
        aggregation = info.data.get("aggregation")
        if found == "text" and aggregation and AGGREGATES[aggregation.type].reads != "number":
            *most, last = (kind for kind, row in AGGREGATES.items() if row.reads == "number")
            raise ValueError(f"needs {', '.join(most)} or {last}, as {aggregation.type} reads no numbers")
        return found

    def meter(self) -> Meter:
        wanted = self.filter.clause() if self.filter else None
        kind, key = self.aggregation.type, self.aggregation.key
        return Meter(self.name, self.event_name, kind, key, wanted, self.unit, self.numbers)


def reads_as_text(meter: Meter, meters: Iterable[Meter]) -> str | None:
    """Return a meter that reads as it stands what `meter` reads as a number though it be text; None without one."""
    if meter.numbers == "strict":
        return None
    for other in meters:
        if other.event_name == meter.event_name and (
            (other.key == meter.key and other.numbers == "strict")
            or (other.filter is not None and meter.key in keys_of(other.filter))
        ):
            return other.name
    return None
