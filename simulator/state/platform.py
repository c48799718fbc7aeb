"""The provider's state: records, events and time, for both the API and the control plane.

One thread works on it, one request at a time, so each request is one transaction.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal

import msgspec

from simulator.state.clock import Clock, Hand
from simulator.state.events import EventBook
from simulator.state.identifiers import make_identifier
from simulator.state.instants import SECOND
from simulator.state.records import (
    Balance,
    Customer,
    Delivery,
    Endpoint,
    Entitlement,
    Memory,
    Meter,
    Product,
    Subscription,
    Wallet,
)
from simulator.state.shelf import Shelf
from simulator.state.storage import Nowhere, Storage
from simulator.state.switches import Switches
from simulator.state.usage import Usage


def read_wall_clock() -> int:
    """Return the microseconds since the epoch."""
    return time.time_ns() // 1000


class Platform:
    """One business at the provider, as `storage` has it, else new with `seed` and `key`.

    `emit` is called with a webhook type and the id of its object.
    """

    def __init__(
        self,
        seed: int = 1,
        *,
        key: str = "sim_key",
        storage: Storage | None = None,
        wall: Callable[[], int] = read_wall_clock,
    ) -> None:
        self._storage = storage or Nowhere()
        self._wall, self._key = wall, key
        self.emit: Callable[[str, str], None] = lambda type, subject: None
        stored = dict(self._storage.records("memory")).get("")
        self._load(msgspec.json.decode(stored, type=Memory) if stored else self._fresh(seed))

    def _fresh(self, seed: int) -> Memory:
        now = self._wall()
        business = make_identifier("bus", seed, 0)
        return Memory(seed=seed, hand=Hand(now, now), business_id=business, keys={self._key: "read_write"})

    def _load(self, memory: Memory) -> None:
        storage = self._storage
        self.memory, self._written = memory, b""
        self._next_edge: int | None = None
        self._sums: dict[str, list[str]] | None = None
        self.clock = Clock(memory.hand, self._wall)
        self.customers = Shelf(storage, "customer", Customer)
        self.meters = Shelf(storage, "meter", Meter)
        self.products = Shelf(storage, "product", Product)
        self.subscriptions = Shelf(storage, "subscription", Subscription)
        self.entitlements = Shelf(storage, "credit entitlement", Entitlement)
        self.balances = Shelf(storage, "balance", Balance)
        self.wallets = Shelf(storage, "wallet", Wallet)
        self.endpoints = Shelf(storage, "webhook", Endpoint)
        self.deliveries = Shelf(storage, "delivery", Delivery)
        self.events = EventBook(storage)
        self.events.tombstones = set(memory.tombstones)
        self.usage = Usage(self.events)

    def reset(self, seed: int) -> None:
        """Forget everything and start over, as if just started with `seed`."""
        self._storage.clear()
        self._load(self._fresh(seed))

    @property
    def switches(self) -> Switches:
        return self.memory.switches

    @property
    def now(self) -> int:
        return self.clock.now()

    def new_id(self, prefix: str) -> str:
        number = self.memory.numbers.get(prefix, 0) + 1
        self.memory.numbers[prefix] = number
        return make_identifier(prefix, self.memory.seed, number)

    def note_change(self) -> None:
        """Discard cached totals after anything but new events changed what totals are made of."""
        self.usage.forget()
        self._next_edge = self._sums = None

    @property
    def next_edge(self) -> int:
        """The first instant at which a subscription must be renewed."""
        if self._next_edge is None:
            ends = (one.current.end for one in self.subscriptions if one.status == "active")
            self._next_edge = min(ends, default=sys.maxsize)
        return self._next_edge

    @property
    def sums(self) -> Mapping[str, list[str]]:
        """The properties that sum meters read, by event name."""
        if self._sums is None:
            self._sums = {}
            for meter in self.meters:
                if meter.aggregation.type == "sum" and not meter.is_archived:
                    self._sums.setdefault(meter.event_name, []).append(meter.aggregation.key or "")
        return self._sums

    def find_visible_since(self, lag_s: float) -> int:
        """Return the instant up to which stored events are visible, given how far reads lag."""
        return self.now - int(lag_s * SECOND)

    def find_skew(self, subscription_id: str, start: int, meter_id: str) -> Decimal:
        return Decimal(self.memory.skews.get(skew_key(subscription_id, start, meter_id), "0"))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what happens inside durable at its end, also if it ends in a refusal."""
        try:
            yield
        finally:
            self.commit()

    def commit(self) -> None:
        self.memory.hand = self.clock.hand
        record = msgspec.json.encode(self.memory)
        if record != self._written:
            self._storage.put("memory", "", self.memory)
            self._written = record
        self._storage.commit()

    def close(self) -> None:
        self.commit()
        self._storage.close()


def skew_key(subscription_id: str, start: int, meter_id: str) -> str:
    return f"{subscription_id}/{start}/{meter_id}"
