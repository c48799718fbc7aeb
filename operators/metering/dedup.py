"""Remembered identities, in order of acceptance: a hash table of the youngest, sorted runs of all others.

An identity is looked for among all that are remembered, whatever time its event carries. The table takes a batch in
a dozen numpy calls; a Bloom filter says which of a batch may stand in a run, and only those are searched for. So the
cost hangs neither on the lateness nor on how many hours a batch covers. A log-structured merge tree without levels:
runs never change, neighbours are merged where there are too many, and what is forgotten is left out when a run is
next copied.

Each entry is 28 bytes of columns, 3 to 4 of filter, and 8 to 12 of index while it is in the table.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.bloom import Bloom
from tidegate.operators.columns.hash_table import Table, Words
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.sorted_runs import NOBODY, Halves, Rows, Run, by_digest, joined, merged
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
    """Identities in two words, fingerprints of name and data, customers' rows, and times (µs), in order of arrival.

    `at` is the event's time, `now` its customer's now, and `oldest` the earliest time that the customer could be
    accepted with at that moment, at most `now`.
    """

    lo: Words
    hi: Words
    mark: Halves
    customer: Ints
    at: Ints
    now: Ints
    oldest: Ints

    def part(self, rows: Ints) -> "Identities":
        """These rows alone."""
        times = self.at[rows], self.now[rows], self.oldest[rows]
        return Identities(self.lo[rows], self.hi[rows], self.mark[rows], self.customer[rows], *times)


class Memory:
    """The identities of one shard's accepted events.

    An identity is *seen* in the hour (UTC) of its event's time or of its customer's now, whichever is later. To an
    event it is forgotten once that hour lies wholly before the event's `oldest`: by this rule alone, whether it is
    still stored or not, so that a verdict does not depend on when memory is swept. An identity that is accepted again
    is seen later than before, and what is seen latest stands.

    The journal's streams follow the same order: one that the table's rows are appended to, and closed ones, each read
    back into a run. `streams` lists them, the open one last; `appended` gives what is to be written.
    """

    def __init__(self) -> None:
        self.young = Table(2, _COLUMNS, growth=1.2)
        self.runs: list[Run] = []
        self.serial = 0
        self._bloom = Bloom()
        self._open = self._stream()
        self._saved = self._stored = 0
        self._changed: list[int] = []
        self._unsaved: list[tuple[str, Rows, NDArray[np.bool_] | slice]] = []

    def __len__(self) -> int:
        return len(self.young) + sum(map(len, list(self.runs)))

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.young.nbytes + self._bloom.nbytes + sum(run.nbytes for run in list(self.runs))

    @property
    def streams(self) -> list[str]:
        """The journal's streams that count, in order, the open one last."""
        return [*(stream for run in self.runs for stream in run.streams), self._open]

    def settle(self, events: Identities) -> Verdicts:
        """NEW, DUPLICATE or CONFLICT for each event; the new ones are remembered."""
        since = events.oldest // HOUR
        maybe = np.flatnonzero(self._bloom.passes(events.lo, events.hi)) if self.runs else _NONE
        verdicts = self._settle_with_runs(events, since, maybe) if len(maybe) else self._claim(events, since)
        if len(self.young) >= YOUNG_MAX:
            self._close()
        return verdicts

    def sweep(self, oldest: Ints) -> None:
        """Drop what is forgotten for good: `oldest` is, by customer, the least that an event to come may have."""
        hours = oldest // HOUR
        # Of whom an identity is was not always noted: such a one is kept for the customer who is furthest behind.
        since = np.append(hours, hours.min(initial=2**32))
        latest = int(hours.max(initial=0))
        if self._is_stale(since):
            self._close()
        self.runs = [left for run in self.runs if len(left := _swept(run, since, latest))]
        for run in self.runs:
            if run.is_scattered:
                self._write_again(run)
        if self._bloom.is_wasteful(sum(map(len, self.runs))):
            self._refilter()

    def appended(self) -> list[tuple[str, Rows]]:
        """Rows per stream that were not given out before; later rows of an identity replace earlier ones."""
        unsaved, self._unsaved = self._unsaved, []
        counted = set(self.streams)
        appended = [(stream, rows.part(chosen)) for stream, rows, chosen in unsaved if stream in counted]
        if (young := self._unsaved_young()).any():
            appended.append((self._open, self._rows().part(young)))
        self._note(int(np.count_nonzero(young)))
        return appended

    def restore(self, closed: list[tuple[str, Rows]], opened: tuple[str, Rows] | None, serial: int) -> None:
        """Fill this empty memory with what the streams hold."""
        self.serial = serial
        self._open, rows = opened or (self._stream(), None)
        if rows is not None:
            places, _ = self.young.claim(rows.lo, rows.hi)
            for name in _COLUMNS:
                self.young.columns[name][places] = getattr(rows, name)
            self._note(len(rows.lo))
        share = sum(len(rows.lo) for _, rows in closed) // RUNS_MAX + 1
        for group in _grouped([(stream, rows) for stream, rows in closed if len(rows.lo)], share):
            together = joined(rows for _, rows in group)
            self.runs.append(Run(by_digest(together), [stream for stream, _ in group], len(together.lo)))
        self._refilter()

    def words(self) -> list[tuple[Words, Words]]:
        """The digests of all that is remembered."""
        return [(rows.lo, rows.hi) for rows in (*(run.rows for run in self.runs), self._rows())]

    def _settle_with_runs(self, events: Identities, since: Ints, maybe: Ints) -> Verdicts:
        """Verdicts where these events may be known to runs."""
        verdicts = np.full(len(events.lo), NEW, np.int8)
        # In ascending order they are found faster.
        maybe = maybe[np.argsort(events.lo[maybe])]
        verdicts[maybe] = self._recall(events.part(maybe), since[maybe])
        known, unknown = maybe[verdicts[maybe] != NEW], maybe[verdicts[maybe] == NEW]
        if len(known):
            if len(unknown) and np.isin(events.lo[unknown], events.lo[known]).any():
                # To some events of an identity the run's is forgotten, to others it is not.
                return np.concatenate([self.settle(events.part(np.array([i]))) for i in range(len(verdicts))])
            # Where the identity was accepted again since, that stands.
            places = self.young.find(events.lo[known], events.hi[known])
            later = (places >= 0) & (self.young.columns["seen"][places] >= since[known])
            verdicts[known[later]] = NEW
        rest = np.flatnonzero(verdicts == NEW)
        verdicts[rest] = self._claim(events.part(rest), since[rest])
        return verdicts

    def _recall(self, events: Identities, since: Ints) -> Verdicts:
        """Verdicts by the runs alone."""
        verdicts = np.full(len(events.lo), NEW, np.int8)
        left = np.arange(len(events.lo))
        for run in reversed(self.runs):
            which, rows = run.find(events.lo[left], events.hi[left], since[left])
            if not len(which):
                continue
            same = _same(run.rows.part(rows), events.part(left[which]))
            verdicts[left[which]] = np.where(same, DUPLICATE, CONFLICT)
            left = np.delete(left, which)
            if not len(left):
                break
        return verdicts

    def _claim(self, events: Identities, since: Ints) -> Verdicts:
        """Verdicts by the table alone; the new ones are put there."""
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
        """The verdict on an event whose identity has a row, perhaps a forgotten one that is then its own."""
        columns = self.young.columns
        if columns["seen"][place] >= since:
            return DUPLICATE if columns["mark"][place] == events.mark[event] else CONFLICT
        columns["mark"][place] = events.mark[event]
        columns["seen"][place] = max(events.at[event], events.now[event]) // HOUR
        self._changed.append(place)
        return NEW

    def _rows(self) -> Rows:
        """The table's rows, in place."""
        used = slice(len(self.young))
        mark, seen, customer = (self.young.columns[name][used] for name in _COLUMNS)
        return Rows(self.young.keys[0][used], self.young.keys[1][used], mark, seen, customer)

    def _unsaved_young(self) -> NDArray[np.bool_]:
        """Which of the table's rows are new or changed since the journal last got them."""
        unsaved = np.arange(len(self.young)) >= self._saved
        unsaved[self._changed] = True
        return unsaved

    def _note(self, written: int) -> None:
        """The journal has the table as it stands, after so many more rows."""
        self._saved, self._changed = len(self.young), []
        self._stored += written

    def _close(self) -> None:
        """Turn the table into a run, and begin another."""
        unsaved = self._unsaved_young()
        self._note(int(np.count_nonzero(unsaved)))
        order = np.argsort(self._rows().lo)
        run = Run(self._rows().part(order), [self._open], self._stored)
        # Rows that change no more are not copied until they are written.
        self._unsaved.append((self._open, run.rows, unsaved[order]))
        self.runs.append(run)
        self.young = Table(2, _COLUMNS, growth=1.2)
        self._open, self._saved, self._stored = self._stream(), 0, 0
        self._merge_small()
        if self._bloom.has_room(len(run)):
            self._bloom.add(run.rows.lo, run.rows.hi)
        else:
            self._refilter()

    def _merge_small(self) -> None:
        """Merge the two neighbours that are smallest together, until there are few enough."""
        while len(self.runs) > RUNS_MAX:
            sizes = [len(one) + len(other) for one, other in pairwise(self.runs)]
            at = sizes.index(min(sizes))
            self.runs[at : at + 2] = [merged(self.runs[at : at + 2])]

    def _refilter(self) -> None:
        self._bloom = Bloom((run.rows.lo, run.rows.hi) for run in self.runs)

    def _is_stale(self, since: Ints) -> bool:
        """Whether half of the table or more is forgotten."""
        gone = int(np.count_nonzero(_is_gone(self._rows(), since)))
        return gone > 0 and 2 * gone >= len(self.young)

    def _write_again(self, run: Run) -> None:
        """Have the journal hold a run in one stream of its own, without what was dropped from it."""
        run.streams, run.stored = [self._stream()], len(run)
        self._unsaved.append((run.streams[0], run.rows, slice(None)))

    def _stream(self) -> str:
        """A name that no other stream ever had, so that none is taken for one that was dropped."""
        self.serial += 1
        return f"ids-{self.serial}"


def _grouped(parts: list[tuple[str, Rows]], share: int) -> Iterator[list[tuple[str, Rows]]]:
    """Neighbours together, each group but the last of `share` rows or more."""
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


def _swept(run: Run, since: Ints, latest: int) -> Run:
    """The run without what is forgotten, where that is enough to be worth copying the rest."""
    if run.first >= latest:
        return run
    gone = _is_gone(run.rows, since)
    dropped = int(np.count_nonzero(gone))
    if 4 * dropped < len(run):
        return run
    return run.left(~gone)


def _is_gone(rows: Rows, since: Ints) -> NDArray[np.bool_]:
    """Which rows are forgotten; `since` by customer, and last for those of whom it was not noted."""
    return rows.seen < since[np.minimum(rows.customer, len(since) - 1)]


def _same(rows: Rows, events: Identities) -> NDArray[np.bool_]:
    """Whether name and data are those of the remembered event.

    Before customers were noted the fingerprint covered the time too: (name_data + time * factor) >> 32 instead of
    name_data >> 32. So it differs by the upper half of time * factor, and a carry, if the time is the same as well. If
    it is not, nothing says whether the data is, and the event is a conflict, as it was.
    """
    apart = rows.mark - events.mark
    timed = ((events.at.view(np.uint64) * _TIME_FACTOR) >> _HALF).astype(np.uint32)
    return np.where(rows.customer == NOBODY, apart - timed <= 1, apart == 0)
