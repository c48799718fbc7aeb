"""Servers that die, hang, forget and are cut off while a flow from Kafka runs: nothing is lost, nothing counted twice.

A drill is a run in which one such thing is done, at some moment after it began to write, to its brokers or to its
Redis; it is held against a run on files that nothing was done to. TIDEGATE_KAFKA_DRILLS says how many runs there are of
each drill (1); from 2 on the brokers' are made with SQLite too. TIDEGATE_KAFKA_PAUSE_S says how long servers hang
(1): less than a minute, which is how long the flow waits for Redis.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path

import pytest

from tests.connectors.kafka.helpers import until
from tests.faults.support.edges import Edges, RedisKeys, SqliteFiles, Stores
from tests.faults.support.harness import Layout, Run, watched
from tests.faults.support.topics import Topics
from tests.faults.test_crash_matrix import FIRST, reference, room, same, settings_of
from tests.faults.test_kafka_matrix import LAYOUTS
from tests.support import redis_server
from tests.support.kafka_server import Brokers, Kafka
from tests.support.options import option
from tests.support.proxy import PIECE, Proxy
from tidegate.connectors.clock import wall_clock
from tidegate.operators.model.ports import StoreError

__all__ = ["room"]

DRILLS = range(FIRST, FIRST + int(option("TIDEGATE_KAFKA_DRILLS", "1")))
PAUSE_S = float(option("TIDEGATE_KAFKA_PAUSE_S", "1"))
STORES = ("redis", "sqlite") if len(DRILLS) > 1 else ("redis",)
# So slow that a run takes some seconds, and is not over when it is hurt.
PACE_MS = 30
ANSWER_S = 5.0
LOST_BYTES = 20_000

drills = pytest.mark.parametrize("number", DRILLS)
on_each_store = pytest.mark.parametrize("store", STORES)


@pytest.fixture
def server() -> Iterator[redis_server.Server]:
    """A Redis that keeps what it acknowledged, if it is only killed."""
    with redis_server.single() as started:
        yield started


@pytest.fixture
def stores(server: redis_server.Server) -> dict[str, Stores]:
    return {"redis": RedisKeys(server.port), "sqlite": SqliteFiles()}


def drill(
    room: Path,
    name: str,
    number: int,
    edges: Edges,
    stores: Stores,
    hurt: Callable[[Run], None],
    *,
    layout: Layout | None = None,
    starts: Callable[[Run], bool] | None = None,
    falls: bool = False,
) -> None:
    """Hurt a run while it writes the first half of its input; then it changes, and is left alone.

    `starts` brings it to the end of that half. `falls` says that totals may, meanwhile.
    """
    layout = layout or LAYOUTS[number % len(LAYOUTS)]
    expected = reference(room, number // len(LAYOUTS), layout, timed=True)
    rng = random.Random(f"drill {name} {number}")
    folder = room / f"drill-{name}-{number}"
    run = Run.prepared(folder, expected.case, layout, edges, stores, **settings_of(number // len(LAYOUTS)))
    watch: AbstractContextManager[list[str]] = nullcontext([]) if falls else watched(run)
    # Servers die with the thread that starts them, so it is the flow that runs in another one.
    with watch as wrong, ThreadPoolExecutor(1) as executor:
        flow = executor.submit(starts or paced, run)
        until(lambda: flow.done() or is_written(run), "the flow does not begin to write", 0.02)
        assert not wait([flow], rng.random() / 2).done, f"the flow ended too early: {run.said()}"
        hurt(run)
        assert flow.result(), run.said()
        expected.change.befall(run)
        assert run.start(), run.said()
    told = f"{name} {number}, {layout} in {run.folder}"
    assert not wrong, (told, wrong[:5])
    same(expected, run, told)
    shutil.rmtree(run.folder)


def paced(run: Run) -> bool:
    return run.start(pace_ms=PACE_MS)


def is_written(run: Run) -> bool:
    """Whether there is a total in the store."""
    with suppress(StoreError), closing(run.stores.reader(run.folder)) as reader:
        return any(reader.totals())
    return False


def bad_line(proxy: Proxy) -> int:
    """Cuts and slows what passes, down to bytes one by one; how many connections were cut."""
    cut = 0
    for delay, piece in ((0.0, PIECE), (0.0, 1), (0.0, 7), (0.05, 4096)):
        proxy.delay, proxy.piece = delay, piece
        passed = proxy.passed
        time.sleep(0.2)

        def has_passed(before: int = passed) -> bool:
            return proxy.passed > before

        # On a busy machine it may take the flow longer to connect again.
        until(has_passed, "nothing passes")
        cut += proxy.cut()
    proxy.delay, proxy.piece = 0.0, PIECE
    with proxy.away():
        time.sleep(0.2)
    return cut


# Brokers


@on_each_store
@drills
def test_brokers_that_die_or_hang_or_are_on_a_bad_line_are_waited_for(
    room: Path, brokers: Brokers, stores: dict[str, Stores], number: int, store: str
) -> None:
    """Half an answer is none: it is asked for again, and nothing is counted twice."""
    cut: list[int] = []

    def hurt(run: Run) -> None:
        cut.append(bad_line(proxy))
        brokers.kill()
        brokers.start()
        brokers.wait()
        brokers.pause()
        time.sleep(PAUSE_S)
        brokers.resume()
        brokers.wait()

    def starts(run: Run) -> bool:
        # What is opened only now, as a sink is for its first record, does not wait for brokers as long as a source.
        return run.start_while("no broker can be reached; check the address", PACE_MS)

    with closing(Proxy(brokers.address("wire"), int(brokers.address("proxy").rpartition(":")[2]))) as proxy:
        topics = Topics(brokers, proxy.address)
        drill(room, f"brokers-{store}", number, topics, stores[store], hurt, starts=starts)
    assert sum(cut) > 1, "it was cut"


# Redis


@drills
def test_a_redis_that_dies_or_hangs_or_is_on_a_bad_line_is_waited_for(
    room: Path, kafka: Kafka, server: redis_server.Server, number: int
) -> None:
    """It hangs for several times as long as the flow waits for an answer."""
    cut: list[int] = []
    timeout = f"{min(ANSWER_S, PAUSE_S / 3) * 1000:.0f}ms"

    def hurt(run: Run) -> None:
        cut.append(bad_line(proxy))
        server.kill()
        time.sleep(0.2)
        server.start()
        server.pause()
        time.sleep(PAUSE_S)
        server.go_on()

    with closing(Proxy(f"127.0.0.1:{server.port}")) as proxy:
        drill(
            room, "redis", number, Topics(kafka), RedisKeys(server.port, proxy.address, timeout=timeout), hurt
        )
    assert sum(cut) > 1, "it was cut"


@drills
def test_a_redis_that_stays_away_ends_the_flow_which_goes_on_when_started_again(
    room: Path, kafka: Kafka, server: redis_server.Server, number: int
) -> None:
    """As its supervisor does, while the server is still away and after."""

    def hurt(run: Run) -> None:
        server.kill()
        started = run.starts
        until(lambda: run.starts > started, "the flow is not started again", 0.02)
        server.start()

    def starts(run: Run) -> bool:
        return run.start_while("after 0.5 s of trying; see that the servers run", PACE_MS)

    stores = RedisKeys(server.port, wait="500ms")
    drill(
        room,
        "redis-away",
        number,
        Topics(kafka),
        stores,
        hurt,
        # As a cluster first, in which it is harder to know what happened.
        layout=LAYOUTS[(number + 1) % len(LAYOUTS)],
        starts=starts,
    )


@drills
def test_a_redis_that_forgets_what_it_acknowledged_is_told_it_again(
    room: Path, kafka: Kafka, number: int
) -> None:
    """A power cut with `appendfsync everysec`. The flow that ends is asked for all totals, the next one writes them."""
    with redis_server.single("appendonly yes", "appendfsync everysec") as server:
        stores = RedisKeys(server.port)
        asked: list[int] = []

        def hurt(run: Run) -> None:
            kept, since = server.appended(), wall_clock()
            # What was not acknowledged before is written again by itself.
            until(
                lambda: (
                    server.appended() > kept + LOST_BYTES and stores.last_acknowledged(run.folder) > since
                ),
                "the flow does not go on to write",
            )
            server.kill()
            server.forget(kept)
            server.start()

        def starts(run: Run) -> bool:
            done = paced(run)
            asked.append(stores.resends(run.folder))
            return done and run.start()

        drill(room, "redis-forgets", number, Topics(kafka), stores, hurt, starts=starts, falls=True)
    assert asked > [0], "it is noticed by itself"
