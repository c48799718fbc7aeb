"""The live bill: what usage past the included quantity costs, by the plan's tiers, as it stands."""

from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact

from operators.catalog import Limit

# Money is exact or not at all: a product that would round raises.
EXACT = Context(prec=100, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact])


def overage(limit: Limit, total: Decimal) -> Decimal:
    """The part of a total past the included quantity, 0 at least; without an included quantity, all of it."""
    return max(EXACT.subtract(total, limit.included or Decimal(0)), Decimal(0))


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
