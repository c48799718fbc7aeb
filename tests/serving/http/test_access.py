"""Who may do what: every route with another customer's key, no key, a wrong scope."""

import re
from urllib.parse import quote

import httpx
import pytest

from tests.serving.http.served import Served
from tidegate.operators.gate.access import SCOPES
from tidegate.serving.http.routes import ROUTES
from tidegate.serving.http.routing import Route

GUARDED = [route for route in ROUTES if route.scope is not None]
IDS = [f"{route.method} {route.path}" for route in GUARDED]


def path_of(route: Route, customer: str) -> str:
    """A path of this route about this customer, with the query that it cannot do without."""
    named = {"customer": quote(customer, safe=""), "meter": "calls", "id": "x"}
    path = re.sub(r"\{(\w+)\}", lambda match: named[match[1]], route.path)
    fields = route.query.__struct_fields__
    required = {"customer": customer, "meter": "calls"}
    wanted = {name: required[name] for name in required if name in fields}
    return path + (
        "?" + "&".join(f"{name}={quote(value)}" for name, value in wanted.items()) if wanted else ""
    )


def ask(client: httpx.Client, route: Route, customer: str = "acme") -> httpx.Response:
    headers = {"content-type": route.takes[0].media} if route.takes else {}
    with client.stream(
        route.method, path_of(route, customer), content=b"{}" if route.takes else None, headers=headers
    ) as response:
        # A stream goes on for ever; its status is what counts.
        if not response.headers["content-type"].startswith("text/event-stream"):
            response.read()
        return response


@pytest.mark.parametrize("route", GUARDED, ids=IDS)
def test_without_a_key_nothing_is_told(served: Served, route: Route) -> None:
    answer = ask(served.client(None), route)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["type"] == "urn:tidegate:problem:unauthenticated"


@pytest.mark.parametrize("route", GUARDED, ids=IDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_opens_what_its_scope_is_for_and_nothing_else(served: Served, route: Route, scope: str) -> None:
    status = ask(served.client(scope), route).status_code
    assert (status == 403) == (route.scope != scope), status
    assert status != 401


ABOUT_CUSTOMERS = [route for route in GUARDED if route.customer != "own"]


@pytest.mark.parametrize("route", ABOUT_CUSTOMERS, ids=lambda route: f"{route.method} {route.path}")
def test_a_customers_key_sees_nothing_of_another(served: Served, route: Route) -> None:
    """The words do not tell whether there is such a customer."""
    client = served.client("acme")
    answers = [ask(client, route, other) for other in ("other", "nobody/at all")]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].json() == answers[1].json()


OWN = {
    "/v1/customers/{customer}/usage",
    "/v1/customers/{customer}/stream",
    "/v1/customers/{customer}/limits/{meter}",
    "/v1/alerts",
    "/v1/unmetered",
    "/v1/key",
}


@pytest.mark.parametrize("route", GUARDED, ids=IDS)
def test_a_customers_key_sees_its_own_and_nothing_that_is_everybodys(served: Served, route: Route) -> None:
    status = ask(served.client("acme"), route).status_code
    assert status == (200 if route.path in OWN and route.method == "GET" else 403)


def test_without_a_customer_alerts_are_the_keys_own(served: Served) -> None:
    with_others = served.client("acme").get("/v1/alerts?limit=1000").json()["alerts"]
    assert {alert["customer"] for alert in with_others} <= {"acme"}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer"},
        {"authorization": "Bearer tg_000000000000_" + "a" * 43},
        {"authorization": "Basic dGc6dGc="},
        {"x-api-key": "tg_"},
    ],
)
def test_what_is_no_good_key_is_none(served: Served, headers: dict[str, str]) -> None:
    assert httpx.get(f"{served.url}/v1/overview", headers=headers).status_code == 401


def test_a_secret_does_not_fit_another_keys_id(served: Served) -> None:
    (_, id, _), (_, _, secret) = (served.tokens[name].split("_", 2) for name in ("admin", "read"))
    headers = {"x-api-key": f"tg_{id}_{secret}"}
    assert httpx.get(f"{served.url}/v1/catalog", headers=headers).status_code == 401


def test_a_key_may_come_in_either_header(served: Served) -> None:
    headers = {"x-api-key": served.tokens["read"]}
    assert httpx.get(f"{served.url}/v1/alerts", headers=headers).status_code == 200


def test_health_and_the_document_need_no_key(served: Served) -> None:
    client = served.client(None)
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/openapi.json")] == [200] * 3


def test_no_answer_may_be_framed_guessed_at_or_kept(served: Served) -> None:
    for path in ("/healthz", "/v1/overview", "/nowhere"):
        headers = served.client(None).get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers
        # A page elsewhere may not read it.
        assert "access-control-allow-origin" not in headers


def test_a_products_server_gets_a_token_for_its_customers_page(served: Served) -> None:
    path = "/v1/customers/acme/tokens"
    made = served.client("read").post(path, json={"expires_in": 60}).json()
    headers = {"authorization": f"Bearer {made['token']}"}
    with httpx.Client(base_url=served.url, headers=headers) as page:
        assert page.get("/v1/key").json()["customer"] == "acme"
        assert page.get("/v1/customers/acme/usage").status_code == 200
        assert page.get("/v1/customers/other/usage").status_code == 403
        # It cannot make itself last.
        assert page.post(path, json={}).status_code == 403
    assert served.client("acme").post(path, json={}).status_code == 403
    assert served.client("read").post(path, json={"expires_in": 86_400}).status_code == 422
