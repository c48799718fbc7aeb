"""The alerts of a shard: the state of each rule per key and period, advanced reading by reading where a level is near.

The row of a period holds the whole part of the next level (`next_up`). A batch of totals is therefore compared in one
step, and only the rows that passed a level are replayed in order of arrival.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.columns.quantity import LIMBS, SCALE, WEIGHTS, format_quantity, join_limbs
from tidegate.operators.events.chunk import Ints
from tidegate.operators.metering.key_index import KeyIndex
from tidegate.operators.metering.thresholds import (
    NEVER_NEXT,
    AlertRules,
    RuleChange,
    RuleState,
    advance_state,
    compute_alert_id,
    review_state,
)
from tidegate.operators.metering.windows import (
    ADD,
    GREATEST,
    LEAST,
    Batch,
    Flags,
    Limbs,
    TouchedRows,
    key_of,
    start_of,
    unpack_window,
)
from tidegate.operators.model.records import Alert

SavedState = list[tuple[str, int, int]]
"""A state by rule name, levels that hold and alerts sent, as a snapshot keeps it."""


class AlertStates:
    """The rule states of one shard, by the packed word of the period, which stays the same when rows are renumbered."""

    def __init__(self, key_index: KeyIndex, periods: Table) -> None:
        self._key_index = key_index
        self._periods = periods
        self._states: dict[int, RuleState] = {}
        self.changed_words: set[int] = set()

    def start_periods(self, rows: Ints, keys: Ints) -> None:
        """Set `next_up` of new rows."""
        rules = self._key_index.key_rules.values[keys]
        used = [self._key_index.rules[number] for number in np.unique(rules).tolist()]
        first = dict(
            zip(
                np.unique(rules).tolist(),
                (r.find_next_up(r.create_state()) // SCALE for r in used),
                strict=True,
            )
        )
        waits = np.array([first[number] for number in rules.tolist()], np.int64)
        # Totals that may fall are always looked at, where there are levels.
        falls = self._key_index.falls[self._key_index.key_meter.values[keys]]
        waits[falls & (waits < NEVER_NEXT)] = -1
        self._periods.columns["next_up"][rows] = waits

    def apply_batch(self, batch: Batch, touched: TouchedRows) -> list[Alert]:
        """Advance the states of the rows that a batch changed and return the alerts, in order of arrival."""
        columns, rows = self._periods.columns, touched.rows
        passed = self._find_passed(rows)
        if batch.corrected.any():
            # The exclusive or is greater if the count has one more binary digit, so a power of two was passed.
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
        windows = self._read_windows(rows)
        for row in map(_PassedRow, windows, *(fact.tolist() for fact in facts), self._read_totals(rows)):
            alerts += self._replay(batch, touched, row)
        return [alert for _, alert in sorted(alerts, key=itemgetter(0))]

    def _find_passed(self, rows: Ints) -> Flags:
        """Mark the rows whose total may have passed their next level."""
        columns = self._periods.columns
        next_up = columns["next_up"][rows]
        passed: Flags = columns["hi"][rows] >= next_up
        if "top" in columns:
            passed |= (columns["top"][rows] > 0) & (next_up != NEVER_NEXT)
        return passed

    def _replay(self, batch: Batch, touched: TouchedRows, passed: "_PassedRow") -> list[tuple[int, Alert]]:
        """Advance one row's state and return its alerts, each with the reading that caused it."""
        window = passed.window
        rules = window.rules
        state = self._states.get(window.word) or rules.create_state()
        before = list(state)
        if passed.readings == 1:
            readings, times, totals, unit = [passed.first], [passed.at], [passed.total], 1
        else:
            readings, times, totals, unit = _replay_readings(batch, touched, passed)
        moments = [
            (place, change, rules) for place, change in _find_changes(passed.fold, rules, state, totals, unit)
        ]
        if passed.corrections:
            corrections = np.flatnonzero(batch.corrected[readings]).tolist()
            for count, place in enumerate(corrections, passed.corrected + 1):
                if count.bit_count() == 1:
                    change = RuleChange(
                        "correction", "correction", "announced", str(count), count.bit_length()
                    )
                    moments.append((place, change, _UNLIMITED))
            # The sort is stable, so a correction comes last among the changes of one reading.
            moments.sort(key=itemgetter(0))
        if state != before:
            self._set_state(window, state)
        return [
            (readings[place], _build_alert(window, under, change, totals[place] * unit, times[place]))
            for place, change, under in moments
        ]

    def _set_state(self, window: "_Window", state: RuleState) -> None:
        """Store a new state, and the next level that follows from it."""
        self._states[window.word] = state
        self.changed_words.add(window.word)
        next_up = self._periods.columns["next_up"]
        if next_up[window.row] >= 0:
            next_up[window.row] = window.rules.find_next_up(state) // SCALE

    def _read_windows(self, rows: Ints) -> "Iterator[_Window]":
        """Return what alerts report about the periods of these rows."""
        key_index, words = self._key_index, self._periods.keys[0][rows]
        key = key_of(words)
        names, meters, rules = key_index.names, key_index.meters, key_index.rules
        return map(
            _Window,
            rows.tolist(),
            words.tolist(),
            [rules[number] for number in key_index.key_rules.values[key].tolist()],
            [names[customer] for customer in key_index.key_customer.values[key].tolist()],
            [meters[meter].name for meter in key_index.key_meter.values[key].tolist()],
            start_of(words).tolist(),
            self._periods.columns["end"][rows].tolist(),
        )

    def _read_window(self, row: int) -> "_Window":
        return next(self._read_windows(np.array([row])))

    def _read_totals(self, rows: Ints) -> list[int]:
        """Return the totals of these rows, times 10²⁴."""
        columns = self._periods.columns
        return _join_limbs({name: columns[name][rows] for name in LIMBS if name in columns})

    def apply_adjustment(self, row: int, at: int) -> list[Alert]:
        """Advance the state of a row whose total was adjusted up or down, and return the alerts."""
        window = self._read_window(row)
        state = self._states.get(window.word) or window.rules.create_state()
        (total,) = self._read_totals(np.array([row]))
        changes = list(advance_state(window.rules, state, total))
        if changes:
            self._set_state(window, state)
        return [_build_alert(window, window.rules, change, total, at) for change in changes]

    def export_state(self, word: int) -> SavedState:
        """Return a state in the form that a snapshot keeps."""
        state = self._states[word]
        return [
            (ladder.rule, state[2 * i], state[2 * i + 1])
            for i, ladder in enumerate(self._find_rules(word).ladders)
        ]

    @property
    def words(self) -> Iterable[int]:
        """The packed words of the periods that have a state."""
        return self._states

    def restore(self, held: dict[int, SavedState], changed: Ints, current: Ints, at: int) -> list[Alert]:
        """Restore states after the rows of periods, and return the alerts that a new catalog causes at the time `at`.

        `changed` are the keys with a new limit, whose states start over. `current` are the rows of periods that have
        not ended: they are checked immediately, all others at their next reading.
        """
        periods = self._periods
        keys = key_of(periods.keys[0][: len(periods)])
        self.start_periods(np.arange(len(periods)), keys)
        is_changed = np.zeros(self._key_index.key_customer.size, np.bool_)
        is_changed[changed] = True
        for word, rules_held in held.items():
            row = int(periods.find(np.array([word], np.uint64))[0])
            if not is_changed[keys[row]]:
                self._restore_state(row, word, rules_held)
        alerts: list[Alert] = []
        for row in current[is_changed[keys[current]]].tolist():
            before = held.get(int(periods.keys[0][row]), [])
            alerts += self._review(row, {rule: holds for rule, holds, _ in before}, at)
        # A row with a state was checked. A row without one may have lost it to an earlier change of limits.
        open_rows = current[~is_changed[keys[current]]]
        for row in open_rows[self._find_passed(open_rows)].tolist():
            if int(periods.keys[0][row]) not in self._states:
                alerts += self.apply_adjustment(row, at)
        return alerts

    def _restore_state(self, row: int, word: int, held: SavedState) -> None:
        """Restore one state."""
        rules = self._find_rules(word)
        known = {rule: (holds, turn) for rule, holds, turn in held}
        state: RuleState = []
        for ladder in rules.ladders:
            # A snapshot of an earlier program version may have more levels for the same limit.
            holds, turn = known.get(ladder.rule, (0, 0))
            state += [min(holds, len(ladder.ups)), turn]
        self._states[word] = state
        next_up = self._periods.columns["next_up"]
        if next_up[row] >= 0:
            next_up[row] = rules.find_next_up(state) // SCALE

    def _review(self, row: int, held: dict[str, int], at: int) -> Iterable[Alert]:
        window = self._read_window(row)
        (total,) = self._read_totals(np.array([row]))
        state, changes = review_state(window.rules, held, total)
        self._set_state(window, state)
        for change in changes:
            yield _build_alert(window, window.rules, change, total, at)

    def drop(self, words: Iterable[int]) -> None:
        """Forgets the states of windows that are gone."""
        for word in words:
            self._states.pop(word, None)
            self.changed_words.discard(word)

    def _find_rules(self, word: int) -> AlertRules:
        key, _ = unpack_window(word)
        return self._key_index.rules[int(self._key_index.key_rules.values[key])]


_UNLIMITED = AlertRules("", None, ())


class _Window(NamedTuple):
    """The row of a period, and what alerts report about it."""

    row: int
    word: int
    rules: AlertRules
    customer: str
    meter: str
    start: int
    end: int


class _PassedRow(NamedTuple):
    """A row that may cause alerts: the number and first of a batch's readings, and the total after them.

    `corrected` is the number of corrections before the batch, `corrections` the number in it.
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


def _build_alert(window: _Window, rules: AlertRules, change: RuleChange, total: int, at: int) -> Alert:
    rule, _, _, level, turn = change
    kind: Any = change.kind
    state: Any = change.state
    return Alert(
        id=compute_alert_id(
            rule, window.customer, window.meter, window.start, level, rules.version, state, turn
        ),
        kind=kind,
        state=state,
        customer=window.customer,
        meter=window.meter,
        period_start=window.start,
        period_end=window.end,
        level=level,
        limit=rules.limit,
        total=format_quantity(total),
        at=at,
        limit_version=rules.version,
        turn=turn,
    )


def _join_limbs(limbs: Limbs) -> list[int]:
    """Return quantities times 10²⁴ from their limbs."""
    values = [part * SCALE for part in limbs["hi"].tolist()]
    for name, limb in limbs.items():
        if name != "hi":
            unit = WEIGHTS[name]
            values = [value + part * unit for value, part in zip(values, limb.tolist(), strict=True)]
    return values


def _replay_readings(
    batch: Batch, touched: TouchedRows, passed: _PassedRow
) -> tuple[list[int], list[int], list[int], int]:
    """Return a row's readings in order of arrival, their times, the total after each, and the unit of these totals.

    A total is in units of 10⁻²⁴ times the unit. Whole totals use the unit 1, because small integers add up faster.
    """
    i = passed.place
    readings = np.sort(touched.order[touched.starts[i] : touched.starts[i + 1]])
    total = join_limbs(**{name: int(limb[i]) for name, limb in touched.limbs.items()})
    limbs = {name: limb[readings] for name, limb in batch.list_limbs().items()}
    if total % SCALE or any(limb.any() for name, limb in limbs.items() if name != "hi"):
        values, unit = _join_limbs(limbs), 1
    else:
        total, values, unit = total // SCALE, limbs["hi"].tolist(), SCALE
    times = batch.at[readings].tolist()
    if touched.new[i] and passed.fold == LEAST:
        total = values[0]
    totals = list(_accumulate(passed.fold, total, values, times, int(touched.as_of[i])))
    return readings.tolist(), times, totals, unit


def _accumulate(fold: int, total: int, values: list[int], times: list[int], as_of: int) -> Iterator[int]:
    """Yield the total after each reading."""
    if fold == ADD:
        yield from islice(accumulate(values, initial=total), 1, None)
    elif fold in (GREATEST, LEAST):
        yield from islice(accumulate(values, max if fold == GREATEST else min, initial=total), 1, None)
    else:
        for value, at in zip(values, times, strict=True):
            if at >= as_of:
                total, as_of = value, at
            yield total


def _find_changes(
    fold: int, rules: AlertRules, state: RuleState, totals: list[int], unit: int
) -> Iterator[tuple[int, RuleChange]]:
    """Yield the reading at which the state changes, and each change."""
    if fold not in (ADD, GREATEST) or len(totals) == 1:
        for place, total in enumerate(totals):
            for change in advance_state(rules, state, total * unit):
                yield place, change
        return
    # Other totals only grow, so the next level is found by bisection; rounded up, as totals are whole units.
    place = bisect_left(totals, -(-rules.find_next_up(state) // unit))
    while place < len(totals):
        for change in advance_state(rules, state, totals[place] * unit):
            yield place, change
        place += 1
        if place < len(totals):
            place = bisect_left(totals, -(-rules.find_next_up(state) // unit), place)
