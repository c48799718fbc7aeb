"""The real code against the reference model: the same traffic, the same books.

`TIDEGATE_ORACLE_SEEDS=200 TIDEGATE_ORACLE_EVENTS=5000` is the full campaign. A seed that fails is run again
alone by TIDEGATE_ORACLE_FIRST=17 TIDEGATE_ORACLE_SEEDS=1, and shortened by a smaller TIDEGATE_ORACLE_EVENTS.
"""

import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace as replaced
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Literal, cast

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from tests.operators.strategies import LARGEST, METERS, NOON, adjustments, catalogs, events
from tests.reference.malformed import MALFORMED, Malformed, plain_event
from tests.reference.model import Model, Seen, Told, Unread
from tests.reference.model_now import Clock
from tests.reference.traffic import (
    DAY,
    HOUR,
    LATENESSES,
    MINUTE,
    Case,
    Sent,
    changed_catalog,
    traffic,
    written,
)
from tests.support.options import option
from tidegate.operators.columns import quantity
from tidegate.operators.columns.quantity import QUANTITY_MAX
from tidegate.operators.events.chunk import Ints
from tidegate.operators.events.decode import Decoder
from tidegate.operators.events.keys import shard_of
from tidegate.operators.metering import dedup, sorted_runs, windows
from tidegate.operators.metering.shard import Outcome, Shard
from tidegate.operators.metering.snapshot import Frame
from tidegate.operators.metering.thresholds import compute_alert_id, compute_limit_version
from tidegate.operators.model.catalog import Catalog, Limit, Meter, Plan, Threshold
from tidegate.operators.model.periods import MAX_AT, MIN_AT, Calendar
from tidegate.operators.model.ports import Adjustment, Payloads, StreamMark
from tidegate.operators.model.records import Accepted, Alert, DeadLetter, Total

FIRST = int(option("TIDEGATE_ORACLE_FIRST", "0"))
SEEDS = range(FIRST, FIRST + int(option("TIDEGATE_ORACLE_SEEDS", "6")))
EVENTS = int(option("TIDEGATE_ORACLE_EVENTS", "1000"))
SHARDS = 4

Key = tuple[str, str, str, int]


class Fleet:
    """Decoder and shards as the flow runs them, all that left them, and the snapshots to go back to."""

    def __init__(self, catalog: Catalog, lateness: timedelta, clock: Clock) -> None:
        self.catalog = catalog
        self.model = Model(catalog, lateness, clock, shard_of=lambda name: shard_of(name, SHARDS))
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
        self.latest = 0
        self.applied_at = self.now = 0
        self.left: list[list[object]] = [self._start(0)]

    def _start(self, now: int) -> list[object]:
        """Start from the snapshots; gives the alerts that a changed catalog sets off."""
        self.decoder = Decoder(self.catalog, shards=SHARDS, clock=self.clock, number=self.number)
        self.shards = [
            Shard.restore(
                i,
                self.catalog,
                self.lateness,
                self.clock,
                self.frames[i],
                number=self.number,
                applied_at=self.applied_at,
                received_at=now,
            )
            for i in range(SHARDS)
        ]
        return [alert for shard in self.shards for alert in shard.drain_reviewed()]

    def send(
        self,
        lines: list[bytes],
        received_at: int,
        taken: Sequence[int] | int | None = None,
        stream: str = "",
        end: bytes = b"",
    ) -> None:
        """Meter a poll, here and in the model; `taken` is when the transport took all of it, or each line."""
        block = b"\n".join(lines) + end
        each = taken if isinstance(taken, Sequence) else [taken] * len(lines)
        times_of = None if taken is None or isinstance(taken, int) else times_by_line(block, taken)
        payloads = Payloads(
            block, received_at, taken if isinstance(taken, int) else None, "test", times_of, stream
        )
        self.since.append(payloads)
        self.latest = max(self.latest, received_at)
        outcomes = self._apply(payloads)
        self.left.append(_comparable(outcomes))
        for outcome in outcomes:
            self.alerts += outcome.alerts
            self.dead += outcome.dead
            self.accepted += outcome.accepted
        for line, at in zip(lines, each, strict=True):
            self.model.feed(line, received_at, at, stream)

    def mark(self, mark: StreamMark) -> None:
        """Say how far a stream is read."""
        payloads = Payloads(b"", 0, None, "test", mark=mark)
        self.since.append(payloads)
        self.left.append(_comparable(self._apply(payloads)))
        self.model.now.note(mark, range(SHARDS))

    def _apply(self, payloads: Payloads) -> list[Outcome]:
        if payloads.mark is not None:
            for shard in self.shards:
                shard.note_mark(payloads.mark)
            return []
        return [
            # Half of the shards live in another process.
            self.shards[i].apply(pickle.loads(pickle.dumps(chunk)) if i % 2 else chunk)
            for i, chunk in self.decoder.decode(payloads)
        ]

    def write(self) -> None:
        """Write the totals that changed; a store keeps the newest version."""
        for shard in self.shards:
            for total in shard.drain_totals():
                key = total.customer, total.meter, total.window, total.start
                known = self.totals.get(key)
                if known is None or known.version < total.version:
                    self.totals[key] = total
                elif known.version == total.version:
                    # An end moves without a new version.
                    assert known == total._replace(end=known.end)
                    self.totals[key] = total
            self.counts.update(
                {(counter.shard, counter.name): counter.value for counter in shard.list_counters()}
            )

    def snapshot(self) -> None:
        """Note what changed, as an epoch's end does; what has not been written yet must not be lost."""
        for shard, frames in zip(self.shards, self.frames, strict=True):
            frames += shard.take_delta()
        self.since, self.left = [], [[]]
        self.model.now.snapshot()

    def restart(
        self,
        catalog: Catalog | None = None,
        now: int = 0,
        lateness: timedelta | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Snapshot, and go on in another process, perhaps under a catalog applied `now`, or other settings."""
        self.snapshot()
        self.now = max(now, self.now)
        if catalog is not None:
            self.catalog, self.applied_at = catalog, self.now
        self.lateness, self.clock = lateness or self.lateness, clock or self.clock
        self.left = [self._start(self.now)]
        self.alerts += cast(list[Alert], self.left[0])
        self.model.now.restart(self.lateness // timedelta(microseconds=1), self.clock)
        self.model.restart(self.catalog, self.now, self.applied_at)

    def adopt(self, catalog: Catalog, now: int) -> None:
        """Go on under another catalog without stopping, applied `now`."""
        self.now = max(now, self.now)
        self.catalog, self.applied_at = catalog, self.now
        self.number += 1
        customers = self.decoder.customers
        self.decoder = Decoder(
            catalog, shards=SHARDS, clock=self.clock, number=self.number, customers=customers
        )
        for shard in self.shards:
            shard.adopt_catalog(self.number, catalog, self.now, self.now)
            self.alerts += shard.drain_reviewed()
        self.snapshot()
        self.model.restart(catalog, self.now, self.now)

    def adjust(self, adjustment: Adjustment, received_at: int) -> bool:
        """Whether it was taken."""
        shard = self.shards[shard_of(adjustment.customer, SHARDS)]
        alerts, refused = shard.adjust(adjustment, received_at)
        self.alerts += alerts
        self.snapshot()
        return refused is None

    def lose_store(self) -> None:
        """Lose all that was written; the shards write what they hold, which lacks only windows that are over."""
        self.write()
        before, self.totals, self.counts = self.totals, {}, {}
        for shard in self.shards:
            shard.republish()
        self.write()
        latest = max([total.as_of for total in before.values()], default=0)
        for key, total in before.items():
            if key in self.totals:
                assert self.totals[key] == total
            else:
                assert total.end <= max(latest, self.latest)
        self.totals = before | self.totals

    def crash(self) -> None:
        """Go back to the last snapshot and do again what was done since: the same must leave again."""
        again = [self._start(self.now)]
        again += [_comparable(self._apply(_later(payloads))) for payloads in self.since]
        assert again == self.left
        self.model.now.crash()

    @property
    def counters(self) -> Counter[str]:
        counters: Counter[str] = Counter()
        for (_, name), value in self.counts.items():
            counters[name] += value
        return counters


def times_by_line(block: bytes, taken: Sequence[int]) -> Callable[[Ints], Ints]:
    """What gives the transport's time for each line of a block."""
    breaks = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    return lambda starts: np.array(taken)[np.searchsorted(breaks, starts)]


def _later(payloads: Payloads) -> Payloads:
    """The same read again under another wall clock, which decides nothing where the transport says when."""
    if payloads.transport_time is None and payloads.times_of is None:
        return payloads
    return msgspec.structs.replace(payloads, received_at=payloads.received_at + 3 * DAY)


def _comparable(outcomes: list[Outcome]) -> list[object]:
    """Columns have no equality of their own, and a dead letter says when it was read."""
    return [
        (
            outcome._replace(
                settled=None, dead=[msgspec.structs.replace(each, received_at=0) for each in outcome.dead]
            ),
            [word.tolist() for word in outcome.settled or ()],
        )
        for outcome in outcomes
    ]


def alert(told: Told) -> Alert:
    """The alert that the model means."""
    version = "" if told.limited_by is None else compute_limit_version(told.limited_by)
    return Alert(
        id=compute_alert_id(
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


def assert_unmetered(fleet: Fleet, model: Model) -> None:
    """What was not metered, by cause and by customer, and what was announced of it."""
    found: dict[tuple[str, Unread], Seen] = {}
    for shard in fleet.shards:
        for (customer, cause), row in shard.unmetered.rows.items():
            key = customer, Unread(*cause)
            seen = Seen(row.events, row.first_at, row.last_at, row.customer, row.event_id)
            if key in found:
                assert not customer, "a customer has one shard"
                known = found[key]
                seen.events += known.events
                seen.first_at, seen.last_at = (
                    min(seen.first_at, known.first_at),
                    max(seen.last_at, known.last_at),
                )
            found[key] = seen
    # Several shards have a sample each.
    for (customer, _), seen in [*found.items(), *model.unmetered.items()]:
        if not customer:
            seen.customer = seen.id = ""
    assert found == model.unmetered
    told = [alert for alert in fleet.alerts if alert.kind == "unmetered"]
    assert Counter((each.event_name, each.level, each.meter, each.at) for each in told) == Counter(
        (cause.name, cause.reason, cause.meter, at) for _, cause, at in model.announced
    )
    assert len({each.id for each in told}) == len({cause for _, cause, _ in model.announced})


def assert_agreed(fleet: Fleet) -> None:
    """The fleet's books are the model's, and they add up."""
    model = fleet.model
    fleet.write()
    assert Counter((dead.reason, dead.payload) for dead in fleet.dead) == Counter(model.dead)
    # Per customer in order: each has a safe id of its own, which follows from its identity and hour.
    real, meant = fleet.accepted, model.accepted
    for customer in {each.customer for each in real} | {each.customer for each in meant}:
        ours = [each for each in real if each.customer == customer]
        theirs = [each for each in meant if each.customer == customer]
        assert [each[1:] for each in ours] == [(e.customer, e.at, e.late, e.payload) for e in theirs]
        pairs = {
            (one.id, (other.source, other.id, other.at // HOUR))
            for one, other in zip(ours, theirs, strict=True)
        }
        assert len(ours) == len({id for id, _ in pairs}) == len({identity for _, identity in pairs})
    assert comparable(fleet.totals, model) == comparable(model.totals, model)
    released = {(customer, meter, start) for customer, meter, _, start in model.released}
    limits = [
        each
        for each in fleet.alerts
        if each.kind != "unmetered" and (each.customer, each.meter, each.period_start) not in released
    ]
    alerts = [alert(each) for each in model.alerts]
    assert by_key(limits) == by_key(
        [each for each in alerts if (each.customer, each.meter, each.period_start) not in released]
    )
    assert_unmetered(fleet, model)
    assert +fleet.counters == +model.counters
    assert_conserved(fleet.counters, fleet.catalog)


def comparable(totals: dict[Key, Total], model: Model) -> dict[Key, Total]:
    """Totals without those of periods that were perhaps let go of, which begin at 0 if a catalog opens them again.

    Whether they were depends on when the shard swept. A period of the same meter that begins no later has a version
    above all that were let go of, and may replace a larger total.
    """
    latest: dict[tuple[str, str], int] = {}
    for customer, meter, _, start in model.released:
        latest[customer, meter] = max(latest.get((customer, meter), 0), start)
    return {
        key: total._replace(version=0, steady=False)
        if key[2] == "period" and key[3] <= latest.get(key[:2], -1)
        else total
        for key, total in totals.items()
        if key not in model.released
    }


def assert_conserved(counters: Counter[str], catalog: Catalog) -> None:
    ways = ("rejects", "too_late", "duplicates", "conflicts", "accepted")
    assert counters["events"] == sum(counters[way] for way in ways)
    assert counters["accepted"] == counters["metered"] + counters["unmetered"]
    for meter in catalog.meters:
        both = counters[f"counted:{meter.name}"] + counters[f"corrected:{meter.name}"]
        assert counters[f"matching:{meter.name}"] == both


class Reader:
    """Reads the traffic as several streams at speeds of their own, with a wall clock that jumps."""

    def __init__(self, rng: random.Random, case: Case, fleet: Fleet) -> None:
        self.rng, self.fleet = rng, fleet
        names = [f"part-{i}" for i in range(rng.choice((1, 1, 2, 3)))]
        self.parts = tuple(names)
        self.waiting: dict[str, list[tuple[bytes, int]]] = {name: [] for name in names}
        for line, sent_at in zip(case.lines, case.sent_at, strict=True):
            self.waiting[rng.choice(names)].append((line, sent_at))
        self.speed = {name: rng.choice((1, 1, 5, 50)) for name in names}
        self.wall = case.sent_at[0]
        self.says_time = rng.random() < 0.7

    def run(self, change: Callable[[], object]) -> None:
        """Poll until all is read; `change` comes between the polls."""
        for name in self.parts:
            self._mark(name, "open")
        while any(self.waiting.values()):
            [name] = self.rng.choices(self.parts, [self.speed[name] for name in self.parts])
            self._poll(name)
            change()

    def _poll(self, name: str) -> None:
        rng, waiting = self.rng, self.waiting[name]
        taken, self.waiting[name] = waiting[: (n := rng.choice((1, 2, 7, 50, 400)))], waiting[n:]
        if not taken:
            self._mark(name, "idle")
            return
        lines, times = [line for line, _ in taken], [at for _, at in taken]
        self.wall = max(self.wall, times[-1]) + rng.choice((0, 0, 0, 0, 3 * DAY, -3 * DAY, HOUR))
        if rng.random() < 0.03:
            times[rng.randrange(len(times))] += rng.choice((2 * DAY, 70 * 365 * DAY, -DAY))
        when: Sequence[int] | int | None = times if self.says_time else None
        if self.says_time and rng.random() < 0.4:
            when = times[-1]
        self.fleet.send(lines, self.wall, when, name, rng.choice((b"", b"\n")))
        if rng.random() < 0.3:
            self._mark(name, "open", times[0])

    def _mark(self, name: str, state: Literal["open", "idle", "ended"], at: int = 0) -> None:
        self.fleet.mark(StreamMark(name, state, at, self.parts))


@pytest.fixture
def patched() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_model_and_the_shards_agree_on_traffic(seed: int, clock: Clock, patched: ExitStack) -> None:
    """However the traffic is cut into polls, in streams of any speed, and wherever shards stop, go on and change.

    Every other seed has narrow limbs.
    """
    rng = random.Random(f"cut {seed}")
    if seed % 2:
        patched.enter_context(narrow_limbs())
    patched.enter_context(divided_identities(rng))
    case = traffic(seed, EVENTS)
    fleet = Fleet(case.catalog, case.lateness, clock)

    def change_settings() -> None:
        fleet.restart(
            lateness=timedelta(hours=rng.choice(LATENESSES)), clock=rng.choice((None, "event", "wall"))
        )

    def change() -> None:
        rng.choice((fleet.write, fleet.snapshot, fleet.restart, fleet.crash, lambda: None, lambda: None))()
        if rng.random() < 0.03:
            change_settings()

    Reader(rng, case, fleet).run(change)
    assert_agreed(fleet)


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("seed", SEEDS)
def test_they_agree_while_periods_and_zones_change(seed: int, clock: Clock) -> None:
    """Live and at restarts, with what is late or repeated going on under each catalog."""
    rng = random.Random(f"change {seed}")
    case = traffic(seed, EVENTS)
    fleet = Fleet(case.catalog, case.lateness, clock)
    moments = iter(case.sent_at)

    def change() -> None:
        now = next(moments, case.sent_at[-1])
        if rng.random() < 0.2:
            rng.choice((fleet.adopt, fleet.restart))(changed_catalog(rng, fleet.catalog), now)
        rng.choice((fleet.write, fleet.snapshot, fleet.crash, lambda: None))()
        if rng.random() < 0.05:
            fleet.lose_store()

    Reader(rng, case, fleet).run(change)
    assert_agreed(fleet)


LATENESS = 2 * HOUR
MOMENTS: dict[str, list[tuple[int, str, str]]] = {
    # Each event is a time from noon on, an id and a quantity. One before them confirms the first.
    "as late as the lateness": [(0, "1", "1"), (-LATENESS, "2", "1"), (-LATENESS - 1, "3", "1")],
    "too late, and yet it moves nothing": [(0, "1", "1"), (-LATENESS - 1, "2", "1"), (-LATENESS, "2", "1")],
    "an hour ends": [(0, "1", "1"), (-1, "2", "1"), (1, "3", "1"), (0, "4", "1")],
    "a repeat in other hours": [(0, "1", "1"), (-1, "1", "1"), (-LATENESS, "1", "1"), (HOUR, "1", "1")],
    "its hour is still in reach": [(-1, "1", "1"), (LATENESS - 1, "2", "1"), (LATENESS - 1, "1", "1")],
    "its hour is out of reach": [
        (-1, "1", "1"),
        (LATENESS, "2", "1"),
        (LATENESS, "1", "1"),
        (LATENESS, "1", "2"),
    ],
    "it was late, and counts from now": [
        (0, "1", "1"),
        (-LATENESS, "2", "1"),
        (LATENESS, "3", "1"),
        (HOUR, "2", "1"),
    ],
    "it comes again and again": [(4 * i * HOUR + j, "1", f"{j}") for i in range(5) for j in range(3)],
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
    fleet = Fleet(catalog, lateness, clock)
    rng = random.Random(0)
    confirming = (moments[0][0] - 1, "before", "1")
    sent = [
        written(rng, Sent(False, "acme", "", id, "call", NOON + at, {"n": n}), plain=True)
        for at, id, n in [confirming, *moments]
    ]
    received_at = NOON + max(at for at, *_ in moments)
    for lines in [sent] if together else [[line] for line in sent]:
        fleet.send(lines, received_at)
        fleet.restart()
    assert_agreed(fleet)


@pytest.mark.parametrize("row", MALFORMED, ids=lambda row: row.name)
def test_what_is_broken_is_told_by_its_reason(row: Malformed) -> None:
    """Also beside good events, with which it shares a piece of the decoder's work."""
    case = traffic(0, 1)
    good = written(random.Random(0), Sent(True, "acme", "api", "good", "call", NOON, {"n": "1"}), plain=True)
    line = row.make(plain_event("bad", "acme", NOON))
    for block in (line, line + b"\n" + good, good + b"\n" + line + b"\n"):
        fleet = Fleet(case.catalog, case.lateness, "event")
        fleet.send(block.split(b"\n"), NOON)
        dead = [(each.reason, each.payload) for each in fleet.dead]
        assert dead == fleet.model.dead
        assert [reason for reason, _ in dead] == ([] if row.reason is None else [row.reason])


@contextmanager
def narrow_limbs() -> Iterator[None]:
    """Let totals outgrow `hi`, sums be split, and counts outgrow their columns, after a few readings already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantity, "HI_MAX", 2 * QUANTITY_MAX)
        patch.setattr(windows, "HI_MAX", 2 * QUANTITY_MAX)
        patch.setattr(windows, "may_overflow", lambda hi: len(hi) > 1)
        patch.setattr(windows, "_COUNT_MAX", 3)
        yield


@contextmanager
def divided_identities(rng: random.Random) -> Iterator[None]:
    """Let identities lie in many small runs and streams, or as in a real shard."""
    with pytest.MonkeyPatch.context() as patch:
        young, most = rng.choice(((3, 2), (20, 4), (1 << 15, 16)))
        patch.setattr(dedup, "YOUNG_MAX", young)
        patch.setattr(dedup, "RUNS_MAX", most)
        patch.setattr(sorted_runs, "STREAMS_MAX", rng.choice((2, 16)))
        yield


class Machine(RuleBasedStateMachine):
    """Both under the same small steps, compared after each one."""

    sent: list[Sent]
    adjusted: list[tuple[Adjustment, bool]]
    large = 0
    wall = NOON
    stream = "a"
    taken: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self._patched = ExitStack()

    def teardown(self) -> None:
        self._patched.close()

    @initialize(
        catalog=catalogs(),
        hours=st.sampled_from((1, 6, 24, 24 * 35)),
        clock=st.sampled_from(("event", "wall")),
        narrow=st.booleans(),
        rng=st.randoms(use_true_random=False),
    )
    def start(self, catalog: Catalog, hours: int, clock: Clock, narrow: bool, rng: random.Random) -> None:
        if narrow:
            self._patched.enter_context(narrow_limbs())
        self._patched.enter_context(divided_identities(rng))
        self.fleet = Fleet(catalog, timedelta(hours=hours), clock)
        self.sent = []
        self.adjusted = []
        self.wall = NOON

    def _poll(self, payloads: list[bytes]) -> None:
        # Each poll in one of two streams, a little later than the one before.
        self.wall += MINUTE
        self.fleet.send(payloads, self.wall, self.taken, self.stream)

    @rule(sent=st.lists(events(), min_size=1, max_size=6))
    def send(self, sent: list[Sent]) -> None:
        """Any events in any order."""
        self.sent += sent
        self._poll([written(random.Random(0), each, plain=True) for each in sent])

    @rule(customer=st.sampled_from(("acme", "Zoë")), count=st.integers(2, 40), n=st.sampled_from(LARGEST))
    def send_many_large_ones(self, customer: str, count: int, n: str) -> None:
        """All in one poll, so that their sum is the poll's."""
        first, self.large = self.large, self.large + count
        sent = [
            Sent(False, customer, "", f"large {i}", "call", NOON, {"n": n})
            for i in range(first, first + count)
        ]
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

    @rule(
        pick=st.integers(0, 1000),
        by=st.sampled_from((-24 * HOUR, -HOUR, -1, 1, HOUR, 24 * HOUR, 840 * HOUR)),
        timed=st.booleans(),
        same=st.booleans(),
    )
    def repeat_at_another_time(self, pick: int, by: int, timed: bool, same: bool) -> None:
        """An earlier event as a client sends it again that gives it a new time, or leaves that to the transport."""
        if self.sent:
            sent = self.sent[pick % len(self.sent)]
            moved = replaced(sent, at=sent.at + by, timed=timed)
            if not same:
                moved = replaced(moved, properties={**(sent.properties or {}), "n": "7.5"}, data=None)
            self.sent.append(moved)
            self._poll([written(random.Random(0), moved, plain=True)])

    @rule(row=st.sampled_from([row for row in MALFORMED if row.reason != "too_large"]))
    def send_what_is_broken(self, row: Malformed) -> None:
        self._poll([row.make(plain_event(row.name, "acme", NOON))])

    @rule(stream=st.sampled_from("ab"), ago=st.none() | st.integers(-2, 60).map(lambda hours: hours * HOUR))
    def read_on(self, stream: str, ago: int | None) -> None:
        """What follows comes from this stream, of which the transport took it so long ago, or does not say."""
        self.stream, self.taken = stream, None if ago is None else self.wall - ago

    @rule(jump=st.sampled_from((2 * DAY, -2 * DAY, HOUR, 12 * HOUR)))
    def set_wall_clock(self, jump: int) -> None:
        self.wall += jump

    @rule(
        stream=st.sampled_from("ab"),
        state=st.sampled_from(("open", "idle", "ended", None)),
        ago=st.none() | st.integers(-2, 60),
        parts=st.sampled_from(((), ("a", "b"), ("a",), ("b", "c"))),
    )
    def mark(
        self, stream: str, state: Literal["open", "idle", "ended"], ago: int | None, parts: tuple[str, ...]
    ) -> None:
        """The source says how far it is, and which streams it has."""
        at = 0 if ago is None else NOON - ago * HOUR
        self.fleet.mark(StreamMark(stream, state, at, parts))

    @rule(hours=st.sampled_from((1, 6, 24, 72)), clock=st.sampled_from(("event", "wall")))
    def change_settings(self, hours: int, clock: Clock) -> None:
        self.fleet.restart(lateness=timedelta(hours=hours), clock=clock)

    @rule()
    def snapshot(self) -> None:
        self.fleet.snapshot()

    @rule()
    def restart(self) -> None:
        self.fleet.restart()

    @rule()
    def crash(self) -> None:
        self.fleet.crash()

    @rule(catalog=catalogs(), later=st.sampled_from((0, HOUR, 30 * HOUR)))
    def change_the_catalog(self, catalog: Catalog, later: int) -> None:
        """Limits, periods and zones: what is counted goes on, what holds now is judged."""
        self.fleet.restart(catalog, NOON + later)

    @rule(catalog=catalogs(), later=st.sampled_from((0, HOUR, 30 * HOUR)))
    def change_the_catalog_live(self, catalog: Catalog, later: int) -> None:
        self.fleet.adopt(catalog, NOON + later)

    @rule(
        customer=st.sampled_from(("acme", "a-b,c", "Zoë", "new")),
        meter=st.sampled_from(METERS),
        ago=st.integers(-2, 100),
        amount=adjustments(),
    )
    def adjust(self, customer: str, meter: Meter, ago: int, amount: Decimal) -> None:
        """A repair, up or down, in any window that is still held."""
        at = NOON - ago * HOUR
        adjustment = Adjustment(
            id=str(len(self.adjusted)),
            customer=customer,
            meter=meter.name,
            at=at,
            quantity=str(amount),
            reason="",
            by="",
        )
        taken = self.fleet.model.adjust(customer, meter, at, Fraction(amount), NOON)
        assert self.fleet.adjust(adjustment, NOON) == taken
        self.adjusted.append((adjustment, taken))

    @rule()
    def lose_the_store(self) -> None:
        self.fleet.lose_store()

    @rule()
    def read_the_control_log_again(self) -> None:
        """Its store was put back: every adjustment comes once more, says what it said, and adds nothing."""
        for adjustment, taken in self.adjusted:
            assert self.fleet.adjust(adjustment, NOON) == taken

    @rule(pick=st.integers(0, 1000), seconds=st.sampled_from((0, 1)))
    def adjust_by_another_under_an_id(self, pick: int, seconds: int) -> None:
        if self.adjusted:
            first, _ = self.adjusted[pick % len(self.adjusted)]
            at, quantity = first.at + seconds, str(Decimal(first.quantity) + 1)
            assert not self.fleet.adjust(replace(first, at=at, quantity=quantity), NOON)

    @rule(
        customer=st.sampled_from(("acme", "new", "", "c" * 257)),
        at=st.sampled_from((NOON, -1, 0, MIN_AT - 1, MAX_AT, 10**30)),
        quantity=st.sampled_from(("1", "NaN", "1e999999", "0." + "1" * 25, "", "one")),
    )
    def adjust_by_anything(self, customer: str, at: int, quantity: str) -> None:
        """What can't be is refused, and leaves nothing."""
        if (at, quantity) == (NOON, "1") and customer in ("acme", "new"):
            return
        record = Adjustment(
            id=f"odd {self.wall} {customer} {at} {quantity}", customer=customer, meter="calls", at=at,
            quantity=quantity, reason="", by="",
        )  # fmt: skip
        assert not self.fleet.adjust(record, NOON)

    @rule(
        catalog=catalogs(),
        stays=st.lists(st.sampled_from(METERS), min_size=1, unique=True),
        live=st.booleans(),
    )
    def change_meters(self, catalog: Catalog, stays: list[Meter], live: bool) -> None:
        """Meters go, and come back with a later catalog."""
        change = self.fleet.adopt if live else self.fleet.restart
        change(replaced(catalog, meters=tuple(stays)), NOON)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "fleet"):
            assert_agreed(self.fleet)


Machine.TestCase.settings = settings(
    max_examples=int(option("TIDEGATE_ORACLE_EXAMPLES", "40")),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestMachine = Machine.TestCase
