"""What was lost is noticed, fenced and asked for again.

Every bucket has a mark. A write that finds none, as after FLUSHALL or on a node that came back empty, or finds that
the bucket's last write is older than one of this writer's, as after a failover that lost acknowledged writes, begins a
rebuild: a Resend in the control log, on which every shard of the flow writes all of its totals. Buckets without a mark
get one that says `rebuilding`, and readers raise StoreIncomplete on them until every shard has reported. A bucket that
only fell back stays open: its totals are true ones of a moment ago, and rise again as they come.

A rebuild's id begins with the time it began at, so that ids are in order: who ends one ends those before it.
"""

import secrets
from collections.abc import Collection, Iterable

import msgspec

from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.key_layout import BUCKETS, SCHEMA, Keys, slot_of
from tidegate.connectors.redis.scripts.common import BEGIN, DONE, MARK, UNMARK
from tidegate.operators.metering.republish import REPUBLISH_KIND, read_republished
from tidegate.operators.model.ports import Note, Resend, StoreError

_BEFORE, _BEHIND = msgspec.json.encode(Resend(id="\t")).split(b"\\t")


class Rebuilds:
    """The marks of a store's buckets, and the rebuild under way."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._slot = keys.control_slot
        self._names = [keys.control(name) for name in ("rebuild", "rebuilt", "log", "log-ids")]

    def unmarked(self) -> list[int]:
        """Return the buckets without a mark: all of a new store, or what was lost of an old one."""
        commands = [Command(slot_of(b), ("EXISTS", self._keys.state(b))) for b in range(BUCKETS)]
        return [bucket for bucket, found in enumerate(self._redis.run(commands)) if not found]

    def newest(self) -> list[tuple[int, int]]:
        """When each bucket was marked, and the number of its last write; 0 where there is none."""
        born = [Command(slot_of(b), ("HGET", self._keys.state(b), "born")) for b in range(BUCKETS)]
        last = [
            Command(slot_of(b), ("ZREVRANGE", self._keys.index(b), 0, 0, "WITHSCORES"))
            for b in range(BUCKETS)
        ]
        replies = self._redis.run(born + last)
        return [
            (int(marked or 0), int(float(top[1])) if top else 0)
            for marked, top in zip(replies[:BUCKETS], replies[BUCKETS:], strict=True)
        ]

    def mark(self, buckets: Iterable[int], rebuild: str = "") -> None:
        """Mark them, as being filled by `rebuild` if there is one; StoreError if they are of another schema."""
        commands = [MARK.call(slot_of(b), [self._keys.state(b)], SCHEMA, rebuild) for b in buckets]
        for schema, _ in self._redis.run(commands):
            if int(schema) != SCHEMA:
                raise StoreError(
                    f"store {self._redis.servers}: needs schema {SCHEMA}, got {int(schema)}; "
                    "run the version of Tidegate that wrote it, or choose another prefix and rebuild"
                )

    def begin(self, since: int = 0) -> str:
        """Return the id of the rebuild under way, if it began after `since` (µs), else of a new one."""
        given = (since, secrets.token_hex(4), _BEFORE, _BEHIND)
        (found,) = self._redis.run([BEGIN.call(self._slot, self._names, *given)])
        return str(found.decode())

    def fill(self, buckets: Collection[int], since: int = 0) -> str:
        """Begins or joins a rebuild that fills these buckets; its id."""
        rebuild = self.begin(since)
        self.mark(buckets, rebuild)
        (under_way,) = self._redis.run([Command(self._slot, ("HGET", self._names[0], "id"))])
        if under_way is None:
            # It came to its end before these were marked. A later one would unmark them at its own end.
            self._unmark(rebuild)
        return rebuild

    def report(self, notes: Iterable[Note]) -> None:
        """Count the shards that report to be done; after the last one, readers may read again."""
        for note in notes:
            if note.kind == REPUBLISH_KIND:
                done = DONE.call(self._slot, self._names[:2], *read_republished(note))
                if self._redis.run([done]) == [1]:
                    self._unmark(read_republished(note)[0])

    def _unmark(self, rebuild: str) -> None:
        commands = [UNMARK.call(slot_of(b), [self._keys.state(b)], rebuild) for b in range(BUCKETS)]
        self._redis.run(commands)
