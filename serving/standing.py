"""Where a customer stands: how far along each limit, and what a gate would say."""

from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum
from typing import NamedTuple

from operators.catalog import Catalog, Kind, Limit

HUNDRED = Decimal(100)
USED_UP: tuple[Kind, ...] = ("count", "sum")
"""Kinds of meters that use up a limit. The others are levels: who has all its seats taken is denied no request."""


class Level(IntEnum):
    """The worse, the greater."""

    FREE = 0
    NOTED = 1
    OVERAGE = 2
    OVER = 3
    GRACE = 4
    DENIED = 5


class Standing(NamedTuple):
    """One meter's: `share` of the limit in percent (None without a limit), and the state in a word or two."""

    meter: str
    total: Decimal
    share: Decimal | None
    level: Level
    words: str


def standing(meter: str, limit: Limit, total: Decimal) -> Standing:
    """How `total` stands to `limit`."""
    level, words = _level(limit, total)
    of = limit.cap if limit.cap is not None else limit.included
    return Standing(meter, total, share(total, of), level, words)


def share(total: Decimal, of: Decimal | None) -> Decimal | None:
    """In percent, whole, cut off: 99.9 is not yet 100. None where there is nothing to be percent of."""
    if of is None:
        return None
    return HUNDRED * total // of if of else HUNDRED


def worst(catalog: Catalog, customer: str, total_of: Callable[[str, str], Decimal]) -> Standing:
    """The customer's worst standing of what is used up, the one furthest along of several that are as bad."""
    standings = [
        standing(meter.name, catalog.limit_of(customer, meter.name), total_of(customer, meter.name))
        for meter in catalog.meters
        if meter.kind in USED_UP
    ]
    nothing = Standing("", Decimal(0), None, Level.FREE, "ok")
    return max(standings, default=nothing, key=lambda one: (one.level, one.share or Decimal(0)))


def live_bill(limit: Limit, total: Decimal) -> Decimal:
    """What the overage costs so far: each unit past the included quantity at the price of its tier."""
    over = total - (limit.included or Decimal(0))
    cost, begin = Decimal(0), Decimal(0)
    for tier in limit.tiers:
        end = over if tier.up_to is None else min(over, tier.up_to)
        if end > begin:
            cost += (end - begin) * tier.price
            begin = end
    return cost


def bill(catalog: Catalog, customer: str, total_of: Callable[[str, str], Decimal]) -> Decimal:
    """The overage of all meters, as of now."""
    names = [meter.name for meter in catalog.meters]
    return sum(
        (live_bill(catalog.limit_of(customer, name), total_of(customer, name)) for name in names), Decimal(0)
    )


def _level(limit: Limit, total: Decimal) -> tuple[Level, str]:
    cap = limit.cap
    if cap is not None and total >= cap:
        if limit.shadow:
            return Level.NOTED, "would deny"
        if limit.on_cap == "block":
            denied = total >= cap * (1 + limit.grace_pct / HUNDRED)
            return (Level.DENIED, "DENIED") if denied else (Level.GRACE, "in grace")
        return Level.OVER, "over cap"
    if limit.included is not None and total > limit.included:
        return Level.OVERAGE, "overage"
    of = cap if cap is not None else limit.included
    passed = [
        threshold.percent
        for threshold in limit.thresholds
        if threshold.percent is not None and of is not None and total >= of * threshold.percent / HUNDRED
    ]
    return (Level.NOTED, f"{max(passed):f} %") if passed else (Level.FREE, "ok")
