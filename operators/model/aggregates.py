"""The aggregations that a meter may have: one row each, which says what differs between them.

A row says what a kind reads, how readings fold into a window, whether totals add up or may fall, what a cap means for
it, and whether the billing provider has it. Everything that differs between kinds asks this table, so a kind is added
here, and an import fails where it has no row. How totals that do not add up are compared with the provider's is in
operators/billing/drift.py.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final, Literal, NamedTuple, get_args

Kind = Literal["count", "sum", "max", "min", "last", "unique"]

Fold = Literal["add", "greatest", "least", "latest"]
"""How a total takes in a reading: it is added, or it replaces the total where it is greater, less, or not older."""

Reads = Literal["nothing", "number", "value"]


class Aggregate(NamedTuple):
    """How meters of one kind aggregate.

    `reads` says what the property has to be: none is read, a number, or any value, which is compared. `is_additive`
    says that the totals of parts add up to the total of the whole, so usage can be moved, rolled up and given back.
    `is_level` says that a request asks for a level and not for more on top of what is used. `is_adjustable` says that
    an adjustment can be added to a total. `at_provider` says that the billing provider has it. `least` is the least
    that may be asked for.
    """

    fold: Fold
    reads: Reads
    is_additive: bool
    is_level: bool
    is_adjustable: bool
    at_provider: bool
    least: Decimal

    @property
    def is_ordered(self) -> bool:
        """Whether the latest reading stands, so that an event must not be given a later time."""
        return self.fold == "latest"

    @property
    def may_fall(self) -> bool:
        """Whether an event may make a total smaller, so that a smaller one is not an older one."""
        return self.fold in ("latest", "least")


AGGREGATES: Final[Mapping[Kind, Aggregate]] = {
    "count": Aggregate("add", "nothing", True, False, True, True, Decimal(1)),
    "sum": Aggregate("add", "number", True, False, True, True, Decimal(1).scaleb(-24)),
    "max": Aggregate("greatest", "number", False, True, False, True, Decimal(0)),
    "min": Aggregate("least", "number", False, True, False, False, Decimal(0)),
    "last": Aggregate("latest", "number", False, True, False, True, Decimal(0)),
    "unique": Aggregate("add", "value", False, False, True, False, Decimal(1)),
}
assert AGGREGATES.keys() == set(get_args(Kind)), "a row per kind of the catalog"

FOLDS: Final[tuple[Fold, ...]] = get_args(Fold)
FOLD_CODES: Final[Mapping[Fold, int]] = {fold: code for code, fold in enumerate(FOLDS)}
"""Folds as numbers, for columns."""

ADDITIVE: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.is_additive)
LEVELS: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.is_level)
ORDERED: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.is_ordered)
ADJUSTABLE: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.is_adjustable)
AT_PROVIDER: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.at_provider)


def fold_readings(kind: Kind, readings: Iterable[tuple[int, int]]) -> int:
    """Return what readings, pairs of time and quantity, come to; 0 where there are none."""
    match AGGREGATES[kind].fold:
        case "add":
            return sum(quantity for _, quantity in readings)
        case "greatest":
            return max((quantity for _, quantity in readings), default=0)
        case "least":
            return min((quantity for _, quantity in readings), default=0)
        case "latest":
            return max(readings, default=(0, 0))[1]
