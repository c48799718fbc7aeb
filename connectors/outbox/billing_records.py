"""Our own books of what was billed: the outbox and, behind it, the ledger, read as what a meter reads of them."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tidegate.connectors.outbox.ledger import Kept, LedgerReader, ledger_path
from tidegate.connectors.outbox.reader import Entry, OutboxReader
from tidegate.connectors.outbox.schema import State
from tidegate.operators.billing.drift import Fate, InFlight, OwnEvent, Span
from tidegate.operators.billing.outgoing import read_fields
from tidegate.operators.billing.provider import MatchedMeter, MeterReader
from tidegate.operators.events.readings import decode_value
from tidegate.operators.model.records import Accepted

SECOND = 1_000_000
# Where our period and the provider's differ, events beside it may be the cause.
AROUND = 24 * 3600 * SECOND
FATES: Mapping[State, Fate] = {
    State.waiting: "waiting",
    State.acknowledged: "acknowledged",
    State.parked: "parked",
    State.refused: "refused",
    State.skipped: "dropped",
}


class Way(NamedTuple):
    """What of one customer is on its way: events with name and properties, and windows that are rolled up."""

    events: list[tuple[Entry, str, Mapping[str, Any]]]
    rolling: list[tuple[str, int, int]]

    def flights(self, meter: MatchedMeter, span: Span) -> list[InFlight]:
        """Return what the meter reads of this usage in this period."""
        reads = _Reads(meter)
        found = [
            InFlight(quantity, entry.came_at, entry.sent_at)
            for entry, name, properties in self.events
            if entry.at in span and (quantity := reads.of(name, properties)) is not None
        ]
        open_windows = (
            InFlight(quantity, at, None)
            for name, at, quantity in self.rolling
            if name == meter.own_meter.name and at in span
        )
        return [*found, *open_windows]


class BillingRecords:
    """Reads both files; either may be missing, and then knows nothing. Raises OutboxError, LedgerError."""

    def __init__(self, outbox: Path) -> None:
        self._outbox = OutboxReader(outbox) if outbox.is_file() else None
        path = ledger_path(outbox)
        self._ledger = LedgerReader(path) if path.is_file() else None

    def since(self, now: int) -> int:
        """Events of this time or later are all known; with no ledger, none are."""
        return self._ledger.since() if self._ledger else now

    def on_their_way(self, customers: Iterable[str], acknowledged_after: int) -> dict[str, Way]:
        """Return the usage of each of these customers that waits, or was acknowledged after then."""
        ways = {customer: Way([], []) for customer in customers}
        if self._outbox is None or not ways:
            return ways
        for entry in self._outbox.on_its_way(acknowledged_after, ways):
            if entry.body is not None:
                ways[entry.customer].events.append((entry, *_read(entry.body)))
        for window in self._outbox.rolling_up(ways):
            ways[window.customer].rolling.append((window.meter, window.at, window.quantity))
        return ways

    def held_back(self, customers: Iterable[str]) -> dict[str, Way]:
        """Return the usage held back for each of these customers, which is not billed unless somebody acts."""
        ways = {customer: Way([], []) for customer in customers}
        if self._outbox is not None and ways:
            for entry in self._outbox.held_back_of(ways):
                if entry.body is not None:
                    ways[entry.customer].events.append((entry, *_read(entry.body)))
        return ways

    def events(self, customer: str, meter: MatchedMeter, span: Span) -> tuple[list[OwnEvent], int]:
        """Our events around this period, each once, and what is being rolled up in it without an event yet."""
        reads = _Reads(meter)
        entries = {e.id: e for e in self._outbox.of(customer, *_around(span))} if self._outbox else {}
        kept = {e.id: e for e in self._ledger.events(customer, *_around(span))} if self._ledger else {}
        own: dict[str, OwnEvent] = {id: _of_ledger(event, reads) for id, event in kept.items()}
        pending = 0
        for entry in entries.values():
            if entry.state is State.unfolded:
                pending += reads.of_body(entry.body) or 0 if entry.at in span else 0
            elif entry.state is not State.folded:
                body = (
                    entry.body
                    if entry.body is not None
                    else kept[entry.id].body
                    if entry.id in kept
                    else None
                )
                own[entry.id] = _of_outbox(entry, body, reads)
        rolling = self._outbox.rolling_up([customer]) if self._outbox else []
        pending += sum(w.quantity for w in rolling if w.meter == meter.own_meter.name and w.at in span)
        return list(own.values()), pending

    def bodies(self, customer: str, ids: Iterable[str], span: Span) -> list[Accepted]:
        """Return the events of these ids as they were accepted, as far as their bytes are still there."""
        wanted = set(ids)
        found: dict[str, Accepted] = {}
        if self._ledger:
            for kept in self._ledger.events(customer, *_around(span)):
                if kept.id in wanted:
                    found[kept.id] = Accepted(kept.id, kept.customer, kept.at, "on_time", kept.body)
        if self._outbox:
            for entry in self._outbox.find(wanted).values():
                if entry.body is not None:
                    found[entry.id] = Accepted(entry.id, entry.customer, entry.at, "on_time", entry.body)
        return [found[id] for id in sorted(found)]

    def close(self) -> None:
        for reader in (self._outbox, self._ledger):
            if reader is not None:
                reader.close()


class _Reads:
    """What a meter reads of events as they came, or as they are rolled up."""

    def __init__(self, meter: MatchedMeter) -> None:
        # The same name only where nothing is rolled up, and then both read alike: texts are sent as numbers.
        theirs = replace(meter.provider_meter, numbers=meter.own_meter.numbers)
        self._by_name = {one.event_name: MeterReader(one) for one in (meter.own_meter, theirs)}

    def of(self, name: str, properties: Mapping[str, Any]) -> int | None:
        reading = self._by_name.get(name)
        # More digits than any meter takes are no reading of the flow's either.
        with suppress(ValueError):
            return reading.read([properties])[0] if reading else None
        return None

    def of_body(self, body: bytes | None) -> int | None:
        return None if body is None else self.of(*_read(body))


def _read(body: bytes) -> tuple[str, Mapping[str, Any]]:
    name, raw = read_fields(body)
    properties = decode_value(raw)
    return name, properties if isinstance(properties, dict) else {}


def _around(span: Span) -> tuple[int, int]:
    return span.start - AROUND, span.end + AROUND


def _of_ledger(event: Kept, reads: _Reads) -> OwnEvent:
    there_at = event.at if event.restamped_at is None else event.restamped_at
    quantity = reads.of_body(event.body)
    return OwnEvent(
        event.id,
        event.at,
        there_at,
        "acknowledged",
        "",
        quantity,
        event.sent_at or 0,
        event.sent_at,
        event.settled_at,
    )


def _of_outbox(entry: Entry, body: bytes | None, reads: _Reads) -> OwnEvent:
    there_at = entry.at if entry.restamped_at is None else entry.restamped_at
    return OwnEvent(
        entry.id,
        entry.at,
        there_at,
        FATES[entry.state],
        entry.reason,
        reads.of_body(body),
        entry.came_at,
        entry.sent_at,
        entry.settled_at,
    )
