"""The last heartbeat of each shard in Redis: a hash of JSON by shard, in the slot of what belongs to no customer."""

from collections.abc import Sequence

import msgspec

from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.key_layout import Keys
from tidegate.operators.model.freshness import Heartbeat


def write(redis: Redis, keys: Keys, heartbeats: Sequence[Heartbeat]) -> None:
    """Replace the heartbeats of these shards, in one round trip."""
    fields = [word for one in heartbeats for word in (str(one.shard), msgspec.json.encode(one))]
    redis.run([Command(keys.control_slot, ("HSET", keys.control("heartbeats"), *fields))])


def read(redis: Redis, keys: Keys) -> list[Heartbeat]:
    """Return the heartbeats of all shards, by shard."""
    (bodies,) = redis.run([Command(keys.control_slot, ("HVALS", keys.control("heartbeats")))])
    found = [msgspec.json.decode(body, type=Heartbeat) for body in bodies]
    return sorted(found, key=lambda one: one.shard)
