"""What meters read: the properties they need, decoded name by name, and readings gathered into columns."""

import re
from decimal import Decimal, InvalidOperation
from functools import cache
from itertools import compress
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, DecodeError

from tidegate.operators.columns.quantity import QUANTITY_MAX, limb_columns, limbs_of
from tidegate.operators.events.chunk import NO_READINGS, Ints, Readings, concatenated
from tidegate.operators.events.filters import Columns, Predicate, compile_filter, keys_of, unique_digest
from tidegate.operators.events.unmetered import NOTHING_UNREAD, Unread, is_number, reason_of
from tidegate.operators.model.aggregates import AGGREGATES, Kind
from tidegate.operators.model.catalog import Meter
from tidegate.operators.model.numbers import Far, read_number


class Feed(NamedTuple):
    """One meter as it takes events of a name: its place in the catalog, its kind, what it reads.

    `takes_text` says that it reads texts that are numbers.
    """

    meter: int
    kind: Kind
    key: str
    passes: Predicate | None
    takes_text: bool = False


class Name:
    """The meters of one event name, and a decoder for just the properties that they look at.

    What nobody reads is skipped in C, and a column of values is one `attrgetter` away.
    """

    def __init__(self, name: str, meters: list[tuple[int, Meter]]) -> None:
        keys = {meter.key for _, meter in meters if meter.key is not None}
        keys |= {key for _, meter in meters if meter.filter for key in keys_of(meter.filter)}
        fields = {key: f"field_{i}" for i, key in enumerate(sorted(keys))}
        self.feeds = [
            Feed(
                place,
                meter.kind,
                meter.key or "",
                compile_filter(meter.filter) if meter.filter else None,
                meter.numbers == "text",
            )
            for place, meter in meters
        ]
        self._getters = {key: attrgetter(field) for key, field in fields.items()}
        # A struct can't have members with quotes, backslashes or control characters; those are looked up one by one.
        self._is_plain = not any(map(_UNPLAIN.search, fields))
        self._properties = msgspec.defstruct(
            "Properties",
            [(field, Any, UNSET) for field in fields.values()],
            rename={field: key for key, field in fields.items()} if self._is_plain else None,
            gc=False,
        )
        self._fast = msgspec.json.Decoder(self._properties, float_hook=Decimal)
        self._fields = fields

    def properties(self, raws: list[msgspec.Raw]) -> list[Any]:
        """The properties of each event; None where its data is not an object."""
        if not self._is_plain:
            return list(map(self._one, raws))
        try:
            # Values one after another are lines to msgspec, wherever line breaks stand.
            found = self._fast.decode_lines(b"\n".join(raws))
        except (DecodeError, RecursionError, InvalidOperation):
            found = []
        return found if len(found) == len(raws) else list(map(self._one, raws))

    def _one(self, raw: msgspec.Raw) -> Any:
        """Member by member, for what the fast way refuses: null, numbers out of reach, and no object at all."""
        try:
            members = _MEMBERS.decode(b"{}" if bytes(raw) == b"null" else raw)
        except (DecodeError, RecursionError):
            return None
        found = {f: value_of(members[key]) for key, f in self._fields.items() if key in members}
        return self._properties(**found)

    def columns(self, properties: list[Any]) -> Columns:
        """Columns of these events' properties, each gathered once."""
        return cache(lambda key: list(map(self._getters[key], properties)))


def value_of(raw: msgspec.Raw) -> Any:
    """Return a JSON value, numbers as int or Decimal."""
    try:
        return _ANY.decode(raw)
    except (DecodeError, RecursionError):
        # Longer than Python reads as an integer; or lists too deep, which no meter reads.
        text = bytes(raw)
        return read_number(text.decode()) if text[:1] in b"-0123456789" else []


def number_of(value: Any) -> Any:
    """The number that a text is, as JSON writes it; any other value as it is."""
    return value_of(msgspec.Raw(value.encode())) if type(value) is str and is_number(value) else value


_UNPLAIN = re.compile(r'["\\\x00-\x1f]')
_ANY = msgspec.json.Decoder(float_hook=read_number)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Gathered:
    """Collects what meters read. `wrong` has the reason and words for events that turn out to be rejects."""

    def __init__(self) -> None:
        self.wrong: dict[int, tuple[str, str]] = {}
        self._event: list[Ints] = []
        self._meter: list[Ints] = []
        self._limbs: list[tuple[Ints, Ints | None, Ints | None]] = []
        self._unique: list[list[bytes]] = []
        self._unread: list[tuple[Ints, int, Ints]] = []

    def refuse(self, events: Ints, properties: list[Any]) -> Ints:
        """Marks the events without properties as wrong; returns the others."""
        missing = np.fromiter((found is None for found in properties), np.bool_, len(events))
        wrong = ("data_not_object", "data: needs an object, got something else")
        self.wrong.update(dict.fromkeys(events[missing].tolist(), wrong))
        return events[~missing]

    def read(self, feed: Feed, events: Ints, columns: Columns) -> None:
        """Adds what one meter reads from these events, of which `columns` has the properties."""
        passed = None
        if feed.passes is not None:
            passed = feed.passes(columns)
            events = events[passed]
        if not len(events):
            return
        if AGGREGATES[feed.kind].reads == "nothing":
            self._add(feed, events, (np.ones(len(events), np.int64), None, None))
            return
        values = columns(feed.key)
        if passed is not None:
            values = list(compress(values, passed.tolist()))
        if AGGREGATES[feed.kind].reads == "value":
            self._read_unique(feed, events, values)
            return
        if feed.takes_text:
            values = list(map(number_of, values))
        # By type, as a boolean is an int in Python and no number on a meter.
        types = set(map(type, values))
        if types == {int} and (whole := _whole_column(values)) is not None:
            self._add(feed, events, (whole, None, None))
        elif types <= {int, Decimal} and (limbs := limb_columns(values)):
            self._add(feed, events, limbs)
        else:
            self._read_numbers(feed, events, values)

    def _read_numbers(self, feed: Feed, events: Ints, values: list[Any]) -> None:
        read: list[int] = []
        parts: list[tuple[int, int, int]] = []
        for i, value in enumerate(values):
            if type(value) in _NUMBERS:
                try:
                    parts.append(limbs_of(value))
                    read.append(i)
                except ValueError as error:
                    self.wrong.setdefault(int(events[i]), ("quantity_out_of_range", f"{feed.key}: {error}"))
        self._miss(feed, events, values, read)
        if read:
            hi, mid, lo = np.array(parts, np.int64).T
            self._add(feed, events[read], (hi, mid, lo))

    def _read_unique(self, feed: Feed, events: Ints, values: list[Any]) -> None:
        digests = list(map(unique_digest, values))
        read = [i for i, digest in enumerate(digests) if digest is not None]
        self._miss(feed, events, values, read)
        if read:
            self._add(feed, events[read], (np.ones(len(read), np.int64), None, None))
            self._unique[-1] = [digest for digest in digests if digest is not None]

    def _miss(self, feed: Feed, events: Ints, values: list[Any], read: list[int]) -> None:
        if len(read) == len(events):
            return
        missed = np.delete(np.arange(len(events)), read)
        reasons = [reason_of(feed.kind, values[i]) for i in missed.tolist()]
        self._unread.append((events[missed], feed.meter, np.array(reasons, np.int64)))

    def _add(self, feed: Feed, events: Ints, quantity: tuple[Ints, Ints | None, Ints | None]) -> None:
        self._event.append(events)
        self._meter.append(np.full(len(events), feed.meter, np.int64))
        self._limbs.append(quantity)
        self._unique.append([])

    def readings(self) -> Readings:
        """All readings, meter after meter."""
        if not self._event:
            return NO_READINGS
        his, mids, los = zip(*self._limbs, strict=True)
        digests = np.frombuffer(b"".join(d for group in self._unique for d in group), np.uint64)
        starts = np.cumsum([0, *map(len, his)])
        places = [np.arange(s, s + len(u)) for s, u in zip(starts.tolist(), self._unique, strict=False)]
        return Readings(
            np.concatenate(self._event),
            np.concatenate(self._meter),
            np.concatenate(his),
            concatenated(mids, his),
            concatenated(los, his),
            np.concatenate(places),
            digests[0::2],
            digests[1::2],
        )

    def unread(self) -> Unread:
        """Return what meters found and could not read."""
        if not self._unread:
            return NOTHING_UNREAD
        events, meters, reasons = zip(*self._unread, strict=True)
        sizes = list(map(len, events))
        meter = np.repeat(np.array(meters, np.int64), sizes)
        return Unread(np.concatenate(events), meter, np.concatenate(reasons))


def _whole_column(values: list[int]) -> Ints | None:
    """Integers as a column; None where one is out of bounds."""
    try:
        column = np.array(values, np.int64)
    except OverflowError:
        return None
    return column if column.min() >= 0 and column.max() <= QUANTITY_MAX else None


# By exact type, as a boolean is an int in Python.
_NUMBERS = (int, Decimal, Far)
