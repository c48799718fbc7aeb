"""What time it is in each stream of a shard, and how far back an event may still come.

A stream is a partition of the source: a topic's partition, a file, a lane. With the transport's clock now is a
stream's latest confirmed transport time; with the event clock it is kept for each customer of each stream. So streams
that are read at different speeds make nothing of each other late. What is older than the lateness before now in every
stream that may still bring something is out of reach, and may be forgotten.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np

from tidegate.operators.columns.hash_table import Table
from tidegate.operators.events.chunk import Chunk, Ints
from tidegate.operators.metering.clock import advance, is_outlier, running_now
from tidegate.operators.model.ports import StreamMark

State = Literal["open", "idle", "ended"]

DAY = 86_400_000_000
SILENT_MAX = 35 * DAY
"""How far a stream goes on beyond a silent customer's own now (event clock) before it counts for that customer."""
PLACES_MAX = 8
"""How many streams have an index of their own."""

_CUSTOMER_BITS = 32
_FAR = 2**62


class Stream(msgspec.Struct):
    """A stream as a shard knows it; times in µs since the epoch, 0 before the first.

    `now` and `last` are its clock by the events of this shard, `reached` and `seen` by all of the stream's, as marks
    report it. `idle` means read to its end, `ended` that nothing more comes.
    """

    number: int
    state: State = "open"
    now: int = 0
    last: int = 0
    reached: int = 0
    seen: int = 0


class Streams:
    """The clocks of one shard. `wall` says that now is the transport's time, else it is the customer's event time."""

    def __init__(self, wall: bool, tolerance: int) -> None:
        self.wall = wall
        self.known: dict[str, Stream] = {}
        self.clocks = Table(1, {"now": np.int64, "last": np.int64})
        self.touched: list[Ints] = []
        self.whole = False
        self.outliers = 0
        """Times that nothing confirmed and that would have made an event too late, since this was last 0."""
        # Rows of `clocks` by customer, for the first few streams: a look-up in the table takes longer.
        self._places: dict[int, Ints] = {}
        self._tolerance = tolerance
        self._serial = 0

    def restore(self, known: dict[str, Stream]) -> None:
        """Take over streams as a snapshot left them."""
        self.known = known
        self._serial = max((stream.number for stream in known.values()), default=0)

    def reopen(self) -> None:
        """Expect more of every stream until its marks say otherwise, as after a start."""
        for stream in self.known.values():
            stream.state = "open"

    def forget_progress(self) -> None:
        """Take it that nothing is known of how far streams have come, as marks were about the other clock."""
        for stream in self.known.values():
            stream.reached = stream.seen = 0

    def now(self, chunk: Chunk, customer: Ints, lateness: int) -> tuple[Ints, Ints, Ints]:
        """Return now for each event, the customers whose clock moved (event clock), and their latest time."""
        stream = self._of(chunk.stream)
        if self.wall:
            return self._transport_now(stream, chunk, lateness), _NONE, _NONE
        running = running_now(customer, chunk.at, self._tolerance)
        rows = self._rows(stream.number, running.customers)
        columns = self.clocks.columns
        now, latest, last = running.advance(columns["now"][rows], columns["last"][rows])
        self.outliers += running.outliers(lateness)
        columns["now"][rows], columns["last"][rows] = latest, last
        self.touched.append(rows)
        return now, running.customers, latest

    def _transport_now(self, stream: Stream, chunk: Chunk, lateness: int) -> Ints:
        if isinstance(chunk.taken, int):
            before = stream.last
            stream.now, stream.last = advance(stream.now, stream.last, chunk.taken, self._tolerance)
            self.outliers += is_outlier(before, stream.last, stream.now, lateness)
            return np.full(len(chunk), stream.now, np.int64)
        running = running_now(np.zeros(len(chunk), np.int64), chunk.taken, self._tolerance)
        now, latest, last = running.advance(np.array([stream.now]), np.array([stream.last]))
        self.outliers += running.outliers(lateness)
        stream.now, stream.last = int(latest[0]), int(last[0])
        return now

    def note(self, mark: StreamMark) -> None:
        """Take in what a mark says of its stream, and which streams there are."""
        if mark.parts:
            gone = self.known.keys() - set(mark.parts)
            self._drop([self.known.pop(name).number for name in sorted(gone)])
            for name in mark.parts:
                self._of(name)
        stream = self._of(mark.stream)
        if mark.state is not None:
            stream.state = mark.state
        if mark.at:
            stream.reached, stream.seen = advance(stream.reached, stream.seen, mark.at, self._tolerance)

    @property
    def transport_reach(self) -> int:
        """The earliest transport time that an event to come can be judged by."""
        opened = self._opened()
        nows = [max(stream.now, stream.reached) for stream in opened or self.known.values()]
        return min(nows) if opened else max(nows, default=0)

    def reach(self, latest: Ints) -> Ints:
        """Return for each customer the earliest now that an event to come can be judged by; `latest` are their nows."""
        if self.wall:
            return np.full(len(latest), self.transport_reach, np.int64)
        opened = self._opened()
        if not opened:
            reached = max((stream.reached for stream in self.known.values()), default=0)
            return np.maximum(latest, reached - SILENT_MAX)
        return self._event_reach(opened, len(latest))

    def _opened(self) -> list[Stream]:
        return [stream for stream in self.known.values() if stream.state == "open"]

    def _event_reach(self, streams: list[Stream], customers: int) -> Ints:
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

    def _rows(self, number: int, customers: Ints) -> Ints:
        """Return the row of each customer's clock in a stream; `customers` is ascending and not empty."""
        known = self._places.get(number, _NONE)
        if int(customers[-1]) >= len(known):
            if number not in self._places and len(self._places) >= PLACES_MAX:
                return self.clocks.claim(_keys(number, customers))[0]
            grown = np.full(int(customers[-1]) * 5 // 4 + 64, -1, np.int64)
            grown[: len(known)] = known
            known = self._places[number] = grown
        rows = known[customers]
        new = rows < 0
        if new.any():
            fresh = customers[new]
            rows[new] = known[fresh] = self.clocks.claim(_keys(number, fresh))[0]
        return rows

    def _of(self, name: str) -> Stream:
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


def _keys(number: int, customer: Ints) -> "np.typing.NDArray[np.uint64]":
    return customer.astype(np.uint64) | np.uint64(number << _CUSTOMER_BITS)


_BITS, _MASK = np.uint64(_CUSTOMER_BITS), np.uint64((1 << _CUSTOMER_BITS) - 1)
_NONE = np.empty(0, np.int64)
