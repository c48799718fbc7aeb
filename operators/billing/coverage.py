"""The proof that each unit is billed once: our totals against what is billed, in flight, held back or named.

    ours = billed + in flight + held back + unbilled

holds for each customer, meter and period. What is left over as `unbilled` gets a cause and what it is worth; it is
below 0 where more is billed than was used. Quantities are times 10²⁴; money is in the currency's smallest unit.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

from tidegate.operators.billing.credit_excess import AMOUNTS
from tidegate.operators.billing.drift import Span
from tidegate.operators.columns.quantity import decimal

Gap = Literal["no_subscription", "gap", "not_on_plan", "meter_differs", "boundary", "second_subscription"]
MONEY_PLACES = {"JPY": 0, "KRW": 0, "VND": 0, "CLP": 0, "BHD": 3, "KWD": 3, "OMR": 3, "JOD": 3, "TND": 3}


class Price(NamedTuple):
    """What a unit costs beyond `free` units (×10²⁴)."""

    currency: str
    per_unit: Decimal
    free: int

    def bill(self, quantity: int) -> Decimal:
        """Return what a period's quantity costs."""
        return AMOUNTS.multiply(decimal(max(quantity - self.free, 0)), self.per_unit)

    def worth(self, billed: int, missing: int) -> Decimal:
        """Return what a quantity is worth that is missing beside what is billed; below 0 where it is too much."""
        return AMOUNTS.subtract(self.bill(billed + missing), self.bill(billed))


class Charge(NamedTuple):
    """A meter's total in one billing cycle. `meter` is our name of it, "" where none of ours counts the same.

    `label` is its name there, `why` what differs; `is_archived` says that it counts no more. `amount` is what the
    provider charges, in the currency's smallest unit. `is_repeated` says that another line has these units too, as a
    product may price one meter on several lines.
    """

    meter_id: str
    meter: str
    label: str
    quantity: int
    price: Price | None = None
    why: str = ""
    is_archived: bool = False
    amount: int | None = None
    is_repeated: bool = False


class BilledCycle(NamedTuple):
    """A billing cycle of a subscription as it was read. `ours` is the start that our totals of it are known by."""

    subscription_id: str
    customer: str
    status: str
    product_id: str
    span: Span
    ours: int
    charges: tuple[Charge, ...]


class Line(NamedTuple):
    """One line of the proof.

    `worth` is None where no price is known; `cause` says what the unbilled part comes from, `is_acknowledged` that an
    operator has accepted it.
    """

    customer: str
    meter: str
    span: Span
    ours: int
    billed: int
    in_flight: int
    held_back: int
    cause: str = ""
    currency: str = ""
    worth: Decimal | None = None
    is_acknowledged: bool = False

    @property
    def unbilled(self) -> int:
        return self.ours - self.billed - self.in_flight - self.held_back


class Sum(NamedTuple):
    """The lines of one meter and currency, added up.

    `unpriced` is what is unbilled without a known price, `acknowledged` what of the unbilled was accepted.
    """

    meter: str
    currency: str
    totals: int
    ours: int
    billed: int
    in_flight: int
    held_back: int
    unbilled: int
    worth: Decimal
    unpriced: int
    acknowledged: int


def gap_of(
    cycles: Sequence[BilledCycle], span: Span, meter: str, look_alikes: Mapping[str, str]
) -> tuple[Gap, str]:
    """Return why no cycle of a customer bills a total of this meter and period, and in words.

    `cycles` are all that the customer's subscriptions have; `look_alikes` are the provider's meters, by id, that look
    like ours and count otherwise, with what differs.
    """
    if not cycles:
        return "no_subscription", "the customer has no subscription that the provider bills"
    beside = [one for one in cycles if one.span.start < span.end and span.start < one.span.end]
    if not beside:
        return "gap", _where(cycles, span)
    for cycle in beside:
        for charge in cycle.charges:
            if charge.meter_id in look_alikes:
                return "meter_differs", f"{charge.label} ({charge.meter_id}): {look_alikes[charge.meter_id]}"
    if any(charge.meter == meter for cycle in beside for charge in cycle.charges):
        return "boundary", "the provider bills it in a period that begins elsewhere"
    products = ", ".join(sorted({cycle.product_id for cycle in beside}))
    return "not_on_plan", f"the customer's product {products} has no meter for it"


def _where(cycles: Iterable[BilledCycle], span: Span) -> str:
    before = any(one.span.end <= span.start for one in cycles)
    after = any(one.span.start >= span.end for one in cycles)
    if before and after:
        return "between two billing periods of the customer's subscriptions"
    return (
        "after the customer's last billing period" if before else "before the customer's first billing period"
    )


def billed_of(cycles: Iterable[BilledCycle], meter: str, start: int) -> list[Charge]:
    """Return what is billed of our period that begins at `start`."""
    return [c for cycle in cycles if cycle.ours == start for c in cycle.charges if c.meter == meter]


def mark_repeated(charges: Iterable[Charge]) -> tuple[Charge, ...]:
    """Return a cycle's charges, with those marked that price the units of an earlier line of the same meter."""
    seen: set[tuple[str, int]] = set()
    found = []
    for one in charges:
        found.append(one._replace(is_repeated=(one.meter_id, one.quantity) in seen))
        seen.add((one.meter_id, one.quantity))
    return tuple(found)


def units_of(charges: Iterable[Charge]) -> int:
    """Return the units that lines of one meter of ours bill."""
    return sum(one.quantity for one in charges if not one.is_repeated)


def worth_of(charges: Sequence[Charge], missing: int) -> Decimal | None:
    """Return what lines of one meter of ours charge too little, where `missing` units are (below 0: too many).

    The first meter's lines are what should be charged; None where a price is not known.
    """
    prices = [one.price for one in charges if one.price is not None]
    if not prices or len(prices) < len(charges):
        return None
    own = [c.price for c in charges if c.meter_id == charges[0].meter_id and c.is_repeated]
    due = units_of(charges) + missing
    should = [price.bill(due) for price in (charges[0].price, *own) if price is not None]
    does = [one.price.bill(one.quantity) for one in charges if one.price is not None]
    return AMOUNTS.subtract(sum(should, Decimal(0)), sum(does, Decimal(0)))


def price_of(cycles: Iterable[BilledCycle], meter: str) -> Price | None:
    """Return the last price that these cycles have for a meter."""
    found = None
    for cycle in sorted(cycles, key=lambda one: one.span.start):
        for charge in cycle.charges:
            found = charge.price if charge.meter == meter and charge.price else found
    return found


def add_up(lines: Iterable[Line]) -> list[Sum]:
    """Return the sums of the lines, by meter and currency."""
    sums: dict[tuple[str, str], Sum] = {}
    for line in lines:
        key = line.meter, line.currency
        old = sums.get(key, Sum(*key, 0, 0, 0, 0, 0, 0, Decimal(0), 0, 0))
        sums[key] = old._replace(
            totals=old.totals + 1,
            ours=old.ours + line.ours,
            billed=old.billed + line.billed,
            in_flight=old.in_flight + line.in_flight,
            held_back=old.held_back + line.held_back,
            unbilled=old.unbilled + line.unbilled,
            worth=AMOUNTS.add(old.worth, line.worth or Decimal(0)),
            unpriced=old.unpriced + (line.unbilled if line.worth is None else 0),
            acknowledged=old.acknowledged + (line.unbilled if line.is_acknowledged else 0),
        )
    return [sums[key] for key in sorted(sums)]


def money(amount: Decimal, currency: str) -> str:
    """Return an amount of the smallest unit as text: 1050 of USD is 10.50 USD, halves of a cent rounded."""
    places = MONEY_PLACES.get(currency, 2)
    return f"{amount.scaleb(-places, AMOUNTS):,.{places}f} {currency}"
