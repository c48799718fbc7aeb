"""The branch of the store: totals are written on the worker that made them, a transaction for some emissions each.

    emissions ─ write ─ stored ─ store

`write` does it, or in a backlog has it done: then a thread hands large writes to a process of its own
(connectors/sqlite/writer_process.py), while the worker goes on. It numbers its writes. `stored` is there for its
snapshots, which wait until all is stored up to the last number of their epoch: so no epoch counts as done whose
totals are not in the store. `store` is told the worker's number, opens the writer and closes it.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import chain
from threading import get_ident
from time import monotonic

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.engine import (
    DynamicSink,
    KeyedStream,
    StatefulBatchLogic,
    StatelessSinkPartition,
    op,
)
from tidegate.flows.meter.emission import Emission
from tidegate.flows.runtime.error_logging import log_errors, log_sink_errors
from tidegate.flows.runtime.metrics import Telemetry
from tidegate.operators.metering.totals import Totals
from tidegate.operators.model.ports import StoreWriter

TOTALS_AT_ONCE = 50_000
# Of totals that wait for another process: so many keep it busy, and if there are more than the most it is waited for.
AHEAD, AHEAD_MAX = 200_000, 1_000_000
# The process of a backlog that is worked off keeps its memory for so long.
IDLE_S = 60.0


class _Unstored:
    """How many totals a worker's shards gave that the store does not have yet."""

    def __init__(self, large: int) -> None:
        self._large = large
        # Each has a thread that changes it.
        self.given = self.stored = 0
        self.last = 0
        """How many were last given at once."""
        self.seconds = 0.0
        """What the last write took, per total."""
        self.epoch_end = float("inf")
        """When the next snapshot will wait for what is not stored, by the monotonic clock."""

    def __len__(self) -> int:
        return self.given - self.stored

    def has_room(self, now: float) -> bool:
        """Whether one more would be written at once, or at least soon and before the worker has to wait for it."""
        waiting = len(self)
        if waiting < self._large:
            return True
        return waiting < AHEAD and now + (waiting + self.last) * self.seconds < self.epoch_end

    def expect(self, totals: int) -> None:
        """Count the totals that a shard gives."""
        self.given += totals
        self.last = totals


class _Worker:
    """What belongs to a worker, which is a thread."""

    def __init__(self, large: int) -> None:
        self.unstored = _Unstored(large)
        self.writes: _Writes | None = None


class StoreStep:
    """The store's writers, one for each worker of this process.

    `open_aside` opens one that may take its time, None where there is none; from `large` totals on it is used.
    """

    def __init__(
        self,
        open_writer: Callable[[int], StoreWriter],
        open_aside: Callable[[], StoreWriter] | None,
        telemetry: Telemetry,
        *,
        live: bool,
        large: int,
        epoch: timedelta,
    ) -> None:
        self._open_writer = open_writer
        self._open_aside = open_aside
        self._telemetry = telemetry
        self._live = live
        self._large = large
        self._epoch_s = epoch.total_seconds()
        # Python's own thread-local data is gone whenever a thread of Bytewax lets go of the interpreter.
        self._workers: defaultdict[int, _Worker] = defaultdict(partial(_Worker, large))

    def attach(self, emissions: KeyedStream[Emission]) -> None:
        """Append the steps to a flow."""
        handed_on = op.flat_map_batch("write", emissions, self._write)
        stored: KeyedStream[None] = op.stateful_batch("stored", handed_on, self._stored)
        op.output("store", stored, log_sink_errors(_Sink(self._open)))

    @property
    def is_aside(self) -> bool:
        """Whether the worker goes on while a process of its own writes."""
        return self._open_aside is not None

    def has_room(self) -> bool:
        """Whether what the worker's shards give now will be written soon."""
        return not self.is_aside or self._worker.unstored.has_room(monotonic())

    def expect(self, totals: int) -> None:
        """Tells that so many totals are on their way from a shard of this worker."""
        self._worker.unstored.expect(totals)

    @log_errors
    def _write(self, items: list[tuple[str, Emission]]) -> list[tuple[str, int]]:
        return self._writes.write(items)

    def _stored(self, state: None) -> "_Stored":
        return _Stored(self._writes)

    @property
    def _worker(self) -> _Worker:
        return self._workers[get_ident()]

    @property
    def _writes(self) -> "_Writes":
        writes = self._worker.writes
        assert writes is not None, "the sink is built first"
        return writes

    def _open(self, number: int) -> "_Writes":
        """Open the writer of a worker, on its thread."""
        worker = self._worker
        with self._telemetry.track_store_wait():
            writer = self._open_writer(number)
        worker.writes = _Writes(
            writer,
            self._open_aside,
            worker.unstored,
            self._telemetry,
            live=self._live,
            large=self._large,
            epoch_s=self._epoch_s,
        )
        return worker.writes


class _Writes:
    """The writes of one worker, in their order."""

    def __init__(
        self,
        writer: StoreWriter,
        open_aside: Callable[[], StoreWriter] | None,
        unstored: _Unstored,
        telemetry: Telemetry,
        *,
        live: bool,
        large: int,
        epoch_s: float,
    ) -> None:
        self._writer = writer
        self._open_aside = open_aside
        self._unstored = unstored
        self._aside: StoreWriter | None = None
        self._used_at = 0.0
        self._thread = ThreadPoolExecutor(1, "store")
        self._waiting: deque[Emission] = deque()
        self._number = 0
        self._under_way: deque[tuple[int, Future[None]]] = deque()
        self._last_large: Future[None] = Future()
        self._last_large.set_result(None)
        self._telemetry = telemetry
        self._live = live
        self._large = large
        self._epoch_s = epoch_s

    def write(self, items: list[tuple[str, Emission]]) -> list[tuple[str, int]]:
        """Write emissions, or hand them to the writer process; return one of their keys and the last write's number."""
        self._settle(lambda _, write: write.done() or len(self._unstored) > AHEAD_MAX)
        emissions = [emission for _, emission in items]
        large = sum(len(emission.totals) for emission in emissions) >= self._large
        # What follows a large write waits its turn, which is also the order in which others see it.
        if self._open_aside is not None and (large or not self._last_large.done()):
            self._aside = self._aside or self._open_aside()
            self._used_at = monotonic()
            self._waiting.extend(emissions)
            write = self._thread.submit(self._store_waiting, self._aside)
            self._number += 1
            self._under_way.append((self._number, write))
            if large:
                self._last_large = write
        else:
            self.settle(self._number)
            self._store(self._writer, emissions)
            self._end_idle_process()
        return [(key, self._number) for key, _ in items[:1]]

    def settle(self, last: int) -> None:
        """Wait until everything is stored up to the write of this number."""
        self._settle(lambda number, _: number <= last)

    def end_epoch(self, last: int) -> None:
        """As an epoch ends, whose last write this was, so that all that it counted is stored."""
        self._unstored.epoch_end = monotonic() + self._epoch_s
        self.settle(last)

    def close(self) -> None:
        self._thread.shutdown()
        self._writer.close()
        if self._aside is not None:
            self._aside.close()

    def _settle(self, wanted: Callable[[int, Future[None]], bool]) -> None:
        while self._under_way and wanted(*self._under_way[0]):
            self._under_way.popleft()[1].result()

    def _end_idle_process(self) -> None:
        """End the writer process if it had nothing to do for a while."""
        if self._aside is not None and monotonic() > self._used_at + IDLE_S:
            self._aside.close()
            self._aside = None

    def _store_waiting(self, writer: StoreWriter) -> None:
        """On the thread: what came while it wrote is written together."""
        self._store(writer, [self._waiting.popleft() for _ in range(len(self._waiting))])

    def _store(self, writer: StoreWriter, emissions: list[Emission]) -> None:
        for together in _split_batches(emissions):
            self._write(writer, together)

    def _write(self, writer: StoreWriter, together: list[Emission]) -> None:
        totals = Totals(chain.from_iterable(emission.totals.changed for emission in together))
        counters = list(chain.from_iterable(emission.counters for emission in together))
        notes = list(chain.from_iterable(emission.notes for emission in together))
        settled = list(chain.from_iterable(emission.settled for emission in together))
        # Of a shard the last one stands; they come in order.
        heartbeats = [one.heartbeat for one in together if one.heartbeat is not None]
        began = monotonic()
        with (
            self._telemetry.span("store.write", totals=len(totals), notes=len(notes)),
            self._telemetry.track_store_wait(),
        ):
            writer.write(totals, counters, notes, settled, heartbeats)
        self._telemetry.heartbeats.update((one.shard, one) for one in heartbeats)
        took = monotonic() - began
        self._telemetry.write_seconds.observe(took)
        self._telemetry.rows.inc(len(totals))
        if totals:
            self._unstored.stored += len(totals)
            self._unstored.seconds = took / len(totals)
        now = wall_clock()
        for emission in together:
            if emission.received_at:
                self._telemetry.visible.observe((now - emission.received_at) / 1e6)
            if self._live and emission.happened_at:
                self._telemetry.age.observe((now - emission.happened_at) / 1e6)


class _Stored(StatefulBatchLogic[int, None, None]):
    """Has nothing to keep, and is asked for it when an epoch ends or the input does."""

    def __init__(self, writes: _Writes) -> None:
        self._writes = writes
        self._last = 0

    def on_batch(self, values: list[int]) -> tuple[Iterable[None], bool]:
        self._last = values[-1]
        return (), StatefulBatchLogic.RETAIN

    @log_errors
    def on_eof(self) -> tuple[Iterable[None], bool]:
        self._writes.settle(self._last)
        return (), StatefulBatchLogic.RETAIN

    @log_errors
    def snapshot(self) -> None:
        self._writes.end_epoch(self._last)


class _Sink(DynamicSink[tuple[str, None]]):
    def __init__(self, open_writes: Callable[[int], _Writes]) -> None:
        self._open_writes = open_writes

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Part":
        return _Part(self._open_writes(worker_index))


class _Part(StatelessSinkPartition[tuple[str, None]]):
    def __init__(self, writes: _Writes) -> None:
        self._writes = writes

    def write_batch(self, items: list[tuple[str, None]]) -> None:
        assert not items, "what is written ends in its step"

    def close(self) -> None:
        self._writes.close()


def _split_batches(emissions: Iterable[Emission]) -> Iterator[list[Emission]]:
    """Split emissions, in their order, into batches of a size that one transaction writes well."""
    together: list[Emission] = []
    totals = 0
    for emission in emissions:
        totals += len(emission.totals)
        if together and totals > TOTALS_AT_ONCE:
            yield together
            together, totals = [], len(emission.totals)
        together.append(emission)
    if together:
        yield together
