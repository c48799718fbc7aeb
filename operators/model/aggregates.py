"""The aggregations that a meter may have: one row each, which says what differs between them.

It says what a kind reads, how readings fold into a window, whether totals add up or may fall, what a cap means for it,
and whether the billing provider has it. An import fails where a kind of the catalog has no row here. How totals that do
not add up are compared with the provider's is in operators/billing/drift.py and flows/reconcile/compare.py.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Final, Literal, NamedTuple, get_args

from tidegate.operators.model.catalog import Kind

Fold = Literal[0, 1, 2]
ADD: Final = 0
MAX: Final = 1
LAST: Final = 2

Reads = Literal["nothing", "number", "value"]


class Aggregate(NamedTuple):
    """How meters of one kind aggregate.

    `fold` is how a window takes in a reading: added, kept where greater, or kept where later. `reads` says what the
    property has to be: none is read, a number, or any value, which is compared. `is_additive` says that the totals of
    parts add up to the total of the whole, so usage can be moved, rolled up and given back. `is_ordered` says that the
    latest reading stands, so a total may fall and an event must not be given a later time. `is_level` says that a
    request asks for a level and not for more on top of what is used. `is_adjustable` says that an adjustment can be
    added to a total. `at_provider` says that the billing provider has it. `least` is the least that may be asked for.
    """

    fold: Fold
    reads: Reads
    is_additive: bool
    is_ordered: bool
    is_level: bool
    is_adjustable: bool
    at_provider: bool
    least: Decimal


AGGREGATES: Final[Mapping[Kind, Aggregate]] = {
    "count": Aggregate(ADD, "nothing", True, False, False, True, True, Decimal(1)),
    "sum": Aggregate(ADD, "number", True, False, False, True, True, Decimal(1).scaleb(-24)),
    "max": Aggregate(MAX, "number", False, False, True, False, True, Decimal(0)),
    "last": Aggregate(LAST, "number", False, True, True, False, True, Decimal(0)),
    "unique": Aggregate(ADD, "value", False, False, False, True, False, Decimal(1)),
}
assert AGGREGATES.keys() == set(get_args(Kind)), "a row per kind of the catalog"

ADDITIVE: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.is_additive)
LEVELS: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.is_level)
ORDERED: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.is_ordered)
ADJUSTABLE: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.is_adjustable)
AT_PROVIDER: Final = frozenset(kind for kind, row in AGGREGATES.items() if row.at_provider)
