"""The JSON of the service, as types: what is sent is read by them, and the OpenAPI document is made from them.

Quantities are exact: whole numbers, or decimals as text. Times are RFC 3339, UTC.
"""

from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tidegate.operators.billing.statement import StatementLine
from tidegate.operators.columns.quantity import QUANTITY_MAX
from tidegate.operators.gate.decision import Why
from tidegate.operators.gate.tokens import SECONDS_MAX, SECONDS_MIN
from tidegate.operators.model.aggregates import Kind
from tidegate.serving.http.routing import Nothing

DECIMAL: Final = r"^((0|[1-9][0-9]{0,14})(\.[0-9]{1,24})?|1000000000000000)$"
SIGNED: Final = r"^-?((0|[1-9][0-9]{0,29})(\.[0-9]{1,24})?|10{30})$"
AS_WHOLE: Final = "A whole number that was written with a point; JSON Schema calls that an integer too."
INSTANT: Final = "2026-11-01T00:00:00Z"

CustomerName = Annotated[
    str, Meta(min_length=1, max_length=256, description="The customer.", examples=["acme"])
]
MeterName = Annotated[str, Meta(min_length=1, max_length=100, description="A meter.", examples=["api_calls"])]
EventId = Annotated[
    str, Meta(min_length=1, max_length=1024, description="The id that the event has, or will have.")
]
SourceName = Annotated[
    str, Meta(max_length=1024, description="The event's source; empty for one in Dodo's shape.")
]
Whole = Annotated[int, Meta(ge=0, le=QUANTITY_MAX)]
Integral = Annotated[float, Meta(description=AS_WHOLE)]
Exact = Annotated[str, Meta(pattern=DECIMAL)]
Quantity = Whole | Integral | Exact
Number = Annotated[str, Meta(pattern=r"^-?[0-9]+(\.[0-9]+)?$", description="Exact, as decimal text.")]
Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, examples=[INSTANT])]
Seconds = Annotated[float, Meta(ge=0)]


class Asking(Nothing, frozen=True, forbid_unknown_fields=True):
    """Base of what is sent."""


# What is asked of the gate.


class CheckQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    customer: CustomerName
    meter: MeterName
    quantity: Quantity = 1


Quantities = Annotated[dict[MeterName, Quantity], Meta(min_length=1, max_length=32)]

ONE_OR_SEVERAL: Final = {
    "oneOf": [
        {"required": ["meter"], "not": {"required": ["quantities"]}},
        {"required": ["quantities"], "not": {"anyOf": [{"required": ["meter"]}, {"required": ["quantity"]}]}},
    ]
}


class Check(Nothing, frozen=True, forbid_unknown_fields=True):
    """One meter with its quantity, 1 if absent, or several as `quantities`."""

    schema: ClassVar = ONE_OR_SEVERAL

    customer: CustomerName
    meter: MeterName | UnsetType = UNSET
    quantity: Quantity | UnsetType = UNSET
    quantities: Quantities | UnsetType = UNSET


class DecisionBody(msgspec.Struct, frozen=True, omit_defaults=False, gc=False):
    """May this request pass, and what that rests on: of all caps that apply, the most restrictive one."""

    customer: str
    meter: str
    scope: Annotated[
        Literal["meter", "spend"],
        Meta(description="Whether the numbers are the meter's, or the money of all meters."),
    ]
    allowed: bool
    reason: Why
    used: Number | None
    reserved: Annotated[Number | None, Meta(description="What open reservations hold.")]
    limit: Annotated[Number | None, Meta(description="The cap.")]
    remaining: Number | None
    resets_at: Annotated[Instant | None, Meta(description="When the period ends.")]
    as_of: Annotated[Instant | None, Meta(description="The latest event time that is counted.")]
    lag: Annotated[Seconds | None, Meta(description="How long after it the total was written.")]
    catalog: Annotated[int, Meta(description="The catalog version that was asked.")]
    denied_in_shadow: bool
    degraded: Annotated[bool, Meta(description="The store did not answer, so the cap's own `fail` decided.")]
    detail: str


class ReservationPath(Nothing, frozen=True, forbid_unknown_fields=True):
    id: EventId


class Reserve(Nothing, frozen=True, forbid_unknown_fields=True):
    """Quantities to be held for the event of this customer, source and id, until it comes or for `expires_in`."""

    schema: ClassVar = ONE_OR_SEVERAL

    customer: CustomerName
    id: EventId
    meter: MeterName | UnsetType = UNSET
    quantity: Quantity | UnsetType = UNSET
    quantities: Quantities | UnsetType = UNSET
    source: SourceName = ""
    expires_in: Annotated[int, Meta(ge=1, le=604_800, description="Seconds.")] | Integral = 300


class Commit(Nothing, frozen=True, forbid_unknown_fields=True):
    """What was used: nothing named commits what was held; `quantity` is of its only meter."""

    schema: ClassVar = {"not": {"required": ["quantity", "quantities"]}}

    customer: CustomerName
    source: SourceName = ""
    quantity: Quantity | UnsetType = UNSET
    quantities: Quantities | UnsetType = UNSET


class ReleaseQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    customer: CustomerName
    source: SourceName = ""


class ReceiptBody(msgspec.Struct, frozen=True):
    """What became of a reservation; `exceeded` is by how much more was used than held."""

    customer: str
    id: str
    state: Literal["committed", "settled", "released"]
    exceeded: dict[str, Number]
    expired: Annotated[bool, Meta(description="It was committed after its time; it counts again.")]


class ForwardQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    """What the proxy's own configuration says. Only the customer may be in a header, X-Tidegate-Customer."""

    meter: MeterName
    customer: CustomerName | UnsetType = UNSET
    quantity: Quantity | UnsetType = UNSET
    deny: Annotated[
        Literal[429, 403], Meta(description="The status of a denial. nginx's auth_request takes 403 only.")
    ] = 429


# Events.


UnmeteredReason = Literal[
    "text_number", "not_a_number", "not_a_value", "key_missing", "no_filter_matched", "unknown_name"
]


class EventResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one event; `reason` is one of docs/semantics.md."""

    id: str
    status: Annotated[
        Literal["accepted", "unmetered", "rejected"],
        Meta(description="`unmetered` is accepted too, and no meter of the present catalog reads it."),
    ]
    reason: str = ""
    detail: str = ""
    metered_by: Annotated[
        tuple[str, ...],
        Meta(description="The meters that read it under the present catalog; absent where none does."),
    ] = ()
    unmetered: Annotated[
        str, Meta(description="Why no meter reads it, where it is accepted all the same.")
    ] = ""


class EventWarning(msgspec.Struct, frozen=True):
    """Accepted events that are not metered, for one cause. `partly`: other meters read them, this one does not."""

    reason: UnmeteredReason
    detail: str
    event_name: str
    meter: str
    key: str
    partly: bool
    events: int
    id: Annotated[str, Meta(description="The first of them.")]


class EventsBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """`accepted` events, of which `unmetered` ones are a part, are durable.

    One that was sent before is accepted again and counted once.
    """

    accepted: int
    rejected: int
    results: list[EventResult]
    unmetered: Annotated[int, Meta(description="Of those accepted, how many no meter reads.")] = 0
    warnings: Annotated[list[EventWarning], Meta(description="Why, the first 20 causes.")] = []


# Customers.


class CustomerPath(Nothing, frozen=True, forbid_unknown_fields=True):
    customer: CustomerName


class MeterPath(Nothing, frozen=True, forbid_unknown_fields=True):
    customer: CustomerName
    meter: MeterName


class UsageQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    hours: Annotated[int, Meta(ge=0, le=840, description="How many hours back the hourly buckets go.")] = 48
    days: Annotated[int, Meta(ge=0, le=400, description="How many days back the daily buckets go.")] = 31
    at: (
        Annotated[Instant, Meta(description="Of the period that holds this instant; now if absent.")]
        | UnsetType
    ) = UNSET


class ThresholdBody(msgspec.Struct, frozen=True):
    label: str
    value: Annotated[Number | None, Meta(description="The quantity at which it is reached.")]
    reached: bool


class TierBody(msgspec.Struct, frozen=True):
    up_to: Number | None
    price: Number


class LimitBody(msgspec.Struct, frozen=True):
    """The limit that holds for a customer and meter, whoever set it."""

    included: Number | None
    cap: Number | None
    on_cap: Literal["block", "allow", "warn"]
    grace_pct: Number
    fail: Literal["open", "closed"]
    max_lag: Annotated[
        str, Meta(description="How old totals may be before `fail` decides, such as 5s, or off.")
    ]
    shadow: bool
    thresholds: list[str]
    hysteresis_pct: Number
    tiers: list[TierBody]


class MeterUsage(msgspec.Struct, frozen=True):
    """One meter in the period.

    `level` and `standing` are what the gate says to the least that may be asked for, under all caps: also where open
    holds take what is left, or the spend cap is reached (`(spend)`). Of a level it is the present level that is asked.

    `adds_up` says that totals of parts of the period add up to it, so that a rate and the time to a cap mean something.
    """

    meter: str
    unit: str
    kind: Kind
    adds_up: bool
    total: Number
    events: int
    late: int
    corrected: int
    adjustment: Number
    version: int
    as_of: Instant | None
    written_at: Instant | None
    limit: LimitBody
    thresholds: list[ThresholdBody]
    overridden: Annotated[bool, Meta(description="The customer has a limit that is not the plan's.")]
    remaining: Annotated[Number | None, Meta(description="What is left of the cap, beside what is held.")]
    share: Annotated[Number | None, Meta(description="Percent of the limit, cut off to a whole number.")]
    level: Literal["free", "noted", "overage", "over", "grace", "denied"]
    standing: str
    bill: Annotated[Number, Meta(description="What the overage costs so far.")]
    reserved: Annotated[Number, Meta(description="What open holds hold.")]


class Bucket(msgspec.Struct, frozen=True):
    meter: str
    start: Instant
    end: Instant
    total: Number
    events: int


class PeriodBody(msgspec.Struct, frozen=True):
    start: Instant
    end: Instant | None


class SpendBody(msgspec.Struct, frozen=True):
    cap: Number
    on_cap: Literal["block", "allow", "warn"]
    remaining: Annotated[Number, Meta(description="What is left of the cap, beside what is held.")]


class UnmeteredBody(msgspec.Struct, frozen=True):
    """Accepted events that were not metered, for one cause, since the first start.

    `partly`: other meters read them, this one does not. Times are the events' own; customer and event are those of
    the last one that arrived. An empty name stands for those past the bounds on names.
    """

    event_name: str
    reason: UnmeteredReason
    text: Annotated[str, Meta(description="The cause in a sentence.")]
    meter: str
    key: str
    partly: bool
    events: int
    first_at: Instant
    last_at: Instant
    customer: str
    event_id: str


class UnmeteredQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    customer: CustomerName | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class UnmeteredListBody(msgspec.Struct, frozen=True):
    """What was accepted and not metered.

    `events` counts accepted events that no meter read, of all customers, and `reasons` splits them by reason; both are
    absent where one customer's are asked for, of whom not all causes are kept.
    """

    causes: Annotated[list[UnmeteredBody], Meta(description="By cause, the most events first.")]
    events: int | UnsetType = UNSET
    reasons: dict[str, int] | UnsetType = UNSET


class UsageBody(msgspec.Struct, frozen=True):
    """A customer's usage, bill and limits of one period, and buckets for charts, in the customer's zone."""

    customer: str
    plan: str
    zone: str
    now: Instant
    catalog: int
    period: PeriodBody
    meters: list[MeterUsage]
    bill: Number
    spend_cap: SpendBody | None
    hours: list[Bucket]
    days: list[Bucket]
    alerts: Annotated[list[dict[str, Any]], Meta(description="The newest alerts, the newest first.")]
    unmetered: Annotated[
        list[UnmeteredBody], Meta(description="Events that were accepted and not metered, by cause.")
    ]
    lag: Annotated[
        Seconds | None, Meta(description="How old these totals may be; null where the flow has not said.")
    ] = None
    stale: Annotated[bool, Meta(description="Whether that is more than TIDEGATE_MAX_LAG.")] = False


class LimitEntryBody(Nothing, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a customer's limit on a meter differs in from the plan's. What is absent is as the plan has it."""

    included: Quantity | UnsetType | None = UNSET
    cap: Annotated[Quantity | None, Meta(description="null lifts the plan's cap.")] | UnsetType = UNSET
    on_cap: Literal["block", "allow", "warn"] | UnsetType = UNSET
    grace_pct: Quantity | UnsetType = UNSET
    fail: Literal["open", "closed"] | UnsetType = UNSET
    max_lag: (
        Annotated[str, Meta(min_length=1, max_length=60, description="Such as 5s, or off.")] | UnsetType
    ) = UNSET
    shadow: bool | UnsetType = UNSET
    thresholds: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=60)]], Meta(max_length=32)] | UnsetType
    ) = UNSET
    hysteresis_pct: Quantity | UnsetType = UNSET
    tiers: Annotated[list["TierEntryBody"], Meta(max_length=32)] | UnsetType = UNSET


class TierEntryBody(Nothing, frozen=True, forbid_unknown_fields=True):
    price: Quantity
    up_to: Quantity | None = None


class OverrideBody(msgspec.Struct, frozen=True):
    """A customer's own limit on a meter, null where the plan's holds, and what holds in the end."""

    customer: str
    meter: str
    plan: str
    catalog: int
    override: Annotated[dict[str, Any], Meta(description="The fields that are set.")] | None
    effective: LimitBody


Note = Annotated[str, Meta(max_length=500, description="Why, for the history.")]


class NoteQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    note: Note = ""


# The catalog.


class CatalogBody(msgspec.Struct, frozen=True):
    """A version of the catalog."""

    number: int
    applied_at: Instant
    origin: Literal["file", "cli", "api", "platform"]
    by: str
    note: str
    text: Annotated[str, Meta(description="YAML.")]


class VersionBody(msgspec.Struct, frozen=True):
    number: int
    applied_at: Instant
    origin: Literal["file", "cli", "api", "platform"]
    by: str
    note: str


class VersionsBody(msgspec.Struct, frozen=True):
    versions: list[VersionBody]


class CatalogQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    version: (
        Annotated[int, Meta(ge=1, le=2**53, description="That version; the newest if absent.")] | None
    ) = None


class ListQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class CatalogPut(Nothing, frozen=True, forbid_unknown_fields=True):
    text: Annotated[str, Meta(min_length=1, description="The whole catalog, in YAML.")]
    note: Note = ""


class KeyBody(msgspec.Struct, frozen=True):
    """An API key without its secret; `customer` is whom alone it may read about."""

    auth: Annotated[
        Literal["keys", "none"], Meta(description="none: anybody on this machine may do anything.")
    ]
    name: str
    scopes: list[Literal["ingest", "check", "read", "admin"]]
    customer: str | None


class TokenPost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a customer's token is good."""

    expires_in: Annotated[float, Meta(ge=SECONDS_MIN, le=SECONDS_MAX, description="Seconds.")] = 600


class TokenBody(msgspec.Struct, frozen=True):
    """A customer's token, as `Authorization: Bearer tgt_…` or behind the `#` of an embedded page."""

    token: str
    customer: str
    expires_at: Instant


# Operations.


class AlertsQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    customer: CustomerName | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class AlertsBody(msgspec.Struct, frozen=True):
    """The newest alerts, the newest first, as docs/semantics.md has them."""

    alerts: list[dict[str, Any]]


class DriftBody(msgspec.Struct, frozen=True):
    """What reconciliation found, the newest first."""

    findings: list[dict[str, Any]]


class StatementQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    customer: CustomerName | UnsetType = UNSET
    invoice: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class StatementBody(msgspec.Struct, frozen=True):
    """What is billed for usage, by customer and period; amounts in the currency's smallest unit."""

    lines: list[StatementLine]


class AcknowledgementPost(Nothing, frozen=True, forbid_unknown_fields=True):
    """Drift that is known and accepted: one finding, or all findings of a meter's cause."""

    id: Annotated[str, Meta(min_length=1, max_length=256, pattern="^[A-Za-z0-9_.:-]+$")]
    meter: MeterName
    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    customer: Annotated[
        str, Meta(max_length=256, description="Empty: all customers, which only a cause may be for.")
    ] = ""
    period_start: Annotated[
        Instant | UnsetType, Meta(description="Of one finding; may be left out if the customer has no other.")
    ] = UNSET
    cause: Annotated[
        str, Meta(max_length=100, description="Instead of one finding, such as not_on_plan.")
    ] = ""
    up_to: Annotated[
        Exact | UnsetType, Meta(description="Units accepted; else what is off now, or any amount of a cause.")
    ] = UNSET
    withdraw: Annotated[bool, Meta(description="End the one in force instead.")] = False


class AcknowledgementShown(msgspec.Struct, frozen=True):
    """An acknowledgement in force. Without `up_to` any amount is accepted."""

    id: str
    customer: str
    meter: str
    period_start: Instant | None
    cause: str
    up_to: Number | None
    reason: str
    by: str
    at: Instant


class AcknowledgementsBody(msgspec.Struct, frozen=True):
    """The oldest first."""

    acknowledgements: list[AcknowledgementShown]


class AcknowledgementBody(msgspec.Struct, frozen=True):
    """It is on record: lists follow at once, alerts and the proof with the next run."""

    id: str
    position: str


class AdjustmentPost(Nothing, frozen=True, forbid_unknown_fields=True):
    """A change of a total that no event made. The same again changes nothing more; another under its `id` is a 409."""

    id: Annotated[str, Meta(min_length=1, max_length=256, pattern="^[A-Za-z0-9_.:-]+$")]
    customer: CustomerName
    meter: MeterName
    at: Annotated[Instant, Meta(description="Of the windows that hold this instant.")]
    quantity: Annotated[str, Meta(pattern=SIGNED, description="Signed: it is added.")]
    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class AdjustmentBody(msgspec.Struct, frozen=True):
    """It is on record; the flow applies it within moments, and says so under /v1/explain."""

    id: str
    position: str


class Standing(msgspec.Struct, frozen=True):
    customer: str
    plan: str
    meter: Annotated[str, Meta(description="The meter that is furthest along.")]
    total: Number
    share: Number | None
    level: Literal["free", "noted", "overage", "over", "grace", "denied"]
    standing: str
    events: int
    events_per_second: float
    bill: Number


class ProcessBody(msgspec.Struct, frozen=True):
    """A process of the flow: `away` where nobody answers at its port."""

    process: int
    state: Literal["ready", "stalled", "away"]


class FlowBody(msgspec.Struct, frozen=True):
    """Whether the flow counts: `live`, or `behind` with what is wrong."""

    state: Literal["live", "behind"]
    lag: Annotated[
        Seconds | None, Meta(description="How old totals may be; null where the flow has not said.")
    ]
    shards: int
    behind: Annotated[int, Meta(description="Shards whose totals are older than TIDEGATE_MAX_LAG.")]
    detail: str


class OverviewBody(msgspec.Struct, frozen=True):
    """All customers at a glance, as of `now`."""

    now: Instant
    catalog: int
    customers: int
    events_per_second: float
    counters: dict[str, int]
    balanced: bool
    unmetered: Annotated[
        list[UnmeteredBody], Meta(description="Accepted and not metered, by cause, the most events first.")
    ]
    as_of: Instant | None
    written_at: Annotated[Instant | None, Meta(description="When the flow last wrote a total.")]
    lag: Annotated[Seconds | None, Meta(description="From the newest event's own time to its total.")]
    flow: FlowBody
    top: Annotated[list[Standing], Meta(description="Who sends most, the most first.")]
    near: Annotated[list[Standing], Meta(description="Who is furthest along a limit, the furthest first.")]
    alerts: list[dict[str, Any]]
    drift: list[dict[str, Any]]
    outbox: dict[str, Any] | None
    dead_letters: Annotated[
        dict[str, int] | None,
        Meta(
            description="Those not dealt with by reason, of the flow and of usage that is held back or refused, as far"
            " as they lie on this machine; null where none do."
        ),
    ]
    gate: Annotated[dict[str, int], Meta(description="Decisions of this service since its start, by how.")]
    reconciliation: Annotated[dict[str, Any] | None, Meta(description="The last pass that ended.")]
    processes: Annotated[
        list[ProcessBody], Meta(description="The flow's, where TIDEGATE_METRICS says where they answer.")
    ]


class ExplainQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    at: (
        Annotated[Instant, Meta(description="Of the period that holds this instant; now if absent.")]
        | UnsetType
    ) = UNSET
    events: Annotated[int, Meta(ge=0, le=100, description="How many of the last events to look for.")] = 20


class ExplainBody(msgspec.Struct, frozen=True):
    """How a total came to be."""

    customer: str
    meter: str
    period: PeriodBody
    total: Number
    events: Annotated[int, Meta(description="Readings that are in it: on time, late and corrected ones.")]
    late: int
    corrected: int
    adjustment: Number
    adjustments: Annotated[list[dict[str, Any]], Meta(description="Applied or refused, the newest first.")]
    version: int
    as_of: Instant | None
    written_at: Instant | None
    shard: Annotated[int, Meta(description="The customer's; the counters are all of its customers'.")]
    counters: dict[str, int]
    balanced: bool
    last_events: Annotated[
        list[dict[str, Any]], Meta(description="The newest ones in the billing folder, if it has them.")
    ]
    unmetered: Annotated[
        list[UnmeteredBody],
        Meta(description="The customer's events that this meter did not read, or none did."),
    ]


class HealthBody(msgspec.Struct, frozen=True):
    status: Literal["ok"]


class ReadyQuery(Nothing, frozen=True, forbid_unknown_fields=True):
    check: Annotated[
        Literal["all", "service"],
        Meta(
            description="`service` leaves the flow out: may this process take requests, which caps' `fail` decides?"
        ),
    ] = "all"


class ReadyBody(msgspec.Struct, frozen=True):
    """`catalog_problem` says why the catalog's file, or its newest version, is not in force; else it is empty."""

    status: Literal["ok"]
    catalog: int
    flow: FlowBody
    catalog_problem: str


def exact(quantity: int | str | Decimal) -> str:
    """Return a quantity as it is written out: no exponent, and no zeros at the end of a fraction."""
    text = f"{Decimal(quantity):f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"
