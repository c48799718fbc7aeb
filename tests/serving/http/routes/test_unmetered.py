"""What was accepted and not metered, over HTTP: to operators by cause, to a customer its own."""

import json
from typing import Any

import httpx
import pytest

from tests.serving.http.served import Served
from tidegate.connectors.clock import wall_clock
from tidegate.operators.model.ports import Note
from tidegate.operators.model.records import Counter


def row(name: str, customer: str, events: int, **changed: Any) -> dict[str, Any]:
    at = "2026-11-22T10:00:00.000000Z"
    found = {"event_name": name, "reason": "unknown_name", "meter": "", "key": "", "partly": False}
    sample = {"events": events, "first_at": at, "last_at": at, "customer": customer, "event_id": f"{name}-1"}
    return found | sample | changed


@pytest.fixture
def stored(served: Served) -> None:
    """Rows of two shards, as a flow writes them."""
    text = {"reason": "text_number", "meter": "tokens", "key": "tokens"}
    rows = [
        Note("unmetered", "0/a", "", 1, json.dumps(row("a", "acme", 3)).encode()),
        Note("unmetered", "1/a", "", 1, json.dumps(row("a", "other", 4)).encode()),
        Note("unmetered", "0/t", "", 1, json.dumps(row("llm.tokens", "acme", 1, **text)).encode()),
        Note("unmetered_of", "0/a/acme", "acme", 1, json.dumps(row("a", "acme", 3)).encode()),
        Note(
            "unmetered_of", "0/t/acme", "acme", 1, json.dumps(row("llm.tokens", "acme", 1, **text)).encode()
        ),
        Note("unmetered_of", "1/a/other", "other", 1, json.dumps(row("a", "other", 4)).encode()),
    ]
    counts = {"events": 10, "accepted": 10, "metered": 2, "unmetered": 8}
    counts |= {"unmetered:unknown_name": 7, "unmetered:text_number": 1}
    writer = served.writer()
    writer.write([], [Counter(0, name, value) for name, value in counts.items()], rows)
    writer.close()


def named(body: list[dict[str, Any]]) -> dict[str, int]:
    return {cause["event_name"]: cause["events"] for cause in body}


@pytest.mark.usefixtures("stored")
def test_an_operator_sees_all_causes_and_a_customer_the_customers_own(
    served: Served, api: httpx.Client
) -> None:
    whole = api.get("/v1/unmetered").json()
    assert named(whole["causes"]) == {"a": 7, "llm.tokens": 1}
    assert (whole["events"], whole["reasons"]) == (8, {"text_number": 1, "unknown_name": 7})
    assert whole["causes"][0]["text"] == "no meter takes events of the name 'a'"
    assert named(api.get("/v1/unmetered", params={"limit": 1}).json()["causes"]) == {"a": 7}
    own = served.client("acme")
    for params in ({}, {"customer": "acme"}):
        answer = own.get("/v1/unmetered", params=params).json()
        assert named(answer["causes"]) == {"a": 3, "llm.tokens": 1}
        assert "events" not in answer and "other" not in json.dumps(answer)
    assert own.get("/v1/unmetered", params={"customer": "other"}).status_code == 403
    assert named(own.get("/v1/customers/acme/usage").json()["unmetered"]) == {"a": 3, "llm.tokens": 1}


@pytest.mark.usefixtures("stored")
def test_overview_and_explain_name_it(api: httpx.Client) -> None:
    overview = api.get("/v1/overview").json()
    assert named(overview["unmetered"]) == {"a": 7, "llm.tokens": 1}
    assert overview["balanced"] and overview["counters"]["unmetered"] == 8
    assert named(api.get("/v1/explain/acme/tokens").json()["unmetered"]) == {"a": 3, "llm.tokens": 1}
    # What another meter could not read explains nothing of this one.
    assert named(api.get("/v1/explain/acme/calls").json()["unmetered"]) == {"a": 3}


@pytest.mark.usefixtures("stored")
def test_what_is_nobodys_makes_no_customer_of_an_empty_name(served: Served, api: httpx.Client) -> None:
    """Rows by cause are written under no customer, as are the flow's own alerts."""
    writer = served.writer()
    later = json.dumps(row("a", "acme", 5)).encode()
    writer.write([], [], [Note("unmetered", "0/a", "", wall_clock(), later)])
    writer.close()
    customers = [one["customer"] for one in api.get("/v1/overview").json()["top"]]
    assert "" not in customers
