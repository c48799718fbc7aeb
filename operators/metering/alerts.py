"""The alerts of a shard: rule states per key and period, moved reading by reading where a level is near.

A period's row keeps the next level's whole part (`next_up`), so that a batch of totals is compared at once and only
those that passed a level are gone through in order of arrival.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.columns.quantity import LIMBS, SCALE, WEIGHTS, joined, text
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.key_index import Roster
from tidegate.operators.metering.thresholds import NEVER_NEXT, Change, Rules, State, alert_id, review, step
from tidegate.operators.metering.windows import (
    ADD,
    GREATEST,
    LEAST,
    Batch,
    Flags,
    Limbs,
    Touched,
    key_of,
    start_of,
    unpacked,
)
from tidegate.operators.model.records import Alert

Held = list[tuple[str, int, int]]
"""A state by rule name, levels that hold and alerts sent, as a snapshot keeps it."""


class Watch:
    """Rule states of one shard. States are kept by the window's word, which survives renumbering of rows."""

    def __init__(self, roster: Roster, periods: Table) -> None:
        self._roster = roster
        self._periods = periods
        self._states: dict[int, State] = {}
        self.moved: set[int] = set()

    def begin(self, rows: Ints, keys: Ints) -> None:
        """Sets `next_up` of new rows."""
        rules = self._roster.key_rules.values[keys]
        used = [self._roster.rules[number] for number in np.unique(rules).tolist()]
        first = dict(
            zip(np.unique(rules).tolist(), (r.next_up(r.fresh()) // SCALE for r in used), strict=True)
        )
        waits = np.array([first[number] for number in rules.tolist()], np.int64)
        # Totals that may fall are always looked at, where there are levels.
        falls = self._roster.falls[self._roster.key_meter.values[keys]]
        waits[falls & (waits < NEVER_NEXT)] = -1
        self._periods.columns["next_up"][rows] = waits

    def look(self, batch: Batch, touched: Touched) -> list[Alert]:
        """The alerts that a batch sets off, in order of arrival."""
        columns, rows = self._periods.columns, touched.rows
        passed = self._passed(rows)
        if batch.corrected.any():
            # The exclusive or is greater where the count has one more binary digit: a power of two was passed.
            passed |= (columns["corrected"][rows] ^ touched.corrected) > touched.corrected
        found = np.flatnonzero(passed)
        if not len(found):
            return []
        rows, starts = rows[found], touched.starts[found]
        first = touched.order[starts]
        facts = (
            *(found, batch.fold[first], touched.starts[found + 1] - starts, first, batch.at[first]),
            *(touched.corrected[found], columns["corrected"][rows] - touched.corrected[found]),
        )
        alerts: list[tuple[int, Alert]] = []
        windows = self._windows(rows)
        for row in map(_Passed, windows, *(fact.tolist() for fact in facts), self._totals(rows)):
            alerts += self._replay(batch, touched, row)
        return [alert for _, alert in sorted(alerts, key=itemgetter(0))]

    def _passed(self, rows: Ints) -> Flags:
        """Mark the rows whose total may have passed their next level."""
        columns = self._periods.columns
        next_up = columns["next_up"][rows]
        passed: Flags = columns["hi"][rows] >= next_up
        if "top" in columns:
            passed |= (columns["top"][rows] > 0) & (next_up != NEVER_NEXT)
        return passed

    def _replay(self, batch: Batch, touched: Touched, passed: "_Passed") -> list[tuple[int, Alert]]:
        """The alerts of one row, each with the reading that set it off."""
        window = passed.window
        rules = window.rules
        state = self._states.get(window.word) or rules.fresh()
        before = list(state)
        if passed.readings == 1:
            readings, times, totals, unit = [passed.first], [passed.at], [passed.total], 1
        else:
            readings, times, totals, unit = _replayed(batch, touched, passed)
        moments = [
            (place, change, rules) for place, change in _changes(passed.fold, rules, state, totals, unit)
        ]
        if passed.corrections:
            corrections = np.flatnonzero(batch.corrected[readings]).tolist()
            for count, place in enumerate(corrections, passed.corrected + 1):
                if count.bit_count() == 1:
                    change = Change("correction", "correction", "announced", str(count), count.bit_length())
                    moments.append((place, change, _UNLIMITED))
            # Stable, so that at one reading the correction comes last.
            moments.sort(key=itemgetter(0))
        if state != before:
            self._move(window, state)
        return [
            (readings[place], _alert(window, under, change, totals[place] * unit, times[place]))
            for place, change, under in moments
        ]

    def _move(self, window: "_Window", state: State) -> None:
        """Keeps a new state, and the next level with it."""
        self._states[window.word] = state
        self.moved.add(window.word)
        next_up = self._periods.columns["next_up"]
        if next_up[window.row] >= 0:
            next_up[window.row] = window.rules.next_up(state) // SCALE

    def _windows(self, rows: Ints) -> "Iterator[_Window]":
        """What alerts say of these rows' periods."""
        roster, words = self._roster, self._periods.keys[0][rows]
        key = key_of(words)
        names, meters, rules = roster.names, roster.meters, roster.rules
        return map(
            _Window,
            rows.tolist(),
            words.tolist(),
            [rules[number] for number in roster.key_rules.values[key].tolist()],
            [names[customer] for customer in roster.key_customer.values[key].tolist()],
            [meters[meter].name for meter in roster.key_meter.values[key].tolist()],
            start_of(words).tolist(),
            self._periods.columns["end"][rows].tolist(),
        )

    def _window(self, row: int) -> "_Window":
        return next(self._windows(np.array([row])))

    def _totals(self, rows: Ints) -> list[int]:
        """What these rows stand at, times 10²⁴."""
        columns = self._periods.columns
        return _joined({name: columns[name][rows] for name in LIMBS if name in columns})

    def settle(self, row: int, at: int) -> list[Alert]:
        """The alerts of a total that was adjusted, up or down."""
        window = self._window(row)
        state = self._states.get(window.word) or window.rules.fresh()
        (total,) = self._totals(np.array([row]))
        changes = list(step(window.rules, state, total))
        if changes:
            self._move(window, state)
        return [_alert(window, window.rules, change, total, at) for change in changes]

    def held(self, word: int) -> Held:
        """A state for a snapshot."""
        state = self._states[word]
        return [
            (ladder.rule, state[2 * i], state[2 * i + 1])
            for i, ladder in enumerate(self._rules(word).ladders)
        ]

    @property
    def words(self) -> Iterable[int]:
        """The windows that have a state."""
        return self._states

    def restore(self, held: dict[int, Held], changed: Ints, current: Ints, at: int) -> list[Alert]:
        """Take states back, after the periods' rows, and return the alerts that a new catalog sets off at `at`.

        `changed` are the keys whose limit is another now, whose states begin afresh. `current` are the rows of the
        periods that are not over: they are judged without waiting for a reading, any other when one comes.
        """
        periods = self._periods
        keys = key_of(periods.keys[0][: len(periods)])
        self.begin(np.arange(len(periods)), keys)
        is_changed = np.zeros(self._roster.key_customer.size, np.bool_)
        is_changed[changed] = True
        for word, rules_held in held.items():
            row = int(periods.find(np.array([word], np.uint64))[0])
            if not is_changed[keys[row]]:
                self._take(row, word, rules_held)
        alerts: list[Alert] = []
        for row in current[is_changed[keys[current]]].tolist():
            before = held.get(int(periods.keys[0][row]), [])
            alerts += self._review(row, {rule: holds for rule, holds, _ in before}, at)
        # What has a state was judged; what has none may have lost it to a change while another period held.
        open_rows = current[~is_changed[keys[current]]]
        for row in open_rows[self._passed(open_rows)].tolist():
            if int(periods.keys[0][row]) not in self._states:
                alerts += self.settle(row, at)
        return alerts

    def _take(self, row: int, word: int, held: Held) -> None:
        """Take one state back."""
        rules = self._rules(word)
        known = {rule: (holds, turn) for rule, holds, turn in held}
        state: State = []
        for ladder in rules.ladders:
            # An earlier version may have had more levels of the same limit.
            holds, turn = known.get(ladder.rule, (0, 0))
            state += [min(holds, len(ladder.ups)), turn]
        self._states[word] = state
        next_up = self._periods.columns["next_up"]
        if next_up[row] >= 0:
            next_up[row] = rules.next_up(state) // SCALE

    def _review(self, row: int, held: dict[str, int], at: int) -> Iterable[Alert]:
        window = self._window(row)
        (total,) = self._totals(np.array([row]))
        state, changes = review(window.rules, held, total)
        self._move(window, state)
        for change in changes:
            yield _alert(window, window.rules, change, total, at)

    def drop(self, words: Iterable[int]) -> None:
        """Forgets the states of windows that are gone."""
        for word in words:
            self._states.pop(word, None)
            self.moved.discard(word)

    def _rules(self, word: int) -> Rules:
        key, _ = unpacked(word)
        return self._roster.rules[int(self._roster.key_rules.values[key])]


_UNLIMITED = Rules("", None, ())


class _Window(NamedTuple):
    """A row of the periods, and what alerts say of it."""

    row: int
    word: int
    rules: Rules
    customer: str
    meter: str
    start: int
    end: int


class _Passed(NamedTuple):
    """A row whose alerts are looked for: the number and first of a batch's readings, and where they left its total.

    `corrected` is how many corrections there were before, `corrections` how many came.
    """

    window: _Window
    place: int
    fold: int
    readings: int
    first: int
    at: int
    corrected: int
    corrections: int
    total: int


def _alert(window: _Window, rules: Rules, change: Change, total: int, at: int) -> Alert:
    rule, _, _, level, turn = change
    kind: Any = change.kind
    state: Any = change.state
    return Alert(
        id=alert_id(rule, window.customer, window.meter, window.start, level, rules.version, state, turn),
        kind=kind,
        state=state,
        customer=window.customer,
        meter=window.meter,
        period_start=window.start,
        period_end=window.end,
        level=level,
        limit=rules.limit,
        total=text(total),
        at=at,
        limit_version=rules.version,
        turn=turn,
    )


def _joined(limbs: Limbs) -> list[int]:
    """Quantities times 10²⁴."""
    values = [part * SCALE for part in limbs["hi"].tolist()]
    for name, limb in limbs.items():
        if name != "hi":
            unit = WEIGHTS[name]
            values = [value + part * unit for value, part in zip(values, limb.tolist(), strict=True)]
    return values


def _replayed(batch: Batch, touched: Touched, passed: _Passed) -> tuple[list[int], list[int], list[int], int]:
    """A row's readings in order of arrival, their times, and the total after each, in a unit that is given too.

    A total is unit times 10⁻²⁴; whole ones are counted in ones, as small integers add up sooner.
    """
    i = passed.place
    readings = np.sort(touched.order[touched.starts[i] : touched.starts[i + 1]])
    total = joined(**{name: int(limb[i]) for name, limb in touched.limbs.items()})
    limbs = {name: limb[readings] for name, limb in batch.limbs().items()}
    if total % SCALE or any(limb.any() for name, limb in limbs.items() if name != "hi"):
        values, unit = _joined(limbs), 1
    else:
        total, values, unit = total // SCALE, limbs["hi"].tolist(), SCALE
    times = batch.at[readings].tolist()
    if touched.new[i] and passed.fold == LEAST:
        total = values[0]
    totals = list(_running(passed.fold, total, values, times, int(touched.as_of[i])))
    return readings.tolist(), times, totals, unit


def _running(fold: int, total: int, values: list[int], times: list[int], as_of: int) -> Iterator[int]:
    """The total after each reading."""
    if fold == ADD:
        yield from islice(accumulate(values, initial=total), 1, None)
    elif fold in (GREATEST, LEAST):
        yield from islice(accumulate(values, max if fold == GREATEST else min, initial=total), 1, None)
    else:
        for value, at in zip(values, times, strict=True):
            if at >= as_of:
                total, as_of = value, at
            yield total


def _changes(
    fold: int, rules: Rules, state: State, totals: list[int], unit: int
) -> Iterator[tuple[int, Change]]:
    """Where the state moves, and how."""
    if fold not in (ADD, GREATEST) or len(totals) == 1:
        for place, total in enumerate(totals):
            for change in step(rules, state, total * unit):
                yield place, change
        return
    # Other totals only grow, so the next level is found by bisection; rounded up, as totals are whole units.
    place = bisect_left(totals, -(-rules.next_up(state) // unit))
    while place < len(totals):
        for change in step(rules, state, totals[place] * unit):
            yield place, change
        place += 1
        if place < len(totals):
            place = bisect_left(totals, -(-rules.next_up(state) // unit), place)
