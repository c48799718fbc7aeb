"""The gate on a store that does as it is told: what applications get, whatever the store does."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.serving.gate.fakes import NOW, Clock, Face, FakeHolds, catalog_text, gate_on
from tidegate.operators.model.ports import Account, StoreError, Used
from tidegate.serving.gate import AsyncGate, Decision, Gate, UnknownMeter
from tidegate.serving.gate.breaker import FAILURES, PAUSE_FIRST
from tidegate.serving.gate.core import THREADS
from tidegate.settings.catalog.file import parse_catalog

PATIENCE = 30
CLOSED = "{cap: 10, fail: closed}"
SHORT = timedelta(milliseconds=20)


@pytest.fixture(params=[Gate, AsyncGate], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def opened() -> Iterator[Callable[..., Face]]:
    """Gates that are closed at the end."""
    gates: list[Face] = []

    def opening(*given: Any, **choices: Any) -> Face:
        gates.append(gate_on(*given, **choices))
        return gates[-1]

    yield opening
    for gate in gates:
        gate.close()


Opened = Callable[..., Face]


def soon(happens: Callable[[], object]) -> None:
    """Waits until it does, and fails if it never will."""
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# As it should be


def test_a_check_is_one_look_at_the_store(opened: Opened, kind: Any) -> None:
    store = FakeHolds(catalog_text())
    gate = opened(store, kind)
    gate.check("acme", "calls")
    store.use("acme", calls=9)
    store.calls.clear()
    decision = gate.check("acme", "calls")
    assert (decision.allowed, decision.used, decision.catalog, decision.degraded) == (
        True,
        Decimal(9),
        1,
        False,
    )
    assert not gate.check("acme", "calls", 2).allowed
    assert not gate.check_many("acme", {"tokens": Decimal("0.5"), "calls": 2}).allowed
    assert store.calls == ["account"] * 3
    assert gate.gate.counters() == {"allowed": 2, "denied": 2}


def test_what_is_reserved_counts_until_it_is_released(opened: Opened, kind: Any) -> None:
    gate = opened(FakeHolds(catalog_text()), kind)
    first = gate.reserve("acme", "calls", 8, id="1")
    assert (first.allowed, first.reason) == (True, "within")
    assert (first.reserved, first.remaining) == (Decimal(8), Decimal(2))
    again = gate.reserve("acme", "calls", 8, id="1")
    assert (again.allowed, again.reason, again.reserved) == (True, "held", Decimal(8))
    other = gate.reserve("acme", "calls", 7, id="1")
    assert (other.allowed, other.reason) == (False, "conflict") and "id" in other.detail
    assert not gate.check("acme", "calls", 3).allowed
    full = gate.reserve("acme", "calls", 3, id="2")
    assert (full.allowed, full.reason, full.remaining) == (False, "cap_reached", Decimal(2))
    assert gate.release("acme", "1").state == "released"
    assert gate.reserve("acme", "calls", 3, id="2").allowed
    assert gate.release("acme", "nobody").state == "unknown"


def test_a_commit_says_by_how_much_it_exceeds_what_was_held(opened: Opened, kind: Any) -> None:
    gate = opened(FakeHolds(catalog_text()), kind)
    gate.reserve("acme", "calls", 8, id="1")
    assert gate.commit("acme", "1", 8).exceeded == {}
    assert gate.commit("acme", "1").exceeded == {}
    assert gate.commit("acme", "1", Decimal("9.5")).exceeded == {"calls": Decimal("1.5")}
    assert gate.commit("acme", "1", {"calls": 10}).exceeded == {"calls": 2}
    assert gate.commit("acme", "2").state == "unknown"


def test_a_reserve_that_a_spend_cap_denies_holds_nothing(opened: Opened, kind: Any) -> None:
    """Money depends on all meters, so the store alone cannot say; and others reserve in between."""
    store = FakeHolds(catalog_text("{tiers: [{price: 2}]}", "    spend_cap: {cap: 10}\n"))
    gate = opened(store, kind)
    assert gate.reserve("acme", "calls", 3, id="1").allowed
    denied = gate.reserve("acme", "calls", 3, id="2")
    assert (denied.allowed, denied.scope) == (False, "spend")
    assert (denied.reserved, denied.remaining) == (Decimal(6), Decimal(4))
    assert len(store.holds) == 1
    assert gate.reserve("acme", "calls", 3, id="1").reason == "held"
    assert gate.reserve("acme", "calls", 2, id="2").allowed


def test_a_reserve_that_others_always_outrun_gives_up_in_time(opened: Opened, kind: Any) -> None:
    """Money is compared with what was seen; who never sees what is, must not try for ever."""
    store = FakeHolds(
        catalog_text("{tiers: [{price: 2}], fail: closed}", "    spend_cap: {cap: 10, fail: closed}\n")
    )
    clock = Clock()
    gate = opened(store, kind, clock)
    gate.check("acme", "calls")
    store.answer = "moved"

    def time_passes() -> None:
        clock.seconds += 0.3

    store.act = time_passes
    decision = gate.reserve("acme", "calls", 1, id="1")
    assert (decision.allowed, decision.degraded) == (False, True) and "at the same time" in decision.detail
    assert 2 < store.calls.count("reserve") < 10


def test_arguments_that_cannot_be_are_the_callers_error(opened: Opened, kind: Any) -> None:
    gate = opened(FakeHolds(catalog_text(CLOSED)), kind)
    wrong: list[Callable[[], object]] = [
        lambda: gate.check("", "calls"),
        lambda: gate.check(None, "calls"),
        lambda: gate.check("x" * 257, "calls"),
        lambda: gate.check("\ud800", "calls"),
        lambda: gate.check("acme", "calls", -1),
        lambda: gate.check("acme", "calls", 0.5),
        lambda: gate.check("acme", "calls", True),
        lambda: gate.check("acme", "calls", "1"),
        lambda: gate.check("acme", "calls", 10**15 + 1),
        lambda: gate.check("acme", "calls", Decimal("NaN")),
        lambda: gate.check("acme", "calls", Decimal("1e-25")),
        lambda: gate.check_many("acme", {}),
        lambda: gate.reserve("acme", "calls", 1, id=""),
        lambda: gate.reserve("acme", "calls", 1, id="x" * 1025),
        lambda: gate.reserve("acme", "calls", 1, timedelta(0), id="1"),
        lambda: gate.reserve("acme", "calls", 1, timedelta(days=8), id="1"),
        lambda: gate.commit("acme", "1", 0.5),
        lambda: gate.commit("acme", ""),
        lambda: gate.release("acme", "\ud800"),
    ]
    for act in wrong:
        with pytest.raises(ValueError):
            act()
    for choice in ("timeout", "write_timeout", "staleness", "settle_within"):
        with pytest.raises(ValueError, match=choice):
            Gate(FakeHolds(), **{choice: timedelta(0)})  # type: ignore[arg-type]


def test_a_meter_that_nobody_knows_is_told(opened: Opened, kind: Any) -> None:
    """A typo must not pass for a meter without a cap."""
    store = FakeHolds(catalog_text())
    gate = opened(store, kind)
    acts: list[Callable[[], Decision]] = [
        lambda: gate.check("acme", "cals"),
        lambda: gate.check_many("acme", {"calls": 1, "cals": 1}),
        lambda: gate.reserve("acme", "cals", 1, id="r"),
    ]
    for act in acts:
        with pytest.raises(UnknownMeter, match="no 'cals'; did you mean 'calls'"):
            act()
    assert not store.holds
    asked_for = opened(FakeHolds(catalog_text()), kind, unknown_meters=True).check("acme", "cals")
    assert (asked_for.allowed, asked_for.reason) == (True, "unknown_meter")


def test_the_source_is_part_of_the_identity(opened: Opened) -> None:
    store = FakeHolds(catalog_text())
    gate = opened(store, source="/api")
    gate.reserve("acme", "calls", 1, id="1")
    gate.reserve("acme", "calls", 1, id="2", source="")
    assert [hold.source for hold in store.holds.values()] == ["/api", ""]


# The store is away


def fails(error: Exception) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    "error",
    [StoreError("away"), TypeError("nonsense"), KeyError("nonsense"), OSError(5, "gone"), TimeoutError()],
)
@pytest.mark.parametrize(("limit", "allowed"), [("{cap: 10}", True), (CLOSED, False)])
def test_each_cap_says_what_it_does_and_the_answer_that_it_did(
    opened: Opened, kind: Any, error: Exception, limit: str, allowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeHolds(catalog_text(limit))
    gate = opened(store, kind)
    assert not gate.check("acme", "calls").degraded
    store.act = fails(error)
    with caplog.at_level(logging.WARNING):
        decision = gate.check("acme", "calls")
        reserved = gate.reserve("acme", "calls", 1, id="1")
    for answer in (decision, reserved):
        assert (answer.allowed, answer.degraded, answer.reason) == (allowed, True, "unavailable")
        assert answer.detail and answer.catalog == 1
    assert gate.gate.counters()["degraded"] == 2
    assert "degraded" in caplog.text
    assert gate.commit("acme", "1").state == gate.release("acme", "1").state == "unavailable"
    store.act = lambda: None
    decision = gate.check("acme", "calls")
    assert (decision.allowed, decision.degraded) == (True, False)


@pytest.mark.parametrize("self_timed", [False])
@pytest.mark.parametrize(("limit", "allowed"), [("{cap: 10}", True), (CLOSED, False)])
def test_a_store_that_does_not_answer_is_not_waited_for(
    opened: Opened, kind: Any, self_timed: bool, limit: str, allowed: bool
) -> None:
    store = FakeHolds(catalog_text(limit), self_timed)
    gate = opened(store, kind, timeout=SHORT, write_timeout=SHORT)
    soon(lambda: not gate.check("acme", "calls").degraded)
    go_on = threading.Event()
    store.act = lambda: go_on.wait(PATIENCE)
    try:
        # That they come at all shows that nobody waited: the store goes on only afterwards.
        for _ in range(2 * FAILURES):
            decision = gate.check("acme", "calls")
            assert (decision.allowed, decision.degraded) == (allowed, True)
            assert gate.reserve("acme", "calls", 1, id="1").allowed == allowed
            assert gate.commit("acme", "1").degraded
    finally:
        go_on.set()
    soon(lambda: not gate.check("acme", "calls").degraded)


def test_an_event_loop_goes_on_while_the_store_does_not(opened: Opened) -> None:
    store = FakeHolds(catalog_text())
    go_on = threading.Event()

    async def main() -> int:
        turns = 0
        async with AsyncGate(store, near=False, timeout=timedelta(seconds=PATIENCE)) as gate:
            await gate.check("acme", "calls")
            store.act = lambda: go_on.wait(PATIENCE)
            waiting = asyncio.create_task(gate.check("acme", "calls"))
            for _ in range(10):
                turns += 1
                await asyncio.sleep(0)
            go_on.set()
            assert (await waiting).allowed
        return turns

    assert asyncio.run(main()) == 10
    assert store.closed


def test_a_decision_that_is_cancelled_leaves_the_gate_as_it_was(opened: Opened) -> None:
    """Clients go away while their request is being decided."""
    store = FakeHolds(catalog_text())
    go_on = threading.Event()

    async def main() -> None:
        async with AsyncGate(store, near=False, timeout=timedelta(seconds=PATIENCE)) as gate:
            await gate.check("acme", "calls")
            store.act = lambda: go_on.wait(PATIENCE)
            waiting = asyncio.create_task(gate.check("acme", "calls"))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            go_on.set()
            assert not (await gate.check("acme", "calls")).degraded

    asyncio.run(main())


def slowly(clock: Clock, error: Exception, only: str = "") -> Callable[[], object]:
    """Fails, after a while, at every call or at those of one kind."""

    def act(store: FakeHolds) -> None:
        if not only or store.calls[-1] == only:
            clock.seconds += 10
            raise error

    return act  # type: ignore[return-value]


def test_a_store_that_fails_again_and_again_is_left_alone_for_a_moment(opened: Opened, kind: Any) -> None:
    store, clock = FakeHolds(catalog_text()), Clock()
    gate = opened(store, kind, clock)
    gate.check("acme", "calls")
    act = slowly(clock, StoreError("away"))
    store.act = lambda: act(store)  # type: ignore[call-arg]
    store.calls.clear()
    for _ in range(10):
        assert gate.check("acme", "calls").degraded
    assert store.calls == ["account"] * FAILURES
    clock.seconds += PAUSE_FIRST
    assert gate.check("acme", "calls").degraded and gate.check("acme", "calls").degraded
    assert store.calls == ["account"] * (FAILURES + 1)
    store.act = lambda: None
    clock.seconds += 2 * PAUSE_FIRST
    assert not gate.check("acme", "calls").degraded and not gate.check("acme", "calls").degraded


def test_a_lock_that_writers_wait_for_keeps_nobody_from_checking(opened: Opened, kind: Any) -> None:
    store, clock = FakeHolds(catalog_text()), Clock()
    gate = opened(store, kind, clock)
    gate.check("acme", "calls")
    act = slowly(clock, StoreError("locked"), only="reserve")
    store.act = lambda: act(store)  # type: ignore[call-arg]
    for n in range(2 * FAILURES):
        assert gate.reserve("acme", "calls", 1, id=str(n)).degraded
        assert not gate.check("acme", "calls").degraded
    assert store.calls.count("reserve") == FAILURES


def test_a_customer_whose_totals_are_broken_is_nobody_elses_trouble(
    opened: Opened, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails at once keeps nobody waiting, so the store goes on being asked for all others."""
    store, clock = FakeHolds(catalog_text()), Clock()
    gate = opened(store, kind, clock)
    store.used["broken"] = {"calls": "nonsense"}  # type: ignore[dict-item]
    for _ in range(3 * FAILURES):
        assert gate.check("broken", "calls").degraded
    assert not gate.check("acme", "calls").degraded
    assert gate.gate.counters()["faults"] == 3 * FAILURES
    assert caplog.text.count("Traceback") == 1


def test_the_log_of_an_outage_is_short_however_it_flickers(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads may work while writes do not, thousands of times a second."""
    store, clock = FakeHolds(catalog_text()), Clock()
    gate = opened(store, Gate, clock)
    for n in range(90):
        store.act = fails(StoreError("away")) if n % 2 else lambda: None
        assert gate.check("acme", "calls").degraded == bool(n % 2)
        clock.seconds += 0.01
    store.act = lambda: None
    clock.seconds += 2
    assert not gate.check("acme", "calls").degraded
    said = [record.getMessage() for record in caplog.records]
    assert sum("degraded" in line for line in said) == 1 and sum("again" in line for line in said) == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        "text",
        5,
        Account({"calls": "9"}, {}, None, 1, 1),  # type: ignore[dict-item]
        Account({"calls": Used("9", 0, 0)}, {}, None, 1, 1),  # type: ignore[arg-type]
        Account({}, {"calls": None}, None, 1, 1),  # type: ignore[dict-item]
        Account({}, {}, "soon", 1, 1),  # type: ignore[arg-type]
        Account({}, {}, None, "newest", 1),  # type: ignore[arg-type]
    ],
)
def test_a_store_that_lies_is_not_believed(opened: Opened, kind: Any, nonsense: object) -> None:
    store = FakeHolds(catalog_text(CLOSED))
    gate = opened(store, kind)
    gate.check("acme", "calls")
    store.answer = nonsense
    decision = gate.check("acme", "calls")
    assert (decision.allowed, decision.degraded) == (False, True)


def test_a_reserve_that_the_store_denies_without_cause_is_degraded(opened: Opened, kind: Any) -> None:
    store = FakeHolds(catalog_text(CLOSED))
    gate = opened(store, kind)
    store.answer = "full"
    assert gate.reserve("acme", "calls", 1, id="1").degraded


def test_too_many_waiting_are_answered_without_the_store(opened: Opened) -> None:
    """Threads that all wait for a dead store would be an outage of their own."""
    store = FakeHolds(catalog_text())
    gate = opened(store, timeout=timedelta(seconds=PATIENCE))
    gate.check("acme", "calls")
    lane = gate.gate._core._reading.lane
    go_on = threading.Event()
    store.act = lambda: go_on.wait(PATIENCE)
    futures = [lane.submit(store.act) for _ in range(1024)]
    with pytest.raises(StoreError, match="wait for the store"):
        futures.extend(lane.submit(store.act) for _ in range(1024))
    assert gate.check("acme", "calls").degraded
    go_on.set()
    for future in futures:
        future.result(PATIENCE)


def test_what_nobody_waits_for_any_more_is_not_asked(opened: Opened) -> None:
    """A store that comes back is not met by all the questions of its absence."""
    store = FakeHolds(catalog_text())
    gate = opened(store, timeout=SHORT)
    soon(lambda: not gate.check("acme", "calls").degraded)
    go_on = threading.Event()
    store.act = lambda: go_on.wait(PATIENCE)
    store.calls.clear()
    asking = [threading.Thread(target=gate.check, args=("acme", "calls")) for _ in range(5 * THREADS)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    go_on.set()
    soon(lambda: not gate.check("acme", "calls").degraded)
    assert store.calls.count("account") <= THREADS + 2


# The catalog


def test_without_a_catalog_the_gate_says_what_it_does(opened: Opened, kind: Any) -> None:
    for fail, allowed in (("open", True), ("closed", False)):
        store = FakeHolds()
        gate = opened(store, kind, catalog=None, fail=fail)
        decision = gate.check("acme", "calls")
        assert (decision.allowed, decision.degraded, decision.catalog) == (allowed, True, 0)
        assert "apply one" in decision.detail
        store.apply(catalog_text())
        decision = gate.check("acme", "calls")
        assert (decision.allowed, decision.degraded, decision.catalog) == (True, False, 1)


def test_a_gate_may_start_before_its_store(opened: Opened, kind: Any) -> None:
    store = FakeHolds(catalog_text())
    store.act = fails(StoreError("not yet"))
    gate = opened(store, kind, catalog=None, fail="closed")
    decision = gate.check("acme", "calls")
    assert (decision.allowed, decision.degraded) == (False, True)
    store.act = lambda: None
    assert gate.check("acme", "calls").catalog == 1


def test_a_catalog_that_is_read_again_takes_no_hold_back(opened: Opened, kind: Any) -> None:
    """A store that was away may be another one, so the catalog is read again, perhaps while a reservation is made.

    Who asked may have lost the answer and asked again, and been told that it is held: giving it back to judge it once
    more let another one have the same room.
    """
    store = FakeHolds(catalog_text())
    gate, other = opened(store, kind), opened(store, Gate)
    assert gate.check("acme", "calls").allowed and other.check("acme", "calls").allowed

    def away() -> None:
        raise StoreError("away")

    catalogs = gate.gate._core._catalogs
    catalogs.forget()
    store.act = away
    catalogs.follow(1, 10)
    assert catalogs.problem
    told: list[bool] = []

    def ask_again() -> None:
        if store.calls[-1] == "catalog" and not told:
            told.append(other.reserve("acme", "calls", 10, timedelta(minutes=5), id="same").allowed)

    store.act = ask_again
    decision = gate.reserve("acme", "calls", 10, timedelta(minutes=5), id="same")
    assert decision.allowed and told == [True] and not catalogs.problem
    assert "release" not in store.calls and ("acme", "same") in store.holds


def test_who_asks_again_is_not_told_of_a_hold_that_is_taken_back(opened: Opened, kind: Any) -> None:
    """The catalog changes under a reservation, whose caller has lost the answer and asks again under the same id."""
    store = FakeHolds(catalog_text())
    gate = opened(store, kind)
    assert gate.check("acme", "calls").allowed
    told: list[Decision] = []

    def reserve_again() -> None:
        answer = gate.gate.reserve("acme", "calls", 10, timedelta(minutes=5), id="same")
        told.append(answer if isinstance(answer, Decision) else asyncio.run(answer))

    again = threading.Thread(target=reserve_again)

    def ask_again() -> None:
        # The first is told that it is held, under a catalog that is no longer the newest.
        if store.calls == ["reserve"]:
            store.apply(catalog_text("{cap: 9}"))
        elif store.calls[-1] == "release" and not again.ident:
            again.start()
            again.join(0.5)

    store.calls.clear()
    store.act = ask_again
    first = gate.reserve("acme", "calls", 10, timedelta(minutes=5), id="same")
    again.join()
    assert [one.allowed for one in (first, *told)] == [False, False]
    assert not store.holds and not gate.gate._core._turns


def test_the_next_decision_goes_by_the_new_catalog(opened: Opened, kind: Any) -> None:
    store = FakeHolds()
    gate = opened(store, kind, catalog=parse_catalog(catalog_text("{cap: 3}")))
    store.use("acme", calls=5)
    assert [gate.check("acme", "calls").catalog, gate.check("acme", "calls").allowed] == [0, False]
    for limit, allowed in (("{cap: 6}", True), ("{cap: 5}", False), ("{}", True), ("{cap: 0}", False)):
        store.apply(catalog_text(limit))
        decision = gate.check("acme", "calls")
        assert (decision.allowed, decision.catalog, decision.degraded) == (allowed, store.number, False)
    # A backup that is put back has an older one.
    store.text, store.number = catalog_text("{cap: 6}"), 1
    assert gate.check("acme", "calls").allowed
    store.number = 0
    assert not gate.check("acme", "calls").allowed


def test_a_reserve_goes_by_the_new_catalog_too(opened: Opened, kind: Any) -> None:
    store = FakeHolds(catalog_text("{cap: 10}"))
    gate = opened(store, kind)
    assert gate.reserve("acme", "calls", 5, id="1").allowed
    store.apply(catalog_text("{cap: 8}"))
    denied = gate.reserve("acme", "calls", 5, id="2")
    assert (denied.allowed, denied.limit, denied.catalog) == (False, Decimal(8), 2)
    assert list(store.holds) == [("acme", "1")]
    store.apply(catalog_text("{cap: 20}"))
    assert gate.reserve("acme", "calls", 15, id="2").allowed


def test_a_catalog_that_cannot_be_read_leaves_the_one_before_in_force(
    opened: Opened, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeHolds(catalog_text("{cap: 1}"))
    gate = opened(store, kind)
    assert gate.check("acme", "calls").allowed
    store.apply("meters: nonsense")
    store.calls.clear()
    for _ in range(5):
        decision = gate.check("acme", "calls", 2)
        assert (decision.allowed, decision.degraded, decision.catalog) == (False, True, 1)
        assert "meters" in decision.detail
    # Once read is enough.
    assert store.calls.count("catalog") == 1 and caplog.text.count("cannot be used") == 1
    store.apply(catalog_text("{cap: 2}"))
    decision = gate.check("acme", "calls", 2)
    assert (decision.allowed, decision.degraded, decision.catalog) == (True, False, 3)


def test_a_catalog_that_could_not_be_read_for_a_moment_is_read_again(opened: Opened, kind: Any) -> None:
    """And nothing stays flagged, whichever version it then is."""
    store = FakeHolds(catalog_text("{cap: 1}"))
    gate = opened(store, kind)
    assert gate.check("acme", "calls").allowed

    def no_catalog() -> None:
        if store.calls[-1] == "catalog":
            raise StoreError("locked")

    for back in (False, True):
        store.act = no_catalog
        store.apply(catalog_text("{cap: 1}"))
        assert gate.check("acme", "calls").degraded
        store.act = lambda: None
        store.number -= back
        decision = gate.check("acme", "calls")
        assert (decision.degraded, decision.catalog) == (False, store.number)


def test_while_a_large_catalog_is_read_the_old_one_decides(opened: Opened, kind: Any) -> None:
    store = FakeHolds(catalog_text("{cap: 1}"))
    gate = opened(store, kind, timeout=timedelta(seconds=2))
    gate.check("acme", "calls")
    go_on = threading.Event()
    reading = store.catalog

    def slowly() -> Any:
        go_on.wait(PATIENCE)
        return reading()

    store.catalog = slowly  # type: ignore[method-assign]
    store.apply(catalog_text("{cap: 2}"))
    decision = gate.check("acme", "calls", 2)
    assert (decision.allowed, decision.catalog, decision.degraded) == (False, 1, False)
    go_on.set()
    soon(lambda: gate.check("acme", "calls", 2).allowed)


# The near cache


def near(opened: Opened, store: FakeHolds, **choices: Any) -> Face:
    """A gate whose near cache has answered for acme."""
    gate = opened(store, **({"near": True, "staleness": timedelta(seconds=PATIENCE)} | choices))
    soon(lambda: gate.check("acme", "calls") and "near" in gate.gate.counters())
    return gate


def test_what_is_near_asks_nobody(opened: Opened, kind: Any) -> None:
    store = FakeHolds(catalog_text())
    gate = near(opened, store, kind=kind)
    store.calls.clear()
    for _ in range(100):
        assert gate.check("acme", "calls").allowed and gate.check("acme", "tokens").allowed
    assert "account" not in store.calls
    assert gate.gate.counters()["near"] >= 200


def test_what_is_told_is_dropped(opened: Opened, kind: Any) -> None:
    store = FakeHolds(catalog_text())
    gate = near(opened, store, kind=kind)
    store.use("acme", calls=10)
    soon(lambda: not gate.check("acme", "calls").allowed)
    store.use("acme", calls=9)
    soon(lambda: gate.check("acme", "calls").allowed)


def test_a_new_catalog_is_followed_without_a_word_from_anybody(opened: Opened, kind: Any) -> None:
    store = FakeHolds(catalog_text("{cap: 0}"))
    gate = near(opened, store, kind=kind)
    for limit, allowed in (("{cap: 6}", True), ("{cap: 0}", False), ("{}", True)):
        store.apply(catalog_text(limit))

        def is_followed(allowed: bool = allowed) -> bool:
            return gate.check("acme", "calls").allowed == allowed

        soon(is_followed)


def test_ones_own_reserve_is_seen_at_once(opened: Opened, kind: Any) -> None:
    """Before the feed tells of it, which this one never does."""
    gate = near(opened, FakeHolds(catalog_text()), kind=kind)
    for act in (
        lambda: gate.reserve("acme", "calls", 8, id="1"),
        lambda: gate.release("acme", "1"),
        lambda: gate.reserve("acme", "calls", 9, id="2"),
    ):
        before = gate.check("acme", "calls").reserved
        act()
        assert gate.check("acme", "calls").reserved != before


def test_a_view_is_not_used_past_its_period_nor_past_the_first_expiry(opened: Opened, kind: Any) -> None:
    """Nobody writes when a period ends or a hold expires."""
    store = FakeHolds(catalog_text(rest="    period: {type: calendar, every: hour}\n"))
    clock = Clock()
    store.next_expiry = NOW + 10_000_000
    gate = near(opened, store, kind=kind, clock=clock.wall)
    for seconds in (9.999, 10, 3_600):
        store.calls.clear()
        clock.seconds = seconds
        decision = gate.check("acme", "calls")
        assert ("account" in store.calls) == (seconds >= 10)
        assert decision.resets_at is not None and decision.resets_at > clock.wall()
        store.next_expiry = None
    clock.seconds = 0
    store.calls.clear()
    gate.check("acme", "calls")
    assert "account" in store.calls


def test_while_the_feed_is_away_each_check_reads_the_store(opened: Opened, kind: Any) -> None:
    """Slower, but right; and near again when the feed is back, of what is read from then on."""
    store = FakeHolds(catalog_text())
    gate = near(opened, store, kind=kind)

    def no_feed() -> None:
        if store.calls[-1] == "feed":
            raise StoreError("feed: away")

    store.act = no_feed
    store.cut()
    soon(lambda: gate.gate.counters().get("feed_lost", 0) >= 2)
    # Nobody tells of this.
    store.used["acme"] = {"calls": 10}
    assert not gate.check("acme", "calls").allowed
    store.used["acme"] = {"calls": 9}
    assert gate.check("acme", "calls").allowed and not gate.check("acme", "calls").degraded
    # This neither, and nobody has read it when the feed comes back.
    store.used["acme"] = {"calls": 10}
    store.act = lambda: None
    before = gate.gate.counters()["near"]
    soon(lambda: not gate.check("acme", "calls").allowed and gate.gate.counters()["near"] > before)


def test_a_feed_that_hangs_is_not_believed_for_longer_than_staleness(opened: Opened) -> None:
    store, clock = FakeHolds(catalog_text()), Clock()
    gate = near(opened, store, monotonic=clock.monotonic, staleness=timedelta(seconds=1))
    with store.changed:
        store.used["acme"] = {"calls": 10}
        assert gate.check("acme", "calls").allowed
        clock.seconds += 1
        assert gate.check("acme", "calls").allowed
        clock.seconds += 0.001
        assert not gate.check("acme", "calls").allowed


# Beginning and end


def test_a_closed_gate_says_so(kind: Any) -> None:
    store = FakeHolds(catalog_text())

    async def ask(gate: AsyncGate) -> None:
        assert not (await gate.check("acme", "calls")).degraded
        await gate.close()
        await gate.check("acme", "calls")

    gate = kind(store, near=False)
    with pytest.raises(RuntimeError, match="gate: is closed"):
        if kind is AsyncGate:
            asyncio.run(ask(gate))
        assert not gate.check("acme", "calls").degraded
        gate.close()
        gate.check("acme", "calls")
    assert store.closed


def test_a_gate_in_use_does_not_cross_a_fork() -> None:
    """Its threads would not be there, and its connections would be shared."""
    unused, used = gate_on(FakeHolds(catalog_text())), gate_on(FakeHolds(catalog_text()))
    used.check("acme", "calls")
    child = os.fork()
    if not child:
        try:
            assert unused.check("acme", "calls").allowed
            with pytest.raises(RuntimeError, match="forked"):
                used.check("acme", "calls")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    used.close()


def test_nothing_starts_before_the_first_question() -> None:
    """So that a gate may be made when a module is imported, before a server forks."""
    store = FakeHolds(catalog_text())
    before = threading.active_count()
    gate = Gate(store)
    assert (threading.active_count(), store.calls) == (before, [])
    gate.close()


def test_it_opens_by_the_settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEGATE_STORE", "sqlite:other.db")
    with Gate.open(near=False) as gate:
        assert "other.db" in gate.check("acme", "calls").detail
    (tmp_path / "catalog.yaml").write_text(catalog_text(CLOSED))
    with Gate.open("sqlite:some.db", near=False) as gate:
        decision = gate.check("acme", "calls")
        assert (decision.allowed, decision.degraded) == (False, True) and "some.db" in decision.detail
