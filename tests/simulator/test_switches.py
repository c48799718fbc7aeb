"""Each unknown of the platform, both ways: a client is right only if it survives either."""

from datetime import timedelta
from typing import Any

import pytest

from simulator.client import ControlError, Simulator
from tests.simulator.conftest import NOW, event, history, ingest

OLD = NOW - timedelta(minutes=61)


@pytest.fixture(autouse=True)
def subscription(sim: Simulator) -> str:
    meter = sim.create_meter("tokens", "sum", "n")
    return sim.create_subscription(
        sim.create_customer("cus_a"), sim.create_product([meter]), start=NOW - timedelta(days=1)
    )


def stored(sim: Simulator) -> list[str]:
    return [one["event_id"] for one in sim.list_events()]


def consumed(sim: Simulator, subscription: str) -> str:
    return str(history(sim, subscription)[0]["meters"][0]["consumed_units"])


@pytest.mark.parametrize(("atomic", "kept"), [(True, []), (False, ["a", "c"])])
def test_a_refused_batch(sim: Simulator, atomic: bool, kept: list[str]) -> None:
    sim.set_switches(atomic_batches=atomic)
    assert ingest(sim, event("a"), event("b", customer="cus_x"), event("c"), event("a")).status_code == 400
    assert stored(sim) == kept


@pytest.mark.parametrize(("mode", "count"), [("new_only", 1), ("accepted", 2)])
def test_whether_known_ids_count(sim: Simulator, mode: str, count: int) -> None:
    sim.set_switches(ingested_count_mode=mode)
    ingest(sim, event("a"))
    assert ingest(sim, event("a"), event("b")).json() == {"ingested_count": count}


def test_an_unknown_customer(sim: Simulator) -> None:
    assert ingest(sim, event("a", customer="cus_x")).status_code == 400
    sim.set_switches(unknown_customer="accept_unattributed")
    assert ingest(sim, event("a", customer="cus_x")).status_code == 200
    assert stored(sim) == ["a"]


@pytest.mark.parametrize(("swap", "schema", "rule"), [(False, 422, 400), (True, 400, 422)])
def test_400_and_422(sim: Simulator, swap: bool, schema: int, rule: int) -> None:
    sim.set_switches(swap_400_422=swap)
    assert ingest(sim).status_code == schema
    assert ingest(sim, event(timestamp=OLD.isoformat())).status_code == rule
    assert sim.api.get("/events?page_size=x").status_code == 422


@pytest.mark.parametrize(("mode", "status"), [("reject", 400), ("ignore", 200)])
def test_a_known_id_that_has_become_too_old(sim: Simulator, mode: str, status: int) -> None:
    sim.set_switches(expired_dup=mode)
    ingest(sim, event("a", timestamp=NOW.isoformat()))
    sim.advance(3601)
    assert ingest(sim, event("a", timestamp=NOW.isoformat()), event("b")).status_code == status
    assert stored(sim) == (["a"] if status == 400 else ["a", "b"])
    assert ingest(sim, event("new", timestamp=NOW.isoformat())).status_code == 400


def test_body_size(sim: Simulator) -> None:
    sim.set_switches(max_body_bytes=50)
    assert ingest(sim, event()).status_code == 413


@pytest.mark.parametrize(
    ("order", "ids"),
    [("newest_first", ["c", "a", "b"]), ("oldest_first", ["b", "a", "c"]), ("as_stored", ["a", "b", "c"])],
)
def test_the_order_of_events(sim: Simulator, order: str, ids: list[str]) -> None:
    sim.set_switches(order=order)
    for id, ago in [("a", 2), ("b", 3), ("c", 1)]:
        ingest(sim, event(id, timestamp=(NOW - timedelta(minutes=ago)).isoformat()))
    sim.advance(2)
    assert [one["event_id"] for one in sim.api.get("/events").json()["items"]] == ids


@pytest.mark.parametrize(
    "path", ["/events", "/meters", "/customers", "/subscriptions", "/credit-entitlements"]
)
def test_the_largest_page(sim: Simulator, path: str) -> None:
    sim.seed(
        customers=[{}] * 101,
        meters=[{"name": f"m{n}", "event_name": "x", "aggregation": {"type": "count"}} for n in range(101)],
    )
    assert sim.api.get(path, params={"page_size": 100}).status_code == 200
    assert sim.api.get(path, params={"page_size": 101}).status_code == 422
    sim.set_switches(page_cap="clamp")
    answer = sim.api.get(path, params={"page_size": 101})
    assert (answer.status_code, len(answer.json()["items"]) <= 100) == (200, True)
    if path in ("/meters", "/customers"):
        assert len(answer.json()["items"]) == 100


@pytest.mark.parametrize(
    ("edges", "ids"), [("closed", ["c", "b", "a"]), ("half_open", ["b", "a"]), ("open", ["b"])]
)
def test_the_edges_of_a_range(sim: Simulator, edges: str, ids: list[str]) -> None:
    sim.set_switches(range_edges=edges)
    times = {id: (NOW - timedelta(minutes=ago)).isoformat() for id, ago in [("a", 3), ("b", 2), ("c", 1)]}
    ingest(sim, *(event(id, timestamp=at) for id, at in times.items()))
    sim.advance(2)
    answer = sim.api.get("/events", params={"start": times["a"], "end": times["c"]})
    assert [one["event_id"] for one in answer.json()["items"]] == ids


@pytest.mark.parametrize("lag", [0, 60, 90.5])
def test_usage_lags(sim: Simulator, subscription: str, lag: float) -> None:
    sim.set_switches(usage_visibility_lag_s=lag)
    ingest(sim, event(metadata={"n": 7}))
    if lag:
        sim.advance(lag - 0.001)
        assert consumed(sim, subscription) == "0"
        sim.advance(0.001)
    assert consumed(sim, subscription) == "7"


@pytest.mark.parametrize("lag", [0, 2])
def test_events_lag(sim: Simulator, lag: float) -> None:
    sim.set_switches(event_visibility_lag_s=lag)
    ingest(sim, event("a"))
    if lag:
        assert sim.api.get("/events").json()["items"] == []
        assert sim.api.get("/events/a").status_code == 404
        sim.advance(lag)
    assert len(sim.api.get("/events").json()["items"]) == 1
    assert sim.api.get("/events/a").status_code == 200


def test_the_open_cycle(sim: Simulator, subscription: str) -> None:
    assert len(history(sim, subscription)) == 1
    sim.set_switches(open_cycle_in_history=False)
    assert history(sim, subscription) == []
    sim.roll(subscription, at=NOW)
    assert len(history(sim, subscription)) == 1


@pytest.mark.parametrize(("mode", "units"), [("grow", "12"), ("frozen", "5")])
def test_late_events_of_a_closed_cycle(sim: Simulator, subscription: str, mode: str, units: str) -> None:
    sim.set_switches(closed_cycles=mode, usage_visibility_lag_s=0)
    ingest(sim, event("a", timestamp=(NOW - timedelta(minutes=2)).isoformat(), metadata={"n": 5}))
    sim.roll(subscription, at=NOW - timedelta(minutes=1))
    sim.advance(1)
    ingest(sim, event("b", timestamp=(NOW - timedelta(minutes=2)).isoformat(), metadata={"n": 7}))
    [current, closed] = history(sim, subscription)
    assert (current["meters"][0]["consumed_units"], closed["meters"][0]["consumed_units"]) == ("0", units)


@pytest.mark.parametrize(
    ("mode", "status", "units"), [("reject400", 400, "5"), ("accept", 200, "3"), ("ignore", 200, "5")]
)
def test_negative_numbers(sim: Simulator, subscription: str, mode: str, status: int, units: str) -> None:
    sim.set_switches(negative_sum=mode, usage_visibility_lag_s=0)
    ingest(sim, event("a", metadata={"n": 5}))
    assert ingest(sim, event("b", metadata={"n": -2})).status_code == status
    assert consumed(sim, subscription) == units


@pytest.mark.parametrize(("retroactive", "units"), [(False, "2"), (True, "3")])
def test_a_new_meter(sim: Simulator, retroactive: bool, units: str) -> None:
    sim.set_switches(retroactive_meters=retroactive, usage_visibility_lag_s=0)
    ingest(sim, event("before", name="calls"))
    sim.advance(1)
    subscription = sim.create_subscription(
        "cus_a", sim.create_product([sim.create_meter("calls")]), start=NOW
    )
    ingest(sim, event("a", name="calls"), event("b", name="calls"))
    assert consumed(sim, subscription) == units


@pytest.mark.parametrize(("unit", "value"), [("epoch", int(NOW.timestamp()) + 1), ("delta", 1)])
def test_the_unit_of_reset(sim: Simulator, unit: str, value: int) -> None:
    sim.set_tier("2/9")
    sim.set_switches(reset_unit=unit)
    assert int(sim.api.get("/meters").headers["X-RateLimit-Reset"]) == value


@pytest.mark.parametrize(("sends", "value"), [(False, None), (True, "1")])
def test_retry_after(sim: Simulator, sends: bool, value: str | None) -> None:
    sim.set_tier("1/9")
    sim.set_switches(send_retry_after=sends)
    assert sim.api.get("/meters").headers.get("Retry-After") is None
    answer = sim.api.get("/meters")
    assert (answer.status_code, answer.headers.get("Retry-After")) == (429, value)


def test_how_the_windows_move(sim: Simulator) -> None:
    """At 4 a second, 4 at the end of one second and 4 at the start of the next pass only where windows are fixed."""
    for window, passed in [("fixed", 8), ("sliding", 4)]:
        sim.set_clock(NOW + timedelta(seconds=0.9))
        sim.set_tier("4/100")
        sim.set_switches(limit_window=window)
        statuses = [sim.api.get("/meters").status_code for _ in range(4)]
        sim.advance(0.2)
        statuses += [sim.api.get("/meters").status_code for _ in range(4)]
        assert statuses.count(200) == passed


def test_renewing_by_itself(sim: Simulator, subscription: str) -> None:
    for auto, cycles in [(False, 1), (True, 3)]:
        sim.set_switches(auto_renew=auto)
        sim.set_clock("2027-01-22T00:00:00Z")
        sim.set_switches(usage_visibility_lag_s=0)
        assert len(history(sim, subscription)) == cycles


def test_an_archived_meter_stops_counting_and_events_stay(sim: Simulator, subscription: str) -> None:
    sim.set_switches(usage_visibility_lag_s=0)
    [meter] = [one["id"] for one in sim.read_state()["meters"]]
    archive, unarchive = ("DELETE", f"/meters/{meter}"), ("POST", f"/meters/{meter}/unarchive")
    for number, call in enumerate([None, archive, unarchive, archive, unarchive]):
        if call:
            sim.api.request(*call)
        ingest(sim, event(f"e{number}", metadata={"n": 10**number}))
        sim.advance(1)
    assert consumed(sim, subscription) == "10101"
    assert stored(sim) == [f"e{number}" for number in range(5)]


@pytest.mark.parametrize("status", ["on_hold", "paused", "past_due", "cancelled"])
def test_ingest_asks_for_no_active_subscription(sim: Simulator, subscription: str, status: str) -> None:
    sim.change_subscription(subscription, status=status)
    assert ingest(sim, event()).status_code == 200


@pytest.mark.parametrize(
    "wrong", [{"atomic_batches": "yes"}, {"unknown": 1}, {"page_cap": "cut"}, {"max_body_bytes": 0}]
)
def test_a_wrong_switch_changes_nothing(sim: Simulator, wrong: dict[str, Any]) -> None:
    before = sim.set_switches()
    with pytest.raises(ControlError, match="switches: "):
        sim.set_switches(order="as_stored", **wrong)
    assert sim.set_switches() == before
