"""The Redis store keeps the contract; and what only a server on the network can do wrong."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import pytest

from tests.connectors.contracts.control import ControlContract, ControlPlace
from tests.connectors.contracts.store import AtOnce, Place, StoreContract, total_of
from tests.support import redis_server
from tidegate.connectors.redis.control import RedisControl
from tidegate.connectors.redis.reader import RedisReader
from tidegate.connectors.redis.writer import RedisWriter
from tidegate.operators.model.records import Counter

_numbers = count()


@dataclass(frozen=True)
class RedisPlace:
    """A prefix of its own on these servers."""

    prefix: str
    ports: tuple[int, ...]
    form: str = "single"

    @property
    def given(self) -> dict[str, Any]:
        hosts = [("127.0.0.1", port) for port in self.ports]
        return {"hosts": hosts, "form": self.form, "prefix": self.prefix}

    def open_writer(self, **given: Any) -> RedisWriter:
        return RedisWriter(**self.given, **{"resumed": False} | given)

    def open_reader(self, **given: Any) -> RedisReader:
        return RedisReader(**self.given, **given)

    def open_control(self, **given: Any) -> RedisControl:
        return RedisControl(**self.given, **given)


@pytest.fixture(scope="module")
def server() -> Iterator[redis_server.Server]:
    with redis_server.single("appendonly no") as started:
        yield started


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[redis_server.Server]]:
    with redis_server.cluster() as started:
        yield started


class _OnServers(StoreContract, ControlContract):
    """Every store has a prefix of its own, as an empty store would take a server of its own to start."""

    at_once: ClassVar[AtOnce] = "customer"
    place: RedisPlace

    @contextmanager
    def fresh(self) -> Iterator[Place]:
        yield self._fresh()

    @contextmanager
    def fresh_control(self) -> Iterator[ControlPlace]:
        yield self._fresh()

    def _fresh(self) -> RedisPlace:
        return RedisPlace(f"t{next(_numbers)}", self.place.ports, self.place.form)


class TestRedis(_OnServers):
    @pytest.fixture(autouse=True)
    def _on(self, server: redis_server.Server) -> None:
        type(self).place = RedisPlace("", (server.port,))


class TestRedisCluster(_OnServers):
    @pytest.fixture(autouse=True)
    def _on(self, nodes: list[redis_server.Server]) -> None:
        type(self).place = RedisPlace("", tuple(node.port for node in nodes), "cluster")


def numbers_grow(place: Place) -> None:
    """However fast writes follow each other, a follower that has seen one is told of the next."""
    with closing(place.open_writer()) as writer, closing(place.open_reader()) as reader:
        seq = reader.changes(0).seq
        for version in range(1, 50):
            writer.write([total_of("a", version=version), total_of("b", version=version)], [])
            changes = reader.changes(seq)
            assert changes.customers == {"a", "b"} and changes.seq > seq
            seq = changes.seq


def beyond_doubles(place: Place) -> None:
    """Where doubles end, at 2^53, one more would be no more."""
    with closing(place.open_writer()) as writer, closing(place.open_reader()) as reader:
        for value in (2**53, 2**53 + 1, 2**62, 2**62 + 1, 2**62):
            writer.write([total_of("a", version=value)], [Counter(0, "events", value)])
        (stored,) = reader.read("a")
        assert stored.total.version == 2**62 + 1
        assert list(reader.counters()) == [Counter(0, "events", 2**62 + 1)]


def test_every_write_has_a_number_of_its_own(server: redis_server.Server) -> None:
    numbers_grow(RedisPlace(f"t{next(_numbers)}", (server.port,)))


def test_versions_and_counters_are_compared_exactly(server: redis_server.Server) -> None:
    beyond_doubles(RedisPlace(f"t{next(_numbers)}", (server.port,)))
