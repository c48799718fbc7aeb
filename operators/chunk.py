"""A chunk: the events of one shard from one poll, in columns, as they cross from worker to worker.

An event costs a few dozen bytes here instead of a tree of objects, and a chunk pickles as a handful of byte strings,
numbers in as few bytes as they need. The events' own bytes ride along as offsets into the poll's block; only where a
chunk leaves its process are they cut out of it.
"""

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from operators.keys import customer_digest, shard_of
from operators.ports import Payloads

Ints = NDArray[np.int64]


class Reject(NamedTuple):
    """An event that can't be metered: a reason code from docs/semantics.md, words, and its own bytes."""

    reason: str
    detail: str
    payload: bytes


class Readings(NamedTuple):
    """What meters read from a chunk's events, in order of arrival; one row per event and meter.

    `event` counts from the chunk's first event, `meter` from the catalog's first meter. Quantities are limbs
    (operators/quantity.py), `mid` and `lo` None where all are whole. `unique_at` are the rows of `unique` meters
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
    """Events in order of arrival, before they part for their shards.

    `customer` is the customer's number (`Customers`), `digest` the identity in two words, `starts` and `ends`
    point into the poll's block; the rest is as in `Chunk`.
    """

    customer: Ints
    digest: NDArray[np.uint64]
    mark: NDArray[np.uint32]
    at: Ints
    starts: Ints
    ends: Ints
    readings: Readings
    unread_event: Ints
    unread_meter: Ints

    def keep(self, kept: NDArray[np.bool_]) -> "Columns":
        """The marked events alone, with their readings."""
        readings, place = self.readings, np.cumsum(kept) - 1
        unread = kept[self.unread_event]
        return Columns(
            self.customer[kept],
            self.digest[kept],
            self.mark[kept],
            self.at[kept],
            self.starts[kept],
            self.ends[kept],
            _chosen(readings, np.flatnonzero(kept[readings.event]), place),
            place[self.unread_event[unread]],
            self.unread_meter[unread],
        )


class Customers:
    """Customers by number, with what routing and identity need of each. It grows and never forgets.

    Worker threads of one process share it: numbers are given under a lock, and arrays are replaced, not resized.
    """

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.number: dict[str, int] = {}
        self.names: list[list[str]] = [[] for _ in range(shards)]
        self.shard = np.empty(1024, np.int64)
        self.local = np.empty(1024, np.int64)
        self.digest = np.empty((1024, 2), np.uint64)
        self._lock = Lock()

    def add(self, customers: Iterable[str]) -> None:
        """Gives numbers to those that have none."""
        with self._lock:
            new = [customer for customer in dict.fromkeys(customers) if customer not in self.number]
            if not new:
                return
            first, last = len(self.number), len(self.number) + len(new)
            if last > len(self.shard):
                self.shard = np.resize(self.shard, 2 * last)
                self.local = np.resize(self.local, 2 * last)
                self.digest = np.resize(self.digest, (2 * last, 2))
            digests = b"".join(map(customer_digest, new))
            self.digest[first:last] = np.frombuffer(digests, np.uint64).reshape(-1, 2)
            for number, customer in enumerate(new, first):
                shard = self.shard[number] = shard_of(customer, self.shards)
                self.local[number] = len(self.names[shard])
                self.names[shard].append(customer)
            self.number.update(zip(new, range(first, last), strict=True))


class Chunk:
    """Events of one shard, in order of arrival.

    `names` lists customers and `customer` points into it; while `shared`, it is the one growing list that all
    chunks of this shard and process have. `digest_lo` and `digest_hi` are the identities, `mark` fingerprints
    name, time and data, `at` is µs since the epoch. `catalog` is the number of the catalog that meters were read
    under. `unread_event` and `unread_meter` say which meters found
    nothing that they could read.
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
        "names",
        "readings",
        "received_at",
        "rejects",
        "shared",
        "starts",
        "unread_event",
        "unread_meter",
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
        unread_event: Ints,
        unread_meter: Ints,
        block: bytes,
        starts: Ints,
        ends: Ints,
        received_at: int,
        rejects: list[Reject],
        catalog: int = 0,
    ) -> None:
        self.catalog = catalog
        self.names = names
        self.shared = shared
        self.customer = customer
        self.digest_lo = digest_lo
        self.digest_hi = digest_hi
        self.mark = mark
        self.at = at
        self.readings = readings
        self.unread_event = unread_event
        self.unread_meter = unread_meter
        self.block = block
        self.starts = starts
        self.ends = ends
        self.received_at = received_at
        self.rejects = rejects

    def __len__(self) -> int:
        return len(self.at)

    def payload(self, event: int) -> bytes:
        """The event's own bytes."""
        return self.block[self.starts[event] : self.ends[event]]

    def __reduce__(self) -> tuple[Any, ...]:
        used, customer = np.unique(self.customer, return_inverse=True)
        # Views, as slices of bytes would be copied twice.
        block, readings = memoryview(self.block), self.readings
        bounds = zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        state = {name: getattr(self, name) for name in self.__slots__}
        state.update(
            names=[self.names[i] for i in used.tolist()],
            shared=False,
            customer=_small(customer),
            block=b"".join([block[start:end] for start, end in bounds]),
            # Side by side, each ends where the next one starts.
            starts=None,
            ends=_small(self.ends - self.starts),
            readings=readings._replace(
                event=_small(readings.event), meter=_small(readings.meter), hi=_small(readings.hi)
            ),
        )
        return _rebuilt, (state,)


def _rebuilt(state: dict[str, Any]) -> Chunk:
    sizes, readings = state["ends"].astype(np.int64), state["readings"]
    ends = np.cumsum(sizes)
    widened = {name: getattr(readings, name).astype(np.int64) for name in ("event", "meter", "hi")}
    state.update(starts=ends - sizes, ends=ends, customer=state["customer"].astype(np.int64))
    return Chunk(**{**state, "readings": readings._replace(**widened)})


def _small(values: Ints) -> NDArray[Any]:
    """The same numbers, which are 0 or more, in as few bytes as they need."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def joined(parts: list[Columns]) -> Columns | None:
    """The columns of consecutive pieces as one; None where there are none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    shifts = np.cumsum([0, *(len(part.at) for part in parts[:-1])]).tolist()
    rows = np.cumsum([0, *(len(part.readings.event) for part in parts[:-1])]).tolist()
    readings = [part.readings for part in parts]
    his = [r.hi for r in readings]
    return Columns(
        np.concatenate([part.customer for part in parts]),
        np.concatenate([part.digest for part in parts]),
        np.concatenate([part.mark for part in parts]),
        np.concatenate([part.at for part in parts]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        Readings(
            np.concatenate([r.event + shift for r, shift in zip(readings, shifts, strict=True)]),
            np.concatenate([r.meter for r in readings]),
            np.concatenate(his),
            concatenated([r.mid for r in readings], his),
            concatenated([r.lo for r in readings], his),
            np.concatenate([r.unique_at + shift for r, shift in zip(readings, rows, strict=True)]),
            np.concatenate([r.unique_lo for r in readings]),
            np.concatenate([r.unique_hi for r in readings]),
        ),
        np.concatenate([p.unread_event + shift for p, shift in zip(parts, shifts, strict=True)]),
        np.concatenate([p.unread_meter for p in parts]),
    )


def split(
    columns: Columns | None, rejects: list[Reject], payloads: Payloads, customers: Customers
) -> list[tuple[int, Chunk]]:
    """Events parted by their customer's shard, each shard's in order of arrival, readings too.

    Rejects have no customer that could be trusted; they go to a shard by their bytes, to be counted there.
    """
    rejected: dict[int, list[Reject]] = {}
    for reject in rejects:
        rejected.setdefault(xxh3_64_intdigest(reject.payload) % customers.shards, []).append(reject)
    if columns is None:
        columns = _NOTHING
    shard = customers.shard[columns.customer]
    order = np.argsort(shard.astype(np.uint16), kind="stable")
    bounds = np.searchsorted(shard[order], np.arange(customers.shards + 1)).tolist()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    # Everything is put in order once; each shard's part is then a slice of it.
    local, mark, at = customers.local[columns.customer[order]], columns.mark[order], columns.at[order]
    digest_lo, digest_hi = columns.digest[order, 0], columns.digest[order, 1]
    starts, ends = columns.starts[order], columns.ends[order]
    where = place[columns.readings.event]
    readings = _chosen(columns.readings, np.argsort(where, kind="stable"), place)
    cuts = np.searchsorted(readings.event, bounds).tolist()
    unique_cuts = np.searchsorted(readings.unique_at, cuts).tolist()
    unread_at = place[columns.unread_event]
    chunks = []
    for number in range(customers.shards):
        first, last = bounds[number], bounds[number + 1]
        if first == last and number not in rejected:
            continue
        part = slice(first, last)
        unread = (unread_at >= first) & (unread_at < last)
        chunk = Chunk(
            names=customers.names[number],
            shared=True,
            customer=local[part],
            digest_lo=digest_lo[part],
            digest_hi=digest_hi[part],
            mark=mark[part],
            at=at[part],
            readings=_sliced(
                readings,
                slice(cuts[number], cuts[number + 1]),
                slice(unique_cuts[number], unique_cuts[number + 1]),
                first,
            ),
            unread_event=unread_at[unread] - first,
            unread_meter=columns.unread_meter[unread],
            block=payloads.block,
            starts=starts[part],
            ends=ends[part],
            received_at=payloads.received_at,
            rejects=rejected.get(number, []),
        )
        chunks.append((number, chunk))
    return chunks


def _sliced(readings: Readings, rows: slice, unique: slice, first: int) -> Readings:
    """These rows of readings in order, for a chunk that begins at event `first`."""
    return Readings(
        readings.event[rows] - first,
        readings.meter[rows],
        readings.hi[rows],
        None if readings.mid is None else readings.mid[rows],
        None if readings.lo is None else readings.lo[rows],
        readings.unique_at[unique] - rows.start,
        readings.unique_lo[unique],
        readings.unique_hi[unique],
    )


def _chosen(readings: Readings, rows: Ints, place: Ints) -> Readings:
    """These rows of the readings, in this order; `place` gives each event its new number."""
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


def concatenated(limbs: Sequence[Ints | None], like: Sequence[Ints]) -> Ints | None:
    """The parts of a limb as one column, zeros where a part has none; None where none has."""
    if all(limb is None for limb in limbs):
        return None
    parts = zip(limbs, like, strict=True)
    return np.concatenate([np.zeros(len(hi), np.int64) if limb is None else limb for limb, hi in parts])


_NONE = np.empty(0, np.int64)
_NO_WORDS = np.empty(0, np.uint64)
NO_READINGS = Readings(_NONE, _NONE, _NONE, None, None, _NONE, _NO_WORDS, _NO_WORDS)
_NOTHING = Columns(
    _NONE,
    np.empty((0, 2), np.uint64),
    np.empty(0, np.uint32),
    _NONE,
    _NONE,
    _NONE,
    NO_READINGS,
    _NONE,
    _NONE,
)
