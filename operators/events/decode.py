"""Decode a poll's bytes into chunks: decode, validate, match and route, a thousand events at a time.

The fast path decodes a piece of lines in one msgspec call and works on columns. A piece with anything unusual is read
line by line, and an event with anything unusual is judged field by field (operators/events/validate.py); all of them
end in the same columns. Properties stay bytes until the meters of the event's name decode exactly those that they read.
Numbers become int or Decimal, never floats.
"""

from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, DecodeError, UnsetType
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128_digest

from tidegate.operators.columns.grouping import find_distinct
from tidegate.operators.events import rfc3339
from tidegate.operators.events.chunk import Chunk, Columns, Ints, Reject
from tidegate.operators.events.customers import Customers
from tidegate.operators.events.keys import ID_SEED, digest_source
from tidegate.operators.events.readings import NameReader, ReadingsBuilder
from tidegate.operators.events.split import join_columns, split_by_shard
from tidegate.operators.events.unmetered import Names, find_missed
from tidegate.operators.events.validate import ID_MAX, NAME_MAX, NO_DATA, Fields, judge
from tidegate.operators.model.catalog import Catalog, Meter
from tidegate.operators.model.periods import MAX_AT
from tidegate.operators.model.ports import Payloads

Clock = Literal["event", "wall"]

PIECE_BYTES = 1 << 19  # two thousand events: msgspec slows down on pieces that outgrow the cache
_REMEMBERED_NAMES = 100_000

_SPREAD = np.uint64(0x9E3779B97F4A7C15)


class _Event(msgspec.Struct, gc=False):
    """Both event forms at once. Absent fields are empty, and an event with empty fields is judged separately."""

    specversion: str | UnsetType = UNSET
    id: str = ""
    source: str = ""
    type: str = ""
    subject: str = ""
    time: str = ""
    data: msgspec.Raw = NO_DATA
    # An event with a value here fails to decode, so it is judged field by field.
    data_base64: None = None
    event_id: str | UnsetType = UNSET
    customer_id: str = ""
    event_name: str = ""
    timestamp: str | None = None
    metadata: msgspec.Raw = NO_DATA


_BLANK = _Event()
_PLACEHOLDER = Fields("-", "", "-", "-", 0, NO_DATA)


class Decoder:
    """Turns polls into chunks under one catalog. Bad input becomes rejects, never an exception.

    `number` is the catalog's, and `customers` are those of the decoder that this one replaces.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        shards: int,
        clock: Clock,
        future: timedelta = timedelta(minutes=5),
        payload_bytes_max: int = 1 << 20,
        number: int = 0,
        customers: Customers | None = None,
    ) -> None:
        self._future = int(future / timedelta(microseconds=1)) if clock == "wall" else None
        self._payload_bytes_max = payload_bytes_max
        self.customers = customers or Customers(shards)
        self._number = number
        self._sources: dict[str | None, bytes] = {}
        self._meters = catalog.meters
        self._refuses_unmetered = catalog.on_unmetered == "dead_letter"
        meters: dict[str, list[tuple[int, Meter]]] = {}
        for place, meter in enumerate(catalog.meters):
            meters.setdefault(meter.event_name, []).append((place, meter))
        # Names that feed no meter all have number 0.
        self._numbers = {name: number for number, name in enumerate(meters, 1)}
        self._names = [NameReader("", []), *(NameReader(name, fed) for name, fed in meters.items())]
        self._codes: dict[str, int] = {}
        self._number_of = np.zeros(64, np.int64)
        self._hash_of = np.zeros(64, np.uint64)
        self._event_decoder = msgspec.json.Decoder(_Event, float_hook=Decimal)
        self._array_decoder = msgspec.json.Decoder(list[msgspec.Raw])

    def decode(self, payloads: Payloads) -> list[tuple[int, Chunk]]:
        """Return one chunk for each shard that the poll has events or rejects for."""
        rejects: list[Reject] = []
        columns = []
        for start, end in _split_pieces(payloads.block):
            events, starts, ends = self._decode_piece(payloads.block, start, end, rejects)
            if events:
                columns.append(self._build_columns(events, starts, ends, payloads, rejects))
        chunks = split_by_shard(join_columns(columns), rejects, payloads, self.customers)
        for _, chunk in chunks:
            chunk.catalog = self._number
        return chunks

    def _decode_piece(
        self, block: bytes, start: int, end: int, rejects: list[Reject]
    ) -> tuple[list[_Event], Ints, Ints]:
        """Return the events of a piece, and where each begins and ends in the block."""
        piece = block[start:end]
        chars = np.frombuffer(piece, np.uint8)
        breaks = np.flatnonzero(chars == ord("\n"))
        starts = np.concatenate(([0], breaks + 1))
        ends = np.concatenate((breaks, [len(piece)]))
        if starts[-1] == ends[-1]:
            starts, ends = starts[:-1], ends[:-1]
        ends = ends - ((chars[ends - 1] == ord("\r")) & (ends > starts))
        if self._is_plain(piece, chars, starts, ends):
            try:
                events = self._event_decoder.decode_lines(piece)
            except (DecodeError, RecursionError, InvalidOperation):
                events = []
            # There are as many values as lines, and each line runs from { to }, so each line is one value.
            if len(events) == len(starts):
                return events, starts + start, ends + start
        return self._decode_lines(block, starts + start, ends + start, rejects)

    def _is_plain(self, piece: bytes, chars: NDArray[np.uint8], starts: Ints, ends: Ints) -> bool:
        sizes = ends - starts
        if not len(sizes) or sizes.min() < 2 or sizes.max() > self._payload_bytes_max:
            return False
        braced = (chars[starts] == ord("{")).all() and (chars[ends - 1] == ord("}")).all()
        return bool(braced) and _is_utf8(piece)

    def _decode_lines(
        self, block: bytes, starts: Ints, ends: Ints, rejects: list[Reject]
    ) -> tuple[list[_Event], Ints, Ints]:
        events: list[_Event] = []
        bounds: list[tuple[int, int]] = []
        for first, end in zip(starts.tolist(), ends.tolist(), strict=True):
            line = block[first:end].removeprefix(BOM_UTF8).lstrip(_SPACE)
            start = end - len(line)
            line = line.rstrip(_SPACE)
            if len(line) > self._payload_bytes_max:
                detail = f"needs at most {self._payload_bytes_max} bytes, got {len(line)}"
                rejects.append(Reject("too_large", detail, line))
            elif line.startswith(b"["):
                for raw, offset in self._split_array(line, rejects):
                    events.append(self._decode_event(raw))
                    bounds.append((start + offset, start + offset + len(raw)))
            elif line:
                events.append(self._decode_event(line))
                bounds.append((start, start + len(line)))
        limits = np.array(bounds, np.int64).reshape(-1, 2)
        return events, limits[:, 0], limits[:, 1]

    def _decode_event(self, raw: bytes) -> _Event:
        """Return the event, or a blank one, which is always judged, if it is not plainly an event."""
        try:
            return self._event_decoder.decode(raw) if _is_utf8(raw) else _BLANK
        except (DecodeError, RecursionError, InvalidOperation):
            return _BLANK

    def _split_array(self, line: bytes, rejects: list[Reject]) -> Iterator[tuple[bytes, int]]:
        """Yield each element of a JSON array as bytes, and where it begins in the line."""
        try:
            line.decode()
            elements = self._array_decoder.decode(line)
        except (ValueError, RecursionError) as error:
            rejects.append(Reject("not_json", str(error), line))
            return
        position = 0
        for element in elements:
            raw = bytes(element)
            position = line.index(raw, position)
            yield raw, position
            position += len(raw)

    def _build_columns(
        self, events: list[_Event], starts: Ints, ends: Ints, payloads: Payloads, rejects: list[Reject]
    ) -> Columns:
        if len(self._codes) > _REMEMBERED_NAMES:
            self._codes = {}
        # The lists are as long as `events`; None in one of them marks an event that is judged separately.
        customers, sources, ids, names, stamps, data = _to_lists(events)
        at = rfc3339.parse_column(stamps)
        taken = self._find_taken(payloads, starts)
        latest = self._find_latest(payloads, taken)
        odd = (at == rfc3339.INVALID) | (at > latest)
        if "" in ids or max(map(len, ids)) > ID_MAX:
            odd |= np.fromiter((not 0 < len(id) <= ID_MAX for id in ids), np.bool_, len(ids))
        numbers = self._number_customers(customers)
        known_sources = _look_up(self._sources, sources, self._digest_source)
        known_names = _look_up(self._codes, names, self._number_name)
        for column in (numbers, known_sources, known_names):
            if None in column:
                odd |= np.fromiter((found is None for found in column), np.bool_, len(column))

        kept = np.ones(len(events), np.bool_)
        for i in np.flatnonzero(odd).tolist():
            judged = judge(
                payloads.block[starts[i] : ends[i]],
                payloads.time_of(starts[i]),
                latest if isinstance(latest, int) else int(latest[i]),
            )
            if isinstance(judged, Reject):
                rejects.append(judged)
                kept[i] = False
                judged = _PLACEHOLDER
            numbers[i] = self._number_customers([judged.customer])[0]
            known_sources[i] = self._digest_source(judged.source)
            known_names[i] = self._number_name(judged.name)
            names[i], ids[i], at[i], data[i] = judged.name, judged.id, judged.at, judged.data

        code = np.array(known_names, np.int64)
        # The digest is the integer's bytes, from which a column is built faster than from integers.
        content = (
            np.frombuffer(b"".join(map(xxh3_64_digest, data)), ">u8").astype(np.uint64) ^ self._hash_of[code]
        )
        mark = ((content * _SPREAD) >> np.uint64(32)).astype(np.uint32)
        customer = np.array(numbers, np.int64)
        digest = self.customers.digest[customer] ^ _to_words(known_sources)
        digest ^= _to_words([xxh3_128_digest(id.encode(), ID_SEED) for id in ids])
        number = self._number_of[code]
        gathered = self._gather_readings(number, data, kept)
        for event, (reason, detail) in gathered.wrong.items():
            kept[event] = False
            rejects.append(Reject(reason, detail, payloads.block[starts[event] : ends[event]]))
        readings, unread = gathered.build_readings(), gathered.build_unread()
        missed = find_missed(kept, readings.event, unread, Names(names, code, number), self._meters)
        if self._refuses_unmetered:
            for event, cause in missed.list_unmetered():
                kept[event] = False
                rejects.append(Reject("unmetered", str(cause), payloads.block[starts[event] : ends[event]]))
        columns = Columns(customer, digest, mark, at, starts, ends, readings, unread, missed, taken)
        return columns if kept.all() else columns.keep(kept)

    def _find_taken(self, payloads: Payloads, starts: Ints) -> Ints | None:
        """Return when the transport took each event; None if that is the same for all, or does not matter."""
        if self._future is None or payloads.times_of is None:
            return None
        taken = payloads.times_of(starts)
        return np.where(taken > 0, taken, payloads.received_at)

    def _find_latest(self, payloads: Payloads, taken: Ints | None) -> Ints | int:
        """Return the latest time that an event may have, for all events or for each."""
        if self._future is None:
            return MAX_AT
        if taken is not None:
            return taken + self._future
        return (payloads.transport_time or payloads.received_at) + self._future

    def _gather_readings(
        self, name: Ints, data: list[msgspec.Raw], kept: NDArray[np.bool_]
    ) -> ReadingsBuilder:
        """Return what the meters read, name by name."""
        gathered = ReadingsBuilder()
        for number in find_distinct(name):
            events = np.flatnonzero((name == number) & kept)
            properties = self._names[number].decode_properties([data[i] for i in events.tolist()])
            if None in properties:
                events = gathered.refuse(events, properties)
                properties = [found for found in properties if found is not None]
            columns = self._names[number].build_columns(properties)
            for feed in self._names[number].feeds:
                gathered.read(feed, events, columns)
        return gathered

    def _number_customers(self, customers: list[str]) -> list[int | None]:
        """Return the number of each customer; None if the text cannot be a customer."""
        known = self.customers.number
        numbers = list(map(known.get, customers))
        if None in numbers:
            new = [i for i, number in enumerate(numbers) if number is None]
            self.customers.add(customers[i] for i in new if 0 < len(customers[i]) <= NAME_MAX)
            for i in new:
                numbers[i] = known.get(customers[i])
        return numbers

    def _digest_source(self, source: str | None) -> bytes | None:
        if source is None or len(source) > ID_MAX:
            return None
        known = self._sources.get(source)
        if known is None:
            if len(self._sources) >= _REMEMBERED_NAMES:
                self._sources = {}
            known = self._sources[source] = digest_source(source)
        return known

    def _number_name(self, name: str | None) -> int | None:
        if not name or len(name) > NAME_MAX:
            return None
        code = self._codes.get(name)
        if code is None:
            code = len(self._codes)
            if code == len(self._number_of):
                self._number_of = np.resize(self._number_of, 2 * code)
                self._hash_of = np.resize(self._hash_of, 2 * code)
            self._number_of[code] = self._numbers.get(name, 0)
            self._hash_of[code] = xxh3_64_intdigest(name.encode())
            self._codes[name] = code
        return code


_SPACE = b" \t\r\n"


def _split_pieces(block: bytes) -> Iterator[tuple[int, int]]:
    """Yield the bounds of pieces of whole lines, about `PIECE_BYTES` each."""
    start = 0
    while start < len(block):
        end = block.find(b"\n", min(start + PIECE_BYTES, len(block)) - 1) + 1 or len(block)
        yield start, end
        start = end


def _is_utf8(raw: bytes) -> bool:
    # msgspec checks only the texts that it returns, not those that it skips.
    if raw.isascii():
        return True
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _to_lists(
    events: list[_Event],
) -> tuple[list[str], list[str | None], list[str], list[str], list[str], list[msgspec.Raw]]:
    """Return customers, sources, ids, names, times and properties. An invalid source is None."""
    if {event.specversion for event in events} == {"1.0"}:
        sources: list[str | None] = [event.source for event in events]
        if "" in sources:
            sources = [source or None for source in sources]
        return (
            [event.subject for event in events],
            sources,
            [event.id for event in events],
            [event.type for event in events],
            [event.time for event in events],
            [event.data for event in events],
        )
    customers, sources, ids, names, stamps, data = map(list, zip(*map(_read_fields, events), strict=True))
    return customers, sources, ids, names, stamps, data


def _read_fields(event: _Event) -> tuple[str, str | None, str, str, str, msgspec.Raw]:
    if event.specversion == "1.0":
        return event.subject, event.source or None, event.id, event.type, event.time, event.data
    if event.specversion is UNSET and isinstance(event.event_id, str):
        stamp = event.timestamp or ""
        return event.customer_id, "", event.event_id, event.event_name, stamp, event.metadata
    return "", None, "", "", "", NO_DATA


def _look_up(known: dict[Any, Any], values: list[Any], learn: Callable[[Any], Any]) -> list[Any]:
    """Return the known value for each key, and call `learn` for new keys."""
    found = list(map(known.get, values))
    if None in found:
        for i, one in enumerate(found):
            if one is None:
                found[i] = learn(values[i])
    return found


def _to_words(digests: list[Any]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
