"""What becomes of usage that waits, whatever the provider does. The provider is its simulator, time is the world's."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.connectors.dodo.billing_world import MINUTE, SECOND, World, accepted, world
from tests.support.platform import KEY
from tidegate.connectors.dodo.client import Answer, DodoClient
from tidegate.connectors.dodo.sender import Terms
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.outbox.schema import State
from tidegate.operators.billing.rate_limit import TIERS
from tidegate.operators.model.catalog import Customer, Meter


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def test_events_arrive_once_in_full_batches_oldest_first(here: World) -> None:
    newer, older = here.come(1200, ago=60), here.come(1300, ago=120)
    here.turns()
    here.conserved(newer, older)
    assert here.waiting == 0
    assert [request["events"] for request in here.ingests()] == [1000, 1000, 500]
    stored = [event["event_id"] for event in here.simulator.list_events()]
    assert stored == [event.id for event in [*older, *newer]]


def test_a_few_events_wait_for_more_but_not_longer_than_they_may(here: World) -> None:
    here.come(3)
    pause = here.sender.turn()
    assert pause == pytest.approx(1.0)
    here.wait(0.6)
    here.come(4)
    assert here.sender.turn() == pytest.approx(0.4)
    here.wait(0.4)
    here.sender.turn()
    assert [request["events"] for request in here.ingests()] == [7]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "rate_limited"},
        {"kind": "error", "status": 500},
        {"kind": "error", "status": 503},
        {"kind": "error_after_commit", "status": 502},
        {"kind": "reset"},
        {"kind": "reset_after_commit"},
        {"kind": "hang"},
        {"kind": "hang_after_commit"},
        {"kind": "html"},
        {"kind": "html", "commit": False},
        {"kind": "truncated"},
        {"kind": "no_count"},
        {"kind": "no_count", "body": '{"ingested_count": "7"}'},
        {"kind": "no_count", "body": '{"ingested_count": true}'},
        {"kind": "no_count", "body": "[1]", "commit": False},
        {"kind": "error", "status": 408},
        {"kind": "error", "status": 404},
    ],
    ids=lambda fault: "-".join(str(part) for part in fault.values()),
)
def test_without_a_clear_answer_the_same_ids_are_sent_again(here: World, fault: dict[str, Any]) -> None:
    here.simulator.add_fault(**fault, times=3)
    events = here.come(50)
    here.turns()
    here.conserved(events)
    assert here.waiting == 0
    assert len(here.ledger()) == 50
    assert here.read_statistics().counts["acknowledged"] == 50


def test_pauses_grow_and_a_wished_one_is_kept(here: World) -> None:
    here.simulator.add_fault("error", times=6)
    here.come(5, ago=10)
    here.turns()
    times = [request["at"] for request in here.ingests()]
    assert len(times) == 7
    here.simulator.add_fault("rate_limited", retry_after="77")
    here.come(5, ago=10)
    before = here.now
    here.turns()
    assert here.now - before >= 77 * SECOND


def test_a_poison_event_in_a_thousand_costs_no_good_event_and_at_most_22_requests(here: World) -> None:
    events = here.come(1000, ago=20, poison=[700])
    here.simulator.add_fault("refuse", match="poison", status=400, times=None)
    here.turns()
    here.conserved(events)
    assert len(here.ledger()) == 999
    assert len(here.simulator.list_requests()) <= 22
    (letter,) = here.kept(State.refused)
    assert (letter.id, letter.reason) == (events[700].id, "refused_by_platform")
    assert letter.detail.startswith("400 INVALID_REQUEST_PARAMETERS event ")


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("swapped", [True, False])
def test_poison_anywhere_is_found_whatever_a_refused_batch_leaves(
    here: World, atomic: bool, swapped: bool
) -> None:
    here.simulator.set_switches(atomic_batches=atomic, swap_400_422=swapped)
    events = here.come(300, ago=20, poison=(0, 7, 150, 151, 299))
    here.simulator.add_fault("refuse", match="poison", times=None)
    here.turns()
    here.conserved(events)
    assert {entry.id for entry in here.kept(State.refused)} == {e.id for e in events if e.id[0] == "p"}
    assert len(here.ledger()) == 295


def test_faults_in_the_midst_of_a_bisection_lose_nothing(here: World) -> None:
    events = here.come(400, ago=20)
    here.simulator.add_fault("refuse", match=events[123].id, times=None)
    here.simulator.add_fault("reset_after_commit", probability=0.3, times=None)
    here.simulator.add_fault("rate_limited", probability=0.2, times=None)
    here.turns(3000)
    here.conserved(events)
    assert here.waiting == 0
    assert [entry.id for entry in here.kept(State.refused)] == [events[123].id]


def test_a_body_that_is_too_large_is_halved_and_later_ones_are_smaller(here: World) -> None:
    here.simulator.set_switches(max_body_bytes=60_000)
    events = here.come(1000, ago=20)
    here.turns()
    here.conserved(events)
    assert len(here.ledger()) == 1000
    first = len(here.ingests())
    here.come(1000, ago=20)
    here.turns()
    refused = [request for request in here.ingests()[first:] if request["status"] == 413]
    assert not refused


def test_an_event_that_is_too_large_alone_is_a_dead_letter(here: World) -> None:
    here.simulator.set_switches(max_body_bytes=600)
    large = here.come(1, ago=30, text="x" * 450)
    small = here.come(20, ago=20)
    here.turns()
    here.conserved(large, small)
    assert [(entry.id, entry.reason) for entry in here.kept(State.refused)] == [(large[0].id, "too_large")]


def test_a_refusal_of_what_the_platform_has_is_no_loss(here: World) -> None:
    """Sent at 54 minutes, stored, the answer lost; refused as expired when sent again."""
    here.simulator.add_fault("reset_after_commit")
    events = here.come(1, ago=53 * 60)
    here.wait(1)
    here.sender.turn()
    here.ahead = timedelta(minutes=7)
    here.turns(90)
    here.conserved(events)
    assert here.read_statistics().counts["acknowledged"] == 1
    assert here.lookups() == 2


def test_a_refused_event_of_which_an_answer_is_missing_is_looked_up_when_it_would_show(here: World) -> None:
    """The provider shows events late: not there at once means nothing yet."""
    here.simulator.set_switches(event_visibility_lag_s=40)
    events = here.come(1, ago=20)
    here.simulator.add_script("reset_after_commit", {"kind": "error", "status": 400})
    here.turns()
    here.conserved(events)
    assert here.read_statistics().counts["acknowledged"] == 1
    assert not here.kept(State.refused)


def test_a_key_that_is_refused_stops_all_keeps_all_and_goes_on_when_it_works(here: World) -> None:
    came = []
    for mode, status in (("revoked", 401), ("read_only", 403)):
        here.simulator.set_key_mode(mode)
        came.append(here.come(1500, ago=10))
        here.turns(120)
        assert here.waiting == 1500
        assert {request["status"] for request in here.ingests()[-3:]} == {status}
        # One event is enough to try with.
        assert here.ingests()[-1]["events"] in (None, 0, 1)
        assert "unauthorized" in here.read_statistics().alerts
        here.simulator.set_key_mode("read_write")
        here.turns()
        here.conserved(*came)
        assert here.waiting == 0
        assert "unauthorized" not in here.read_statistics().alerts


def test_usage_ahead_of_time_waits_until_it_may_go(here: World) -> None:
    events = here.come(2, ago=-4.9 * 60)
    here.turns(30)
    assert here.waiting == 2 and not here.ingests()
    here.turns(60)
    here.conserved(events)
    assert here.waiting == 0


def test_too_old_usage_is_restamped_within_its_period_under_the_same_id(here: World) -> None:
    events = here.come(3, ago=56 * 60)
    here.turns()
    here.conserved(events)
    for event in events:
        stored = here.ledger()[event.id]
        assert stored["timestamp"] == "2026-11-22T12:00:00Z" or stored["timestamp"] > "2026-11-22T12:00"
        assert stored["metadata"]["orig_ts"].startswith("2026-11-22T11:04:00")
    assert here.read_statistics().counts["restamped"] == 3


def test_every_restamped_event_is_on_the_books(here: World) -> None:
    events = here.come(3, ago=56 * 60)
    here.come(3)
    here.turns()
    reader = OutboxReader(here.path)
    assert {entry.id for entry in reader.restamped()} == {event.id for event in events}
    reader.close()


def test_usage_of_a_closed_period_is_never_billed_into_another(here: World) -> None:
    """The day began at midnight, twelve hours ago."""
    yesterday, today = here.come(2, ago=12 * 3600 + 60), here.come(2, ago=11 * 3600)
    here.turns()
    here.conserved(yesterday, today)
    assert here.reasons() == {"period_closed": 2}
    assert {entry.id for entry in here.kept(State.parked)} == {event.id for event in yesterday}


def test_late_park_keeps_all_that_is_too_old(tmp_path: Path) -> None:
    with world(tmp_path, Terms(late="park", concurrency=1)) as here:
        old, new = here.come(3, ago=56 * 60), here.come(3)
        here.turns()
        here.conserved(old, new)
        assert here.reasons() == {"too_old": 3}
        assert here.lookups() == 0


def test_what_may_have_arrived_is_looked_up_before_it_is_parked(tmp_path: Path) -> None:
    """An answer that was lost at 54 minutes must not become a credit by hand as well."""
    with world(tmp_path, Terms(late="park", concurrency=1)) as here:
        here.simulator.add_fault("hang_after_commit")
        arrived = here.come(1, ago=54.9 * 60)
        here.wait(1)
        here.sender.turn()
        here.simulator.add_fault("hang", times=None)
        lost = here.come(1, ago=54.8 * 60)
        here.turns(15)
        here.simulator.clear_faults()
        here.turns()
        here.conserved(arrived, lost)
        assert here.reasons() == {"too_old": 1}
        assert here.lookups() == 2


def test_ages_are_looked_at_again_before_each_attempt(here: World) -> None:
    """Young enough at the first try, too old when the provider is back: it goes without its own time."""
    here.simulator.add_fault("error", status=503, times=10)
    events = here.come(10, ago=54.5 * 60)
    here.turns()
    here.conserved(events)
    assert here.waiting == 0
    ingests = here.ingests()
    assert len(ingests) == 11
    assert all("orig_ts" in event["metadata"] for event in here.ledger().values())
    assert not [request for request in ingests if request["status"] == 400]


def test_a_customer_without_a_billing_id_waits_until_the_catalog_has_one(here: World) -> None:
    mapped, unmapped = here.come(5, ago=5), here.come(5, ago=5, customer="newcomer")
    here.turns()
    here.conserved(mapped, unmapped)
    assert here.reasons() == {"no_billing_id": 5}
    assert len(here.ledger()) == 5
    known = {**here.catalog.customers, "newcomer": Customer("newcomer", "p", billing_id="cus_bolt")}
    here.catalog = type(here.catalog)(here.catalog.meters, here.catalog.plans, known)
    here.turns()
    here.conserved(mapped, unmapped)
    assert not here.reasons()
    assert len(here.ledger()) == 10


def test_a_customer_whom_nobody_bills_can_be_skipped(tmp_path: Path) -> None:
    with world(tmp_path, Terms(unmapped="skip", concurrency=1)) as here:
        here.come(5, ago=5), here.come(5, ago=5, customer="free")
        here.turns()
        assert not here.reasons()
        assert here.read_statistics().counts["skipped"] == 5
        assert here.waiting == 0


def test_an_unknown_customer_is_found_out_once_and_parked_whole(here: World) -> None:
    """A typo in the catalog must not cost a request per event, nor make dead letters of them."""
    known = {**here.catalog.customers, "typo": Customer("typo", "p", billing_id="cus_typo")}
    here.catalog = type(here.catalog)(here.catalog.meters, here.catalog.plans, known)
    good = here.come(500, ago=10)
    bad = here.come(500, ago=10, customer="typo")
    here.turns(60)
    here.conserved(good, bad)
    assert here.reasons() == {"unknown_customer": 500}
    assert len(here.ledger()) == 500
    assert len(here.simulator.list_requests()) <= 22
    # The provider gets to know the customer; it is asked again now and then.
    here.simulator.create_customer("cus_typo")
    here.wait(11 * 60)
    here.turns()
    here.turns()
    assert len(here.ledger()) == 1000


def test_a_platform_that_takes_unknown_customers_is_served_too(here: World) -> None:
    here.simulator.set_switches(unknown_customer="accept_unattributed")
    events = here.come(5, ago=5, customer="cus_unheard_of")
    here.turns()
    here.conserved(events)
    assert len(here.ledger()) == 5


def test_an_event_against_the_rules_never_leaves(here: World) -> None:
    good, huge = here.come(5, ago=5), [accepted(here.now, tokens=2**63)]
    here.outbox.add(huge)
    here.turns()
    here.conserved(good, huge)
    assert here.reasons() == {"number_not_exact": 1}
    assert {request["status"] for request in here.ingests()} == {200}


def test_refusals_without_end_slow_down(here: World) -> None:
    """One after the other and nothing taken: that is no matter of single events, and not to be hurried."""
    here.simulator.add_fault("error", status=400, times=None)
    events = here.come(100, ago=10)
    here.turns(300)
    here.conserved(events)
    assert "refusing" in here.read_statistics().alerts
    assert len(here.simulator.list_requests()) < 250
    here.simulator.clear_faults()
    here.come(1)
    here.turns(600)
    assert "refusing" not in here.read_statistics().alerts


def test_waiting_usage_is_an_alert_well_before_the_hour(here: World) -> None:
    here.simulator.add_fault("error", status=503, times=None)
    here.come(5)
    here.turns(15 * 60)
    assert "old" not in here.read_statistics().alerts
    here.turns(6 * 60)
    assert "old" in here.read_statistics().alerts
    here.simulator.clear_faults()
    here.turns()
    here.wait(6)
    here.sender.turn()
    assert not here.read_statistics().alerts


def test_a_provider_that_cannot_be_reached_is_an_alert_that_says_why(
    here: World, caplog: pytest.LogCaptureFixture
) -> None:
    here.come(5)
    real, here.client = here.client, DodoClient("http://127.0.0.1:9", KEY, TIERS[0], sleep=here.wait)
    here.turns(60)
    assert "refused" in here.read_statistics().alerts["unreachable"]
    assert "ConnectError" in caplog.text
    here.client = real
    here.turns()
    assert not here.read_statistics().alerts


@pytest.mark.parametrize("ago", [54, 57])
def test_a_proxys_page_holds_nothing_back_and_declares_nobody_unknown(ago: int, tmp_path: Path) -> None:
    """An answer is lost, then a proxy answers every look-up, and later every batch, with pages of its own."""
    with world(tmp_path, Terms(concurrency=1, late="park")) as here:
        here.simulator.add_fault("reset_after_commit", times=1)
        (event,) = here.come(1, ago=50 * 60)
        here.sender.turn(linger=False)
        here.wait((ago - 50) * 60)
        real = here.client
        for status in (404, 403, 400, 422, 401, 410, 502):
            page = httpx.Response(status, headers={"content-type": "text/html"}, text="<html>no</html>")
            here.client = DodoClient(
                "http://platform", KEY, TIERS[0], transport=httpx.MockTransport(lambda _, page=page: page)
            )
            here.turns(120, whole=True)
            assert not here.reasons()
        here.client = real
        here.turns(300)
        here.conserved([event])
        assert not here.reasons() and "unauthorized" not in here.read_statistics().alerts


def test_a_last_value_is_not_restamped_after_a_newer_one(here: World) -> None:
    here.catalog = replace(here.catalog, meters=(Meter("seats", "llm", "last", "tokens"),))
    new, old = here.come(1, ago=1), here.come(1, ago=57 * 60)
    here.turns()
    here.conserved(new, old)
    assert here.reasons() == {"last_value": 1}


def test_an_outbox_that_fills_up_is_an_alert_long_before_it_is_full(tmp_path: Path) -> None:
    with world(tmp_path, bytes_max=2_000_000) as here:
        here.simulator.add_fault("error", status=503, times=None)
        while here.outbox.used() < 0.6:
            here.come(500)
        here.turns(10)
        assert set(here.read_statistics().alerts) == {"half_full", "unreachable"}
        while here.outbox.used() < 0.85:
            here.come(500)
        here.turns(10)
        assert set(here.read_statistics().alerts) == {"half_full", "nearly_full", "unreachable"}


@pytest.mark.parametrize("arrives", [True, False])
def test_a_crash_at_any_request_sends_nothing_twice_and_loses_nothing(here: World, arrives: bool) -> None:
    """The process ends while a request is under way, whether it arrived or not, again and again."""

    class Killed(Exception):
        pass

    def dying(events: Sequence[bytes]) -> Answer:
        if arrives:
            real(events)
        raise Killed

    came = []
    for _ in range(6):
        came.append(here.come(30, ago=40))
        real = here.client.ingest
        here.client.ingest = dying  # type: ignore[method-assign]
        with pytest.raises(Killed):
            here.turns()
        here.crash()
    here.turns()
    here.conserved(*came)
    assert len(here.ledger()) == 180


def test_sustained_forwarding_reaches_95_percent_of_the_limit_without_a_429(here: World) -> None:
    """Five minutes of a backlog at tier 0, at a tenth of a second per request."""
    here.trip = 0.1
    here.terms = here.terms._replace(events_max=5)
    here.crash()
    began = here.now

    def more() -> None:
        if here.waiting < 50:
            here.come(200)

    here.turns(300, more)
    ingests = here.ingests()
    minutes = (here.now - began) / MINUTE
    assert {request["status"] for request in ingests} == {200}
    assert len(ingests) / minutes >= 0.95 * TIERS[0].sustained


def test_fresh_usage_does_not_wait_behind_what_is_late_nor_late_usage_for_ever(here: World) -> None:
    here.terms = here.terms._replace(events_max=10)
    here.crash()
    late = {event.id for event in here.come(400, ago=2 * 3600)}

    def more() -> None:
        if here.waiting < 500:
            here.come(100)

    here.turns(10, more)
    arrived = [event["event_id"] in late for event in here.simulator.list_events()]
    assert 0.15 < sum(arrived) / len(arrived) < 0.35


def test_what_grew_too_old_while_others_were_sent_does_not_go_out_as_young(tmp_path: Path) -> None:
    """Batches of one turn go one after the other, and each request may take long."""
    with world(tmp_path, Terms(bytes_max=2_000, concurrency=1)) as here:
        here.trip = 15
        events = here.come(40, ago=54.4 * 60)
        here.turns()
        here.conserved(events)
        with closing(OutboxReader(here.path)) as reader:
            found = reader.find(event.id for event in events)
        late = [entry for entry in found.values() if entry.restamped_at]
        for entry in found.values():
            assert entry.settled_at
            sent = entry.restamped_at or entry.settled_at - here.trip * SECOND
            assert (sent - entry.at > 55 * MINUTE) == (entry.restamped_at is not None)
        assert 0 < len(late) < 40


def test_what_a_refused_batch_may_have_left_is_waited_for(here: World) -> None:
    """The batch is refused for one, the other is stored, refused when sent alone, and not yet to be seen."""
    known = {**here.catalog.customers, "typo": Customer("typo", "p", billing_id="cus_typo")}
    here.catalog = type(here.catalog)(here.catalog.meters, here.catalog.plans, known)
    here.simulator.set_switches(atomic_batches=False, event_visibility_lag_s=40)
    good, bad = here.come(1, ago=30), here.come(1, ago=20, customer="typo")
    here.simulator.add_script("ok", {"kind": "error", "status": 400})
    here.turns()
    here.conserved(good, bad)
    assert here.reasons() == {"unknown_customer": 1}
    assert here.read_statistics().counts["acknowledged"] == 1


def test_what_just_arrived_is_not_parked_because_it_does_not_show_yet(tmp_path: Path) -> None:
    with world(tmp_path, Terms(late="park", concurrency=1)) as here:
        here.simulator.set_switches(event_visibility_lag_s=40)
        events = here.come(1, ago=54.9 * 60)
        here.wait(1)
        here.simulator.add_script("hang_after_commit", *[{"kind": "error", "status": 503}] * 7)
        here.turns()
        here.conserved(events)
        assert not here.reasons()


@pytest.mark.parametrize("kind", ["rate_limited", "key"])
def test_what_was_surely_not_taken_is_not_looked_up(tmp_path: Path, kind: str) -> None:
    """After a storm of 429 or a day with a wrong key there is nobody to ask for."""
    with world(tmp_path, Terms(late="park", concurrency=1)) as here:
        if kind == "key":
            here.simulator.set_key_mode("revoked")
        else:
            here.simulator.add_fault(kind, times=None)
        events = here.come(30, ago=54.8 * 60)
        here.turns(60)
        here.simulator.set_key_mode("read_write")
        here.simulator.clear_faults()
        here.turns()
        here.conserved(events)
        assert here.reasons() == {"too_old": 30}
        assert here.lookups() == 0


def test_no_id_is_twice_in_a_request_though_time_passes_between_two_looks(here: World) -> None:
    """Events on the very edge of 55 minutes, each look at the clock a millisecond after the last."""
    events = here.come(900, ago=55 * 60 - 1)
    here.sender._clock = here.outbox.clock = lambda: setattr(here, "now", here.now + 100) or here.now  # type: ignore[func-returns-value]
    sent: list[list[str]] = []
    real = here.client.ingest

    def noting(events: Sequence[bytes]) -> Answer:
        sent.append([json.loads(body)["event_id"] for body in events])
        return real(events)

    here.client.ingest = noting  # type: ignore[method-assign]
    here.turns()
    here.conserved(events)
    assert any("orig_ts" in event["metadata"] for event in here.ledger().values())
    assert any("orig_ts" not in event["metadata"] for event in here.ledger().values())
    assert all(len(ids) == len(set(ids)) for ids in sent)


@pytest.mark.parametrize(("minutes", "goes"), [(-4.5, True), (0, True), (4.5, False)])
def test_usage_is_not_restamped_into_the_next_period_by_a_clock_that_is_apart(
    here: World, minutes: float, goes: bool
) -> None:
    """Five minutes before the end by our clock; by the provider's it is 30 seconds where it is ahead."""
    here.ahead = timedelta(minutes=minutes)
    here.wait(11 * 3600 + 55 * 60 - 10)
    fresh = here.come(1)
    here.turns(10)
    old = here.come(1, ago=58 * 60)
    here.turns(60)
    here.conserved(fresh, old)
    assert here.reasons() == ({} if goes else {"period_closed": 1})


def test_what_is_ahead_of_a_slow_clock_waits_for_it(here: World) -> None:
    here.ahead = timedelta(minutes=-4.5)
    here.wait(1)
    fresh = here.come(1)
    here.turns(10)
    early = here.come(1, ago=-3 * 60)
    here.turns(600)
    here.conserved(fresh, early)
    assert not here.reasons()
