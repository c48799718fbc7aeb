"""What the store in Redis holds, for whoever looks at it; connectors/redis/writer.py says what may be relied on."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

from tidegate.connectors.redis import heartbeats
from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.holds import quantities_of
from tidegate.connectors.redis.key_layout import BUCKETS, Keys, bucket_of, slot_of, stored_of
from tidegate.connectors.redis.notes import Notes
from tidegate.connectors.redis.scripts.common import CHANGES, READ
from tidegate.connectors.redis.scripts.hold import ACCOUNT
from tidegate.connectors.redis.servers import Servers, complete
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Changes, Held, Note, StoredTotal
from tidegate.operators.model.records import Counter, is_requested

# Named at most per bucket in one answer of the feed; beyond, reading all anew is cheaper.
NAMES_MAX: Final = 2_000
PAGE: Final = 200
# A waiting hold is named by its identity, and then its customer (connectors/redis/scripts/hold.py).
IDENTITY_BYTES: Final = 16


class RedisReader:
    """Reads what stands under `prefix`. Raises StoreError; StoreIncomplete where it lost totals."""

    def __init__(
        self, *, prefix: str = "tidegate", sleep: Callable[[float], None] = time.sleep, **servers: Any
    ) -> None:
        self._redis, self._keys = Redis(Servers(**servers), sleep=sleep), Keys(prefix)
        self._notes = Notes(self._redis, self._keys)

    def read(self, customer: str, since: int = 0) -> list[StoredTotal]:
        """Totals of one customer, of one moment, in one round trip, in the order of window, meter and start."""
        return [stored for stored in self._page([customer]) if is_requested(stored.total, since)]

    def totals(self, customer: str | None = None) -> Iterator[StoredTotal]:
        """In the order of customer, window, meter and start; of each customer as of when it comes to them."""
        if customer is not None:
            yield from self.read(customer)
            return
        names = self.names()
        for at in range(0, len(names), PAGE):
            yield from self._page(names[at : at + PAGE])

    def read_held(self, now: int, customers: Collection[str] | None = None) -> dict[str, Held]:
        """As in `ports.StoreReader`; of each customer as of one moment, in one round trip for PAGE customers."""
        names = list(self._holders() if customers is None else customers)
        found: dict[str, Held] = {}
        for at in range(0, len(names), PAGE):
            page = names[at : at + PAGE]
            for name, answer in zip(page, self._answers(self._held(name, now) for name in page), strict=True):
                _, held, next_expiry, _ = answer
                if next_expiry is not None:
                    quantities = {meter: one for meter, one in quantities_of(held).items() if one}
                    found[name] = Held(quantities, int(next_expiry))
        return found

    def counters(self) -> list[Counter]:
        slot, key = self._keys.control_slot, self._keys.control("counters")
        (flat,) = self._redis.run([Command(slot, ("HGETALL", key))])
        parted = (
            (name.decode().partition(" "), value) for name, value in zip(flat[::2], flat[1::2], strict=True)
        )
        return [Counter(int(shard), name, int(value)) for (shard, _, name), value in parted]

    def notes(self, kind: str, customer: str | None = None, limit: int = 100) -> list[Note]:
        """Return the newest notes of a kind, the newest first."""
        return self._notes.read(kind, customer, limit)

    def heartbeats(self) -> list[Heartbeat]:
        return heartbeats.read(self._redis, self._keys)

    def changes(self, after: int) -> Changes:
        """Who was written since the write numbered `after`; 0 is before the first. One round trip.

        Where the store was emptied since, or too many were written, no customers are named.
        """
        found = self._answers(self._changes(after, NAMES_MAX))
        newest = max(top for _, top, _, _ in found)
        # A bucket may have been asked before a write to it, and another after a later one.
        seen = min(newest, *(max(top, now - 1) for _, top, now, _ in found))
        if after and (after > newest or any(born > after for born, *_ in found)):
            return Changes(newest, frozenset(), False)
        if any(names is None for *_, names in found):
            return Changes(seen, frozenset(), False)
        return Changes(
            max(seen, after), frozenset(name.decode() for *_, names in found for name in names), True
        )

    def close(self) -> None:
        self._redis.close()

    def names(self) -> list[str]:
        """Everybody who was ever written, sorted."""
        born, names = self._born(), self._scanned()
        # What was emptied meanwhile, and may be filled again already, was scanned in part.
        while (now := self._born()) != born:
            born, names = now, self._scanned()
        return sorted(names)

    def _born(self) -> list[int]:
        """When each bucket began to be filled; StoreIncomplete where one is not all there."""
        return [born for born, *_ in self._answers(self._changes(0, 0))]

    def _scanned(self) -> set[str]:
        return {name.decode() for name in self._members(self._keys.index)}

    def _holders(self) -> set[str]:
        """Return everybody of whom a hold waits for its event, whether it is still open or not."""
        return {name[IDENTITY_BYTES:].decode() for name in self._members(self._keys.waiting)}

    def _members(self, key: Callable[[int], str]) -> set[bytes]:
        """Return the members of the sorted set that each bucket has under `key`."""
        names: set[bytes] = set()
        cursors = dict.fromkeys(range(BUCKETS), b"0")
        while cursors:
            replies = self._redis.run([
                Command(slot_of(bucket), ("ZSCAN", key(bucket), at, "COUNT", PAGE))
                for bucket, at in cursors.items()
            ])  # fmt: skip
            names.update(name for _, members in replies for name in members[::2])
            cursors = {b: at for b, (at, _) in zip(cursors, replies, strict=True) if at != b"0"}
        return names

    def _page(self, customers: list[str]) -> list[StoredTotal]:
        return [
            stored
            for customer, hashes in zip(customers, self._answers(map(self._read, customers)), strict=True)
            for stored in _sorted(customer, hashes)
        ]

    def _changes(self, after: int, names: int) -> list[Command]:
        keys = self._keys
        return [
            CHANGES.call(slot_of(b), [keys.state(b), keys.index(b)], after, names) for b in range(BUCKETS)
        ]

    def _read(self, customer: str) -> Command:
        keys, bucket = self._keys, bucket_of(customer)
        names = [keys.state(bucket), keys.periods(bucket, customer), keys.charts(bucket, customer)]
        return READ.call(slot_of(bucket), names)

    def _held(self, customer: str, now: int) -> Command:
        keys, bucket = self._keys, bucket_of(customer)
        names = [keys.state(bucket), keys.periods(bucket, customer), *keys.holds(bucket, customer)]
        return ACCOUNT.call(slot_of(bucket), names, now, 0)

    def _answers(self, commands: Iterable[Command]) -> list[Any]:
        return [complete(reply, self._redis.servers) for reply in self._redis.run(list(commands))]


def _sorted(customer: str, hashes: list[list[bytes]]) -> list[StoredTotal]:
    found = [
        stored_of(customer, field, row)
        for flat in hashes
        for field, row in zip(flat[::2], flat[1::2], strict=True)
    ]
    return sorted(found, key=lambda stored: stored.total[1:4])
