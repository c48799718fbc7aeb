"""Stream times: the current time in each stream of a shard, and how far back an event may still lie.

A stream is a partition of the source: a topic's partition, a file, a lane. With the transport's clock, now is a
stream's latest confirmed transport time; with the event clock it is kept for each customer of each stream. Streams that
are read at different speeds therefore do not make each other's events late. An event older than the lateness before
now, in every stream that may still bring events, is out of reach and may be forgotten.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.events.chunk import Chunk, Ints
from tidegate.operators.metering.clock import advance, is_outlier, prepare_clocks
from tidegate.operators.model.ports import StreamMark

StreamState = Literal["open", "idle", "ended"]

DAY = 86_400_000_000
SILENT_MAX = 35 * DAY
"""How far a stream goes on beyond a silent customer's own now (event clock) before it counts for that customer."""
PLACES_MAX = 8
"""How many streams have an index of their own."""

_CUSTOMER_BITS = 32
_FAR = 2**62


class Stream(msgspec.Struct):
    """A stream's state in a shard; times in µs since the epoch, 0 before the first event.

    `now` and `last` are its clock by the events of this shard, `reached` and `seen` by all events of the stream, as
    marks report them. `idle` means read to its end, `ended` that nothing more comes.
    """

    number: int
    state: StreamState = "open"
    now: int = 0
    last: int = 0
    reached: int = 0
    seen: int = 0


class Streams:
    """The clocks of one shard. With `wall`, now is the transport's time, otherwise the customer's event time."""

    def __init__(self, wall: bool, tolerance: int) -> None:
        self.wall = wall
        self.known: dict[str, Stream] = {}
        self.clocks = Table(1, {"now": np.int64, "last": np.int64})
        self.touched: list[Ints] = []
        self.whole = False
        self.outliers = 0
        """The number of unconfirmed times that would have made an event too late, since this was last 0."""
        # Rows of `clocks` by customer, for the first few streams, because a look-up in the table takes longer.
        self._places: dict[int, Ints] = {}
        self._tolerance = tolerance
        self._serial = 0

    def restore(self, known: dict[str, Stream]) -> None:
        """Restore the streams of a snapshot."""
        self.known = known
        self._serial = max((stream.number for stream in known.values()), default=0)

    def reopen(self) -> None:
        """Expect more of every stream until its marks say otherwise, as after a start."""
        for stream in self.known.values():
            stream.state = "open"

    def forget_progress(self) -> None:
        """Forget how far streams have come, because their marks were about the other clock."""
        for stream in self.known.values():
            stream.reached = stream.seen = 0

    def advance(self, chunk: Chunk, customer: Ints, lateness: int) -> tuple[Ints, Ints, Ints]:
        """Return now for each event, the customers whose clock moved (event clock), and their latest time."""
        stream = self._find_or_add(chunk.stream)
        if self.wall:
            return self._advance_transport(stream, chunk, lateness), _NONE, _NONE
        running = prepare_clocks(customer, chunk.at, self._tolerance)
        rows = self._assign_rows(stream.number, running.customers)
        columns = self.clocks.columns
        now, latest, last = running.advance(columns["now"][rows], columns["last"][rows])
        self.outliers += running.count_outliers(lateness)
        columns["now"][rows], columns["last"][rows] = latest, last
        self.touched.append(rows)
        return now, running.customers, latest

    def _advance_transport(self, stream: Stream, chunk: Chunk, lateness: int) -> Ints:
        if isinstance(chunk.taken, int):
            before = stream.last
            stream.now, stream.last = advance(stream.now, stream.last, chunk.taken, self._tolerance)
            self.outliers += is_outlier(before, stream.last, stream.now, lateness)
            return np.full(len(chunk), stream.now, np.int64)
        running = prepare_clocks(np.zeros(len(chunk), np.int64), chunk.taken, self._tolerance)
        now, latest, last = running.advance(np.array([stream.now]), np.array([stream.last]))
        self.outliers += running.count_outliers(lateness)
        stream.now, stream.last = int(latest[0]), int(last[0])
        return now

    def note_mark(self, mark: StreamMark) -> None:
        """Record what a mark says about its stream, and which streams there are."""
        if mark.parts:
            gone = self.known.keys() - set(mark.parts)
            self._drop([self.known.pop(name).number for name in sorted(gone)])
            for name in mark.parts:
                self._find_or_add(name)
        stream = self._find_or_add(mark.stream)
        if mark.state is not None:
            stream.state = mark.state
        if mark.at:
            stream.reached, stream.seen = advance(stream.reached, stream.seen, mark.at, self._tolerance)

    @property
    def transport_reach(self) -> int:
        """The earliest transport time that a future event can be judged by."""
        opened = self._list_open()
        nows = [max(stream.now, stream.reached) for stream in opened or self.known.values()]
        return min(nows) if opened else max(nows, default=0)

    def find_reach(self, latest: Ints) -> Ints:
        """Return for each customer the earliest now that a future event can be judged by; `latest` are their nows."""
        if self.wall:
            return np.full(len(latest), self.transport_reach, np.int64)
        opened = self._list_open()
        if not opened:
            reached = max((stream.reached for stream in self.known.values()), default=0)
            return np.maximum(latest, reached - SILENT_MAX)
        return self._find_event_reach(opened, len(latest))

    def _list_open(self) -> list[Stream]:
        return [stream for stream in self.known.values() if stream.state == "open"]

    def _find_event_reach(self, streams: list[Stream], customers: int) -> Ints:
        words = self.clocks.keys[0][: len(self.clocks)]
        number, customer = (words >> _BITS).astype(np.int64), (words & _MASK).astype(np.int64)
        clock = self.clocks.columns["now"]
        found = np.full(customers, _FAR, np.int64)
        for stream in streams:
            rows = np.flatnonzero(number == stream.number)
            own = np.full(customers, stream.reached, np.int64)
            own[customer[rows]] = np.maximum(clock[rows], stream.reached - SILENT_MAX)
            np.minimum(found, own, out=found)
        return found

    def _assign_rows(self, number: int, customers: Ints) -> Ints:
        """Return the row of each customer's clock in a stream; `customers` is ascending and not empty."""
        known = self._places.get(number, _NONE)
        if int(customers[-1]) >= len(known):
            if number not in self._places and len(self._places) >= PLACES_MAX:
                return self.clocks.claim(_pack_keys(number, customers))[0]
            grown = np.full(int(customers[-1]) * 5 // 4 + 64, -1, np.int64)
            grown[: len(known)] = known
            known = self._places[number] = grown
        rows = known[customers]
        new = rows < 0
        if new.any():
            fresh = customers[new]
            rows[new] = known[fresh] = self.clocks.claim(_pack_keys(number, fresh))[0]
        return rows

    def _find_or_add(self, name: str) -> Stream:
        stream = self.known.get(name)
        if stream is None:
            self._serial += 1
            stream = self.known[name] = Stream(self._serial)
        return stream

    def _drop(self, numbers: Iterable[int]) -> None:
        gone = np.array(list(numbers), np.uint64)
        if not len(gone):
            return
        words = self.clocks.keys[0][: len(self.clocks)]
        self.clocks.keep(~np.isin(words >> _BITS, gone))
        self._places.clear()
        self.whole = True


def _pack_keys(number: int, customer: Ints) -> "np.typing.NDArray[np.uint64]":
    return customer.astype(np.uint64) | np.uint64(number << _CUSTOMER_BITS)


_BITS, _MASK = np.uint64(_CUSTOMER_BITS), np.uint64((1 << _CUSTOMER_BITS) - 1)
_NONE = np.empty(0, np.int64)
