"""Customers by number, with what routing and identity need for every event."""

from collections.abc import Iterable
from threading import Lock

import numpy as np

from tidegate.operators.events.keys import digest_customer, shard_of


class Customers:
    """Customers by number, with the shard and digest of each. It grows and never forgets.

    Worker threads of one process share it: numbers are assigned under a lock, and arrays are replaced, not resized.
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
        """Assign numbers to customers that have none."""
        with self._lock:
            new = [customer for customer in dict.fromkeys(customers) if customer not in self.number]
            if not new:
                return
            first, last = len(self.number), len(self.number) + len(new)
            if last > len(self.shard):
                self.shard = np.resize(self.shard, 2 * last)
                self.local = np.resize(self.local, 2 * last)
                self.digest = np.resize(self.digest, (2 * last, 2))
            digests = b"".join(map(digest_customer, new))
            self.digest[first:last] = np.frombuffer(digests, np.uint64).reshape(-1, 2)
            for number, customer in enumerate(new, first):
                shard = self.shard[number] = shard_of(customer, self.shards)
                self.local[number] = len(self.names[shard])
                self.names[shard].append(customer)
            self.number.update(zip(new, range(first, last), strict=True))
