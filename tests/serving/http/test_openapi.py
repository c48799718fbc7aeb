"""The OpenAPI document, and the service held to it by a fuzzer that knows nothing else.

`TIDEGATE_FUZZ_EXAMPLES=500` tries so many requests a route.
"""

from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from tests.serving.http.served import Served
from tests.support.options import option
from tests.support.places import ROOT
from tidegate.serving.http.openapi import document
from tidegate.serving.http.routes import ROUTES

EXAMPLES = int(option("TIDEGATE_FUZZ_EXAMPLES", "6"))


MORE_THAN_A_SCHEMA = {
    # Not in the future, and quantities as the catalog's meters read them.
    "/v1/events",
    # A parameter or a header.
    "/v1/forward-auth",
    # A catalog is more than text, a limit more than its fields, and an entity tag is what it was.
    "/v1/catalog",
    "/v1/customers/{customer}/limits/{meter}",
}
"""Where a request may be refused that fits the document."""


CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {
            # 428 and 412 are what is said of If-Match: RFC 6585, RFC 9110.
            "missing_required_header": {"expected-statuses": [400, 401, 403, 406, 415, 422, 428]},
            "negative_data_rejection": {"expected-statuses": ["4xx"]},
        }
    }
)


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service of its own, as its catalog will be changed in every way that the document allows."""
    served = Served(tmp_path_factory.mktemp("fuzzed"))
    yield served
    code = served.stop()
    assert "Traceback" not in served.said(), served.said()[-5000:]
    assert code == 0


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


# A stream does not end, which a fuzzer waits for; tests of streams look at them.
whole = schemathesis.openapi.from_dict(document(ROUTES), config=CONFIG).exclude(
    path_regex="/(stream|openapi.json)$"
)


@whole.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_answered_otherwise_than_documented(
    case: schemathesis.Case[Any], fuzzed: Served
) -> None:
    case.call_and_validate(
        base_url=fuzzed.url,
        headers={"authorization": f"Bearer {fuzzed.tokens['all']}"},
        # It leaves out the other header that a key may come in; test_access.py leaves out both.
        excluded_checks=[
            ignored_auth,
            *([positive_data_acceptance] if case.path in MORE_THAN_A_SCHEMA else []),
        ],
    )


def test_every_route_is_documented_with_what_it_may_answer() -> None:
    paths = document(ROUTES)["paths"]
    for route in ROUTES:
        operation = paths[route.path][route.method.lower()]
        assert operation["summary"] and operation["operationId"] == route.name
        assert {str(answer.status) for answer in route.answers} <= set(operation["responses"])
        assert bool(operation["security"]) == (route.scope is not None)


def test_what_is_refused_before_a_route_is_found_is_documented_for_each() -> None:
    """A long id in a path makes an address too long, whatever the route."""
    for path, operations in document(ROUTES)["paths"].items():
        for method, operation in operations.items():
            assert {"400", "414", "431"} <= set(operation["responses"]), f"{method} {path}"


def test_operations_have_names_of_their_own() -> None:
    names = [route.name for route in ROUTES]
    assert len(set(names)) == len(names)


def test_every_schema_is_one() -> None:
    components = document(ROUTES)["components"]["schemas"]
    for name, schema in components.items():
        jsonschema.Draft202012Validator.check_schema(schema), name


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_in_the_docs(route: Any) -> None:
    assert route.path.split("?")[0] in (ROOT / "docs" / "api.md").read_text()
