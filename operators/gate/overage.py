"""The live bill: what usage past the included quantity costs, by the plan's tiers, as it stands."""

from collections.abc import Iterable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact
from functools import reduce

from tidegate.operators.model.catalog import Limit

# Decimal's own operators round to 28 digits, which money and totals outgrow. Here a result that would be rounded
# raises; the longest one, a price of 27 digits times a total of 55, fits.
EXACT = Context(prec=100, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact])


def overage(limit: Limit, total: Decimal) -> Decimal:
    """The part of a total past the included quantity, 0 at least; without an included quantity, all of it."""
    return max(EXACT.subtract(total, limit.included or Decimal(0)), Decimal(0))


def add_up(amounts: Iterable[Decimal]) -> Decimal:
    """Return the exact sum."""
    return reduce(EXACT.add, amounts, Decimal(0))


def left_of(cap: Decimal, used: Decimal) -> Decimal:
    """Return what is left of a cap, 0 at least."""
    return max(EXACT.subtract(cap, used), Decimal(0))


def live_bill(limit: Limit, total: Decimal) -> Decimal:
    """What the overage of a total costs, in the unit of the tiers' prices, not rounded.

    Each tier prices the part of the overage between the tier before it and its own `up_to`; past the last
    tier the last price goes on. Without tiers there is nothing to pay.
    """
    over, cost, begin = overage(limit, total), Decimal(0), Decimal(0)
    for tier in limit.tiers:
        is_last = tier is limit.tiers[-1]
        end = over if tier.up_to is None or is_last else min(over, tier.up_to)
        if end > begin:
            cost = EXACT.add(cost, EXACT.multiply(EXACT.subtract(end, begin), tier.price))
            begin = end
    return cost
