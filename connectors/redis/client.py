"""Commands to the Redis servers that hold a slot: one server, the primary that Sentinel names, or a cluster.

What is asked at once travels in one round trip per server: all commands are sent, FLIGHT at a time while they are
made, then all replies are read. A connection that is lost, a server that is loading, failing over or moving a slot is
tried again for `wait`, with pauses that double and have jitter; then StoreError says what to do. So commands must
bear being run twice.

Every wait has a limit: `timeout` for connecting and for each read, `wait` for all attempts. redis-py's own cluster
client was turned down: it bounds its retries by number and not by time. Used by one thread at a time.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from hiredis import pack_command
from redis import exceptions as errors

from tidegate.connectors.redis.servers import Place, Servers, Wire, is_passing, refusal
from tidegate.operators.model.ports import StoreError

VERSION: Final = (7, 0)
PAUSE, PAUSE_MAX = 0.02, 1.0
FLIGHT: Final = 8


class Command(NamedTuple):
    """What to send, and the slot whose server it goes to."""

    slot: int
    words: tuple[Any, ...]


class Script:
    """A Lua script as the server knows it, by its digest."""

    def __init__(self, text: str, *, reads: bool = False) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._word = "EVALSHA_RO" if reads else "EVALSHA"
        SCRIPTS[self.sha] = self

    def call(self, slot: int, keys: Sequence[Any], *given: Any) -> Command:
        """Return the command that runs it; all `keys` lie in `slot`."""
        return Command(slot, (self._word, self.sha, len(keys), *keys, *given))


SCRIPTS: Final[dict[str, Script]] = {}


class Redis:
    """Runs commands on `servers`. Raises StoreError, after which some of them may have run."""

    def __init__(
        self,
        servers: Servers,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.servers = servers
        self._sleep, self._monotonic = sleep, monotonic
        self._connections: dict[Place, Wire] = {}
        self._slots: list[tuple[int, Place]] = []
        self._known: set[Place] = set()

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """Return the replies, in order. Servers work on the first commands while the last are still made."""
        give_up, pause = self._monotonic() + self.servers.wait.total_seconds(), PAUSE
        made: list[Command] = []
        coming = _kept(commands, made)
        while True:
            try:
                return self._attempt(made, coming)
            except (errors.RedisError, OSError) as error:
                self.close()
                wait = pause * random.uniform(0.5, 1)
                if not is_passing(error, self.servers) or self._monotonic() + wait > give_up:
                    raise refusal(error, self.servers) from error
            except BaseException:
                # There may be replies that nobody has read, which the next command would take for its own.
                self.close()
                raise
            self._sleep(wait)
            pause = min(2 * pause, PAUSE_MAX)

    def masters(self) -> list[int]:
        """Return a slot of each server, as the servers stand now."""
        if self.servers.form != "cluster":
            return [0]
        self.run([Command(0, ("PING",))])
        return list({place: first for first, place in self._slots}.values())

    def check(self) -> None:
        """StoreError where a server is too old, or may drop keys to make room for others."""
        commands = [Command(slot, ("INFO", part)) for slot in self.masters() for part in ("server", "memory")]
        replies = self.run(commands)
        for server, memory in zip(replies[::2], replies[1::2], strict=True):
            version = tuple(map(int, _fact(server, "redis_version").split(".")[:2]))
            if version < VERSION:
                raise StoreError(
                    f"store {self.servers}: needs Redis 7.0 or later, got {version[0]}.{version[1]}"
                )
            policy = _fact(memory, "maxmemory_policy")
            if policy != "noeviction" and _fact(memory, "maxmemory") != "0":
                raise StoreError(
                    f"store {self.servers}: needs maxmemory-policy noeviction, got {policy}, which drops totals "
                    "when memory is short; set it, or use a server of its own"
                )

    def close(self) -> None:
        """Lets go of all connections; the next command makes new ones."""
        for connection in self._connections.values():
            with suppress(Exception):
                connection.disconnect()
        self._connections.clear()
        self._slots.clear()

    def _attempt(self, made: list[Command], coming: Iterator[Command]) -> list[Any]:
        replies = self._exchange(chain(tuple(made), coming))
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, errors.NoScriptError)]
        if unknown:
            needed = {(made[i].slot, made[i].words[1]) for i in unknown}
            _check(
                self._exchange(
                    Command(slot, ("SCRIPT", "LOAD", SCRIPTS[sha].text)) for slot, sha in sorted(needed)
                )
            )
            for i, reply in zip(unknown, self._exchange(made[i] for i in unknown), strict=True):
                replies[i] = reply
        _check(replies)
        return replies

    def _exchange(self, commands: Iterable[Command]) -> list[Any]:
        """Send all, then read all; return an error reply as an exception object."""
        asked: list[Place] = []
        coming = iter(commands)
        while flight := list(islice(coming, FLIGHT)):
            by_server: dict[Place, list[bytes]] = {}
            for command in flight:
                place = self._place_of(command.slot)
                asked.append(place)
                # By hiredis itself, as redis-py takes half as long again.
                by_server.setdefault(place, []).append(pack_command(command.words))
            for place, packed in by_server.items():
                self._connection(place).send_packed_command([b"".join(packed)], check_health=False)
        replies: list[Any] = []
        for place in asked:
            try:
                replies.append(self._connections[place].read_response(disable_decoding=True))
            except errors.ResponseError as error:
                replies.append(error)
        return replies

    def _connection(self, place: Place) -> Wire:
        found = self._connections.get(place)
        if found is None:
            found = self._connections[place] = self._connected(place)
        return found

    def _connected(self, place: Place) -> Wire:
        return self.servers.connected(place)

    def _place_of(self, slot: int) -> Place:
        if not self._slots:
            self._slots = self.servers.look_up(self._known)
            self._known = {place for _, place in self._slots}
        return next(place for first, place in reversed(self._slots) if first <= slot)


def _kept(commands: Iterable[Command], made: list[Command]) -> Iterator[Command]:
    """Yield the commands, each noted when it is made, for another attempt."""
    for command in commands:
        made.append(command)
        yield command


def _fact(info: bytes, name: str) -> str:
    facts = dict(line.partition(":")[::2] for line in info.decode().split("\r\n"))
    return facts[name]


def _check(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
