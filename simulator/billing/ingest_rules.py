"""The provider's rules for an ingest request, in the order in which it checks them."""

from collections.abc import Callable, Container, Mapping
from sys import intern
from typing import Final, NamedTuple

import msgspec

from simulator.state.events import read_number
from simulator.state.instants import HOUR, SECOND, from_datetime
from simulator.state.problems import INVALID_PARAMETERS, Problem, malformed
from simulator.state.records import EventInput, IngestBody, StoredEvent
from simulator.state.switches import Switches

OLDEST: Final = HOUR
NEWEST: Final = 5 * 60 * SECOND
PAIRS_MAX: Final = 50
KEY_MAX: Final = 100
VALUE_MAX: Final = 500
INT64: Final = range(-(2**63), 2**63)

_decoder = msgspec.json.Decoder(IngestBody)


class Ruling(NamedTuple):
    """What may be stored (`events`, without those already known), and why the request fails if it does."""

    events: list[StoredEvent]
    problem: Problem | None


def read_events(body: bytes) -> list[EventInput]:
    """Return the events of a body.

    Raises:
        Problem: status 422, the body is not JSON or violates the schema.
    """
    try:
        events = _decoder.decode(body).events
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise malformed(str(error)) from None
    for index, event in enumerate(events):
        for key, value in (event.metadata or {}).items():
            if type(value) is int and value not in INT64:
                raise malformed(f"events[{index}].metadata[{key!r}]: needs 64 bits, got {value}")
    return events


class BatchRules:
    """The rules that depend on the provider's state: known ids, the time, the switches.

    `sums` gives the properties that sum meters read from events of a name.
    """

    def __init__(
        self,
        switches: Switches,
        now: int,
        customers: Container[str],
        known: Container[str],
        sums: Mapping[str, list[str]],
    ) -> None:
        self._switches, self._now = switches, now
        self._customers, self._known, self._sums = customers, known, sums
        self._checks: list[Callable[[EventInput, int], Problem | None]] = [self._time, self._metadata]
        if switches.unknown_customer == "reject400":
            self._checks.append(self._customer)
        if switches.negative_sum == "reject400":
            self._checks.append(self._sign)

    def judge(self, events: list[EventInput]) -> Ruling:
        """Check each event; the first one that fails determines the problem of the request."""
        good: list[StoredEvent] = []
        problem: Problem | None = None
        seen: set[str] = set()
        now, known = self._now, self._known
        for index, event in enumerate(events):
            at = now if event.timestamp is None else from_datetime(event.timestamp)
            found = self._fault(event, at, seen)
            if found is None:
                if event.event_id not in known:
                    # Interned, as the same customers and names come a million times.
                    customer, name = intern(event.customer_id), intern(event.event_name)
                    good.append(StoredEvent(0, event.event_id, customer, name, at, now, event.metadata))
            elif problem is None:
                found.message = f"events[{index}] {event.event_id!r}: {found.message}"
                problem = found
            seen.add(event.event_id)
        return Ruling(good, problem)

    def _fault(self, event: EventInput, at: int, seen: set[str]) -> Problem | None:
        if event.event_id in seen:
            return _refused("the same event_id twice in one request")
        for check in self._checks:
            if found := check(event, at):
                return found
        return None

    def _time(self, event: EventInput, at: int) -> Problem | None:
        if self._now - OLDEST <= at <= self._now + NEWEST:
            return None
        if self._switches.expired_dup == "ignore" and event.event_id in self._known:
            return None
        side = "older than an hour" if at < self._now else "more than 5 minutes ahead"
        return _refused(f"timestamp is {side}")

    def _metadata(self, event: EventInput, at: int) -> Problem | None:
        pairs = event.metadata
        if not pairs:
            return None
        if len(pairs) > PAIRS_MAX:
            return Problem(
                400, "MAXIMUM_KEYS_REACHED", f"metadata needs {PAIRS_MAX} pairs or less, got {len(pairs)}"
            )
        for key, value in pairs.items():
            if len(key) > KEY_MAX:
                return _refused(f"metadata key needs {KEY_MAX} characters or less, got {len(key)}")
            if type(value) is str and len(value) > VALUE_MAX:
                return _refused(f"metadata value needs {VALUE_MAX} characters or less, got {len(value)}")
        return None

    def _customer(self, event: EventInput, at: int) -> Problem | None:
        return None if event.customer_id in self._customers else _refused("customer_id does not exist")

    def _sign(self, event: EventInput, at: int) -> Problem | None:
        for key in self._sums.get(event.event_name, ()):
            number = read_number(event.metadata, key)
            if number is not None and number < 0:
                return _refused(f"metadata {key!r} is summed and must not be negative")
        return None


def _refused(message: str) -> Problem:
    return Problem(400, INVALID_PARAMETERS, message)
