"""The crash matrix on Kafka, with SQLite and with Redis: killed anywhere, it leaves what it leaves on files unkilled.

TIDEGATE_KAFKA_CRASH_SEEDS says how many kills are tried for each store (1), TIDEGATE_CRASH_FIRST where to begin. Then
brokers die, hang (TIDEGATE_KAFKA_PAUSE_S) and are cut off while the flow runs, TIDEGATE_KAFKA_DRILLS times (1).
"""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tests import redis_server, servers
from tests.connectors.kafka_help import until
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
from tests.proxy import PIECE, Proxy

__all__ = ["room"]

SEEDS = range(FIRST, FIRST + int(os.environ.get("TIDEGATE_KAFKA_CRASH_SEEDS", "1")))
LAYOUTS = (Layout(files=3), Layout(processes=2, files=3), Layout(workers=2, files=3))
DRILLS = int(os.environ.get("TIDEGATE_KAFKA_DRILLS", "1"))
PAUSE_S = float(os.environ.get("TIDEGATE_KAFKA_PAUSE_S", "1.5"))


@pytest.fixture(scope="module")
def stores() -> Iterator[dict[str, Stores]]:
    """A place for totals of either kind."""
    with redis_server.single("appendonly yes") as server:
        servers.ran(redis_server.version())
        yield {"sqlite": SqliteFiles(), "redis": RedisKeys(server.port)}


def crash(room: Path, kafka: Kafka, stores: dict[str, Stores], seed: int, store: str) -> None:
    """Kills a run here and there until it is let go on, and compares what it left with what files would have."""
    layout = LAYOUTS[seed % len(LAYOUTS)]
    traffic = seed // KILLS_PER_TRAFFIC
    expected = reference(room, traffic, layout)
    rng = random.Random(f"kafka {seed} {store}")
    folder = room / f"kafka-{store}-{seed}"
    run = Run.prepared(folder, expected.case, layout, Topics(kafka), stores[store], **settings_of(traffic))
    met = met_on_kafka(expected, store)
    kills = [random_kill(rng, met, expected.calls, resumed=False)]
    while rng.random() < 0.55 and len(kills) < STARTS:
        kills.append(random_kill(rng, met, expected.calls, resumed=True))
    with watched(run) as wrong:
        finished = [run.start(kill, rng.randrange(layout.processes)) for kill in kills]
        assert run.start(), run.said()
    count(run.kills, len(finished))
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


@pytest.mark.parametrize("store", ["sqlite", "redis"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_run_on_kafka_leaves_what_an_unkilled_one_on_files_leaves(
    room: Path, kafka: Kafka, stores: dict[str, Stores], seed: int, store: str
) -> None:
    crash(room, kafka, stores, seed, store)


def drill(room: Path, brokers: Brokers, edges: Topics, name: str, hurt: Callable[[], None]) -> None:
    """A run during which something is done to the brokers; it ends by itself, and nothing is missing."""
    expected = reference(room, FIRST, Layout(files=3))
    run = Run.prepared(room / f"kafka-{name}", expected.case, Layout(files=3), edges, **settings_of(FIRST))
    # Brokers die with the thread that starts them, so it is the flow that runs in another one.
    with ThreadPoolExecutor(1) as executor:
        flow = executor.submit(run.start, pace_ms=150)
        until(lambda: flow.done() or (run.folder / "store.db").exists(), "the flow does not begin to write", 0.05)
        for _ in range(DRILLS):
            if not wait([flow], 0.2).done:
                hurt()
        brokers.wait()
        assert flow.result(), run.said()
    same(expected, run, name)
    shutil.rmtree(run.folder)


def test_brokers_that_die_or_hang_are_waited_for(room: Path, brokers: Brokers) -> None:
    def hurt() -> None:
        brokers.kill()
        brokers.start()
        brokers.wait()
        brokers.pause()
        time.sleep(PAUSE_S)
        brokers.resume()

    drill(room, brokers, Topics(brokers), "restarts", hurt)


def test_connections_that_are_cut_and_slow_are_made_again(room: Path, brokers: Brokers) -> None:
    """Half an answer is none: it is asked for again, and nothing is counted twice."""
    proxy = Proxy(brokers.address("wire"), int(brokers.address("proxy").rpartition(":")[2]))
    cut: list[int] = []

    def hurt() -> None:
        for delay, piece in ((0.0, PIECE), (0.0, 7), (0.05, 4096)):
            proxy.delay, proxy.piece = delay, piece
            time.sleep(0.3)
            cut.append(proxy.cut())
        proxy.delay, proxy.piece = 0.0, PIECE
        with proxy.away():
            time.sleep(0.3)

    try:
        drill(room, brokers, Topics(brokers, proxy.address), "cuts", hurt)
    finally:
        proxy.close()
    assert sum(cut) > 1, "it was cut"
