"""The catalog: meters, plans, caps, periods and customers, as values.

`settings/catalog/file.py` reads it from YAML; the flow, the gate and the reports query it. It never changes after it is
built, so any two readers that hold the same catalog decide alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, NamedTuple

from tidegate.operators.model.aggregates import Kind
from tidegate.operators.model.periods import Calendar, Policy

OnCap = Literal["block", "allow", "warn"]
Numbers = Literal["strict", "text"]
OnUnmetered = Literal["count", "dead_letter"]
Fail = Literal["open", "closed"]
Operator = Literal[
    "equals",
    "not_equals",
    "greater_than",
    "greater_than_or_equals",
    "less_than",
    "less_than_or_equals",
    "contains",
    "does_not_contain",
]


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of an event's property with a constant."""

    key: str
    operator: Operator
    value: str | int | Decimal | bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions and nested filters under one conjunction; at most three levels, ten clauses each."""

    conjunction: Literal["and", "or"]
    clauses: tuple["Condition | Filter", ...]


@dataclass(frozen=True, slots=True)
class Meter:
    """What is counted: the events of one name that pass the filter, under one aggregation.

    `key` names the property that is aggregated; only `count` has none. `numbers` says whether a text that is a number
    in JSON's notation is read as that number.
    """

    name: str
    event_name: str
    kind: Kind
    key: str | None = None
    filter: Filter | None = None
    unit: str = ""
    numbers: Numbers = "strict"


def explain_clash(old: Meter, new: Meter) -> str | None:
    """Return why `new` cannot continue what `old`, of the same name, has counted; None if it can."""
    if (old.kind, old.key) == (new.kind, new.key):
        return None
    counted = f"{old.kind} of {old.key!r}" if old.key is not None else old.kind
    return (
        f"meter {new.name!r}: its aggregation is fixed once it has counted, as {counted}; "
        "give the new one another name"
    )


@dataclass(frozen=True, slots=True)
class Tier:
    """Overage up to `up_to` units beyond the included quantity (None: unlimited) costs `price` each."""

    up_to: Decimal | None
    price: Decimal


@dataclass(frozen=True, slots=True)
class Threshold:
    """A level that raises an alert: `percent` of the limit, or an `absolute` quantity. One of the two is set."""

    percent: Decimal | None = None
    absolute: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """What a customer may use of one meter in one period, and which alerts and prices apply on the way.

    `max_lag` (µs) is how old totals may be before `fail` decides; None trusts totals of any age.
    """

    included: Decimal | None = None
    cap: Decimal | None = None
    on_cap: OnCap = "block"
    grace_pct: Decimal = Decimal(0)
    fail: Fail = "open"
    shadow: bool = False
    thresholds: tuple[Threshold, ...] = ()
    hysteresis_pct: Decimal = Decimal(0)
    tiers: tuple[Tier, ...] = ()
    max_lag: int | None = None


@dataclass(frozen=True, slots=True)
class SpendCap:
    """What a customer's overage of all meters may cost in one period, in the unit of the tiers' prices.

    Without a cap the cost is unlimited, whatever the plan says.
    """

    cap: Decimal | None = None
    on_cap: OnCap = "block"
    grace_pct: Decimal = Decimal(0)
    fail: Fail = "open"
    shadow: bool = False
    max_lag: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The limits that customers share, per meter and of money, and the period they are billed by.

    `billing_id` is the id of the billing provider's product for the plan.
    """

    name: str
    period: Policy = field(default_factory=lambda: Calendar("month"))
    zone: str | None = None
    limits: Mapping[str, Limit] = field(default_factory=dict)
    spend_cap: SpendCap | None = None
    billing_id: str | None = None


@dataclass(frozen=True, slots=True)
class BilledBy:
    """The provider's subscription that sets a customer's period, and its product."""

    subscription: str
    product: str


@dataclass(frozen=True, slots=True)
class Customer:
    """A customer's plan and what differs from it. `limits` and `spend_cap` are complete: they replace the plan's."""

    name: str
    plan: str
    zone: str | None = None
    period: Policy | None = None
    limits: Mapping[str, Limit] = field(default_factory=dict)
    billing_id: str | None = None
    spend_cap: SpendCap | None = None
    billed_by: BilledBy | None = None


NO_PLAN = Plan("")
NO_LIMIT = Limit()


@dataclass(frozen=True)
class Catalog:
    """Everything that may be configured about metering, validated as a whole.

    `meters` keep the file's order. A customer who is not listed has the default plan; without one, the customer is
    metered by calendar month in UTC and has no limits. `on_unmetered` says what happens to an event that no meter
    reads: it is accepted and counted, or it becomes a dead letter.
    """

    meters: tuple[Meter, ...] = ()
    plans: Mapping[str, Plan] = field(default_factory=dict)
    customers: Mapping[str, Customer] = field(default_factory=dict)
    default_plan: str | None = None
    on_unmetered: OnUnmetered = "count"

    def plan_of(self, customer: str) -> Plan:
        """Return the customer's plan; for a customer who is not listed the default plan, or one without limits."""
        known = self.customers.get(customer)
        name = known.plan if known else self.default_plan
        return NO_PLAN if name is None else self.plans[name]

    def zone_of(self, customer: str) -> str:
        """Return the IANA zone of the customer's days and periods: the customer's, else the plan's, else UTC."""
        known = self.customers.get(customer)
        return (known and known.zone) or self.plan_of(customer).zone or "UTC"

    def period_of(self, customer: str) -> Policy:
        """Return the policy for the customer's billing periods."""
        known = self.customers.get(customer)
        return (known and known.period) or self.plan_of(customer).period

    def limit_of(self, customer: str, meter: str) -> Limit:
        """Return the limit for a customer and meter; `NO_LIMIT` if none is set."""
        known = self.customers.get(customer)
        if known and meter in known.limits:
            return known.limits[meter]
        return self.plan_of(customer).limits.get(meter, NO_LIMIT)

    def spend_cap_of(self, customer: str) -> SpendCap | None:
        """Return what the customer's overage may cost, None if that is unlimited."""
        known = self.customers.get(customer)
        found = (known and known.spend_cap) or self.plan_of(customer).spend_cap
        return found if found and found.cap is not None else None


class VersionedCatalog(NamedTuple):
    """A catalog with the version that it is of: what every follower holds and passes on.

    `number` is 0 where the store has no such version: a catalog that is noted beside the state, or was given. Then
    `applied_at` (µs since the epoch) is 0 and `origin` is empty.
    """

    number: int
    catalog: Catalog
    applied_at: int = 0
    origin: str = ""


NO_CATALOG = VersionedCatalog(0, Catalog())
