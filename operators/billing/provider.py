"""The billing provider's meters, subscriptions and events as values, and the matching of its meters to ours.

Two meters are the same if they count the same: event name, aggregation, key and filter. Names are for people, and may
differ. Where usage is rolled up (operators/billing/rollup.py), the provider adds up what we counted: that meter is the
same too.
Source: Dodo Payments, meters and subscriptions; openapi 1.53.2.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from tidegate.operators.billing.rollup import SUFFIX
from tidegate.operators.columns.quantity import scale, scale_rounded
from tidegate.operators.events.filters import compile_filter, kind_of
from tidegate.operators.events.readings import to_number
from tidegate.operators.model.aggregates import ADDITIVE, AGGREGATES, AT_PROVIDER, Kind
from tidegate.operators.model.catalog import Catalog, Condition, Filter, Meter

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Aggregation(msgspec.Struct, frozen=True):
    """A meter's aggregation in the API."""

    type: str
    key: str | None = None


class ProviderMeter(msgspec.Struct, frozen=True, kw_only=True):
    """A meter in the API."""

    id: str
    name: str
    event_name: str
    aggregation: Aggregation
    created_at: datetime
    measurement_unit: str = ""
    filter: dict[str, Any] | None = None
    # Not a field of the API: it depends on which list the meter was found in.
    archived: bool = False


class SubscribedMeter(msgspec.Struct, frozen=True, kw_only=True):
    """A meter of a subscription; only the full form of a subscription has it."""

    meter_id: str
    name: str = ""
    free_threshold: int = 0


class CreditMeter(msgspec.Struct, frozen=True, kw_only=True):
    """A meter of a subscription that is paid in credits."""

    meter_id: str
    credit_entitlement_id: str
    meter_units_per_credit: str


class SubscribedCustomer(msgspec.Struct, frozen=True):
    """The customer of a subscription."""

    customer_id: str


class ScheduledChange(msgspec.Struct, frozen=True):
    """A change of plan that is scheduled."""

    product_id: str = ""
    effective_at: datetime | None = None


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription in the API. Its current period is [previous_billing_date, next_billing_date)."""

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
    # Not a field of the API: the short form in lists leaves the meters out.
    is_short: bool = False

    @property
    def is_metered(self) -> bool:
        """Whether the subscription bills usage; the short form does not say, so it counts as metered."""
        return self.is_short or bool(self.meters or self.meter_credit_entitlement_cart)


class MeterUsage(msgspec.Struct, frozen=True, kw_only=True):
    """A meter's total in one period, and its price per unit in the smallest unit, which the API rounds."""

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
    """The period of a subscription that a payment pays for."""

    subscription_id: str
    starts_at: datetime
    ends_at: datetime


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment in the API. A renewal bills the usage of the cycle before its service period."""

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
    """A credit entitlement and the number of decimal places of its amounts."""

    id: str
    precision: int


class ListedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as the API lists it."""

    event_id: str
    customer_id: str
    event_name: str
    timestamp: datetime
    metadata: dict[str, Any] | None = None


class MatchedMeter(NamedTuple):
    """A meter of the provider and our meter that counts the same; `kind` is how its total adds up at the provider.

    `is_archived` says that it no longer counts.
    """

    id: str
    own_meter: Meter
    provider_meter: Meter
    kind: Kind
    created_at: int
    is_archived: bool = False


class UnmatchedMeter(NamedTuple):
    """A meter of the provider that none of our meters matches; `why` says what differs.

    `like` names our meters that read the same events or have the same name.
    """

    id: str
    name: str
    why: str
    like: frozenset[str] = frozenset()
    is_archived: bool = False


def match_meters(
    catalog: Catalog, meters: Iterable[ProviderMeter]
) -> tuple[dict[str, MatchedMeter], list[UnmatchedMeter]]:
    """Return which of the provider's meters are which of ours, by the provider's ids, and those that match none."""
    found: dict[str, MatchedMeter] = {}
    others: list[UnmatchedMeter] = []
    for meter in meters:
        read = convert_meter(meter)
        if read is None:
            why = f"its aggregation {meter.aggregation.type!r} is unknown"
            others.append(_build_unmatched(catalog, meter, why))
            continue
        ours = [own for own in catalog.meters if is_same_meter(own, read)]
        rolled = [own for own in catalog.meters if _is_rolled_up(own, read)]
        if ours or rolled:
            # If two of our meters count the same, people expect the one of this name.
            own = next((own for own in ours if own.name == meter.name), (ours or rolled)[0])
            kind: Kind = "sum" if rolled and not ours else own.kind
            found[meter.id] = MatchedMeter(
                meter.id, own, read, kind, to_micros(meter.created_at), meter.archived
            )
        else:
            others.append(_build_unmatched(catalog, meter, _describe_difference(catalog, read)))
    return found, others


def _build_unmatched(catalog: Catalog, meter: ProviderMeter, why: str) -> UnmatchedMeter:
    like = {
        own.name
        for own in catalog.meters
        if own.name == meter.name or meter.event_name in (own.event_name, own.name + SUFFIX)
    }
    return UnmatchedMeter(meter.id, meter.name, why, frozenset(like), meter.archived)


def convert_meter(meter: ProviderMeter) -> Meter | None:
    """Return a meter of the provider in our form; None if its aggregation is unknown."""
    kind, key = meter.aggregation.type, meter.aggregation.key
    if kind not in AT_PROVIDER or (AGGREGATES[kind].reads != "nothing" and not key):
        return None
    wanted = convert_filter(meter.filter) if meter.filter else None
    reads = None if AGGREGATES[kind].reads == "nothing" else key
    return Meter(meter.name, meter.event_name, kind, reads, wanted, meter.measurement_unit)


def convert_filter(found: Mapping[str, Any]) -> Filter:
    """Return a filter of the provider in our form; conditions and nested filters may be mixed."""
    clauses = tuple(
        convert_filter(clause)
        if "clauses" in clause
        else Condition(clause["key"], clause["operator"], to_exact(clause["value"]))
        for clause in found["clauses"]
    )
    return Filter(found["conjunction"], clauses)


def to_exact(value: Any) -> Any:
    """Return a JSON value with a float replaced by the decimal that was written."""
    return Decimal(repr(value)) if isinstance(value, float) else value


def is_same_meter(ours: Meter, theirs: Meter) -> bool:
    """Return whether both meters count the same."""
    return _definition(ours) == _definition(theirs)


class MeterReader:
    """Reads the quantities of one meter from events.

    With `is_foreign`, events may come from other producers, so numbers of more than 24 places are rounded.
    """

    def __init__(self, meter: Meter, *, is_foreign: bool = False) -> None:
        self.event_name = meter.event_name
        self._scale = scale_rounded if is_foreign else scale
        self._kind, self._key = meter.kind, meter.key or ""
        self._takes_text = meter.numbers == "text"
        self._passes = compile_filter(meter.filter) if meter.filter else None

    def read(self, properties: Sequence[Mapping[str, Any]]) -> list[int | None]:
        """Return the quantity of each event times 10²⁴, None if the meter reads nothing from it.

        Properties are integers, decimals, texts and booleans.

        Raises:
            ValueError: a number has more than 24 decimal places and the events are not foreign.
        """
        passed = (
            self._passes(lambda key: [found.get(key, UNSET) for found in properties])
            if self._passes
            else [True] * len(properties)
        )
        return [
            self._read_one(found) if passes else None
            for found, passes in zip(properties, passed, strict=True)
        ]

    def _read_one(self, properties: Mapping[str, Any]) -> int | None:
        if AGGREGATES[self._kind].reads == "nothing":
            return scale(1)
        value = properties.get(self._key)
        if self._takes_text:
            value = to_number(value)
        return self._scale(value) if kind_of(value) == "number" else None  # type: ignore[arg-type]


def _is_rolled_up(ours: Meter, theirs: Meter) -> bool:
    keys = ("sum", "count") if ours.kind == "count" else ("sum",)
    is_sum = theirs.kind == "sum" and theirs.key in keys and theirs.filter is None
    return is_sum and theirs.event_name == ours.name + SUFFIX and ours.kind in ADDITIVE


def _definition(meter: Meter) -> tuple[object, ...]:
    return meter.event_name, meter.kind, meter.key, _clause(meter.filter) if meter.filter else None


def _clause(clause: Condition | Filter) -> tuple[object, ...]:
    if isinstance(clause, Filter):
        return clause.conjunction, *map(_clause, clause.clauses)
    # The kind is included because True equals 1 in Python.
    return clause.key, clause.operator, kind_of(clause.value), clause.value


def _describe_difference(catalog: Catalog, theirs: Meter) -> str:
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


def to_micros(at: datetime) -> int:
    """Return an aware time as microseconds since the epoch."""
    return (at - _EPOCH) // timedelta(microseconds=1)
