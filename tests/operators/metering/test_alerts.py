"""Alerts hang on the order of a customer's events, not on how they were cut into chunks."""

from datetime import timedelta
from decimal import Decimal

import pytest

from tidegate.operators.events.decode import Decoder
from tidegate.operators.metering.shard import Shard
from tidegate.operators.model.aggregates import Kind
from tidegate.operators.model.catalog import Catalog, Limit, Meter, Plan, Threshold
from tidegate.operators.model.periods import Calendar
from tidegate.operators.model.ports import Payloads
from tidegate.operators.model.records import Alert

LEVELS = tuple(Threshold(percent=Decimal(percent)) for percent in (50, 80, 100))


def limited(kind: Kind, limit: Limit | None) -> Catalog:
    plan = Plan("p", Calendar("month"), None, {} if limit is None else {"used": limit})
    return Catalog((Meter("used", "use", kind, "n"),), {"p": plan}, default_plan="p")


def told(kind: Kind, values: list[str], at_once: int) -> list[tuple[str, str, str]]:
    """Kind, level and total of each alert; readings come `at_once` in a chunk."""
    catalog = limited(kind, Limit(cap=Decimal(10), thresholds=LEVELS))
    shard = Shard(0, catalog, timedelta(days=1), "event")
    alerts = metered(shard, catalog, values, at_once)
    return [(alert.kind, alert.level, alert.total) for alert in alerts]


def metered(shard: Shard, catalog: Catalog, values: list[str], at_once: int) -> list[Alert]:
    """The alerts of readings that come `at_once` in a chunk."""
    decoder = Decoder(catalog, shards=1, clock="event")
    lines = [
        f'{{"specversion":"1.0","id":"{n}","source":"s","type":"use","subject":"acme",'
        f'"time":"2026-01-10T10:00:{n:02}Z","data":{{"n":{value}}}}}'.encode()
        for n, value in enumerate(values)
    ]
    alerts = []
    for start in range(0, len(lines), at_once):
        block = b"\n".join(lines[start : start + at_once])
        for _, chunk in decoder.decode(Payloads(block, 0, None, "")):
            alerts += shard.apply(chunk).alerts
    return alerts


@pytest.mark.parametrize("at_once", [1, 2, 3, 60])
@pytest.mark.parametrize("part", ["", ".000000000001", ".000000000000000000000001"])
def test_levels_are_told_at_the_reading_that_passes_them(at_once: int, part: str) -> None:
    """Whole numbers, and such as need more places, go different ways: to the same reading."""
    values = ["1"] * 4 + [f"0{part}", "1", "3", "0", "1", "0", "5"]
    cut = part.rstrip("0")
    assert told("sum", values, at_once) == [
        ("threshold", "50%", f"5{cut}"),
        ("threshold", "80%", f"8{cut}"),
        ("cap_reached", "10", f"14{cut}"),
    ]


@pytest.mark.parametrize("at_once", [1, 2, 60])
def test_only_the_highest_of_several_levels_is_told(at_once: int) -> None:
    assert told("max", ["4", "9", "3", "10"], at_once) == [
        ("threshold", "80%", "9"),
        ("cap_reached", "10", "10"),
    ]


@pytest.mark.parametrize("at_once", [1, 2, 60])
def test_a_level_that_falls_is_resolved(at_once: int) -> None:
    """Seats may be given back: the last reading also falls."""
    assert told("last", ["5", "4", "10", "4"], at_once) == [
        ("threshold", "50%", "5"),
        ("threshold", "50%", "4"),
        ("threshold", "80%", "10"),
        ("cap_reached", "10", "10"),
        ("threshold", "80%", "4"),
        ("cap_released", "10", "4"),
    ]


def test_a_level_outlives_a_live_catalog_and_a_restart() -> None:
    """It held when a catalog came that changed nothing of it; what was not in a snapshot yet must get there."""
    catalog, lateness = limited("sum", Limit(cap=Decimal(10), thresholds=LEVELS)), timedelta(days=1)
    first = Shard(0, catalog, lateness, "event")
    frames = first.take_delta()
    metered(first, catalog, ["6"], 1)
    first.adopt_catalog(1, catalog, 0, 0)
    frames += first.take_delta()
    second = Shard.restore(0, limited("sum", None), lateness, "event", frames)
    assert [(alert.state, alert.level) for alert in second.drain_reviewed()] == [("resolved", "none")]


@pytest.mark.parametrize("threshold", [Threshold(percent=Decimal(100)), Threshold(absolute=Decimal(10))])
def test_a_threshold_at_the_cap_is_told_as_the_cap(threshold: Threshold) -> None:
    """Who is woken by both would be woken twice for one thing."""
    catalog = limited("last", Limit(cap=Decimal(10), thresholds=(threshold,)))
    shard = Shard(0, catalog, timedelta(days=1), "event")
    alerts = metered(shard, catalog, ["9", "10", "4"], 1)
    assert [(alert.kind, alert.level) for alert in alerts] == [("cap_reached", "10"), ("cap_released", "10")]


def test_a_state_of_a_version_that_told_both_is_read() -> None:
    """It had a level more; nothing is raised or resolved for that."""
    catalog = limited("sum", Limit(cap=Decimal(10), thresholds=LEVELS))
    first = Shard(0, catalog, timedelta(days=1), "event")
    metered(first, catalog, ["10"], 1)
    (state,) = first.alert_states._states.values()
    state[0] = 3
    second = Shard.restore(0, catalog, timedelta(days=1), "event", first.take_delta())
    assert second.drain_reviewed() == []
    (state,) = second.alert_states._states.values()
    assert state[:2] == [2, 1]


@pytest.mark.parametrize(
    "limit",
    [
        Limit(included=Decimal(0), on_cap="allow", thresholds=(Threshold(percent=Decimal(50)),)),
        Limit(thresholds=(Threshold(absolute=Decimal(0)),)),
        Limit(cap=Decimal(0)),
    ],
)
def test_a_level_of_nothing_is_reached_by_the_first_usage(limit: Limit) -> None:
    """Half of nothing is not used up by nothing, and no usage at all is no news."""
    catalog = limited("sum", limit)
    shard = Shard(0, catalog, timedelta(days=1), "event")
    alerts = metered(shard, catalog, ["0", "0", "3"], 1)
    assert {(alert.state, alert.total) for alert in alerts} == {("raised", "3")}


def test_with_all_of_it_as_hysteresis_no_level_is_left() -> None:
    """Also a level of nothing, which holds no less than those above it."""
    levels = tuple(Threshold(absolute=Decimal(value)) for value in ("0", "0.25", "200"))
    catalog = limited("last", Limit(thresholds=levels, hysteresis_pct=Decimal(100)))
    shard = Shard(0, catalog, timedelta(days=1), "event")
    alerts = metered(shard, catalog, ["1", "0", "500"], 1)
    assert [(alert.state, alert.level) for alert in alerts] == [("raised", "0.25"), ("raised", "200")]
