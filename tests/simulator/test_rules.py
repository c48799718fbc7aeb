"""What ingest takes and refuses. A rule that is too soft here lets a bug in forwarding reach the real platform."""

import json
from datetime import timedelta
from typing import Any

import pytest

from simulator.client import Simulator
from tests.simulator.conftest import NOW, event, ingest

MICROSECOND = timedelta(microseconds=1)


@pytest.fixture(autouse=True)
def customer(sim: Simulator) -> str:
    sim.create_meter("tokens", "sum", "n")
    return sim.create_customer("cus_a")


GOOD: list[dict[str, Any]] = [
    {},
    {"timestamp": None},
    {"timestamp": "2026-11-22T11:00:00Z"},
    {"timestamp": "2026-11-22T12:05:00Z"},
    {"timestamp": "2026-11-22T17:30:00+05:30"},
    {"timestamp": "2026-11-22T11:59:59.123456789Z"},
    {"metadata": None},
    {"metadata": {}},
    {"metadata": {f"k{n}": n for n in range(50)}},
    {"metadata": {"k" * 100: "v" * 500}},
    {"metadata": {"a": "text", "b": 1, "c": 1.5, "d": True, "e": -(2**63), "f": 2**63 - 1}},
    {"event_name": "of no meter", "metadata": {"n": -1}},
    {"event_id": "any / length? " * 50},
    {"unknown_field": {"is": "ignored"}},
]

BAD: list[tuple[int, dict[str, Any]]] = [
    (400, {"timestamp": (NOW - timedelta(hours=1) - MICROSECOND).isoformat()}),
    (400, {"timestamp": (NOW + timedelta(minutes=5) + MICROSECOND).isoformat()}),
    (400, {"customer_id": "cus_unknown"}),
    (400, {"customer_id": "CUS_A"}),
    (400, {"metadata": {f"k{n}": n for n in range(51)}}),
    (400, {"metadata": {"k" * 101: 1}}),
    (400, {"metadata": {"k": "v" * 501}}),
    (400, {"metadata": {"n": -1}}),
    (400, {"metadata": {"n": -0.5}}),
    (422, {"timestamp": "2026-11-22T12:00:00"}),
    (422, {"timestamp": "yesterday"}),
    (422, {"timestamp": 1795348800}),
    (422, {"event_id": 7}),
    (422, {"event_id": None}),
    (422, {"event_name": None}),
    (422, {"customer_id": ["cus_a"]}),
    (422, {"metadata": {"k": None}}),
    (422, {"metadata": {"k": {"nested": 1}}}),
    (422, {"metadata": {"k": [1]}}),
    (422, {"metadata": {"k": 2**63}}),
    (422, {"metadata": {"k": 10**20}}),
    (422, {"metadata": "text"}),
]


@pytest.mark.parametrize("fields", GOOD)
def test_takes(sim: Simulator, fields: dict[str, Any]) -> None:
    answer = ingest(sim, event() | fields)
    assert (answer.status_code, answer.text) == (200, '{"ingested_count":1}')


@pytest.mark.parametrize(("status", "fields"), BAD)
def test_refuses(sim: Simulator, status: int, fields: dict[str, Any]) -> None:
    """And keeps nothing of the batch, neither what came before the bad event nor what came after."""
    answer = ingest(sim, event("before"), event() | fields, event("after"))
    assert answer.status_code == status, answer.text
    assert list(sim.list_events()) == []


@pytest.mark.parametrize("missing", ["event_id", "customer_id", "event_name"])
def test_each_identifying_field_is_needed(sim: Simulator, missing: str) -> None:
    wanting = event()
    del wanting[missing]
    assert ingest(sim, wanting).status_code == 422


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"events": null}', b'{"event": []}', b"\xff", b'{"events":[1]}']
)
def test_a_body_that_is_none(sim: Simulator, body: bytes) -> None:
    assert sim.api.post("/events/ingest", content=body).status_code == 422


@pytest.mark.parametrize(("count", "status"), [(0, 422), (1, 200), (1000, 200), (1001, 422)])
def test_one_to_a_thousand_events(sim: Simulator, count: int, status: int) -> None:
    assert ingest(sim, *(event(f"e{n}") for n in range(count))).status_code == status
    assert len(list(sim.list_events())) == (count if status == 200 else 0)


def test_an_id_twice_in_one_request_fails_it(sim: Simulator) -> None:
    assert ingest(sim, event("a"), event("b"), event("a")).status_code == 400
    assert list(sim.list_events()) == []


def test_a_known_id_is_ignored_and_the_first_stays(sim: Simulator) -> None:
    """So a resend after a lost answer is safe, and a correction by resending is not possible."""
    assert ingest(sim, event(metadata={"n": 1})).json() == {"ingested_count": 1}
    again = ingest(sim, event(metadata={"n": 2}), event("E1"))
    assert (again.status_code, again.json()) == (200, {"ingested_count": 1})
    assert [(one["event_id"], one["metadata"]) for one in sim.list_events()] == [
        ("e1", {"n": 1}),
        ("E1", None),
    ]


def test_a_body_that_is_too_large_is_413_before_it_is_read(sim: Simulator) -> None:
    assert sim.api.post("/events/ingest", content=b"{" * (2 << 20)).status_code == 422
    assert sim.api.post("/events/ingest", content=b"{" * ((2 << 20) + 1)).status_code == 413


def test_it_says_when_it_is_full(sim: Simulator) -> None:
    sim.set_switches(max_events=2)
    assert ingest(sim, event("a")).status_code == 200
    assert ingest(sim, event("b"), event("c")).status_code == 503
    assert ingest(sim, event("a"), event("b")).status_code == 200


def test_the_order_in_which_it_looks(sim: Simulator) -> None:
    """Key, then limit, then size, then schema, then rules: each wrong thing hides those after it."""
    sim.set_switches(max_body_bytes=1000)
    schema = json.dumps(
        {"events": [event("old", timestamp="2020-01-01T00:00:00Z"), {"event_id": 1}]}
    ).encode()
    large = schema + b" " * 1000
    assert sim.api.post("/events/ingest", content=schema).status_code == 422
    assert sim.api.post("/events/ingest", content=large).status_code == 413
    sim.set_tier("1/1")
    assert sim.api.post("/events/ingest", content=large).status_code == 413
    assert sim.api.post("/events/ingest", content=large).status_code == 429
    sim.set_key_mode("revoked")
    assert sim.api.post("/events/ingest", content=large).status_code == 401


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", "Basic sim_key", "sim_key", "Bearer sim_key x", "Bearer SIM_KEY"],
)
def test_without_the_key_nothing_is_taken(sim: Simulator, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = sim._http.post("/events/ingest", json={"events": [event()]}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")
    assert list(sim.list_events()) == []


def test_a_key_that_may_only_read(sim: Simulator) -> None:
    sim.set_key_mode("read_only")
    assert ingest(sim, event()).status_code == 403
    assert sim.api.get("/meters").status_code == 200
    sim.set_key_mode("read_write")
    assert ingest(sim, event()).status_code == 200


def test_an_unknown_path_is_404_and_asks_for_a_key(sim: Simulator) -> None:
    assert sim.api.get("/nothing/here").json()["code"] == "NOT_FOUND"
    assert sim.api.put("/events/ingest").status_code == 404
    assert sim._http.get("/nothing/here").status_code == 401
