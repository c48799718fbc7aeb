"""The flow's step from polls to chunks, and the way of control records to their shards."""

from collections.abc import Iterable
from time import monotonic

from tidegate.flows.meter.control_source import ControlItem
from tidegate.flows.runtime.error_logging import log_errors
from tidegate.flows.runtime.metrics import Telemetry
from tidegate.operators.events.chunk import Chunk, Ints
from tidegate.operators.events.customers import Customers
from tidegate.operators.events.decode import Decoder
from tidegate.operators.events.keys import shard_of
from tidegate.operators.events.routing import list_shard_names
from tidegate.operators.model.catalog import VersionedCatalog
from tidegate.operators.model.freshness import ProgressMark
from tidegate.operators.model.ports import Adjustment, Payloads, StreamMark
from tidegate.settings.catalog.versions import CatalogFollower
from tidegate.settings.settings import Settings

LOOK_EVERY = 0.01
"""Seconds between looks for a newer catalog."""

MARK_EVERY = 1.0
"""Seconds between two marks of how far a stream has come, at least; longer where there are many streams."""

Directed = tuple[str, tuple[int, Chunk | ControlItem | StreamMark | ProgressMark]]
"""An item and the shard that it goes to: its name, as a Bytewax key, and its number."""


class DecodeStep:
    """Polls to chunks under the newest catalog that this process was told of, and control records to their shards."""

    def __init__(self, settings: Settings, catalogs: CatalogFollower, telemetry: Telemetry) -> None:
        self._settings = settings
        self._catalogs = catalogs
        self._telemetry = telemetry
        self._names = list_shard_names(settings.shards)
        self._catalog = catalogs.current
        self._decoder = self._decoder_of(self._catalog, None)
        self._look_at = 0.0
        self._marked: dict[str, float] = {}

    @log_errors
    def chunks(self, polls: list[Payloads | ProgressMark]) -> list[Directed]:
        """Return each poll's chunks for their shards, and each mark for every shard."""
        self._follow()
        names = self._names
        directed: list[Directed] = []
        for poll in polls:
            if isinstance(poll, ProgressMark):
                directed += ((name, (shard, poll)) for shard, name in enumerate(names))
                continue
            if poll.mark is not None:
                directed += self._send_to_all(poll.mark)
                continue
            with self._telemetry.span("decode", bytes=len(poll.block)):
                chunks = self._decoder.decode(poll)
            for shard, chunk in chunks:
                chunk.position = poll.position
                directed.append((names[shard], (shard, chunk)))
            directed += self._add_progress(poll, [chunk for _, chunk in chunks])
        return directed

    def _send_to_all(self, mark: StreamMark) -> Iterable[Directed]:
        return ((name, (shard, mark)) for shard, name in enumerate(self._names))

    def _add_progress(self, poll: Payloads, chunks: list[Chunk]) -> Iterable[Directed]:
        """How far the stream has come by this poll, to all shards: some get none of its events."""
        now = monotonic()
        if now < self._marked.get(poll.stream, 0.0) or not any(map(len, chunks)):
            return ()
        self._marked[poll.stream] = now + MARK_EVERY * (1 + len(self._marked) // 16)
        return self._send_to_all(StreamMark(poll.stream, None, self._find_earliest(chunks)))

    def _find_earliest(self, chunks: list[Chunk]) -> int:
        """Return the earliest time in a poll, the transport's or that of an event, by the clock in use."""
        times: list[Ints | int]
        if self._settings.now == "wall":
            times = [chunk.taken for chunk in chunks if len(chunk)]
        else:
            times = [chunk.at for chunk in chunks if len(chunk)]
        return min(each if isinstance(each, int) else int(each.min()) for each in times)

    @log_errors
    def direct(self, item: ControlItem) -> Iterable[Directed]:
        """Route a control record to the shard of its customer, or to all shards."""
        if isinstance(item, Adjustment):
            shard = shard_of(item.customer, self._settings.shards)
            return [(self._names[shard], (shard, item))]
        return [(name, (shard, item)) for shard, name in enumerate(self._names)]

    def _follow(self) -> None:
        """Decode under a newer catalog from now on, if there is one. Each process looks for itself."""
        now = monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            with self._telemetry.track_store_wait():
                newest = self._catalogs.follow()
            if newest.number > self._catalog.number:
                self._decoder = self._decoder_of(newest, self._decoder.customers)
                self._catalog = newest

    def _decoder_of(self, version: VersionedCatalog, customers: Customers | None) -> Decoder:
        return Decoder(
            version.catalog,
            shards=self._settings.shards,
            clock=self._settings.now,
            future=self._settings.future,
            payload_bytes_max=self._settings.payload_bytes_max,
            number=version.number,
            customers=customers,
        )
