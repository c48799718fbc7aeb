"""The made-up product: for each of its customers' requests it reserves what that uses, and reports it as an event.

`python -m examples.demo.product URL CATALOG COUNTS`: as a real one would, over HTTP and with nothing else of ours. A
reservation has the identity of the event that follows, so a hard cap is never passed, however many requests there are
at once. A request that is denied is not served, so it is no usage; COUNTS is rewritten every second with how many there
were.
"""

import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from threading import Lock

import httpx
import msgspec

from tidegate.connectors.demo.traffic import Traffic
from tidegate.operators.model.aggregates import ADDITIVE
from tidegate.operators.model.catalog import Catalog, Meter
from tidegate.settings.catalog.file import load_catalog

BATCH_S = 0.05
COUNTS_S = 0.5
BATCH_MAX = 500
HELD_S = 300
ASKING = 8
_DECODE = msgspec.json.Decoder(float_hook=Decimal).decode


class Product:
    """Customers with their requests, from `start` (µs since the epoch) on."""

    def __init__(self, url: str, catalog: Catalog, traffic: Traffic) -> None:
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self._meters: dict[str, list[Meter]] = {}
        for meter in catalog.meters:
            if meter.kind in ADDITIVE:
                self._meters.setdefault(meter.event_name, []).append(meter)
        self._traffic = traffic
        self._next = 0
        self.counts: Counter[str] = Counter()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(ASKING)

    def serve(self, now: int) -> None:
        """Serve the requests that are due by `now`, and report their usage."""
        due: list[bytes] = []
        while self._traffic.due(self._next) <= now and len(due) < BATCH_MAX:
            due.append(self._traffic.event(self._next))
            self._next += 1
        # Side by side, as the requests of many customers are.
        events = [
            payload
            for payload, passes in zip(due, self._pool.map(self._may_pass, due), strict=True)
            if passes
        ]
        if events:
            self._report(events)

    def _may_pass(self, payload: bytes) -> bool:
        try:
            event = _DECODE(payload)
            customer = event.get("subject") or event["customer_id"]
            name = event.get("type") or event["event_name"]
            identity = {"id": event.get("id") or event["event_id"], "source": event.get("source", "")}
            used = event.get("data") or event.get("metadata") or {}
        except (msgspec.DecodeError, AttributeError, KeyError):
            # A broken client asks nobody; what it sends is refused at the door.
            return True
        quantities = {
            meter.name: "1" if meter.key is None else str(used[meter.key])
            for meter in self._meters.get(name, ())
            if meter.key is None or meter.key in used
        }
        if not quantities:
            return True
        answer = self._http.post(
            "/v1/reservations",
            json={"customer": customer, "quantities": quantities, "expires_in": HELD_S, **identity},
        )
        # A wrong request, or an id that is used twice, is the client's fault; what it sends is refused at the door.
        passes = answer.status_code != HTTPStatus.TOO_MANY_REQUESTS
        with self._lock:
            self.counts["asked"] += 1
            self.counts["refused"] += not passes
            if not passes:
                self.counts[f"refused {customer}"] += 1
        return passes

    def _report(self, events: list[bytes]) -> None:
        """One event a line. A broken one is refused alone; what is not answered is sent again, as ids make safe."""
        for _ in range(100):
            try:
                answer = self._http.post(
                    "/v1/events", content=b"\n".join(events), headers={"content-type": "application/x-ndjson"}
                )
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if answer.status_code in (202, 207, 422):
                self.counts["reported"] += len(events)
                return
            time.sleep(0.1)
        raise SystemExit(f"the service takes no events: {answer.status_code} {answer.text[:200]}")


def main(url: str, catalog: Path, counts: Path, rate: float, seed: int, customers: int) -> None:
    """Serve until it is stopped."""
    traffic = Traffic(seed, time.time_ns() // 1000, rate, customers)
    product = Product(url, load_catalog(catalog), traffic)
    told = 0.0
    while True:
        began = time.monotonic()
        product.serve(time.time_ns() // 1000)
        if began - told >= COUNTS_S:
            told = began
            new = counts.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(dict(product.counts)))
            new.replace(counts)
        time.sleep(max(0.0, BATCH_S - (time.monotonic() - began)))


if __name__ == "__main__":
    address, catalog_file, counts_file, *numbers = sys.argv[1:]
    main(address, Path(catalog_file), Path(counts_file), float(numbers[0]), int(numbers[1]), int(numbers[2]))
