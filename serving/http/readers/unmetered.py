"""What was accepted and not metered, as every surface shows it: the shards' rows, put together by cause."""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from tidegate.operators.events.unmetered import REASONS, Cause
from tidegate.operators.metering.unmetered_rows import BY_CAUSE, BY_CUSTOMER, describe_cause
from tidegate.operators.model.ports import Note, StoreReader
from tidegate.serving.http.schemas import UnmeteredBody

NOTES_MAX: Final = 5_000
"""Rows that are read: the newest, of each cause one per shard."""


class _Row(msgspec.Struct):
    event_name: str
    reason: str
    meter: str
    key: str
    partly: bool
    events: int
    first_at: str
    last_at: str
    customer: str
    event_id: str

    @property
    def cause(self) -> Cause:
        return Cause(self.event_name, self.reason, self.meter, self.key, self.partly)  # type: ignore[arg-type]


_READ: Final = msgspec.json.Decoder(_Row).decode


def read_unmetered(reader: StoreReader, customer: str | None, limit: int) -> list[UnmeteredBody]:
    """Return the causes, of all customers or of one, with the most events first."""
    kind = BY_CAUSE if customer is None else BY_CUSTOMER
    return merged(reader.notes(kind, customer, NOTES_MAX))[:limit]


def merged(notes: Iterable[Note]) -> list[UnmeteredBody]:
    """Return a row for each cause, of the shards' rows; its sample is that of the latest."""
    found: dict[Cause, _Row] = {}
    for row in map(_READ, (note.body for note in notes)):
        known = found.setdefault(row.cause, row)
        if known is row:
            continue
        first, second = sorted((known, row), key=lambda one: one.last_at)
        second.events += first.events
        second.first_at = min(first.first_at, second.first_at)
        found[row.cause] = second
    return [_body(row) for row in sorted(found.values(), key=lambda row: -row.events)]


def reasons_of(sums: Mapping[str, int]) -> dict[str, int]:
    """Return how many events were not metered for each reason, from the summed counters."""
    return {reason: sums[name] for reason in REASONS if (name := f"unmetered:{reason}") in sums}


def _body(row: _Row) -> UnmeteredBody:
    return UnmeteredBody(
        row.event_name,
        row.reason,  # type: ignore[arg-type]
        describe_cause(row.cause),
        row.meter,
        row.key,
        row.partly,
        row.events,
        row.first_at,
        row.last_at,
        row.customer,
        row.event_id,
    )
