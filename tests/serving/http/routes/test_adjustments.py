"""Adjustments and odd instants at the service's door: an answer in words, and nothing on record that can't be done."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.http.local import Local, local
from tests.serving.http.served import CATALOG, Served


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """With a customer in a zone, and one whose period never ends."""
    folder = tmp_path_factory.mktemp("adjusted")
    odd = "customers:\n  zoned: {plan: free, zone: Asia/Kathmandu}\n  ever: {plan: free, period: {type: never}}\n"
    with local(folder, Served(folder, catalog=CATALOG.replace("customers:\n", odd), start=False)) as found:
        yield found


def post(here: Local, id: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    given = {
        "customer": "small",
        "meter": "calls",
        "at": "2026-11-01T00:00:00Z",
        "quantity": "1",
        "reason": "r",
    }
    answer = here.client.post("/v1/adjustments", json={"id": id} | given | fields)
    return answer.status_code, answer.json()


def test_an_id_is_one_adjustment(here: Local) -> None:
    """The second was answered with 202 and silently not made."""
    first = post(here, "fix")
    assert first[0] == 202
    assert post(here, "fix", quantity="1.0", reason="again") == first
    for other in ({"quantity": "2"}, {"customer": "big"}, {"at": "2026-11-01T00:00:01Z"}):
        status, problem = post(here, "fix", **other)
        assert (status, problem["type"]) == (409, "urn:tidegate:problem:conflict")
        assert "'fix'" in problem["detail"]


AGES = ["1926-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "2100-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]


@pytest.mark.parametrize("customer", ["small", "zoned", "ever"])
@pytest.mark.parametrize("at", [*AGES, "0000-01-01T00:00:00Z", "9999-12-31T23:59:60Z", "now", ""])
def test_a_time_out_of_reach_is_refused_everywhere(here: Local, at: str, customer: str) -> None:
    assert post(here, f"old{AGES.index(at) if at in AGES else ''}", customer=customer, at=at)[0] == 422
    for path in (f"/v1/customers/{customer}/usage", f"/v1/explain/{customer}/calls"):
        assert here.client.get(path, params={"at": at}).status_code in (404, 422)


@pytest.mark.parametrize("customer", ["small", "zoned", "ever"])
@pytest.mark.parametrize("at", ["2000-01-01T00:00:00Z", "2099-12-31T23:59:59.999999Z"])
def test_the_first_and_the_last_instant_are_answered(here: Local, at: str, customer: str) -> None:
    for path in (f"/v1/customers/{customer}/usage", f"/v1/explain/{customer}/calls"):
        assert here.client.get(path, params={"at": at}).status_code == 200


@pytest.mark.parametrize("quantity", ["NaN", "1e999999", "0." + "1" * 25, "1\n", "", "+1", "0x1"])
def test_what_is_no_exact_quantity_is_refused(here: Local, quantity: str) -> None:
    assert post(here, "odd", quantity=quantity)[0] == 422
