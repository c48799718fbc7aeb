"""Redis loses what it holds while events come, again and again: what it holds then is right, and never half of it.

The flow is the real command, and after each loss its totals are held against the oracle of the benchmarks.
TIDEGATE_LOSSES says how many losses there are of each kind (2), TIDEGATE_LOSS_EVENTS how many events come before, with
and after each (2,000).
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import Any

import pytest

from benchmarks.generate import Workload, generate
from benchmarks.oracle import Row, compare, expected
from tests.faults.support.harness import fallen
from tests.flows.conftest import SECONDS, Place
from tests.flows.meter.test_redis import reader_of, seen_in, server, settings_of, tidegate
from tests.support.options import option
from tests.support.redis_server import Server, waited_for
from tidegate.connectors.redis.reader import RedisReader
from tidegate.operators.model.ports import StoredTotal, StoreIncomplete
from tidegate.operators.model.records import Total

__all__ = ["server"]

LOSSES = int(option("TIDEGATE_LOSSES", "2"))
EVENTS = int(option("TIDEGATE_LOSS_EVENTS", "2000"))
KEYS = 1_000
AT_ONCE, PACE_S = 50, 0.01
LOST_BYTES = 50_000


class Feed(Thread):
    """Gives a flow a share of events after the other, each when asked for `more` and then little by little.

    `right` is what the shares add up to: the first one, the first two, and so on.
    """

    def __init__(self, folder: Path, shares: int) -> None:
        super().__init__()
        dataset = generate(Workload(events=EVENTS * shares, keys=KEYS, parts=1), folder)
        lines = dataset.whole.read_bytes().splitlines(keepends=True)
        self.catalog, self.path = dataset.catalog, folder / "in.ndjson"
        self._shares = [lines[at : at + EVENTS] for at in range(0, len(lines), EVENTS)]
        self.right: list[Path] = []
        for number in range(shares):
            with (folder / "so-far.ndjson").open("ab") as file:
                file.writelines(self._shares[number])
            self.right.append(expected([folder / "so-far.ndjson"], folder / f"right-{number}.parquet"))
        self._asked = Semaphore(0)
        self.path.touch()

    def run(self) -> None:
        with self.path.open("ab", buffering=0) as file:
            for lines in self._shares:
                self._asked.acquire()
                for at in range(0, len(lines), AT_ONCE):
                    Event().wait(PACE_S)
                    file.write(b"".join(lines[at : at + AT_ONCE]))

    def more(self) -> None:
        self._asked.release()

    def end(self) -> None:
        self._asked.release(len(self._shares))
        self.join(SECONDS)


@contextmanager
def looking(server: Server) -> Iterator[list[str]]:
    """Reads all totals, and those of one customer, all the while; lists what was gone or smaller than before."""
    wrong: list[str] = []
    done = Event()

    def look(read: Callable[[RedisReader], list[StoredTotal]]) -> None:
        seen: dict[tuple[Any, ...], Total] = {}
        with reader_of(server) as reader:
            while not done.wait(0.001):
                try:
                    stored = read(reader)
                except StoreIncomplete:
                    continue
                gone = seen.keys() - {one.total[:4] for one in stored}
                wrong.extend(f"{key} is gone" for key in gone)
                wrong.extend(each for one in stored for each in fallen(seen, one))

    looks = [
        Thread(target=look, args=(lambda reader: list(reader.totals()),)),
        Thread(target=look, args=(lambda reader: reader.read("cust-000007"),)),
    ]
    for thread in looks:
        thread.start()
    try:
        yield wrong
    finally:
        done.set()
        for thread in looks:
            thread.join()


def is_right(server: Server, right: Path) -> bool:
    """Whether the store is whole, and holds what it should to the last total."""
    totals = (seen_in(server) or {}).values()
    rows = [Row(t.customer, t.meter, t.window, t.start, str(t.total), t.events) for t in totals]
    return compare(rows, right).is_exact


def emptied(server: Server, _: int) -> None:
    server.ask("FLUSHALL")


def set_back(server: Server, to: int) -> None:
    """To what it held so many bytes ago, as by a power cut before they were forced to disk."""
    waited_for(lambda: server.appended() > to + LOST_BYTES, "the flow to go on")
    server.kill()
    server.forget(to)
    server.start()


@pytest.mark.parametrize("lose", [emptied, set_back])
def test_a_store_that_loses_what_it_holds_under_load_is_right_again(
    place: Place, server: Server, lose: Callable[[Server, int], None]
) -> None:
    """By itself, or when `tidegate store rebuild` has asked for it.

    Whoever reads it meanwhile is told, or sees totals that don't fall; only those of a server that was set back do.
    """
    rng = random.Random(f"{lose.__name__} {LOSSES}")
    feed = Feed(place.folder, LOSSES + 1)
    settings = {**settings_of(server), "CATALOG": str(feed.catalog), "CLOCK": "event"}
    feed.start()
    try:
        looks: AbstractContextManager[list[str]] = nullcontext([]) if lose is set_back else looking(server)
        with place.running(**settings), looks as wrong:
            feed.more()
            waited_for(lambda: is_right(server, feed.right[0]), "the first totals")
            for number in range(1, LOSSES + 1):
                before = server.appended()
                feed.more()
                Event().wait(rng.random() * PACE_S * EVENTS / AT_ONCE)
                lose(server, before)
                if lose is emptied and number % 2:
                    done = tidegate(place, server, "store", "rebuild")
                    assert done.returncode == 0, done.stderr
                waited_for(partial(is_right, server, feed.right[number]), f"all after loss {number}")
    finally:
        feed.end()
    assert not wrong, wrong[:5]
