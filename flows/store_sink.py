"""The flow's sink for totals: on the worker that made them, a transaction for some emissions each."""

import logging
from collections.abc import Callable, Iterator
from itertools import chain
from time import monotonic

from bytewax.outputs import DynamicSink, StatelessSinkPartition

from connectors.clock import wall_clock
from connectors.telemetry import Telemetry
from flows.shards import Emission
from operators.ports import StoreError, StoreWriter
from operators.totals import Totals

TOTALS_AT_ONCE = 50_000
_LOG = logging.getLogger("tidegate.store")


class StoreSink(DynamicSink[Emission]):
    """Writes totals and counters on the worker that made them, a transaction for some emissions each."""

    def __init__(
        self, open_writer: Callable[[int], StoreWriter], telemetry: Telemetry, *, live: bool
    ) -> None:
        self._open_writer = open_writer
        self._telemetry = telemetry
        self._live = live

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_StorePartition":
        return _StorePartition(self._open_writer(worker_index), self._telemetry, self._live)


class _StorePartition(StatelessSinkPartition[Emission]):
    def __init__(self, writer: StoreWriter, telemetry: Telemetry, live: bool) -> None:
        self._writer = writer
        self._telemetry = telemetry
        self._live = live

    def write_batch(self, items: list[Emission]) -> None:
        for together in _batches(items):
            self._write(together)

    def _write(self, items: list[Emission]) -> None:
        totals = Totals(chain.from_iterable(emission.totals.parts for emission in items))
        counters = list(chain.from_iterable(emission.counters for emission in items))
        notes = list(chain.from_iterable(emission.notes for emission in items))
        settled = list(chain.from_iterable(emission.settled for emission in items))
        began = monotonic()
        try:
            with self._telemetry.span("store.write", totals=len(totals), notes=len(notes)):
                self._writer.write(totals, counters, notes, settled)
        except StoreError as error:
            # In a cluster Bytewax says only that the other processes are gone.
            _LOG.error("%s", error)
            raise
        self._telemetry.write_seconds.observe(monotonic() - began)
        self._telemetry.rows.inc(len(totals))
        now = wall_clock()
        for emission in items:
            if emission.received_at:
                self._telemetry.visible.observe((now - emission.received_at) / 1e6)
            if self._live and emission.happened_at:
                self._telemetry.age.observe((now - emission.happened_at) / 1e6)

    def close(self) -> None:
        self._writer.close()


def _batches(items: list[Emission]) -> Iterator[list[Emission]]:
    """The emissions in their order, as many at a time as one transaction takes well: a huge one outgrows caches."""
    together: list[Emission] = []
    totals = 0
    for emission in items:
        totals += len(emission.totals)
        if together and totals > TOTALS_AT_ONCE:
            yield together
            together, totals = [], len(emission.totals)
        together.append(emission)
    yield together
