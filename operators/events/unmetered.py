"""Unmetered events: why meters did not read accepted events, event by event, found in columns.

An event is *unmetered* if no meter read it, and has one cause. An event that some meters of its name read and others
could not is *partly* metered, and has a cause for each of those others.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from tidegate.operators.model.aggregates import AGGREGATES, Kind
from tidegate.operators.model.catalog import Meter

Ints = NDArray[np.int64]

Reason = Literal[
    "text_number", "not_a_number", "not_a_value", "key_missing", "no_filter_matched", "unknown_name"
]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""An event with several reasons has the first of them: the one that is closest to being metered."""
TEXT_NUMBER, NOT_A_NUMBER, NOT_A_VALUE, KEY_MISSING, NO_FILTER_MATCHED, UNKNOWN_NAME = range(len(REASONS))

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class Cause(NamedTuple):
    """Why events of a name were not read. `meter` and `key` are empty if no single meter is meant."""

    name: str
    reason: Reason
    meter: str = ""
    key: str = ""
    partly: bool = False

    @property
    def is_announced(self) -> bool:
        """Whether a new cause raises an alert. A property that only some meters need may be left out on purpose."""
        return not (self.partly and self.reason == "key_missing")

    def __str__(self) -> str:
        return describe_reason(self.reason, self.name, self.meter, self.key)


class Missed(NamedTuple):
    """Events that a meter did not read: a row per event and cause, `cause` counting from the first of `causes`."""

    event: Ints
    cause: Ints
    causes: Sequence[Cause]

    def keep(self, kept: NDArray[np.bool_], place: Ints) -> "Missed":
        """Return the rows of the marked events; `place` gives each event its new number."""
        if not len(self.event):
            return self
        rows = kept[self.event]
        return Missed(place[self.event[rows]], self.cause[rows], self.causes)

    def list_unmetered(self) -> list[tuple[int, Cause]]:
        """Return the events that no meter read, each with its cause."""
        rows = zip(self.event.tolist(), self.cause.tolist(), strict=True)
        return [(event, self.causes[cause]) for event, cause in rows if not self.causes[cause].partly]

    def select_range(self, first: int, last: int) -> "Missed":
        """Return the rows of the events from `first` to before `last`, numbered from 0, with their causes alone."""
        rows = np.flatnonzero((self.event >= first) & (self.event < last))
        if not len(rows):
            return NOTHING_MISSED
        used, cause = np.unique(self.cause[rows], return_inverse=True)
        return Missed(self.event[rows] - first, cause.reshape(-1), [self.causes[i] for i in used.tolist()])


class Unread(NamedTuple):
    """What meters could not read: a row per event and meter, `reason` counting from the first of `REASONS`."""

    event: Ints
    meter: Ints
    reason: Ints

    def keep(self, kept: NDArray[np.bool_], place: Ints) -> "Unread":
        """Return the rows of the marked events; `place` gives each event its new number."""
        rows = kept[self.event]
        return Unread(place[self.event[rows]], self.meter[rows], self.reason[rows])

    def select_range(self, first: int, last: int) -> "Unread":
        """Return the rows of the events from `first` to before `last`, numbered from 0."""
        rows = (self.event >= first) & (self.event < last)
        return Unread(self.event[rows] - first, self.meter[rows], self.reason[rows])


_NONE = np.empty(0, np.int64)
NOTHING_MISSED = Missed(_NONE, _NONE, ())
NOTHING_UNREAD = Unread(_NONE, _NONE, _NONE)


def is_number(text: str) -> bool:
    """Return whether a text is a number in JSON's notation, with nothing around it."""
    return _NUMBER.fullmatch(text) is not None


def find_unmetered_reason(kind: Kind, value: object) -> int:
    """Return why a meter of this kind cannot read the value."""
    if value is UNSET:
        return KEY_MISSING
    if AGGREGATES[kind].reads == "value":
        return NOT_A_VALUE
    return TEXT_NUMBER if isinstance(value, str) and is_number(value) else NOT_A_NUMBER


def describe_reason(reason: str, name: str, meter: str, key: str) -> str:
    """Return the cause in a sentence."""
    match reason:
        case "unknown_name":
            return f"no meter takes events of the name {name!r}"
        case "no_filter_matched":
            return f"no meter's filter lets this event of {name!r} pass"
        case "key_missing":
            return f"it has no property {key!r}, which the meter {meter!r} reads"
        case "text_number":
            return f"{key!r} is a number written as text, which the meter {meter!r} does not read"
        case "not_a_value":
            return f"{key!r} is neither text nor number nor boolean, so the meter {meter!r} can't read it"
        case _:
            return f"{key!r} is not a number, so the meter {meter!r} can't read it"


def find_missed(
    kept: NDArray[np.bool_], read: Ints, unread: Unread, names: "Names", meters: Sequence[Meter]
) -> Missed:
    """Return why events were not read, excluding those that `kept` leaves out.

    `read` are the events of all readings, with repeats. If every event was read by all its meters, the cost is two
    operations on a column of booleans.
    """
    seen = ~kept
    seen[read] = True
    if seen.all() and not len(unread.event):
        return NOTHING_MISSED
    bare = np.flatnonzero(~seen)
    unread = Unread(*(column[kept[unread.event]] for column in unread))
    # Each event gets the first reason, and the first meter with that reason.
    ranks = unread.reason * len(meters) + unread.meter
    nothing = len(REASONS) * len(meters)
    best = np.full(len(kept), nothing, np.int64)
    np.minimum.at(best, unread.event, ranks)
    of_meter = bare[best[bare] < nothing]
    others = bare[best[bare] == nothing]
    is_known = names.number[others] > 0
    collected = _MissedBuilder(meters)
    collected.add_by_meter(of_meter, best[of_meter], partly=False)
    collected.add_unfiltered(others[is_known], names)
    collected.add_unknown_names(others[~is_known], names)
    elsewhere = seen[unread.event]
    collected.add_by_meter(unread.event[elsewhere], ranks[elsewhere], partly=True)
    return collected.build()


class Names(NamedTuple):
    """Names of events: as texts, as codes that are equal for equal names, and as the catalog numbers them from 1.

    `number` is 0 if no meter takes the name.
    """

    text: Sequence[str]
    code: Ints
    number: Ints


class _MissedBuilder:
    """Collects events that were not read, with their causes."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = meters
        self._events: list[Ints] = []
        self._rows: list[Ints] = []
        self._causes: list[Cause] = []

    def add_by_meter(self, events: Ints, ranks: Ints, *, partly: bool) -> None:
        """Add events with causes that are given as reason and meter in one number."""
        found, which = np.unique(ranks, return_inverse=True)
        causes = []
        for rank in found.tolist():
            reason, place = divmod(rank, len(self._meters))
            meter = self._meters[place]
            causes.append(Cause(meter.event_name, REASONS[reason], meter.name, meter.key or "", partly))
        self._add(events, which, causes)

    def add_unfiltered(self, events: Ints, names: Names) -> None:
        """Add events of known names that no meter's filter lets pass."""
        _, first, which = np.unique(names.number[events], return_index=True, return_inverse=True)
        texts = [names.text[event] for event in events[first].tolist()]
        alone = [[meter.name for meter in self._meters if meter.event_name == name] for name in texts]
        causes = [
            Cause(name, "no_filter_matched", fed[0] if len(fed) == 1 else "")
            for name, fed in zip(texts, alone, strict=True)
        ]
        self._add(events, which, causes)

    def add_unknown_names(self, events: Ints, names: Names) -> None:
        """Add events whose name no meter takes."""
        _, first, which = np.unique(names.code[events], return_index=True, return_inverse=True)
        self._add(events, which, [Cause(names.text[i], "unknown_name") for i in events[first].tolist()])

    def _add(self, events: Ints, which: Ints, causes: list[Cause]) -> None:
        self._events.append(events)
        self._rows.append(which.reshape(-1) + len(self._causes))
        self._causes += causes

    def build(self) -> Missed:
        """Return all events that were added."""
        return Missed(np.concatenate(self._events), np.concatenate(self._rows), self._causes)


def join_missed(parts: Sequence[Missed], shifts: Sequence[int]) -> Missed:
    """Return the rows of consecutive pieces as one; `shifts` says where each piece's events begin."""
    causes = [cause for part in parts for cause in part.causes]
    if not causes:
        return NOTHING_MISSED
    firsts = np.cumsum([0, *(len(part.causes) for part in parts[:-1])]).tolist()
    return Missed(
        np.concatenate([part.event + shift for part, shift in zip(parts, shifts, strict=True)]),
        np.concatenate([part.cause + first for part, first in zip(parts, firsts, strict=True)]),
        causes,
    )
