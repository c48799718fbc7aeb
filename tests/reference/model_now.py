"""The reference model's *now*: docs/semantics.md, "Now, and the time classes", one event and one customer at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tidegate.operators.model.ports import StreamMark

Clock = Literal["event", "wall"]
HOUR = 3600 * 1_000_000
SILENT_MAX = 35 * 24 * HOUR


@dataclass
class Hand:
    """A clock: an event moves it at most `tolerance` beyond the time of the event before, the first not at all."""

    now: int = 0
    last: int = 0

    def see(self, at: int, tolerance: int) -> int:
        if self.last and at != self.last:
            self.now = max(self.now, min(at, self.last + tolerance))
        self.last = at
        return self.now


@dataclass
class Place:
    """What marks say of a stream, to one shard."""

    state: str = "open"
    fresh: bool = True
    reached: Hand = field(default_factory=Hand)


class Now:
    """The clocks of all shards. `shard_of` gives the shard of a customer."""

    def __init__(
        self, lateness: int, clock: Clock, tolerance: int, shard_of: Callable[[str], int] = lambda name: 0
    ) -> None:
        self.lateness, self.clock, self.tolerance, self.shard_of = lateness, clock, tolerance, shard_of
        self.customers: set[str] = set()
        self.hands: dict[tuple[str, str], Hand] = {}
        self.transport: dict[tuple[int, str], Hand] = {}
        self.places: dict[tuple[int, str], Place] = {}
        self.floors: dict[str, int] = {}
        self.shard_floors: dict[int, int] = {}
        self.outliers = 0
        self.latest: dict[str, int] = {}
        self.judged: dict[int, int] = {}
        self.swept: dict[int, int] = {}

    def of(self, customer: str, stream: str, at: int, taken: int) -> int:
        """Now of an event, which it may itself have moved."""
        shard = self.shard_of(customer)
        self.customers.add(customer)
        self.places.setdefault((shard, stream), Place())
        if self.clock == "wall":
            hand, seen = self.transport.setdefault((shard, stream), Hand()), taken
        else:
            hand, seen = self.hands.setdefault((customer, stream), Hand()), at
        before, now = hand.last, hand.see(seen, self.tolerance)
        self.outliers += before - self.lateness > max(now, seen)
        if self.clock == "event":
            self.latest[customer] = max(self.latest.get(customer, 0), now)
        self.judged[shard] = max(self.judged.get(shard, 0), now)
        return now

    def oldest(self, customer: str, now: int) -> int:
        """The earliest time with which an event of the customer is accepted."""
        floor = max(self.floors.get(customer, 0), self.shard_floors.get(self.shard_of(customer), 0))
        return max(now - self.lateness, floor)

    def note(self, mark: StreamMark, shards: range) -> None:
        """A mark, which all shards are given."""
        for shard in shards:
            self._note(mark, shard)

    def _note(self, mark: StreamMark, shard: int) -> None:
        known = {stream for number, stream in self.places if number == shard}
        if mark.parts and known != set(mark.parts):
            for gone in known - set(mark.parts):
                del self.places[shard, gone]
                self.transport.pop((shard, gone), None)
                for key in [k for k in self.hands if k[1] == gone and self.shard_of(k[0]) == shard]:
                    del self.hands[key]
            for part in mark.parts:
                self.places.setdefault((shard, part), Place())
        place = self.places.setdefault((shard, mark.stream), Place())
        place.state = mark.state or place.state
        place.fresh |= mark.state is not None
        if mark.at:
            place.reached.see(mark.at, self.tolerance)

    def snapshot(self) -> None:
        """Whenever another hour has come, a snapshot forgets what is out of reach."""
        for shard, latest in self.judged.items():
            if self.swept.get(shard, 0) != latest // HOUR:
                self.swept[shard] = latest // HOUR
                self._settle(shard)
        for place in self.places.values():
            place.fresh = False

    def crash(self) -> None:
        """A start from the last snapshot expects more of every stream, unless a mark since then says otherwise."""
        self.swept.clear()
        for place in self.places.values():
            if not place.fresh:
                place.state = "open"

    def restart(self, lateness: int, clock: Clock) -> None:
        """Go on with another lateness or clock; what was forgotten under the old ones stays out of reach."""
        if clock != self.clock:
            for place in self.places.values():
                place.reached = Hand()
        self.lateness, self.clock = lateness, clock
        self.swept.clear()
        for place in self.places.values():
            place.state = "open"

    def _settle(self, shard: int) -> None:
        if self.clock == "wall":
            reach = self.transport_reach(shard)
            self.shard_floors[shard] = max(self.shard_floors.get(shard, 0), reach - self.lateness)
            return
        for name in self.customers:
            if self.shard_of(name) == shard:
                self.floors[name] = max(self.floors.get(name, 0), self.event_reach(name) - self.lateness)

    def transport_reach(self, shard: int) -> int:
        """The earliest now by which an event of the shard that is still to come is judged (wall clock)."""
        nows, waiting = {}, []
        for (number, stream), place in self.places.items():
            if number == shard:
                nows[stream] = max(place.reached.now, self.transport.get((shard, stream), Hand()).now)
                if place.state == "open":
                    waiting.append(nows[stream])
        return min(waiting) if waiting else max(nows.values(), default=0)

    def event_reach(self, customer: str) -> int:
        """The earliest now by which an event of the customer that is still to come is judged (event clock)."""
        shard = self.shard_of(customer)
        places = {stream: place for (number, stream), place in self.places.items() if number == shard}
        waiting = {stream: place for stream, place in places.items() if place.state == "open"}
        if not waiting:
            reached = max((place.reached.now for place in places.values()), default=0)
            return max(self.latest.get(customer, 0), reached - SILENT_MAX)
        return min(self._own(customer, stream, place.reached.now) for stream, place in waiting.items())

    def _own(self, customer: str, stream: str, reached: int) -> int:
        hand = self.hands.get((customer, stream))
        return reached if hand is None else max(hand.now, reached - SILENT_MAX)
