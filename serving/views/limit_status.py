"""Where a customer stands: how far along each limit, and what a gate would say to a little more of it."""

from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum
from typing import NamedTuple

from tidegate.operators.columns.quantity import scaled
from tidegate.operators.gate.caps import decide
from tidegate.operators.gate.overage import EXACT, add_up, live_bill
from tidegate.operators.model.aggregates import AGGREGATES, Kind
from tidegate.operators.model.catalog import Catalog, Limit

HUNDRED = Decimal(100)


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


def standing(meter: str, limit: Limit, total: Decimal, kind: Kind) -> Standing:
    """Return how `total` stands to `limit`, by what a gate would say to the least that may be asked for."""
    level, words = _level(limit, total, AGGREGATES[kind].least)
    of = limit.cap if limit.cap is not None else limit.included
    return Standing(meter, total, share(total, of), level, words)


def share(total: Decimal, of: Decimal | None) -> Decimal | None:
    """In percent, whole, cut off: 99.9 is not yet 100. None where there is nothing to be percent of."""
    if of is None:
        return None
    if not of:
        return HUNDRED
    # In integers: a large total of a tiny cap is more percent than a Decimal's division gives.
    percent = 100 * scaled(total.copy_abs()) // scaled(of)
    return Decimal(percent if total >= 0 else -percent)


def worst(catalog: Catalog, customer: str, total_of: Callable[[str, str], Decimal]) -> Standing:
    """Return the customer's worst standing over all meters, of equally bad ones the one furthest along."""
    standings = [
        standing(
            meter.name, catalog.limit_of(customer, meter.name), total_of(customer, meter.name), meter.kind
        )
        for meter in catalog.meters
    ]
    nothing = Standing("", Decimal(0), None, Level.FREE, "ok")
    return max(standings, default=nothing, key=lambda one: (one.level, one.share or Decimal(0)))


def bill(catalog: Catalog, customer: str, total_of: Callable[[str, str], Decimal]) -> Decimal:
    """The overage of all meters, as of now."""
    names = [meter.name for meter in catalog.meters]
    return add_up(live_bill(catalog.limit_of(customer, name), total_of(customer, name)) for name in names)


def _level(limit: Limit, total: Decimal, more: Decimal) -> tuple[Level, str]:
    decision = decide(limit, total, more)
    if decision.denied_in_shadow:
        return Level.NOTED, "would deny"
    if not decision.allowed:
        return Level.DENIED, "DENIED"
    if decision.reason in ("grace", "warn"):
        return (Level.GRACE, "in grace") if decision.reason == "grace" else (Level.OVER, "over cap")
    if decision.reason == "overage" or (limit.included is not None and total > limit.included):
        return Level.OVERAGE, "overage"
    of = limit.cap if limit.cap is not None else limit.included
    percents = [threshold.percent for threshold in limit.thresholds if threshold.percent is not None]
    hundredfold = EXACT.multiply(total, HUNDRED)
    passed = [
        percent
        for percent in percents
        if of is not None and hundredfold >= EXACT.multiply(of, percent) and (total > 0 or of * percent)
    ]
    return (Level.NOTED, f"{max(passed):f} %") if passed else (Level.FREE, "ok")
