"""Unmetered events: what a shard accepted and did not meter, counted by cause, and by customer and cause.

Senders choose the names that no meter takes, so their number is bounded per shard and per customer, and the rest is
counted as OTHER. The counters `unmetered` and `unmetered:REASON` count every event, whatever is bounded here.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

import msgspec
import numpy as np
from xxhash import xxh3_128_hexdigest

from tidegate.operators.events.chunk import Chunk, Ints
from tidegate.operators.events.envelope import read_identity
from tidegate.operators.events.unmetered import Cause, Missed
from tidegate.operators.model.ports import Note
from tidegate.operators.model.records import Alert
from tidegate.operators.model.wire import format_instant

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


class UnmeteredRow(msgspec.Struct, array_like=True):
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
    """A row in the form that a snapshot keeps."""

    customer: str
    cause: Cause
    row: UnmeteredRow


class UnmeteredRows:
    """The rows of one shard."""

    def __init__(self) -> None:
        self.rows: dict[Key, UnmeteredRow] = {}
        # Dicts keep their order, so the row that has waited longest is written first.
        self._unsent: dict[Key, None] = {}
        self._unsaved: dict[Key, None] = {}
        self._names_of: dict[str, int] = {}
        self._names = 0
        self._customers: dict[Cause, set[str]] = {}
        self._customer_rows = 0

    def count(self, chunk: Chunk, missed: Missed) -> list[tuple[Cause, int]]:
        """Count accepted events that were not metered. Return each new cause to announce, with its first event."""
        found: list[tuple[Cause, int]] = []
        causes = list(missed.causes)
        # The order of arrival decides which names fit into the bounds.
        for group in _group_rows(missed.cause, chunk.at[missed.event]):
            first = int(missed.event[group.first])
            name = chunk.names[chunk.customer[first]]
            cause = causes[group.label] = self._bound_cause(name, causes[group.label])
            if ("", cause) not in self.rows and cause.is_announced:
                found.append((cause, first))
            self._add(("", cause), _build_row(chunk, missed, group))
        self._count_by_customer(chunk, missed, causes)
        return found

    def _count_by_customer(self, chunk: Chunk, missed: Missed, causes: Sequence[Cause]) -> None:
        """Count the same events by customer, as far as there is room. `causes` are those within the bounds on names."""
        owners = [self._customers.setdefault(cause, set()) for cause in causes]
        pairs = chunk.customer[missed.event] * len(causes) + missed.cause
        for group in _group_rows(pairs, chunk.at[missed.event]):
            customer, cause = divmod(group.label, len(causes))
            name, known = chunk.names[customer], owners[cause]
            has_room = len(known) < CUSTOMERS_OF_ONE_CAUSE and self._customer_rows < CUSTOMER_ROWS_MAX
            if name in known or has_room:
                self._add((name, causes[cause]), _build_row(chunk, missed, group))

    def _bound_cause(self, customer: str, cause: Cause) -> Cause:
        """Return the cause itself, or the cause of OTHER names if it is new and there are too many."""
        if cause.reason != "unknown_name" or ("", cause) in self.rows:
            return cause
        is_full = self._names >= NAMES_MAX or self._names_of.get(customer, 0) >= NAMES_OF_ONE
        return cause._replace(name=OTHER) if is_full else cause

    def _add(self, key: Key, row: UnmeteredRow) -> None:
        known = self.rows.get(key)
        if known is None:
            self._start_row(key, row)
        else:
            known.events += row.events
            known.first_at = min(known.first_at, row.first_at)
            known.last_at = max(known.last_at, row.last_at)
            known.customer, known.event_id = row.customer, row.event_id
        self._unsent[key] = self._unsaved[key] = None

    def _start_row(self, key: Key, row: UnmeteredRow) -> None:
        self.rows[key] = row
        customer, cause = key
        if customer:
            self._customers.setdefault(cause, set()).add(customer)
            self._customer_rows += 1
        elif cause.reason == "unknown_name" and cause.name != OTHER:
            self._names += 1
            self._names_of[row.first_customer] = self._names_of.get(row.first_customer, 0) + 1

    def drain_notes(self, shard: int, *, all: bool = False) -> list[Note]:
        """Return the rows that changed since they were last returned, as notes: NOTES_AT_ONCE of them, or all."""
        keys = list(self._unsent)[: None if all else NOTES_AT_ONCE]
        for key in keys:
            del self._unsent[key]
        return [_build_note(shard, *key, self.rows[key]) for key in keys]

    @property
    def is_behind(self) -> bool:
        """Whether `drain_notes` has more to return."""
        return bool(self._unsent)

    def republish(self) -> None:
        """Mark every row as changed, for a store that may have lost some."""
        self._unsent = dict.fromkeys(self.rows)

    def drain_saved(self, *, whole: bool) -> list[SavedRow]:
        """Return the rows that changed since they were last returned, or all, for a snapshot."""
        keys: Iterable[Key] = self.rows if whole else self._unsaved
        found = [SavedRow(*key, self.rows[key]) for key in keys]
        self._unsaved = {}
        return found

    def restore(self, saved: Iterable[SavedRow]) -> None:
        """Restore rows of snapshots, oldest first, and mark them all as changed, as they may not have been written."""
        for one in saved:
            key = one.customer, one.cause
            if key in self.rows:
                self.rows[key] = one.row
            else:
                self._start_row(key, one.row)
        self.republish()


class _Group(NamedTuple):
    """Rows of one label: how many, the first and last of them, and their earliest and latest time."""

    label: int
    events: int
    first: int
    last: int
    first_at: int
    last_at: int


def _group_rows(labels: Ints, at: Ints) -> Iterator[_Group]:
    """Yield the rows of each label, in order of its first row."""
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


def _build_row(chunk: Chunk, missed: Missed, group: _Group) -> UnmeteredRow:
    first, last = int(missed.event[group.first]), int(missed.event[group.last])
    names, customer = chunk.names, chunk.customer
    id = read_identity(chunk.payload(last)).id[:ID_SHOWN]
    return UnmeteredRow(
        names[customer[first]], group.events, group.first_at, group.last_at, names[customer[last]], id
    )


def build_unmetered_alert(cause: Cause, at: int) -> Alert:
    """Return the alert for a cause that is new to a shard, whose first event has the time `at`.

    All shards give the same alert for a cause, also in a replay in which another event comes first; only the time is
    that of the event. The alert therefore names no customer and no event: the rows have samples.
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
        text=f"An event is {'only partly' if cause.partly else 'not'} metered: {describe_cause(cause)}",
    )


def describe_cause(cause: Cause) -> str:
    """Return the cause in a sentence, also for the names past the bounds."""
    if cause.reason == "unknown_name" and cause.name == OTHER:
        return (
            "no meter takes events of its name; there are so many such names that these are counted together"
        )
    return str(cause)


def _build_note(shard: int, customer: str, cause: Cause, row: UnmeteredRow) -> Note:
    fields = {
        "event_name": cause.name,
        "reason": cause.reason,
        "meter": cause.meter,
        "key": cause.key,
        "partly": cause.partly,
        "events": row.events,
        "first_at": format_instant(row.first_at),
        "last_at": format_instant(row.last_at),
        "customer": row.customer,
        "event_id": row.event_id,
    }
    id = msgspec.json.encode([shard, customer, *cause]).decode()
    kind = BY_CUSTOMER if customer else BY_CAUSE
    return Note(kind, id, customer, row.last_at, msgspec.json.encode(fields))
