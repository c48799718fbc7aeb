"""The provider's records, as kept in memory and in the database. Times are µs since the epoch, UTC."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from simulator.state.clock import Hand
from simulator.state.instants import Interval
from simulator.state.switches import Switches

Scalar = str | int | float | bool
Metadata = dict[str, Scalar]

Status = Literal["pending", "active", "on_hold", "paused", "cancelled", "failed", "expired", "past_due"]
Aggregate = Literal["count", "sum", "max", "last"]
Overage = Literal["forgive_at_reset", "invoice_at_billing", "carry_deficit", "carry_deficit_auto_repay"]
KeyMode = Literal["read_write", "read_only", "revoked"]

Charge = Literal["new", "renewal", "plan_change", "pause"]
PaymentStatus = Literal["succeeded", "failed", "processing", "cancelled"]

EVENTS_MAX = 1000


class EventInput(msgspec.Struct, gc=False):
    """An event of a request. A time without offset, a null or a nested value does not decode."""

    event_id: str
    customer_id: str
    event_name: str
    timestamp: Annotated[datetime, Meta(tz=True)] | None = None
    metadata: Metadata | None = None


class IngestBody(msgspec.Struct, gc=False):
    events: Annotated[list[EventInput], Meta(min_length=1, max_length=EVENTS_MAX)]


class StoredEvent(msgspec.Struct, gc=False):
    """An event as stored; `position` numbers everything ever stored, `stored_at` is never shown to clients."""

    position: int
    event_id: str
    customer_id: str
    event_name: str
    at: int
    stored_at: int
    metadata: Metadata | None


class Customer(msgspec.Struct, kw_only=True):
    customer_id: str
    email: str
    name: str
    created_at: int
    metadata: Metadata = {}
    phone_number: str | None = None


class Aggregation(msgspec.Struct):
    type: Aggregate
    key: str | None = None


class Meter(msgspec.Struct, kw_only=True):
    """A meter. `archived` has the spans in which it does not count; the last is open while it is archived."""

    id: str
    name: str
    event_name: str
    aggregation: Aggregation
    measurement_unit: str
    created_at: int
    updated_at: int
    description: str | None = None
    filter: dict[str, Any] | None = None
    archived: list[tuple[int, int | None]] = []

    @property
    def is_archived(self) -> bool:
        return bool(self.archived) and self.archived[-1][1] is None


class PricedMeter(msgspec.Struct, kw_only=True):
    """A meter of a product: billed by the unit (`price_per_unit`, in cents), or in credits."""

    meter_id: str
    price_per_unit: str | None = None
    free_threshold: Annotated[int, Meta(ge=0)] | None = None
    credit_entitlement_id: str | None = None
    meter_units_per_credit: str | None = None
    name: str | None = None
    description: str | None = None
    measurement_unit: str | None = None


class UsagePrice(msgspec.Struct, kw_only=True, tag_field="type", tag="usage_based_price"):
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")]
    fixed_price: Annotated[int, Meta(ge=0)]
    payment_frequency_count: Annotated[int, Meta(ge=1)]
    payment_frequency_interval: Interval
    subscription_period_count: Annotated[int, Meta(ge=1)]
    subscription_period_interval: Interval
    meters: list[PricedMeter] | None = None
    discount: int = 0
    purchasing_power_parity: bool = False
    tax_inclusive: bool | None = False


class AttachedCredit(msgspec.Struct, kw_only=True):
    """Credits that a product grants in each cycle."""

    credit_entitlement_id: str
    credits_amount: str
    expires_after_days: int | None = None
    low_balance_threshold_percent: Annotated[int, Meta(ge=0, le=100)] | None = None
    overage_enabled: bool | None = None
    overage_behavior: Overage | None = None
    overage_limit: str | None = None


class Product(msgspec.Struct, kw_only=True):
    product_id: str
    name: str
    price: UsagePrice
    tax_category: str
    created_at: int
    credit_entitlements: list[AttachedCredit] = []
    metadata: Metadata = {}
    description: str | None = None


class Cycle(msgspec.Struct, kw_only=True):
    """A billing cycle, closed at the start and open at the end, with the meters and prices it was opened with.

    `deducted` is what the credit worker has taken for each meter so far, in credits. `charge` is why a payment was made
    when it opened, `amount` the plan's part of it, None for the product's price.
    """

    start: int
    end: int
    meters: list[PricedMeter]
    closed_at: int | None = None
    deducted: dict[str, str] = {}
    charge: Charge = "renewal"
    product_id: str = ""
    amount: int | None = None


class PlanCharge(msgspec.Struct, kw_only=True):
    """What a change of plan within a cycle cost, for `factor` of a full period."""

    at: int
    end: int
    amount: int
    factor: str


class ScheduledChange(msgspec.Struct, kw_only=True):
    """A change of plan that takes place at the end of the current cycle."""

    id: str
    product_id: str
    quantity: int
    created_at: int


class Subscription(msgspec.Struct, kw_only=True):
    """A subscription. `anchor` is the instant from which the boundaries of its cycles are counted."""

    subscription_id: str
    customer_id: str
    product_id: str
    status: Status
    created_at: int
    anchor: int
    cycles: list[Cycle]
    quantity: int = 1
    cancel_at_next_billing_date: bool = False
    cancelled_at: int | None = None
    expires_at: int | None = None
    paused_at: int | None = None
    trial_period_days: int = 0
    metadata: Metadata = {}
    plan_charges: list[PlanCharge] = []
    scheduled: ScheduledChange | None = None

    @property
    def current(self) -> Cycle:
        return self.cycles[-1]


class Entitlement(msgspec.Struct, kw_only=True):
    """A kind of credit."""

    id: str
    name: str
    unit: str
    precision: Annotated[int, Meta(ge=0, le=10)]
    overage_enabled: bool
    rollover_enabled: bool
    created_at: int
    updated_at: int
    overage_behavior: Overage = "forgive_at_reset"
    overage_limit: int | None = None
    expires_after_days: int | None = None
    currency: str | None = None
    price_per_unit: str | None = None
    description: str | None = None
    max_rollover_count: int | None = None
    rollover_percentage: int | None = None
    rollover_timeframe_count: int | None = None
    rollover_timeframe_interval: Interval | None = None
    deleted: bool = False


class Grant(msgspec.Struct, kw_only=True):
    id: str
    initial: str
    remaining: str
    source_type: Literal["subscription", "one_time", "addon", "api", "rollover"]
    created_at: int
    updated_at: int
    expires_at: int | None = None
    expired: bool = False
    source_id: str | None = None
    metadata: Metadata = {}


class Entry(msgspec.Struct, kw_only=True):
    """A line of a credit ledger; amounts are decimal texts."""

    id: str
    transaction_type: str
    amount: str
    is_credit: bool
    balance_before: str
    balance_after: str
    overage_before: str
    overage_after: str
    created_at: int
    grant_id: str | None = None
    reason: str | None = None
    metadata: Metadata = {}


class Balance(msgspec.Struct, kw_only=True):
    """A customer's credits of one kind, with the ledger that led to them."""

    id: str
    entitlement_id: str
    customer_id: str
    created_at: int
    updated_at: int
    overage: str = "0"
    grants: list[Grant] = []
    entries: list[Entry] = []
    idempotency_keys: list[str] = []


class Movement(msgspec.Struct, kw_only=True):
    """A movement in a wallet, signed, in the currency's smallest unit."""

    id: str
    amount: int
    created_at: int
    reason: str | None = None
    idempotency_key: str | None = None


class Wallet(msgspec.Struct, kw_only=True):
    """A customer's money of one currency."""

    customer_id: str
    currency: str
    created_at: int
    updated_at: int
    movements: list[Movement] = []

    @property
    def balance(self) -> int:
        return sum(one.amount for one in self.movements)


class Endpoint(msgspec.Struct, kw_only=True):
    """A receiver of webhooks. `old_secret` also signs until `old_until`."""

    id: str
    url: str
    secret: str
    created_at: int
    updated_at: int
    description: str = ""
    metadata: dict[str, str] = {}
    headers: dict[str, str] = {}
    filter_types: list[str] | None = None
    disabled: bool = False
    rate_limit: int | None = None
    idempotency_key: str | None = None
    old_secret: str | None = None
    old_until: int = 0

    def __repr__(self) -> str:
        return f"Endpoint(id={self.id!r}, url={self.url!r})"


class Delivery(msgspec.Struct, kw_only=True):
    """A queued webhook: its object, how often it was tried, and when it is due."""

    id: str
    endpoint_id: str
    type: str
    subject: str
    emitted_at: int
    due_at: int
    attempts: int = 0
    state: Literal["waiting", "delivered", "given_up"] = "waiting"


class Memory(msgspec.Struct, kw_only=True):
    """Everything else that must survive a kill, as one record."""

    seed: int
    hand: Hand
    business_id: str
    keys: dict[str, KeyMode] = {}
    switches: Switches = Switches()
    tier: str = "0"
    numbers: dict[str, int] = {}
    skews: dict[str, str] = {}
    tombstones: list[str] = []
    next_credit_run: int = 0

    def __repr__(self) -> str:
        return f"Memory(seed={self.seed}, tier={self.tier!r})"
