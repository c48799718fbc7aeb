"""The biller's side as values: its meters, subscriptions and events, and which of its meters is which of ours.

A meter is the same if it counts the same: event name, aggregation, key and filter. Names are for people, and differ.
Where usage is rolled up (operators/billing/rollup.py), the biller sums up what we counted: that is the same meter too.
Source: Dodo Payments, meters and subscriptions; openapi 1.53.2.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from tidegate.operators.billing.rollup import SUFFIX
from tidegate.operators.columns.quantity import rounded, scaled
from tidegate.operators.events.filters import compile_filter, kind_of
from tidegate.operators.events.readings import number_of
from tidegate.operators.model.aggregates import ADDITIVE, AGGREGATES, AT_PROVIDER, Kind
from tidegate.operators.model.catalog import Catalog, Condition, Filter, Meter

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Aggregation(msgspec.Struct, frozen=True):
    type: str
    key: str | None = None


class BillerMeter(msgspec.Struct, frozen=True, kw_only=True):
    """A meter as the API has it."""

    id: str
    name: str
    event_name: str
    aggregation: Aggregation
    created_at: datetime
    measurement_unit: str = ""
    filter: dict[str, Any] | None = None
    # Not the API's own field: only the list that a meter is found in says it.
    archived: bool = False


class SubscribedMeter(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscription says of a meter; only the full form has it."""

    meter_id: str
    name: str = ""
    free_threshold: int = 0


class CreditMeter(msgspec.Struct, frozen=True, kw_only=True):
    """A meter of a subscription that is paid in credits."""

    meter_id: str
    credit_entitlement_id: str
    meter_units_per_credit: str


class SubscribedCustomer(msgspec.Struct, frozen=True):
    customer_id: str


class ScheduledChange(msgspec.Struct, frozen=True):
    """A change of plan that is to come."""

    product_id: str = ""
    effective_at: datetime | None = None


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription as the API has it. Its current period is [previous_billing_date, next_billing_date)."""

    subscription_id: str
    status: str
    product_id: str
    customer: SubscribedCustomer
    previous_billing_date: datetime
    next_billing_date: datetime
    product_name: str | None = None
    scheduled_change: ScheduledChange | None = None
    meters: tuple[SubscribedMeter, ...] = ()
    meter_credit_entitlement_cart: tuple[CreditMeter, ...] = ()
    # Not the API's own field: the list's short form leaves the meters out.
    is_short: bool = False

    @property
    def is_metered(self) -> bool:
        """Return whether usage is billed by it; of the short form nobody knows, so that counts as yes."""
        return self.is_short or bool(self.meters or self.meter_credit_entitlement_cart)


class MeterUsage(msgspec.Struct, frozen=True, kw_only=True):
    """A meter's total in one period, and its price per unit in the smallest unit. The price there is rounded."""

    id: str
    consumed_units: str
    name: str = ""
    currency: str = ""
    price_per_unit: str | None = None
    free_threshold: int | None = None
    total_price: int | None = None


class Cycle(msgspec.Struct, frozen=True, kw_only=True):
    """An item of the usage history: one period, [start_date, end_date)."""

    start_date: datetime
    end_date: datetime
    meters: tuple[MeterUsage, ...]


class ServicePeriod(msgspec.Struct, frozen=True):
    """What a payment pays for, of one subscription."""

    subscription_id: str
    starts_at: datetime
    ends_at: datetime


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment as the API has it. A renewal's usage is that of the cycle before its service period."""

    payment_id: str
    created_at: datetime
    invoice_id: str | None = None
    status: str | None = None
    includes_usage: bool = False
    service_periods: tuple[ServicePeriod, ...] = ()


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a customer's credit ledger."""

    transaction_type: str
    amount: Decimal
    is_credit: bool
    balance_before: Decimal
    created_at: datetime
    metadata: dict[str, Any] | None = None


class CreditKind(msgspec.Struct, frozen=True):
    """A credit entitlement: how many decimal places its amounts have."""

    id: str
    precision: int


class ListedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as the API lists it."""

    event_id: str
    customer_id: str
    event_name: str
    timestamp: datetime
    metadata: dict[str, Any] | None = None


class Matched(NamedTuple):
    """A meter of the biller, `theirs`, and ours that counts the same; `kind` is how its total adds up there.

    `is_archived` says that it counts no more.
    """

    id: str
    ours: Meter
    theirs: Meter
    kind: Kind
    created_at: int
    is_archived: bool = False


class Unmatched(NamedTuple):
    """A meter of the biller that none of ours counts like; `why` says what differs.

    `like` are those of ours that read the same events, or have its name.
    """

    id: str
    name: str
    why: str
    like: frozenset[str] = frozenset()
    is_archived: bool = False


def matched(catalog: Catalog, meters: Iterable[BillerMeter]) -> tuple[dict[str, Matched], list[Unmatched]]:
    """Which of the biller's meters are which of ours, by their ids; and those that are none."""
    found: dict[str, Matched] = {}
    others: list[Unmatched] = []
    for meter in meters:
        read = meter_of(meter)
        if read is None:
            why = f"its aggregation {meter.aggregation.type!r} is unknown"
            others.append(_unmatched(catalog, meter, why))
            continue
        ours = [own for own in catalog.meters if is_same(own, read)]
        rolled = [own for own in catalog.meters if _is_rolled_up(own, read)]
        if ours or rolled:
            # Two of ours that count the same are equally right; the one of this name is what people expect.
            own = next((own for own in ours if own.name == meter.name), (ours or rolled)[0])
            kind: Kind = "sum" if rolled and not ours else own.kind
            found[meter.id] = Matched(meter.id, own, read, kind, micros(meter.created_at), meter.archived)
        else:
            others.append(_unmatched(catalog, meter, _difference(catalog, read)))
    return found, others


def _unmatched(catalog: Catalog, meter: BillerMeter, why: str) -> Unmatched:
    like = {
        own.name
        for own in catalog.meters
        if own.name == meter.name or meter.event_name in (own.event_name, own.name + SUFFIX)
    }
    return Unmatched(meter.id, meter.name, why, frozenset(like), meter.archived)


def meter_of(meter: BillerMeter) -> Meter | None:
    """The meter in our words; None where its aggregation is none that we know."""
    kind, key = meter.aggregation.type, meter.aggregation.key
    if kind not in AT_PROVIDER or (AGGREGATES[kind].reads != "nothing" and not key):
        return None
    wanted = filter_of(meter.filter) if meter.filter else None
    reads = None if AGGREGATES[kind].reads == "nothing" else key
    return Meter(meter.name, meter.event_name, kind, reads, wanted, meter.measurement_unit)


def filter_of(found: Mapping[str, Any]) -> Filter:
    """A filter as the API has it; conditions and filters may be mixed."""
    clauses = tuple(
        filter_of(clause)
        if "clauses" in clause
        else Condition(clause["key"], clause["operator"], exact(clause["value"]))
        for clause in found["clauses"]
    )
    return Filter(found["conjunction"], clauses)


def exact(value: Any) -> Any:
    """A JSON value with its floats as the decimals that were written."""
    return Decimal(repr(value)) if isinstance(value, float) else value


def is_same(ours: Meter, theirs: Meter) -> bool:
    """Whether both count the same."""
    return _definition(ours) == _definition(theirs)


class Reading:
    """What a meter reads of events, one by one.

    `is_foreign` events may be of other producers, so that numbers of more than 24 places are rounded.
    """

    def __init__(self, meter: Meter, *, is_foreign: bool = False) -> None:
        self.event_name = meter.event_name
        self._scaled = rounded if is_foreign else scaled
        self._kind, self._key = meter.kind, meter.key or ""
        self._takes_text = meter.numbers == "text"
        self._passes = compile_filter(meter.filter) if meter.filter else None

    def of(self, properties: Sequence[Mapping[str, Any]]) -> list[int | None]:
        """The quantity of each event times 10²⁴, None where the meter reads none of it.

        Properties are integers, decimals, texts and booleans; more than 24 places raise ValueError, unless foreign.
        """
        passed = (
            self._passes(lambda key: [found.get(key, UNSET) for found in properties])
            if self._passes
            else [True] * len(properties)
        )
        return [
            self._one(found) if passes else None for found, passes in zip(properties, passed, strict=True)
        ]

    def _one(self, properties: Mapping[str, Any]) -> int | None:
        if AGGREGATES[self._kind].reads == "nothing":
            return scaled(1)
        value = properties.get(self._key)
        if self._takes_text:
            value = number_of(value)
        return self._scaled(value) if kind_of(value) == "number" else None  # type: ignore[arg-type]


def _is_rolled_up(ours: Meter, theirs: Meter) -> bool:
    keys = ("sum", "count") if ours.kind == "count" else ("sum",)
    is_sum = theirs.kind == "sum" and theirs.key in keys and theirs.filter is None
    return is_sum and theirs.event_name == ours.name + SUFFIX and ours.kind in ADDITIVE


def _definition(meter: Meter) -> tuple[object, ...]:
    return meter.event_name, meter.kind, meter.key, _clause(meter.filter) if meter.filter else None


def _clause(clause: Condition | Filter) -> tuple[object, ...]:
    if isinstance(clause, Filter):
        return clause.conjunction, *map(_clause, clause.clauses)
    # With the kind, as True equals 1.
    return clause.key, clause.operator, kind_of(clause.value), clause.value


def _difference(catalog: Catalog, theirs: Meter) -> str:
    same_name = [own for own in catalog.meters if own.event_name == theirs.event_name]
    if not same_name:
        return f"no meter of the catalog reads {theirs.event_name!r}"
    ours = next((own for own in same_name if own.name == theirs.name), same_name[0])
    for what, a, b in (
        ("aggregation", ours.kind, theirs.kind),
        ("key", ours.key, theirs.key),
        ("filter", ours.filter, theirs.filter),
    ):
        if a != b:
            return f"its {what} differs from that of {ours.name!r} in the catalog"
    return f"its filter differs from that of {ours.name!r} in the catalog"


def micros(at: datetime) -> int:
    """An aware time as microseconds since the epoch."""
    return (at - _EPOCH) // timedelta(microseconds=1)
