"""A Python client of the control plane, for tests and the demo: synchronous, on httpx."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import httpx

PAGE: Final = 10_000
MONTHLY: Final = {
    "currency": "USD",
    "fixed_price": 0,
    "payment_frequency_count": 1,
    "payment_frequency_interval": "Month",
    "subscription_period_count": 20,
    "subscription_period_interval": "Year",
}


class ControlError(Exception):
    """The control plane refused a call; the message says why."""


class Simulator:
    """The simulator at `url`. `api` is a client of the API itself, with the key.

    Times are aware datetimes or RFC 3339 texts. Every call that creates something returns its id.
    """

    def __init__(self, url: str, key: str = "sim_key", transport: httpx.BaseTransport | None = None) -> None:
        self.url, self.key = url.rstrip("/"), key
        self._http = httpx.Client(base_url=self.url, timeout=60, transport=transport, trust_env=False)
        headers = {"Authorization": f"Bearer {key}"}
        self.api = httpx.Client(
            base_url=self.url, timeout=60, headers=headers, transport=transport, trust_env=False
        )

    def __repr__(self) -> str:
        return f"Simulator({self.url!r})"

    def close(self) -> None:
        self._http.close()
        self.api.close()

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Call the control plane and return its answer.

        Raises:
            ControlError: the control plane refuses.
        """
        asked = {name: value for name, value in query.items() if value is not None}
        answer = self._http.request(method, f"/__sim{path}", json=_to_plain(body or {}), params=asked)
        if answer.status_code != 200:
            raise ControlError(f"{method} /__sim{path}: {answer.status_code} {answer.text}")
        return answer.json()

    # Time

    def reset(self, seed: int = 1) -> None:
        """Forget everything, as if just started."""
        self.call("POST", "/reset", {"seed": seed})

    def read_now(self) -> datetime:
        return datetime.fromisoformat(self.call("GET", "/clock")["now"])

    def set_clock(self, now: datetime | str | None = None, *, rate: float | None = None) -> datetime:
        """Set the time, or its speed: 0 stands still, 1 is real time, 3600 an hour per second."""
        answer = self.call("POST", "/clock", _drop_missing(now=now, rate=rate))
        return datetime.fromisoformat(answer["now"])

    def advance(self, seconds: float) -> datetime:
        return datetime.fromisoformat(self.call("POST", "/clock", {"advance_s": seconds})["now"])

    # What it holds

    def seed(self, **seeds: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
        """Create `meters`, `products`, `customers`, `subscriptions`; return the ids of each, in order."""
        made: dict[str, list[str]] = self.call("POST", "/seed", seeds)
        return made

    def create_customer(self, id: str | None = None, **fields: Any) -> str:
        return self.seed(customers=[_drop_missing(id=id) | fields])["customers"][0]

    def create_meter(
        self,
        event_name: str,
        type: str = "count",
        key: str | None = None,
        *,
        id: str | None = None,
        **fields: Any,
    ) -> str:
        """Create a meter and return its id; `filter` may be among the fields."""
        meter = {
            "name": event_name,
            "event_name": event_name,
            "aggregation": _drop_missing(type=type, key=key),
        }
        return self.seed(meters=[meter | _drop_missing(id=id) | fields])["meters"][0]

    def create_product(
        self, meters: Sequence[str | dict[str, Any]] = (), *, id: str | None = None, **fields: Any
    ) -> str:
        """Create a monthly product of these meters, given as ids or with prices; `price` fields may be overridden."""
        priced = [{"meter_id": one, "price_per_unit": "1"} if isinstance(one, str) else one for one in meters]
        price = MONTHLY | fields.pop("price", {}) | {"type": "usage_based_price", "meters": priced}
        return self.seed(products=[{"price": price} | _drop_missing(id=id) | fields])["products"][0]

    def create_subscription(self, customer_id: str, product_id: str, **fields: Any) -> str:
        """Create a subscription; `start`, `end`, `past` and `status` are among the fields."""
        seed = {"customer_id": customer_id, "product_id": product_id} | fields
        return self.seed(subscriptions=[seed])["subscriptions"][0]

    def roll(self, subscription_id: str, **edges: datetime | str) -> dict[str, Any]:
        """Close the current cycle (at `at`) and open the next one (from `start` to `end`)."""
        answer: dict[str, Any] = self.call("POST", f"/subscriptions/{subscription_id}/roll", edges)
        return answer

    def change_subscription(self, subscription_id: str, **fields: Any) -> dict[str, Any]:
        """Set `status`, `product_id`, `end`, `expires_at` or `cancel_at_next_billing_date`."""
        answer: dict[str, Any] = self.call("PATCH", f"/subscriptions/{subscription_id}", fields)
        return answer

    # How it behaves

    def set_switches(self, **switches: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("POST", "/switches", switches)
        return answer

    def set_tier(self, tier: str) -> None:
        """Set the rate limits: `0`, `1`, `2`, `unlimited`, or per second and per minute such as `10/60`."""
        self.call("POST", "/tier", {"tier": tier})

    def set_key_mode(self, mode: str, key: str | None = None) -> None:
        """Make a key `read_write`, `read_only` or `revoked`; the client's own by default."""
        self.call("POST", "/keys", {"key": key or self.key, "mode": mode})

    def add_fault(
        self,
        kind: str,
        *,
        where: str = "ingest",
        times: int | None = 1,
        probability: float = 1.0,
        skip: int = 0,
        for_s: float | None = None,
        **how: Any,
    ) -> str:
        """Make requests that fit `where` fail; once, unless `times` says how often, or None for always."""
        rule = {"fault": {"kind": kind} | how, "where": where, "times": times, "probability": probability}
        answer = self.call("POST", "/faults", rule | {"skip": skip, "for_s": for_s})
        return str(answer["id"])

    def add_script(self, *steps: str | dict[str, Any], where: str = "ingest") -> None:
        """Define what happens to the next requests, one step each; `ok` is no fault."""
        kinds = [{"kind": step} if isinstance(step, str) else step for step in steps]
        self.call("POST", "/script", {"steps": kinds, "where": where})

    def clear_faults(self, id: str | None = None) -> None:
        self.call("DELETE", "/faults", id=id)

    def drop(self, *event_ids: str, count: int = 0, remember: bool = False) -> list[str]:
        """Lose events; `remember` makes the provider ignore their ids for ever."""
        order = {"event_ids": event_ids, "count": count, "remember": remember}
        return list(self.call("POST", "/events/drop", order)["event_ids"])

    def double(self, *event_ids: str, count: int = 0, new_ids: bool = False) -> list[str]:
        """Count events twice, under the same id or a new one."""
        order = {"event_ids": event_ids, "count": count, "new_ids": new_ids}
        return list(self.call("POST", "/events/double", order)["event_ids"])

    def insert(self, *events: dict[str, Any]) -> int:
        """Store events past all rules; return how many were new."""
        return int(self.call("POST", "/events/insert", {"events": events})["stored"])

    def skew(
        self, subscription_id: str, meter_id: str, units: int | str, start: datetime | str | None = None
    ) -> None:
        """Make the usage history report `units` more than the sum of the events."""
        order = {"subscription_id": subscription_id, "meter_id": meter_id, "units": str(units)}
        self.call("POST", "/skew", order | _drop_missing(start=start))

    def deliver(self) -> list[dict[str, Any]]:
        """Try to send all webhooks that are due; return the answers of their receivers."""
        return list(self.call("POST", "/webhooks/deliver"))

    def emit(self, type: str, subscription_id: str) -> None:
        """Send a webhook about a subscription without a cause."""
        self.call("POST", "/webhooks/emit", {"type": type, "subject": subscription_id})

    def rotate_secret(self, webhook_id: str) -> None:
        """Change a webhook's secret; the old one is valid for a day."""
        self.call("POST", f"/webhooks/{webhook_id}/rotate")

    # What came of it

    def list_webhooks(self) -> list[dict[str, Any]]:
        """Return the webhooks that are queued or were sent recently, with attempts and state."""
        return list(self.call("GET", "/webhooks"))

    def read_state(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("GET", "/state")
        return answer

    def read_usage(self, subscription_id: str | None = None) -> list[dict[str, Any]]:
        """Return each subscription's cycles as the history will show them once all events are visible."""
        return list(self.call("GET", "/usage", subscription_id=subscription_id))

    def list_events(self) -> Iterator[dict[str, Any]]:
        """Return all stored events in that order; a doubled event occurs twice."""
        after = 0
        while found := self.call("GET", "/events", after=after, limit=PAGE):
            yield from found
            after = found[-1]["position"]

    def list_requests(self, after: int = 0) -> list[dict[str, Any]]:
        """Return the log of the API's requests after the `after`-th."""
        log: list[dict[str, Any]] = []
        while found := self.call("GET", "/requests", after=after, limit=PAGE):
            log += found
            after = found[-1]["number"]
        return log


def _drop_missing(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _to_plain(value: Any) -> Any:
    """Return `value` with its datetimes as RFC 3339 texts."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    return [_to_plain(item) for item in value] if isinstance(value, list | tuple) else value
