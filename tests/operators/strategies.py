"""What Hypothesis draws from: numbers, filters, limits, catalogs and events, small and fond of edges.

Properties are JSON texts, as in tests/reference/traffic.py, so that an event is written exactly as it was drawn.
"""

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.reference.traffic import DAY, HOUR, MINUTE, Sent
from tidegate.operators.model.catalog import (
    Catalog,
    Condition,
    Customer,
    Filter,
    Limit,
    Meter,
    Plan,
    Threshold,
)
from tidegate.operators.model.periods import Anchored, Billing, Calendar, Never, Policy

NOON = 1_768_046_400_000_000
"""2026-01-10T12:00Z, a quiet hour in every zone."""

METERS = (
    Meter("calls", "call", "count"),
    Meter("units", "call", "sum", "n"),
    Meter("peak", "call", "max", "n", Filter("or", (Condition("region", "not_equals", "eu"),))),
    Meter("level", "call", "last", "n"),
    Meter("floor", "call", "min", "n"),
    Meter("regions", "call", "unique", "region"),
)


LATER = Meter("later", "unmetered", "sum", "n", numbers="text")
"""A meter of a name that no other takes: catalogs have it or not."""

LARGEST = ("1000000000000000", "999999999999999." + "9" * 24)
# Beyond Decimal's exponents: four values, two of them equal to 0 or to another one.
FAR = (
    "1e99999999999999999999",
    "10E+99999999999999999998",
    "-1e99999999999999999999",
    "1e-99999999999999999999",
    "0e99999999999999999999",
    "0",
    "9" * 5000,
)


def quantities() -> SearchStrategy[str]:
    """JSON numbers that a meter may read, in several spellings."""
    return st.one_of(
        st.integers(0, 20).map(str),
        st.sampled_from(
            (
                "0.1",
                "0.2",
                "0.30",
                "1.0",
                "1e0",
                "10e-1",
                "2.5",
                "0",
                "1e15",
                "1e-24",
                "0e999999999999999999999",
            )
        ),
        st.sampled_from(LARGEST),
        st.decimals(0, 1000, places=6).map(lambda number: f"{number:f}"),
        st.floats(0, 1e15).map(repr),
    )


def values() -> SearchStrategy[str]:
    """Anything that a property may be, mostly a quantity."""
    odd = st.sampled_from(
        ('"1"', "true", "false", "null", "[]", '{"n":1}', '""', '"eu"', "-1", "1e16", "1e-25")
    )
    return st.one_of(quantities(), quantities(), quantities(), odd)


def properties() -> SearchStrategy[dict[str, str]]:
    """An event's properties."""
    regions = st.sampled_from(('"eu"', '"us"', '""', "1", "1.0", "true", "null", *FAR))
    return st.fixed_dictionaries({}, optional={"n": values(), "region": regions})


def conditions() -> SearchStrategy[Condition]:
    """Conditions of every operator on text, number and boolean."""
    numbers = st.one_of(st.integers(-5, 5), st.decimals(-5, 5, places=1))
    text = st.sampled_from(("", "e", "eu", "EU"))
    key = st.sampled_from(("n", "region"))
    return st.one_of(
        st.builds(
            Condition, key, st.sampled_from(("equals", "not_equals")), st.one_of(numbers, text, st.booleans())
        ),
        st.builds(Condition, key, st.sampled_from(("contains", "does_not_contain")), text),
        st.builds(
            Condition,
            key,
            st.sampled_from(
                ("greater_than", "greater_than_or_equals", "less_than", "less_than_or_equals"),
            ),
            numbers,
        ),
    )


def filters(depth: int = 3) -> SearchStrategy[Filter]:
    """And/or over conditions, nested at most three levels deep."""
    clause = conditions() if depth == 1 else st.one_of(conditions(), filters(depth - 1))
    clauses = st.lists(clause, min_size=1, max_size=3).map(tuple)
    return st.builds(Filter, st.sampled_from(("and", "or")), clauses)


def limits() -> SearchStrategy[Limit]:
    """Limits that a handful of events pass, their levels at distinct values."""
    amounts = st.one_of(st.none(), st.integers(0, 20).map(Decimal), st.just(Decimal("2.5")))
    return st.builds(
        _limit, amounts, amounts, st.sets(st.integers(0, 30), max_size=3), st.sampled_from((0, 10, 100))
    )


def _limit(included: Decimal | None, cap: Decimal | None, levels: set[int], hysteresis: int) -> Limit:
    base = cap if cap is not None else included
    if base:
        thresholds = [Threshold(percent=Decimal(level * 5)) for level in sorted(levels)]
    else:
        thresholds = [Threshold(absolute=Decimal(level) / 2) for level in sorted(levels)]
    return Limit(included, cap, thresholds=tuple(thresholds), hysteresis_pct=Decimal(hysteresis))


def adjustments() -> SearchStrategy[Decimal]:
    """Amounts to adjust by, up and down: small, larger than any reading, and too much for a total."""
    large = st.sampled_from(
        ("1e15", "1e18", "9007199254740993.5", "1e27", "1e30", "1.000000000000000000000001e30")
    )
    either = st.sampled_from((1, -1))
    return st.one_of(
        st.decimals(-30, 30, places=3),
        st.builds(lambda text, sign: Decimal(text).copy_sign(sign), large, either),
    )


def _at(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 1, day, hour, minute, tzinfo=UTC)


POLICIES: tuple[Policy, ...] = (
    Calendar("hour"),
    Calendar("day"),
    Calendar("week"),
    Calendar("month"),
    Anchored(1, "day", _at(8, 6, 30)),
    Anchored(2, "day", _at(8, 6, 30)),
    Anchored(1, "month", _at(1, 0)),
    Anchored(3, "month", _at(1, 0)),
    Billing((_at(8, 6, 30), _at(9, 12), _at(10, 12, 30))),
    Billing((_at(8, 6, 30), _at(10, 11))),
    Billing((_at(8, 6, 30),)),
    Billing((_at(9, 12), _at(11, 0))),
    Never(),
)
"""Periods of which several begin at one instant and end at others, around NOON and before."""


def policies() -> SearchStrategy[Policy]:
    """Mostly short periods, as in them most is late."""
    return st.one_of(st.just(POLICIES[0]), st.sampled_from(POLICIES))


def catalogs() -> SearchStrategy[Catalog]:
    """The same meters, mostly without LATER, under any limits, periods and zones; one customer may have its own."""
    chosen = st.dictionaries(st.sampled_from([meter.name for meter in METERS]), limits())
    meters = st.sampled_from((METERS, METERS, (*METERS, LATER)))
    zones = st.sampled_from(("Asia/Kathmandu", "UTC", "Europe/Berlin"))
    plans = st.builds(Plan, st.just("free"), policies(), zones, chosen)
    customers: SearchStrategy[dict[str, Customer]] = st.one_of(
        st.just({}),
        st.builds(
            Customer,
            st.just("acme"),
            plan=st.just("free"),
            zone=st.one_of(st.none(), zones),
            period=policies(),
        ).map(lambda customer: {customer.name: customer}),
    )
    return st.builds(
        lambda meters, plan, customers, on_unmetered: Catalog(
            meters, {"free": plan}, customers, default_plan="free", on_unmetered=on_unmetered
        ),
        meters,
        plans,
        customers,
        st.sampled_from(("count", "count", "count", "dead_letter")),
    )


def instants() -> SearchStrategy[int]:
    """Times around noon: the same few, close to an hour's edge, hours and days before."""
    near = st.sampled_from((-HOUR, -15 * MINUTE, -1, 0, 1, 15 * MINUTE, 45 * MINUTE, HOUR))
    wide = st.integers(-2 * DAY, 2 * HOUR)
    late = st.integers(-6 * HOUR, 0)
    return st.one_of(near, late, wide).map(lambda offset: NOON + offset)


def events() -> SearchStrategy[Sent]:
    """Events of few customers under few ids, so that identities meet."""
    return st.builds(
        Sent,
        cloud=st.booleans(),
        customer=st.sampled_from(("acme", "a-b,c", "Zoë")),
        source=st.just("api"),
        id=st.integers(1, 12).map(str),
        name=st.sampled_from(("call", "call", "call", "unmetered", "calls")),
        at=instants(),
        properties=st.one_of(properties(), st.none()),
    )
