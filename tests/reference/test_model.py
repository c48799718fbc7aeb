"""The model itself: what docs/semantics.md says, in rows small enough to check by eye."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest

from tests.reference.malformed import MALFORMED, Malformed, plain_event
from tests.reference.model import (
    HOUR,
    MINUTE,
    SECOND,
    Model,
    Number,
    compare,
    hour_of,
    instant_of,
    period_of,
    text_of,
)
from tests.reference.traffic import Sent, micros, traffic, written
from tidegate.operators.model.catalog import Catalog, Limit, Meter, Plan, Threshold
from tidegate.operators.model.periods import Calendar, Policy

DAY = 24 * HOUR
NOON = micros(datetime(2026, 1, 10, 12, tzinfo=UTC))
MONTH = Calendar("month")
CALLS = Meter("calls", "call", "sum", "n")


def catalog(*meters: Meter, period: Policy = MONTH, **limits: Limit) -> Catalog:
    plan = Plan("free", period, None, limits)
    return Catalog(meters or (CALLS,), {"free": plan}, default_plan="free")


def sent(at: int, id: str = "1", **properties: str) -> bytes:
    """An event of customer `acme`; properties are JSON texts."""
    return (
        f'{{"event_id":"{id}","customer_id":"acme","event_name":"call","timestamp":"{stamp(at)}","metadata":{{'
        + ",".join(f'"{key}":{value}' for key, value in properties.items())
        + "}}"
    ).encode()


def stamp(at: int) -> str:
    return f"{datetime.fromtimestamp(at // SECOND, UTC):%Y-%m-%dT%H:%M:%S}.{at % SECOND:06}Z"


def fed(*payloads: bytes, catalog: Catalog, lateness: timedelta = timedelta(days=1)) -> Model:
    model = Model(catalog, lateness, "event")
    for payload in payloads:
        model.feed(payload, NOON, None)
    return model


@pytest.mark.parametrize("row", MALFORMED, ids=lambda row: row.name)
def test_what_is_broken_is_told_by_its_reason(row: Malformed) -> None:
    model = Model(catalog(), timedelta(days=1), "event")
    model.feed(row.make(plain_event("1", "acme", NOON)), NOON, None)
    assert [reason for reason, _ in model.dead] == ([] if row.reason is None else [row.reason])


def test_the_table_covers_every_reason() -> None:
    """But `future`, which only the wall clock knows, and `too_late` and `conflict`, which take two events."""
    assert {row.reason for row in MALFORMED if row.reason} == {
        "too_large",
        "not_json",
        "not_an_object",
        "unknown_shape",
        "specversion_unsupported",
        "id_invalid",
        "source_invalid",
        "customer_invalid",
        "name_invalid",
        "time_invalid",
        "time_missing",
        "time_out_of_range",
        "data_not_object",
        "data_base64_invalid",
        "quantity_out_of_range",
    }


def test_the_future_is_five_minutes_ahead_of_the_wall() -> None:
    model = Model(catalog(), timedelta(days=1), "wall")
    model.feed(sent(NOON + 5 * MINUTE, "1"), NOON, None)
    model.feed(sent(NOON + 5 * MINUTE + 1, "2"), NOON, None)
    assert model.dead == [("future", sent(NOON + 5 * MINUTE + 1, "2"))]


def test_an_array_gives_each_element_its_own_bytes() -> None:
    one, two = sent(NOON, "1", n="1.50"), sent(NOON, "2", n="[]")
    model = fed(b"  [ " + one + b"\t, 5 ," + two + b"]\r", catalog=catalog())
    assert [taken.payload for taken in model.accepted] == [one, two]
    assert model.dead == [("not_an_object", b"5")]
    assert model.counters["not_a_number:calls"] == 1


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-01-10T12:00:00Z", "2026-01-10T12:00:00"),
        ("2026-01-10t12:00:00z", "2026-01-10T12:00:00"),
        ("2026-01-10T12:00:00.1234569Z", "2026-01-10T12:00:00.123456"),
        ("2026-01-10T17:45:00+05:45", "2026-01-10T12:00:00"),
        ("2026-01-09T12:01:00-23:59", "2026-01-10T12:00:00"),
        ("2026-01-10T12:00:00-00:00", "2026-01-10T12:00:00"),
        ("2016-12-31T23:59:60.25Z", "2016-12-31T23:59:59.999999"),
        ("2017-01-01T05:44:60+05:45", "2016-12-31T23:59:59.999999"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00"),
    ],
)
def test_a_time_is_the_instant_it_names(text: str, utc: str) -> None:
    assert instant_of(text) == micros(datetime.fromisoformat(utc).replace(tzinfo=UTC))


def test_numbers_have_one_order_however_they_are_written() -> None:
    ascending = (
        "-1e999999999",
        "-10",
        "-9.5",
        "-1e-5",
        "0",
        "1e-999999999",
        "0.1",
        "0.11",
        "1",
        "2",
        "10",
        "1e99",
    )
    for low, high in pairwise(map(Number, ascending)):
        assert compare(low, high) < 0 < compare(high, low)
    for one, other in (("1", "1.0"), ("1e2", "100"), ("0", "-0.0"), ("0.10", "1E-1"), ("120e-1", "12")):
        assert compare(Number(one), Number(other)) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [("1000", "1000"), ("1.50", "1.5"), ("1e-24", "0." + "0" * 23 + "1"), ("0", "0"), ("10.05", "10.05")],
)
def test_a_quantity_is_plain_decimal_text(value: str, text: str) -> None:
    assert text_of(Fraction(value)) == text


def test_hours_count_from_the_local_day_and_clocks_may_change() -> None:
    """Two o'clock comes twice in Berlin on that day; Kathmandu's hours begin at a quarter past UTC's."""
    twice = micros(datetime(2026, 10, 25, 0, tzinfo=UTC))
    assert hour_of("Europe/Berlin", twice + 1) == (twice, twice + HOUR)
    assert hour_of("Europe/Berlin", twice + HOUR) == (twice + HOUR, twice + 2 * HOUR)
    start, end = period_of(Calendar("day"), "Europe/Berlin", twice)
    assert end - start == 25 * HOUR
    assert hour_of("Asia/Kathmandu", NOON) == (NOON - 45 * MINUTE, NOON + 15 * MINUTE)


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        (sent(NOON, n="1"), b" " + sent(NOON, n="1").replace(b"{", b"{ ", 1), "duplicates"),
        (sent(NOON, n="1"), sent(NOON, n="1").replace(b"acme", b"\\u0061cme"), "duplicates"),
        (sent(NOON, n="1"), sent(NOON, n=" 1 "), "conflicts"),
        (sent(NOON, n="1", m="2"), sent(NOON, m="2", n="1"), "conflicts"),
        (sent(NOON), sent(NOON).replace(b',"metadata":{}', b""), "duplicates"),
        (sent(NOON), sent(NOON).replace(b"{}", b"null"), "conflicts"),
        (sent(NOON, n="1"), sent(NOON, n="1").replace(b"Z", b"+00:00"), "duplicates"),
        (sent(NOON, n="1"), sent(NOON, n="1.0"), "conflicts"),
        (sent(NOON, n="1"), sent(NOON, n="2"), "conflicts"),
        (sent(NOON, n="1"), sent(NOON + 1, n="1"), "duplicates"),
        (sent(NOON, n="1"), sent(NOON + 1, n="2"), "conflicts"),
        (sent(NOON, n="1"), sent(NOON - 2 * HOUR, n="1"), "duplicates"),
        (sent(NOON, n="1"), sent(NOON - 2 * HOUR, n="2"), "conflicts"),
        (sent(NOON, n="1"), sent(NOON + 2 * DAY, n="1"), "duplicates"),
        (sent(NOON, n="1"), sent(NOON - DAY, "2", n="1"), "accepted"),
    ],
)
def test_a_second_event_ends_one_way(first: bytes, second: bytes, ends: str) -> None:
    assert fed(first, second, catalog=catalog()).counters - fed(first, catalog=catalog()).counters == Counter(
        {"events": 1, ends: 1}
        | ({"metered": 1, "matching:calls": 1, "counted:calls": 1} if ends == "accepted" else {})
    )


def test_what_is_older_than_the_lateness_before_a_confirmed_time_is_too_late() -> None:
    """One event alone confirms nothing; it is counted as an outlier where it would have made another one late."""
    old, now = sent(NOON - DAY - 1, "old", n="1"), sent(NOON, "1", n="1")
    alone = fed(now, old, catalog=catalog()).counters
    assert (alone["accepted"], alone["too_late"], alone["outliers"]) == (2, 0, 1)
    confirmed = fed(now, sent(NOON + 1, "2", n="1"), old, catalog=catalog()).counters
    assert (confirmed["accepted"], confirmed["too_late"], confirmed["outliers"]) == (2, 1, 0)


def test_levels_rise_together_and_fall_under_hysteresis() -> None:
    limit = Limit(
        cap=Decimal(10),
        thresholds=(Threshold(percent=Decimal(90)), Threshold(absolute=Decimal("5.0"))),
        hysteresis_pct=Decimal(10),
    )
    model = fed(
        *(sent(NOON + i, f"{i}", n=n) for i, n in enumerate(("4", "9.5", "8.5", "8.05", "10", "0"))),
        catalog=catalog(Meter("calls", "call", "last", "n"), calls=limit),
    )
    assert [(told.kind, told.state, told.level, told.total, told.turn) for told in model.alerts] == [
        ("threshold", "raised", "90%", "9.5", 1),
        ("threshold", "resolved", "90%", "8.05", 2),
        ("threshold", "raised", "90%", "10", 3),
        ("cap_reached", "raised", "10", "10", 1),
        ("threshold", "resolved", "90%", "0", 4),
        ("cap_released", "resolved", "10", "0", 2),
    ]


def test_corrections_are_told_at_powers_of_two() -> None:
    """All are late for the same closed hour; the fourth correction is the third that is told."""
    late = (sent(NOON - 2 * HOUR + i, f"late {i}", n="1") for i in range(5))
    now = sent(NOON - 1, "0", n="1"), sent(NOON, "1", n="1")
    model = fed(*now, *late, catalog=catalog(period=Calendar("hour")))
    assert [(told.kind, told.level, told.turn, told.total) for told in model.alerts] == [
        ("correction", "1", 1, "1"),
        ("correction", "2", 2, "2"),
        ("correction", "4", 3, "4"),
    ]


def test_a_changed_limit_is_judged_anew() -> None:
    old = catalog(calls=Limit(cap=Decimal(10), included=Decimal(2)))
    model = fed(sent(NOON, n="5"), catalog=old)
    model.restart(catalog(calls=Limit(cap=Decimal(5), included=Decimal(6))), NOON)
    model.restart(catalog(calls=Limit(cap=Decimal(5), included=Decimal(6))), NOON)
    assert [(told.kind, told.level, told.limit, told.turn, told.at) for told in model.alerts] == [
        ("overage_started", "2", "10", 1, NOON),
        ("cap_reached", "5", "5", 1, NOON),
        ("overage_ended", "none", "5", 1, NOON),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_traffic_tries_every_way_to_end(seed: int) -> None:
    """And the model keeps its own books: every event ends one way, every reading in one of two."""
    case = traffic(seed, 1000)
    assert case == traffic(seed, 1000)
    model = Model(case.catalog, case.lateness, "event")
    for line, at in zip(case.lines, case.sent_at, strict=True):
        model.feed(line, at, None)
    count = model.counters
    ways = ("rejects", "too_late", "duplicates", "conflicts", "accepted")
    assert count["events"] == sum(count[way] for way in ways)
    assert count["accepted"] == count["metered"] + count["unmetered"]
    assert bool(count["unmetered"]) == (case.catalog.on_unmetered == "count")
    assert all(count[way] for way in ways)
    for meter in case.catalog.meters:
        assert (
            count[f"matching:{meter.name}"]
            == count[f"counted:{meter.name}"] + count[f"corrected:{meter.name}"]
        )


def test_an_event_written_another_way_is_a_duplicate() -> None:
    rng = random.Random(5)
    event = Sent(True, "Zoë", "api", "é1", "call", NOON + 123, {"n": "1", "region": '"eu"'})
    event = event.with_data(rng)
    model = fed(*(written(rng, event) for _ in range(200)), catalog=catalog())
    assert model.counters["duplicates"] == 199
