"""The simulated billing provider of the demo: set up as the catalog says, and its figures beside ours at the end."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import yaml

from simulator.client import Simulator
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.operators.model.aggregates import AT_PROVIDER, ORDERED
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.periods import Periods

KEY = "sim_key"
BILLED = AT_PROVIDER - ORDERED
"""Kinds of meters that the demo's invoices show: of an ordered one, late usage would be the newest there."""
# The provider shows usage after so long; its clock is put forward by as much.
LAG_S = 120.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Figure(NamedTuple):
    """One customer's usage of one meter in the current period: ours, and the invoice's."""

    customer: str
    meter: str
    ours: Decimal
    theirs: Decimal


def mapped_catalog(text: str, customers: Iterable[str]) -> str:
    """Return the catalog with a billing id for each of these customers, as one who bills with it would write it."""
    catalog = yaml.safe_load(text)
    known = catalog.setdefault("customers", {})
    for name in customers:
        entry = known.setdefault(name, {"plan": catalog["default_plan"]})
        entry.setdefault("billing_id", f"cus_demo_{name.removeprefix('cus_')}")
    return yaml.safe_dump(catalog, sort_keys=False)


class BillingProvider:
    """The simulator at `url`, with meters, customers and subscriptions like the catalog's."""

    def __init__(self, url: str, catalog: Catalog, ids: Path) -> None:
        self._catalog = catalog
        self._ids = ids
        self._platform = Simulator(url, KEY)
        self._subscriptions: dict[str, str] = {}
        self._meters: dict[str, str] = {}

    def set_up(self, now: int) -> None:
        """Make what invoices need, or find what an earlier demo made; `now` is µs since the epoch."""
        platform, catalog = self._platform, self._catalog
        if self._ids.exists():
            self._meters, self._subscriptions = msgspec.json.decode(self._ids.read_bytes())
            return
        platform.set_tier("1")
        billed = [meter for meter in catalog.meters if meter.kind in BILLED]
        for meter in billed:
            self._meters[meter.name] = platform.create_meter(meter.event_name, meter.kind, meter.key)
        product = platform.create_product(list(self._meters.values()))
        for name, customer in catalog.customers.items():
            assert customer.billing_id is not None
            platform.create_customer(customer.billing_id)
            start, end = self._period(name, now)
            self._subscriptions[name] = platform.create_subscription(
                customer.billing_id, product, start=_EPOCH + timedelta(microseconds=start), end=_when(end)
            )

        self._ids.write_bytes(msgspec.json.encode([self._meters, self._subscriptions]))

    def figures(self, store: Path, now: int) -> list[Figure]:
        """Every figure of every current invoice beside the store's total."""
        self._platform.advance(LAG_S)
        reader = SqliteReader(store)
        try:
            ours = {
                (one.total.customer, one.total.meter, one.total.start): Decimal(one.total.total)
                for one in reader.totals()
                if one.total.window == "period"
            }
        finally:
            reader.close()
        by_id = {id: name for name, id in self._meters.items()}
        found = []
        for customer, subscription in self._subscriptions.items():
            start, _ = self._period(customer, now)
            for id, units in self._consumed(subscription).items():
                meter = by_id[id]
                found.append(Figure(customer, meter, ours.get((customer, meter, start), Decimal(0)), units))
        return found

    def _consumed(self, subscription: str) -> dict[str, Decimal]:
        """Units of the current cycle by meter."""
        answer: dict[str, Any] = self._platform.api.get(f"/subscriptions/{subscription}/usage-history").json()
        now = self._platform.read_now()
        for item in answer["items"]:
            if datetime.fromisoformat(item["start_date"]) <= now < datetime.fromisoformat(item["end_date"]):
                return {meter["id"]: Decimal(meter["consumed_units"]) for meter in item["meters"]}
        return {}

    def _period(self, customer: str, at: int) -> tuple[int, int]:
        periods = Periods(self._catalog.period_of(customer), self._catalog.zone_of(customer))
        start, end = periods.find(np.array([at], np.int64))
        return int(start[0]), int(end[0])

    def close(self) -> None:
        self._platform.close()


def settle(outbox: Path, accepted: int, seconds: float) -> str:
    """Wait until all accepted usage is with the provider or held back; return what is left, in words."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            reader = OutboxReader(outbox)
        except Exception as error:
            left = str(error)
        else:
            statistics = reader.read_statistics()
            if not statistics.waiting and statistics.counts.get("came", 0) >= accepted:
                kept = statistics.parked + statistics.refused
                return f"{kept:,} held back" if kept else "none held back"
            left = f"{statistics.waiting:,} still wait"
        if time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _when(at: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at)
