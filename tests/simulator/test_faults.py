"""Each fault does what it says, and the platform's books say what really happened."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from simulator.client import ControlError, Simulator
from tests.simulator.conftest import Inside, event, ingest


@pytest.fixture(autouse=True)
def customer(sim: Simulator) -> str:
    return sim.create_customer("cus_a")


@pytest.fixture
def spoiled(inside: Inside) -> Simulator:
    """A platform whose answers need not be of the published shape."""
    inside.transport.spoiled = True
    return inside.sim


def stored(sim: Simulator) -> list[str]:
    return [one["event_id"] for one in sim.list_events()]


def is_count(content: bytes) -> bool:
    try:
        found = json.loads(content)
    except ValueError:
        return False
    return isinstance(found, dict) and type(found.get("ingested_count")) is int


@pytest.mark.parametrize(
    ("kind", "how", "status", "kept"),
    [
        ("rate_limited", {}, 429, False),
        ("error", {}, 500, False),
        ("error", {"status": 502}, 502, False),
        ("error", {"status": 503}, 503, False),
        ("error_after_commit", {}, 500, True),
        ("error_after_commit", {"status": 504}, 504, True),
        ("slow", {"delay_s": 0}, 200, True),
        ("refuse", {"match": "e"}, 400, False),
        ("refuse", {"match": "e", "status": 413}, 413, False),
        ("refuse", {"match": "other"}, 200, True),
        ("drop", {}, 200, False),
    ],
)
def test_an_answer_and_what_became_of_the_batch(
    spoiled: Simulator, kind: str, how: dict[str, Any], status: int, kept: bool
) -> None:
    """Once; the retry finds a healthy platform, and the event is there once."""
    spoiled.add_fault(kind, **how)
    answer = ingest(spoiled, event())
    assert answer.status_code == status
    assert stored(spoiled) == (["e1"] if kept else [])
    assert ingest(spoiled, event()).status_code == 200
    assert stored(spoiled) == ["e1"]


@pytest.mark.parametrize(
    ("kind", "error", "kept"),
    [
        ("reset", httpx.ReadError, False),
        ("reset_after_commit", httpx.ReadError, True),
        ("hang", httpx.ReadTimeout, False),
        ("hang_after_commit", httpx.ReadTimeout, True),
    ],
)
def test_no_answer(sim: Simulator, kind: str, error: type[Exception], kept: bool) -> None:
    sim.add_fault(kind)
    with pytest.raises(error):
        ingest(sim, event())
    assert stored(sim) == (["e1"] if kept else [])
    assert [(one["status"], one["fault"], one["stored"]) for one in sim.list_requests()] == [
        (None, kind, int(kept))
    ]


@pytest.mark.parametrize("kind", ["html", "truncated", "no_count"])
@pytest.mark.parametrize("commit", [True, False])
def test_a_success_that_does_not_say_so(spoiled: Simulator, kind: str, commit: bool) -> None:
    for number in range(20):
        spoiled.add_fault(kind, commit=commit)
        answer = ingest(spoiled, event(f"e{number}"))
        assert answer.status_code == 200
        assert not is_count(answer.content), answer.text
    assert len(stored(spoiled)) == (20 if commit else 0)


def test_a_202_is_no_success_either(spoiled: Simulator) -> None:
    spoiled.add_fault("no_count", status=202, body="")
    answer = ingest(spoiled, event())
    assert (answer.status_code, answer.content, stored(spoiled)) == (202, b"", ["e1"])


def test_every_kind_of_missing_count_comes(spoiled: Simulator) -> None:
    spoiled.add_fault("no_count", times=None)
    bodies = {ingest(spoiled, event(f"e{number}")).text for number in range(60)}
    assert len(bodies) >= 5


@pytest.mark.parametrize(("kind", "left"), [("drop", 7), ("double", 13)])
def test_events_lost_or_doubled_on_the_way(sim: Simulator, kind: str, left: int) -> None:
    sim.add_fault(kind, events=3)
    assert ingest(sim, *(event(f"e{n}") for n in range(10))).json() == {"ingested_count": 10}
    assert len(stored(sim)) == left


def test_what_is_slow_is_done_all_the_same(platform: Simulator) -> None:
    """A client that waits for less than the answer takes has its event counted."""
    platform.create_customer("cus_a")
    platform.add_fault("slow", delay_s=30)
    with pytest.raises(httpx.ReadTimeout):
        platform.api.post("/events/ingest", json={"events": [event()]}, timeout=0.3)
    assert stored(platform) == ["e1"]


@pytest.mark.parametrize("kind", ["reset", "reset_after_commit"])
def test_a_reset_is_one_on_the_wire(platform: Simulator, kind: str) -> None:
    platform.create_customer("cus_a")
    platform.add_fault(kind)
    with pytest.raises(httpx.ReadError, match="reset"):
        ingest(platform, event())
    assert stored(platform) == (["e1"] if kind == "reset_after_commit" else [])
    assert ingest(platform, event("next")).status_code == 200


def test_a_hang_holds_the_connection(platform: Simulator) -> None:
    platform.add_fault("hang", delay_s=60)
    with pytest.raises(httpx.ReadTimeout):
        platform.api.post("/events/ingest", json={"events": [event()]}, timeout=0.3)
    platform.add_fault("hang", delay_s=0.05)
    with pytest.raises(httpx.ReadError):
        ingest(platform, event())


def test_a_storm_lasts_as_long_as_it_was_told(sim: Simulator) -> None:
    sim.add_fault("rate_limited", times=None, for_s=30)
    statuses = []
    for number in range(7):
        statuses.append(ingest(sim, event(f"e{number}")).status_code)
        sim.advance(10)
    assert statuses == [429, 429, 429, 200, 200, 200, 200]


def test_where_and_when_a_rule_strikes(sim: Simulator) -> None:
    sim.add_fault("error", where="/meters", skip=1, times=2)
    assert [sim.api.get("/meters").status_code for _ in range(5)] == [200, 500, 500, 200, 200]
    sim.add_fault("error", where="reads")
    assert ingest(sim, event()).status_code == 200
    assert sim.api.get("/customers").status_code == 500
    sim.add_fault("error", where="writes")
    assert ingest(sim, event()).status_code == 200
    assert sim.api.post("/customers", json={"name": "n", "email": "a@b"}).status_code == 500


def test_a_script_goes_step_by_step_and_before_rules(sim: Simulator) -> None:
    sim.add_fault("error", times=None, status=503)
    sim.add_script("ok", {"kind": "error", "status": 502}, "rate_limited", "ok")
    assert [ingest(sim, event(f"e{n}")).status_code for n in range(6)] == [200, 502, 429, 200, 503, 503]
    sim.clear_faults()
    assert ingest(sim, event("last")).status_code == 200


def test_chance_repeats_by_seed(make: Callable[..., Inside]) -> None:
    """A campaign that failed can be run again."""

    def struck(seed: int) -> list[int]:
        sim = make(seed=seed).sim
        sim.create_customer("cus_a")
        sim.add_fault("error", times=None, probability=0.3)
        sim.add_fault("drop", times=None, probability=0.3)
        statuses = [ingest(sim, event(f"e{n}")).status_code for n in range(100)]
        return [*statuses, *(int(id[1:]) for id in stored(sim))]

    assert struck(3) == struck(3)
    assert struck(3) != struck(4)
    assert 15 <= struck(3).count(500) <= 45


def test_planted_losses_and_doubles(sim: Simulator) -> None:
    ingest(sim, *(event(f"e{n}") for n in range(10)))
    lost = sim.drop(count=2)
    [remembered] = sim.drop(count=1, remember=True)
    assert sorted(stored(sim)) == sorted({f"e{n}" for n in range(10)} - {*lost, remembered})
    assert ingest(sim, *(event(id) for id in [*lost, remembered])).json() == {"ingested_count": 2}
    assert remembered not in stored(sim)
    twice = sim.double(*lost)
    assert [stored(sim).count(id) for id in twice] == [2, 2]
    [other] = sim.double(lost[0], new_ids=True)
    assert other.startswith("evt_") and other in stored(sim)
    with pytest.raises(ControlError, match="does not exist"):
        sim.drop("nowhere")


def test_a_skew_is_in_the_history_and_not_in_the_events(sim: Simulator) -> None:
    meter = sim.create_meter("tokens")
    subscription = sim.create_subscription("cus_a", sim.create_product([meter]))
    sim.set_switches(usage_visibility_lag_s=0, event_visibility_lag_s=0)
    ingest(sim, event())
    for units, shown in [("5", "6"), ("-0.5", "0.5"), ("0", "1")]:
        sim.skew(subscription, meter, units)
        [item] = sim.api.get(f"/subscriptions/{subscription}/usage-history").json()["items"]
        assert item["meters"][0]["consumed_units"] == shown
    assert len(sim.api.get("/events", params={"meter_id": meter}).json()["items"]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "explode"},
        {"kind": "error", "status": 200},
        {"kind": "no_count", "status": 500},
        {"kind": "ok", "probability": 2},
        {"kind": "ok", "times": 0},
    ],
)
def test_a_wrong_rule_is_refused(sim: Simulator, wrong: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        sim.add_fault(**wrong)


def test_the_log_has_neither_keys_nor_bodies(sim: Simulator) -> None:
    sim.set_key_mode("read_write", "hunter2")
    sim.api.headers["Authorization"] = "Bearer hunter2"
    ingest(sim, event(metadata={"secret": "hunter2"}))
    assert "hunter2" not in json.dumps(sim.list_requests()) + json.dumps(sim.read_state()) + repr(sim)
