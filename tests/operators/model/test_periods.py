"""Periods and buckets: every instant has one window, and its edges are where the customer's calendar is."""

import pickle
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.operators.model.periods import (
    DAY,
    EPOCH,
    HOUR,
    MAX_AT,
    MIN_AT,
    NEVER_END,
    SECOND,
    Anchored,
    Billing,
    Buckets,
    Calendar,
    Instants,
    Never,
    Periods,
    Policy,
    find_period,
    get_buckets,
    is_zone,
)


def us(text: str) -> int:
    """Microseconds since the epoch of an ISO time; without an offset it is UTC."""
    at = datetime.fromisoformat(text)
    return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)


def aware(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def edges_from(policy: Policy, zone: str, at: str, count: int) -> list[int]:
    """The start of the period that holds `at`, and the ends of it and the periods after it."""
    start, end = find_period(policy, zone, us(at))
    found = [start, end]
    while len(found) < count:
        found.append(find_period(policy, zone, found[-1])[1])
    return found


ZONES = (
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",
    "America/New_York",
    "America/Sao_Paulo",
    "America/Havana",
    "America/St_Johns",
    "America/Caracas",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Asia/Beirut",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Australia/Lord_Howe",
    "Antarctica/Casey",
    "Pacific/Apia",
    "Pacific/Kiritimati",
)
TURNS = [
    us(text)
    for text in (
        "2024-03-31T01:00",
        "2024-10-27T01:00",
        "2024-03-10T07:00",
        "2024-11-03T06:00",
        "2018-11-04T03:00",
        "2023-11-05T05:00",
        "2010-11-07T02:31",
        "2024-04-06T15:00",
        "2024-10-05T15:30",
        "2010-03-04T15:00",
        "2011-12-30T10:00",
        "2023-04-27T22:00",
        "2022-03-26T22:00",
        "2024-02-29T00:00",
        "2024-01-01T00:00",
    )
]
zones = st.sampled_from(ZONES)
instants = st.one_of(
    st.integers(MIN_AT, MAX_AT - 1),
    st.builds(lambda turn, off: turn + off, st.sampled_from(TURNS), st.integers(-2 * DAY, 2 * DAY)),
    st.builds(lambda turn, off: turn + off * HOUR // 4, st.sampled_from(TURNS), st.integers(-200, 200)),
)
times = st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC)).map(
    lambda at: at.replace(microsecond=0)
)
calendars = st.builds(Calendar, st.sampled_from(("month", "week", "day", "hour")))
anchoreds = st.one_of(
    st.builds(Anchored, st.integers(1, 120), st.just("month"), times),
    st.builds(Anchored, st.integers(1, 400), st.just("day"), times),
)
billings = st.builds(lambda edges: Billing(tuple(sorted(edges))), st.sets(times, max_size=6))
policies = st.one_of(calendars, anchoreds, billings, st.just(Never()))
batches = st.lists(instants, min_size=1, max_size=40).map(lambda at: np.array(at, np.int64))


# Laws


@given(policies, zones, instants, st.floats(0, 1))
def test_windows_tile_time(policy: Policy, zone: str, at: int, part: float) -> None:
    """No second is billed twice or not at all, whatever the policy, the zone and the season."""
    start, end = find_period(policy, zone, at)
    assert start <= at < end
    inside = start + int((end - 1 - start) * part)
    for other in (start, inside, end - 1):
        if MIN_AT <= other < MAX_AT:
            assert find_period(policy, zone, other) == (start, end)
    if end < MAX_AT:
        assert find_period(policy, zone, end)[0] == end
    if start > MIN_AT:
        assert find_period(policy, zone, start - 1)[1] == start


@given(policies, zones, batches)
def test_many_instants_get_the_periods_that_each_gets_alone(policy: Policy, zone: str, at: Instants) -> None:
    periods = Periods(policy, zone)
    for _ in range(2):
        starts, ends = periods.find(at)
        alone = [find_period(policy, zone, int(one)) for one in at]
        assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == alone


@settings(deadline=None)  # The first question to a zone works out up to a century of days.
@given(zones, batches)
def test_buckets_are_the_calendars_days_and_hours(zone: str, at: Instants) -> None:
    """The chart and the period agree to the microsecond."""
    for unit, (starts, ends) in (
        ("day", get_buckets(zone).find_days(at)),
        ("hour", get_buckets(zone).find_hours(at)),
    ):
        alone = [find_period(Calendar(unit), zone, int(one)) for one in at]  # type: ignore[arg-type]
        assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == alone


@given(zones, instants)
def test_hours_nest_in_days_and_days_in_weeks_and_months(zone: str, at: int) -> None:
    """So that the hours of a chart add up to its days, and the days to the bill."""
    hour, day, week, month = (
        find_period(Calendar(unit), zone, at) for unit in ("hour", "day", "week", "month")
    )
    assert month[0] <= day[0] <= hour[0] < hour[1] <= day[1] <= month[1]
    assert week[0] <= day[0] < day[1] <= week[1]
    assert hour[1] - hour[0] <= HOUR
    assert (hour[0] - day[0]) % HOUR == 0


@given(anchoreds, zones)
def test_the_anchor_is_an_edge_or_its_local_time_repeats(policy: Anchored, zone: str) -> None:
    anchor = us(policy.anchor.isoformat())
    if not MIN_AT <= anchor < MAX_AT:
        return
    local = policy.anchor.astimezone(ZoneInfo(zone))
    edge = us(local.replace(fold=0).isoformat())
    assert find_period(policy, zone, edge)[0] == edge
    assert edge <= anchor
    assert (edge == anchor) == (local.fold == 0)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(ZONES[1:]), st.lists(instants, min_size=2, max_size=4))
def test_what_was_asked_before_does_not_matter(zone: str, at: list[int]) -> None:
    """A backfill of old events, after live ones, finds the same days."""
    fresh = Buckets(zone)
    for one in at:
        asked = np.array([one], np.int64)
        start, end = fresh.find_days(asked)
        assert (int(start[0]), int(end[0])) == find_period(Calendar("day"), zone, one)


# Oracle: walk a zone's wall clock in small steps, and write down when it first shows what


@cache
def walk(zone: str, year: int) -> list[tuple[datetime, int]]:
    """The latest wall time shown so far, step by step, from November before to February after."""
    # Every other zone here turns its clock on a quarter of an hour; St. John's does so at 00:01.
    step = timedelta(minutes=1 if zone == "America/St_Johns" else 15)
    at = datetime(year - 1, 11, 1, tzinfo=UTC)
    tz = ZoneInfo(zone)
    shown = []
    latest = datetime.min
    while at < datetime(year + 1, 3, 1, tzinfo=UTC):
        latest = max(latest, at.astimezone(tz).replace(tzinfo=None))
        shown.append((latest, us(at.isoformat())))
        at += step
    return shown


WALKS = [
    ("UTC", 2024),
    ("Europe/Berlin", 2024),
    ("America/New_York", 2023),
    ("America/Sao_Paulo", 2018),
    ("America/Havana", 2023),
    ("America/St_Johns", 2010),
    ("America/Caracas", 2007),
    ("Asia/Kathmandu", 2024),
    ("Asia/Beirut", 2022),
    ("Africa/Cairo", 2023),
    ("Australia/Lord_Howe", 2024),
    ("Antarctica/Casey", 2010),
    ("Pacific/Apia", 2011),
]


@pytest.mark.parametrize(("zone", "year"), WALKS)
def test_calendar_edges_are_where_a_walk_finds_a_new_date(zone: str, year: int) -> None:
    shown = walk(zone, year)
    names: dict[str, Callable[[datetime], object]] = {
        "day": lambda wall: wall.date(),
        "week": lambda wall: wall.date() - timedelta(wall.weekday()),
        "month": lambda wall: (wall.year, wall.month),
    }
    for unit, name in names.items():
        edges = [at for (before, _), (wall, at) in pairwise(shown) if name(before) != name(wall)]
        for start, end in pairwise(edges):
            assert find_period(Calendar(unit), zone, start) == (start, end)  # type: ignore[arg-type]
            assert find_period(Calendar(unit), zone, end - 1) == (start, end)  # type: ignore[arg-type]
        if unit == "day":
            starts, _ = Buckets(zone).find_days(np.array([at for _, at in shown if at >= edges[0]], np.int64))
            assert sorted(set(starts.tolist())) == edges


@pytest.mark.parametrize(("zone", "year"), WALKS)
def test_hours_are_counted_from_where_a_walk_finds_a_new_date(zone: str, year: int) -> None:
    shown = walk(zone, year)
    edges = [at for (before, _), (wall, at) in pairwise(shown) if before.date() != wall.date()]
    asked, want = [], []
    for start, end in pairwise(edges):
        hour = start
        while hour < end:
            until = min(hour + HOUR, end)
            asked += [hour, until - 1]
            want += [(hour, until)] * 2
            hour += HOUR
    starts, ends = Buckets(zone).find_hours(np.array(asked, np.int64))
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == want


def month_later(wall: datetime, months: int) -> datetime:
    """By looking for the latest day that the month has."""
    year, month = wall.year, wall.month + months
    while month > 12:
        year, month = year + 1, month - 12
    while month < 1:
        year, month = year - 1, month + 12
    for day in range(wall.day, 0, -1):
        try:
            return wall.replace(year, month, day)
        except ValueError:
            continue
    raise AssertionError(wall)


@pytest.mark.parametrize(("zone", "year"), WALKS)
@pytest.mark.parametrize("clock", ["00:00", "00:30", "01:45", "02:15", "23:30"])
def test_anchored_edges_are_where_a_walk_finds_the_anchors_wall_time(
    zone: str, year: int, clock: str
) -> None:
    shown = walk(zone, year)
    walls = [wall for wall, _ in shown]
    anchor = datetime.fromisoformat(f"{year}-08-31T{clock}")
    stored = anchor.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    for policy, wanted in (
        (Anchored(1, "day", stored), [anchor + timedelta(n) for n in range(-260, 150)]),
        (Anchored(7, "day", stored), [anchor + timedelta(7 * n) for n in range(-36, 20)]),
        (Anchored(1, "month", stored), [month_later(anchor, n) for n in range(-8, 5)]),
        (Anchored(2, "month", stored), [month_later(anchor, 2 * n) for n in range(-4, 3)]),
    ):
        edges = sorted({shown[bisect_left(walls, wall)][1] for wall in wanted})
        for start, end in pairwise(edges):
            assert find_period(policy, zone, start) == (start, end)
            assert find_period(policy, zone, end - 1) == (start, end)


# Tables


@pytest.mark.parametrize(
    ("zone", "at", "start", "end"),
    [
        pytest.param("UTC", "2024-02-29T12:00", "2024-02-29", "2024-03-01", id="leap day"),
        pytest.param(
            "Europe/Berlin", "2024-03-31T12:00", "2024-03-30T23:00", "2024-03-31T22:00", id="Berlin, 23 h"
        ),
        pytest.param(
            "Europe/Berlin", "2024-10-27T00:30", "2024-10-26T22:00", "2024-10-27T23:00", id="Berlin, 25 h"
        ),
        pytest.param(
            "America/New_York", "2024-03-10T12:00", "2024-03-10T05:00", "2024-03-11T04:00", id="NY, 23 h"
        ),
        pytest.param(
            "America/New_York", "2024-11-03T12:00", "2024-11-03T04:00", "2024-11-04T05:00", id="NY, 25 h"
        ),
        pytest.param(
            "Asia/Kathmandu", "2024-05-05T18:15", "2024-05-05T18:15", "2024-05-06T18:15", id="+05:45"
        ),
        pytest.param("Asia/Kolkata", "2024-05-05T18:29", "2024-05-04T18:30", "2024-05-05T18:30", id="+05:30"),
        pytest.param(
            "Australia/Lord_Howe", "2024-04-07T00:00", "2024-04-06T13:00", "2024-04-07T13:30", id="24.5 h"
        ),
        pytest.param(
            "Australia/Lord_Howe", "2024-10-06T00:00", "2024-10-05T13:30", "2024-10-06T13:00", id="23.5 h"
        ),
        pytest.param(
            "America/Sao_Paulo", "2018-11-04T03:00", "2018-11-04T03:00", "2018-11-05T02:00", id="no midnight"
        ),
        pytest.param(
            "America/Sao_Paulo", "2018-02-18T02:30", "2018-02-17T02:00", "2018-02-18T03:00", id="23 h twice"
        ),
        pytest.param(
            "Asia/Beirut",
            "2022-03-26T22:00",
            "2022-03-26T22:00",
            "2022-03-27T21:00",
            id="Beirut, no midnight",
        ),
        pytest.param(
            "Africa/Cairo",
            "2023-04-27T22:00",
            "2023-04-27T22:00",
            "2023-04-28T21:00",
            id="Cairo, no midnight",
        ),
        pytest.param(
            "America/Havana", "2023-11-05T05:30", "2023-11-05T04:00", "2023-11-06T05:00", id="midnight twice"
        ),
        pytest.param(
            "America/St_Johns",
            "2010-11-07T02:45",
            "2010-11-07T02:30",
            "2010-11-08T03:30",
            id="yesterday again",
        ),
        pytest.param(
            "Pacific/Apia",
            "2011-12-30T09:59",
            "2011-12-29T10:00",
            "2011-12-30T10:00",
            id="before the lost day",
        ),
        pytest.param(
            "Pacific/Apia",
            "2011-12-30T10:00",
            "2011-12-30T10:00",
            "2011-12-31T10:00",
            id="after the lost day",
        ),
    ],
)
def test_a_day_is_the_local_date_from_its_first_instant(zone: str, at: str, start: str, end: str) -> None:
    assert find_period(Calendar("day"), zone, us(at)) == (us(start), us(end))
    starts, ends = Buckets(zone).find_days(np.array([us(at)], np.int64))
    assert (starts.tolist(), ends.tolist()) == ([us(start)], [us(end)])


@pytest.mark.parametrize(
    ("unit", "zone", "at", "start", "end"),
    [
        ("month", "UTC", "2024-02-29T23:59:59", "2024-02-01", "2024-03-01"),
        ("month", "UTC", "2023-12-31T23:59:59.999999", "2023-12-01", "2024-01-01"),
        ("month", "Europe/Berlin", "2024-03-15", "2024-02-29T23:00", "2024-03-31T22:00"),
        ("month", "America/New_York", "2024-11-30T12:00", "2024-11-01T04:00", "2024-12-01T05:00"),
        ("month", "Pacific/Apia", "2011-12-30T10:00", "2011-12-01T10:00", "2011-12-31T10:00"),
        ("week", "UTC", "2024-01-07T23:59", "2024-01-01", "2024-01-08"),
        ("week", "UTC", "2024-01-08", "2024-01-08", "2024-01-15"),
        ("week", "Europe/Berlin", "2024-03-31T12:00", "2024-03-24T23:00", "2024-03-31T22:00"),
        ("hour", "UTC", "2024-01-01T10:59:59", "2024-01-01T10:00", "2024-01-01T11:00"),
        ("hour", "Asia/Kathmandu", "2024-01-01T10:20", "2024-01-01T10:15", "2024-01-01T11:15"),
        ("hour", "Europe/Berlin", "2024-10-27T01:30", "2024-10-27T01:00", "2024-10-27T02:00"),
        ("hour", "Australia/Lord_Howe", "2024-10-06T12:45", "2024-10-06T12:30", "2024-10-06T13:00"),
        ("hour", "Australia/Lord_Howe", "2024-04-07T13:15", "2024-04-07T13:00", "2024-04-07T13:30"),
    ],
)
def test_calendar_periods_by_hand(unit: str, zone: str, at: str, start: str, end: str) -> None:
    assert find_period(Calendar(unit), zone, us(at)) == (us(start), us(end))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("every", "anchor", "at", "edges"),
    [
        (
            1,
            "2023-01-31",
            "2023-01-31",
            ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30", "2023-05-31"],
        ),
        (1, "2024-01-31", "2024-02-01", ["2024-01-31", "2024-02-29", "2024-03-31"]),
        (1, "2023-01-30", "2024-01-30", ["2024-01-30", "2024-02-29", "2024-03-30"]),
        (1, "2023-01-30", "2023-02-27", ["2023-01-30", "2023-02-28", "2023-03-30"]),
        (
            12,
            "2024-02-29",
            "2024-03-01",
            ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"],
        ),
        (3, "2023-11-30", "2023-12-01", ["2023-11-30", "2024-02-29", "2024-05-30"]),
        (1, "2024-01-31T12:00", "2024-02-29T11:59:59", ["2024-01-31T12:00", "2024-02-29T12:00"]),
    ],
)
def test_month_ends_are_clamped_and_never_drift(every: int, anchor: str, at: str, edges: list[str]) -> None:
    """Who signs up on the 31st is billed on the 31st again, as soon as there is one."""
    found = edges_from(Anchored(every, "month", aware(anchor)), "UTC", at, len(edges))
    assert found == [us(edge) for edge in edges]


def test_periods_before_the_anchor_are_counted_from_it_too() -> None:
    found = edges_from(Anchored(1, "month", aware("2024-05-31")), "UTC", "2024-01-31", 5)
    assert found == [us(f"2024-{day}") for day in ("01-31", "02-29", "03-31", "04-30", "05-31")]
    found = edges_from(Anchored(10, "day", aware("2024-05-31")), "UTC", "2024-05-10T23:00", 3)
    assert found == [us(f"2024-05-{day}") for day in ("01", "11", "21")]


@pytest.mark.parametrize(
    ("policy", "zone", "at", "edges"),
    [
        pytest.param(
            Anchored(1, "month", aware("2024-01-31T00:00+01:00")),
            "Europe/Berlin",
            "2024-02-01",
            [
                "2024-01-31T00:00+01:00",
                "2024-02-29T00:00+01:00",
                "2024-03-31T00:00+01:00",
                "2024-04-30T00:00+02:00",
            ],
            id="local midnight stays",
        ),
        pytest.param(
            Anchored(1, "day", aware("2024-03-29T09:30+01:00")),
            "Europe/Berlin",
            "2024-03-30T09:00",
            ["2024-03-30T09:30+01:00", "2024-03-31T09:30+02:00", "2024-04-01T09:30+02:00"],
            id="days keep the wall time in spring",
        ),
        pytest.param(
            Anchored(1, "day", aware("2024-03-29T02:30+01:00")),
            "Europe/Berlin",
            "2024-03-30T09:00",
            ["2024-03-30T02:30+01:00", "2024-03-31T03:00+02:00", "2024-04-01T02:30+02:00"],
            id="a skipped wall time begins after the gap",
        ),
        pytest.param(
            Anchored(1, "day", aware("2024-11-01T01:30-04:00")),
            "America/New_York",
            "2024-11-02T12:00",
            ["2024-11-02T01:30-04:00", "2024-11-03T01:30-04:00", "2024-11-04T01:30-05:00"],
            id="a repeated wall time begins the first time",
        ),
        pytest.param(
            Anchored(1, "month", aware("2024-11-03T01:30-05:00")),
            "America/New_York",
            "2024-11-03T06:00",
            ["2024-11-03T01:30-04:00", "2024-12-03T01:30-05:00"],
            id="even if the anchor was the second time",
        ),
        pytest.param(
            Anchored(1, "day", aware("2011-12-28T12:00-10:00")),
            "Pacific/Apia",
            "2011-12-29T23:00",
            ["2011-12-29T12:00-10:00", "2011-12-31T00:00+14:00", "2011-12-31T12:00+14:00"],
            id="a lost day begins where it ended",
        ),
        pytest.param(
            Anchored(1, "day", aware("2011-12-28T00:00-10:00")),
            "Pacific/Apia",
            "2011-12-29T23:00",
            ["2011-12-29T00:00-10:00", "2011-12-31T00:00+14:00", "2012-01-01T00:00+14:00"],
            id="a lost day at midnight has no period",
        ),
    ],
)
def test_anchored_periods_keep_the_local_wall_time(
    policy: Policy, zone: str, at: str, edges: list[str]
) -> None:
    assert edges_from(policy, zone, at, len(edges)) == [us(edge) for edge in edges]


def test_the_offset_an_anchor_is_written_with_does_not_matter() -> None:
    """The same instant from YAML in Berlin time and from the provider in UTC is the same subscription."""
    berlin = Anchored(1, "month", datetime(2024, 1, 31, tzinfo=ZoneInfo("Europe/Berlin")))
    utc = Anchored(1, "month", aware("2024-01-30T23:00"))
    assert berlin == utc
    assert hash(berlin) == hash(utc)
    assert find_period(berlin, "America/New_York", us("2024-06-01")) == find_period(
        utc, "America/New_York", us("2024-06-01")
    )
    # Datetimes of two zones never compare equal within an hour that repeats; policies do.
    repeated = datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert Anchored(1, "month", repeated) == Anchored(1, "month", repeated.astimezone(UTC))
    assert Billing((repeated,)) == Billing((repeated.astimezone(UTC),))


@pytest.mark.parametrize(
    ("at", "start", "end"),
    [
        ("2023-12-31T23:59", 0, us("2024-01-15T10:00")),
        ("2024-01-15T09:59:59.999999", 0, us("2024-01-15T10:00")),
        ("2024-01-15T10:00", us("2024-01-15T10:00"), us("2024-02-20")),
        ("2024-02-19T23:59", us("2024-01-15T10:00"), us("2024-02-20")),
        ("2024-02-20", us("2024-02-20"), NEVER_END),
        ("2099-12-31", us("2024-02-20"), NEVER_END),
    ],
)
def test_billing_periods_lie_between_the_platforms_edges(at: str, start: int, end: int) -> None:
    policy = Billing((aware("2024-01-15T11:00+01:00"), aware("2024-02-20")))
    assert find_period(policy, "Asia/Kathmandu", us(at)) == (start, end)


@pytest.mark.parametrize("policy", [Never(), Billing(())])
def test_without_edges_there_is_one_period(policy: Policy) -> None:
    assert find_period(policy, "Europe/Berlin", us("2024-01-01")) == (0, us("9999-12-31"))


def test_the_constants_are_the_instants_they_name() -> None:
    assert us("2000-01-01") == MIN_AT
    assert us("2100-01-01") == MAX_AT
    assert us("9999-12-31") == NEVER_END


# Limits, refusals, sharing


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Calendar("year"), "calendar unit: needs month, week, day or hour, got 'year'"),  # type: ignore[arg-type]
        (lambda: Anchored(1, "week", aware("2024-01-01")), "anchored unit: needs day or month"),  # type: ignore[arg-type]
        (lambda: Anchored(0, "month", aware("2024-01-01")), "anchored every: needs 1 to 120 months, got 0"),
        (lambda: Anchored(121, "month", aware("2024-01-01")), "needs 1 to 120 months, got 121"),
        (lambda: Anchored(3661, "day", aware("2024-01-01")), "needs 1 to 3660 days, got 3661"),
        (lambda: Anchored(1.5, "day", aware("2024-01-01")), "needs 1 to 3660 days, got 1.5"),  # type: ignore[arg-type]
        (lambda: Anchored(True, "day", aware("2024-01-01")), "needs 1 to 3660 days, got True"),
        (lambda: Anchored(1, "day", datetime(2024, 1, 1)), "anchor: needs an offset from UTC"),
        (lambda: Anchored(1, "day", aware("2024-01-01T00:00:00.5")), "anchor: needs whole seconds"),
        (lambda: Anchored(1, "day", aware("1969-12-31")), "anchor: needs to lie from 1970 until 2100-01-01"),
        (lambda: Anchored(1, "day", aware("2100-01-01")), "anchor: needs to lie from 1970 until 2100-01-01"),
        (lambda: Billing((datetime(2024, 1, 1),)), "billing edge: needs an offset from UTC"),
        (
            lambda: Billing((aware("2024-01-01T00:00:00.2"), aware("2024-01-01T00:00:00.5"))),
            "billing edges: need to ascend by seconds",
        ),
        (lambda: Billing((aware("1969-12-31"),)), "billing edge: needs to lie from 1970"),
        (lambda: Billing((aware("9999-12-31"),)), "billing edge: needs to lie from 1970 until 9999-12-31"),
        (lambda: Billing((aware("2024-01-02"), aware("2024-01-01"))), "billing edges: need to ascend"),
        (lambda: Billing((aware("2024-01-01"), aware("2024-01-01T01:00+01:00"))), "need to ascend"),
    ],
)
def test_a_wrong_policy_is_refused_in_words(build: Callable[[], Policy], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize(
    "name", ["Mars/Olympus", "", "America", "../etc/passwd", "localtime", "right/UTC", "utc"]
)
def test_an_unknown_zone_is_named(name: str) -> None:
    """Zones that mean something else on another machine are unknown too: two workers must bill alike."""
    assert not is_zone(name)
    for ask in (
        lambda: find_period(Never(), name, MIN_AT),
        lambda: Periods(Calendar("day"), name),
        lambda: Buckets(name),
        lambda: get_buckets(name),
    ):
        with pytest.raises(ValueError, match=f"got '{name}'"):
            ask()


@pytest.mark.parametrize("zone", ZONES)
def test_the_zones_of_the_tables_exist(zone: str) -> None:
    assert is_zone(zone)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_no_instants_give_no_buckets(zone: str) -> None:
    none = np.empty(0, np.int64)
    for starts, ends in (
        Buckets(zone).find_days(none),
        Buckets(zone).find_hours(none),
        Periods(Never(), zone).find(none),
    ):
        assert starts.size == ends.size == 0
        assert starts.dtype == ends.dtype == np.int64


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/New_York", "Europe/Berlin"])
def test_the_first_and_last_instants_have_buckets(zone: str) -> None:
    for at in (MIN_AT, MAX_AT - 1):
        start, end = Buckets(zone).find_days(np.array([at], np.int64))
        assert start[0] <= at < end[0]


@pytest.mark.parametrize("at", [MIN_AT - 1, MAX_AT])
def test_an_instant_out_of_bounds_does_not_grow_the_edges_without_end(at: int) -> None:
    with pytest.raises(ValueError, match="need to lie from 2000 until 2100"):
        Buckets("Europe/Berlin").find_days(np.array([at], np.int64))


def test_a_zones_buckets_are_shared() -> None:
    assert get_buckets("Asia/Kolkata") is get_buckets("Asia/Kolkata")


def test_a_backfill_keeps_the_days_already_known() -> None:
    """Live events and old ones mixed do not make the edges be worked out again and again."""
    days = Buckets("Europe/Berlin")
    asked: list[int] = []
    for year in ("2024", "2010", "2030"):
        asked += [us(f"{year}-01-01"), us(f"{year}-12-25")]
        days.find_days(np.array(asked[-2:], np.int64))
        known = days._edges
        days.find_days(np.array(asked, np.int64))
        assert days._edges is known


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Pacific/Kiritimati"])
def test_one_day_after_the_other_leads_over_new_year(zone: str) -> None:
    days = Buckets(zone)
    at = us("2024-12-20")
    for _ in range(20):
        _, end = days.find_days(np.array([at], np.int64))
        assert find_period(Calendar("day"), zone, at)[1] == end[0]
        at = int(end[0])


@pytest.mark.parametrize("late", [0, -1])
def test_the_edge_of_what_is_known_has_a_day(late: int) -> None:
    days = Buckets("Europe/Berlin")
    days.find_days(np.array([us("2024-06-01")], np.int64))
    at = int(days._edges[-1]) + late
    start, end = days.find_days(np.array([at], np.int64))
    assert (start[0], end[0]) == find_period(Calendar("day"), "Europe/Berlin", at)


def test_recent_periods_are_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot path asks for the same few periods thousands of times a second."""
    periods = Periods(Calendar("month"), "Europe/Berlin")
    at = np.array([us("2024-01-05"), us("2024-02-05"), us("2024-01-06")], np.int64)
    first = periods.find(at)
    monkeypatch.setattr("tidegate.operators.model.periods.find_period", None)
    again = periods.find(at[::-1])
    assert [edge.tolist() for edge in first] == [edge[::-1].tolist() for edge in again]


def test_few_periods_are_remembered_however_many_are_asked() -> None:
    periods = Periods(Calendar("day"), "UTC")
    periods.find(np.arange(MIN_AT, MIN_AT + 100 * DAY, DAY))
    assert len(periods._recent) == 8


def test_threads_may_grow_the_same_buckets() -> None:
    shared, whole = Buckets("America/New_York"), Buckets("America/New_York")
    years = [np.arange(us(f"{year}-01-01"), us(f"{year}-12-31"), 7 * HOUR) for year in range(2005, 2035)]
    whole.find_days(np.array([MIN_AT, MAX_AT - DAY], np.int64))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(shared.find_days, years[::2] + years[1::2]))
    for at, (starts, ends) in zip(years[::2] + years[1::2], found, strict=True):
        assert (starts == whole.find_days(at)[0]).all()
        assert (ends == whole.find_days(at)[1]).all()


@given(policies)
def test_policies_survive_a_pickle(policy: Policy) -> None:
    """Workers hand catalogs to each other."""
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_billing_edges_part_the_events_of_their_second_to_the_microsecond() -> None:
    """A period is known by the second of its start, and holds what comes from the edge itself on."""
    edges = [aware(f"2024-0{month}-01T00:00:00.506021") for month in (1, 2)]
    first, second = (int(edge.timestamp()) * SECOND for edge in edges)
    periods = Periods(Billing(tuple(edges)), "UTC")
    at = np.array([second + 506_021, second + 506_020, second + 999_999, first + 506_021, first + 3])
    starts, ends = periods.find(at)
    assert starts.tolist() == [second, first, second, first, 0]
    assert ends.tolist()[1] == second + 506_021
    for one, start in zip(at.tolist(), starts.tolist(), strict=True):
        assert find_period(Billing(tuple(edges)), "UTC", one)[0] == start
