import random
from bisect import bisect_right

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.operators.billing.rate_limit import MINUTE, SECOND, TIERS, Pace, Rate

# A busy machine is no bug.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

rates = st.builds(Rate, st.integers(1, 60), st.integers(1, 300))


def most_in_any(times: list[int], length: int) -> int:
    """The most of these ascending times that lie in one window, wherever it begins."""
    return max(
        (bisect_right(times, start + length - 1) - place for place, start in enumerate(times)), default=0
    )


def admitted(pace: Pace, until: int, pauses: random.Random | None = None) -> list[int]:
    """When requests leave that are always waiting, or with pauses between."""
    now, times = 0, []
    while now < until:
        wait = pace.admit(now)
        if wait:
            now += wait
            continue
        times.append(now)
        if pauses and pauses.random() < 0.1:
            now += pauses.randint(0, 30 * SECOND)
    return times


@patient
@given(rates, st.integers(0, 2**32))
def test_neither_window_ever_holds_more_than_its_number(rate: Rate, seed: int) -> None:
    """One request too many is a 429 for everything that the account does."""
    times = admitted(Pace(rate), 6 * MINUTE, random.Random(seed))
    assert most_in_any(times, SECOND) <= rate.burst
    assert most_in_any(times, MINUTE) <= rate.sustained


@patient
@given(rates, st.integers(0, 2**32))
def test_a_request_that_takes_longer_than_others_does_not_crowd_a_window_at_the_far_end(
    rate: Rate, seed: int
) -> None:
    """Times as the provider sees them, up to a quarter of a second later."""
    travel = random.Random(seed)
    times = sorted(at + travel.randint(0, SECOND // 4) for at in admitted(Pace(rate), 4 * MINUTE))
    assert most_in_any(times, SECOND) <= rate.burst
    assert most_in_any(times, MINUTE) <= rate.sustained


@patient
@given(rates)
def test_what_it_asks_to_wait_for_is_not_longer_than_needed(rate: Rate) -> None:
    """Who waits as told is admitted then, and would not have been a microsecond earlier."""
    pace = Pace(rate)
    now = 0
    for _ in range(rate.sustained + 10):
        wait = pace.admit(now)
        if wait:
            assert pace.admit(now + wait - 1) == 1
            now += wait
            assert pace.admit(now) == 0


@pytest.mark.parametrize("rate", TIERS)
def test_it_reaches_95_percent_of_what_is_allowed(rate: Rate) -> None:
    hour = 60 * MINUTE
    assert len(admitted(Pace(rate), hour)) >= 0.95 * rate.sustained * 60


@pytest.mark.parametrize("rate", TIERS)
def test_a_burst_leaves_at_once_and_the_minute_is_not_spent_in_its_first_seconds(rate: Rate) -> None:
    times = admitted(Pace(rate), MINUTE)
    assert times[rate.burst - 1] == 0
    assert most_in_any(times, MINUTE // 2) <= rate.burst + rate.sustained // 2 + 1


def test_a_share_is_never_nothing() -> None:
    assert Rate(40, 240).scale(0.5) == (20, 120)
    assert Rate(40, 240).scale(0.001) == (1, 1)
