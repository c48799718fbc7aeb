"""The live bill: what usage beyond the included quantity costs at present, by the plan's tiers."""

from collections.abc import Iterable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact
from functools import reduce

from tidegate.operators.model.catalog import Limit

# Decimal's own operators round to 28 digits, which money and totals exceed. Here a result that would be rounded
# raises; the longest one, a price of 27 digits times a total of 55, fits.
EXACT = Context(prec=100, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact])


def compute_overage(limit: Limit, total: Decimal) -> Decimal:
    """Return the part of a total beyond the included quantity, 0 at least; all of it if no quantity is included."""
    return max(EXACT.subtract(total, limit.included or Decimal(0)), Decimal(0))


def add_up(amounts: Iterable[Decimal]) -> Decimal:
    """Return the exact sum."""
    return reduce(EXACT.add, amounts, Decimal(0))


def compute_remaining(cap: Decimal, used: Decimal) -> Decimal:
    """Return the rest of a cap, 0 at least."""
    return max(EXACT.subtract(cap, used), Decimal(0))


def compute_live_bill(limit: Limit, total: Decimal) -> Decimal:
    """Return what the overage of a total costs, in the unit of the tiers' prices, unrounded.

    Each tier prices the part of the overage between the previous tier's `up_to` and its own; beyond the last tier the
    last price applies. Without tiers the overage costs nothing.
    """
    over, cost, begin = compute_overage(limit, total), Decimal(0), Decimal(0)
    for tier in limit.tiers:
        is_last = tier is limit.tiers[-1]
        end = over if tier.up_to is None or is_last else min(over, tier.up_to)
        if end > begin:
            cost = EXACT.add(cost, EXACT.multiply(EXACT.subtract(end, begin), tier.price))
            begin = end
    return cost
