"""Totals that are written while the next are counted: in order, in bounds, and before an epoch is over."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from threading import Barrier, Semaphore

import numpy as np
import pytest

from tests.flows.conftest import Place
from tests.flows.meter.test_metering import COUNTERS, FIRST, SECOND, eventually
from tidegate.flows.meter import store_step
from tidegate.flows.meter.emission import Emission
from tidegate.flows.meter.store_step import StoreStep, _Stored
from tidegate.flows.runtime.metrics import Telemetry
from tidegate.operators.metering.totals import ChangedTotals, Totals
from tidegate.operators.metering.windows import pack_window
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Note, Settled, StoreError
from tidegate.operators.model.records import Counter, Total

EPOCH = timedelta(seconds=10)


class Slow:
    """A writer that writes when it is let, and notes what it wrote."""

    def __init__(self) -> None:
        self.wrote: list[list[str]] = []
        self.fails = False
        self.is_open = True
        self.meanwhile: Callable[[], object] = lambda: None
        self._may = Semaphore(0)

    def let(self, writes: int = 1000) -> None:
        """It may write so many times."""
        self._may.release(writes)

    def write(
        self,
        totals: Sequence[Total],
        counters: Sequence[Counter],
        notes: Sequence[Note] = (),
        settled: Sequence[Settled] = (),
        heartbeats: Sequence[Heartbeat] = (),
    ) -> None:
        assert self._may.acquire(timeout=60)
        self.meanwhile()
        if self.fails:
            raise StoreError("store: the disk is full")
        assert self.is_open
        self.wrote.append([total.customer for total in totals] + [note.id for note in notes])

    def close(self) -> None:
        self.is_open = False


def totals_of(*customers: str) -> Totals:
    """A total of each, as a shard gives them."""
    place = np.arange(len(customers))
    nothing = np.zeros(len(customers), np.int64)
    words = pack_window(place, 0, nothing)
    columns = [nothing] * 8
    return Totals([ChangedTotals(customers, ["calls"], words, place, nothing, nothing == 0, columns, {}, {})])


def emission(*customers: str, note: str = "") -> Emission:
    totals = totals_of(*customers) if customers else Totals()
    notes = [Note("alert", note, "acme", 1, b"{}")] if note else []
    return Emission(totals, [], [], [], [], notes, [], 0, 0)


class World:
    """A worker's steps, driven by hand."""

    def __init__(self, large: int = 2) -> None:
        self.here, self.aside = Slow(), Slow()
        self.here.let()
        self.storing = StoreStep(
            lambda worker: self.here, lambda: self.aside, Telemetry(), live=False, large=large, epoch=EPOCH
        )
        self.writes = self.storing._open(0)
        self.logic = _Stored(self.writes)

    def give(self, *emissions: Emission) -> None:
        for each in emissions:
            if each.totals:
                self.storing.expect(len(each.totals))
        self.write(*emissions)

    def write(self, *emissions: Emission) -> None:
        """What was expected before."""
        [(key, number)] = self.writes.write([("0.1", each) for each in emissions])
        assert key == "0.1"
        self.logic.on_batch([number])

    def settle(self) -> None:
        """Waits until all is stored."""
        self.logic.on_eof()


@contextmanager
def going_on(act: Callable[[], object]) -> Iterator[None]:
    """The act waits for what the block does, and then comes to its end."""
    with ThreadPoolExecutor(1) as other:
        acting = other.submit(act)
        assert not wait([acting], 0.05).done
        yield
        acting.result(60)


@pytest.fixture
def world() -> World:
    return World()


def test_a_small_write_is_done_at_once(world: World) -> None:
    """The hand-over would cost it more time than the writing."""
    world.give(emission("a"))
    assert world.here.wrote == [["a"]] and not world.aside.wrote


def test_what_follows_a_large_write_does_not_overtake_it(world: World) -> None:
    """Or a reader could see an alert before the total that set it off, and an older counter last."""
    world.give(emission("a", "b"))
    world.give(emission("c"), emission(note="n"))
    assert not world.here.wrote
    world.aside.let()
    world.settle()
    assert [name for wrote in world.aside.wrote for name in wrote] == ["a", "b", "c", "n"]
    world.give(emission("d"))
    assert world.here.wrote == [["d"]]


def test_what_follows_that_does_not_overtake_it_either(world: World) -> None:
    """What is small again, but comes while something small still waits for its turn behind a large write."""
    world.give(emission("a", "b"))
    world.give(emission("c"))
    world.aside.let(1)
    world.writes._last_large.result()
    with going_on(lambda: world.write(emission("d"))):
        assert not world.here.wrote
        world.aside.let()
    assert (world.aside.wrote, world.here.wrote) == ([["a", "b"], ["c"]], [["d"]])


def test_a_worker_too_far_ahead_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it gave and what is not yet written is in memory."""
    monkeypatch.setattr(store_step, "AHEAD_MAX", 3)
    world.give(emission("a", "b"))
    world.storing.expect(2)
    with going_on(lambda: world.write(emission("c", "d"))):
        world.aside.let()
    world.settle()
    assert world.aside.wrote == [["a", "b"], ["c", "d"]]


def test_a_huge_write_is_parted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between emissions, as each is seen whole or not at all."""
    monkeypatch.setattr(store_step, "TOTALS_AT_ONCE", 4)
    world.aside.let()
    world.give(emission("e", "f", "g", "h", "i"), emission("a", "b"), emission("c", "d"), emission("j"))
    world.settle()
    assert world.aside.wrote == [["e", "f", "g", "h", "i"], ["a", "b", "c", "d"], ["j"]]


def test_each_worker_has_a_writer_of_its_own() -> None:
    """Connections of SQLite belong to a thread."""
    writers = [Slow(), Slow()]
    steps = StoreStep(writers.__getitem__, None, Telemetry(), live=False, large=2, epoch=EPOCH)
    opened = Barrier(2)

    def work(worker: int) -> None:
        writers[worker].let()
        steps._open(worker)
        opened.wait(60)
        steps._write([("0.1", emission(f"of {worker}"))])

    with ThreadPoolExecutor(2) as workers:
        assert list(workers.map(work, range(2))) == [None, None]
    assert [writer.wrote for writer in writers] == [[["of 0"]], [["of 1"]]]


@pytest.mark.parametrize("end", ["snapshot", "on_eof"])
def test_an_epoch_is_over_when_its_totals_are_stored(world: World, end: str) -> None:
    """Else a kill right after the snapshot would lose totals that no replay brings again."""
    world.give(emission("a", "b"))
    with going_on(getattr(world.logic, end)):
        world.aside.let()
    assert world.aside.wrote == [["a", "b"]]


def test_an_epoch_does_not_wait_for_totals_of_the_next(world: World) -> None:
    """Those that a shard gave after its snapshot, before the last shard of the epoch was saved."""
    world.give(emission("a", "b"))
    eventually(lambda: not world.writes._waiting)
    world.writes.write([("0.2", emission("c", "d"))])
    world.aside.let(1)
    world.logic.snapshot()
    assert world.aside.wrote == [["a", "b"]]
    world.aside.let()


@pytest.mark.parametrize("how", ["snapshot", "write"])
def test_a_write_that_failed_ends_the_flow(world: World, how: str) -> None:
    """By the next write, and at the latest before the epoch counts as done."""
    world.aside.fails = True
    world.aside.let()
    world.give(emission("a", "b"))
    with pytest.raises(StoreError, match="disk is full"):
        if how == "snapshot":
            world.logic.snapshot()
        else:
            while True:
                world.give(emission(note="n"))


def test_shards_gather_totals_while_the_store_has_no_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a backlog is written in few large pieces, and does not pile up in memory."""
    monkeypatch.setattr(store_step, "AHEAD", 6)
    for _ in range(3):
        assert world.storing.has_room()
        world.give(emission("a", "b"))
    assert not world.storing.has_room()
    world.aside.let()
    world.settle()
    assert world.storing.has_room()


def test_small_totals_of_many_shards_are_never_held_back() -> None:
    """All shards of a live flow give theirs before the first is written; whoever came late would wait for a turn."""
    world = World(large=100)
    world.writes._unstored.seconds = 1000.0
    world.logic.snapshot()
    for _ in range(16):
        assert world.storing.has_room()
        world.storing.expect(6)


def test_before_a_snapshot_no_more_is_begun_than_gets_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker would wait for it. What finds little before it is never held back."""
    now = [100.0]
    monkeypatch.setattr(store_step, "monotonic", lambda: now[0])
    world.aside.meanwhile = lambda: now.append(now.pop() + 1.0)
    world.aside.let(1)
    world.give(emission("a", "b"))
    world.logic.snapshot()
    world.give(emission("c", "d"))
    now[0] += EPOCH.total_seconds() - 2.5
    assert world.storing.has_room()
    now[0] += 1.0
    assert not world.storing.has_room()
    world.aside.let()
    world.settle()
    now[0] += 1000.0
    assert world.storing.has_room()


def test_the_other_process_ends_when_nothing_large_came_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(store_step, "monotonic", lambda: now[0])
    world.aside.let()
    world.give(emission("a", "b"))
    world.settle()
    world.give(emission("c"))
    assert world.aside.is_open
    now[0] += store_step.IDLE_S + 1
    world.give(emission("d"))
    assert not world.aside.is_open


def test_it_is_closed_once_all_is_written(world: World) -> None:
    world.give(emission("a", "b"))
    with going_on(world.writes.close):
        assert world.aside.is_open and world.here.is_open
        world.aside.let()
    assert world.aside.wrote == [["a", "b"]]
    assert not world.aside.is_open and not world.here.is_open


def test_a_flow_that_writes_aside_leaves_the_same(place: Place) -> None:
    """Through the real command, with processes that are started, used and gone; also from two threads."""
    place.append("first.jsonl")
    place.run(STORE_ASIDE="1")
    assert (place.periods(), place.counters()) == (FIRST, COUNTERS)
    place.append("second.jsonl")
    place.run("-w", "2", STORE_ASIDE="1")
    assert place.periods() == SECOND
