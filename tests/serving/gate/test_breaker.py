"""The breaker lets nobody wait for a dead store, and never forgets to try again."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.serving.gate.breaker import FAILURES, PAUSE_FIRST, PAUSE_MAX, Breaker


def opened_at(now: float, chance: float = 0.0) -> Breaker:
    breaker = Breaker(lambda: chance)
    for _ in range(FAILURES):
        assert breaker.lets(now)
        breaker.failed(now)
    return breaker


def test_a_failure_now_and_then_is_none() -> None:
    breaker = Breaker(lambda: 0.0)
    for _ in range(10 * FAILURES):
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.lets(0.0) and not breaker.is_open


def test_one_call_is_let_through_per_pause_until_one_succeeds() -> None:
    breaker = opened_at(10.0)
    assert breaker.is_open and not breaker.lets(10.0 + PAUSE_FIRST * 0.99)
    assert [breaker.lets(10.0 + PAUSE_FIRST) for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert breaker.lets(10.0 + PAUSE_FIRST) and not breaker.is_open
    # And begins with short pauses when it opens again.
    for _ in range(FAILURES):
        breaker.failed(20.0)
    assert breaker.lets(20.0 + PAUSE_FIRST)


def test_a_call_that_never_ends_is_followed_by_another() -> None:
    breaker = opened_at(10.0)
    tries = [n / 100 for n in range(1000, 3000) if breaker.lets(n / 100)]
    assert len(tries) > 5


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=20, max_size=20))
def test_pauses_grow_up_to_a_bound_and_are_not_the_same_for_all(chances: list[float]) -> None:
    drawn = iter(chances)
    breaker = Breaker(lambda: next(drawn))
    now, tries = 0.0, []
    for _ in range(len(chances) + FAILURES - 1):
        while not breaker.lets(now):
            now += 0.01
        tries.append(now)
        breaker.failed(now)
    pauses = [later - earlier for earlier, later in pairwise(tries[FAILURES - 1 :])]
    for n, pause in enumerate(pauses):
        longest = min(PAUSE_FIRST * 2**n, PAUSE_MAX)
        assert longest / 2 - 0.011 <= pause <= longest + 0.011
