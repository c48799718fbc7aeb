"""The crash matrix on Kafka, with SQLite and with Redis: killed anywhere, it leaves what it leaves on files unkilled.

TIDEGATE_KAFKA_CRASH_SEEDS says how many kills are tried for each store (1), TIDEGATE_CRASH_FIRST where to begin. Around
the kills of every fourth seed Redis is killed and restarted as well, around those of the seeds next to it the brokers.
"""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tests.faults.support.edges import RedisKeys, SqliteFiles, Stores
from tests.faults.support.harness import Layout, Run
from tests.faults.support.kill_orders import Kill, Met
from tests.faults.support.topics import Topics
from tests.faults.test_crash_matrix import FIRST, KILLS_PER_TRAFFIC, Reference, crash, reference, room
from tests.support import redis_server
from tests.support.kafka_server import Brokers, Kafka
from tests.support.options import option

__all__ = ["room"]

SEEDS = range(FIRST, FIRST + int(option("TIDEGATE_KAFKA_CRASH_SEEDS", "1")))
LAYOUTS = (Layout(files=3), Layout(processes=2, files=3), Layout(workers=2, files=3))


@pytest.fixture(scope="module")
def server() -> Iterator[redis_server.Server]:
    """A Redis that keeps what it acknowledged."""
    with redis_server.single() as started:
        yield started


def crash_on_kafka(
    room: Path, kafka: Kafka, stores: Stores, seed: int, store: str, hurt: Callable[[], None] | None
) -> None:
    """Kill a run on Kafka here and there, and hold it against one on files.

    `hurt` is done to a server at some moment of each start, or after it where it was killed before.
    """
    layout = LAYOUTS[seed % len(LAYOUTS)]
    within_s = 2 * reference(room, seed // KILLS_PER_TRAFFIC, layout, timed=True).met[0].seconds
    rng = random.Random(f"hurt {seed} {store}")

    def met_there(expected: Reference, met: Met) -> Met:
        """What files are written for is sent, or written by the store's server."""
        gone = ("alerts", "dead", "store") if store == "redis" else ("alerts", "dead")
        there = {
            kind: times for kind, times in met.operations.items() if not any(word in kind for word in gone)
        }
        # A half's share of them.
        sent = (expected.result.alerts.total() + expected.result.dead.total()) // 2
        there |= {"kafka produce": sent, "kafka write": sent // 2, "kafka commit": 10}
        there |= {"kafka starts": 3, "kafka look back": 2}
        if store == "redis":
            there["store write"] = met.operations.get("store COMMIT", 5)
        return Met(there, met.seconds)

    def start(run: Run, kill: Kill, victim: int) -> None:
        # Servers die with the thread that starts them, so it is the flow that runs in another one.
        with ThreadPoolExecutor(1) as executor:
            flow = executor.submit(run.start, kill, victim)
            if hurt:
                wait([flow], rng.random() * within_s)
                hurt()
            flow.result()

    crash(room, f"kafka-{store}", seed, layout, Topics(kafka), stores, met_there, start, timed=True)


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
    crash_on_kafka(room, kafka, SqliteFiles(), seed, "sqlite", None)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_run_on_kafka_and_redis_leaves_what_an_unkilled_one_on_files_leaves(
    room: Path, kafka: Kafka, server: redis_server.Server, seed: int
) -> None:
    crash_on_kafka(room, kafka, RedisKeys(server.port), seed, "redis", hurting(seed, kafka, server))
