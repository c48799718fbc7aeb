"""One virtual shard: the customers that hash to it, and all that is known of them.

A chunk goes through time classes, dedup, windows and thresholds and comes out as an outcome. The state is in
operators/metering/shard_state.py; operators/metering/snapshot.py writes what changed of it and builds it up again.
"""

from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_hexdigest

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.columns.quantity import SCALE, TOTAL_MAX, scaled
from tidegate.operators.events.chunk import Chunk, Ints, Readings
from tidegate.operators.metering import catalog_change, snapshot
from tidegate.operators.metering.alerts import Watch
from tidegate.operators.metering.catalog_change import Moves
from tidegate.operators.metering.dedup import CONFLICT, DUPLICATE, NEW, Identities
from tidegate.operators.metering.key_index import UNCOUNTED, Edges, Roster
from tidegate.operators.metering.shard_state import ShardState
from tidegate.operators.metering.totals import Totals, taken
from tidegate.operators.metering.unmetered_rows import unmetered_alert
from tidegate.operators.metering.windows import (
    ADD,
    DAY_WINDOW,
    HOUR_WINDOW,
    PERIOD_WINDOW,
    UNSAVED,
    UNSENT,
    WINDOW_NAMES,
    Adjusted,
    Batch,
    add,
    add_amount,
    key_of,
    runs_of,
    start_of,
    total_at,
    window_key,
)
from tidegate.operators.model.adjustments import FULL, USED_BEFORE, fault_of, fingerprint_of
from tidegate.operators.model.catalog import Catalog, Meter
from tidegate.operators.model.periods import HOUR
from tidegate.operators.model.ports import Adjustment, Settled, StreamMark
from tidegate.operators.model.records import Accepted, Alert, Counter, DeadLetter

ON_TIME, LATE_OPEN, LATE_CLOSED = 0, 1, 2
LATE_NAMES: tuple[Literal["on_time", "late_open", "late_closed"], ...] = (
    "on_time",
    "late_open",
    "late_closed",
)

TOO_LATE, FORGOTTEN = 3, 4
VERDICTS = (("accepted", NEW), ("duplicates", DUPLICATE), ("conflicts", CONFLICT))
DETAILS = {
    TOO_LATE: (
        "too_late",
        "older than the lateness before the customer's now; an operator may adjust by hand",
    ),
    FORGOTTEN: (
        "too_late",
        "what the flow knew of the customer's events of that time may be forgotten: the lateness or the clock was"
        " changed, or other partitions of the source had gone on by more than the lateness; an operator may adjust"
        " by hand",
    ),
    CONFLICT: ("conflict", "another event of this identity was accepted before; the first one stands"),
}


class Outcome(NamedTuple):
    """What a chunk led to, apart from totals, which are asked for when they are to be written."""

    alerts: list[Alert]
    dead: list[DeadLetter]
    accepted: list[Accepted]
    settled: Settled | None = None


_UNADJUSTED = Adjusted(0, 0)
_YES = np.array([True])
_FUTURE = timedelta(minutes=5)
# Rows held from which on they are swept when they have doubled, whatever time it is.
SWEPT_AT_LEAST = 65_536


class Shard(ShardState):
    """One shard at work. `forward` asks for accepted events in the outcome, as billing needs them."""

    def __init__(
        self,
        index: int,
        catalog: Catalog,
        lateness: timedelta,
        clock: Literal["event", "wall"],
        *,
        forward: bool = True,
        meters: list[Meter] | None = None,
        number: int = 0,
        future: timedelta = _FUTURE,
    ) -> None:
        self.index = index
        super().__init__(catalog, lateness, clock, meters=meters, number=number, future=future)
        self._forward = forward
        self._reviewed: list[Alert] = []
        self._moves: list[Moves] = []
        self._swept_hour = 0
        self._swept_size = 0
        self._held = 0

    @classmethod
    def restore(
        cls,
        index: int,
        catalog: Catalog,
        lateness: timedelta,
        clock: Literal["event", "wall"],
        frames: Iterable[snapshot.Frame],
        *,
        forward: bool = True,
        number: int = 0,
        future: timedelta = _FUTURE,
        applied_at: int = 0,
        received_at: int = 0,
    ) -> "Shard":
        """Build the shard as its deltas left it. Under a changed catalog it follows, as `adopt` does.

        Under another lateness or clock than it was left with, what may be forgotten by then stays out of reach.
        """
        state = snapshot.read(frames)
        shard = cls(
            index,
            catalog,
            lateness,
            clock,
            forward=forward,
            meters=state.meters,
            number=number,
            future=future,
        )
        shard._follow(state.fill(shard), applied_at, received_at)
        return shard

    def delta(self) -> list[snapshot.Frame]:
        """What changed since the last delta, in frames that restore the shard when all are put in a row."""
        self._drop_unreachable()
        return snapshot.delta(self)

    def forget(self) -> None:
        """For a run without snapshots: drops what no event can reach, and the notes for a delta."""
        self._drop_unreachable()
        self.memory.appended()
        self.saved.clocks.clear()
        self.streams.touched.clear()
        self.adjustments.unsaved.clear()
        self.watch.moved.clear()

    @property
    def files(self) -> Iterable[str]:
        """The journal's streams of identities that still count."""
        return self.memory.streams

    def note(self, mark: StreamMark) -> None:
        """Take in how far a partition of the source is read."""
        self.streams.note(mark)

    def review(self) -> list[Alert]:
        """The alerts that a changed catalog set off at `restore` or `adopt`, once."""
        reviewed, self._reviewed = self._reviewed, []
        return reviewed

    def moves(self) -> list[Moves]:
        """What changed catalogs did to windows at `restore` or `adopt`, once."""
        moves, self._moves = self._moves, []
        return moves

    def apply(self, chunk: Chunk) -> Outcome:
        """Takes a chunk in. Its totals wait until `totals` asks for them."""
        dead = [_letter(reject.reason, reject.detail, reject.payload, chunk) for reject in chunk.rejects]
        self._count("events", len(chunk) + len(chunk.rejects))
        self._count("rejects", len(chunk.rejects))
        if not len(chunk):
            return Outcome([], dead, [])
        customer = self.roster.customers(chunk)
        now = self._now(customer, chunk)
        verdicts = self._verdicts(chunk, customer, now, self._oldest(customer, now))
        for name, verdict in VERDICTS:
            self._count(name, int(np.count_nonzero(verdicts == verdict)))
        self._count("too_late", int(np.count_nonzero(verdicts >= TOO_LATE)))
        for event in np.flatnonzero(verdicts >= CONFLICT).tolist():
            dead.append(_letter(*DETAILS[int(verdicts[event])], chunk.payload(event), chunk))
        accepted = np.flatnonzero(verdicts == NEW)
        if not len(accepted):
            return Outcome([], dead, [])
        customer, now, at = customer[accepted], now[accepted], chunk.at[accepted]
        edges = self.roster.edges(customer, at)
        late = np.where(
            edges.period_end <= now, LATE_CLOSED, np.where(edges.hour_end <= now, LATE_OPEN, ON_TIME)
        )
        place = np.full(len(chunk), -1, np.int64)
        place[accepted] = np.arange(len(accepted))
        alerts = self._meter(chunk, place, customer, at, edges, late)
        alerts += self._miss(chunk, place)
        settled = Settled(chunk.digest_lo[accepted], chunk.digest_hi[accepted])
        return Outcome(alerts, dead, self._accepted(chunk, accepted, late) if self._forward else [], settled)

    def adopt(self, number: int, catalog: Catalog, applied_at: int, received_at: int) -> None:
        """Go on under another catalog: ends of windows are looked up in it, and limits judged by it.

        `review` has the alerts that follow, also of customers who are idle, and `moves` the windows. `applied_at` is
        when the catalog was applied, `received_at` now, for flows that go by the wall clock; µs since the epoch.
        """
        old = self.roster
        roster = Roster(catalog, old.meters, number)
        roster.take_over(old)
        held = {word: self.watch.held(word) for word in self.watch.words}
        unsaved = self.watch.moved
        self.roster, self.watch = roster, Watch(roster, self.periods)
        changed = np.flatnonzero(old.key_versions() != roster.key_versions())
        self._follow(snapshot.Was(held, changed, catalog_change.before(old, roster)), applied_at, received_at)
        self.watch.moved |= unsaved.intersection(self.watch.words)
        self.saved.whole |= len(roster.meters) > len(old.meters)

    def _follow(self, was: snapshot.Was, applied_at: int, received_at: int) -> None:
        """Bring windows and alert states to what the catalog in force says."""
        roster = self.roster
        now = self._now_at(received_at)
        moves, is_zone_new = catalog_change.follow(self.periods, self.buckets, roster, was.boundaries, now)
        if moves.moved or moves.cut_off:
            self._moves.append(moves)
        current = self._rows_not_over(now)
        self._reviewed += self.watch.restore(was.held, was.changed, current, applied_at)
        self.saved.whole |= bool(len(was.changed)) or is_zone_new

    def _now_at(self, received_at: int) -> Ints:
        """Return each customer's now without an event: by the event clock, its latest event that is not ahead of us."""
        if self.streams.wall:
            return np.full(len(self.roster.names), max(self.latest, received_at))
        now = self.roster.clock.values.copy()
        words, as_of = self.periods.keys[0][: len(self.periods)], self.periods.columns["as_of"]
        rows = np.flatnonzero(as_of[: len(words)] <= received_at)
        np.maximum.at(now, self.roster.key_customer.values[key_of(words[rows])], as_of[rows])
        return now

    def _rows_not_over(self, now: Ints) -> Ints:
        """Return the rows of present periods that end after their customers' `now`, by key and start.

        Mostly that is the one that holds now; a later one may have begun.
        """
        words = self.periods.keys[0][: len(self.periods)]
        customer = self.roster.key_customer.values[key_of(words)]
        rows = np.flatnonzero(self.periods.columns["end"][: len(words)] > now[customer])
        rows = rows[catalog_change.is_reachable(words[rows], self.roster)]
        return rows[np.argsort(words[rows])]

    def adjust(self, adjustment: Adjustment, received_at: int) -> tuple[list[Alert], str | None]:
        """Apply an adjustment once per id. Return the alerts it sets off, and why it was refused.

        The same again changes nothing and is answered alike. `received_at` is now, µs since the epoch.
        """
        if fault := fault_of(adjustment):
            return [], fault
        if known := self.adjustments.find(adjustment):
            return [], known.refused if known.content == fingerprint_of(adjustment) else USED_BEFORE
        if not self.adjustments.has_room(lambda word: word in self.adjusted):
            return [], FULL
        alerts, refused = self._adjust(adjustment, received_at)
        self.adjustments.add(adjustment, 0 if refused else self._period_word(adjustment), refused)
        return alerts, refused

    def _period_word(self, adjustment: Adjustment) -> int:
        customer, at = np.array([self.roster.add(adjustment.customer)]), np.array([adjustment.at])
        meter = next(i for i, meter in enumerate(self.roster.meters) if meter.name == adjustment.meter)
        key = self.roster.keys(customer, np.array([meter]))
        return int(window_key(key, PERIOD_WINDOW, self.roster.edges(customer, at).period)[0])

    def _adjust(self, adjustment: Adjustment, received_at: int) -> tuple[list[Alert], str | None]:
        """Adds to the windows that are held and hold its time. The alerts it sets off, and why it was refused.

        Totals of `max` and `last` are readings, not sums, and can't be adjusted. `received_at` is now, µs since the
        epoch, for flows that go by the wall clock.
        """
        roster = self.roster
        numbers = [number for number, meter in enumerate(roster.meters) if meter.name == adjustment.meter]
        if not numbers:
            return [], f"no meter {adjustment.meter!r}"
        if roster.fold_of[numbers[0]] != ADD:
            return [], f"meter {adjustment.meter!r} adds nothing up: {roster.meters[numbers[0]].kind}"
        try:
            amount = scaled(Decimal(adjustment.quantity))
        except (ValueError, InvalidOperation):
            return [], f"quantity: needs a decimal of at most 24 places, got {adjustment.quantity[:40]!r}"
        customer = np.array([roster.add(adjustment.customer)], np.int64)
        at = np.array([adjustment.at], np.int64)
        now = max(received_at, self.latest) if self.streams.wall else int(roster.clock.values[customer[0]])
        oldest = int(self._oldest(customer, np.array([now]))[0])
        edges = roster.edges(customer, at)
        key = roster.keys(customer, np.array(numbers[:1], np.int64))
        windows = (
            (self.periods, PERIOD_WINDOW, edges.period, int(edges.period_end[0])),
            (self.buckets, HOUR_WINDOW, edges.hour, int(edges.hour_end[0])),
            (self.buckets, DAY_WINDOW, edges.day, int(roster.bucket_bounds(customer, edges.day, _YES)[1][0])),
        )
        words = [(table, window_key(key, window, start), end) for table, window, start, end in windows]
        if any(abs(total_at(table, word) + amount) > TOTAL_MAX * SCALE for table, word, _ in words):
            return [], f"quantity: would take a total past ±10^{len(str(TOTAL_MAX)) - 1}"
        alerts: list[Alert] = []
        for table, word, end in words:
            if table.find(word)[0] < 0 and end <= oldest:
                # What it held is forgotten, and a total that begins anew would be an older version.
                if table is self.periods:
                    return [], "its period is no longer held"
                continue
            row, new = add_amount(table, word, amount)
            if table is self.periods and new:
                self._begin(np.array([row]), np.array([end]))
            known = self.adjusted.get(int(word[0]), _UNADJUSTED)
            self.adjusted[int(word[0])] = Adjusted(known.times + 1, known.amount + amount)
            if table is self.periods:
                alerts = self.watch.settle(row, adjustment.at)
        self._count("adjustments", 1)
        return alerts, None

    def remembered(self) -> list[Settled]:
        """The identities of all accepted events that are remembered, for a store that may hold some for open."""
        return [Settled(lo, hi) for lo, hi in self.memory.words() if len(lo)]

    def totals(self) -> Totals:
        """The totals that changed since this was last asked, absolute."""
        return taken((self.buckets, self.periods), self.roster, self.adjusted)

    def write_to(self, store: str) -> None:
        """Go on writing totals to this store: all that are held, if those so far are in another one."""
        if self.store not in ("", store):
            self.resend()
        self.store = store

    def resend(self) -> None:
        """Marks every total as changed, for a store that may have lost some."""
        for table in (self.buckets, self.periods):
            table.columns["dirty"][: len(table)] = UNSAVED | UNSENT
        self.unmetered.resend()

    def counters(self) -> list[Counter]:
        """Every counter as it stands."""
        return [Counter(self.index, name, value) for name, value in sorted(self.counts.items())]

    @property
    def nbytes(self) -> tuple[int, int]:
        """Memory held by totals, and by remembered identities."""
        return self.buckets.nbytes + self.periods.nbytes + self.let_go.nbytes, self.memory.nbytes

    def _now(self, customer: Ints, chunk: Chunk) -> Ints:
        now, moved, latest = self.streams.now(chunk, customer, self.lateness)
        self._count("outliers", self.streams.outliers)
        self.streams.outliers = 0
        if len(moved):
            clock = self.roster.clock.values
            clock[moved] = np.maximum(clock[moved], latest)
            self.saved.clocks.append(moved)
        self.latest = max(self.latest, int(now.max()))
        return now

    def _oldest(self, customer: Ints, now: Ints) -> Ints:
        """Return the earliest time that each event may have and be accepted."""
        return np.maximum(now - self.lateness, np.maximum(self.roster.floor.values[customer], self.floor))

    def _verdicts(self, chunk: Chunk, customer: Ints, now: Ints, oldest: Ints) -> NDArray[np.int8]:
        identities = Identities(chunk.digest_lo, chunk.digest_hi, chunk.mark, customer, chunk.at, now, oldest)
        fits = chunk.at >= oldest
        if fits.all():
            return self.memory.settle(identities)
        verdicts = np.where(chunk.at < now - self.lateness, TOO_LATE, FORGOTTEN).astype(np.int8)
        verdicts[fits] = self.memory.settle(identities.part(np.flatnonzero(fits)))
        return verdicts

    def _meter(
        self, chunk: Chunk, place: Ints, customer: Ints, at: Ints, edges: Edges, late: Ints
    ) -> list[Alert]:
        """Folds the readings of accepted events into their windows. `place` numbers those events, -1 the rest."""
        roster, readings = self.roster, chunk.readings
        number_of = roster.numbers[chunk.catalog]
        unread = number_of[chunk.unread.meter[place[chunk.unread.event] >= 0]]
        event = place[readings.event]
        if roster.refused:
            unread = unread[unread != UNCOUNTED]
            event[number_of[readings.meter] == UNCOUNTED] = -1
        self._count_by_meter("not_a_number", unread)
        kept = np.flatnonzero(event >= 0)
        if not len(kept):
            return []
        event = event[kept]
        # Readings stand in the order of their events.
        self._count("metered", 1 + int(np.count_nonzero(np.diff(event))))
        meter = number_of[readings.meter[kept]]
        closed = late[event] == LATE_CLOSED
        self._count_by_meter("matching", meter)
        self._count_by_meter("counted", meter[~closed])
        self._count_by_meter("corrected", meter[closed])
        batch = Batch(
            key=roster.keys(customer[event], meter),
            at=at[event],
            fold=roster.fold_of[meter],
            hi=readings.hi[kept],
            mid=None if readings.mid is None else readings.mid[kept],
            lo=None if readings.lo is None else readings.lo[kept],
            late=late[event] == LATE_OPEN,
            corrected=closed,
        )
        hour, day, period = edges.hour[event], edges.day[event], edges.period[event]
        his = self._unique(batch, readings, kept, (hour, day, period))
        runs = runs_of(batch, hour, period, his)
        windows = [(HOUR_WINDOW, hour[runs.first]), (DAY_WINDOW, day[runs.first])]
        add(self.buckets, runs, windows)
        touched = add(self.periods, runs, [(PERIOD_WINDOW, period[runs.first])])
        if touched.new.any():
            self._begin(touched.rows[touched.new], edges.period_end[event[touched.first[touched.new]]])
        return self.watch.look(batch if his is None else batch._replace(hi=his[PERIOD_WINDOW]), touched)

    def _miss(self, chunk: Chunk, place: Ints) -> list[Alert]:
        """Count accepted events that were not metered, wholly or partly. Return an alert for each new cause."""
        missed = chunk.missed
        rows = np.flatnonzero(place[missed.event] >= 0)
        if not len(rows):
            return []
        missed = missed._replace(event=missed.event[rows], cause=missed.cause[rows])
        for cause, times in zip(missed.causes, np.bincount(missed.cause).tolist(), strict=False):
            if not cause.partly:
                self._count("unmetered", times)
                self._count(f"unmetered:{cause.reason}", times)
        return [
            unmetered_alert(cause, int(chunk.at[first]))
            for cause, first in self.unmetered.take(chunk, missed)
        ]

    def _begin(self, rows: Ints, ends: Ints) -> None:
        """Begin new periods. One of a key that let go of as late a one may be among those: its versions go on."""
        words = self.periods.keys[0][rows]
        self.periods.columns["end"][rows] = ends
        keys = key_of(words)
        self.watch.begin(rows, keys)
        if not len(self.let_go):
            return
        known = self.let_go.find(keys.view(np.uint64))
        again = np.flatnonzero((known >= 0) & (start_of(words) <= self.let_go.columns["start"][known]))
        versions = self.let_go.columns["version"][known[again]]
        for word, version in zip(words[again].tolist(), versions.tolist(), strict=True):
            # As if adjusted by nothing: its total may be less than a store's, and only the version is greater.
            self.adjusted[word] = Adjusted(version, 0)

    def _unique(
        self, batch: Batch, readings: Readings, kept: Ints, starts: tuple[Ints, Ints, Ints]
    ) -> list[Ints] | None:
        """`hi` per kind of window, where a `unique` meter reads 1 if the value is new to its window, else 0."""
        if not len(readings.unique_at):
            return None
        place = np.full(len(readings.event), -1, np.int64)
        place[kept] = np.arange(len(kept))
        rows = place[readings.unique_at]
        inside = rows >= 0
        rows = rows[inside]
        his = []
        for window, name in enumerate(WINDOW_NAMES):
            words = window_key(batch.key[rows], window, starts[window][rows])
            table = self.values[name]
            spread = words * np.uint64(0x9E3779B97F4A7C15)
            at, new = table.claim(readings.unique_lo[inside] ^ spread, readings.unique_hi[inside] ^ words)
            table.columns["word"][at[new]] = words[new]
            hi = batch.hi.copy()
            hi[rows] = new
            his.append(hi)
        return his

    def _accepted(self, chunk: Chunk, accepted: Ints, late: Ints) -> list[Accepted]:
        names, customer = chunk.names, chunk.customer
        return [
            Accepted(
                f"{chunk.digest_lo[event]:016x}{chunk.digest_hi[event]:016x}-{chunk.at[event] // HOUR:x}",
                names[customer[event]],
                int(chunk.at[event]),
                LATE_NAMES[lateness],
                chunk.payload(event),
            )
            for event, lateness in zip(accepted.tolist(), late.tolist(), strict=True)
        ]

    def _count(self, name: str, by: int) -> None:
        if by:
            self.counts[name] = self.counts.get(name, 0) + by

    def _count_by_meter(self, name: str, meter: Ints) -> None:
        for number, count in enumerate(np.bincount(meter).tolist()):
            self._count(f"{name}:{self.roster.meters[number].name}", count)

    def _raise_floor(self) -> None:
        """Put out of reach for good what no event can reach any more, which may then be forgotten."""
        if self.streams.wall:
            self.floor = max(self.floor, self.streams.transport_reach - self.lateness)
            return
        floor = self.roster.floor.values
        reach = self.streams.reach(self.roster.clock.values) - self.lateness
        risen = np.flatnonzero(reach > floor)
        floor[risen] = reach[risen]
        self.saved.clocks.append(risen)

    def _drop_unreachable(self) -> None:
        """Drop what no acceptable event can reach: identities, and windows when they outgrow what is live."""
        hour = self.latest // HOUR
        # By size too, as one customer may be years ahead of the others.
        held = len(self.memory) + len(self.buckets) + len(self.periods)
        if hour == self._swept_hour and held < 2 * self._held + SWEPT_AT_LEAST:
            return
        self._swept_hour = hour
        self._raise_floor()
        floor = np.maximum(self.roster.floor.values, self.floor)
        self.memory.sweep(floor)
        if len(self.buckets) + len(self.periods) >= 2 * self._swept_size + 4096:
            self._sweep(self.buckets, floor)
            self._sweep(self.periods, floor)
            self._swept_size = len(self.buckets) + len(self.periods)
            self.saved.whole = True
        self._held = len(self.memory) + len(self.buckets) + len(self.periods)

    def _sweep(self, table: Table, floor: Ints) -> None:
        """Drop windows that were held for long enough, by their customer's floor."""
        words = table.keys[0][: len(table)]
        own = floor[self.roster.key_customer.values[key_of(words)]]
        gone = (catalog_change.held_until(table, self.roster, own) <= own) & (
            table.columns["dirty"][: len(table)] & UNSENT == 0
        )
        if gone.any():
            if table is self.periods:
                self._let_go(np.flatnonzero(gone))
            dropped = words[gone]
            self.watch.drop(dropped.tolist())
            for word in self.adjusted.keys() & set(dropped.tolist()):
                del self.adjusted[word]
            for values in self.values.values():
                values.keep(~np.isin(values.columns["word"][: len(values)], dropped))
            table.keep(~gone)

    def _let_go(self, rows: Ints) -> None:
        """Note, per key, how late a period and how high a version was let go of, so that none begins below it again."""
        words = self.periods.keys[0][rows]
        version = self.periods.columns["events"][rows].astype(np.int64)
        for place in np.flatnonzero(np.isin(words, np.array(list(self.adjusted), np.uint64))).tolist():
            version[place] += self.adjusted[int(words[place])].times
        at, _ = self.let_go.claim(key_of(words).view(np.uint64))
        np.maximum.at(self.let_go.columns["start"], at, start_of(words))
        np.maximum.at(self.let_go.columns["version"], at, version)


def _letter(reason: str, detail: str, payload: bytes, chunk: Chunk) -> DeadLetter:
    id = xxh3_128_hexdigest(reason.encode() + b"\n" + payload)
    return DeadLetter(id=id, reason=reason, detail=detail, payload=payload, received_at=chunk.received_at)
