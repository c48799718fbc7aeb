"""What a gate answers when the flow is behind, dead, or was never there, and for events that it accepted itself."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.serving.gate.fakes import NOW, Clock, Face, FakeHolds, catalog_text, gate_on
from tidegate.operators.columns.quantity import SCALE
from tidegate.operators.events.keys import compute_identity
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Place
from tidegate.serving.gate import AsyncGate, Gate
from tidegate.serving.gate.freshness import FlowState, Freshness
from tidegate.serving.gate.pending import EVENTS_MAX, Pending, PendingEvent

S = 1_000_000
KINDS = pytest.mark.parametrize("kind", [Gate, AsyncGate])
PLACE = Place("0", 100)


def beat(seconds: float, lag: float = 0, *, shard: int = 0, shards: int = 1, **more: Any) -> Heartbeat:
    """A heartbeat written so many seconds after NOW, of totals that were `lag` seconds old."""
    written = NOW + round(seconds * S)
    return Heartbeat(shard, shards, "0", written, written - round(lag * S), more.pop("positions", {}), **more)


class World:
    """A gate, a store and their clock. `calls` is the limit."""

    def __init__(self, calls: str, kind: type[Gate] | type[AsyncGate] = Gate, near: bool = False) -> None:
        self.clock = Clock()
        self.store = FakeHolds(catalog_text(calls))
        self.store.beats = [beat(0)]
        self.gate: Face = gate_on(self.store, kind, self.clock, near=near)

    def after(self, seconds: float, *beats: Heartbeat) -> None:
        self.clock.seconds = seconds
        if beats:
            self.store.beats = list(beats)

    def check(self, quantity: int = 1) -> Any:
        return self.gate.check("acme", "calls", quantity)


@KINDS
@pytest.mark.parametrize(("fail", "allowed"), [("closed", False), ("open", True)])
def test_a_dead_flow_makes_totals_stale_and_fail_decides(
    kind: type[Gate] | type[AsyncGate], fail: str, allowed: bool
) -> None:
    world = World(f"{{cap: 10, fail: {fail}}}", kind)
    assert world.check().reason == "within"
    world.after(4.9)
    assert world.check().reason == "within"
    world.after(5.3)
    decision = world.check()
    assert (decision.allowed, decision.reason, decision.degraded) == (allowed, "stale", True)
    assert decision.lag == round(5.3 * S)
    assert "5.3 s" in decision.detail
    world.after(6, beat(6))
    assert world.check().reason == "within"
    world.gate.close()


def test_a_live_flow_that_is_behind_is_as_stale_as_a_dead_one() -> None:
    world = World("{cap: 10, fail: closed}")
    world.after(30, beat(30, lag=20))
    assert world.check().reason == "stale"
    world.after(60, beat(60, lag=1))
    assert world.check().reason == "within"


def test_without_any_report_totals_are_stale() -> None:
    world = World("{cap: 10, fail: closed}")
    world.store.beats = []
    decision = world.check()
    assert (decision.allowed, decision.reason, decision.lag) == (False, "stale", None)


def test_an_input_that_ended_is_never_stale() -> None:
    world = World("{cap: 10, fail: closed}")
    world.after(0, beat(0, ended=True))
    world.check()
    world.after(86_400)
    assert (world.check().reason, world.check().lag) == ("within", 0)


@pytest.mark.parametrize(("max_lag", "reason"), [("off", "within"), ("2m", "within"), ("30s", "stale")])
def test_the_catalog_says_how_old_totals_may_be(max_lag: str, reason: str) -> None:
    world = World(f"{{cap: 10, fail: closed, max_lag: {max_lag}}}")
    world.check()
    world.after(60)
    assert world.check().reason == reason


@pytest.mark.parametrize("limit", ["{cap: 10, on_cap: allow}", "{cap: 10, shadow: true}", "{included: 10}"])
def test_who_denies_nobody_is_not_stale_but_says_its_lag(limit: str) -> None:
    world = World(limit)
    world.check()
    world.after(60)
    decision = world.check()
    assert decision.reason != "stale"
    assert decision.lag == 60 * S


def test_a_denial_by_old_totals_stands() -> None:
    """What is used can only be more."""
    world = World("{cap: 10, fail: open}")
    world.store.use("acme", calls=10)
    world.check()
    world.after(60)
    decision = world.check()
    assert (decision.allowed, decision.reason, decision.degraded) == (False, "cap_reached", True)


def test_a_reserve_on_stale_totals_holds_nothing_where_fail_is_closed() -> None:
    world = World("{cap: 10, fail: closed}")
    world.check()
    world.after(60)
    decision = world.gate.reserve("acme", "calls", 1, id="r1")
    assert (decision.allowed, decision.reason) == (False, "stale")
    assert not world.store.holds


def test_a_reserve_on_stale_totals_holds_where_fail_is_open() -> None:
    """Holds still bound what is granted."""
    world = World("{cap: 2, fail: open}")
    world.check()
    world.after(60)
    answers = [world.gate.reserve("acme", "calls", 1, id=f"r{i}").allowed for i in range(3)]
    assert answers == [True, True, False]


def test_half_of_a_flow_dead_is_half_of_the_customers() -> None:
    """Shard 0 of two stops reporting, shard 1 goes on."""
    world = World("{cap: 10, fail: closed}")
    world.after(0, beat(0, shard=0, shards=2), beat(0, shard=1, shards=2))
    names = [f"c{i}" for i in range(20)]
    assert {world.gate.check(name, "calls").reason for name in names} == {"within"}
    world.after(30, beat(0, shard=0, shards=2), beat(30, shard=1, shards=2))
    reasons = [world.gate.check(name, "calls").reason for name in names]
    assert {"within", "stale"} == set(reasons)


def test_the_age_is_counted_by_the_gates_own_clock() -> None:
    """The flow's machine is an hour ahead, or an hour behind: it is alive all the same once it is seen to be."""
    for skew in (3600, -3600):
        world = World("{cap: 10, fail: closed}")
        world.after(0, beat(skew))
        world.check()
        world.after(1, beat(skew + 1))
        assert world.check().reason == "within"
        world.after(7)
        assert world.check().reason == "stale"


def test_a_heartbeat_from_before_the_gate_began_is_dated_by_the_wall_clock() -> None:
    world = World("{cap: 10, fail: closed}")
    world.after(0, beat(-60))
    assert world.check().reason == "stale"


def test_a_heartbeat_that_came_long_after_the_last_read_is_dated_by_the_wall_clock() -> None:
    """The flow died a second after the last read, and the next read is a minute later."""
    freshness = Freshness(lambda: NOW + 60 * S)
    freshness.take([beat(0)], now=100)
    freshness.take([beat(1)], now=160)
    assert freshness.state(160, 5 * S) == FlowState(1, 1, 59 * S)


def test_a_clock_that_differs_makes_no_heartbeat_older_than_the_read_before() -> None:
    freshness = Freshness(lambda: NOW + 3600 * S)
    freshness.take([beat(0)], now=100)
    freshness.take([beat(1)], now=101)
    assert freshness.state(101, 5 * S) == FlowState(1, 0, 1 * S)


def pending(n: int = 1, *, at: int = NOW, place: Place = PLACE) -> PendingEvent:
    return PendingEvent(at, {"calls": n * SCALE}, place)


def accept(world: World, id: str, event: PendingEvent) -> None:
    world.gate.gate.accepted("acme", compute_identity("acme", "", id), event)


@pytest.mark.parametrize("near", [False, True])
def test_a_check_reads_what_was_accepted_and_is_not_counted_yet(near: bool) -> None:
    world = World("{cap: 10, fail: closed, max_lag: off}", near=near)
    world.store.use("acme", calls=7)
    world.check()
    for i in range(3):
        accept(world, f"e{i}", pending())
        accept(world, f"e{i}", pending())
    decision = world.check()
    assert (decision.allowed, decision.used) == (False, Decimal(10))
    assert not world.gate.reserve("acme", "calls", 1, id="r").allowed
    # The flow has counted two of them when it reports a place behind theirs.
    world.store.use("acme", calls=10)
    world.after(1, beat(1, positions={"0": 100}))
    assert world.check().used == Decimal(10)
    world.gate.close()


def test_a_pending_event_outside_the_period_adds_nothing() -> None:
    world = World("{cap: 10, max_lag: off}")
    accept(world, "old", pending(9, at=NOW - 400 * 86_400 * S))
    assert world.check().used == Decimal(0)


def test_an_event_whose_hold_is_open_is_counted_once() -> None:
    world = World("{cap: 10, max_lag: off}")
    assert world.gate.reserve("acme", "calls", 4, timedelta(minutes=5), id="e1").allowed
    accept(world, "e1", pending(4))
    decision = world.check()
    assert (decision.used, decision.reserved) == (Decimal(0), Decimal(4))


def test_pending_events_are_bounded_and_their_sum_stays_exact() -> None:
    events = Pending()
    for i in range(3 * EVENTS_MAX):
        events.add("acme", compute_identity("acme", "", str(i)), pending(1, place=Place("0", i + 1)))
    found, merged = events.of("acme", {"0": 0})
    assert len(found) == EVENTS_MAX
    assert merged is not None and merged.quantities["calls"] == 2 * EVENTS_MAX * SCALE
    events.prune(lambda customer: {"0": 3 * EVENTS_MAX})
    assert "acme" not in events
