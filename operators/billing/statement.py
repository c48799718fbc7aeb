"""The statement: what each customer is billed for usage, line by line, and what is not billed and why.

A line is one meter of one billing cycle, as the provider has it, with the payment that bills it: a renewal bills the
usage of the previous cycle, so its service period begins where that cycle ends. Usage that no cycle bills is a line
without a subscription. Units are decimal text; amounts are in the currency's smallest unit.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP
from typing import Any

import msgspec

from tidegate.operators.billing.coverage import BilledCycle, Charge, CoverageLine
from tidegate.operators.billing.provider import Payment, to_micros
from tidegate.operators.columns.quantity import format_quantity
from tidegate.operators.model.wire import format_instant

SECOND = 1_000_000
# A service period may start some minutes after the billing date.
APART = 3600 * SECOND


class RepairRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A repair of one total: sent again, adopted, credited or debited; and its outcome."""

    act: str
    state: str
    quantity: str
    events: int
    why: str


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """One meter of one billing cycle. `units` are billed, `ours` is what was used here.

    `invoice` and `payment` are empty while the cycle is open, or if no payment is known. `amount` is None if no price
    is known. `unbilled` is negative if more is billed than was used; `cause` says where it comes from.
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
    repaired: tuple[RepairRecord, ...]
    run: int
    as_of: str

    @property
    def key(self) -> str:
        """The key that identifies the line across reconciliation runs."""
        return "/".join((self.customer, self.subscription, self.meter_id or self.meter, self.period_start))


def build_statement(
    cycles: Mapping[str, Sequence[BilledCycle]],
    payments: Iterable[Payment],
    proof: Iterable[CoverageLine],
    repairs: Mapping[tuple[str, str, str], Sequence[RepairRecord]],
    run: int,
    now: int,
) -> list[StatementLine]:
    """Return the lines of all cycles, and of usage that no cycle bills.

    `repairs` are by customer, meter and start of our period, as an RFC 3339 time without fraction and zone.
    """
    paid = _group_by_subscription(payments)
    proven = {(one.customer, one.meter, _cut_to_second(one.span.start)): one for one in proof}
    lines = []
    for some in cycles.values():
        for cycle in some:
            payment = _find_payment(
                paid.get(cycle.subscription_id, ()), cycle.subscription_id, cycle.span.end
            )
            for charge in cycle.charges:
                own = proven.pop((cycle.customer, charge.meter, cycle.ours), None)
                acts = repairs.get((cycle.customer, charge.meter, format_instant(cycle.span.start)[:19]), ())
                lines.append(_build_billed_line(cycle, charge, payment, own, tuple(acts), run, now))
    lines += [_build_unbilled_line(one, run, now) for one in proven.values() if not one.billed]
    return sorted(lines, key=lambda one: (one.customer, one.period_start, one.meter, one.subscription))


def _build_billed_line(
    cycle: BilledCycle,
    charge: Charge,
    payment: Payment | None,
    own: CoverageLine | None,
    acts: tuple[RepairRecord, ...],
    run: int,
    now: int,
) -> StatementLine:
    price = charge.price
    amount = charge.amount
    if amount is None and price is not None:
        amount = int(price.compute_charge(charge.quantity).to_integral_value(ROUND_HALF_UP))
    return StatementLine(
        customer=cycle.customer,
        subscription=cycle.subscription_id,
        product=cycle.product_id,
        meter=charge.meter or charge.label,
        meter_id=charge.meter_id,
        period_start=format_instant(cycle.span.start),
        period_end=format_instant(cycle.span.end),
        units=format_quantity(charge.quantity),
        free=format_quantity(price.free) if price else "0",
        price=f"{price.per_unit:f}" if price else None,
        currency=price.currency if price else "",
        amount=amount,
        invoice=(payment.invoice_id or "") if payment else "",
        payment=payment.payment_id if payment else "",
        payment_status=(payment.status or "") if payment else "",
        **_build_own_fields(own),
        repaired=acts,
        run=run,
        as_of=format_instant(now),
    )


def _build_unbilled_line(own: CoverageLine, run: int, now: int) -> StatementLine:
    return StatementLine(
        customer=own.customer,
        subscription="",
        product="",
        meter=own.meter,
        meter_id="",
        period_start=format_instant(own.span.start),
        period_end=format_instant(own.span.end),
        units="0",
        free="0",
        price=None,
        currency=own.currency,
        amount=0,
        invoice="",
        payment="",
        payment_status="",
        **_build_own_fields(own),
        repaired=(),
        run=run,
        as_of=format_instant(now),
    )


def _build_own_fields(own: CoverageLine | None) -> dict[str, Any]:
    if own is None:
        return {name: "0" for name in ("ours", "in_flight", "held_back", "unbilled")} | {"cause": ""}
    units = {
        name: format_quantity(getattr(own, name)) for name in ("ours", "in_flight", "held_back", "unbilled")
    }
    return units | {"cause": own.cause}


def _group_by_subscription(payments: Iterable[Payment]) -> dict[str, list[Payment]]:
    found: dict[str, list[Payment]] = {}
    for one in payments:
        for period in one.service_periods:
            found.setdefault(period.subscription_id, []).append(one)
    return found


def _find_payment(payments: Sequence[Payment], subscription: str, end: int) -> Payment | None:
    """Return the payment whose service period begins where a cycle ends; of several the last one that succeeded."""
    found = [
        one
        for one in payments
        for period in one.service_periods
        if period.subscription_id == subscription and 0 <= to_micros(period.starts_at) - end <= APART
    ]
    return max(found, key=lambda one: (one.status == "succeeded", one.created_at), default=None)


def _cut_to_second(at: int) -> int:
    return at - at % SECOND
