"""Columns of a whole poll, joined from its pieces and split into a chunk for each shard."""

import numpy as np
from xxhash import xxh3_64_intdigest

from tidegate.operators.events.chunk import (
    NO_READINGS,
    Chunk,
    Columns,
    Ints,
    Readings,
    Reject,
    concatenate_limbs,
    select_readings,
)
from tidegate.operators.events.customers import Customers
from tidegate.operators.events.unmetered import NOTHING_MISSED, NOTHING_UNREAD, Unread, join_missed
from tidegate.operators.model.ports import Payloads


def join_columns(parts: list[Columns]) -> Columns | None:
    """Return the columns of consecutive pieces as one; None if there are none."""
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
            concatenate_limbs([r.mid for r in readings], his),
            concatenate_limbs([r.lo for r in readings], his),
            np.concatenate([r.unique_at + shift for r, shift in zip(readings, rows, strict=True)]),
            np.concatenate([r.unique_lo for r in readings]),
            np.concatenate([r.unique_hi for r in readings]),
        ),
        Unread(
            np.concatenate([p.unread.event + shift for p, shift in zip(parts, shifts, strict=True)]),
            np.concatenate([p.unread.meter for p in parts]),
            np.concatenate([p.unread.reason for p in parts]),
        ),
        join_missed([part.missed for part in parts], shifts),
        None if parts[0].taken is None else np.concatenate([_require_column(part.taken) for part in parts]),
    )


def _require_column(column: Ints | None) -> Ints:
    assert column is not None, "a poll has transport times for all of its pieces, or for none"
    return column


def split_by_shard(
    columns: Columns | None, rejects: list[Reject], payloads: Payloads, customers: Customers
) -> list[tuple[int, Chunk]]:
    """Return a chunk per shard, with each shard's events and readings in order of arrival.

    A reject has no trustworthy customer; it goes to a shard by the hash of its bytes, to be counted there.
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
    # Everything is sorted once; each shard's part is then a slice of it.
    local, mark, at = customers.local[columns.customer[order]], columns.mark[order], columns.at[order]
    digest_lo, digest_hi = columns.digest[order, 0], columns.digest[order, 1]
    starts, ends = columns.starts[order], columns.ends[order]
    taken = None if columns.taken is None else columns.taken[order]
    where = place[columns.readings.event]
    readings = select_readings(columns.readings, np.argsort(where, kind="stable"), place)
    cuts = np.searchsorted(readings.event, bounds).tolist()
    unique_cuts = np.searchsorted(readings.unique_at, cuts).tolist()
    unread = columns.unread._replace(event=place[columns.unread.event])
    missed = columns.missed._replace(event=place[columns.missed.event])
    chunks = []
    for number in range(customers.shards):
        first, last = bounds[number], bounds[number + 1]
        if first == last and number not in rejected:
            continue
        part = slice(first, last)
        chunk = Chunk(
            names=customers.names[number],
            shared=True,
            customer=local[part],
            digest_lo=digest_lo[part],
            digest_hi=digest_hi[part],
            mark=mark[part],
            at=at[part],
            readings=_slice_readings(
                readings,
                slice(cuts[number], cuts[number + 1]),
                slice(unique_cuts[number], unique_cuts[number + 1]),
                first,
            ),
            unread=unread.select_range(first, last),
            missed=missed.select_range(first, last),
            block=payloads.block,
            starts=starts[part],
            ends=ends[part],
            received_at=payloads.received_at,
            rejects=rejected.get(number, []),
            stream=payloads.stream,
            taken=_find_time_taken(payloads) if taken is None else taken[part],
        )
        chunks.append((number, chunk))
    return chunks


def _find_time_taken(payloads: Payloads) -> int:
    """Return when the transport took the poll, or when we read it if the transport does not say."""
    return payloads.transport_time or payloads.received_at


def _slice_readings(readings: Readings, rows: slice, unique: slice, first: int) -> Readings:
    """Return these rows of readings in order, for a chunk that begins at event `first`."""
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


_NONE = np.empty(0, np.int64)
_NOTHING = Columns(
    _NONE,
    np.empty((0, 2), np.uint64),
    np.empty(0, np.uint32),
    _NONE,
    _NONE,
    _NONE,
    NO_READINGS,
    NOTHING_UNREAD,
    NOTHING_MISSED,
)
