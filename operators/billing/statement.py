"""The statement: what each customer is billed for usage, line by line, beside what is not billed and why.

A line is one meter of one billing cycle, as the provider has it, with the payment that bills it: a renewal bills the
usage of the cycle before, so it is the one whose service period begins where the cycle ends. Usage that no cycle bills
is a line without a subscription. Units are decimal text; amounts are in the currency's smallest unit.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP
from typing import Any

import msgspec

from tidegate.operators.billing.coverage import BilledCycle, Charge, Line
from tidegate.operators.billing.outgoing import instant
from tidegate.operators.billing.provider import Payment, micros
from tidegate.operators.columns.quantity import text

SECOND = 1_000_000
# A service period may start some minutes after the billing date.
APART = 3600 * SECOND


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """An act about one total: sent again, adopted, credited, debited; and its outcome."""

    act: str
    state: str
    quantity: str
    events: int
    why: str


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """One meter of one billing cycle. `units` are billed, `ours` is what was used here.

    `invoice` and `payment` are empty while the cycle is open, or where no payment is known. `amount` is None where no
    price is known. `unbilled` is below 0 where more is billed than was used; `cause` says what it comes from.
    """

    customer: str
    subscription: str
    product: str
    meter: str
    meter_id: str
    period_start: str
    period_end: str
    units: str
    free: str
    price: str | None
    currency: str
    amount: int | None
    invoice: str
    payment: str
    payment_status: str
    ours: str
    in_flight: str
    held_back: str
    unbilled: str
    cause: str
    repaired: tuple[Repaired, ...]
    run: int
    as_of: str

    @property
    def key(self) -> str:
        """What the line is known by, from run to run."""
        return "/".join((self.customer, self.subscription, self.meter_id or self.meter, self.period_start))


def statement_of(
    cycles: Mapping[str, Sequence[BilledCycle]],
    payments: Iterable[Payment],
    proof: Iterable[Line],
    repairs: Mapping[tuple[str, str, str], Sequence[Repaired]],
    run: int,
    now: int,
) -> list[StatementLine]:
    """Return the lines of all cycles, and of usage that no cycle bills.

    `repairs` are by customer, meter and start of our period, as an RFC 3339 time without fraction and zone.
    """
    paid = _by_subscription(payments)
    proven = {(one.customer, one.meter, _whole(one.span.start)): one for one in proof}
    lines = []
    for some in cycles.values():
        for cycle in some:
            payment = _payment_of(paid.get(cycle.subscription_id, ()), cycle.subscription_id, cycle.span.end)
            for charge in cycle.charges:
                own = proven.pop((cycle.customer, charge.meter, cycle.ours), None)
                acts = repairs.get((cycle.customer, charge.meter, instant(cycle.span.start)[:19]), ())
                lines.append(_billed(cycle, charge, payment, own, tuple(acts), run, now))
    lines += [_unbilled(one, run, now) for one in proven.values() if not one.billed]
    return sorted(lines, key=lambda one: (one.customer, one.period_start, one.meter, one.subscription))


def _billed(
    cycle: BilledCycle,
    charge: Charge,
    payment: Payment | None,
    own: Line | None,
    acts: tuple[Repaired, ...],
    run: int,
    now: int,
) -> StatementLine:
    price = charge.price
    amount = charge.amount
    if amount is None and price is not None:
        amount = int(price.bill(charge.quantity).to_integral_value(ROUND_HALF_UP))
    return StatementLine(
        customer=cycle.customer,
        subscription=cycle.subscription_id,
        product=cycle.product_id,
        meter=charge.meter or charge.label,
        meter_id=charge.meter_id,
        period_start=instant(cycle.span.start),
        period_end=instant(cycle.span.end),
        units=text(charge.quantity),
        free=text(price.free) if price else "0",
        price=f"{price.per_unit:f}" if price else None,
        currency=price.currency if price else "",
        amount=amount,
        invoice=(payment.invoice_id or "") if payment else "",
        payment=payment.payment_id if payment else "",
        payment_status=(payment.status or "") if payment else "",
        **_own_fields(own),
        repaired=acts,
        run=run,
        as_of=instant(now),
    )


def _unbilled(own: Line, run: int, now: int) -> StatementLine:
    return StatementLine(
        customer=own.customer,
        subscription="",
        product="",
        meter=own.meter,
        meter_id="",
        period_start=instant(own.span.start),
        period_end=instant(own.span.end),
        units="0",
        free="0",
        price=None,
        currency=own.currency,
        amount=0,
        invoice="",
        payment="",
        payment_status="",
        **_own_fields(own),
        repaired=(),
        run=run,
        as_of=instant(now),
    )


def _own_fields(own: Line | None) -> dict[str, Any]:
    if own is None:
        return {name: "0" for name in ("ours", "in_flight", "held_back", "unbilled")} | {"cause": ""}
    units = {name: text(getattr(own, name)) for name in ("ours", "in_flight", "held_back", "unbilled")}
    return units | {"cause": own.cause}


def _by_subscription(payments: Iterable[Payment]) -> dict[str, list[Payment]]:
    found: dict[str, list[Payment]] = {}
    for one in payments:
        for period in one.service_periods:
            found.setdefault(period.subscription_id, []).append(one)
    return found


def _payment_of(payments: Sequence[Payment], subscription: str, end: int) -> Payment | None:
    """Return the payment whose service period begins where a cycle ends: of several, one that succeeded, the last."""
    found = [
        one
        for one in payments
        for period in one.service_periods
        if period.subscription_id == subscription and 0 <= micros(period.starts_at) - end <= APART
    ]
    return max(found, key=lambda one: (one.status == "succeeded", one.created_at), default=None)


def _whole(at: int) -> int:
    return at - at % SECOND
