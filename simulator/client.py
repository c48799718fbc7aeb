"""The control plane from Python, for tests and the demo: synchronous, on httpx."""

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
    """The control plane refused; says why."""


class Simulator:
    """The simulator at `url`. `api` is a client of the API itself, with the key.

    Times are aware datetimes or RFC 3339 texts. Whatever is made answers with its id.
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

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One call of the control plane; ControlError where it refuses."""
        asked = {name: value for name, value in query.items() if value is not None}
        answer = self._http.request(method, f"/__sim{path}", json=_plain(body or {}), params=asked)
        if answer.status_code != 200:
            raise ControlError(f"{method} /__sim{path}: {answer.status_code} {answer.text}")
        return answer.json()

    # Time

    def reset(self, seed: int = 1) -> None:
        """Forgets everything, as if just started."""
        self.ask("POST", "/reset", {"seed": seed})

    def now(self) -> datetime:
        return datetime.fromisoformat(self.ask("GET", "/clock")["now"])

    def clock(self, now: datetime | str | None = None, *, rate: float | None = None) -> datetime:
        """Sets the time, or its speed: 0 stands still, 1 is real time, 3600 an hour a second."""
        answer = self.ask("POST", "/clock", _given(now=now, rate=rate))
        return datetime.fromisoformat(answer["now"])

    def advance(self, seconds: float) -> datetime:
        return datetime.fromisoformat(self.ask("POST", "/clock", {"advance_s": seconds})["now"])

    # What it holds

    def seed(self, **seeds: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
        """Makes `meters`, `products`, `customers`, `subscriptions`; the ids of each, in order."""
        made: dict[str, list[str]] = self.ask("POST", "/seed", seeds)
        return made

    def customer(self, id: str | None = None, **fields: Any) -> str:
        return self.seed(customers=[_given(id=id) | fields])["customers"][0]

    def meter(
        self,
        event_name: str,
        type: str = "count",
        key: str | None = None,
        *,
        id: str | None = None,
        **fields: Any,
    ) -> str:
        """A meter; `filter` may be among the fields."""
        meter = {"name": event_name, "event_name": event_name, "aggregation": _given(type=type, key=key)}
        return self.seed(meters=[meter | _given(id=id) | fields])["meters"][0]

    def product(
        self, meters: Sequence[str | dict[str, Any]] = (), *, id: str | None = None, **fields: Any
    ) -> str:
        """A monthly product of these meters, given as ids or with their prices; `price` fields may be overridden."""
        priced = [{"meter_id": one, "price_per_unit": "1"} if isinstance(one, str) else one for one in meters]
        price = MONTHLY | fields.pop("price", {}) | {"type": "usage_based_price", "meters": priced}
        return self.seed(products=[{"price": price} | _given(id=id) | fields])["products"][0]

    def subscription(self, customer_id: str, product_id: str, **fields: Any) -> str:
        """A subscription; `start`, `end`, `past` and `status` among the fields."""
        seed = {"customer_id": customer_id, "product_id": product_id} | fields
        return self.seed(subscriptions=[seed])["subscriptions"][0]

    def roll(self, subscription_id: str, **edges: datetime | str) -> dict[str, Any]:
        """Closes the current cycle (at `at`) and opens the next (from `start` to `end`)."""
        answer: dict[str, Any] = self.ask("POST", f"/subscriptions/{subscription_id}/roll", edges)
        return answer

    def change(self, subscription_id: str, **fields: Any) -> dict[str, Any]:
        """Sets `status`, `product_id`, `end`, `expires_at` or `cancel_at_next_billing_date`."""
        answer: dict[str, Any] = self.ask("PATCH", f"/subscriptions/{subscription_id}", fields)
        return answer

    # How it behaves

    def switch(self, **switches: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("POST", "/switches", switches)
        return answer

    def tier(self, tier: str) -> None:
        """`0`, `1`, `2`, `unlimited`, or per second and per minute such as `10/60`."""
        self.ask("POST", "/tier", {"tier": tier})

    def key_mode(self, mode: str, key: str | None = None) -> None:
        """Makes a key `read_write`, `read_only` or `revoked`; the client's own by default."""
        self.ask("POST", "/keys", {"key": key or self.key, "mode": mode})

    def fault(
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
        """Lets requests that fit `where` fail; once, unless `times` says how often, or None for always."""
        rule = {"fault": {"kind": kind} | how, "where": where, "times": times, "probability": probability}
        answer = self.ask("POST", "/faults", rule | {"skip": skip, "for_s": for_s})
        return str(answer["id"])

    def script(self, *steps: str | dict[str, Any], where: str = "ingest") -> None:
        """What the next requests meet, one step each; `ok` is none."""
        kinds = [{"kind": step} if isinstance(step, str) else step for step in steps]
        self.ask("POST", "/script", {"steps": kinds, "where": where})

    def clear_faults(self, id: str | None = None) -> None:
        self.ask("DELETE", "/faults", id=id)

    def drop(self, *event_ids: str, count: int = 0, remember: bool = False) -> list[str]:
        """Loses events; `remember` has it ignore their ids for ever."""
        order = {"event_ids": event_ids, "count": count, "remember": remember}
        return list(self.ask("POST", "/events/drop", order)["event_ids"])

    def double(self, *event_ids: str, count: int = 0, new_ids: bool = False) -> list[str]:
        """Counts events twice, under the same id or a new one."""
        order = {"event_ids": event_ids, "count": count, "new_ids": new_ids}
        return list(self.ask("POST", "/events/double", order)["event_ids"])

    def insert(self, *events: dict[str, Any]) -> int:
        """Stores events past all rules; how many were new."""
        return int(self.ask("POST", "/events/insert", {"events": events})["stored"])

    def skew(
        self, subscription_id: str, meter_id: str, units: int | str, start: datetime | str | None = None
    ) -> None:
        """Has the usage history say `units` more than the events come to."""
        order = {"subscription_id": subscription_id, "meter_id": meter_id, "units": str(units)}
        self.ask("POST", "/skew", order | _given(start=start))

    def deliver(self) -> list[dict[str, Any]]:
        """Tries all webhooks that are due; what their receivers answered."""
        return list(self.ask("POST", "/webhooks/deliver"))

    def emit(self, type: str, subscription_id: str) -> None:
        """Sends a webhook about a subscription, for nothing."""
        self.ask("POST", "/webhooks/emit", {"type": type, "subject": subscription_id})

    def rotate(self, webhook_id: str) -> None:
        """Changes a webhook's secret; the old one holds for a day."""
        self.ask("POST", f"/webhooks/{webhook_id}/rotate")

    # What came of it

    def webhooks(self) -> list[dict[str, Any]]:
        """What is on its way or was sent of late, with attempts and state."""
        return list(self.ask("GET", "/webhooks"))

    def state(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("GET", "/state")
        return answer

    def usage(self, subscription_id: str | None = None) -> list[dict[str, Any]]:
        """Each subscription's cycles as the history will show them once all is visible."""
        return list(self.ask("GET", "/usage", subscription_id=subscription_id))

    def events(self) -> Iterator[dict[str, Any]]:
        """All that is stored, in that order; a doubled event comes twice."""
        after = 0
        while found := self.ask("GET", "/events", after=after, limit=PAGE):
            yield from found
            after = found[-1]["position"]

    def requests(self, after: int = 0) -> list[dict[str, Any]]:
        """The log of the API's requests after the `after`-th."""
        log: list[dict[str, Any]] = []
        while found := self.ask("GET", "/requests", after=after, limit=PAGE):
            log += found
            after = found[-1]["number"]
        return log


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    """`value` with its datetimes as RFC 3339 texts."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
