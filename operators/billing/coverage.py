"""Coverage: the proof that each unit is billed exactly once.

    ours = billed + in flight + held back + unbilled

holds for each customer, meter and period. `unbilled` is the remainder: it gets a cause and a value, and is negative
where more is billed than was used. Quantities are times 10²⁴; money is in the currency's smallest unit.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

from tidegate.operators.billing.credit_excess import AMOUNTS
from tidegate.operators.billing.drift import Span
from tidegate.operators.columns.quantity import to_decimal

Gap = Literal["no_subscription", "gap", "not_on_plan", "meter_differs", "boundary", "second_subscription"]
MONEY_PLACES = {"JPY": 0, "KRW": 0, "VND": 0, "CLP": 0, "BHD": 3, "KWD": 3, "OMR": 3, "JOD": 3, "TND": 3}


class Price(NamedTuple):
    """The price of a unit beyond `free` units (×10²⁴)."""

    currency: str
    per_unit: Decimal
    free: int

    def compute_charge(self, quantity: int) -> Decimal:
        """Return what a period's quantity costs."""
        return AMOUNTS.multiply(to_decimal(max(quantity - self.free, 0)), self.per_unit)

    def compute_worth(self, billed: int, missing: int) -> Decimal:
        """Return the value of a quantity missing from what is billed; negative if the quantity is billed in excess."""
        return AMOUNTS.subtract(self.compute_charge(billed + missing), self.compute_charge(billed))


class Charge(NamedTuple):
    """A meter's total in one billing cycle. `meter` is the name of our equivalent meter, "" if there is none.

    `label` is the meter's name at the provider, and `why` says what differs. `is_archived` says that the meter no
    longer counts. `amount` is what the provider charges, in the currency's smallest unit. `is_repeated` says that an
    earlier line already has these units, because a product may price one meter on several lines.
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
    """A billing cycle of a subscription as read from the provider.

    `ours` is the start of our totals for the same period.
    """

    subscription_id: str
    customer: str
    status: str
    product_id: str
    span: Span
    ours: int
    charges: tuple[Charge, ...]


class CoverageLine(NamedTuple):
    """One line of the proof.

    `worth` is None if no price is known; `cause` says where the unbilled part comes from, `is_acknowledged` that an
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


class CoverageSum(NamedTuple):
    """The sum of the lines of one meter and currency.

    `unpriced` is the unbilled quantity without a known price, `acknowledged` the unbilled quantity that was accepted.
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


def explain_gap(
    cycles: Sequence[BilledCycle], span: Span, meter: str, look_alikes: Mapping[str, str]
) -> tuple[Gap, str]:
    """Return why no cycle of a customer bills a total of this meter and period, as a code and in words.

    `cycles` are all cycles of the customer's subscriptions; `look_alikes` maps the ids of provider meters that resemble
    ours but count differently to what differs.
    """
    if not cycles:
        return "no_subscription", "the customer has no subscription that the provider bills"
    beside = [one for one in cycles if one.span.start < span.end and span.start < one.span.end]
    if not beside:
        return "gap", _describe_gap(cycles, span)
    for cycle in beside:
        for charge in cycle.charges:
            if charge.meter_id in look_alikes:
                return "meter_differs", f"{charge.label} ({charge.meter_id}): {look_alikes[charge.meter_id]}"
    if any(charge.meter == meter for cycle in beside for charge in cycle.charges):
        return "boundary", "the provider bills it in a period that begins elsewhere"
    products = ", ".join(sorted({cycle.product_id for cycle in beside}))
    return "not_on_plan", f"the customer's product {products} has no meter for it"


def _describe_gap(cycles: Iterable[BilledCycle], span: Span) -> str:
    before = any(one.span.end <= span.start for one in cycles)
    after = any(one.span.start >= span.end for one in cycles)
    if before and after:
        return "between two billing periods of the customer's subscriptions"
    return (
        "after the customer's last billing period" if before else "before the customer's first billing period"
    )


def select_charges(cycles: Iterable[BilledCycle], meter: str, start: int) -> list[Charge]:
    """Return the charges for our period that begins at `start`."""
    return [c for cycle in cycles if cycle.ours == start for c in cycle.charges if c.meter == meter]


def mark_repeated(charges: Iterable[Charge]) -> tuple[Charge, ...]:
    """Return a cycle's charges, marking those that price the units of an earlier line of the same meter."""
    seen: set[tuple[str, int]] = set()
    found = []
    for one in charges:
        found.append(one._replace(is_repeated=(one.meter_id, one.quantity) in seen))
        seen.add((one.meter_id, one.quantity))
    return tuple(found)


def sum_units(charges: Iterable[Charge]) -> int:
    """Return the units that the lines of one of our meters bill."""
    return sum(one.quantity for one in charges if not one.is_repeated)


def compute_undercharge(charges: Sequence[Charge], missing: int) -> Decimal | None:
    """Return how much too little the lines of one of our meters charge.

    `missing` is the quantity that should be billed and is not (negative: a surplus). The first meter's lines define
    what should be charged. Returns None if a price is unknown.
    """
    prices = [one.price for one in charges if one.price is not None]
    if not prices or len(prices) < len(charges):
        return None
    own = [c.price for c in charges if c.meter_id == charges[0].meter_id and c.is_repeated]
    due = sum_units(charges) + missing
    should = [price.compute_charge(due) for price in (charges[0].price, *own) if price is not None]
    does = [one.price.compute_charge(one.quantity) for one in charges if one.price is not None]
    return AMOUNTS.subtract(sum(should, Decimal(0)), sum(does, Decimal(0)))


def find_price(cycles: Iterable[BilledCycle], meter: str) -> Price | None:
    """Return the last price that these cycles have for a meter."""
    found = None
    for cycle in sorted(cycles, key=lambda one: one.span.start):
        for charge in cycle.charges:
            found = charge.price if charge.meter == meter and charge.price else found
    return found


def add_up(lines: Iterable[CoverageLine]) -> list[CoverageSum]:
    """Return the sums of the lines, by meter and currency."""
    sums: dict[tuple[str, str], CoverageSum] = {}
    for line in lines:
        key = line.meter, line.currency
        old = sums.get(key, CoverageSum(*key, 0, 0, 0, 0, 0, 0, Decimal(0), 0, 0))
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


def format_money(amount: Decimal, currency: str) -> str:
    """Return an amount in the smallest unit as text: 1050 of USD is 10.50 USD; halves of a cent are rounded."""
    places = MONEY_PLACES.get(currency, 2)
    return f"{amount.scaleb(-places, AMOUNTS):,.{places}f} {currency}"
