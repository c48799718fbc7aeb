"""The crash matrix on Kafka, with SQLite and with Redis: killed anywhere, it leaves what it leaves on files unkilled.

TIDEGATE_KAFKA_CRASH_SEEDS says how many kills are tried for each store (1), TIDEGATE_CRASH_FIRST where to begin. Around
the kills of every fourth seed Redis is killed and restarted as well, around those of the seeds next to it the brokers.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tests import redis_server
from tests.faults.edges import RedisKeys, SqliteFiles, Stores
from tests.faults.harness import STARTS, Layout, Run, random_kill, watched
from tests.faults.orders import Met
from tests.faults.test_crash_matrix import (
    FIRST,
    KILLS_PER_TRAFFIC,
    Reference,
    conserved,
    count,
    reference,
    room,
    settings_of,
)
from tests.faults.topics import Topics
from tests.kafka_server import Brokers, Kafka

__all__ = ["room"]

SEEDS = range(FIRST, FIRST + int(os.environ.get("TIDEGATE_KAFKA_CRASH_SEEDS", "1")))
LAYOUTS = (Layout(files=3), Layout(processes=2, files=3), Layout(workers=2, files=3))


@pytest.fixture(scope="module")
def server() -> Iterator[redis_server.Server]:
    """A Redis that keeps what it acknowledged."""
    with redis_server.single() as started:
        yield started


def crash(
    room: Path, kafka: Kafka, stores: Stores, seed: int, store: str, hurt: Callable[[], None] | None
) -> None:
    """Kills a run here and there until it is let go on, and compares what it left with what files would have.

    `hurt` is done to a server at some moment of each start, or after it where it was killed before.
    """
    layout = LAYOUTS[seed % len(LAYOUTS)]
    traffic = seed // KILLS_PER_TRAFFIC
    expected = reference(room, traffic, layout)
    rng = random.Random(f"kafka {seed} {store}")
    folder = room / f"kafka-{store}-{seed}"
    run = Run.prepared(folder, expected.case, layout, Topics(kafka), stores, **settings_of(traffic))
    met = met_on_kafka(expected, store)
    kills = [random_kill(rng, met, expected.calls, resumed=False)]
    while rng.random() < 0.55 and len(kills) < STARTS:
        kills.append(random_kill(rng, met, expected.calls, resumed=True))
    with watched(run) as wrong, ThreadPoolExecutor(1) as executor:
        for kill in kills:
            # Servers die with the thread that starts them, so it is the flow that runs in another one.
            flow = executor.submit(run.start, kill, rng.randrange(layout.processes))
            if hurt:
                wait([flow], rng.random() * 2 * expected.met.seconds)
                hurt()
            flow.result()
        assert run.start(), run.said()
    count(run.kills, len(kills))
    told = f"seed {seed}, {store}, {layout}, kills {run.kills} in {run.folder}"
    assert not wrong, (told, wrong[:5])
    same(expected, run, told)
    shutil.rmtree(run.folder)


def same(expected: Reference, run: Run, told: str) -> None:
    """What the run left is what files would have."""
    result = run.result()
    assert not expected.result.differences(result), (told, expected.result.differences(result))
    conserved(result)


def met_on_kafka(expected: Reference, store: str) -> Met:
    """About what a run on Kafka meets: what files are written for is sent, or written by the store's server."""
    found = expected.met.operations
    gone = ("alerts", "dead", "store") if store == "redis" else ("alerts", "dead")
    met = {kind: times for kind, times in found.items() if not any(word in kind for word in gone)}
    sent = expected.result.alerts.total() + expected.result.dead.total()
    met |= {"kafka produce": sent, "kafka write": sent // 2, "kafka commit": 10}
    met |= {"kafka starts": 3, "kafka look back": 2}
    if store == "redis":
        met["store write"] = found.get("store COMMIT", 5)
    return Met(met, expected.met.seconds)


def hurting(seed: int, kafka: Kafka, server: redis_server.Server) -> Callable[[], None] | None:
    """What else is done in the run of this seed: a server is killed, and is back before the next kill."""

    def restart_redis() -> None:
        server.kill()
        server.start()

    def restart_brokers() -> None:
        assert isinstance(kafka, Brokers)
        kafka.kill()
        kafka.start()
        kafka.wait()

    if seed % 4 == 2:
        return restart_redis
    return restart_brokers if seed % 4 == 3 and isinstance(kafka, Brokers) else None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_run_on_kafka_and_sqlite_leaves_what_an_unkilled_one_on_files_leaves(
    room: Path, kafka: Kafka, seed: int
) -> None:
    crash(room, kafka, SqliteFiles(), seed, "sqlite", None)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_run_on_kafka_and_redis_leaves_what_an_unkilled_one_on_files_leaves(
    room: Path, kafka: Kafka, server: redis_server.Server, seed: int
) -> None:
    crash(room, kafka, RedisKeys(server.port), seed, "redis", hurting(seed, kafka, server))
