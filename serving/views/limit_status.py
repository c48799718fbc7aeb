"""How far along each limit a customer is, and what the gate says to a little more of it.

The gate itself is asked (operators/gate/decision.py), with the customer's account: holds, the spend cap and levels
included. What it does where totals are older than a cap's `max_lag` is left out, as pages show that by itself.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from enum import IntEnum
from typing import NamedTuple

from tidegate.operators.columns.quantity import scale, to_decimal
from tidegate.operators.gate.customer_limits import CustomerLimits
from tidegate.operators.gate.decision import AccountView, Decision
from tidegate.operators.gate.overage import EXACT, add_up, compute_live_bill, compute_remaining
from tidegate.operators.model.aggregates import AGGREGATES, LEVELS
from tidegate.operators.model.catalog import Limit
from tidegate.operators.model.ports import Account, Held, StoredTotal, StoreReader, Used
from tidegate.operators.model.records import Total

HUNDRED = Decimal(100)
# How often an account is read until no hold ended meanwhile.
TRIES = 5


class Level(IntEnum):
    """The worse, the greater."""

    FREE = 0
    NOTED = 1
    OVERAGE = 2
    OVER = 3
    GRACE = 4
    DENIED = 5


class LimitStatus(NamedTuple):
    """One meter's: `share` of the limit in percent (None without a limit), and the state in a word or two."""

    meter: str
    total: Decimal
    share: Decimal | None
    level: Level
    words: str


NO_LIMITS = LimitStatus("", Decimal(0), None, Level.FREE, "ok")


def read_account(reader: StoreReader, customer: str, now: int) -> tuple[list[StoredTotal], Held | None]:
    """Read a customer's totals, and what is held at `now` (µs), such that no usage is in both."""
    for _ in range(TRIES):
        held = reader.read_held(now, [customer]).get(customer)
        stored = reader.read(customer)
        # A hold that ended in between has become usage, and would count twice.
        if held is None or reader.read_held(now, [customer]).get(customer) == held:
            break
    return stored, held


def view_of(own: CustomerLimits, totals: Mapping[str, Total], held: Held | None, at: int) -> AccountView:
    """Return the account of the period that holds `at` (µs), with its totals by meter, as the gate has it."""
    used = {
        meter: Used(scale(Decimal(total.total)), total.as_of, total.as_of)
        for meter, total in totals.items()
        if meter in own.kinds
    }
    quantities, next_expiry = held or ({}, None)
    return AccountView(own, Account(used, quantities, next_expiry, own.number, 0), *own.find_period(at))


def current_totals(stored: Iterable[StoredTotal], start: int) -> dict[str, StoredTotal]:
    """Return the totals of the period that begins at `start` (µs), by meter."""
    return {
        one.total.meter: one for one in stored if one.total.window == "period" and one.total.start == start
    }


def total_of(view: AccountView, meter: str) -> int:
    """Return what is used of a meter, times 10²⁴."""
    used = view.account.used.get(meter)
    return used.total if used else 0


def quantity_asked(view: AccountView, meter: str) -> int:
    """Return the quantity (×10²⁴) that a limit status asks the gate for.

    It is the least that may be asked for; of a level it is the level that there is, as nothing is added to it.
    """
    kind = view.own.kinds[meter]
    return max(total_of(view, meter), 0) if kind in LEVELS else scale(AGGREGATES[kind].least)


def limit_status(view: AccountView, meter: str) -> LimitStatus:
    """Return how the account stands to a meter's limit, by what the gate says to `quantity_asked` of it."""
    limit, total = view.own.limits[meter], to_decimal(total_of(view, meter))
    level, words = _level(limit, total, view.decide({meter: quantity_asked(view, meter)}))
    of = limit.cap if limit.cap is not None else limit.included
    return LimitStatus(meter, total, share(total, of), level, words)


def share(total: Decimal, of: Decimal | None) -> Decimal | None:
    """Return the share in percent, whole, cut off: 99.9 is not yet 100. None where there is nothing to share."""
    if of is None:
        return None
    if not of:
        return HUNDRED
    # In integers: a large total of a tiny cap is more percent than a Decimal's division gives.
    percent = 100 * scale(total.copy_abs()) // scale(of)
    return Decimal(percent if total >= 0 else -percent)


def worst_status(view: AccountView) -> LimitStatus:
    """Return the worst limit status over all meters, of equally bad ones the one furthest along."""
    found = [limit_status(view, meter) for meter in view.own.meters]
    return max(found, default=NO_LIMITS, key=lambda one: (one.level, one.share or Decimal(0)))


def remaining(view: AccountView, meter: str) -> Decimal | None:
    """Return what is left of a meter's cap beside what is used and held, 0 at least; None without a cap.

    Holds are no part of a level.
    """
    cap, taken = view.own.limits[meter].cap, total_of(view, meter)
    if view.own.kinds[meter] not in LEVELS:
        taken += view.account.held.get(meter, 0)
    return None if cap is None else compute_remaining(cap, to_decimal(taken))


def bill(view: AccountView) -> Decimal:
    """Return the overage of all meters, without what is held."""
    return add_up(
        compute_live_bill(limit, to_decimal(total_of(view, meter)))
        for meter, limit in view.own.limits.items()
    )


def _level(limit: Limit, total: Decimal, decision: Decision) -> tuple[Level, str]:
    by_money = " (spend)" if decision.scope == "spend" else ""
    if decision.denied_in_shadow:
        return Level.NOTED, f"would deny{by_money}"
    if not decision.allowed:
        return Level.DENIED, f"DENIED{by_money}"
    if decision.reason == "grace":
        return Level.GRACE, f"in grace{by_money}"
    if decision.reason == "warn":
        return Level.OVER, f"over cap{by_money}"
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
