"""Accounts and holds in Redis, as the gate reads and writes them: each call is one script, where the customer is.

What lies where is told by connectors/redis/scripts/hold.py. The number of the newest catalog, which an account has
too, is asked for at the same time, from the server that has it: in a cluster perhaps another one.

Guarantees: whether there is room is decided inside Redis, against totals and other holds of that very moment, exactly.
The flow's writer ends a hold in the script that writes the totals of its event. A call that was sent twice, as its
answer was lost, changes nothing the second time. Ended holds are remembered for an hour past their end.

Limits: about 500 bytes a hold, until then. An emptied store has no holds: what was held is free again. Calls take no
longer than `read_wait` or `write_wait` on one server, and up to twice that where one of several hangs. From any thread;
each has a connection of its own.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, Literal

import msgspec

from tidegate.connectors.redis import heartbeats
from tidegate.connectors.redis.change_feed import RedisFeed
from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.control import version_of
from tidegate.connectors.redis.key_layout import Keys, bucket_of, field_of, slot_of, used_of
from tidegate.connectors.redis.scripts.hold import ACCOUNT, COMMIT, EXPIRED, RELEASE, RESERVE
from tidegate.connectors.redis.servers import Servers, complete
from tidegate.connectors.redis.timed_client import TimedRedis
from tidegate.operators.events.keys import compute_identity
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Account, CatalogVersion, Closing, Hold, Reserved, Scope

WAIT: Final = timedelta(seconds=1)
QUESTIONS_MAX: Final = 10_000
_pack = msgspec.msgpack.encode


class RedisHolds:
    """Accounts and holds under `prefix`. Connects at the first call, and again when it must. Raises StoreError.

    On one server a call ends within its wait by itself; who looks for a primary first may take longer.
    """

    def __init__(
        self,
        *,
        prefix: str = "tidegate",
        read_wait: timedelta = WAIT,
        write_wait: timedelta = WAIT,
        sleep: Callable[[float], None] = time.sleep,
        **servers: Any,
    ) -> None:
        self._keys = Keys(prefix)
        self._sleep = sleep
        self._number = Command(self._keys.control_slot, ("GET", self._keys.catalog_number))
        self.self_timed = servers.get("form", "single") == "single"
        self._servers = {
            "read": Servers(**servers | {"timeout": read_wait, "wait": read_wait}),
            "write": Servers(**servers | {"timeout": write_wait, "wait": write_wait}),
        }
        self._questions: dict[tuple[str, Scope], Callable[[int], Command]] = {}
        # Lists take and give at the end, and atomically so.
        self._idle: dict[str, list[Redis]] = {"read": [], "write": []}
        self._closed = False

    def account(self, customer: str, scope: Scope, now: int) -> Account:
        """One round trip to each of two servers at most."""
        question = self._questions.get((customer, scope))
        if question is None:
            question = self._question(customer, scope)
        found, number = self._ask("read", question(now))
        return _account(scope, found, number)

    def reserve(
        self, hold: Hold, ceilings: Mapping[str, int], scope: Scope, now: int, seen: int | None = None
    ) -> Reserved:
        """As in `ports.Holds`."""
        fields = _fields(scope)
        bucket, keys = self._of(hold.customer)
        places = {meter: place for place, meter in enumerate(scope.meters, 1)}
        limits = [(meter, places.get(meter, 0), str(ceiling)) for meter, ceiling in ceilings.items()]
        key = compute_identity(hold.customer, hold.source, hold.id)
        given = (
            now, key, hold.customer, hold.until, "" if seen is None else f"{seen:015x}", _packed(hold.quantities),
            _pack(limits), len(fields), *fields,
        )  # fmt: skip
        (outcome, found), number = self._ask("write", RESERVE.call(slot_of(bucket), keys, *given))
        return Reserved(outcome.decode(), _account(scope, found, number))

    def commit(
        self, customer: str, source: str, id: str, quantities: Mapping[str, int] | None, until: int, now: int
    ) -> Closing:
        """As in `ports.Holds`."""
        final = b"" if quantities is None else _packed(quantities)
        bucket, keys = self._of(customer)
        given = (now, compute_identity(customer, source, id), customer, until, final)
        (state, asked, expired), _ = self._ask("write", COMMIT.call(slot_of(bucket), keys, *given))
        return Closing(state.decode(), quantities_of(asked), bool(expired))

    def release(self, customer: str, source: str, id: str, now: int) -> Closing:
        """As in `ports.Holds`."""
        bucket, keys = self._of(customer)
        given = (now, compute_identity(customer, source, id), customer)
        (state, asked), _ = self._ask("write", RELEASE.call(slot_of(bucket), keys, *given))
        return Closing(state.decode(), quantities_of(asked))

    def open_holds(self, customer: str, identities: Sequence[bytes], now: int) -> frozenset[bytes]:
        """As in `ports.Holds`."""
        bucket = bucket_of(customer)
        _, by_identity, *_ = self._keys.holds(bucket, customer)
        with self._redis("read") as redis:
            (found,) = redis.run([Command(slot_of(bucket), ("HMGET", by_identity, *identities))])
        return frozenset(
            identity
            for identity, hold in zip(identities, found, strict=True)
            if hold is not None and _is_open(hold, now)
        )

    def catalog(self) -> CatalogVersion | None:
        """Return the newest catalog version, None where there is none."""
        slot, hashed = self._keys.control_slot, self._keys.control("catalogs")
        with self._redis("read") as redis:
            (number,) = redis.run([Command(slot, ("GET", self._keys.catalog_number))])
            if number is None:
                return None
            (body,) = redis.run([Command(slot, ("HGET", hashed, number))])
        return version_of(int(number), body)

    def heartbeats(self) -> list[Heartbeat]:
        with self._redis("read") as redis:
            return heartbeats.read(redis, self._keys)

    def feed(self) -> RedisFeed:
        return RedisFeed(self._servers["read"], self._keys)

    def close(self) -> None:
        """Close what is idle at once, and what is in use by calls under way when these end."""
        self._closed = True
        for idle in self._idle.values():
            with suppress(IndexError):
                while True:
                    idle.pop().close()

    def _question(self, customer: str, scope: Scope) -> Callable[[int], Command]:
        """Return a function that makes the request for an account at a time; worked out once."""
        fields = _fields(scope)
        bucket, keys = self._of(customer, commits=False)
        slot, words = ACCOUNT.call(slot_of(bucket), keys, 0, len(fields), *fields)
        place = words.index(0)
        before, after = words[:place], words[place + 1 :]

        def question(now: int) -> Command:
            return Command(slot, (*before, now, *after))

        if len(self._questions) >= QUESTIONS_MAX:
            self._questions.clear()
        self._questions[customer, scope] = question
        return question

    def _of(self, customer: str, *, commits: bool = True) -> tuple[int, list[str]]:
        """Return the customer's bucket, and the keys that scripts of holds name."""
        bucket, keys = bucket_of(customer), self._keys
        names = [keys.state(bucket), keys.periods(bucket, customer), *keys.holds(bucket, customer)]
        return bucket, names + ([keys.index(bucket), keys.waiting(bucket)] if commits else [])

    def _ask(self, kind: Literal["read", "write"], command: Command) -> tuple[Any, int]:
        """Return the script's answer, and the newest catalog's number."""
        redis = self._taken(kind)
        try:
            found, newest = redis.run([command, self._number])
            answer = complete(found, redis.servers), int(newest or 0)
        except BaseException:
            redis.close()
            raise
        self._put_back(kind, redis)
        return answer

    @contextmanager
    def _redis(self, kind: Literal["read", "write"]) -> Iterator[Redis]:
        redis = self._taken(kind)
        try:
            yield redis
        except BaseException:
            redis.close()
            raise
        self._put_back(kind, redis)

    def _put_back(self, kind: Literal["read", "write"], redis: Redis) -> None:
        self._idle[kind].append(redis)
        # Asked afterwards, as another thread may close all meanwhile.
        if self._closed:
            self.close()

    def _taken(self, kind: Literal["read", "write"]) -> Redis:
        with suppress(IndexError):
            return self._idle[kind].pop()
        return (TimedRedis if self.self_timed else Redis)(self._servers[kind], sleep=self._sleep)


def _is_open(hold: bytes, now: int) -> bool:
    state, until, *_ = msgspec.msgpack.decode(hold)
    return state < EXPIRED and int(until) > now


def _fields(scope: Scope) -> list[str]:
    return [field_of("period", scope.start, meter) for meter in scope.meters]


def _packed(quantities: Mapping[str, int]) -> bytes:
    return _pack([word for meter in sorted(quantities) for word in (meter, str(quantities[meter]))])


def quantities_of(flat: list[bytes]) -> dict[str, int]:
    """Return the quantities (×10²⁴) that a script gave as meters and digits, by turns."""
    return {meter.decode(): int(digits) for meter, digits in zip(flat[::2], flat[1::2], strict=True)}


def _account(scope: Scope, found: list[Any], number: int) -> Account:
    rows, held, following, revision = found
    used = {
        meter: used_of(scope.start, row)
        for meter, row in zip(scope.meters, rows, strict=True)
        if row is not None
    }
    held = {meter: quantity for meter, quantity in quantities_of(held).items() if quantity}
    return Account(used, held, None if following is None else int(following), number, int(revision, 16))
