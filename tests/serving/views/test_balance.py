from hypothesis import given
from hypothesis import strategies as st

from tidegate.operators.model.records import Counter
from tidegate.serving.views.balance import ENDS, law, summed, unbalanced

COUNTERS = [
    *(Counter(shard, name, 1) for shard in (0, 1) for name in ENDS),
    Counter(0, "events", 4),
    Counter(1, "events", 6),
    Counter(0, "matching:calls", 5),
    Counter(1, "counted:calls", 3),
    Counter(0, "corrected:calls", 2),
    Counter(0, "metered", 1),
    Counter(1, "unmetered", 1),
]


def test_shards_add_up() -> None:
    sums = summed(COUNTERS)
    assert (sums["events"], sums["rejects"], sums["matching:calls"]) == (10, 2, 5)
    assert unbalanced(sums) == []
    assert law(sums) == "events 10 = rejects 2 + too late 2 + duplicates 2 + conflicts 2 + accepted 2"


def test_before_the_first_event_nothing_is_missing() -> None:
    assert unbalanced(summed([])) == []


@given(st.sampled_from(COUNTERS), st.integers(1, 100))
def test_one_event_too_many_or_too_few_is_noticed(counter: Counter, more: int) -> None:
    """Whichever counter it is, in whichever shard: a law that only some of them obey is no law."""
    wrong = unbalanced(summed([*COUNTERS, counter._replace(value=more)]))
    # Accepted events are in two laws.
    assert len(wrong) == (2 if counter.name == "accepted" else 1) and all("≠" in line for line in wrong)
