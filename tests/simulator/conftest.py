import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from dodopayments import DodoPayments
from jsonschema import Draft202012Validator

from simulator.app import build_app
from simulator.client import Simulator
from simulator.inprocess import AppTransport
from simulator.routes.webhook_deliveries import Sender
from simulator.state.platform import Platform
from tests.support.platform import KEY, platform, platform_process  # noqa: F401

SUBSET = json.loads((Path(__file__).parent / "openapi-subset.json").read_text())
# Any call may end this way; the subset names what an operation adds.
GENERIC = {400, 401, 403, 404, 408, 409, 410, 413, 422, 429, 500, 502, 503}
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Checked(AppTransport):
    """Holds every answer of the API against the published shapes, but for those that a fault spoiled."""

    spoiled = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        content = await answer.aread()
        if not request.url.path.startswith("/__sim") and not self.spoiled:
            check(request.method, request.url.path, answer.status_code, content)
        return httpx.Response(answer.status_code, headers=answer.headers, content=content, request=request)


def check(method: str, path: str, status: int, content: bytes) -> None:
    operation = _operation(method, path)
    if status >= 400:
        assert status in GENERIC
        assert set(json.loads(content)) == {"code", "message"}
    elif operation:
        assert str(status) in operation["responses"], f"{method} {path}: {status} is not documented"
        _validate(operation["responses"].get(str(status), {}), content, f"{method} {path}")


def _validate(response: dict[str, Any], content: bytes, what: str) -> None:
    schema = response.get("content", {}).get("application/json", {}).get("schema")
    if schema is None:
        return
    whole = {"components": SUBSET["components"], "allOf": [schema]}
    errors = [error.message for error in Draft202012Validator(whole).iter_errors(json.loads(content))]
    assert not errors, f"{what}: {errors[:3]}"


def _operation(method: str, path: str) -> dict[str, Any] | None:
    for template, operations in SUBSET["paths"].items():
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in operations and template != "/events/{event_id}":
            return operations[method.lower()]  # type: ignore[no-any-return]
    return SUBSET["paths"]["/events/{event_id}"]["get"] if path.startswith("/events/") else None


class Inside:
    """A platform inside the test, its clock at NOW and standing still, without limits; every answer is checked."""

    def __init__(self, seed: int = 1, receivers: httpx.AsyncBaseTransport | None = None) -> None:
        self.platform = Platform(seed, key=KEY)
        self.app, self.sender = build_app(self.platform, receivers)
        self.transport = Checked(self.app)
        self.sim = Simulator("http://simulator", KEY, self.transport)
        self.sim.set_clock(NOW, rate=0)
        self.sim.set_tier("unlimited")

    def sdk(self, **options: Any) -> DodoPayments:
        """The official SDK, as it is, on this platform."""
        client = httpx.Client(transport=self.transport, base_url="http://simulator")
        return DodoPayments(bearer_token=KEY, base_url="http://simulator", http_client=client, **options)

    def close(self) -> None:
        self.sim.close()
        self.transport.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Inside]]:
    made: list[Inside] = []

    def new(**options: Any) -> Inside:
        made.append(Inside(**options))
        return made[-1]

    yield new
    for inside in made:
        inside.close()


@pytest.fixture
def inside(make: Callable[..., Inside]) -> Inside:
    return make()


@pytest.fixture
def sim(inside: Inside) -> Simulator:
    return inside.sim


@pytest.fixture
def sender(inside: Inside) -> Sender:
    return inside.sender


def event(id: str = "e1", customer: str = "cus_a", name: str = "tokens", **fields: Any) -> dict[str, Any]:
    return {"event_id": id, "customer_id": customer, "event_name": name} | fields


def ingest(sim: Simulator, *events: dict[str, Any]) -> httpx.Response:
    return sim.api.post("/events/ingest", json={"events": events})


def history(sim: Simulator, subscription_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = sim.api.get(f"/subscriptions/{subscription_id}/usage-history", params=query)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items
