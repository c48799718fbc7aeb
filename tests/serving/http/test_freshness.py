"""What the service says while no flow counts, and of events that it accepted and no flow has counted yet."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.serving.http.served import Served
from tidegate.operators.model.freshness import Heartbeat

CATALOG = """
meters:
  - {name: calls, event_name: api.call, aggregation: {type: count}}
  - {name: tokens, event_name: llm, aggregation: {type: sum, key: n}}
default_plan: p
plans: {p: {limits: {calls: {cap: 3, fail: closed, max_lag: off}, tokens: {cap: 100, fail: closed}}}}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = Served(tmp_path_factory.mktemp("fresh"), catalog=CATALOG, MAX_LAG="2s")
    yield one
    one.stop()


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def beat(served: Served, *, behind_s: float = 0, **more: Any) -> None:
    """The flow reports: all that it took until so many seconds ago is counted."""
    now = time.time_ns() // 1000
    writer = served.writer()
    heartbeat = Heartbeat(0, 1, "0", now, now - int(behind_s * 1e6), more.pop("positions", {}), **more)
    writer.write([], [], heartbeats=[heartbeat])
    writer.close()


def eventually(check: Any) -> None:
    until = time.monotonic() + 30
    while not check():
        assert time.monotonic() < until
        time.sleep(0.05)


def send(client: httpx.Client, id: str, name: str = "api.call", **data: Any) -> None:
    event = {
        "event_id": id,
        "customer_id": "acme",
        "event_name": name,
        "timestamp": datetime.now(UTC).isoformat(),
        "metadata": data,
    }
    assert client.post("/v1/events", json=event).status_code == 202


def check(client: httpx.Client, meter: str = "calls") -> dict[str, Any]:
    found: dict[str, Any] = client.get("/v1/check", params={"customer": "acme", "meter": meter}).json()
    return found


def test_events_that_no_flow_counts_close_the_cap_all_the_same(served: Served, client: httpx.Client) -> None:
    for id in ("a", "b", "b", "c"):
        assert check(client)["allowed"]
        send(client, id)
    assert check(client)["used"] == "3"
    assert not check(client)["allowed"]


def test_a_flow_that_is_behind_is_said_by_probe_page_metric_and_alert(
    served: Served, client: httpx.Client
) -> None:
    beat(served)
    eventually(lambda: client.get("/readyz").status_code == 200)
    assert client.get("/v1/overview").json()["flow"]["state"] == "live"
    beat(served, behind_s=60)
    eventually(lambda: client.get("/readyz").status_code == 503)
    assert client.get("/readyz", params={"check": "service"}).status_code == 200
    assert check(client, "tokens")["reason"] == "stale"
    answer = client.get("/v1/check", params={"customer": "acme", "meter": "tokens"})
    assert answer.headers["tidegate-degraded"] == "stale"
    assert float(answer.headers["tidegate-lag"]) >= 60
    eventually(lambda: client.get("/v1/overview").json()["flow"]["state"] == "behind")
    assert client.get("/v1/customers/acme/usage").json()["stale"]
    metrics = client.get("/metrics").text
    assert "tidegate_flow_shards_behind 1.0" in metrics
    eventually(
        lambda: any(
            (one["kind"], one["state"]) == ("flow_behind", "raised")
            for one in client.get("/v1/alerts").json()["alerts"]
        )
    )
