"""Readings gathered meter by meter from the events of a piece, into columns."""

from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from operators.chunk import NO_READINGS, Ints, Readings
from operators.matching import Predicate, unique_digest
from operators.quantity import QUANTITY_MAX, limb_columns, limbs


class Feed(NamedTuple):
    """One meter as it takes events of a name: its place in the catalog, its kind, what it reads."""

    meter: int
    kind: str
    key: str
    passes: Predicate | None


class Gathered:
    """Collects what meters read. `wrong` maps an event to why its quantity is out of bounds."""

    def __init__(self) -> None:
        self.wrong: dict[int, str] = {}
        self._event: list[Ints] = []
        self._meter: list[Ints] = []
        self._limbs: list[tuple[Ints, Ints | None, Ints | None]] = []
        self._unique: list[list[bytes]] = []
        self._unread: list[tuple[Ints, int]] = []

    def read(self, feed: Feed, events: Ints, properties: list[dict[str, Any]]) -> None:
        """Adds what one meter reads from these events."""
        if feed.passes is not None:
            passed = list(map(feed.passes, properties))
            events = events[passed]
            properties = [p for p, taken in zip(properties, passed, strict=True) if taken]
        if not len(events):
            return
        if feed.kind == "count":
            self._add(feed, events, (np.ones(len(events), np.int64), None, None))
            return
        key = feed.key
        values = [p.get(key) for p in properties]
        if feed.kind == "unique":
            self._read_unique(feed, events, values)
        else:
            # By type, as a boolean is an int in Python and no number on a meter.
            types = set(map(type, values))
            if types == {int} and 0 <= min(values) and max(values) <= QUANTITY_MAX:
                self._add(feed, events, (np.array(values, np.int64), None, None))
            elif types <= {int, Decimal} and (columns := limb_columns(values)):
                self._add(feed, events, columns)
            else:
                self._read_numbers(feed, events, values)

    def _read_numbers(self, feed: Feed, events: Ints, values: list[Any]) -> None:
        read: list[int] = []
        parts: list[tuple[int, int, int]] = []
        for i, value in enumerate(values):
            if type(value) is int or type(value) is Decimal:
                try:
                    parts.append(limbs(value))
                    read.append(i)
                except ValueError as error:
                    self.wrong.setdefault(int(events[i]), f"{feed.key}: {error}")
        self._miss(feed, events, read)
        if read:
            hi, mid, lo = np.array(parts, np.int64).T
            self._add(feed, events[read], (hi, mid, lo))

    def _read_unique(self, feed: Feed, events: Ints, values: list[Any]) -> None:
        digests = list(map(unique_digest, values))
        read = [i for i, digest in enumerate(digests) if digest is not None]
        self._miss(feed, events, read)
        if read:
            self._add(feed, events[read], (np.ones(len(read), np.int64), None, None))
            self._unique[-1] = [digest for digest in digests if digest is not None]

    def _miss(self, feed: Feed, events: Ints, read: list[int]) -> None:
        if len(read) < len(events):
            self._unread.append((np.delete(events, read), feed.meter))

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
        fractions = any(mid is not None for mid in mids)
        zeros = [np.zeros(len(hi), np.int64) if mid is None else None for hi, mid in zip(his, mids, strict=True)]
        digests = np.frombuffer(b"".join(d for group in self._unique for d in group), np.uint64)
        starts = np.cumsum([0, *map(len, his)])
        places = [np.arange(s, s + len(u)) for s, u in zip(starts.tolist(), self._unique, strict=False)]
        return Readings(
            np.concatenate(self._event),
            np.concatenate(self._meter),
            np.concatenate(his),
            _filled(mids, zeros) if fractions else None,
            _filled(los, zeros) if fractions else None,
            np.concatenate(places),
            digests[0::2],
            digests[1::2],
        )

    def unread(self) -> tuple[Ints, Ints]:
        """Events and meters of what was no number."""
        if not self._unread:
            return _NONE, _NONE
        events, meters = zip(*self._unread, strict=True)
        sizes = list(map(len, events))
        return np.concatenate(events), np.repeat(np.array(meters, np.int64), sizes)


def _filled(limbs: tuple[Ints | None, ...], zeros: list[Ints | None]) -> Ints:
    return np.concatenate([z if limb is None else limb for limb, z in zip(limbs, zeros, strict=True)])  # type: ignore[misc]


_NONE = np.empty(0, np.int64)
