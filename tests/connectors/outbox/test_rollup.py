"""Usage rolled up before it goes to the provider: exact, once, and later changes as differences."""

import json
import random
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.connectors.dodo.billing_world import MINUTE, NOON, SECOND, World, accepted, world
from tidegate.connectors.dodo.sender import Terms
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.outbox.rollup import Rollup
from tidegate.connectors.outbox.schema import State
from tidegate.operators.billing.rollup import RollupWindow
from tidegate.operators.model.catalog import Catalog, Meter
from tidegate.operators.model.records import Accepted
from tidegate.operators.model.wire import format_instant

TERMS = Terms(concurrency=1, rollup=timedelta(minutes=1))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, TERMS, unfolded=True) as made:
        made.catalog = Catalog(
            (Meter("tokens", "llm", "sum", "tokens"), Meter("calls", "llm", "count")),
            made.catalog.plans,
            made.catalog.customers,
        )
        yield made


def billed(here: World) -> dict[tuple[str, str, str], tuple[Decimal, int]]:
    """Sum and count per customer, event name and window, as the provider would add them up."""
    sums: dict[tuple[str, str, str], tuple[Decimal, int]] = defaultdict(lambda: (Decimal(0), 0))
    for event in here.ledger().values():
        data = event["metadata"]
        key = (event["customer_id"], event["event_name"], data["window"])
        total, count = sums[key]
        sums[key] = (total + Decimal(str(data["sum"])), count + data["count"])
    return sums


def test_a_minute_is_one_event_per_customer_and_meter(here: World) -> None:
    here.outbox.add([accepted(NOON - 50 * SECOND + place, tokens=place / 10) for place in range(500)])
    here.outbox.add([accepted(NOON - 40 * SECOND, "bolt", tokens=1)])
    here.turns(70, whole=True)
    window = "2026-11-22T11:59:00.000000Z"
    assert billed(here) == {
        ("cus_acme", "tokens.rollup", window): (Decimal("12475.0"), 500),
        ("cus_acme", "calls.rollup", window): (Decimal(500), 500),
        ("cus_bolt", "tokens.rollup", window): (Decimal(1), 1),
        ("cus_bolt", "calls.rollup", window): (Decimal(1), 1),
    }
    assert all(event["timestamp"].startswith("2026-11-22T11:59:59.999") for event in here.ledger().values())


@pytest.mark.parametrize("age", [40, 46, 50, 54])
def test_rolled_up_usage_is_held_back_from_55_minutes_on_and_no_earlier(age: int, tmp_path: Path) -> None:
    terms = Terms(concurrency=1, rollup=timedelta(minutes=5), late="park")
    with world(tmp_path, terms, unfolded=True) as here:
        here.wait(173)
        for ago in (age, 61):
            here.outbox.add([accepted(here.now - ago * MINUTE, tokens=9)])
        here.turns(900, whole=True)
        assert [total for total, _ in billed(here).values()] == [Decimal(9)]
        assert here.reasons() == {"too_old": 1}


def test_no_event_goes_before_its_window_has_ended(here: World) -> None:
    here.outbox.add([accepted(NOON + SECOND, tokens=1)])
    here.turns(55, whole=True)
    assert not here.ingests()
    assert here.read_statistics().open_windows == 2
    here.turns(10, whole=True)
    assert here.read_statistics().open_windows == 0
    assert len(here.ledger()) == 2


def test_what_comes_late_goes_as_the_difference_and_coalesced(here: World) -> None:
    here.outbox.add([accepted(NOON - 90 * SECOND, tokens=5)])
    here.turns(70, whole=True)
    for place in range(3):
        here.outbox.add([accepted(NOON - 90 * SECOND + 1 + place, tokens=10)])
        here.turns(2, whole=True)
    here.turns(70, whole=True)
    events = sorted(
        (event["metadata"]["revision"], event["metadata"]["sum"], event["metadata"]["count"])
        for event in here.ledger().values()
        if event["event_name"] == "tokens.rollup"
    )
    assert events == [(0, 5, 1), (1, 30, 3)]


def test_late_usage_that_adds_nothing_makes_no_event(here: World) -> None:
    here.outbox.add([accepted(NOON - 90 * SECOND, tokens=5)])
    here.turns(70, whole=True)
    before = set(here.ledger())
    here.outbox.add([accepted(NOON - 89 * SECOND, tokens=0)])
    here.turns(70, whole=True)
    assert [here.ledger()[id]["event_name"] for id in set(here.ledger()) - before] == ["calls.rollup"]


def test_a_sum_that_no_number_holds_goes_in_exact_parts(here: World) -> None:
    here.outbox.add([accepted(NOON - 90 * SECOND + place, tokens=9 * 10**14) for place in range(15_000)])
    here.outbox.add([accepted(NOON - 80 * SECOND, tokens=0.1), accepted(NOON - 79 * SECOND, tokens=1e-7)])
    here.turns(70, whole=True)
    tokens = {key: value for key, value in billed(here).items() if key[1] == "tokens.rollup"}
    ((total, count),) = tokens.values()
    assert total == 15_000 * 9 * 10**14 + Decimal("0.1000001")
    assert count == 15_002


def test_kills_and_replays_count_nothing_twice(here: World) -> None:
    """All of the input comes again and again, between crashes, in any portion."""
    rng = random.Random(7)
    events = [
        accepted(
            NOON - rng.randint(0, 20 * 60) * SECOND, rng.choice(("acme", "bolt")), tokens=rng.randint(0, 9)
        )
        for _ in range(400)
    ]
    expected = sums(events)
    done = 0
    while done < len(events):
        start = max(done - rng.randint(0, 150), 0)
        done = min(start + rng.randint(1, 200), len(events))
        here.outbox.add(events[start:done])
        here.turns(rng.choice((1, 30, 70)))
        here.crash()
    here.outbox.add(events)
    here.turns(130, whole=True)
    assert {key: value[0] for key, value in billed(here).items() if key[1] == "tokens.rollup"} == expected
    assert here.read_statistics().counts["folded"] == 400


def sums(events: list[Accepted]) -> dict[tuple[str, str, str], Decimal]:
    found: dict[tuple[str, str, str], Decimal] = defaultdict(Decimal)
    for event in events:
        window = format_instant(event.at - event.at % MINUTE)
        found[f"cus_{event.customer}", "tokens.rollup", window] += json.loads(event.payload)["data"]["tokens"]
    return {key: value for key, value in found.items() if value}


def test_a_difference_below_nothing_is_parked(tmp_path: Path) -> None:
    """Nothing that is metered makes it so; should anything ever, nobody is billed by it."""
    now = NOON
    outbox = Outbox(tmp_path / "o.db", unfolded=True, clock=lambda: now)
    rollup = Rollup(outbox, Catalog(), timedelta(minutes=1), timedelta(0))
    # More digits than a float has, so it takes several numbers.
    fall = Decimal("5.000000000000000000000001")
    window = RollupWindow("acme", "tokens", NOON - MINUTE, MINUTE, NOON - MINUTE)
    rollup._outgo(window, int(fall.scaleb(24)) * -1, 1, 1, now)
    outbox.close()
    with closing(OutboxReader(tmp_path / "o.db")) as reader:
        assert set(reader.reasons()) == {(State.parked, "not_positive")}
    with closing(sqlite3.connect(tmp_path / "o.db")) as db:
        bodies = [json.loads(body, parse_float=Decimal) for (body,) in db.execute("SELECT body FROM events")]
    assert sum(Decimal(body["metadata"]["sum"]) for body in bodies) == -fall


def test_meters_that_do_not_add_up_are_an_alert(here: World) -> None:
    here.catalog = Catalog(
        (Meter("peak", "llm", "max", "tokens"),), here.catalog.plans, here.catalog.customers
    )
    here.sender.turn()
    assert here.read_statistics().alerts["not_rolled_up"].endswith("peak")
