"""The gate on a real Redis: killed, paused, slow, byte by byte, lying; each time in time, flagged, and well again."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from tests.serving.gate.fakes import Face, catalog_text
from tests.serving.gate.test_gate import soon
from tests.serving.gate.test_processes import PRICED, spend_all
from tests.support import redis_server
from tests.support.heartbeats import ENDED
from tests.support.ports import free_ports
from tests.support.proxy import Proxy
from tests.support.redis_server import Server
from tidegate.connectors.redis.control import RedisControl
from tidegate.connectors.redis.holds import RedisHolds
from tidegate.connectors.redis.writer import RedisWriter
from tidegate.operators.model.periods import Calendar, find_period
from tidegate.operators.model.ports import Scope, StoreError
from tidegate.operators.model.records import Total
from tidegate.serving.gate import AsyncGate, Gate

SHORT = timedelta(milliseconds=200)
LONG = timedelta(seconds=20)


@pytest.fixture
def server() -> Iterator[Server]:
    with redis_server.single() as started:
        fill(started.port)
        yield started


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    between = Proxy(f"127.0.0.1:{server.port}")
    yield between
    between.close()


def fill(port: int) -> None:
    """Usage of acme in the month that it is, 5 of 10."""
    given: dict[str, Any] = {"hosts": [("127.0.0.1", port)]}
    start, end = find_period(Calendar("month"), "UTC", time.time_ns() // 1000)
    total = Total("acme", "period", "calls", start, end, 5, 1, 1, start, 0, 0, 0, True)
    with closing(RedisWriter(resumed=False, **given)) as writer:
        writer.write([total], [], heartbeats=[ENDED])
    with closing(RedisControl(**given)) as control:
        control.apply(catalog_text("{cap: 10, fail: closed}"), origin="cli", by="me")


def holds_at(address: str, wait: timedelta = SHORT) -> RedisHolds:
    host, _, port = address.rpartition(":")
    return RedisHolds(hosts=[(host, int(port))], read_wait=wait, write_wait=wait)


@pytest.fixture(params=[(Gate, True), (Gate, False), (AsyncGate, True)], ids=["near", "far", "async"])
def gate(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[Face]:
    kind, near = request.param
    gate = Face(kind, holds_at(proxy.address), near=near, timeout=SHORT, write_timeout=SHORT)
    soon(lambda: is_well(gate))
    yield gate
    gate.close()


def is_closed(gate: Face) -> bool:
    decision = gate.check("acme", "calls")
    assert decision.allowed != decision.degraded
    return decision.degraded


def is_well(gate: Face) -> bool:
    decision = gate.check("acme", "calls")
    reserved = gate.reserve("acme", "calls", 1, id="well")
    gate.release("acme", "well")
    return decision.allowed and reserved.allowed and not decision.degraded and not reserved.degraded


def test_a_crowd_never_spends_more_than_the_spend_cap(server: Server) -> None:
    with closing(RedisControl(hosts=[("127.0.0.1", server.port)])) as control:
        control.apply(PRICED, origin="cli", by="me")
    holds = holds_at(f"127.0.0.1:{server.port}", LONG)
    with Gate(holds, near=False, timeout=LONG, write_timeout=LONG) as gate:
        spend_all(gate)


def test_killed_and_started_again(gate: Face, server: Server) -> None:
    server.kill()
    soon(lambda: is_closed(gate))
    assert gate.reserve("acme", "calls", 1, id="1").degraded
    server.start()
    soon(lambda: is_well(gate))


def test_paused_and_gone_on(gate: Face, server: Server) -> None:
    server.pause()
    try:
        # That answers come at all is what is tested: the server goes on only afterwards.
        soon(lambda: is_closed(gate))
        for n in range(5):
            assert is_closed(gate) and gate.reserve("acme", "calls", 1, id=str(n)).degraded
    finally:
        server.go_on()
    # What was sent is made all the same: five holds leave no room, and last longer than a test waits.

    def is_released(id: str) -> bool:
        return gate.release("acme", id).state != "unavailable"

    for n in range(5):
        soon(partial(is_released, str(n)))
    soon(lambda: is_well(gate))


def test_slow(gate: Face, proxy: Proxy) -> None:
    proxy.delay = 5.0
    soon(lambda: is_closed(gate))
    proxy.delay = 0.0
    proxy.cut()
    soon(lambda: is_well(gate))


def test_connections_that_break(gate: Face, proxy: Proxy) -> None:
    for _ in range(3):
        proxy.cut()
        soon(lambda: is_well(gate))


def test_a_key_of_the_wrong_type(gate: Face, server: Server) -> None:
    """Somebody else writes into our keys: that is no total, nor is it none."""
    keys = [key for key in server.ask("KEYS", "*") if b"acme" in key]
    assert keys
    kept = {key: server.ask("DUMP", key) for key in keys}
    for key in keys:
        server.ask("DEL", key)
        server.ask("SET", key, "nonsense")
    soon(lambda: is_closed(gate))
    for key, dump in kept.items():
        server.ask("RESTORE", key, 0, dump, "REPLACE")
    soon(lambda: is_well(gate))


def test_an_answer_byte_by_byte_is_not_waited_for() -> None:
    """Each byte comes in time, and all of them never would."""
    done = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        with suppress(OSError):
            while True:
                one, _ = listening.accept()
                one.recv(1 << 16)
                one.sendall(b"$1000000\r\n")
                threading.Thread(target=drop_by_drop, args=(one,), daemon=True).start()

    def drop_by_drop(one: socket.socket) -> None:
        with one, suppress(OSError):
            while not done.wait(0.02):
                one.sendall(b"x")

    threading.Thread(target=drip, daemon=True).start()
    answered: list[str] = []

    def ask() -> None:
        with closing(holds_at(f"127.0.0.1:{listening.getsockname()[1]}")) as holds, suppress(StoreError):
            holds.account("acme", Scope(("calls",), 0), 0)
        answered.append("not waited for")

    threading.Thread(target=ask, daemon=True).start()
    try:
        soon(lambda: answered)
    finally:
        done.set()
        listening.close()


@pytest.mark.parametrize("kind", [Gate, AsyncGate])
def test_a_redis_that_is_not_there_yet(kind: Any) -> None:
    (port,) = free_ports(1)
    gate = Face(kind, holds_at(f"127.0.0.1:{port}"), fail="closed", timeout=LONG)
    try:
        assert is_closed(gate)
    finally:
        gate.close()
