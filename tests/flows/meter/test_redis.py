"""The whole flow on Redis, and what becomes of it when Redis loses everything."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from time import monotonic, sleep
from typing import Any

import pytest

from tests.flows.conftest import SECONDS, Place
from tests.flows.meter.test_control_source import eventually
from tests.flows.runtime.test_shutdown import answer
from tests.support import redis_server
from tests.support.ports import free_ports
from tests.support.redis_server import waited_for
from tidegate.connectors.redis.control import RedisControl
from tidegate.connectors.redis.reader import RedisReader
from tidegate.connectors.redis.writer import RedisWriter
from tidegate.operators.model.ports import StoreIncomplete
from tidegate.operators.model.records import Total

FOLLOWED = {"SOURCE": "file:in.ndjson?follow=true", "EPOCH": "1s"}
Totals = dict[tuple[str, str, str, int], Total]


@pytest.fixture
def server() -> Iterator[redis_server.Server]:
    with redis_server.single() as started:
        yield started


def settings_of(server: redis_server.Server) -> dict[str, str]:
    return {**FOLLOWED, "STORE": f"redis://127.0.0.1:{server.port}"}


def reader_of(server: redis_server.Server) -> closing[RedisReader]:
    return closing(RedisReader(hosts=[("127.0.0.1", server.port)]))


def totals_in(server: redis_server.Server) -> Totals:
    """All of them; StoreIncomplete while they are not all there."""
    with reader_of(server) as reader:
        return {stored.total[:4]: stored.total for stored in reader.totals()}


def seen_in(server: redis_server.Server) -> Totals | None:
    try:
        return totals_in(server)
    except StoreIncomplete:
        return None


def follow_until(server: redis_server.Server, expected: Totals, whole: list[Totals]) -> None:
    """Looks at the store until it holds `expected`; all that is ever seen of it must be one of `whole`."""
    give_up = monotonic() + SECONDS
    while (seen := seen_in(server)) != expected:
        assert seen is None or seen in whole
        assert monotonic() < give_up
        sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Totals, Totals]:
    """What a flow leaves in SQLite, after the first events and after all of them."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    place.append("first.jsonl")
    place.run()
    first = place.totals()
    place.append("second.jsonl")
    place.run()
    return first, place.totals()


@pytest.fixture
def after(place: Place, undisturbed: tuple[Totals, Totals]) -> tuple[Totals, Totals]:
    """The same, with the first events waiting to be read."""
    place.append("first.jsonl")
    return undisturbed


def test_the_same_totals_as_in_sqlite(
    place: Place, server: redis_server.Server, after: tuple[Totals, Totals]
) -> None:
    first, both = after
    with place.running(**settings_of(server)):
        waited_for(lambda: seen_in(server) == first, "the first totals")
        place.append("second.jsonl")
        waited_for(lambda: seen_in(server) == both, "all totals")


def test_an_emptied_store_is_filled_again_and_never_seen_half_full(
    place: Place, server: redis_server.Server, after: tuple[Totals, Totals]
) -> None:
    """Under a running flow: it notices by itself, at its next write or when it looks for a newer catalog."""
    first, both = after
    with place.running(**settings_of(server)):
        waited_for(lambda: seen_in(server) == first, "the first totals")
        server.ask("FLUSHALL")
        follow_until(server, first, [first])
        server.ask("FLUSHALL")
        place.append("second.jsonl")
        waited_for(lambda: seen_in(server) == both, "all totals")
        with closing(RedisControl(hosts=[("127.0.0.1", server.port)])) as control:
            version = control.catalog()
            assert version and version.number == 1


def test_a_store_that_was_emptied_between_two_runs_is_filled_again(
    place: Place, server: redis_server.Server, after: tuple[Totals, Totals]
) -> None:
    """The flow that goes on from a snapshot knows that there must be totals, and none in Redis means a loss."""
    first, both = after
    with place.running(**settings_of(server)) as flow:
        waited_for(lambda: seen_in(server) == first, "the first totals")
        # Late enough to be saved, as what is not is read from the source again anyway.
        waited_for(lambda: any((place.folder / "state" / "journal").iterdir()), "a snapshot")
        flow.terminate()
        flow.wait(SECONDS)
    server.ask("FLUSHALL")
    with place.running(**settings_of(server)):
        follow_until(server, first, [first])
        place.append("second.jsonl")
        waited_for(lambda: seen_in(server) == both, "all totals")


def test_a_store_emptied_while_it_is_listed_is_not_taken_for_one_with_nobody(
    server: redis_server.Server,
) -> None:
    at: dict[str, Any] = {"hosts": [("127.0.0.1", server.port)]}
    with closing(RedisWriter(**at, resumed=False)) as writer, reader_of(server) as reader:
        writer.write([Total("a", "hour", "m", 0, 1, 1, 1, 1, 0, 0, 0, 0, True)], [])
        assert reader.names() == ["a"]
        scanned = reader._scanned

        def emptied_and_scanned() -> set[str]:
            server.ask("FLUSHALL")
            return scanned()

        reader._scanned = emptied_and_scanned  # type: ignore[method-assign]
        with pytest.raises(StoreIncomplete):
            list(reader.totals())


def tidegate(place: Place, server: redis_server.Server, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tidegate", *words],
        env=place.environment(**settings_of(server)),
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def test_an_operator_has_a_store_filled_again_and_sees_how_far_it_is(
    place: Place, server: redis_server.Server, after: tuple[Totals, Totals]
) -> None:
    """For what nobody can notice, such as a server put back from an old copy while nothing was written."""
    first, _ = after
    with place.running(**settings_of(server)):
        waited_for(lambda: seen_in(server) == first, "the first totals")
        spoilt: Any = next(key for key in server.ask("KEYS", "*:p:acme"))
        server.ask("DEL", spoilt)
        assert seen_in(server) != first
        done = tidegate(place, server, "store", "rebuild")
        assert done.returncode == 0, done.stderr
        assert "4 of 4 shards" in done.stderr
        assert totals_in(server) == first
    refused = tidegate(place, server, "store", "rebuild", "--wait", "0")
    assert refused.returncode == 1
    assert "see that the flow runs" in refused.stderr


def test_a_flow_says_that_redis_is_away_at_its_start_and_later(
    place: Place, server: redis_server.Server
) -> None:
    """Probes and metrics are there before the store is, and turn within seconds when it goes."""
    (port,) = free_ports(1)
    place.append("first.jsonl")
    server.kill()
    with place.running(**settings_of(server), METRICS=f"127.0.0.1:{port}"):
        eventually(lambda: answer(port, "/readyz")[1].get("status") == "starting")
        server.start()
        eventually(lambda: answer(port, "/readyz")[0] == 200)
        server.kill()
        killed = monotonic()
        eventually(lambda: answer(port, "/readyz")[1].get("status") == "store_away")
        assert monotonic() - killed < 12, (
            "1 s to the next heartbeat and 3 s without an answer, on a busy machine"
        )
        server.start()
        eventually(lambda: answer(port, "/readyz")[0] == 200)
