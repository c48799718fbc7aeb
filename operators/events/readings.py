"""Readings: the properties that meters need, decoded name by name, and what the meters read, gathered into columns."""

import re
from decimal import Decimal, InvalidOperation
from functools import cache
from itertools import compress
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, DecodeError

from tidegate.operators.columns.quantity import QUANTITY_MAX, to_limb_columns, to_limbs
from tidegate.operators.events.chunk import NO_READINGS, Ints, Readings, concatenate_limbs
from tidegate.operators.events.filters import Columns, Predicate, compile_filter, digest_unique, keys_of
from tidegate.operators.events.unmetered import NOTHING_UNREAD, Unread, find_unmetered_reason, is_number
from tidegate.operators.model.aggregates import AGGREGATES, Kind
from tidegate.operators.model.catalog import Meter
from tidegate.operators.model.numbers import OutOfRangeNumber, read_number


class Feed(NamedTuple):
    """One meter of an event name: its place in the catalog, its kind, and what it reads.

    `takes_text` says that it reads texts that are numbers.
    """

    meter: int
    kind: Kind
    key: str
    passes: Predicate | None
    takes_text: bool = False


class NameReader:
    """The meters of one event name, and a decoder for exactly the properties that they read.

    msgspec skips all other properties in C, and one `attrgetter` returns a column of values.
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
        # A struct cannot have members with quotes, backslashes or control characters; those are decoded one by one.
        self._is_plain = not any(map(_UNPLAIN.search, fields))
        self._properties = msgspec.defstruct(
            "Properties",
            [(field, Any, UNSET) for field in fields.values()],
            rename={field: key for key, field in fields.items()} if self._is_plain else None,
            gc=False,
        )
        self._fast = msgspec.json.Decoder(self._properties, float_hook=Decimal)
        self._fields = fields

    def decode_properties(self, raws: list[msgspec.Raw]) -> list[Any]:
        """Return the properties of each event; None if its data is not an object."""
        if not self._is_plain:
            return list(map(self._decode_one, raws))
        try:
            # msgspec decodes consecutive values as lines, wherever the line breaks are.
            found = self._fast.decode_lines(b"\n".join(raws))
        except (DecodeError, RecursionError, InvalidOperation):
            found = []
        return found if len(found) == len(raws) else list(map(self._decode_one, raws))

    def _decode_one(self, raw: msgspec.Raw) -> Any:
        """Decode the members one by one, for null, numbers out of range, and data that is not an object."""
        try:
            members = _MEMBERS.decode(b"{}" if bytes(raw) == b"null" else raw)
        except (DecodeError, RecursionError):
            return None
        found = {f: decode_value(members[key]) for key, f in self._fields.items() if key in members}
        return self._properties(**found)

    def build_columns(self, properties: list[Any]) -> Columns:
        """Return a function that gathers columns of these events' properties, each once."""
        return cache(lambda key: list(map(self._getters[key], properties)))


def decode_value(raw: msgspec.Raw) -> Any:
    """Return a JSON value, numbers as int or Decimal."""
    try:
        return _ANY.decode(raw)
    except (DecodeError, RecursionError):
        # The integer is longer than Python reads, or a list is nested too deeply, which no meter reads anyway.
        text = bytes(raw)
        return read_number(text.decode()) if text[:1] in b"-0123456789" else []


def to_number(value: Any) -> Any:
    """Return the number that a text is in JSON's notation; return any other value unchanged."""
    return decode_value(msgspec.Raw(value.encode())) if type(value) is str and is_number(value) else value


_UNPLAIN = re.compile(r'["\\\x00-\x1f]')
_ANY = msgspec.json.Decoder(float_hook=read_number)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ReadingsBuilder:
    """Collects what meters read. `wrong` has the reason and an explanation for events that turn out to be rejects."""

    def __init__(self) -> None:
        self.wrong: dict[int, tuple[str, str]] = {}
        self._event: list[Ints] = []
        self._meter: list[Ints] = []
        self._limbs: list[tuple[Ints, Ints | None, Ints | None]] = []
        self._unique: list[list[bytes]] = []
        self._unread: list[tuple[Ints, int, Ints]] = []

    def refuse(self, events: Ints, properties: list[Any]) -> Ints:
        """Mark the events without properties as wrong, and return the others."""
        missing = np.fromiter((found is None for found in properties), np.bool_, len(events))
        wrong = ("data_not_object", "data: needs an object, got something else")
        self.wrong.update(dict.fromkeys(events[missing].tolist(), wrong))
        return events[~missing]

    def read(self, feed: Feed, events: Ints, columns: Columns) -> None:
        """Add what one meter reads from these events; `columns` returns their properties."""
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
            values = list(map(to_number, values))
        # Compared by type, because a boolean is an int in Python and not a number to a meter.
        types = set(map(type, values))
        if types == {int} and (whole := _to_whole_column(values)) is not None:
            self._add(feed, events, (whole, None, None))
        elif types <= {int, Decimal} and (limbs := to_limb_columns(values)):
            self._add(feed, events, limbs)
        else:
            self._read_numbers(feed, events, values)

    def _read_numbers(self, feed: Feed, events: Ints, values: list[Any]) -> None:
        read: list[int] = []
        parts: list[tuple[int, int, int]] = []
        for i, value in enumerate(values):
            if type(value) in _NUMBERS:
                try:
                    parts.append(to_limbs(value))
                    read.append(i)
                except ValueError as error:
                    self.wrong.setdefault(int(events[i]), ("quantity_out_of_range", f"{feed.key}: {error}"))
        self._miss(feed, events, values, read)
        if read:
            hi, mid, lo = np.array(parts, np.int64).T
            self._add(feed, events[read], (hi, mid, lo))

    def _read_unique(self, feed: Feed, events: Ints, values: list[Any]) -> None:
        digests = list(map(digest_unique, values))
        read = [i for i, digest in enumerate(digests) if digest is not None]
        self._miss(feed, events, values, read)
        if read:
            self._add(feed, events[read], (np.ones(len(read), np.int64), None, None))
            self._unique[-1] = [digest for digest in digests if digest is not None]

    def _miss(self, feed: Feed, events: Ints, values: list[Any], read: list[int]) -> None:
        if len(read) == len(events):
            return
        missed = np.delete(np.arange(len(events)), read)
        reasons = [find_unmetered_reason(feed.kind, values[i]) for i in missed.tolist()]
        self._unread.append((events[missed], feed.meter, np.array(reasons, np.int64)))

    def _add(self, feed: Feed, events: Ints, quantity: tuple[Ints, Ints | None, Ints | None]) -> None:
        self._event.append(events)
        self._meter.append(np.full(len(events), feed.meter, np.int64))
        self._limbs.append(quantity)
        self._unique.append([])

    def build_readings(self) -> Readings:
        """Return all readings, meter after meter."""
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
            concatenate_limbs(mids, his),
            concatenate_limbs(los, his),
            np.concatenate(places),
            digests[0::2],
            digests[1::2],
        )

    def build_unread(self) -> Unread:
        """Return the values that meters found and could not read."""
        if not self._unread:
            return NOTHING_UNREAD
        events, meters, reasons = zip(*self._unread, strict=True)
        sizes = list(map(len, events))
        meter = np.repeat(np.array(meters, np.int64), sizes)
        return Unread(np.concatenate(events), meter, np.concatenate(reasons))


def _to_whole_column(values: list[int]) -> Ints | None:
    """Return integers as a column; None if one is out of bounds."""
    try:
        column = np.array(values, np.int64)
    except OverflowError:
        return None
    return column if column.min() >= 0 and column.max() <= QUANTITY_MAX else None


# Compared by exact type, because a boolean is an int in Python.
_NUMBERS = (int, Decimal, OutOfRangeNumber)
