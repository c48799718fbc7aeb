"""What bounds the service, and how it is guarded where nobody has a key."""

from pathlib import Path
from typing import Any

import httpx

from tests.serving.http.local import local
from tests.serving.http.served import CATALOG, Served


def test_a_key_may_ask_so_often_and_no_oftener(tmp_path: Path) -> None:
    """By a clock that stands still; another key is not slowed by it."""
    now = [0.0]
    with local(tmp_path, rate_per_key=5, monotonic=lambda: now[0]) as here:
        statuses = [here.client.get("/v1/alerts").status_code for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        limited = here.client.get("/v1/alerts")
        assert (limited.headers["retry-after"], limited.json()["type"]) == ("1", "urn:tidegate:problem:rate")
        with here.client_of("read") as other:
            assert other.get("/v1/alerts").status_code == 200
        now[0] += 0.2
        assert [here.client.get("/v1/alerts").status_code for _ in range(2)] == [200, 429]


def test_a_customers_keys_together_may_ask_less_often_than_an_operators(tmp_path: Path) -> None:
    now = [0.0]
    with local(tmp_path, rate_per_customer_key=3, monotonic=lambda: now[0]) as here:
        here.served.create_key("acme's other page", "read", customer="acme")
        with here.client_of("acme") as one, here.client_of("acme's other page") as other:
            path = "/v1/customers/acme/usage"
            statuses = [client.get(path).status_code for client in (one, other, one, other, one)]
        assert statuses == [200] * 3 + [429] * 2
        assert here.client.get("/v1/alerts").status_code == 200


def test_without_keys_only_this_machine_by_its_own_names_is_answered(tmp_path: Path) -> None:
    """A page on the web may have its name point at 127.0.0.1, but then the name is its own."""
    with local(tmp_path, auth="none") as here, here.client_of(None) as client:
        assert client.get("/v1/overview").status_code == 200
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
            answer = client.get("/v1/overview", headers={"host": host})
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:tidegate:problem:host")
        # Nor may it send what a browser lets it send without asking.
        simple = client.post("/v1/events", content=b"{}", headers={"content-type": "text/plain"})
        assert simple.status_code == 415


def test_a_path_or_method_that_there_is_not_is_told_as_a_problem(served: Served) -> None:
    client = served.client()
    nowhere, wrong = client.get("/v1/nowhere"), client.patch("/v1/check")
    assert (nowhere.status_code, nowhere.headers["content-type"]) == (404, "application/problem+json")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, POST")
    assert client.get("/v1/customers/%ff/usage").status_code == 400
    assert client.head("/healthz").content == b""


def test_pages_of_named_origins_alone_may_read_answers(tmp_path: Path) -> None:
    with local(tmp_path, cors="https://app.example") as here:
        own = here.client.get("/v1/alerts", headers={"origin": "https://app.example"})
        other = here.client.get("/v1/alerts", headers={"origin": "https://evil.example"})
        assert own.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-origin" not in other.headers


def test_while_the_store_is_away_reads_say_so_and_checks_follow_the_caps_own_word(tmp_path: Path) -> None:
    closed = CATALOG.replace("calls: {cap: 100,", "calls: {fail: closed, cap: 100,")
    served = Served(tmp_path, catalog=closed, start=False)
    with local(tmp_path, served) as here:
        check = {"customer": "small", "meter": "calls"}
        assert here.client.get("/v1/check", params=check).json()["allowed"] is True
        away = served.store.rename(tmp_path / "away.db")
        usage = here.client.get("/v1/customers/small/usage")
        assert (usage.status_code, usage.headers["retry-after"]) == (503, "1")
        # The near cache may answer for as long as it is proven to be fresh, and no longer.
        decision: dict[str, Any] = {"degraded": False}
        while not decision["degraded"]:
            answer = here.client.get("/v1/check", params=check)
            assert answer.status_code == 200
            decision = answer.json()
        assert (decision["allowed"], decision["reason"]) == (False, "unavailable")
        away.rename(served.store)
        while here.client.get("/v1/check", params=check).json()["degraded"]:
            pass
        while here.client.get("/readyz").status_code != 200:
            pass
        assert here.client.get("/v1/customers/small/usage").status_code == 200


def test_metrics_name_no_customer(served: Served) -> None:
    client = served.client()
    client.get("/v1/customers/a-secret-customer/usage")
    text = client.get("/metrics").text
    assert 'tidegate_http_requests_total{route="get_customers_usage",status="200"}' in text
    assert "a-secret-customer" not in text


def test_a_service_without_any_key_refuses_all_and_says_how_to_make_one(tmp_path: Path) -> None:
    served = Served(tmp_path, start=False)
    for path in (tmp_path / "data").glob("keys.db*"):
        path.unlink()
    served.start()
    try:
        assert "tidegate keys create" in served.said()
        assert httpx.get(f"{served.url}/v1/overview").status_code == 401
        token = served.create_key("late", "read")
        # It is seen without a restart.
        while httpx.get(f"{served.url}/v1/alerts", headers={"x-api-key": token}).status_code != 200:
            pass
    finally:
        served.stop()
