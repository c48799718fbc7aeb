"""How a total stands from look to look: two misses in a row, far enough apart, are drift; nothing less is."""

from hypothesis import given
from hypothesis import strategies as st

from tidegate.operators.billing.drift import Span
from tidegate.operators.billing.drift_status import DriftStatus, update_status

SPAN = Span(0, 100)
APART = 10

looks = st.lists(st.tuples(st.integers(1, 15), st.sampled_from([None, 0, 0, 3, -2])), max_size=20)


def stand(looks: list[tuple[int, int | None]]) -> list[DriftStatus]:
    now, found, last = 0, [], None
    for after, off in looks:
        now += after
        last = update_status(last, "c", "m", SPAN, off, now, APART)
        found.append(last)
    return found


@given(looks)
def test_drift_takes_two_misses_apart_with_no_hit_between(looks: list[tuple[int, int | None]]) -> None:
    """Against a second, naive way of saying it; what could not be decided is neither hit nor miss."""
    now, counted = 0, list[int]()
    for (after, off), standing in zip(looks, stand(looks), strict=True):
        now += after
        if off == 0:
            counted.clear()
        elif off is not None and (not counted or now - counted[-1] >= APART):
            counted.append(now)
        assert standing.misses == len(counted)
        if off is not None:
            assert standing.status == ("ok" if not counted else "suspect" if len(counted) == 1 else "drift")
        assert standing.first_at == (counted[0] if counted else None)


@given(looks)
def test_each_time_that_it_drifts_has_a_number_of_its_own(looks: list[tuple[int, int | None]]) -> None:
    """So that the alert of a second drift is not taken for a repeat of the first."""
    standings = stand(looks)
    begun = sum(
        one.status == "drift" and (not n or standings[n - 1].status != "drift")
        for n, one in enumerate(standings)
    )
    assert (standings[-1].turn if standings else 0) == begun
