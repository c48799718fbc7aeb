"""The Redis store keeps the contract; and what only a server on the network can do wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import pytest

from connectors.redis_control import RedisControl
from connectors.redis_reader import RedisReader
from connectors.redis_store import RedisWriter
from tests import redis_server
from tests.connectors.control_contract import ControlContract, ControlPlace
from tests.connectors.store_contract import AtOnce, Place, StoreContract

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
