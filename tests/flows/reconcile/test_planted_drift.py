"""Thirty drifts, one customer each, planted in one system: found, attributed to their events, and mended if allowed."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.flows.reconcile.metered import BEGIN, END, MINUTE, NOON, System, causes, system, written
from tidegate.connectors.outbox import operator_actions
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.operators.billing.provider import to_micros
from tidegate.operators.model.ports import Adjustment

HOUR = 60 * MINUTE
# No number that the provider's JSON carries exactly.
INEXACT = 10**19 + 1
LAST = BEGIN - timedelta(days=31)
PAST = [(written(LAST), written(BEGIN))]


@dataclass
class Planted:
    """What is planted in one customer: before events are sent, and after; what must be found, and what must be done."""

    name: str
    events: Callable[[System, str], list[str]]
    plant: Callable[[System, str, list[str]], Any]
    expected: dict[str, str | None]
    """Cause and quantity."""
    named: Callable[[list[str]], set[str]] = field(default=lambda ids: set())
    """The events that must be named, of those that `events` gave and those that `plant` returned."""
    acts: tuple[str, ...] = ()
    mended: bool = False
    meter: str = "tokens"
    past: bool = False


def old(metered: System, customer: str) -> list[str]:
    """Events of some two hours before the plant."""
    return [metered.event(customer, tokens=n, at=metered.clock.now - 40 * MINUTE) for n in (5, 7, 11)]


def calls(metered: System, customer: str) -> list[str]:
    return [metered.event(customer) for _ in range(4)]


def elsewhere(customer: str, number: int, at: int, tokens: int | None = 9) -> dict[str, Any]:
    name, data = (
        ("api.call", {"n": number}) if tokens is None else ("llm.tokens", {"tokens": tokens, "n": number})
    )
    when = written(NOON + timedelta(microseconds=at - to_micros(NOON)))
    id = f"other-{customer}-{number}"
    return {"event_id": id, "customer_id": customer, "event_name": name, "timestamp": when, "metadata": data}


def insert(metered: System, *events: dict[str, Any]) -> list[str]:
    metered.simulator.insert(*events)
    return [event["event_id"] for event in events]


def early(metered: System, customer: str) -> int:
    """Three hours before now."""
    return metered.clock.now - 3 * HOUR


def in_last_period(metered: System, customer: str) -> list[str]:
    """Usage of the closed period, on both sides from long ago."""
    at = to_micros(LAST) + HOUR
    ids = [metered.event(customer, tokens=n, at=at, booked=False) for n in (100, 200)]
    insert(
        metered,
        *({**elsewhere(customer, n, at, n), "event_id": id} for n, id in zip((100, 200), ids, strict=True)),
    )
    return ids


def young(metered: System, customer: str, tokens: int = 13) -> str:
    """An event of the last minutes."""
    return metered.event(customer, tokens=tokens)


def lose_and_close(metered: System, customer: str, ids: list[str]) -> list[str]:
    """The second event is lost, and then the period ends."""
    metered.simulator.drop(ids[1])
    close(metered, customer)
    return []


def lose_young_and_close(metered: System, customer: str, ids: list[str]) -> list[str]:
    """An event of the last minutes is lost, and then the period ends."""
    lost = lose_young(metered, customer)
    close(metered, customer)
    return [lost]


PLANTED = [
    # Lost there
    Planted("lost, two hours old", old, lambda m, c, i: m.simulator.drop(i[1]),
            {"missing_there": "7"}, lambda i: {i[1]}, ("late",), True),
    Planted("lost, minutes old", lambda m, c: [], lambda m, c, i: [lose_young(m, c)],
            {"missing_there": "13"}, lambda i: {i[0]}, ("resend",), True),
    Planted("lost, old and young", old, lambda m, c, i: [m.simulator.drop(i[0]), lose_young(m, c)][1:],
            {"missing_there": "18"}, lambda i: {i[0], i[-1]}, ("resend", "late"), True),
    Planted("lost, and its id remembered", old, lambda m, c, i: m.simulator.drop(i[2], remember=True),
            {"missing_there": "11"}, lambda i: {i[2]}, ("late",)),
    Planted("lost, all of a customer", old, lambda m, c, i: m.simulator.drop(*i),
            {"missing_there": "23"}, set, ("late",), True),
    Planted("lost, of a count", calls, lambda m, c, i: m.simulator.drop(i[3]),
            {"missing_there": "1"}, lambda i: {i[3]}, ("late",), True, meter="calls"),
    Planted("lost, the greatest of a max", lambda m, c: [m.event(c, tokens=n) for n in (90, 40)],
            lambda m, c, i: m.simulator.drop(i[0]),
            {"missing_there": None}, lambda i: {i[0]}, ("late",), True, meter="peak"),
    Planted("lost, of a period that closed since", old,
            lose_and_close, {"missing_there": "7"}, lambda i: {i[1]}),
    Planted("lost, minutes before the period closed", lambda m, c: [],
            lose_young_and_close,
            {"missing_there": "13"}, lambda i: {i[0]}, ("resend",), True),
    # More there
    Planted("another producer", old, lambda m, c, i: insert(m, elsewhere(c, 1, early(m, c))),
            {"extra_there": "-9"}, lambda i: {i[-1]}, ("adjust",), True),
    Planted("another producer, many times", old,
            lambda m, c, i: insert(m, *(elsewhere(c, n, early(m, c)) for n in range(120))),
            {"extra_there": "-1080"}, lambda i: set(i[3:]), ("adjust",), True),
    Planted("another producer, of a count", calls,
            lambda m, c, i: insert(m, elsewhere(c, 1, early(m, c), None)),
            {"extra_there": "-1"}, lambda i: {i[-1]}, ("adjust",), True, meter="calls"),
    Planted("another producer, in a closed period", in_last_period,
            lambda m, c, i: insert(m, elsewhere(c, 1, to_micros(LAST) + 2 * HOUR)),
            {"extra_there": "-9"}, lambda i: {i[-1]}, ("adjust",), True, past=True),
    Planted("doubled under its id", old, lambda m, c, i: m.simulator.double(i[2]) and [],
            {"doubled_there": "-11"}, lambda i: {i[2]}),
    Planted("doubled under another id", old, lambda m, c, i: m.simulator.double(i[2], new_ids=True),
            {"doubled_there": "-11"}, lambda i: {i[-1]}),
    Planted("doubled, of a count", calls, lambda m, c, i: m.simulator.double(*i[:2]) and [],
            {"doubled_there": "-2"}, lambda i: set(i[:2]), meter="calls"),
    # Less here
    Planted("our store lacks an event", lambda m, c: [*old(m, c), m.event(c, tokens=6, here=False)],
            lambda m, c, i: [], {"missing_here": "-6"}, acts=("rewrite",), mended=True),
    Planted("our store lacks a count", lambda m, c: [*calls(m, c), m.event(c, here=False)],
            lambda m, c, i: [], {"missing_here": "-1"}, acts=("rewrite",), mended=True, meter="calls"),
    Planted("our store lacks a customer", lambda m, c: [m.event(c, tokens=4, here=False)],
            lambda m, c, i: [], {"missing_here": "-4"}, acts=("rewrite",), mended=True),
    # Totals there that are not what its events come to
    Planted("a total that is skewed up", old, lambda m, c, i: skew(m, c, 3), {"skewed_there": "-3"}),
    Planted("a total that is skewed down", old, lambda m, c, i: skew(m, c, -3), {"skewed_there": "3"}),
    Planted("a meter made after its events", lambda m, c: [m.event(c, properties={"dear": True}) for _ in range(3)],
            lambda m, c, i: subscribe_to_new_meter(m, c), {"skewed_there": "3"}, set, meter="dear_calls"),
    # Kept back here
    Planted("too old after an outage", lambda m, c: [], lambda m, c, i: [m.event(c, tokens=19, at=early(m, c))],
            {"too_old": "19"}, lambda i: {i[0]}),
    Planted("refused by the provider", old, lambda m, c, i: [refused(m, c)],
            {"rejected": "21"}, lambda i: {i[-1]}),
    Planted("refused for its number", old, lambda m, c, i: [m.event(c, tokens=INEXACT)],
            {"rejected": str(INEXACT)}, lambda i: {i[-1]}),
    Planted("dropped by an operator", old, lambda m, c, i: [dropped(m, c)],
            {"rejected": str(INEXACT)}, lambda i: {i[-1]}),
    Planted("late, after the period closed", in_last_period,
            lambda m, c, i: [m.event(c, tokens=3, at=to_micros(LAST) + 5 * HOUR)],
            {"late_after_close": "3"}, lambda i: {i[-1]}, past=True),
    # Periods
    Planted("a period that was closed early", old, lambda m, c, i: close_early(m, c),
            {"boundary": "8"}, lambda i: {i[-1]}),
    Planted("a period that begins elsewhere", old, lambda m, c, i: [], {"boundary": "-3"}),
    # Neither
    Planted("another payload under the id", old, lambda m, c, i: [first_come(m, c)],
            {"differs_there": "2"}, lambda i: {i[-1]}),
    Planted("an operator's adjustment", old, lambda m, c, i: adjusted(m, c), {"adjusted_here": "40"}),
    Planted("a loss and another producer at once", old,
            lambda m, c, i: [m.simulator.drop(i[1]), insert(m, elsewhere(c, 1, early(m, c)))][1],
            {"missing_there": "7", "extra_there": "-9"}, lambda i: {i[1], i[-1]}, ("late", "adjust"), True),
]  # fmt: skip


def lose_young(metered: System, customer: str) -> str:
    id = young(metered, customer)
    metered.work()
    metered.simulator.drop(id)
    return id


def close(metered: System, customer: str) -> None:
    """The period ends now, on both sides."""
    metered.clock.sleep(1)
    edge = written(NOON + timedelta(microseconds=metered.clock.now - to_micros(NOON)))
    metered.simulator.roll(metered.subscriptions[customer], at=edge, end=written(END))
    metered.edges[customer] = [written(BEGIN), edge, written(END)]


def skew(metered: System, customer: str, units: int) -> list[str]:
    metered.simulator.skew(metered.subscriptions[customer], metered.meters["tokens"], units)
    return []


def subscribe_to_new_meter(metered: System, customer: str) -> list[str]:
    dear = {"conjunction": "and", "clauses": [{"key": "dear", "operator": "equals", "value": True}]}
    meter = metered.simulator.create_meter("api.call", "count", name="dear_calls", filter=dear)
    product = metered.simulator.create_product([meter])
    metered.simulator.create_subscription(customer, product, start=written(BEGIN), end=written(END))
    for _ in range(3):
        metered.count(customer, "dear_calls", 1, metered.clock.now - 2 * HOUR)
    return []


def refused(metered: System, customer: str) -> str:
    id = metered.event(customer, tokens=21)
    metered.simulator.add_fault("refuse", times=None, match=id, status=400)
    return id


def dropped(metered: System, customer: str) -> str:
    id = metered.event(customer, tokens=INEXACT)
    metered.work()
    assert operator_actions.drop(metered.outbox, [id], by="ops", why="test")
    return id


def first_come(metered: System, customer: str) -> str:
    """Another program has sent other content under the same id before."""
    was_sending, metered.is_sending = metered.is_sending, False
    id = metered.event(customer, tokens=30)
    insert(metered, {**elsewhere(customer, 1, metered.clock.now, 28), "event_id": id})
    metered.is_sending = was_sending
    return id


def close_early(metered: System, customer: str) -> list[str]:
    """The provider begins a new period; our catalog does not know, and an event comes."""
    edge = written(NOON + timedelta(microseconds=metered.clock.now - to_micros(NOON)))
    metered.simulator.roll(metered.subscriptions[customer], at=edge, end=written(END))
    metered.clock.sleep(2)
    return [metered.event(customer, tokens=8)]


def adjusted(metered: System, customer: str) -> list[str]:
    at = metered.clock.now
    made = Adjustment(
        id=f"ops-{customer}", quantity="40", customer=customer, meter="tokens", at=at, reason="x", by="ops"
    )
    metered.control.append(made)
    return []


@dataclass
class Outcome:
    customers: dict[str, str]
    ids: dict[str, list[str]]
    found: dict[tuple[str, str], dict[str, Any]]
    after: dict[tuple[str, str], dict[str, Any]]
    dry: list[str]
    journal: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    outputs: str


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("planted")
    with system(folder, tier=2) as metered:
        yield play(metered, folder)


def play(metered: System, folder: Path) -> Outcome:
    """Plants all, has them found by one pass, then mended by some."""
    metered.meters["peak"] = metered.simulator.create_meter("llm.tokens", "max", "tokens", name="peak")
    basic = [metered.meters["tokens"], metered.meters["calls"]]
    customers: dict[str, str] = {}
    for one in PLANTED:
        peak = [metered.meters["peak"]] if one.meter == "peak" else basic
        if one.meter == "dear_calls":
            customers[one.name] = metered.simulator.create_customer()
            metered.edges[customers[one.name]] = [written(BEGIN), written(END)]
            continue
        past: dict[str, Any] = {"past": PAST} if one.past else {}
        customers[one.name] = metered.customer(meters=peak, **past)
    elsewhere_begun = customers["a period that begins elsewhere"]
    del metered.edges[elsewhere_begun]
    metered.apply()
    # Three hours of a system in good health.
    ids = {one.name: one.events(metered, customers[one.name]) for one in PLANTED}
    metered.count(customers["lost, the greatest of a max"], "peak", 90, metered.clock.now)
    metered.run(2 * 3600, step=60)
    metered.simulator.insert(elsewhere(elsewhere_begun, 1, metered.clock.now, 3))
    metered.park_late()
    for one in PLANTED:
        ids[one.name] += one.plant(metered, customers[one.name], ids[one.name]) or []
    metered.apply()
    metered.run(300, step=30)
    found = metered.reconcile()
    dry = list((folder / "data").glob("reconciliation/*.ndjson"))
    dry_text = [path.read_text() for path in dry]
    metered.sender = metered._sender("restamp")
    for _ in range(4):
        metered.reconcile(reconcile_repair="true")
        metered.run(400, step=40)
    after = metered.reconcile(reconcile_repair="true")
    journal = (metered.data / "reconciliation" / "repairs.ndjson").read_text().splitlines()
    outputs = "".join(path.read_text() for path in folder.rglob("*.ndjson"))
    return Outcome(
        customers=customers,
        ids=ids,
        found=found,
        after=after,
        dry=dry_text,
        journal=[json.loads(line) for line in journal],
        alerts=metered.lines("alerts-drift.ndjson"),
        outputs=outputs,
    )


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_it_is_found_and_attributed(outcome: Outcome, planted: Planted) -> None:
    """To the cause, the quantity and the events."""
    customer = outcome.customers[planted.name]
    (found,) = [
        one for (who, meter), one in outcome.found.items() if (who, meter) == (customer, planted.meter)
    ]
    assert found["status"] == "drift"
    assert causes(found) == planted.expected
    named = {id for one in found["findings"] if one["cause"] != "in_flight" for id in one["ids"]}
    expected = planted.named(outcome.ids[planted.name])
    assert named == expected or (len(expected) > 100 and len(named) == 100 and named < expected)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_it_is_mended_if_that_is_allowed_and_only_then(outcome: Outcome, planted: Planted) -> None:
    customer = outcome.customers[planted.name]
    found = outcome.found[customer, planted.meter]
    assert tuple(act["act"] for act in found.get("repairs", ())) == planted.acts
    assert {act["state"] for act in found.get("repairs", ())} <= {"would"}
    assert ((customer, planted.meter) not in outcome.after) == planted.mended


def test_nothing_else_is_found(outcome: Outcome) -> None:
    """Each customer has one drift; two have usage of a second meter too, which their product does not have."""
    assert len(outcome.found) == len(PLANTED) + len(unpriced(outcome)) >= 30
    for one in unpriced(outcome):
        assert list(causes(outcome.found[one])) == ["not_on_plan"]


def test_a_dry_run_writes_nothing_into_the_journal(outcome: Outcome) -> None:
    assert outcome.dry == [""]


def test_each_repair_is_written_down_before_and_after_and_once_it_is_seen_applied(outcome: Outcome) -> None:
    states: dict[str, list[str]] = {}
    for entry in outcome.journal:
        assert entry["why"] and entry["before"].keys() == {"ours", "billers"} and entry["after"]
        states.setdefault(entry["id"], []).append(entry["state"])
    forgotten = outcome.customers["lost, and its id remembered"]
    for id, found in states.items():
        # What the provider ignores is never seen there, so it is not said to be done.
        assert found == ["planned", "made", "done"][: 2 if forgotten in id else 3]
    assert any(forgotten in id for id in states)


def test_alerts_are_raised_once_and_resolved_once_it_is_mended(outcome: Outcome) -> None:
    told = [(a["customer"], a["meter"], a["period_start"], a["state"]) for a in outcome.alerts]
    assert len(told) == len(set(told))
    mended = {(outcome.customers[one.name], one.meter) for one in PLANTED if one.mended}
    assert {(who, meter) for who, meter, _, state in told if state == "resolved"} == mended
    raised = {(who, meter) for who, meter, _, state in told if state == "raised"}
    assert raised - unpriced(outcome) == {(outcome.customers[one.name], one.meter) for one in PLANTED}


def unpriced(outcome: Outcome) -> set[tuple[str, str]]:
    """The totals that the provider bills nobody for, as the customer's product has another meter alone."""
    pairs = (("lost, the greatest of a max", "tokens"), ("a meter made after its events", "calls"))
    return {(outcome.customers[name], meter) for name, meter in pairs}


def test_the_key_is_in_nothing_that_was_written(outcome: Outcome) -> None:
    assert outcome.outputs and "hunter2" not in outcome.outputs


def test_what_is_mended_agrees_on_the_platform(tmp_path: Path) -> None:
    """The lost event is there again, once, with its own time, or as restamped with the original one noted."""
    with system(tmp_path) as metered:
        acme = metered.customer()
        metered.apply()
        old_id = metered.event(acme, tokens=5)
        metered.run(2 * 3600, step=60)
        young_id = metered.event(acme, tokens=7)
        metered.work()
        metered.simulator.drop(old_id, young_id)
        metered.run(240)
        metered.reconcile(reconcile_repair="true")
        metered.run(120)
        there = {event["event_id"]: event for event in metered.simulator.list_events()}
        assert there.keys() == {old_id, young_id}
        assert "orig_ts" in there[old_id]["metadata"] and "orig_ts" not in there[young_id]["metadata"]
        metered.run(400)
        assert metered.reconcile() == {}
        with closing(OutboxReader(metered.data / "outbox.db")) as outbox:
            assert outbox.read_statistics().counts["restored"] == 2
