"""A customer's usage as the service tells it: totals, standing, bill and buckets, worked out from what is stored."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from tidegate.operators.gate.overage import EXACT, add_up, left_of, live_bill
from tidegate.operators.model.aggregates import AGGREGATES
from tidegate.operators.model.catalog import Catalog, Limit, Meter
from tidegate.operators.model.periods import DAY, HOUR, NEVER_END, period_of
from tidegate.operators.model.ports import StoredTotal
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
from tidegate.serving.views.limit_status import Level, standing

BUCKETS_MAX: Final = 20_000
NONE: Final = Decimal(0)


def period(catalog: Catalog, customer: str, at: int) -> tuple[int, int]:
    """The customer's period that holds this instant (µs)."""
    return period_of(catalog.period_of(customer), catalog.zone_of(customer), at)


def usage_body(
    catalog: Catalog,
    number: int,
    customer: str,
    stored: Sequence[StoredTotal],
    alerts: list[dict[str, Any]],
    unmetered: Sequence[UnmeteredBody] = (),
    *,
    now: int,
    at: int,
    hours: int,
    days: int,
) -> UsageBody:
    """The usage in the period that holds `at`, and buckets of so many hours and days before `now`; all in µs."""
    start, end = period(catalog, customer, at)
    current = {
        one.total.meter: one for one in stored if one.total.window == "period" and one.total.start == start
    }
    meters = [_meter(catalog, customer, meter, current.get(meter.name)) for meter in catalog.meters]
    bill = add_up(Decimal(meter.bill) for meter in meters)
    spend = catalog.spend_cap_of(customer)
    return UsageBody(
        customer,
        catalog.plan_of(customer).name,
        catalog.zone_of(customer),
        instant(now),
        number,
        period_body(start, end),
        meters,
        exact(bill),
        SpendBody(exact(spend.cap), spend.on_cap, exact(left_of(spend.cap, bill)))
        if spend and spend.cap is not None
        else None,
        _buckets(stored, "hour", now - hours * HOUR, now),
        _buckets(stored, "day", now - days * DAY, now),
        alerts,
        list(unmetered),
    )


def period_body(start: int, end: int) -> PeriodBody:
    return PeriodBody(instant(start), None if end == NEVER_END else instant(end))


def _meter(catalog: Catalog, customer: str, meter: Meter, found: StoredTotal | None) -> MeterUsage:
    limit = catalog.limit_of(customer, meter.name)
    known = catalog.customers.get(customer)
    total = Decimal(found.total.total) if found else NONE
    stands = standing(meter.name, limit, total, meter.kind)
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
        maybe(left_of(limit.cap, total)) if limit.cap is not None else None,
        maybe(stands.share),
        LEVELS[stands.level],
        stands.words,
        exact(live_bill(limit, total)),
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
