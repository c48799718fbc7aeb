"""How near caches follow Redis: the servers themselves tell which keys changed.

One connection to each server that has slots, on which it is asked to tell of every change of a key that gates decide
by (client tracking, broadcast by prefix). Every wait ends in a round trip on each: what was written before it began
was told before its answer. The round trip also asks whether the server still is what it was: a primary, of a cluster
of the same nodes and epoch. If not, or if a connection is lost, StoreError; another feed then begins anew.

When a bucket was lost, is filled again or is whole again, everybody's account is said to have changed.

Source: https://redis.io/docs/latest/develop/reference/client-side-caching/
"""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from hiredis import PushNotification
from redis import exceptions as errors
from redis.connection import DefaultParser

from tidegate.connectors.redis.key_layout import Keys
from tidegate.connectors.redis.servers import Place, Servers, Wire, refusal
from tidegate.operators.model.ports import News

# What is told within it is taken together; without, a busy store would keep a thread busy.
TICK: Final = timedelta(milliseconds=2)
KEYS_MAX: Final = 10_000
_FACTS: Final = (b"cluster_state", b"cluster_known_nodes", b"cluster_current_epoch")


class _Parser(DefaultParser):  # type: ignore[misc, valid-type]
    """Hands out like answers what servers tell, which redis-py keeps for caches of its own."""

    def handle_push_response(self, response: Any, **_: Any) -> Any:
        return response


class RedisFeed:
    """Follows what gates decide by. Raises StoreError."""

    def __init__(
        self,
        servers: Servers,
        keys: Keys,
        *,
        tick: timedelta = TICK,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._servers, self._keys = servers, keys
        self._tick, self._sleep = tick.total_seconds(), sleep
        self._wires: dict[Place, Wire] = {}
        try:
            self._open()
        except (errors.RedisError, OSError) as error:
            self.close()
            raise refusal(error, servers) from error

    def wait(self, seconds: float) -> News:
        """As in `ports.Feed`: one round trip, after something was told or the time is over."""
        try:
            self._sleep(self._tick)
            for _ in range(int(seconds / self._tick) - 1):
                if any(wire.can_read(self._tick / len(self._wires)) for wire in self._wires.values()):
                    break
            return self._round()
        except (errors.RedisError, OSError) as error:
            raise refusal(error, self._servers) from error

    def close(self) -> None:
        for wire in self._wires.values():
            wire.disconnect()

    def _open(self) -> None:
        slots = self._servers.look_up()
        self._control = next(place for first, place in reversed(slots) if first <= self._keys.control_slot)
        for place in {place for _, place in slots}:
            wire = self._wires[place] = self._servers.connected(place, protocol=3, parser_class=_Parser)
            tracking = ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._keys.watched)
            wire.send_command(*tracking, check_health=False)
            _answer(wire, [])
        self._stood: list[Any] = []
        self._round()

    def _round(self) -> News:
        asks: list[tuple[str, ...]] = []
        if self._servers.form != "single":
            asks.append(("ROLE",) if self._servers.form == "sentinel" else ("CLUSTER", "INFO"))
        number = ("GET", self._keys.catalog_number)
        for place, wire in self._wires.items():
            more = [number] if place == self._control else []
            wire.send_packed_command(wire.pack_commands([*asks, *more]), check_health=False)
        told: list[Any] = []
        stand: list[Any] = []
        catalog = 0
        for place, wire in self._wires.items():
            stand += [_standing(_answer(wire, told)) for _ in asks]
            if place == self._control:
                catalog = int(_answer(wire, told) or 0)
        if self._stood and stand != self._stood:
            raise errors.ConnectionError("a server is no longer what it was when the feed was opened")
        self._stood = stand
        return News(self._customers(told), catalog)

    def _customers(self, told: list[Any]) -> frozenset[str] | None:
        """Whose keys changed; None for everybody's."""
        prefix, customers = len(self._keys.watched.encode()), set[str]()
        if len(told) > KEYS_MAX:
            return None
        for key in told:
            if key is None:
                return None
            kind, _, customer = key[prefix:].partition(b"}:")[2].partition(b":")
            if kind == b"state":
                return None
            if kind in (b"p", b"m"):
                customers.add(customer.decode())
        return frozenset(customers)


def _answer(wire: Wire, told: list[Any]) -> Any:
    """Return the next answer; the keys told of before it join `told`, None where a server was emptied."""
    while isinstance(found := wire.read_response(disable_decoding=True, push_request=True), PushNotification):
        told += found[1] or [None]
    return found


def _standing(answer: Any) -> Any:
    """Of what a server says of itself, what must not change."""
    if isinstance(answer, list):
        return answer[0]
    facts = dict(line.partition(b":")[::2] for line in bytes(answer).split(b"\r\n"))
    return [facts[name] for name in _FACTS]
