"""Events that this process put where the flow reads, and that totals may not contain yet.

A check adds them to what is used, so it is right about what came through this door even while the flow is slow,
restarting or dead. An event is dropped once the heartbeat of its customer's shard has passed its place.

Limits: of one customer EVENTS_MAX events are kept one by one, older ones as a sum, of which it is no longer known whose
hold is still open; of CUSTOMERS_MAX customers, beyond which the one that waited longest is forgotten (`forgotten`).
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Final, NamedTuple

from tidegate.operators.model.ports import Place

EVENTS_MAX: Final = 1_000
CUSTOMERS_MAX: Final = 50_000


class PendingEvent(NamedTuple):
    """An event that was acknowledged: what meters that add up read (×10²⁴), when it happened (µs), and its place."""

    at: int
    quantities: Mapping[str, int]
    place: Place


class _Events:
    """One customer's events by identity, in the order of acknowledgement; `merged` is the sum of older ones."""

    def __init__(self) -> None:
        self.by_identity: OrderedDict[bytes, PendingEvent] = OrderedDict()
        self.merged: PendingEvent | None = None

    def add(self, identity: bytes, event: PendingEvent) -> None:
        self.by_identity.setdefault(identity, event)
        if len(self.by_identity) > EVENTS_MAX:
            _, oldest = self.by_identity.popitem(last=False)
            self.merged = _merge(self.merged, oldest) if self.merged else oldest

    def drop_counted(self, positions: Mapping[str, int]) -> None:
        def is_counted(event: PendingEvent) -> bool:
            return positions.get(event.place.stream, -1) >= event.place.position

        counted = [identity for identity, event in self.by_identity.items() if is_counted(event)]
        for identity in counted:
            del self.by_identity[identity]
        if self.merged is not None and is_counted(self.merged):
            self.merged = None

    def __bool__(self) -> bool:
        return bool(self.by_identity) or self.merged is not None


class Pending:
    """The pending events of all customers. Safe to share between threads."""

    def __init__(self) -> None:
        self._customers: dict[str, _Events] = {}
        self._lock = Lock()
        self.forgotten = 0

    def __len__(self) -> int:
        with self._lock:
            return sum(len(events.by_identity) for events in self._customers.values())

    def __contains__(self, customer: str) -> bool:
        return customer in self._customers

    def add(self, customer: str, identity: bytes, event: PendingEvent) -> None:
        """Note an event; a repeat of one that is noted changes nothing."""
        with self._lock:
            events = self._customers.get(customer)
            if events is None:
                if len(self._customers) >= CUSTOMERS_MAX:
                    del self._customers[next(iter(self._customers))]
                    self.forgotten += 1
                events = self._customers[customer] = _Events()
            events.add(identity, event)

    def of(
        self, customer: str, positions: Mapping[str, int]
    ) -> tuple[Mapping[bytes, PendingEvent], PendingEvent | None]:
        """Return the events that totals with these positions lack, and the sum of older ones; drop the rest."""
        with self._lock:
            events = self._customers.get(customer)
            if events is None:
                return {}, None
            events.drop_counted(positions)
            if not events:
                del self._customers[customer]
            return dict(events.by_identity), events.merged

    def prune(self, positions_of: Callable[[str], Mapping[str, int]]) -> None:
        """Drop what is counted, also of customers whom nobody asks about."""
        for customer in list(self._customers):
            self.of(customer, positions_of(customer))


def _merge(older: PendingEvent, newer: PendingEvent) -> PendingEvent:
    """Return one event for both. A customer's events lie in one partition, so the later place is that of both."""
    quantities = dict(older.quantities)
    for meter, quantity in newer.quantities.items():
        quantities[meter] = quantities.get(meter, 0) + quantity
    return PendingEvent(max(older.at, newer.at), quantities, max(older.place, newer.place))
