"""One virtual shard: the customers that hash to it, and all their state.

A chunk passes through time classes, dedup, windows and thresholds and results in an outcome. The state is in
operators/metering/shard_state.py; operators/metering/snapshot.py writes what changed of it and restores it.
"""

from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_hexdigest

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.columns.quantity import SCALE, TOTAL_MAX, scale
from tidegate.operators.events.chunk import Chunk, Ints, Readings
from tidegate.operators.metering import catalog_change, snapshot
from tidegate.operators.metering.alerts import AlertStates
from tidegate.operators.metering.catalog_change import WindowMoves
from tidegate.operators.metering.dedup import CONFLICT, DUPLICATE, NEW, Identities
from tidegate.operators.metering.key_index import UNCOUNTED, EventWindows, KeyIndex
from tidegate.operators.metering.shard_state import ShardState
from tidegate.operators.metering.totals import Totals, drain_changed
from tidegate.operators.metering.unmetered_rows import build_unmetered_alert
from tidegate.operators.metering.windows import (
    ADD,
    DAY_WINDOW,
    HOUR_WINDOW,
    PERIOD_WINDOW,
    UNSAVED,
    UNSENT,
    WINDOW_NAMES,
    Batch,
    WindowAdjustments,
    add_amount,
    add_runs,
    fold_batch,
    key_of,
    pack_window,
    read_total,
    start_of,
)
from tidegate.operators.model.adjustments import FULL, USED_BEFORE, compute_fingerprint, find_fault
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
    """The result of a chunk apart from totals, which are read when they are to be written."""

    alerts: list[Alert]
    dead: list[DeadLetter]
    accepted: list[Accepted]
    settled: Settled | None = None


_UNADJUSTED = WindowAdjustments(0, 0)
_YES = np.array([True])
_FUTURE = timedelta(minutes=5)
# From this many rows on, rows are swept whenever they have doubled, whatever time it is.
SWEEP_ROWS_MIN = 65_536


class Shard(ShardState):
    """One shard at work. With `forward` the outcome includes the accepted events, as billing needs them."""

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
        self._moves: list[WindowMoves] = []
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
        """Build the shard from its deltas. Under a changed catalog it follows as `adopt_catalog` does.

        Under another lateness or clock than before, everything that may already be forgotten stays out of reach.
        """
        state = snapshot.read_frames(frames)
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
        shard._apply_catalog(state.fill(shard), applied_at, received_at)
        return shard

    def take_delta(self) -> list[snapshot.Frame]:
        """Return what changed since the last delta, as frames; all deltas in order restore the shard."""
        self._drop_unreachable()
        return snapshot.build_delta(self)

    def discard_unsaved(self) -> None:
        """Drop what no event can reach, and the record of changes for a delta; for a run without snapshots."""
        self._drop_unreachable()
        self.memory.drain_appended()
        self.saved.clocks.clear()
        self.streams.touched.clear()
        self.adjustments.unsaved.clear()
        self.alert_states.changed_words.clear()

    @property
    def files(self) -> Iterable[str]:
        """The journal's streams of identities that are in use."""
        return self.memory.streams

    def note_mark(self, mark: StreamMark) -> None:
        """Record how far a partition of the source has been read."""
        self.streams.note_mark(mark)

    def drain_reviewed(self) -> list[Alert]:
        """Return the alerts that a changed catalog caused at `restore` or `adopt_catalog`, each once."""
        reviewed, self._reviewed = self._reviewed, []
        return reviewed

    def drain_moves(self) -> list[WindowMoves]:
        """Return how changed catalogs moved windows at `restore` or `adopt_catalog`, each once."""
        moves, self._moves = self._moves, []
        return moves

    def apply(self, chunk: Chunk) -> Outcome:
        """Count a chunk and return its outcome. Its totals wait until `drain_totals` is called."""
        dead = [
            _build_dead_letter(reject.reason, reject.detail, reject.payload, chunk)
            for reject in chunk.rejects
        ]
        self._count("events", len(chunk) + len(chunk.rejects))
        self._count("rejects", len(chunk.rejects))
        if not len(chunk):
            return Outcome([], dead, [])
        customer = self.key_index.assign_customers(chunk)
        now = self._advance_clocks(customer, chunk)
        verdicts = self._classify(chunk, customer, now, self._find_oldest(customer, now))
        for name, verdict in VERDICTS:
            self._count(name, int(np.count_nonzero(verdicts == verdict)))
        self._count("too_late", int(np.count_nonzero(verdicts >= TOO_LATE)))
        dead.extend(
            _build_dead_letter(*DETAILS[int(verdicts[event])], chunk.payload(event), chunk)
            for event in np.flatnonzero(verdicts >= CONFLICT).tolist()
        )
        accepted = np.flatnonzero(verdicts == NEW)
        if not len(accepted):
            return Outcome([], dead, [])
        customer, now, at = customer[accepted], now[accepted], chunk.at[accepted]
        edges = self.key_index.find_windows(customer, at)
        late = np.where(
            edges.period_end <= now, LATE_CLOSED, np.where(edges.hour_end <= now, LATE_OPEN, ON_TIME)
        )
        place = np.full(len(chunk), -1, np.int64)
        place[accepted] = np.arange(len(accepted))
        alerts = self._fold_readings(chunk, place, customer, at, edges, late)
        alerts += self._count_unmetered(chunk, place)
        settled = Settled(chunk.digest_lo[accepted], chunk.digest_hi[accepted])
        return Outcome(
            alerts, dead, self._list_accepted(chunk, accepted, late) if self._forward else [], settled
        )

    def adopt_catalog(self, number: int, catalog: Catalog, applied_at: int, received_at: int) -> None:
        """Continue under another catalog: it determines the ends of windows and the limits from now on.

        `drain_reviewed` returns the alerts that follow, also for idle customers, and `drain_moves` the windows that
        moved. `applied_at` is when the catalog was applied, `received_at` the current time, for flows with the wall
        clock; µs since the epoch.
        """
        old = self.key_index
        key_index = KeyIndex(catalog, old.meters, number)
        key_index.take_over(old)
        held = {word: self.alert_states.export_state(word) for word in self.alert_states.words}
        unsaved = self.alert_states.changed_words
        self.key_index, self.alert_states = key_index, AlertStates(key_index, self.periods)
        changed = np.flatnonzero(old.list_limit_versions() != key_index.list_limit_versions())
        self._apply_catalog(
            snapshot.PreviousState(held, changed, catalog_change.capture_boundaries(old, key_index)),
            applied_at,
            received_at,
        )
        self.alert_states.changed_words |= unsaved.intersection(self.alert_states.words)
        self.saved.whole |= len(key_index.meters) > len(old.meters)

    def _apply_catalog(self, was: snapshot.PreviousState, applied_at: int, received_at: int) -> None:
        """Update windows and alert states to the catalog in force."""
        key_index = self.key_index
        now = self._find_now(received_at)
        moves, is_zone_new = catalog_change.move_windows(
            self.periods, self.buckets, key_index, was.boundaries, now
        )
        if moves.moved or moves.cut_off:
            self._moves.append(moves)
        current = self._find_open_rows(now)
        self._reviewed += self.alert_states.restore(was.held, was.changed, current, applied_at)
        self.saved.whole |= bool(len(was.changed)) or is_zone_new

    def _find_now(self, received_at: int) -> Ints:
        """Return each customer's now without an event: with the event clock, its last one up to `received_at`."""
        if self.streams.wall:
            return np.full(len(self.key_index.names), max(self.latest, received_at))
        now = self.key_index.clock.values.copy()
        words, as_of = self.periods.keys[0][: len(self.periods)], self.periods.columns["as_of"]
        rows = np.flatnonzero(as_of[: len(words)] <= received_at)
        np.maximum.at(now, self.key_index.key_customer.values[key_of(words[rows])], as_of[rows])
        return now

    def _find_open_rows(self, now: Ints) -> Ints:
        """Return the rows of reachable periods that end after their customer's `now`, by key and start.

        Usually that is the period that contains now; a later one may have begun too.
        """
        words = self.periods.keys[0][: len(self.periods)]
        customer = self.key_index.key_customer.values[key_of(words)]
        rows = np.flatnonzero(self.periods.columns["end"][: len(words)] > now[customer])
        rows = rows[catalog_change.is_reachable(words[rows], self.key_index)]
        return rows[np.argsort(words[rows])]

    def adjust(self, adjustment: Adjustment, received_at: int) -> tuple[list[Alert], str | None]:
        """Apply an adjustment once per id. Return the alerts it causes, and why it was refused.

        A repeated adjustment changes nothing and gets the same answer. `received_at` is the current time, µs since the
        epoch.
        """
        if fault := find_fault(adjustment):
            return [], fault
        if known := self.adjustments.find(adjustment):
            return [], known.refused if known.content == compute_fingerprint(adjustment) else USED_BEFORE
        if not self.adjustments.make_room(lambda word: word in self.adjusted):
            return [], FULL
        alerts, refused = self._adjust(adjustment, received_at)
        self.adjustments.add(adjustment, 0 if refused else self._find_period_word(adjustment), refused)
        return alerts, refused

    def _find_period_word(self, adjustment: Adjustment) -> int:
        customer, at = np.array([self.key_index.assign_row(adjustment.customer)]), np.array([adjustment.at])
        meter = next(i for i, meter in enumerate(self.key_index.meters) if meter.name == adjustment.meter)
        key = self.key_index.assign_keys(customer, np.array([meter]))
        return int(pack_window(key, PERIOD_WINDOW, self.key_index.find_windows(customer, at).period)[0])

    def _adjust(self, adjustment: Adjustment, received_at: int) -> tuple[list[Alert], str | None]:
        """Add to the windows held that contain the adjustment's time. Return the alerts, and why it was refused.

        Totals of `max`, `min` and `last` are readings, not sums, and cannot be adjusted. `received_at` is the current
        time, µs since the epoch, for flows with the wall clock.
        """
        key_index = self.key_index
        numbers = [number for number, meter in enumerate(key_index.meters) if meter.name == adjustment.meter]
        if not numbers:
            return [], f"no meter {adjustment.meter!r}"
        if key_index.fold_of[numbers[0]] != ADD:
            return [], f"meter {adjustment.meter!r} adds nothing up: {key_index.meters[numbers[0]].kind}"
        try:
            amount = scale(Decimal(adjustment.quantity))
        except (ValueError, InvalidOperation):
            return [], f"quantity: needs a decimal of at most 24 places, got {adjustment.quantity[:40]!r}"
        customer = np.array([key_index.assign_row(adjustment.customer)], np.int64)
        at = np.array([adjustment.at], np.int64)
        now = max(received_at, self.latest) if self.streams.wall else int(key_index.clock.values[customer[0]])
        oldest = int(self._find_oldest(customer, np.array([now]))[0])
        edges = key_index.find_windows(customer, at)
        key = key_index.assign_keys(customer, np.array(numbers[:1], np.int64))
        windows = (
            (self.periods, PERIOD_WINDOW, edges.period, int(edges.period_end[0])),
            (self.buckets, HOUR_WINDOW, edges.hour, int(edges.hour_end[0])),
            (
                self.buckets,
                DAY_WINDOW,
                edges.day,
                int(key_index.find_bucket_bounds(customer, edges.day, _YES)[1][0]),
            ),
        )
        words = [(table, pack_window(key, window, start), end) for table, window, start, end in windows]
        if any(abs(read_total(table, word) + amount) > TOTAL_MAX * SCALE for table, word, _ in words):
            return [], f"quantity: would take a total past ±10^{len(str(TOTAL_MAX)) - 1}"
        alerts: list[Alert] = []
        for table, word, end in words:
            if table.find(word)[0] < 0 and end <= oldest:
                # Its total is forgotten, and a total that starts over would have a version that is too low.
                if table is self.periods:
                    return [], "its period is no longer held"
                continue
            row, new = add_amount(table, word, amount)
            if table is self.periods and new:
                self._start_periods(np.array([row]), np.array([end]))
            known = self.adjusted.get(int(word[0]), _UNADJUSTED)
            self.adjusted[int(word[0])] = WindowAdjustments(known.times + 1, known.amount + amount)
            if table is self.periods:
                alerts = self.alert_states.apply_adjustment(row, adjustment.at)
        self._count("adjustments", 1)
        return alerts, None

    def list_identities(self) -> list[Settled]:
        """Return all remembered identities of accepted events, for a store that may still have open holds for some."""
        return [Settled(lo, hi) for lo, hi in self.memory.list_digests() if len(lo)]

    def drain_totals(self) -> Totals:
        """Return the totals that changed since the last call, absolute."""
        return drain_changed((self.buckets, self.periods), self.key_index, self.adjusted)

    def write_to(self, store: str) -> None:
        """Write totals to this store from now on: all totals held, if the earlier ones are in another store."""
        if self.store not in ("", store):
            self.republish()
        self.store = store

    def republish(self) -> None:
        """Mark every total as changed, for a store that may have lost some."""
        for table in (self.buckets, self.periods):
            table.columns["dirty"][: len(table)] = UNSAVED | UNSENT
        self.unmetered.republish()

    def list_counters(self) -> list[Counter]:
        """Return every counter with its present value."""
        return [Counter(self.index, name, value) for name, value in sorted(self.counts.items())]

    @property
    def nbytes(self) -> tuple[int, int]:
        """The memory held by totals, and by remembered identities, in bytes."""
        return self.buckets.nbytes + self.periods.nbytes + self.let_go.nbytes, self.memory.nbytes

    def _advance_clocks(self, customer: Ints, chunk: Chunk) -> Ints:
        now, moved, latest = self.streams.advance(chunk, customer, self.lateness)
        self._count("outliers", self.streams.outliers)
        self.streams.outliers = 0
        if len(moved):
            clock = self.key_index.clock.values
            clock[moved] = np.maximum(clock[moved], latest)
            self.saved.clocks.append(moved)
        self.latest = max(self.latest, int(now.max()))
        return now

    def _find_oldest(self, customer: Ints, now: Ints) -> Ints:
        """Return the earliest time that each event may have and still be accepted."""
        return np.maximum(now - self.lateness, np.maximum(self.key_index.floor.values[customer], self.floor))

    def _classify(self, chunk: Chunk, customer: Ints, now: Ints, oldest: Ints) -> NDArray[np.int8]:
        identities = Identities(chunk.digest_lo, chunk.digest_hi, chunk.mark, customer, chunk.at, now, oldest)
        fits = chunk.at >= oldest
        if fits.all():
            return self.memory.classify(identities)
        verdicts = np.where(chunk.at < now - self.lateness, TOO_LATE, FORGOTTEN).astype(np.int8)
        verdicts[fits] = self.memory.classify(identities.select(np.flatnonzero(fits)))
        return verdicts

    def _fold_readings(
        self, chunk: Chunk, place: Ints, customer: Ints, at: Ints, edges: EventWindows, late: Ints
    ) -> list[Alert]:
        """Fold the readings of accepted events into their windows and return the alerts.

        `place` numbers the accepted events, -1 for the rest.
        """
        key_index, readings = self.key_index, chunk.readings
        number_of = key_index.meter_numbers[chunk.catalog]
        unread = number_of[chunk.unread.meter[place[chunk.unread.event] >= 0]]
        event = place[readings.event]
        if key_index.refused:
            unread = unread[unread != UNCOUNTED]
            event[number_of[readings.meter] == UNCOUNTED] = -1
        self._count_by_meter("not_a_number", unread)
        kept = np.flatnonzero(event >= 0)
        if not len(kept):
            return []
        event = event[kept]
        # Readings are in the order of their events.
        self._count("metered", 1 + int(np.count_nonzero(np.diff(event))))
        meter = number_of[readings.meter[kept]]
        closed = late[event] == LATE_CLOSED
        self._count_by_meter("matching", meter)
        self._count_by_meter("counted", meter[~closed])
        self._count_by_meter("corrected", meter[closed])
        batch = Batch(
            key=key_index.assign_keys(customer[event], meter),
            at=at[event],
            fold=key_index.fold_of[meter],
            hi=readings.hi[kept],
            mid=None if readings.mid is None else readings.mid[kept],
            lo=None if readings.lo is None else readings.lo[kept],
            late=late[event] == LATE_OPEN,
            corrected=closed,
        )
        hour, day, period = edges.hour[event], edges.day[event], edges.period[event]
        his = self._count_unique(batch, readings, kept, (hour, day, period))
        runs = fold_batch(batch, hour, period, his)
        windows = [(HOUR_WINDOW, hour[runs.first]), (DAY_WINDOW, day[runs.first])]
        add_runs(self.buckets, runs, windows)
        touched = add_runs(self.periods, runs, [(PERIOD_WINDOW, period[runs.first])])
        if touched.new.any():
            self._start_periods(
                touched.rows[touched.new], edges.period_end[event[touched.first[touched.new]]]
            )
        return self.alert_states.apply_batch(
            batch if his is None else batch._replace(hi=his[PERIOD_WINDOW]), touched
        )

    def _count_unmetered(self, chunk: Chunk, place: Ints) -> list[Alert]:
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
            build_unmetered_alert(cause, int(chunk.at[first]))
            for cause, first in self.unmetered.count(chunk, missed)
        ]

    def _start_periods(self, rows: Ints, ends: Ints) -> None:
        """Start new periods. If the key dropped a period at least as late before, the versions continue from there."""
        words = self.periods.keys[0][rows]
        self.periods.columns["end"][rows] = ends
        keys = key_of(words)
        self.alert_states.start_periods(rows, keys)
        if not len(self.let_go):
            return
        known = self.let_go.find(keys.view(np.uint64))
        again = np.flatnonzero((known >= 0) & (start_of(words) <= self.let_go.columns["start"][known]))
        versions = self.let_go.columns["version"][known[again]]
        for word, version in zip(words[again].tolist(), versions.tolist(), strict=True):
            # An adjustment of 0 marks it: its total may be less than a store's although its version is greater.
            self.adjusted[word] = WindowAdjustments(version, 0)

    def _count_unique(
        self, batch: Batch, readings: Readings, kept: Ints, starts: tuple[Ints, Ints, Ints]
    ) -> list[Ints] | None:
        """Return `hi` per kind of window, where a `unique` meter reads 1 if the value is new to its window, else 0."""
        if not len(readings.unique_at):
            return None
        place = np.full(len(readings.event), -1, np.int64)
        place[kept] = np.arange(len(kept))
        rows = place[readings.unique_at]
        inside = rows >= 0
        rows = rows[inside]
        his = []
        for window, name in enumerate(WINDOW_NAMES):
            words = pack_window(batch.key[rows], window, starts[window][rows])
            table = self.values[name]
            spread = words * np.uint64(0x9E3779B97F4A7C15)
            at, new = table.claim(readings.unique_lo[inside] ^ spread, readings.unique_hi[inside] ^ words)
            table.columns["word"][at[new]] = words[new]
            hi = batch.hi.copy()
            hi[rows] = new
            his.append(hi)
        return his

    def _list_accepted(self, chunk: Chunk, accepted: Ints, late: Ints) -> list[Accepted]:
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
            self._count(f"{name}:{self.key_index.meters[number].name}", count)

    def _raise_floor(self) -> None:
        """Put out of reach for good what no event can reach any more, so that it may be forgotten."""
        if self.streams.wall:
            self.floor = max(self.floor, self.streams.transport_reach - self.lateness)
            return
        floor = self.key_index.floor.values
        reach = self.streams.find_reach(self.key_index.clock.values) - self.lateness
        risen = np.flatnonzero(reach > floor)
        floor[risen] = reach[risen]
        self.saved.clocks.append(risen)

    def _drop_unreachable(self) -> None:
        """Drop what no acceptable event can reach: identities, and windows when they outgrow the live ones."""
        hour = self.latest // HOUR
        # The size counts too, because one customer may be years ahead of the others.
        held = len(self.memory) + len(self.buckets) + len(self.periods)
        if hour == self._swept_hour and held < 2 * self._held + SWEEP_ROWS_MIN:
            return
        self._swept_hour = hour
        self._raise_floor()
        floor = np.maximum(self.key_index.floor.values, self.floor)
        self.memory.sweep(floor)
        if len(self.buckets) + len(self.periods) >= 2 * self._swept_size + 4096:
            self._sweep(self.buckets, floor)
            self._sweep(self.periods, floor)
            self._swept_size = len(self.buckets) + len(self.periods)
            self.saved.whole = True
        self._held = len(self.memory) + len(self.buckets) + len(self.periods)

    def _sweep(self, table: Table, floor: Ints) -> None:
        """Drop windows that were held long enough, by their customer's floor."""
        words = table.keys[0][: len(table)]
        own = floor[self.key_index.key_customer.values[key_of(words)]]
        gone = (catalog_change.find_held_until(table, self.key_index, own) <= own) & (
            table.columns["dirty"][: len(table)] & UNSENT == 0
        )
        if gone.any():
            if table is self.periods:
                self._note_let_go(np.flatnonzero(gone))
            dropped = words[gone]
            self.alert_states.drop(dropped.tolist())
            for word in self.adjusted.keys() & set(dropped.tolist()):
                del self.adjusted[word]
            for values in self.values.values():
                values.keep(~np.isin(values.columns["word"][: len(values)], dropped))
            table.keep(~gone)

    def _note_let_go(self, rows: Ints) -> None:
        """Record per key how late a period and how high a version was dropped, so that none restarts below it."""
        words = self.periods.keys[0][rows]
        version = self.periods.columns["events"][rows].astype(np.int64)
        for place in np.flatnonzero(np.isin(words, np.array(list(self.adjusted), np.uint64))).tolist():
            version[place] += self.adjusted[int(words[place])].times
        at, _ = self.let_go.claim(key_of(words).view(np.uint64))
        np.maximum.at(self.let_go.columns["start"], at, start_of(words))
        np.maximum.at(self.let_go.columns["version"], at, version)


def _build_dead_letter(reason: str, detail: str, payload: bytes, chunk: Chunk) -> DeadLetter:
    id = xxh3_128_hexdigest(reason.encode() + b"\n" + payload)
    return DeadLetter(id=id, reason=reason, detail=detail, payload=payload, received_at=chunk.received_at)
