"""What a shard accepted and did not meter, by cause, and by customer and cause: counts with a sample, bounded.

Names that no meter takes come from senders, so their number is bounded per shard and per customer, and the rest is
counted as OTHER. The counters `unmetered` and `unmetered:REASON` count every event, whatever is bounded here.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

import msgspec
import numpy as np
from xxhash import xxh3_128_hexdigest

from tidegate.operators.events.chunk import Chunk, Ints
from tidegate.operators.events.envelope import named
from tidegate.operators.events.unmetered import Cause, Missed
from tidegate.operators.model.ports import Note
from tidegate.operators.model.records import Alert
from tidegate.operators.model.wire import instant

NAMES_MAX = 1_000
NAMES_OF_ONE = 20
CUSTOMER_ROWS_MAX = 500
CUSTOMERS_OF_ONE_CAUSE = 50
ID_SHOWN = 200
NOTES_AT_ONCE = 100
OTHER = ""
"""Stands for the names past the bounds; no event has an empty name."""

BY_CAUSE, BY_CUSTOMER = "unmetered", "unmetered_of"
"""Kinds of notes."""

Key = tuple[str, Cause]
"""A customer, or "" for all of them, and a cause."""


class Row(msgspec.Struct, array_like=True):
    """Events of one cause. Times are the events' own, in µs; the sample is the last that arrived.

    `first_customer` sent the first of them.
    """

    first_customer: str
    events: int
    first_at: int
    last_at: int
    customer: str
    event_id: str


class SavedRow(msgspec.Struct, array_like=True):
    """A row as it stands in a snapshot."""

    customer: str
    cause: Cause
    row: Row


class UnmeteredRows:
    """The rows of one shard."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        # Dicts for their order: what has waited longest is written first.
        self._unsent: dict[Key, None] = {}
        self._unsaved: dict[Key, None] = {}
        self._names_of: dict[str, int] = {}
        self._names = 0
        self._customers: dict[Cause, set[str]] = {}
        self._customer_rows = 0

    def take(self, chunk: Chunk, missed: Missed) -> list[tuple[Cause, int]]:
        """Count accepted events that were not metered. Return each new cause to announce, with its first event."""
        found: list[tuple[Cause, int]] = []
        causes = list(missed.causes)
        # In order of arrival, as which names fit into the bounds depends on it.
        for group in _groups(missed.cause, chunk.at[missed.event]):
            first = int(missed.event[group.first])
            name = chunk.names[chunk.customer[first]]
            cause = causes[group.label] = self._bounded(name, causes[group.label])
            if ("", cause) not in self.rows and cause.is_announced:
                found.append((cause, first))
            self._add(("", cause), _row(chunk, missed, group))
        self._take_customers(chunk, missed, causes)
        return found

    def _take_customers(self, chunk: Chunk, missed: Missed, causes: Sequence[Cause]) -> None:
        """Count the same by customer, as far as there is room. `causes` are those within the bounds on names."""
        owners = [self._customers.setdefault(cause, set()) for cause in causes]
        pairs = chunk.customer[missed.event] * len(causes) + missed.cause
        for group in _groups(pairs, chunk.at[missed.event]):
            customer, cause = divmod(group.label, len(causes))
            name, known = chunk.names[customer], owners[cause]
            has_room = len(known) < CUSTOMERS_OF_ONE_CAUSE and self._customer_rows < CUSTOMER_ROWS_MAX
            if name in known or has_room:
                self._add((name, causes[cause]), _row(chunk, missed, group))

    def _bounded(self, customer: str, cause: Cause) -> Cause:
        """Return the cause itself, or the one of OTHER names where it is new and there are too many."""
        if cause.reason != "unknown_name" or ("", cause) in self.rows:
            return cause
        is_full = self._names >= NAMES_MAX or self._names_of.get(customer, 0) >= NAMES_OF_ONE
        return cause._replace(name=OTHER) if is_full else cause

    def _add(self, key: Key, row: Row) -> None:
        known = self.rows.get(key)
        if known is None:
            self._begin(key, row)
        else:
            known.events += row.events
            known.first_at = min(known.first_at, row.first_at)
            known.last_at = max(known.last_at, row.last_at)
            known.customer, known.event_id = row.customer, row.event_id
        self._unsent[key] = self._unsaved[key] = None

    def _begin(self, key: Key, row: Row) -> None:
        self.rows[key] = row
        customer, cause = key
        if customer:
            self._customers.setdefault(cause, set()).add(customer)
            self._customer_rows += 1
        elif cause.reason == "unknown_name" and cause.name != OTHER:
            self._names += 1
            self._names_of[row.first_customer] = self._names_of.get(row.first_customer, 0) + 1

    def notes(self, shard: int, *, all: bool = False) -> list[Note]:
        """Return the rows that changed since this gave them, as notes: NOTES_AT_ONCE of them, or all."""
        keys = list(self._unsent)[: None if all else NOTES_AT_ONCE]
        for key in keys:
            del self._unsent[key]
        return [_note(shard, *key, self.rows[key]) for key in keys]

    @property
    def is_behind(self) -> bool:
        """Whether `notes` has more to give."""
        return bool(self._unsent)

    def resend(self) -> None:
        """Mark every row as changed, for a store that may have lost some."""
        self._unsent = dict.fromkeys(self.rows)

    def saved(self, *, whole: bool) -> list[SavedRow]:
        """Return the rows that changed since this gave them, or all, for a snapshot."""
        keys: Iterable[Key] = self.rows if whole else self._unsaved
        found = [SavedRow(*key, self.rows[key]) for key in keys]
        self._unsaved = {}
        return found

    def restore(self, saved: Iterable[SavedRow]) -> None:
        """Take rows of snapshots, the oldest first. What they changed may not have been written."""
        for one in saved:
            key = one.customer, one.cause
            if key in self.rows:
                self.rows[key] = one.row
            else:
                self._begin(key, one.row)
        self.resend()


class _Group(NamedTuple):
    """Rows of one label: how many, the first and last of them, and their earliest and latest time."""

    label: int
    events: int
    first: int
    last: int
    first_at: int
    last_at: int


def _groups(labels: Ints, at: Ints) -> Iterator[_Group]:
    """Return the rows of each label, in order of its first row."""
    found, first, which = np.unique(labels, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    earliest, latest = np.full(len(found), np.iinfo(np.int64).max), np.zeros(len(found), np.int64)
    np.minimum.at(earliest, which, at)
    np.maximum.at(latest, which, at)
    last = np.zeros(len(found), np.int64)
    last[which] = np.arange(len(labels))
    columns = (found, np.bincount(which), first, last, earliest, latest)
    order = np.argsort(first)
    yield from starmap(_Group, zip(*(column[order].tolist() for column in columns), strict=True))


def _row(chunk: Chunk, missed: Missed, group: _Group) -> Row:
    first, last = int(missed.event[group.first]), int(missed.event[group.last])
    names, customer = chunk.names, chunk.customer
    id = named(chunk.payload(last)).id[:ID_SHOWN]
    return Row(names[customer[first]], group.events, group.first_at, group.last_at, names[customer[last]], id)


def unmetered_alert(cause: Cause, at: int) -> Alert:
    """Return the alert of a cause that is new to a shard, whose first event has the time `at`.

    Of one cause all shards give the same alert, also in a replay in which another event comes first; only the time is
    that of the event. So it names no customer and no event: the rows have samples.
    """
    return Alert(
        id=xxh3_128_hexdigest(msgspec.json.encode(["unmetered", *cause])),
        kind="unmetered",
        state="announced",
        customer="",
        meter=cause.meter,
        period_start=at,
        period_end=at,
        level=cause.reason,
        limit=None,
        total="1",
        at=at,
        limit_version="",
        turn=1,
        event_name=cause.name,
        text=f"An event is {'only partly' if cause.partly else 'not'} metered: {described(cause)}",
    )


def described(cause: Cause) -> str:
    """Return the cause in a sentence, also that of the names past the bounds."""
    if cause.reason == "unknown_name" and cause.name == OTHER:
        return (
            "no meter takes events of its name; there are so many such names that these are counted together"
        )
    return str(cause)


def _note(shard: int, customer: str, cause: Cause, row: Row) -> Note:
    fields = {
        "event_name": cause.name,
        "reason": cause.reason,
        "meter": cause.meter,
        "key": cause.key,
        "partly": cause.partly,
        "events": row.events,
        "first_at": instant(row.first_at),
        "last_at": instant(row.last_at),
        "customer": row.customer,
        "event_id": row.event_id,
    }
    id = msgspec.json.encode([shard, customer, *cause]).decode()
    kind = BY_CUSTOMER if customer else BY_CAUSE
    return Note(kind, id, customer, row.last_at, msgspec.json.encode(fields))
