"""Holds in Redis keep the contract; and what only a server can do wrong."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import count

import pytest

from tests.connectors.contracts.holds import HoldsContract, Place
from tests.connectors.redis.test_writer import RedisPlace
from tests.support import redis_server
from tidegate.connectors.redis.holds import RedisHolds
from tidegate.operators.model.ports import Scope

_numbers = count()
PATIENT = timedelta(seconds=30)


@dataclass(frozen=True)
class HoldsPlace(RedisPlace):
    def open_holds(self) -> RedisHolds:
        return RedisHolds(**self.given, read_wait=PATIENT, write_wait=PATIENT)


@pytest.fixture(scope="module")
def server() -> Iterator[redis_server.Server]:
    with redis_server.single("appendonly no") as started:
        yield started


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[redis_server.Server]]:
    with redis_server.cluster() as started:
        yield started


class _OnServers(HoldsContract):
    place: HoldsPlace

    @contextmanager
    def fresh(self) -> Iterator[Place]:
        place = replace(self.place, prefix=f"h{next(_numbers)}")
        with closing(place.open_writer()):
            pass
        yield place


class TestRedisHolds(_OnServers):
    @pytest.fixture(autouse=True)
    def _on(self, server: redis_server.Server) -> None:
        type(self).place = HoldsPlace("", (server.port,))


class TestRedisClusterHolds(_OnServers):
    @pytest.fixture(autouse=True)
    def _on(self, nodes: list[redis_server.Server]) -> None:
        type(self).place = HoldsPlace("", tuple(node.port for node in nodes), "cluster")


def test_a_call_under_way_leaves_no_connection_behind(server: redis_server.Server) -> None:
    """The gate gives up on a store that hangs, and is closed; the answer comes later."""
    place = HoldsPlace("late", (server.port,))
    with closing(place.open_writer()):
        holds = place.open_holds()
    asked = partial(holds.account, "acme", Scope(("calls",), 0), 0)
    asked()
    assert holds._idle["read"]
    server.pause()
    try:
        with ThreadPoolExecutor() as other:
            late = other.submit(asked)
            redis_server.waited_for(lambda: not holds._idle["read"], "the call to begin")
            holds.close()
            server.go_on()
            late.result(PATIENT.total_seconds())
    finally:
        server.go_on()
    # Only the one that asks.
    redis_server.waited_for(lambda: len(server.ask("CLIENT", "LIST").splitlines()) == 1, "it to be closed")
