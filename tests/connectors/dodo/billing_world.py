"""An outbox, a sender and the platform's simulator in one world, whose time passes only when somebody waits."""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from simulator.client import Simulator
from simulator.inprocess import AppTransport
from tests.support.platform import KEY, in_process
from tidegate.connectors.dodo.client import Answer, DodoClient
from tidegate.connectors.dodo.sender import Sender, Terms
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import OutboxReader, QueueStatistics
from tidegate.connectors.outbox.schema import State
from tidegate.operators.billing.rate_limit import TIERS, Rate
from tidegate.operators.model.catalog import Catalog, Customer, Meter, Plan
from tidegate.operators.model.periods import HOUR, Calendar
from tidegate.operators.model.records import Accepted

SECOND = 1_000_000
MINUTE = 60 * SECOND
# 2026-11-22T12:00:00Z: far from the month's end.
NOON = 1_795_348_800 * SECOND


class World:
    """Sends to a simulator at noon. `catalog` may be replaced; `trip` is how long a request takes."""

    def __init__(self, folder: Path, simulator: Simulator, terms: Terms, rate: Rate, **outbox: Any) -> None:
        self.now = NOON
        self.simulator, self.terms, self._rate = simulator, terms, rate
        self.trip = 0.05
        # How far the provider's clock is ahead of ours.
        self.ahead = timedelta(0)
        self.path = folder / "outbox.db"
        self._given = outbox
        self.catalog = Catalog(
            meters=(Meter("tokens", "llm", "sum", "tokens"),),
            plans={"p": Plan("p", period=Calendar("day"))},
            customers={name: Customer(name, "p", billing_id=f"cus_{name}") for name in ("acme", "bolt")},
        )
        simulator.set_clock(datetime.fromtimestamp(self.now / 1e6, UTC), rate=0)
        for customer in self.catalog.customers.values():
            simulator.create_customer(customer.billing_id)
        self.transport: AppTransport = simulator.api._transport  # type: ignore[assignment]
        self._passed = 0.0
        self.answers: list[Answer] = []
        self.start()

    def start(self) -> None:
        """A new process: what was in memory is gone."""
        self.outbox = Outbox(self.path, sync=False, clock=lambda: self.now, **self._given)
        self.client = DodoClient(
            "http://simulator",
            KEY,
            self._rate,
            clock=lambda: self.now,
            wall=lambda: self.now,
            sleep=self.wait,
            transport=self.transport,
        )
        self.sender = Sender(
            self.outbox, self, lambda: self.catalog, self.terms,
            clock=lambda: self.now, sleep=self.wait, uniform=lambda: 0.5,
        )  # fmt: skip

    def crash(self) -> None:
        self.outbox.close()
        self.client.close()
        self.start()

    def close(self) -> None:
        self.outbox.close()
        self.client.close()

    # Time

    def wait(self, seconds: float) -> None:
        self.now += max(int(seconds * SECOND), 1)
        self._passed += seconds
        self.simulator.set_clock(
            datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.now) + self.ahead
        )

    # The provider, which takes its time

    def ingest(self, events: Sequence[bytes]) -> Answer:
        answer = self.client.ingest(events)
        self.wait(self.trip)
        self.answers.append(answer)
        return answer

    def event(self, event_id: str) -> Answer:
        self.wait(self.trip)
        return self.client.event(event_id)

    def clock_ahead(self) -> int | None:
        return self.client.clock_ahead()

    def customer(self, customer_id: str) -> Answer:
        self.wait(self.trip)
        return self.client.customer(customer_id)

    # What comes and what happens

    def come(
        self,
        count: int = 1,
        *,
        ago: float = 0,
        customer: str = "acme",
        poison: Iterable[int] = (),
        **data: Any,
    ) -> list[Accepted]:
        """Events that are accepted now, of `ago` seconds before, one microsecond apart.

        The ids of those at the places in `poison` begin so.
        """
        at, bad = self.now - int(ago * SECOND), set(poison)
        events = [accepted(at + place, customer, tokens=place, **data) for place in range(count)]
        events = [e._replace(id="poison" + e.id[6:]) if place in bad else e for place, e in enumerate(events)]
        self.outbox.add(events)
        return events

    def turns(
        self, seconds: float = 600, meanwhile: Callable[[], object] = lambda: None, *, whole: bool = False
    ) -> None:
        """Has the sender work until nothing is left, or for so long, or for the `whole` of it."""
        until = self.now + int(seconds * SECOND)
        while self.now < until:
            meanwhile()
            pause = self.sender.turn()
            if pause is None:
                if not self.waiting and not whole:
                    return
                pause = 1.0
            if pause:
                self.wait(pause)

    # What came of it

    @property
    def waiting(self) -> int:
        return self.read_statistics().waiting

    def read_statistics(self) -> QueueStatistics:
        reader = OutboxReader(self.path)
        try:
            return reader.read_statistics()
        finally:
            reader.close()

    def reasons(self) -> dict[str, int]:
        """How many are held back for which reason."""
        reader = OutboxReader(self.path)
        try:
            return {reason: count for (_, reason), count in reader.reasons().items()}
        finally:
            reader.close()

    def kept(self, state: State) -> list[Any]:
        reader = OutboxReader(self.path)
        try:
            return reader.held_back(state)
        finally:
            reader.close()

    def ledger(self) -> dict[str, dict[str, Any]]:
        """The provider's events by id; none is there twice."""
        events = list(self.simulator.list_events())
        assert not [id for id, count in Counter(event["event_id"] for event in events).items() if count > 1]
        return {event["event_id"]: event for event in events}

    def ingests(self) -> list[dict[str, Any]]:
        return [request for request in self.simulator.list_requests() if request["path"] == "/events/ingest"]

    def lookups(self) -> int:
        return len(self.simulator.list_requests()) - len(self.ingests())

    def conserved(self, *came: list[Accepted]) -> None:
        """Each event is at the provider or held back or waits, in exactly one of these places."""
        ids = {event.id for events in came for event in events}
        ledger = set(self.ledger())
        reader = OutboxReader(self.path)
        try:
            found = reader.find(ids)
        finally:
            reader.close()
        assert set(found) == ids
        acknowledged = {id for id, entry in found.items() if entry.state is State.acknowledged}
        kept = {id for id, entry in found.items() if entry.state in (State.parked, State.refused)}
        assert acknowledged <= ledger, "acknowledged, but the provider does not have it"
        assert not kept & ledger, "held back, though the provider has it"
        assert all(found[id].reason for id in kept)
        assert ledger <= ids


def accepted(at: int, customer: str = "acme", **data: Any) -> Accepted:
    body = {"specversion": "1.0", "id": "x", "source": "s", "type": "llm", "subject": customer, "data": data}
    return Accepted(
        f"{secrets.token_hex(16)}-{at // HOUR:x}", customer, at, "on_time", json.dumps(body).encode()
    )


@contextmanager
def world(folder: Path, terms: Terms | None = None, rate: Rate = TIERS[0], **outbox: Any) -> Iterator[World]:
    with in_process() as simulator:
        made = World(folder, simulator, terms or Terms(concurrency=1), rate, **outbox)
        try:
            yield made
        finally:
            made.close()
