"""A customer's usage as the service answers it: totals, limit status, bill and buckets, from what is stored."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from tidegate.operators.columns.quantity import to_decimal
from tidegate.operators.gate.customer_limits import CatalogLimits
from tidegate.operators.gate.decision import AccountView
from tidegate.operators.gate.overage import EXACT, compute_live_bill
from tidegate.operators.model.aggregates import AGGREGATES
from tidegate.operators.model.catalog import Catalog, Limit, Meter, VersionedCatalog
from tidegate.operators.model.periods import DAY, HOUR, NEVER_END, find_period
from tidegate.operators.model.ports import Held, StoredTotal
from tidegate.operators.model.records import Total, Window
from tidegate.serving.http.schemas import (
    Bucket,
    MeterUsage,
    PeriodBody,
    SpendBody,
    ThresholdBody,
    UnmeteredBody,
    UsageBody,
    exact,
)
from tidegate.serving.http.serialization import label, limit_body, maybe, when
from tidegate.serving.views.formatting import instant
from tidegate.serving.views.limit_status import (
    Level,
    bill,
    current_totals,
    limit_status,
    remaining,
    view_of,
)

BUCKETS_MAX: Final = 20_000


def period(catalog: Catalog, customer: str, at: int) -> tuple[int, int]:
    """Return the customer's period that holds this instant (µs)."""
    return find_period(catalog.period_of(customer), catalog.zone_of(customer), at)


def usage_body(
    version: VersionedCatalog,
    customer: str,
    stored: Sequence[StoredTotal],
    held: Held | None,
    alerts: list[dict[str, Any]],
    unmetered: Sequence[UnmeteredBody] = (),
    *,
    now: int,
    at: int,
    hours: int,
    days: int,
) -> UsageBody:
    """Return the usage in the period that holds `at`, and buckets of so many hours and days before `now`; all in µs.

    `held` is what is held at `now`, of which a period that has ended has nothing.
    """
    number, catalog = version.number, version.catalog
    own = CatalogLimits(catalog, number).find(customer)
    start, end = own.find_period(at)
    current = current_totals(stored, start)
    totals = {meter: one.total for meter, one in current.items()}
    view = view_of(own, totals, held if start <= now < end else None, at)
    meters = [_meter(catalog, view, meter, current.get(meter.name)) for meter in catalog.meters]
    return UsageBody(
        customer,
        catalog.plan_of(customer).name,
        catalog.zone_of(customer),
        instant(now),
        number,
        period_body(start, end),
        meters,
        exact(bill(view)),
        _spend(view),
        _buckets(stored, "hour", now - hours * HOUR, now),
        _buckets(stored, "day", now - days * DAY, now),
        alerts,
        list(unmetered),
    )


def period_body(start: int, end: int) -> PeriodBody:
    return PeriodBody(instant(start), None if end == NEVER_END else instant(end))


def _spend(view: AccountView) -> SpendBody | None:
    spend = view.own.spend
    if spend is None or spend.cap is None:
        return None
    # Asked for nothing, the gate says how much of the spend cap is left.
    left = view.decide({}).remaining
    assert left is not None
    return SpendBody(exact(spend.cap), spend.on_cap, exact(left))


def _meter(catalog: Catalog, view: AccountView, meter: Meter, found: StoredTotal | None) -> MeterUsage:
    limit = view.own.limits[meter.name]
    known = catalog.customers.get(view.own.customer)
    status = limit_status(view, meter.name)
    total = status.total
    record: Total | None = found.total if found else None
    return MeterUsage(
        meter.name,
        meter.unit,
        meter.kind,
        AGGREGATES[meter.kind].is_additive,
        exact(total),
        record.events if record else 0,
        record.late if record else 0,
        record.corrected if record else 0,
        exact(record.adjustment) if record else "0",
        record.version if record else 0,
        when(record.as_of) if record else None,
        when(found.written_at) if found else None,
        limit_body(limit),
        _thresholds(limit, total),
        bool(known and meter.name in known.limits),
        maybe(remaining(view, meter.name)),
        maybe(status.share),
        LEVELS[status.level],
        status.words,
        exact(compute_live_bill(limit, total)),
        exact(to_decimal(view.account.held.get(meter.name, 0))),
    )


LEVELS: Final[dict[Level, Any]] = {level: level.name.lower() for level in Level}


def _thresholds(limit: Limit, total: Decimal) -> list[ThresholdBody]:
    of = limit.cap if limit.cap is not None else limit.included
    found = []
    for threshold in limit.thresholds:
        value = threshold.absolute
        if threshold.percent is not None:
            value = None if of is None else EXACT.scaleb(EXACT.multiply(of, threshold.percent), -2)
        is_reached = value is not None and (total >= value if value else total > 0)
        found.append(ThresholdBody(label(threshold), maybe(value), is_reached))
    return found


def _buckets(stored: Iterable[StoredTotal], window: Window, after: int, now: int) -> list[Bucket]:
    found = [
        one.total
        for one in stored
        if one.total.window == window and after < one.total.end and one.total.start <= now
    ]
    return [
        Bucket(total.meter, instant(total.start), instant(total.end), exact(total.total), total.events)
        for total in _newest(found, BUCKETS_MAX)
    ]


def _newest(found: list[Total], most: int) -> list[Total]:
    """Return the totals of the newest starts, of all meters alike, as far as there are at most so many."""
    if len(found) <= most:
        return found
    starts = sorted((total.start for total in found), reverse=True)
    # All of a start or none, so that no meter ends sooner than another.
    return [total for total in found if total.start > starts[most]] or found[-most:]
