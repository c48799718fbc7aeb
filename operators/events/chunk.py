"""A chunk: the events of one shard from one poll, in columns, as they pass from worker to worker.

An event costs a few dozen bytes here instead of a tree of objects, and a chunk pickles as a handful of byte strings,
with numbers in as few bytes as they need. The events' own bytes are offsets into the poll's block; they are cut out of
it only when a chunk leaves its process.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.events.unmetered import Missed, Unread

Ints = NDArray[np.int64]


class Reject(NamedTuple):
    """An event that cannot be metered: a reason code of docs/semantics.md, an explanation, and its own bytes."""

    reason: str
    detail: str
    payload: bytes


class Readings(NamedTuple):
    """The readings of a chunk's events by meters, in order of arrival; one row per event and meter.

    `event` counts from the chunk's first event, `meter` from the catalog's first meter. Quantities are limbs
    (operators/columns/quantity.py), `mid` and `lo` None if all are whole. `unique_at` are the rows of `unique` meters
    and `unique_lo`, `unique_hi` their values' digests.
    """

    event: Ints
    meter: Ints
    hi: Ints
    mid: Ints | None
    lo: Ints | None
    unique_at: Ints
    unique_lo: NDArray[np.uint64]
    unique_hi: NDArray[np.uint64]


class Columns(NamedTuple):
    """Events in order of arrival, before they are split by shard.

    `customer` is the customer's number (`Customers`), `digest` the identity in two words, `starts` and `ends` are
    offsets into the poll's block, `taken` is None if it is the same for the whole poll; the rest is as in `Chunk`.
    """

    customer: Ints
    digest: NDArray[np.uint64]
    mark: NDArray[np.uint32]
    at: Ints
    starts: Ints
    ends: Ints
    readings: Readings
    unread: Unread
    missed: Missed
    taken: Ints | None = None

    def keep(self, kept: NDArray[np.bool_]) -> "Columns":
        """Return the marked events with their readings."""
        readings, place = self.readings, np.cumsum(kept) - 1
        return Columns(
            self.customer[kept],
            self.digest[kept],
            self.mark[kept],
            self.at[kept],
            self.starts[kept],
            self.ends[kept],
            select_readings(readings, np.flatnonzero(kept[readings.event]), place),
            self.unread.keep(kept, place),
            self.missed.keep(kept, place),
            None if self.taken is None else self.taken[kept],
        )


class Chunk:
    """Events of one shard, in order of arrival.

    `names` lists customers and `customer` indexes it; if `shared`, it is the one growing list that all chunks of this
    shard and process share. `digest_lo` and `digest_hi` are the identities, `mark` is a fingerprint of name and data,
    `at` is µs since the epoch. `catalog` is the number of the catalog whose meters read the events. `unread` says which
    meters found a value that they could not read, `missed` why events were not metered, wholly or partly. `starts` and
    `ends` are offsets into `block`. `stream` names the partition that the events came from, `taken` when its transport
    took them (µs since the epoch), per event or for all.
    """

    __slots__ = (
        "at",
        "block",
        "catalog",
        "customer",
        "digest_hi",
        "digest_lo",
        "ends",
        "mark",
        "missed",
        "names",
        "position",
        "readings",
        "received_at",
        "rejects",
        "shared",
        "starts",
        "stream",
        "taken",
        "unread",
    )

    def __init__(
        self,
        *,
        names: list[str],
        shared: bool,
        customer: Ints,
        digest_lo: NDArray[np.uint64],
        digest_hi: NDArray[np.uint64],
        mark: NDArray[np.uint32],
        at: Ints,
        readings: Readings,
        unread: Unread,
        missed: Missed,
        block: bytes,
        starts: Ints,
        ends: Ints,
        received_at: int,
        rejects: list[Reject],
        catalog: int = 0,
        stream: str = "",
        taken: Ints | int = 0,
        position: int = 0,
    ) -> None:
        self.catalog = catalog
        self.stream = stream
        self.position = position
        self.taken = taken
        self.names = names
        self.shared = shared
        self.customer = customer
        self.digest_lo = digest_lo
        self.digest_hi = digest_hi
        self.mark = mark
        self.at = at
        self.readings = readings
        self.unread = unread
        self.missed = missed
        self.block = block
        self.starts = starts
        self.ends = ends
        self.received_at = received_at
        self.rejects = rejects

    def __len__(self) -> int:
        return len(self.at)

    def payload(self, event: int) -> bytes:
        """Return the event's own bytes."""
        return self.block[self.starts[event] : self.ends[event]]

    def __reduce__(self) -> tuple[Any, ...]:
        used, customer = np.unique(self.customer, return_inverse=True)
        # Views are used because slices of bytes would be copied twice.
        block, readings = memoryview(self.block), self.readings
        bounds = zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        state = {name: getattr(self, name) for name in self.__slots__}
        state.update(
            names=[self.names[i] for i in used.tolist()],
            shared=False,
            customer=_shrink(customer),
            block=b"".join([block[start:end] for start, end in bounds]),
            # The payloads are contiguous, so each ends where the next one starts.
            starts=None,
            ends=_shrink(self.ends - self.starts),
            readings=readings._replace(
                event=_shrink(readings.event), meter=_shrink(readings.meter), hi=_shrink(readings.hi)
            ),
        )
        return _rebuild, (state,)


def _rebuild(state: dict[str, Any]) -> Chunk:
    sizes, readings = state["ends"].astype(np.int64), state["readings"]
    ends = np.cumsum(sizes)
    widened = {name: getattr(readings, name).astype(np.int64) for name in ("event", "meter", "hi")}
    state.update(starts=ends - sizes, ends=ends, customer=state["customer"].astype(np.int64))
    return Chunk(**{**state, "readings": readings._replace(**widened)})


def _shrink(values: Ints) -> NDArray[Any]:
    """Return the same numbers, which are 0 or more, in as few bytes as they need."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def select_readings(readings: Readings, rows: Ints, place: Ints) -> Readings:
    """Return these rows of the readings, in this order; `place` gives each event its new number."""
    unique = readings.unique_at, readings.unique_lo, readings.unique_hi
    if len(readings.unique_at):
        back = np.full(len(readings.event), -1, np.int64)
        back[rows] = np.arange(len(rows))
        moved = back[readings.unique_at]
        kept = np.flatnonzero(moved >= 0)
        kept = kept[np.argsort(moved[kept], kind="stable")]
        unique = moved[kept], readings.unique_lo[kept], readings.unique_hi[kept]
    return Readings(
        place[readings.event[rows]],
        readings.meter[rows],
        readings.hi[rows],
        None if readings.mid is None else readings.mid[rows],
        None if readings.lo is None else readings.lo[rows],
        *unique,
    )


def concatenate_limbs(limbs: Sequence[Ints | None], like: Sequence[Ints]) -> Ints | None:
    """Return the parts of a limb as one column, zeros for a part without it; None if no part has it."""
    if all(limb is None for limb in limbs):
        return None
    parts = zip(limbs, like, strict=True)
    return np.concatenate([np.zeros(len(hi), np.int64) if limb is None else limb for limb, hi in parts])


_NONE = np.empty(0, np.int64)
_NO_WORDS = np.empty(0, np.uint64)
NO_READINGS = Readings(_NONE, _NONE, _NONE, None, None, _NONE, _NO_WORDS, _NO_WORDS)
