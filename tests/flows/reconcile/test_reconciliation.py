"""Reconciliation against the simulated platform: no false alarm, within its budget, through kills, on any platform."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from dodopayments import DodoPayments

from simulator.app import build_app as build_platform
from simulator.inprocess import AppTransport
from simulator.state.platform import Platform
from tests.flows.reconcile.metered import (
    BEGIN,
    END,
    KEY,
    MINUTE,
    NOON,
    SECOND,
    System,
    causes,
    system,
    written,
)
from tests.support.options import option
from tests.support.places import ROOT
from tests.support.platform import PlatformProcess
from tidegate.connectors.dodo.client import Answer, DodoClient, DodoError
from tidegate.connectors.dodo.reads import DodoReads, Unauthorized
from tidegate.connectors.reconciliation import repairer
from tidegate.connectors.reconciliation.book_reader import BookReader
from tidegate.connectors.reconciliation.book_schema import BookError
from tidegate.connectors.reconciliation.conflicts import known_in, note_of
from tidegate.connectors.reconciliation.repair_journal import Entry, Journal
from tidegate.connectors.sqlite.store import make_store
from tidegate.flows.reconcile.dataflow import build
from tidegate.operators.billing.provider import to_micros
from tidegate.operators.billing.rate_limit import Rate
from tidegate.operators.model.wire import format_instant
from tidegate.settings.catalog.file import parse_catalog
from tidegate.settings.catalog.pull import apply_periods
from tidegate.settings.problems import SettingsError

HOUR = 60 * MINUTE
SUBSCRIPTIONS = int(option("TIDEGATE_SUBSCRIPTIONS", "2000"))
PASSES = int(option("TIDEGATE_RECONCILIATION_PASSES", "50"))


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[System]:
    with system(tmp_path) as made:
        yield made


def test_no_false_alarm_on_a_healthy_busy_system(tmp_path: Path) -> None:
    """Events come all the while, some late; answers are lost, the provider is away for minutes, batches wait."""
    noise = random.Random(7)
    with system(tmp_path, tier=1) as metered:
        metered.meters["peak"] = metered.simulator.create_meter("llm.tokens", "max", "tokens", name="peak")
        customers = [metered.customer() for _ in range(6)]
        metered.apply()
        at_work = metered.work
        peaks: Counter[str] = Counter()

        def busy() -> None:
            for _ in range(noise.randrange(4)):
                who, tokens = noise.choice(customers), noise.randrange(1, 100)
                metered.event(who, tokens=tokens, at=metered.clock.now - noise.choice((0, 0, 1, 30)) * MINUTE)
                if tokens > peaks[who]:
                    metered.count(who, "peak", tokens - peaks[who], metered.clock.now)
                    peaks[who] = tokens
            if noise.random() < 0.3:
                metered.event(noise.choice(customers))
            if noise.random() < 0.02:
                metered.simulator.add_fault(
                    noise.choice(["error_after_commit", "reset_after_commit", "rate_limited"])
                )
            if noise.random() < 0.01:
                metered.simulator.add_fault("error", times=20, for_s=120)
            at_work()

        metered.work = busy  # type: ignore[method-assign]
        metered.run(600)
        seen = 0
        for _ in range(PASSES):
            found = metered.reconcile()
            assert found == {}, found
            metered.run(60)
            seen += sum(line["status"] in ("drift",) for line in metered.lines("drift.ndjson"))
        assert seen == 0
        assert metered.lines("alerts-drift.ndjson") == []
        # It was busy while they went on: totals were off, and within the bracket.
        assert len(list(metered.simulator.list_events())) > 10 * PASSES


def test_thousands_of_subscriptions_within_the_budget(tmp_path: Path) -> None:
    """At 60 reads a minute: at most that in any minute, one a subscription and some for the lists."""
    with system(tmp_path) as metered:
        metered.apply()
        item = {
            "start_date": written(BEGIN),
            "end_date": written(END),
            "meters": [{"id": metered.meters["tokens"], "consumed_units": "0"}],
        }
        subscriptions = [
            {
                "subscription_id": f"sub_{n:05}", "status": "active", "product_id": "pdt_1",
                "customer": {"customer_id": f"cus_{n:05}"}, "previous_billing_date": written(BEGIN),
                "next_billing_date": written(END),
            }
            for n in range(SUBSCRIPTIONS)
        ]  # fmt: skip
        asked: list[int] = []
        meters = metered.simulator.api.get("/meters").json()

        class Canned(DodoClient):
            """Its pace is the real one; what it would take httpx to carry all answers is saved."""

            def _request(self, method: str, path: str, **given: Any) -> Answer:
                self._admit()
                asked.append(metered.clock.now)
                if path == "/meters":
                    return Answer(200, content=meters)
                if path == "/payments":
                    return Answer(200, content={"items": []})
                if path == "/subscriptions":
                    begin = int(given["params"]["page_number"]) * 100
                    return Answer(200, content={"items": subscriptions[begin : begin + 100]})
                return Answer(200, content={"items": [item]})

        pace = metered.settings().billing.rates()[1]  # type: ignore[union-attr]
        client = Canned("http://simulator", KEY, pace, clock=metered.clock, sleep=metered.clock.sleep)

        def canned(rate: Rate = pace, key: str = KEY) -> DodoClient:
            return client

        metered.client = canned  # type: ignore[method-assign]
        metered.work = lambda: None  # type: ignore[method-assign]
        began = metered.clock.now
        assert metered.reconcile() == {}
        # All histories, the pages of subscriptions and an empty one; one each of meters, archived ones and payments.
        assert len(asked) == SUBSCRIPTIONS + (SUBSCRIPTIONS // 100 + 1) + 3
        minutes = Counter((at - began) // MINUTE for at in asked)
        assert max(minutes.values()) <= 60
        assert metered.clock.now - began < len(asked) / 55 * MINUTE
        with closing(BookReader(metered.data / "reconciliation")) as book:
            last = book.last()
            assert last is not None and last.figures["subscriptions"] == SUBSCRIPTIONS


def test_the_sdks_paging_bug_is_not_ours(metered: System) -> None:
    """The official SDK never fetches page 1 by itself; a reader that shares this calls its events lost."""
    acme = metered.customer()
    metered.apply()
    for n in range(250):
        metered.event(acme, tokens=1 + n)
    metered.run(120)
    stored = {event["event_id"] for event in metered.simulator.list_events()}
    assert len(stored) == 250
    sdk = DodoPayments(
        bearer_token=KEY, base_url="http://simulator", http_client=httpx.Client(transport=metered._transport)
    )
    by_sdk = {event.event_id for event in sdk.usage_events.list(customer_id=acme, page_size=100)}
    assert len(by_sdk) == 150
    ours = DodoReads(metered.client(), sleep=metered.clock.sleep).events(
        acme, "llm.tokens", to_micros(BEGIN), metered.clock.now + 1, metered.clock.now
    )
    assert {event.event_id for event in ours} == stored and len(ours) == 250
    assert metered.reconcile() == {}


@pytest.mark.parametrize("order", ["newest_first", "oldest_first", "as_stored"])
@pytest.mark.parametrize("edges", ["closed", "open", "half_open"])
def test_lists_are_read_right_in_any_order_and_with_any_edges(
    metered: System, order: str, edges: str
) -> None:
    metered.simulator.set_switches(order=order, range_edges=edges)
    acme = metered.customer()
    metered.apply()
    begin = metered.clock.now - metered.clock.now % MINUTE
    for n in range(120):
        metered.event(acme, tokens=1 + n, at=begin - n * SECOND)
    metered.run(60)
    reads = DodoReads(metered.client(), sleep=metered.clock.sleep)
    found = reads.events(acme, "llm.tokens", begin - 60 * SECOND, begin, metered.clock.now)
    assert sorted(event.metadata["tokens"] for event in found if event.metadata) == list(range(2, 62))


def test_what_arrives_while_pages_are_turned_is_neither_lost_nor_doubled(metered: System) -> None:
    """Late events push others to the next page; two readings have to agree."""
    acme = metered.customer()
    metered.apply()
    for n in range(300):
        metered.event(acme, tokens=1 + n, at=metered.clock.now - n * SECOND)
    metered.run(60)
    turned = iter(range(1, 8))

    def arrive() -> None:
        if next(turned, None):
            metered.event(acme, tokens=1000, at=metered.clock.now - 100 * SECOND)
            metered.work()

    metered.clock.meanwhile = arrive
    now = metered.clock.now
    reads = DodoReads(metered.client(Rate(1, 60)), sleep=metered.clock.sleep)
    found = Counter(e.event_id for e in reads.events(acme, "llm.tokens", to_micros(BEGIN), now, now))
    assert max(found.values()) == 1 and len(found) >= 300


def test_a_second_pass_alone_makes_a_suspect_a_drift(metered: System) -> None:
    """The first miss is written down and told nobody; the second, long enough after it, is an alert."""
    acme = metered.customer()
    metered.apply()
    ids = [metered.event(acme, tokens=n) for n in (5, 7)]
    metered.run(400)
    metered.simulator.drop(ids[0])
    passed: list[str] = []
    original = metered.clock.sleep

    def watch(seconds: float) -> None:
        with suppress(BookError), closing(BookReader(metered.data / "reconciliation")) as book:
            passed.extend(one.status for one in book.open())
        original(seconds)

    metered.clock.sleep = watch  # type: ignore[method-assign]
    assert metered.reconcile()[acme, "tokens"]["status"] == "drift"
    assert passed and set(passed) == {"suspect"} and len(passed) > 100


def test_what_comes_right_by_itself_is_no_drift(metered: System) -> None:
    """Between the two comparisons the provider has caught up."""
    acme = metered.customer()
    metered.apply()
    metered.event(acme, tokens=5)
    metered.simulator.set_switches(usage_visibility_lag_s=300)
    metered.run(240)
    assert metered.reconcile() == {}
    said = [line["status"] for line in metered.lines("drift.ndjson")]
    assert said == ["suspect", "ok", "coverage", "ended"]
    assert metered.lines("alerts-drift.ndjson") == []


@pytest.mark.parametrize("status", ["active", "past_due"])
def test_a_history_without_the_open_period_falls_back_to_events(metered: System, status: str) -> None:
    """Where a payment failed, too: usage goes on to be billed."""
    metered.simulator.set_switches(open_cycle_in_history=False)
    acme = metered.customer()
    metered.simulator.change_subscription(metered.subscriptions[acme], status=status)
    metered.apply()
    ids = [metered.event(acme, tokens=n) for n in (5, 7, 11)]
    metered.run(400)
    assert metered.reconcile() == {}
    metered.simulator.drop(ids[1])
    found = metered.reconcile()[acme, "tokens"]
    assert causes(found) == {"missing_there": "7"} and found["findings"][0]["ids"] == [ids[1]]


def test_a_frozen_period_names_what_came_after_it(metered: System) -> None:
    metered.simulator.set_switches(closed_cycles="frozen")
    acme = metered.customer()
    metered.apply()
    metered.event(acme, tokens=5)
    metered.run(120)
    edge = metered.clock.now // SECOND * SECOND + SECOND
    at = format_instant(edge)[:19] + "Z"
    metered.clock.sleep(2)
    metered.simulator.roll(metered.subscriptions[acme], at=at, end=written(END))
    metered.edges[acme] = [written(BEGIN), at, written(END)]
    metered.apply()
    late = metered.event(acme, tokens=7, at=edge - 1)
    metered.run(400)
    found = metered.reconcile()[acme, "tokens"]
    assert causes(found) == {"late_after_close": "7"} and found["findings"][0]["ids"] == [late]


def test_without_a_ledger_drift_is_found_all_the_same(tmp_path: Path) -> None:
    """What the outbox still has is told by ids, the rest as unexplained."""
    with system(tmp_path, ledger=False) as metered:
        acme, globex = metered.customer(), metered.customer()
        metered.apply()
        lost, early = metered.event(acme, tokens=5), metered.event(globex, tokens=7)
        metered.run(400)
        metered.simulator.drop(lost)
        assert causes(metered.reconcile()[acme, "tokens"]) == {"missing_there": "5"}
        metered.run(3600, step=60)
        metered.simulator.drop(early)
        assert causes(metered.reconcile()[globex, "tokens"]) == {"unexplained": "7"}


def test_usage_that_is_rolled_up_is_compared_as_well(tmp_path: Path) -> None:
    """Windows that are still open are on their way; a window that is lost is named, and sent again."""
    with system(tmp_path, rollup=timedelta(minutes=1)) as metered:
        metered.meters = {
            "tokens": metered.simulator.create_meter("tokens.rollup", "sum", "sum", name="tokens"),
            "calls": metered.simulator.create_meter("calls.rollup", "sum", "count", name="calls"),
        }
        acme = metered.customer()
        metered.apply()
        for n in range(30):
            metered.event(acme, tokens=1 + n)
            metered.event(acme)
            metered.run(20)
        assert metered.reconcile() == {}
        assert {event["event_name"] for event in metered.simulator.list_events()} == {
            "tokens.rollup",
            "calls.rollup",
        }
        metered.run(300)
        lost = next(e for e in metered.simulator.list_events() if e["event_name"] == "tokens.rollup")
        metered.simulator.drop(lost["event_id"])
        found = metered.reconcile(reconcile_repair="true")
        assert causes(found[acme, "tokens"]) == {"missing_there": str(lost["metadata"]["sum"])}
        assert found[acme, "tokens"]["findings"][0]["ids"] == [lost["event_id"]]
        metered.run(400)
        assert metered.reconcile() == {}


def test_another_meter_under_a_known_name_is_not_compared(metered: System) -> None:
    """And a customer whom we know by another name is."""
    other = metered.simulator.create_meter("llm.tokens", "sum", "characters", name="tokens")
    acme = metered.customer(meters=[metered.meters["tokens"], other])
    billed = metered.edges.pop(acme)
    metered.apply(
        metered.catalog_text
        + f"customers:\n  acme:\n    billing_id: {acme}\n    period: {{type: billing, edges: [{', '.join(billed)}]}}\n"
    )
    id = metered.event("acme", tokens=5)
    metered.run(400)
    assert metered.reconcile() == {}
    metered.simulator.drop(id)
    assert causes(metered.reconcile()["acme", "tokens"]) == {"missing_there": "5"}


def test_periods_are_taken_over_before_a_pass_if_that_is_wanted(metered: System) -> None:
    """A period that the provider closed early is ours from then on, with the one before it kept."""
    acme = metered.customer()
    metered.apply()
    metered.event(acme, tokens=5)
    metered.run(120)
    edge = (metered.clock.now // SECOND - 60) * SECOND
    at = format_instant(edge)[:19] + "Z"
    metered.simulator.roll(metered.subscriptions[acme], at=at, end=written(END))
    metered.reconcile(reconcile_periods="true")
    newest = metered.control.catalog()
    assert newest is not None and (newest.origin, newest.by) == ("platform", "reconciliation")
    assert f"edges: [{written(BEGIN)}, {at}, {written(END)}]" in newest.text
    number = newest.number
    metered.reconcile(reconcile_periods="true")
    assert metered.control.catalog_number() == number


def conflicts(metered: System) -> list[str]:
    """The conflicts that are listed among the findings of the store."""
    return sorted(known_in(metered.store.notes("drift", None, 100)))


@pytest.mark.parametrize("applies", ["true", "false"])
def test_two_metered_subscriptions_are_named_before_anything_is_applied(
    metered: System, applies: str
) -> None:
    """In the report, the findings and one alert; once the other has ended it is applied, and leaves the list."""
    acme = metered.customer()
    metered.apply()
    meters = list(metered.meters.values())
    seats = metered.simulator.create_product([])
    later = dict(start=written(BEGIN + timedelta(days=9)), end=written(END + timedelta(days=9)))
    metered.simulator.create_subscription(acme, seats, **later)
    metered.reconcile(reconcile_periods=applies)
    assert conflicts(metered) == [] and metered.catalog.period_of(acme) == _period_now(metered, acme)
    second = metered.simulator.create_subscription(acme, metered.simulator.create_product(meters), **later)
    metered.reconcile(reconcile_periods=applies)
    metered.reconcile(reconcile_periods=applies)
    assert conflicts(metered) == [acme] and metered.catalog.period_of(acme) == _period_now(metered, acme)
    [named] = metered.lines("drift.ndjson")[-1]["conflicts"]
    assert second in named
    told = [line for line in metered.lines("alerts-drift.ndjson") if line["level"] == "conflict"]
    assert [line["customer"] for line in told] == [acme]
    metered.simulator.change_subscription(metered.subscriptions[acme], status="cancelled")
    metered.reconcile(reconcile_periods=applies)
    assert conflicts(metered) == []
    assert (metered.catalog.period_of(acme) == _period_now(metered, acme)) == (applies == "false")


def test_a_conflict_that_a_webhook_has_listed_is_announced_by_the_next_run(metered: System) -> None:
    acme = metered.customer()
    metered.apply()
    later = dict(start=written(BEGIN + timedelta(days=9)), end=written(END + timedelta(days=9)))
    metered.simulator.create_subscription(
        acme, metered.simulator.create_product(list(metered.meters.values())), **later
    )
    whole = [DodoReads(metered.client()).subscription(one) for one in subscriptions_of(metered, acme)]
    made = apply_periods(metered.control, whole, "webhook", is_complete=False)
    metered.writer.write([], [], [note_of(one, metered.clock.now) for one in made.conflicts])
    assert conflicts(metered) == [acme]
    for _ in range(2):
        metered.reconcile()
    assert [line["level"] for line in metered.lines("alerts-drift.ndjson")] == ["conflict"]


def subscriptions_of(metered: System, customer: str) -> list[str]:
    return [
        one["subscription_id"]
        for one in metered.simulator.read_state()["subscriptions"]
        if one["customer"]["customer_id"] == customer
    ]


def _period_now(metered: System, customer: str) -> Any:
    newest = metered.control.catalog()
    assert newest is not None
    return parse_catalog(newest.text).period_of(customer)


@pytest.mark.parametrize("change", ["pause", "restart"])
def test_a_pause_and_a_change_of_plan_split_a_period_without_drift(metered: System, change: str) -> None:
    """Usage so far is billed at once, and what follows in the rest; the catalog has both periods, edge for edge."""
    acme = metered.customer()
    metered.apply()
    id, api = metered.subscriptions[acme], metered.simulator.api
    metered.event(acme, tokens=5)
    metered.run(400)
    if change == "pause":
        assert api.patch(f"/subscriptions/{id}", json={"status": "paused"}).status_code == 200
        metered.run(3600, step=600)
        assert api.patch(f"/subscriptions/{id}", json={"status": "active"}).status_code == 200
    else:
        other = metered.simulator.create_product(list(metered.meters.values()))
        order = {"product_id": other, "proration_billing_mode": "prorated_immediately", "quantity": 1}
        assert api.post(f"/subscriptions/{id}/change-plan", json=order).status_code == 200
    metered.reconcile(reconcile_periods="true")
    newest = metered.control.catalog()
    assert newest is not None
    metered.catalog = parse_catalog(newest.text)
    metered.event(acme, tokens=7)
    metered.run(400)
    assert metered.reconcile(reconcile_periods="true") == {}
    totals = [
        total.total for (who, meter, _), total in metered.totals.items() if (who, meter) == (acme, "tokens")
    ]
    billed = [one["meters"][0]["consumed_units"] for one in metered.simulator.read_usage(id)[0]["items"]]
    assert totals == billed == ["5", "7"]


def test_what_was_adopted_once_is_not_adopted_again(metered: System) -> None:
    """A later drift of the same total finds the other producer's events again, and leaves them as they are."""
    acme = metered.customer()
    metered.apply()
    lost = metered.event(acme, tokens=5)
    metered.run(400)
    when = format_instant(metered.clock.now - HOUR)
    name, data = "llm.tokens", {"tokens": 9}
    metered.simulator.insert(
        {
            "event_id": "evt_other",
            "customer_id": acme,
            "event_name": name,
            "timestamp": when,
            "metadata": data,
        }
    )
    metered.run(120)
    metered.reconcile(reconcile_repair="true")
    metered.run(120)
    assert metered.reconcile(reconcile_repair="true") == {}
    metered.simulator.drop(lost)
    found = metered.reconcile(reconcile_repair="true")[acme, "tokens"]
    assert causes(found) == {"missing_there": "5", "extra_there": "-9", "adjusted_here": "9"}
    assert [act["act"] for act in found["repairs"]] == ["resend"]
    metered.run(400)
    assert metered.reconcile(reconcile_repair="true") == {}
    assert [str(total.total) for total in metered.totals.values()] == ["14"]


def test_an_outage_of_the_platform_is_no_drift(metered: System) -> None:
    """What cannot be read is told and looked at with the next pass."""
    customers = [metered.customer() for _ in range(3)]
    metered.apply()
    metered.event(customers[0], tokens=5)
    metered.run(240)
    metered.simulator.add_fault("error", where="/subscriptions/", times=None, status=503)
    metered.reconcile()
    lines = [line for line in metered.lines("drift.ndjson") if line["status"] != "coverage"]
    assert Counter(line["status"] for line in lines) == {"unread": 3, "ended": 1}
    assert all("503" in line["problem"] for line in lines if line["status"] == "unread")
    metered.simulator.clear_faults()
    assert metered.reconcile() == {}


def test_a_refused_key_ends_one_pass_with_a_clear_line(metered: System) -> None:
    metered.customer()
    metered.apply()
    metered.simulator.set_key_mode("revoked")
    with pytest.raises(BaseException) as caught:
        metered.reconcile()
    causes_of: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        causes_of.append(str(error))
        error = error.__cause__ or error.__context__
    assert any("refuses the API key" in text for text in causes_of)
    assert not any("hunter2" in text for text in causes_of)


def test_only_a_platform_can_be_reconciled_with(metered: System) -> None:
    with pytest.raises(SettingsError, match="TIDEGATE_BILLING: needs dodo:"):
        build(metered.settings(billing="file:billing/"))


PRICED_IN_CREDITS = {"free_threshold": 50, "meter_units_per_credit": "10"}
WITH_CREDITS = {"reconcile_repair": "true", "reconcile_credits": "true"}


def paid_in_credits(metered: System, credits: int, **fields: Any) -> tuple[str, Callable[[], list[str]]]:
    """A customer whose tokens are paid in credits, and what gives the amounts of entries by hand in the ledger."""
    api = metered.simulator.api
    kind = metered.simulator.api.post(
        "/credit-entitlements",
        json={
            "name": "Credits",
            "unit": "credits",
            "precision": 2,
            "overage_enabled": False,
            "rollover_enabled": False,
        },
    ).json()["id"]
    priced = {"meter_id": metered.meters["tokens"], "credit_entitlement_id": kind} | PRICED_IN_CREDITS
    acme = metered.customer(meters=[priced], **fields)
    metered.apply()
    balance = f"/credit-entitlements/{kind}/balances/{acme}"
    if credits:
        body = {"entry_type": "credit", "amount": str(credits), "idempotency_key": "bought"}
        api.post(f"{balance}/ledger-entries", json=body)

    def entered() -> list[str]:
        ledger = api.get(f"{balance}/ledger").json()["items"]
        return [one["amount"] for one in ledger if "tidegate_act" in (one["metadata"] or {})]

    return acme, entered


def test_credits_are_given_back_once_for_good(metered: System) -> None:
    """Whatever run, with another doubled event later, and with all that reconciliation remembers lost."""
    acme, entered = paid_in_credits(metered, 100)
    ids = [metered.event(acme, tokens=n) for n in (30, 40, 20)]
    metered.run(400)
    metered.simulator.double(ids[1])
    metered.run(120)
    found = metered.reconcile(reconcile_repair="true")
    assert [act["act"] for act in found[acme, "tokens"]["repairs"]] == []
    found = metered.reconcile(**WITH_CREDITS)
    made = [(act["act"], act["state"], act["quantity"]) for act in found[acme, "tokens"]["repairs"]]
    assert made == [("credit", "done", "40")]
    # 130 were counted, 90 were used, 50 are free: 8 credits instead of 4.
    assert entered() == ["4"]
    for _ in range(3):
        metered.reconcile(**WITH_CREDITS)
    assert entered() == ["4"]
    shutil.rmtree(metered.data / "reconciliation")
    metered.simulator.double(ids[0], ids[1])
    metered.run(120)
    for _ in range(3):
        metered.reconcile(**WITH_CREDITS)
    assert sorted(entered()) == ["3", "4", "4"]
    found = metered.reconcile(reconcile_credits="true")
    assert [act["state"] for act in found[acme, "tokens"]["repairs"]] == ["done"]


def test_what_was_never_deducted_is_not_given_back(metered: System) -> None:
    acme, entered = paid_in_credits(metered, 2)
    ids = [metered.event(acme, tokens=n) for n in (70, 40)]
    metered.run(400)
    metered.simulator.double(ids[1])
    metered.run(120)
    for _ in range(2):
        found = metered.reconcile(**WITH_CREDITS)
    assert "never deducted" in found[acme, "tokens"]["repairs"][0]["state"]
    assert entered() == []


def test_what_came_after_the_close_is_debited_once_for_good(metered: System) -> None:
    begun = BEGIN - timedelta(days=31)
    acme, entered = paid_in_credits(metered, 100, past=[(written(begun), written(BEGIN))])
    metered.park_late()
    late = [metered.event(acme, tokens=n, at=to_micros(BEGIN) - HOUR) for n in (60, 30)]
    metered.run(900, step=60)
    for _ in range(3):
        metered.reconcile(**WITH_CREDITS)
    shutil.rmtree(metered.data / "reconciliation")
    for _ in range(2):
        metered.reconcile(**WITH_CREDITS)
    assert len(late) == 2 and sum(map(Decimal, entered())) == 4


def test_an_adjustment_of_a_lost_book_is_applied_and_made_once(metered: System) -> None:
    """The numbers of runs begin again with the book, and must be no part of an act's name."""
    acme = metered.customer()
    metered.apply()
    metered.event(acme, tokens=5)
    metered.run(7200, step=60)
    for number in range(3):
        another = {
            "event_id": f"other{number}", "customer_id": acme, "event_name": "llm.tokens",
            "timestamp": format_instant(metered.clock.now - HOUR), "metadata": {"tokens": 2},
        }  # fmt: skip
        metered.simulator.insert(another)
        metered.run(300, step=30)
        found = metered.reconcile(reconcile_repair="true")
        assert [act["state"] for act in found[acme, "tokens"]["repairs"]] == ["made"]
        metered.run(120)
        for _ in range(2):
            assert metered.reconcile(reconcile_repair="true") == {}
        shutil.rmtree(metered.data / "reconciliation")
    assert metered.totals[acme, "tokens", to_micros(BEGIN)].total == "11"


# Kills


class Killed(Exception):
    """Stands for SIGKILL where the whole flow is in this process."""


def test_a_pass_that_is_killed_goes_on_with_what_is_left(metered: System) -> None:
    """No subscription is asked for twice but those under way, no miss counts twice."""
    customers = [metered.customer() for _ in range(50)]
    metered.apply()
    ids = {who: metered.event(who, tokens=5) for who in customers}
    metered.run(400)
    metered.simulator.drop(*(ids[who] for who in customers[::10]))
    before = len(metered.simulator.list_requests())
    histories = 0

    def dies(seconds: float) -> None:
        nonlocal histories
        metered.clock.now += int(seconds * SECOND)
        histories += 1
        if histories == 40:
            raise Killed

    slept = metered.clock.sleep
    metered.clock.sleep = dies  # type: ignore[method-assign]
    with pytest.raises(BaseException):  # noqa: B017
        metered.reconcile()
    metered.clock.sleep = slept  # type: ignore[method-assign]
    gc.collect()
    with closing(BookReader(metered.data / "reconciliation")) as book:
        last = book.last()
        assert last is not None and last.ended_at is None and 0 < last.left < 50
        assert {one.misses for one in book.open()} <= {1}
    found = metered.reconcile()
    assert {who for who, _ in found} == set(customers[::10])
    assert {one["pass"] for one in found.values()} == {1}
    paths = [
        r["path"] for r in metered.simulator.list_requests(before) if r["path"].endswith("usage-history")
    ]
    # One for each, up to 20 that were under way, a second look and one to explain for each suspect.
    assert len(paths) <= 50 + 20 + 5 * 2 and paths.count(paths[0]) <= 4


def entry(**fields: Any) -> Entry:
    base = dict(
        at="2026-11-22T12:00:00Z", id="r1", state="planned", act="adjust", customer="c", meter="m",
        period_start="2026-11-03T09:12:44Z", period_end="2026-12-03T09:12:44Z", why="w",
    )  # fmt: skip
    return Entry(**base | fields)


def test_a_torn_last_line_of_the_journal_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "repairs.ndjson"
    journal = Journal(path)
    journal.plan(entry(id="a"))
    journal.plan(entry(id="b"))
    journal.end()
    path.write_bytes(path.read_bytes()[:-20])
    again = Journal(path)
    assert [one.id for one in again.unfinished()] == ["a"]
    again.close(entry(id="a"), "done", "2026-11-22T12:00:01Z", "x")
    again.end()
    assert Journal(path).unfinished() == []


@pytest.mark.parametrize("where", ["before", "after", "done"])
def test_repairs_that_are_killed_are_made_once(
    metered: System, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Killed before the act, after it, and after it was written down: in the end it was done just once."""
    acme, globex = metered.customer(), metered.customer()
    metered.apply()
    lost = metered.event(acme, tokens=5)
    metered.event(globex, tokens=7)
    metered.run(400)
    metered.simulator.drop(lost)
    metered.simulator.insert(
        {
            "event_id": "evt_other", "customer_id": globex, "event_name": "llm.tokens",
            "timestamp": format_instant(metered.clock.now - HOUR), "metadata": {"tokens": 9},
        }
    )  # fmt: skip
    real = repairer.Repairer._done
    killed: list[str] = []

    def done(self: Any, planned: Entry) -> str:
        if where == "before" and len(killed) < 2:
            killed.append(planned.id)
            raise Killed
        result = real(self, planned)
        if where == "after" and len(killed) < 2:
            killed.append(planned.id)
            raise Killed
        return result

    monkeypatch.setattr(repairer.Repairer, "_done", done)
    closed = Journal.close

    def close(self: Any, *given: Any) -> None:
        closed(self, *given)
        if where == "done" and len(killed) < 2:
            killed.append(given[0].id)
            raise Killed

    monkeypatch.setattr(Journal, "close", close)
    for _ in range(3):
        with suppress(BaseException):
            metered.reconcile(reconcile_repair="true")
        gc.collect()
    assert len(killed) == 2
    metered.reconcile(reconcile_repair="true")
    metered.run(400)
    assert metered.reconcile(reconcile_repair="true") == {}
    sent = Counter(event["event_id"] for event in metered.simulator.list_events())
    assert sent[lost] == 1 and metered.outbox.meta("running") > 0
    totals = {total.customer: str(total.total) for total in metered.totals.values()}
    assert totals[globex] == "16"
    with closing(metered.store.__class__(metered.folder / "store.db")) as store:
        assert len(store.notes("adjustment")) == 1


def test_the_real_command_killed_with_sigkill_in_mid_pass_goes_on(tmp_path: Path) -> None:
    """As people start it: `python -m bytewax.run tidegate.flows.reconciliation`, on a real socket and a real clock."""
    platform = PlatformProcess(key=KEY)
    try:
        simulator = platform.simulator
        simulator.set_tier("unlimited")
        tokens = simulator.create_meter("llm.tokens", "sum", "tokens", name="tokens")
        product = simulator.create_product([tokens])
        customers = [simulator.create_customer() for _ in range(30)]
        start, end = written(BEGIN), written(END)
        simulator.set_clock(written(NOON), rate=1)
        for who in customers:
            simulator.create_subscription(who, product, start=start, end=end)
        (tmp_path / "catalog.yaml").write_text(
            "meters: [{name: tokens, event_name: llm.tokens, aggregation: {type: sum, key: tokens}}]\n"
            "customers:\n"
            + "".join(
                f"  {w}: {{plan: p, period: {{type: billing, edges: [{start}, {end}]}}}}\n" for w in customers
            )
            + "plans: {p: {}}\n"
        )
        settings = {
            "BILLING": f"dodo://{platform.url.removeprefix('http://')}?tls=false&tier=2&reads=3000",
            "DODO_API_KEY": KEY,
            "STORE": "sqlite:store.db",
            "RECONCILE_ONCE": "true",
            "RECONCILE_REPORT": "file:drift.ndjson",
            "RECONCILE_SETTLE": "1s",
        }
        make_store(tmp_path / "store.db")
        # One answer is slow, so that there is a middle to be killed in.
        simulator.add_fault("slow", where="/subscriptions/", skip=12, times=1, delay_s=60)
        with started(tmp_path, settings) as process:
            while sum("usage-history" in r["path"] for r in simulator.list_requests()) < 12:
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        simulator.clear_faults()
        with started(tmp_path, settings) as process:
            printed, complained = process.communicate(timeout=60)
        assert process.returncode == 0, complained
        assert "pass 1: 30 subscriptions" in printed
        assert "hunter2" not in printed + complained
        asked = Counter(r["path"] for r in simulator.list_requests() if "usage-history" in r["path"])
        assert len(asked) == 30 and max(asked.values()) <= 2
    finally:
        platform.stop()


def started(folder: Path, settings: dict[str, str]) -> "subprocess.Popen[str]":
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("TIDEGATE_", "BYTEWAX_"))}
    given = {f"TIDEGATE_{name}": value for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "bytewax.run", "tidegate.flows.reconciliation"],
        cwd=folder,
        env={**kept, **given, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_platforms_word_is_checked(metered: System) -> None:
    """What is no list of subscriptions is told as such, and a refused key too, without the key."""
    wrong = {"items": [{"subscription_id": 5}]}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=wrong))
    client = DodoClient("http://simulator", KEY, Rate(10, 60), transport=transport)
    with pytest.raises(DodoError, match="needs Subscription as the API describes them"):
        DodoReads(client).subscriptions()
    client.close()
    refused = AppTransport(build_platform(Platform(1, key="another"))[0])
    client = DodoClient("http://simulator", KEY, Rate(10, 60), transport=refused)
    with pytest.raises(Unauthorized) as caught:
        DodoReads(client).meters()
    assert "hunter2" not in str(caught.value)
    client.close()
    refused.close()
