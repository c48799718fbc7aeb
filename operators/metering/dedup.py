"""Deduplication: remembered identities in order of acceptance, the youngest in a hash table, the rest in sorted runs.

An identity is searched among all remembered ones, whatever time its event carries. The table takes a batch in a dozen
numpy calls; a Bloom filter tells which identities of a batch may be in a run, and only those are searched for. The cost
therefore depends neither on the lateness nor on how many hours a batch covers. The structure is a log-structured merge
tree without levels: runs never change, neighbours are merged when there are too many, and forgotten identities are
left out when a run is next copied.

An entry has 28 bytes of columns, 3 to 4 of filter, and 8 to 12 of index while it is in the table.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.bloom import Bloom
from tidegate.operators.columns.hash_table import Table, Words
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.sorted_runs import (
    NOBODY,
    Halves,
    Rows,
    Run,
    concatenate_rows,
    merge_runs,
    sort_by_digest,
)
from tidegate.operators.model.periods import HOUR

Verdicts = NDArray[np.int8]

NEW, DUPLICATE, CONFLICT = 0, 1, 2

YOUNG_MAX = 1 << 15
RUNS_MAX = 16
_COLUMNS = {"mark": np.uint32, "seen": np.uint32, "customer": np.uint32}
_TIME_FACTOR = np.uint64(0xC2B2AE3D27D4EB4F)
_HALF = np.uint64(32)
_NONE = np.empty(0, np.int64)


class Identities(NamedTuple):
    """Identities in two words, fingerprints of name and data, customer rows, and times (µs), in order of arrival.

    `at` is the event's time, `now` its customer's now, and `oldest` the earliest time with which the customer's events
    could be accepted at that moment, at most `now`.
    """

    lo: Words
    hi: Words
    mark: Halves
    customer: Ints
    at: Ints
    now: Ints
    oldest: Ints

    def select(self, rows: Ints) -> "Identities":
        """Return these rows."""
        times = self.at[rows], self.now[rows], self.oldest[rows]
        return Identities(self.lo[rows], self.hi[rows], self.mark[rows], self.customer[rows], *times)


class IdentityMemory:
    """The identities of one shard's accepted events.

    An identity is *seen* in the hour (UTC) of its event's time or of its customer's now, whichever is later. An event
    finds it forgotten once that hour lies entirely before the event's `oldest`: by this rule alone, stored or not, so
    that a verdict does not depend on when memory is swept. An identity that is accepted again is seen later than
    before, and the latest time counts.

    The journal's streams follow the same order: an open one, to which the table's rows are appended, and closed ones,
    each of which is read back into a run. `streams` lists them, the open one last; `drain_appended` returns the rows to
    write.
    """

    def __init__(self) -> None:
        self.young = Table(2, _COLUMNS, growth=1.2)
        self.runs: list[Run] = []
        self.serial = 0
        self._bloom = Bloom()
        self._open = self._name_stream()
        self._saved = self._stored = 0
        self._changed: list[int] = []
        self._unsaved: list[tuple[str, Rows, NDArray[np.bool_] | slice]] = []

    def __len__(self) -> int:
        return len(self.young) + sum(map(len, list(self.runs)))

    @property
    def nbytes(self) -> int:
        """The memory held, in bytes."""
        return self.young.nbytes + self._bloom.nbytes + sum(run.nbytes for run in list(self.runs))

    @property
    def streams(self) -> list[str]:
        """The journal's streams that are in use, in order, the open one last."""
        return [*(stream for run in self.runs for stream in run.streams), self._open]

    def classify(self, events: Identities) -> Verdicts:
        """Return NEW, DUPLICATE or CONFLICT for each event, and remember the new ones."""
        since = events.oldest // HOUR
        maybe = np.flatnonzero(self._bloom.passes(events.lo, events.hi)) if self.runs else _NONE
        verdicts = (
            self._classify_with_runs(events, since, maybe) if len(maybe) else self._claim(events, since)
        )
        if len(self.young) >= YOUNG_MAX:
            self._close()
        return verdicts

    def sweep(self, oldest: Ints) -> None:
        """Drop the identities that no event can find any more.

        `oldest` is the least `oldest` of each customer's future events.
        """
        hours = oldest // HOUR
        # Earlier versions recorded no customer. Such an identity is kept for the customer who is furthest behind.
        since = np.append(hours, hours.min(initial=2**32))
        latest = int(hours.max(initial=0))
        if self._is_stale(since):
            self._close()
        self.runs = [left for run in self.runs if len(left := _sweep_run(run, since, latest))]
        for run in self.runs:
            if run.is_scattered:
                self._write_again(run)
        if self._bloom.is_wasteful(sum(map(len, self.runs))):
            self._refilter()

    def drain_appended(self) -> list[tuple[str, Rows]]:
        """Return the rows per stream that were not returned before; later rows of an identity replace earlier ones."""
        unsaved, self._unsaved = self._unsaved, []
        counted = set(self.streams)
        appended = [(stream, rows.select(chosen)) for stream, rows, chosen in unsaved if stream in counted]
        if (young := self._find_unsaved()).any():
            appended.append((self._open, self._view_rows().select(young)))
        self._mark_saved(int(np.count_nonzero(young)))
        return appended

    def restore(self, closed: list[tuple[str, Rows]], opened: tuple[str, Rows] | None, serial: int) -> None:
        """Fill this empty memory from the contents of the streams."""
        self.serial = serial
        self._open, rows = opened or (self._name_stream(), None)
        if rows is not None:
            places, _ = self.young.claim(rows.lo, rows.hi)
            for name in _COLUMNS:
                self.young.columns[name][places] = getattr(rows, name)
            self._mark_saved(len(rows.lo))
        share = sum(len(rows.lo) for _, rows in closed) // RUNS_MAX + 1
        for group in _group_parts([(stream, rows) for stream, rows in closed if len(rows.lo)], share):
            together = concatenate_rows(rows for _, rows in group)
            self.runs.append(Run(sort_by_digest(together), [stream for stream, _ in group], len(together.lo)))
        self._refilter()

    def list_digests(self) -> list[tuple[Words, Words]]:
        """Return the digests of all remembered identities."""
        return [(rows.lo, rows.hi) for rows in (*(run.rows for run in self.runs), self._view_rows())]

    def _classify_with_runs(self, events: Identities, since: Ints, maybe: Ints) -> Verdicts:
        """Return the verdicts when the events at `maybe` may be in a run."""
        verdicts = np.full(len(events.lo), NEW, np.int8)
        # Runs are searched faster in ascending order.
        maybe = maybe[np.argsort(events.lo[maybe])]
        verdicts[maybe] = self._classify_by_runs(events.select(maybe), since[maybe])
        known, unknown = maybe[verdicts[maybe] != NEW], maybe[verdicts[maybe] == NEW]
        if len(known):
            if len(unknown) and np.isin(events.lo[unknown], events.lo[known]).any():
                # The run's identity may be forgotten for some events of the batch and not for others.
                return np.concatenate(
                    [self.classify(events.select(np.array([i]))) for i in range(len(verdicts))]
                )
            # If the identity was accepted again later, the table has the row that counts.
            places = self.young.find(events.lo[known], events.hi[known])
            later = (places >= 0) & (self.young.columns["seen"][places] >= since[known])
            verdicts[known[later]] = NEW
        rest = np.flatnonzero(verdicts == NEW)
        verdicts[rest] = self._claim(events.select(rest), since[rest])
        return verdicts

    def _classify_by_runs(self, events: Identities, since: Ints) -> Verdicts:
        """Return the verdicts by the runs alone."""
        verdicts = np.full(len(events.lo), NEW, np.int8)
        left = np.arange(len(events.lo))
        for run in reversed(self.runs):
            which, rows = run.find(events.lo[left], events.hi[left], since[left])
            if not len(which):
                continue
            same = _is_same_content(run.rows.select(rows), events.select(left[which]))
            verdicts[left[which]] = np.where(same, DUPLICATE, CONFLICT)
            left = np.delete(left, which)
            if not len(left):
                break
        return verdicts

    def _claim(self, events: Identities, since: Ints) -> Verdicts:
        """Return the verdicts by the table alone, and add the new identities to it."""
        table, before = self.young, len(self.young)
        places, new = table.claim(events.lo, events.hi)
        marks, seen = table.columns["mark"], table.columns["seen"]
        fresh = slice(None) if len(table) - before == len(places) else new
        added = slice(before, len(table))
        marks[added] = events.mark[fresh]
        seen[added] = np.maximum(events.at[fresh], events.now[fresh]) // HOUR
        table.columns["customer"][added] = events.customer[fresh]
        verdicts = np.full(len(places), NEW, np.int8)
        again = np.flatnonzero(~new)
        if len(again):
            known = places[again]
            verdicts[again] = np.where(marks[known] == events.mark[again], DUPLICATE, CONFLICT)
            gone = known[seen[known] < since[again]]
            for event in again[np.isin(known, gone)].tolist() if len(gone) else ():
                verdicts[event] = self._claim_one(int(places[event]), events, event, int(since[event]))
        return verdicts

    def _claim_one(self, place: int, events: Identities, event: int, since: int) -> int:
        """Return the verdict on an event whose identity has a row; a forgotten row is taken over by the event."""
        columns = self.young.columns
        if columns["seen"][place] >= since:
            return DUPLICATE if columns["mark"][place] == events.mark[event] else CONFLICT
        columns["mark"][place] = events.mark[event]
        columns["seen"][place] = max(events.at[event], events.now[event]) // HOUR
        self._changed.append(place)
        return NEW

    def _view_rows(self) -> Rows:
        """Return the table's rows without copying."""
        used = slice(len(self.young))
        mark, seen, customer = (self.young.columns[name][used] for name in _COLUMNS)
        return Rows(self.young.keys[0][used], self.young.keys[1][used], mark, seen, customer)

    def _find_unsaved(self) -> NDArray[np.bool_]:
        """Mark the table's rows that are new or changed since they were last written to the journal."""
        unsaved = np.arange(len(self.young)) >= self._saved
        unsaved[self._changed] = True
        return unsaved

    def _mark_saved(self, written: int) -> None:
        """Mark all of the table's rows as written to the journal, `written` of them just now."""
        self._saved, self._changed = len(self.young), []
        self._stored += written

    def _close(self) -> None:
        """Turn the table into a run, and start another table."""
        unsaved = self._find_unsaved()
        self._mark_saved(int(np.count_nonzero(unsaved)))
        order = np.argsort(self._view_rows().lo)
        run = Run(self._view_rows().select(order), [self._open], self._stored)
        # These rows no longer change, so they are copied only when they are written.
        self._unsaved.append((self._open, run.rows, unsaved[order]))
        self.runs.append(run)
        self.young = Table(2, _COLUMNS, growth=1.2)
        self._open, self._saved, self._stored = self._name_stream(), 0, 0
        self._merge_small()
        if self._bloom.has_room(len(run)):
            self._bloom.add(run.rows.lo, run.rows.hi)
        else:
            self._refilter()

    def _merge_small(self) -> None:
        """Merge the two neighbours that are smallest together, until there are few enough runs."""
        while len(self.runs) > RUNS_MAX:
            sizes = [len(one) + len(other) for one, other in pairwise(self.runs)]
            at = sizes.index(min(sizes))
            self.runs[at : at + 2] = [merge_runs(self.runs[at : at + 2])]

    def _refilter(self) -> None:
        self._bloom = Bloom((run.rows.lo, run.rows.hi) for run in self.runs)

    def _is_stale(self, since: Ints) -> bool:
        """Return whether half of the table or more is forgotten."""
        gone = int(np.count_nonzero(_is_gone(self._view_rows(), since)))
        return gone > 0 and 2 * gone >= len(self.young)

    def _write_again(self, run: Run) -> None:
        """Have the journal hold a run in one stream of its own, without the rows that were dropped from it."""
        run.streams, run.stored = [self._name_stream()], len(run)
        self._unsaved.append((run.streams[0], run.rows, slice(None)))

    def _name_stream(self) -> str:
        """Return a stream name that was never used before, so that no stream is mistaken for a dropped one."""
        self.serial += 1
        return f"ids-{self.serial}"


def _group_parts(parts: list[tuple[str, Rows]], share: int) -> Iterator[list[tuple[str, Rows]]]:
    """Yield neighbouring parts in groups, each but the last of `share` rows or more."""
    group: list[tuple[str, Rows]] = []
    size = 0
    for part in parts:
        group.append(part)
        size += len(part[1].lo)
        if size >= share:
            yield group
            group, size = [], 0
    if group:
        yield group


def _sweep_run(run: Run, since: Ints, latest: int) -> Run:
    """Return the run without forgotten identities if enough of them are forgotten to be worth a copy."""
    if run.first >= latest:
        return run
    gone = _is_gone(run.rows, since)
    dropped = int(np.count_nonzero(gone))
    if 4 * dropped < len(run):
        return run
    return run.keep(~gone)


def _is_gone(rows: Rows, since: Ints) -> NDArray[np.bool_]:
    """Mark the rows that are forgotten; `since` is by customer, its last entry for rows without a customer."""
    return rows.seen < since[np.minimum(rows.customer, len(since) - 1)]


def _is_same_content(rows: Rows, events: Identities) -> NDArray[np.bool_]:
    """Return whether name and data are those of the remembered event.

    Before customers were recorded, the fingerprint covered the time too: (name_data + time * factor) >> 32 instead of
    name_data >> 32. It then differs by the upper half of time * factor, plus a carry, if the time is the same. If the
    time differs, the data cannot be compared, and the event is a conflict, as it was for that version.
    """
    apart = rows.mark - events.mark
    timed = ((events.at.view(np.uint64) * _TIME_FACTOR) >> _HALF).astype(np.uint32)
    return np.where(rows.customer == NOBODY, apart - timed <= 1, apart == 0)
