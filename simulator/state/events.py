"""The events that the provider has: each id once, by time and by arrival."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Literal

from simulator.state.problems import missing
from simulator.state.records import Metadata, StoredEvent
from simulator.state.storage import Storage

Edges = Literal["closed", "open", "half_open"]
Order = Literal["newest_first", "oldest_first", "as_stored"]

_AT = attrgetter("at")
_POSITION = attrgetter("position")


class Timeline:
    """Events in the order of their time, sorted when they are read."""

    def __init__(self) -> None:
        self._events: list[StoredEvent] = []
        self._in_order = True

    def extend(self, events: Sequence[StoredEvent]) -> None:
        self._events += events
        self._in_order = False

    def remove(self, event: StoredEvent) -> None:
        self._events = [other for other in self._events if other is not event]

    def between(self, start: int | None, end: int | None, edges: Edges) -> list[StoredEvent]:
        """Return the events from `start` to `end`, oldest first; `edges` says whether these two are included."""
        if not self._in_order:
            # The events are nearly sorted, which makes this sort fast; equal times keep their order of arrival.
            self._events.sort(key=_AT)
            self._in_order = True
        first = bisect_right if edges == "open" else bisect_left
        last = bisect_right if edges == "closed" else bisect_left
        low = 0 if start is None else first(self._events, start, key=_AT)
        high = len(self._events) if end is None else last(self._events, end, key=_AT)
        return self._events[low:high]


class EventBook:
    """The stored events. `arrivals` has them in order of arrival, by customer and event name.

    `tombstones` are ids of lost events that are remembered nevertheless.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._by_id: dict[str, StoredEvent] = {}
        self._stored: list[StoredEvent] = []
        self._all = Timeline()
        self._of_customer: defaultdict[str, Timeline] = defaultdict(Timeline)
        self.arrivals: defaultdict[tuple[str, str], list[StoredEvent]] = defaultdict(list)
        self.tombstones: set[str] = set()
        self._next = 1
        self._take(list(storage.events()))

    def __contains__(self, event_id: object) -> bool:
        """Return whether an event of this id is ignored as already known."""
        return event_id in self._by_id or event_id in self.tombstones

    def __len__(self) -> int:
        return len(self._stored)

    def list_after(self, position: int, limit: int) -> list[StoredEvent]:
        """Return the first events stored after this position, in that order."""
        begin = bisect_right(self._stored, position, key=_POSITION)
        return self._stored[begin : begin + limit]

    def list_ids(self) -> list[str]:
        return list(self._by_id)

    def store(self, events: Sequence[StoredEvent]) -> None:
        """Store new events and assign their positions."""
        for event in events:
            event.position = self._next
            self._next += 1
        self._take(events)
        self._storage.add(events)

    def get(self, event_id: str) -> StoredEvent:
        if (found := self._by_id.get(event_id)) is None:
            raise missing("event", event_id)
        return found

    def drop(self, event_id: str) -> list[StoredEvent]:
        """Lose the event and its copies, as if it had never arrived."""
        first = self.get(event_id)
        lost = [
            event
            for event in self.arrivals[first.customer_id, first.event_name]
            if event.event_id == event_id
        ]
        for event in lost:
            del self._stored[bisect_left(self._stored, event.position, key=_POSITION)]
            self._all.remove(event)
            self._of_customer[event.customer_id].remove(event)
            self.arrivals[event.customer_id, event.event_name].remove(event)
        del self._by_id[event_id]
        self._storage.remove(lost)
        return lost

    def list_events(
        self,
        customer_id: str | None,
        start: int | None,
        end: int | None,
        edges: Edges,
        order: Order,
        keep: Callable[[StoredEvent], bool],
    ) -> Iterator[StoredEvent]:
        """Return the events that `keep` accepts, of one customer or all, in the requested order."""
        timeline = self._all if customer_id is None else self._of_customer.get(customer_id, Timeline())
        found = timeline.between(start, end, edges)
        if order == "as_stored":
            found.sort(key=_POSITION)
        return filter(keep, reversed(found) if order == "newest_first" else found)

    def _take(self, events: Sequence[StoredEvent]) -> None:
        by_customer: defaultdict[str, list[StoredEvent]] = defaultdict(list)
        for event in events:
            self._by_id.setdefault(event.event_id, event)
            by_customer[event.customer_id].append(event)
            self.arrivals[event.customer_id, event.event_name].append(event)
        for customer_id, theirs in by_customer.items():
            self._of_customer[customer_id].extend(theirs)
        self._all.extend(events)
        self._stored += events
        if events:
            self._next = max(self._next, events[-1].position + 1)


def read_number(metadata: Metadata | None, key: str | None) -> int | float | None:
    """Return the number that a meter reads, None if the property is missing or not a number."""
    value = metadata.get(key) if metadata and key is not None else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
