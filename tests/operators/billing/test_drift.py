"""Drift: the bracket that a healthy system never leaves, and causes that add up to the drift."""

from collections import Counter
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.operators.billing.drift import (
    Bracket,
    Cause,
    Evidence,
    Fate,
    InFlight,
    OwnEvent,
    ProviderEvent,
    Span,
    compute_bracket,
    explain,
    is_own_id,
)
from tidegate.operators.model.aggregates import Kind

SECOND = 1_000_000
HOUR = 3600 * SECOND
START = 497_000 * HOUR
END = START + 720 * HOUR
NOW = START + 500 * HOUR
PERIOD = Span(START, END)
SETTLE = 180 * SECOND

# The bracket


class Step(NamedTuple):
    """An event's way: when it was accepted, and after that stored here; sent, answered and shown there one by one."""

    quantity: int
    accepted: int
    stored: int
    wait: int
    answer: int
    shown: int


steps = st.builds(
    Step,
    quantity=st.integers(0, 5),
    accepted=st.integers(0, 400),
    stored=st.integers(0, 60),
    wait=st.integers(0, 300),
    answer=st.integers(0, 20),
    shown=st.integers(0, 180),
)


def fold(kind: Kind, values: list[int]) -> int:
    return sum(values) if kind != "max" else max(values, default=0)


@given(
    st.lists(steps, max_size=12),
    st.integers(100, 500),
    st.integers(0, 30),
    st.sampled_from(["count", "sum", "max"]),
)
@settings(max_examples=400)
def test_a_healthy_provider_never_leaves_the_bracket(
    steps: list[Step], asked: int, wait: int, kind: Kind
) -> None:
    """Whatever is in flight, and whenever within the request the provider read: no false alarm, ever."""
    answered = asked + wait
    before = fold(kind, [s.quantity for s in steps if s.accepted + s.stored <= asked])
    after = fold(kind, [s.quantity for s in steps if s.accepted + s.stored <= answered + 1])
    read_at = answered + 1
    flights = []
    for s in steps:
        sent, acknowledged = s.accepted + s.wait, s.accepted + s.wait + s.answer
        if s.accepted <= read_at and (acknowledged > read_at or acknowledged > asked - SETTLE // SECOND):
            flights.append(InFlight(s.quantity, s.accepted, sent if sent <= read_at else None))
    found = compute_bracket(kind, before, after, flights, answered, lag=60)
    assert found is not None
    for at in range(asked, answered + 1):
        # It shows what was acknowledged `shown` ago, or earlier: even while the request was under way.
        for early in (0, 1):
            shown = [
                s.quantity for s in steps if s.accepted + s.wait + (0 if early else s.answer + s.shown) <= at
            ]
            assert found.distance_to(fold(kind, shown)) == 0, (found, at, early)


def test_the_bracket_is_as_tight_as_what_is_on_its_way() -> None:
    """Or a loss would hide behind it for as long as the customer is busy."""
    nothing = compute_bracket("sum", 100, 100, [], 50, 0)
    assert nothing == Bracket(100, 100)
    waits, sent = InFlight(7, 10, None), InFlight(5, 10, 20)
    assert compute_bracket("sum", 100, 103, [waits, sent], 50, 0) == Bracket(88, 96)
    assert compute_bracket("max", 100, 100, [InFlight(99, 10, None)], 50, 0) == Bracket(100, 100)
    assert compute_bracket("max", 100, 100, [InFlight(100, 10, None)], 50, 0) == Bracket(0, 100)
    # It came and was sent while our store was still behind.
    assert compute_bracket("max", 100, 100, [InFlight(120, 45, 46)], 50, 60) == Bracket(0, 120)
    assert compute_bracket("sum", 100, 100, [InFlight(20, 45, 46)], 50, 60) == Bracket(80, 120)


def test_a_last_value_is_judged_only_while_nothing_moves() -> None:
    assert compute_bracket("last", 5, 5, [], 50, 0) == Bracket(5, 5)
    assert compute_bracket("last", 5, 6, [], 50, 0) is None
    assert compute_bracket("last", 5, 5, [InFlight(5, 1, 2)], 50, 0) is None


def test_the_sign_says_who_has_too_little() -> None:
    assert [Bracket(10, 20).distance_to(total) for total in (7, 10, 20, 22)] == [3, 0, 0, -2]


# Causes


class World:
    """Both sides of one period as lists of events; what is wrong is put in on purpose, and remembered."""

    def __init__(self, kind: Kind = "sum") -> None:
        self.kind = kind
        self.own: list[OwnEvent] = []
        self.there: list[ProviderEvent] = []
        self.store = self.skew = self.adjusted = 0
        self.planted: Counter[Cause] = Counter()
        self.since = START - HOUR
        self.ours = self.theirs = PERIOD

    def id(self) -> str:
        return f"{len(self.own) + len(self.there) + 1:032x}-{NOW // HOUR:x}"

    def event(
        self,
        quantity: int,
        cause: Cause | None = None,
        *,
        at: int = NOW - 10 * HOUR,
        there_at: int | None = None,
        fate: Fate = "acknowledged",
        reason: str = "",
        here: bool = True,
        there: bool = True,
        booked: bool = True,
        settled_at: int = NOW - 9 * HOUR,
        times: int = 1,
        id: str | None = None,
    ) -> str:
        id = id or self.id()
        shown_at = at if there_at is None else there_at
        settled = settled_at if fate != "waiting" else None
        if booked:
            self.own.append(OwnEvent(id, at, shown_at, fate, reason, quantity, at + 1, at + 2, settled))
        if there:
            self.there += [ProviderEvent(id, shown_at, quantity, f"{id}".encode())] * times
        self.store += quantity if here and at in self.ours else 0
        if cause:
            self.planted[cause] += quantity * (
                -1 if cause in ("extra_there", "missing_here", "doubled_there") else 1
            )
        return id

    def evidence(self, **given: Any) -> Evidence:
        inside = [e.quantity or 0 for e in self.there if e.at in self.theirs]
        total = sum(inside) + self.skew
        store = self.store + self.adjusted
        fields = dict(
            kind=self.kind, own_period=self.ours, provider_period=self.theirs, before=store, after=store,
            adjusted=self.adjusted, adopted=0, provider_total=total, provider_events=self.there, own_events=self.own,
            records_since=self.since, shown_until=NOW - SETTLE, read_at=NOW,
        )  # fmt: skip
        return Evidence(**{**fields, **given})

    def causes(self, **given: Any) -> dict[Cause, int | None]:
        found: dict[Cause, int | None] = {}
        for finding in explain(self.evidence(**given)):
            assert finding.cause not in found
            found[finding.cause] = finding.quantity
        return found


plants = st.sampled_from(
    [
        "fine", "fine", "fine", "waiting", "recent", "too_old", "rejected", "late_after_close", "missing_there",
        "missing_here", "extra_there", "doubled_there", "twin", "boundary",
    ]
)  # fmt: skip


def plant(world: World, what: str, quantity: int) -> None:
    match what:
        case "fine":
            world.event(quantity)
        case "waiting":
            world.event(quantity, "in_flight", fate="waiting", there=False)
        case "recent":
            world.event(quantity, "in_flight", there=False, settled_at=NOW - 1)
        case "too_old":
            world.event(quantity, "too_old", fate="parked", reason="too_old", there=False)
        case "late_after_close":
            world.event(quantity, "late_after_close", fate="parked", reason="period_closed", there=False)
        case "rejected":
            world.event(quantity, "rejected", fate="refused", reason="x", there=False)
        case "missing_there":
            world.event(quantity, "missing_there", there=False)
        case "missing_here":
            world.event(quantity, "missing_here", here=False)
        case "extra_there":
            world.event(quantity, "extra_there", here=False, booked=False, id=f"evt_{len(world.there)}")
        case "doubled_there":
            world.event(quantity, times=2)
            world.planted["doubled_there"] -= quantity
        case "twin":
            id = world.event(quantity)
            world.there.append(ProviderEvent(f"evt_{id}", NOW - 10 * HOUR, quantity, id.encode()))
            world.planted["doubled_there"] -= quantity
        case "boundary":
            world.event(quantity, "billed_elsewhere", there_at=END + 1)


@given(st.lists(st.tuples(plants, st.integers(1, 10**30)), min_size=1, max_size=12))
@settings(max_examples=400)
def test_every_cause_is_told_with_its_quantity(planted: list[tuple[str, int]]) -> None:
    """In any mixture, against what was put in; and together they come to the drift, to the last place."""
    world = World()
    for what, quantity in planted:
        plant(world, what, quantity)
    found = explain(world.evidence())
    sums: Counter[Cause] = Counter()
    for finding in found:
        sums[finding.cause] += finding.quantity or 0
    if world.planted["missing_here"] and not world.planted["billed_elsewhere"]:
        assert +sums["unexplained"] == 0
    assert {c: q for c, q in sums.items() if q} == {c: q for c, q in world.planted.items() if q}
    sight = world.evidence()
    assert sum(sums.values()) == sight.after - sight.provider_total


@given(st.lists(st.tuples(plants, st.integers(1, 100)), min_size=1, max_size=12))
def test_the_ids_are_those_of_the_events(planted: list[tuple[str, int]]) -> None:
    world = World()
    expected: dict[str, set[str]] = {}
    for what, quantity in planted:
        before = {e.id for e in world.own} | {e.id for e in world.there}
        plant(world, what, quantity)
        new = ({e.id for e in world.own} | {e.id for e in world.there}) - before
        renamed = {"waiting": "in_flight", "recent": "in_flight", "twin": "doubled_there"}
        named = (renamed | {"boundary": "billed_elsewhere"}).get(what, what)
        if what == "twin":
            new = {id for id in new if id.startswith("evt_")}
        if what not in ("fine", "missing_here"):
            expected.setdefault(named, set()).update(new)
    told: dict[str, set[str]] = {}
    for finding in explain(world.evidence()):
        if finding.cause != "missing_here":
            told.setdefault(finding.cause, set()).update(finding.ids)
    assert told == expected


def test_a_skewed_total_is_told_from_lost_events() -> None:
    for skew in (-7, 7):
        world = World()
        world.event(100)
        world.skew = skew
        assert world.causes() == {"skewed_there": -skew}


def test_an_operators_adjustment_is_no_riddle() -> None:
    world = World()
    world.event(100)
    world.adjusted = 30
    assert world.causes() == {"adjusted_here": 30}


def test_another_payload_under_the_id_is_named() -> None:
    world = World()
    world.event(100)
    world.there[0] = world.there[0]._replace(quantity=90)
    assert world.causes() == {"differs_there": 10}


def test_a_frozen_period_leaves_out_what_came_after_it() -> None:
    world = World()
    world.ours = world.theirs = Span(START, NOW - 2 * HOUR)
    world.event(100)
    late = world.event(9, settled_at=NOW - HOUR)
    world.skew = -9
    (finding,) = explain(world.evidence())
    assert (finding.cause, finding.quantity, finding.ids) == ("late_after_close", 9, (late,))


def test_events_of_before_the_meter_was_made_are_named() -> None:
    world = World()
    early = world.event(8, at=START + HOUR)
    world.event(100)
    world.skew = -8
    (finding,) = explain(world.evidence(meter_created_at=START + 2 * HOUR))
    assert (finding.cause, finding.quantity, finding.ids) == ("skewed_there", 8, (early,))
    assert "created the meter later" in finding.detail


def test_an_edge_that_was_moved_is_told_from_a_loss() -> None:
    """The period was closed early, and our period took in what came meanwhile."""
    edge = NOW - 5 * HOUR
    old = World()
    old.ours = old.theirs = Span(START, edge)
    old.event(50)
    moved = [old.event(q, at=edge + n, here=False) for n, q in enumerate((3, 4))]
    after = old.event(6, at=NOW - HOUR, here=False)
    old.store += 7
    assert [(f.cause, f.quantity, list(f.ids)) for f in explain(old.evidence())] == [("boundary", 7, moved)]
    new = World()
    new.ours = new.theirs = Span(edge, END)
    new.own, new.there, new.store = old.own, old.there, 6
    assert [(f.cause, f.quantity, list(f.ids)) for f in explain(new.evidence())] == [("boundary", -7, moved)]
    assert after not in moved


def test_before_the_books_began_the_billers_word_is_taken() -> None:
    world = World()
    world.since = NOW - HOUR
    world.event(100, booked=False)
    world.event(5, "missing_there", at=NOW - HOUR + 1, there=False)
    assert world.causes() == {"missing_there": 5}
    world.event(3, booked=False, there=False)
    assert world.causes() == {"missing_there": 5, "unexplained": 3}


def test_of_a_greatest_value_only_what_matters_is_named() -> None:
    world = World("max")
    world.event(50)
    small, great = world.event(10, there=False), world.event(90, there=False)
    found = explain(world.evidence(before=90, after=90, provider_total=50))
    assert [(f.cause, f.ids) for f in found] == [("missing_there", (great,))]
    assert small not in found[0].ids


def test_a_last_value_names_who_set_it() -> None:
    world = World("last")
    world.event(50, at=NOW - 20 * HOUR)
    lost = world.event(10, at=NOW - 10 * HOUR, there=False)
    found = explain(world.evidence(before=10, after=10, provider_total=50))
    assert [(f.cause, f.ids) for f in found] == [("missing_there", (lost,))]


def test_an_id_of_ours_is_known_by_its_looks() -> None:
    assert is_own_id("0123456789abcdef0123456789abcdef-7a5f1") and is_own_id("0" * 32 + "-r2")
    assert not is_own_id("evt_123") and not is_own_id("0" * 32) and not is_own_id("Z" * 32 + "-1")
