"""What the flow and its readers ask of the outside world; every connector fills one of these shapes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from operators.records import Counter, Total


class Payloads(msgspec.Struct, frozen=True):
    """A source's poll: payloads one per line (`\\n`), and when they reached us (µs since the epoch).

    `transport_time` is the transport's own timestamp for payloads that carry none, or None where the
    transport has none (a file). `origin` names partition and position, for people.
    """

    block: bytes
    received_at: int
    transport_time: int | None
    origin: str


class StoredTotal(NamedTuple):
    """A total as a store gives it back: the record, and when it was written (µs since the epoch)."""

    total: Total
    written_at: int


class Changes(NamedTuple):
    """What a reader missed: the customers written since `after`, and the number to ask from next time.

    `complete` is False where the feed no longer reaches back to `after`: read everything anew.
    """

    seq: int
    customers: frozenset[str]
    complete: bool


class StoreWriter(Protocol):
    """Takes absolute totals; writes a total only if its version is newer, so a replay is a no-op."""

    def write(self, totals: Sequence[Total], counters: Sequence[Counter]) -> None: ...
    def close(self) -> None: ...


class StoreReader(Protocol):
    """Reads what was written, from any process, while the flow writes."""

    def read(self, customer: str) -> list[StoredTotal]: ...
    def totals(self, customer: str | None = None) -> Iterator[StoredTotal]: ...
    def counters(self) -> Iterable[Counter]: ...
    def changes(self, after: int) -> Changes: ...
    def close(self) -> None: ...
