"""Two windows per business. What the limiter lets through here decides what a client may count on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.client import ControlError, Simulator
from simulator.http.limits import Limiter, Tier, read_tier
from simulator.state.instants import SECOND
from simulator.state.switches import Switches
from tests.simulator.conftest import NOW


@pytest.mark.parametrize(("tier", "second", "minute"), [("0", 40, 240), ("1", 100, 1000), ("2", 500, 5000)])
def test_the_tiers(tier: str, second: int, minute: int) -> None:
    limiter = Limiter(read_tier(tier), Switches())
    assert sum(limiter.admit(0).allowed for _ in range(second + 5)) == second
    assert (
        second + sum(limiter.admit(SECOND * (1 + n // second)).allowed for n in range(minute + 5)) == minute
    )
    assert limiter.admit(60 * SECOND).allowed


def test_tier_0_is_where_it_starts(platform: Simulator) -> None:
    assert platform.read_state()["tier"] == "0"
    assert platform.api.get("/meters").headers["X-RateLimit-Limit"] == "40"


def test_reads_and_writes_share_one_bucket(sim: Simulator) -> None:
    sim.set_tier("2/100")
    assert sim.api.get("/meters").status_code == 200
    assert sim.api.post("/customers", json={"name": "n", "email": "a@b"}).status_code == 200
    assert sim.api.get("/customers").status_code == 429


def test_strangers_have_their_own_by_address(sim: Simulator) -> None:
    statuses = [sim._http.get("/meters").status_code for _ in range(25)]
    assert statuses == [401] * 20 + [429] * 5
    assert sim.api.get("/meters").status_code == 200


def test_the_headers_tell_of_the_tighter_window(sim: Simulator) -> None:
    sim.set_tier("2/3")
    seen = [sim.api.get("/meters").headers for _ in range(2)]
    sim.advance(1)
    seen += [sim.api.get("/meters").headers, sim.api.get("/meters").headers]
    told = [(headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"]) for headers in seen]
    assert told == [("2", "1"), ("2", "0"), ("3", "0"), ("3", "0")]
    assert int(seen[-1]["X-RateLimit-Reset"]) == int(NOW.timestamp()) + 60


def test_the_control_plane_is_not_limited(sim: Simulator) -> None:
    sim.set_tier("1/1")
    assert all(sim.read_state() for _ in range(5))


@given(st.lists(st.integers(0, 2 * SECOND), max_size=60))
def test_no_stretch_of_time_holds_too_many(waits: list[int]) -> None:
    """However they come: at most 3 in any second and 7 in any minute, and none is refused that had room."""
    limiter, taken, now = Limiter(Tier(3, 7), Switches()), list[int](), 0
    for wait in waits:
        now += wait
        room = sum(at > now - SECOND for at in taken) < 3 and sum(at > now - 60 * SECOND for at in taken) < 7
        assert limiter.admit(now).allowed == room
        taken += [now] if room else []


@pytest.mark.parametrize("wrong", ["3", "", "-1/5", "0/5", "1/2/3", "fast"])
def test_a_wrong_tier_is_refused(sim: Simulator, wrong: str) -> None:
    with pytest.raises(ControlError, match="tier: needs"):
        sim.set_tier(wrong)
