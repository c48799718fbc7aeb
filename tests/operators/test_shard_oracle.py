"""The real code against the reference model: the same traffic, the same books.

`TIDEGATE_ORACLE_SEEDS=200 TIDEGATE_ORACLE_EVENTS=5000` is the full campaign. A seed that fails is run again
alone by `pytest -k 'seed and [17]'`, and shortened by a smaller TIDEGATE_ORACLE_EVENTS.
"""

import os
import pickle
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from operators.catalog import Catalog, Limit, Meter, Plan, Threshold
from operators.decode import Decoder
from operators.keys import shard_of
from operators.periods import Calendar
from operators.ports import Adjustment, Payloads
from operators.records import Accepted, Alert, DeadLetter, Total
from operators.shard import Outcome, Shard
from operators.snapshot import Frame
from operators.thresholds import alert_id, limit_version
from tests.malformed import MALFORMED, Malformed, plain_event
from tests.model import Clock, Model, Told
from tests.operators.strategies import METERS, NOON, catalogs, events
from tests.traffic import HOUR, MINUTE, Case, Sent, traffic, written

SEEDS = int(os.environ.get("TIDEGATE_ORACLE_SEEDS", "6"))
EVENTS = int(os.environ.get("TIDEGATE_ORACLE_EVENTS", "1000"))
SHARDS = 4

Key = tuple[str, str, str, int]


class Fleet:
    """Decoder and shards as the flow runs them, all that left them, and the snapshots to go back to."""

    def __init__(self, catalog: Catalog, lateness: timedelta, clock: Clock) -> None:
        self.catalog = catalog
        self.number = 0
        self.lateness = lateness
        self.clock = clock
        self.totals: dict[Key, Total] = {}
        self.counts: dict[tuple[int, str], int] = {}
        self.alerts: list[Alert] = []
        self.dead: list[DeadLetter] = []
        self.accepted: list[Accepted] = []
        self.frames: list[list[Frame]] = [[] for _ in range(SHARDS)]
        self.since: list[Payloads] = []
        self.left: list[list[object]] = [self._start()]

    def _start(self) -> list[object]:
        """Start from the snapshots; gives the alerts that a changed catalog sets off."""
        self.decoder = Decoder(self.catalog, shards=SHARDS, clock=self.clock, number=self.number)
        self.shards = [
            Shard.restore(i, self.catalog, self.lateness, self.clock, self.frames[i], number=self.number)
            for i in range(SHARDS)
        ]
        return [alert for shard in self.shards for alert in shard.review()]

    def send(self, block: bytes, received_at: int, transport_time: int | None) -> None:
        """Meter a poll."""
        payloads = Payloads(block, received_at, transport_time, "test")
        self.since.append(payloads)
        outcomes = self._apply(payloads)
        self.left.append(_comparable(outcomes))
        for outcome in outcomes:
            self.alerts += outcome.alerts
            self.dead += outcome.dead
            self.accepted += outcome.accepted

    def _apply(self, payloads: Payloads) -> list[Outcome]:
        return [
            # Half of the shards live in another process.
            self.shards[i].apply(pickle.loads(pickle.dumps(chunk)) if i % 2 else chunk)
            for i, chunk in self.decoder.decode(payloads)
        ]

    def write(self) -> None:
        """Write the totals that changed; a store keeps the newest version."""
        for shard in self.shards:
            for total in shard.totals():
                key = total.customer, total.meter, total.window, total.start
                known = self.totals.get(key)
                if known is None or known.version < total.version:
                    self.totals[key] = total
                assert known is None or known.version != total.version or known == total
            self.counts.update({(counter.shard, counter.name): counter.value for counter in shard.counters()})

    def snapshot(self) -> None:
        """Note what changed, as an epoch's end does; what has not been written yet must not be lost."""
        for shard, frames in zip(self.shards, self.frames, strict=True):
            frames += shard.delta()
        self.since, self.left = [], [[]]

    def restart(self, catalog: Catalog | None = None) -> None:
        """Snapshot, and go on from there in another process, perhaps under another catalog."""
        self.snapshot()
        self.catalog = catalog or self.catalog
        self.left = [self._start()]
        self.alerts += cast(list[Alert], self.left[0])

    def adopt(self, catalog: Catalog) -> None:
        """Go on under another catalog without stopping."""
        self.catalog = catalog
        self.number += 1
        customers = self.decoder.customers
        self.decoder = Decoder(
            catalog, shards=SHARDS, clock=self.clock, number=self.number, customers=customers
        )
        for shard in self.shards:
            shard.adopt(self.number, catalog)
            self.alerts += shard.review()
        self.snapshot()

    def adjust(self, adjustment: Adjustment, received_at: int) -> bool:
        """Whether it was taken."""
        shard = self.shards[shard_of(adjustment.customer, SHARDS)]
        alerts, refused = shard.adjust(adjustment, received_at)
        self.alerts += alerts
        self.snapshot()
        return refused is None

    def crash(self) -> None:
        """Go back to the last snapshot and do again what was done since: the same must leave again."""
        again = [self._start()]
        again += [_comparable(self._apply(payloads)) for payloads in self.since]
        assert again == self.left

    @property
    def counters(self) -> Counter[str]:
        counters: Counter[str] = Counter()
        for (_, name), value in self.counts.items():
            counters[name] += value
        return counters


def _comparable(outcomes: list[Outcome]) -> list[object]:
    """Columns have no equality of their own."""
    return [
        (outcome._replace(settled=None), [word.tolist() for word in outcome.settled or ()])
        for outcome in outcomes
    ]


def alert(told: Told) -> Alert:
    """The alert that the model means."""
    version = "" if told.limited_by is None else limit_version(told.limited_by)
    return Alert(
        id=alert_id(
            told.rule,
            told.customer,
            told.meter,
            told.period_start,
            told.level,
            version,
            told.state,
            told.turn,
        ),
        kind=told.kind,  # type: ignore[arg-type]
        state=told.state,  # type: ignore[arg-type]
        customer=told.customer,
        meter=told.meter,
        period_start=told.period_start,
        period_end=told.period_end,
        level=told.level,
        limit=told.limit,
        total=told.total,
        at=told.at,
        limit_version=version,
        turn=told.turn,
    )


def by_key(alerts: Sequence[Alert]) -> dict[tuple[str, str], list[Alert]]:
    """Alerts in their order per customer and meter, the only order that is promised."""
    found: dict[tuple[str, str], list[Alert]] = {}
    for each in alerts:
        found.setdefault((each.customer, each.meter), []).append(each)
    return found


def assert_agreed(fleet: Fleet, model: Model) -> None:
    """The fleet's books are the model's, and they add up."""
    fleet.write()
    assert Counter((dead.reason, dead.payload) for dead in fleet.dead) == Counter(model.dead)
    # Per customer in order: an identity has one safe id in an hour, and no two identities share theirs.
    real, meant = fleet.accepted, model.accepted
    for customer in {each.customer for each in real} | {each.customer for each in meant}:
        ours = [each for each in real if each.customer == customer]
        theirs = [each for each in meant if each.customer == customer]
        assert [each[1:] for each in ours] == [(e.customer, e.at, e.late, e.payload) for e in theirs]
        pairs = {
            (one.id, (other.source, other.id, other.at // HOUR))
            for one, other in zip(ours, theirs, strict=True)
        }
        assert len(pairs) == len({id for id, _ in pairs}) == len({identity for _, identity in pairs})
    assert fleet.totals == model.totals
    assert by_key(fleet.alerts) == by_key([alert(each) for each in model.alerts])
    assert +fleet.counters == +model.counters
    assert_conserved(fleet.counters, fleet.catalog)


def assert_conserved(counters: Counter[str], catalog: Catalog) -> None:
    ways = ("rejects", "too_late", "duplicates", "conflicts", "accepted")
    assert counters["events"] == sum(counters[way] for way in ways)
    for meter in catalog.meters:
        both = counters[f"counted:{meter.name}"] + counters[f"corrected:{meter.name}"]
        assert counters[f"matching:{meter.name}"] == both


def blocks(rng: random.Random, case: Case) -> Iterator[tuple[list[bytes], int, int | None]]:
    """The lines in polls of any size, with the time of receipt and the transport's own, if it has one."""
    start = 0
    while start < len(case.lines):
        end = min(start + rng.choice((1, 2, 7, 50, 400)), len(case.lines))
        received_at = case.sent_at[end - 1]
        yield case.lines[start:end], received_at, rng.choice((None, received_at))
        start = end


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_model_and_the_shards_agree_on_traffic(seed: int, clock: Clock) -> None:
    """However the traffic is cut into polls, and wherever shards stop and go on."""
    rng = random.Random(f"cut {seed}")
    case = traffic(seed, EVENTS)
    fleet = Fleet(case.catalog, case.lateness, clock)
    model = Model(case.catalog, case.lateness, clock)
    for lines, received_at, transport_time in blocks(rng, case):
        fleet.send(b"\n".join(lines) + rng.choice((b"", b"\n")), received_at, transport_time)
        for line in lines:
            model.feed(line, received_at, transport_time)
        rng.choice((fleet.write, fleet.snapshot, fleet.restart, fleet.crash, lambda: None, lambda: None))()
    assert_agreed(fleet, model)


QUARTER = 15 * MINUTE
LATENESS = 2 * HOUR
MOMENTS: dict[str, list[tuple[int, str, str]]] = {
    # Each event is a time from noon on, an id and a quantity.
    "as late as the lateness": [(0, "1", "1"), (-LATENESS, "2", "1"), (-LATENESS - 1, "3", "1")],
    "too late, and yet it moves nothing": [(0, "1", "1"), (-LATENESS - 1, "2", "1"), (-LATENESS, "2", "1")],
    "an hour ends": [(0, "1", "1"), (-1, "2", "1"), (1, "3", "1"), (0, "4", "1")],
    "a repeat before the edge": [(0, "1", "1"), (-QUARTER, "1", "1"), (-QUARTER - 1, "1", "1")],
    "a repeat after the edge": [(-1, "1", "1"), (QUARTER - 1, "1", "1"), (QUARTER, "1", "1")],
    "the hour before is still in reach": [(-1, "1", "1"), (LATENESS - 1, "2", "1"), (1, "1", "1")],
    "the hour before is out of reach": [(-1, "1", "1"), (LATENESS, "2", "1"), (1, "1", "1")],
    "the same moment twice, for a level": [(0, "1", "9"), (0, "2", "1"), (0, "3", "9"), (-1, "4", "1")],
    "many corrections": [(HOUR, "now", "1"), *((-i, f"{i}", "1") for i in range(1, 18))],
}


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("moments", MOMENTS.values(), ids=MOMENTS)
def test_the_edges_of_time_are_the_same(
    moments: list[tuple[int, str, str]], together: bool, clock: Clock
) -> None:
    """To the microsecond, in one poll or in several, with a snapshot after each."""
    limit = Limit(cap=Decimal(9), thresholds=(Threshold(absolute=Decimal(5)),))
    catalog = Catalog(METERS, {"p": Plan("p", Calendar("hour"), None, {"level": limit})}, default_plan="p")
    lateness = timedelta(microseconds=LATENESS)
    fleet, model = Fleet(catalog, lateness, clock), Model(catalog, lateness, clock)
    rng = random.Random(0)
    sent = [
        written(rng, Sent(False, "acme", "", id, "call", NOON + at, {"n": n}), plain=True)
        for at, id, n in moments
    ]
    received_at = NOON + max(at for at, *_ in moments)
    for block in [b"\n".join(sent)] if together else sent:
        fleet.send(block, received_at, None)
        fleet.restart()
    for payload in sent:
        model.feed(payload, received_at, None)
    assert_agreed(fleet, model)


@pytest.mark.parametrize("row", MALFORMED, ids=lambda row: row.name)
def test_what_is_broken_is_told_by_its_reason(row: Malformed) -> None:
    """Also beside good events, with which it shares a piece of the decoder's work."""
    case = traffic(0, 1)
    good = written(random.Random(0), Sent(True, "acme", "api", "good", "call", NOON, {"n": "1"}), plain=True)
    line = row.make(plain_event("bad", "acme", NOON))
    for block in (line, line + b"\n" + good, good + b"\n" + line + b"\n"):
        fleet = Fleet(case.catalog, case.lateness, "event")
        model = Model(case.catalog, case.lateness, "event")
        fleet.send(block, NOON, None)
        for each in block.split(b"\n"):
            model.feed(each, NOON, None)
        dead = [(each.reason, each.payload) for each in fleet.dead]
        assert dead == model.dead
        assert [reason for reason, _ in dead] == ([] if row.reason is None else [row.reason])


class Machine(RuleBasedStateMachine):
    """Both under the same small steps, compared after each one."""

    sent: list[Sent]
    adjusted = 0
    clock: Clock = "event"

    @initialize(
        catalog=catalogs(), hours=st.sampled_from((1, 6, 24)), clock=st.sampled_from(("event", "wall"))
    )
    def start(self, catalog: Catalog, hours: int, clock: Clock) -> None:
        self.fleet = Fleet(catalog, timedelta(hours=hours), clock)
        self.model = Model(catalog, timedelta(hours=hours), clock)
        self.sent = []

    def _poll(self, payloads: list[bytes]) -> None:
        self.fleet.send(b"\n".join(payloads), NOON, None)
        for payload in payloads:
            self.model.feed(payload, NOON, None)

    @rule(sent=st.lists(events(), min_size=1, max_size=6))
    def send(self, sent: list[Sent]) -> None:
        """Any events in any order."""
        self.sent += sent
        self._poll([written(random.Random(0), each, plain=True) for each in sent])

    @rule(sent=st.lists(events(), min_size=1, max_size=4))
    def send_an_array(self, sent: list[Sent]) -> None:
        self.sent += sent
        inner = b" , ".join(written(random.Random(0), each, plain=True) for each in sent)
        self._poll([b"[" + inner + b"]"])

    @rule(pick=st.integers(0, 1000), seed=st.integers(0, 1000))
    def repeat(self, pick: int, seed: int) -> None:
        """An earlier event again, written differently; its data too, or not."""
        if self.sent:
            sent, rng = self.sent[pick % len(self.sent)], random.Random(seed)
            self._poll([written(rng, sent.with_data(rng, plain=seed % 2 == 0))])

    @rule(row=st.sampled_from([row for row in MALFORMED if row.reason != "too_large"]))
    def send_what_is_broken(self, row: Malformed) -> None:
        self._poll([row.make(plain_event(row.name, "acme", NOON))])

    @rule()
    def snapshot(self) -> None:
        self.fleet.snapshot()

    @rule()
    def restart(self) -> None:
        self.fleet.restart()

    @rule()
    def crash(self) -> None:
        self.fleet.crash()

    @rule(catalog=catalogs())
    def change_limits(self, catalog: Catalog) -> None:
        self.fleet.restart(catalog)
        self.model.restart(catalog)

    @rule(catalog=catalogs())
    def change_limits_live(self, catalog: Catalog) -> None:
        self.fleet.adopt(catalog)
        self.model.restart(catalog)

    @rule(
        customer=st.sampled_from(("acme", "a-b,c", "Zoë", "new")),
        meter=st.sampled_from(METERS),
        ago=st.integers(-2, 100),
        amount=st.decimals(-30, 30, places=3),
    )
    def adjust(self, customer: str, meter: Meter, ago: int, amount: Decimal) -> None:
        """A repair, up or down, in any window that is still held."""
        at = NOON - ago * HOUR
        self.adjusted += 1
        adjustment = Adjustment(
            id=str(self.adjusted),
            customer=customer,
            meter=meter.name,
            at=at,
            quantity=str(amount),
            reason="",
            by="",
        )
        taken = self.model.adjust(customer, meter, at, Fraction(amount), NOON)
        assert self.fleet.adjust(adjustment, NOON) == taken

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "fleet"):
            assert_agreed(self.fleet, self.model)


Machine.TestCase.settings = settings(
    max_examples=int(os.environ.get("TIDEGATE_ORACLE_EXAMPLES", "40")),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestMachine = Machine.TestCase
