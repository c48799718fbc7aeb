from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.operators.billing.bisection import BatchResult, Bisection, max_requests

# A busy machine is no bug.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def run(items: list[int], judge: Callable[[list[int]], BatchResult]) -> tuple[list[int], list[int], int]:
    """The culprits, the good ones and the number of requests."""
    bisection = Bisection(items)
    good: list[int] = []
    requests = 0
    while piece := bisection.next_batch():
        requests += 1
        verdict = judge(piece)
        if verdict == "good":
            good += piece
        bisection.report(verdict)
        assert requests <= 10 * len(items) + 10, "it does not end"
    return bisection.culprits, good, requests


@patient
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_any_set_of_culprits_is_found_and_no_good_one_is_lost_within_the_bound(
    case: tuple[int, set[int]],
) -> None:
    """A poison event must neither stop the others nor eat the minute's requests."""
    count, poison = case
    culprits, good, requests = run(list(range(count)), lambda piece: "bad" if poison & set(piece) else "good")
    assert sorted(culprits) == sorted(poison)
    assert sorted(good) == sorted(set(range(count)) - poison)
    assert requests <= max_requests(count, len(poison))


@pytest.mark.parametrize("place", [0, 1, 311, 499, 500, 998, 999])
def test_one_in_a_thousand_costs_14_requests_at_most(place: int) -> None:
    """With two look-ups that is far from the 22 that are promised."""
    _, good, requests = run(list(range(1000)), lambda piece: "bad" if place in piece else "good")
    assert len(good) == 999
    assert requests <= 14


def test_every_one_in_a_thousand_costs_14_requests_at_most() -> None:

    def requests(place: int) -> int:
        return run(list(range(1000)), lambda piece: "bad" if place in piece else "good")[2]

    assert max(requests(place) for place in range(0, 1000, 7)) <= 14


@patient
@given(st.integers(1, 100), st.integers(1, 100))
def test_what_is_only_too_large_together_is_all_good(count: int, limit: int) -> None:
    culprits, good, _ = run(list(range(count)), lambda piece: "too_large" if len(piece) > limit else "good")
    assert not culprits
    assert sorted(good) == list(range(count))


def test_what_is_too_large_alone_is_a_culprit() -> None:
    culprits, good, _ = run(list(range(10)), lambda piece: "too_large" if 3 in piece else "good")
    assert culprits == [3]
    assert len(good) == 9


@patient
@given(st.integers(1, 60), st.randoms(use_true_random=False))
def test_a_platform_that_changes_its_mind_gets_nobody_declared_unheard(count: int, random: object) -> None:
    """Only who was refused alone is a culprit, whatever was concluded before."""
    refused_alone: set[int] = set()

    def judge(piece: list[int]) -> BatchResult:
        verdict: BatchResult = random.choice(("good", "bad"))  # type: ignore[attr-defined]
        if verdict == "bad" and len(piece) == 1:
            refused_alone.add(piece[0])
        return verdict

    culprits, good, _ = run(list(range(count)), judge)
    assert set(culprits) == refused_alone
    assert sorted(culprits + good) == list(range(count))


def test_who_is_settled_otherwise_is_asked_for_no_more() -> None:
    bisection = Bisection(list(range(8)))
    bisection.next_batch()
    bisection.report("bad")
    bisection.exclude({0, 1, 2, 3})
    assert bisection.next_batch() == [4, 5, 6, 7]
    bisection.report("good")
    assert not bisection.next_batch()
