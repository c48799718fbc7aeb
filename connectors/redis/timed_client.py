"""Commands to one Redis server within a time limit that holds whatever the server does.

redis-py limits each read of its socket; an answer that comes byte by byte, or at the last moment of several attempts,
takes many times that. Here one deadline counts for all attempts of a call: each read waits no longer than is left of
it. The first half of the time is for trying, so that connecting, which has the other half, ends in time as well. And
hiredis is asked directly, as redis-py takes as long to pack a command as the server to run it.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from hiredis import pack_command
from redis.connection import DefaultParser

from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.servers import Place, Servers, Wire

# A socket with a time-out of nothing does not wait, which redis-py takes for something else.
LEAST = 1e-4


class _Deadline:
    """When a call has to have ended, in monotonic seconds."""

    at = 0.0


class _Parser(DefaultParser):  # type: ignore[misc, valid-type]
    """Reads answers until the deadline."""

    def __init__(self, deadline: _Deadline, monotonic: Callable[[], float], socket_read_size: int) -> None:
        super().__init__(socket_read_size)
        self._deadline, self._monotonic = deadline, monotonic

    def read_from_socket(self, *_: Any, **__: Any) -> bool:
        left = max(self._deadline.at - self._monotonic(), LEAST)
        return bool(super().read_from_socket(timeout=left))


class TimedRedis(Redis):
    """Runs commands within `servers.wait`, attempts and connecting included. For one server, named by its address."""

    def __init__(
        self,
        servers: Servers,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        half = servers.wait / 2
        super().__init__(replace(servers, timeout=half, wait=half), sleep=sleep, monotonic=monotonic)
        self._limit = servers.wait.total_seconds()
        self._deadline = _Deadline()
        self._parser: _Parser | None = None

    def run(self, commands: Iterable[Command]) -> list[Any]:
        self._deadline.at = self._monotonic() + self._limit
        return super().run(commands)

    def _exchange(self, commands: Iterable[Command]) -> list[Any]:
        wire = self._connection(self._place_of(0))
        assert self._parser is not None
        # In one piece, as each would be sent by itself.
        packed = [pack_command(command.words) for command in commands]
        wire.send_packed_command([b"".join(packed)], check_health=False)
        return [self._parser.read_response(disable_decoding=True) for _ in packed]

    def _connected(self, place: Place) -> Wire:
        return self.servers.connected(place, parser_class=self._parsing)

    def _parsing(self, socket_read_size: int) -> _Parser:
        self._parser = _Parser(self._deadline, self._monotonic, socket_read_size)
        return self._parser
