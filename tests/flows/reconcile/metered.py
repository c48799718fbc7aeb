"""A metered and billed system in one process and on one clock: store, outbox, sender, ledger, the simulated platform.

It stands in for the metering flow, whose part is small here: a total in the store and a row in the outbox per event.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import msgspec
from bytewax.testing import run_main

from simulator.app import build_app as build_platform
from simulator.client import Simulator
from simulator.inprocess import AppTransport
from simulator.state.platform import Platform
from tidegate.connectors.dodo.client import DodoClient
from tidegate.connectors.dodo.sender import Sender, Terms
from tidegate.connectors.outbox.ledger import Ledger, ledger_path
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.reconciliation.book_reader import BookReader
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter
from tidegate.flows.reconcile.dataflow import Outside, build
from tidegate.operators.billing.drift_status import DriftStatus
from tidegate.operators.billing.provider import to_micros
from tidegate.operators.billing.rate_limit import TIERS, Rate
from tidegate.operators.columns.quantity import format_quantity, scale
from tidegate.operators.events.keys import compute_identity, shard_of
from tidegate.operators.model.periods import HOUR, find_period
from tidegate.operators.model.ports import Adjustment, Note, Resend
from tidegate.operators.model.records import Accepted, Total
from tidegate.settings.catalog.file import parse_catalog
from tidegate.settings.catalog.versions import apply_text
from tidegate.settings.reconciliation import ReconciliationSettings, load_reconciliation_settings

KEY = "sim_key_hunter2"
SECOND = 1_000_000
MINUTE = 60 * SECOND
READING = Rate(10, 60)
BEGIN = datetime(2026, 11, 3, 9, 12, 44, tzinfo=UTC)
END = datetime(2026, 12, 3, 9, 12, 44, tzinfo=UTC)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

METERS = """
meters:
  - name: tokens
    event_name: llm.tokens
    aggregation: {type: sum, key: tokens}
  - name: calls
    event_name: api.call
    aggregation: {type: count}
  - name: dear_calls
    event_name: api.call
    aggregation: {type: count}
    filter: {conjunction: and, clauses: [{key: dear, operator: equals, value: true}]}
  - name: peak
    event_name: llm.tokens
    aggregation: {type: max, key: tokens}
default_plan: usage
plans:
  usage: {}
"""


class Clock:
    """One time for everybody, µs since the epoch; what sleeps lets it pass, and others work meanwhile."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = to_micros(now)
        self.meanwhile: Callable[[], object] = lambda: None
        self._busy = False

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        if not self._busy:
            self._busy = True
            try:
                self.meanwhile()
            finally:
                self._busy = False


class System:
    """`folder` has everything that a real one has. Customers are the provider's own ids.

    `apart` is how far (µs) the provider's clock is ahead.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ledger: bool = True,
        tier: int = 0,
        rollup: timedelta | None = None,
        apart: int = 0,
    ) -> None:
        self.folder, self.clock, self._rollup = folder, Clock(), rollup
        self.requests_before = 0
        # Before meters are made: they count nothing that came before them.
        self._platform = Platform(1, key=KEY, wall=lambda: self.clock.now + apart)
        self._transport = AppTransport(build_platform(self._platform)[0])
        self.simulator = Simulator("http://simulator", KEY, self._transport)
        self.meters = {
            "tokens": self.simulator.create_meter("llm.tokens", "sum", "tokens", name="tokens"),
            "calls": self.simulator.create_meter("api.call", "count", name="calls"),
        }
        self._rate = TIERS[tier]
        self.data = folder / "data"
        self.data.mkdir()
        self.writer = SqliteWriter(folder / "store.db")
        self.store = SqliteReader(folder / "store.db")
        self.control = SqliteControl(folder / "store.db")
        self.catalog_text = METERS
        self.edges: dict[str, list[str]] = {}
        self.totals: dict[tuple[str, str, int], Total] = {}
        self._control_at = ""
        self._numbers = iter(range(1, 10**9))
        kept = Ledger(ledger_path(self.data / "outbox.db"), keep=timedelta(days=35), clock=self.clock)
        book = kept if ledger else None
        path = self.data / "outbox.db"
        self.outbox = Outbox(path, sync=False, ledger=book, unfolded=rollup is not None, clock=self.clock)
        self.sender = self._sender("restamp")
        self.is_sending = True
        self.subscriptions: dict[str, str] = {}

    def _sender(self, late: Any) -> Sender:
        client = self.client(Rate(self._rate.burst, self._rate.sustained - 60))
        terms = Terms(linger=timedelta(0), late=late, concurrency=1, rollup=self._rollup)
        given = dict(clock=self.clock, sleep=self.clock.sleep, uniform=lambda: 1.0)
        return Sender(self.outbox, client, lambda: self.catalog, terms, **given)  # type: ignore[arg-type]

    def park_late(self) -> None:
        """What is too old is held back from now on."""
        self.sender = self._sender("park")

    def client(self, rate: Rate = READING, key: str = KEY) -> DodoClient:
        return DodoClient(
            "http://simulator", key, rate, clock=self.clock, wall=self.clock, sleep=self.clock.sleep,
            transport=self._transport,
        )  # fmt: skip

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The provider's answer to a request from another process."""
        return self._transport.handle_request(request)

    def apply(self, text: str | None = None) -> None:
        """Makes a catalog the one in force, with the edges of all subscriptions."""
        lines = [text or self.catalog_text]
        if text is None and self.edges:
            lines.append("customers:")
            for who, edges in self.edges.items():
                lines.append(f"  {who}: {{period: {{type: billing, edges: [{', '.join(edges)}]}}}}")
        whole = "\n".join(lines)
        self.catalog = parse_catalog(whole)
        apply_text(self.control, whole, origin="cli", by="test")

    def customer(
        self, *, start: datetime = BEGIN, end: datetime = END, meters: Any = None, **fields: Any
    ) -> str:
        """A customer with a subscription to all meters; known to the catalog with the next `apply`."""
        id = self.simulator.create_customer()
        product = self.simulator.create_product(list(self.meters.values()) if meters is None else meters)
        subscription = self.simulator.create_subscription(
            id, product, start=edge_of(start), end=edge_of(end), **fields
        )
        past = [edge for pair in fields.get("past", ()) for edge in pair]
        self.edges[id] = sorted({*past, edge_of(start), edge_of(end)})
        self.subscriptions[id] = subscription
        return id

    # The metering flow's part

    def event(self, customer: str, tokens: int = 0, *, at: int | None = None, **how: Any) -> str:
        """An accepted event: in the store, unless `here` is false, and in the outbox."""
        name, properties = (
            ("llm.tokens", {"tokens": tokens}) if tokens else ("api.call", how.get("properties", {}))
        )
        at = self.clock.now if at is None else at
        number = next(self._numbers)
        body = {"event_id": f"e{number}", "customer_id": customer, "event_name": name, "metadata": properties}
        id = f"{compute_identity(customer, '', f'e{number}').hex()}-{at // HOUR:x}"
        if how.get("here", True):
            self.count(customer, "tokens" if tokens else "calls", tokens or 1, at)
        if how.get("booked", True):
            self.outbox.add([Accepted(id, customer, at, "on_time", json.dumps(body).encode())])
        return id

    def count(self, customer: str, meter: str, quantity: int, at: int, adjustment: str | None = None) -> None:
        """Adds to a total in the store, by an event or an adjustment."""
        start, end = self.period(customer, at)
        old = self.totals.get((customer, meter, start))
        if old is None:
            old = Total(customer, "period", meter, start, end, 0, 0, 0, at, 0, 0, 0, True)
        changed = scale(quantity) if adjustment is None else scaled_text(adjustment)
        total = format_quantity(scaled_text(old.total) + changed)
        made = old._replace(
            total=total,
            version=old.version + 1,
            events=old.events + (adjustment is None),
            as_of=max(at, old.as_of),
        )
        if adjustment is not None:
            made = made._replace(
                adjustment=format_quantity(scaled_text(old.adjustment) + changed), steady=False
            )
        self.totals[customer, meter, start] = made
        self.writer.write([made], [])

    def period(self, customer: str, at: int) -> tuple[int, int]:
        return find_period(self.catalog.period_of(customer), self.catalog.zone_of(customer), at)

    def obey(self) -> None:
        """Applies what the control log has, as the flow does."""
        notes = []
        for position, record in self.control.after(self._control_at):
            self._control_at = position
            if isinstance(record, Adjustment):
                self.count(record.customer, record.meter, 0, record.at, record.quantity)
                body = msgspec.json.encode(msgspec.structs.asdict(record) | {"refused": None})
                notes.append(Note("adjustment", record.id, record.customer, self.clock.now, body))
            elif isinstance(record, Resend):
                again = [one._replace(version=one.version) for one in self.totals.values()]
                self.writer.write(again, [])
                shards = {shard_of(customer, 16) for customer, _, _ in self.totals}
                notes += [Note("resend", f"{record.id}/{n}", "", self.clock.now, b"{}") for n in shards]
        if notes:
            self.writer.write([], [], notes)

    # Time

    def work(self) -> None:
        """What goes on by itself: sending, and the flow's control input."""
        self.obey()
        if self.is_sending:
            for _ in range(20):
                if self.sender.turn(linger=False) != 0:
                    break

    def run(self, seconds: float, step: float = 20) -> None:
        """Lets time pass while everything works."""
        self.clock.meanwhile = self.work
        for _ in range(int(seconds // step)):
            self.clock.sleep(step)
            self.work()
            if self.is_sending:
                self.outbox.add([], snapshot=True)
                while self.outbox.tidy():
                    pass

    # Reconciliation

    def fields(self, **given: Any) -> dict[str, Any]:
        """The settings of a reconciliation run of this system, by name."""
        return {
            "store": f"sqlite:{self.folder / 'store.db'}",
            "billing": "dodo://simulator?tls=false",
            "dodo_api_key": KEY,
            "data_dir": str(self.data),
            "alerts": f"file:{self.folder / 'alerts.ndjson'}",
            "reconcile_once": "true",
            "reconcile_report": f"file:{self.folder / 'drift.ndjson'}",
        } | given

    def settings(self, **given: Any) -> ReconciliationSettings:
        return load_reconciliation_settings(self.fields(**given))

    def reconcile(self, **given: Any) -> dict[tuple[str, str], dict[str, Any]]:
        """One pass, by the real flow; what it says is open, by customer and meter."""
        self.clock.meanwhile = self.work
        outside = Outside(self.clock, self.clock.sleep, lambda settings: self.client())
        run_main(build(self.settings(**given), outside))
        return self.open()

    def open(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What is suspect or drift; of several periods of one total, the first."""
        standings = self.standings()
        standings.reverse()
        return {
            (one.customer, one.meter): json.loads(one.findings) | {"status": one.status} for one in standings
        }

    def standings(self) -> list[DriftStatus]:
        with closing(BookReader(self.data / "reconciliation")) as reader:
            return reader.open()

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        for one in (self.writer, self.store, self.control, self.outbox, self.simulator, self._transport):
            one.close()


@contextmanager
def system(folder: Path, **given: Any) -> Iterator[System]:
    made = System(folder, **given)
    try:
        yield made
    finally:
        made.close()


def causes(found: dict[str, Any]) -> dict[str, str | None]:
    """Cause and quantity of each finding but what is on its way."""
    return {one["cause"]: one["quantity"] for one in found["findings"] if one["cause"] != "in_flight"}


def written(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def edge_of(at: datetime) -> str:
    """An edge of a period, to the microsecond where it has a fraction."""
    return f"{written(at)[:-1]}.{at.microsecond:06d}Z" if at.microsecond else written(at)


def scaled_text(quantity: int | str) -> int:
    return scale(Decimal(quantity))
