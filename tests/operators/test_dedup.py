"""What is remembered of accepted events: counted once, told from conflicts, also across an hour's edge."""

import numpy as np
import pytest

from operators.dedup import CONFLICT, DUPLICATE, EDGE, NEW, Identities, Memory
from operators.periods import HOUR

NOON = 500_000 * HOUR
DAY_BEFORE = NOON - 24 * HOUR

BEYOND = [(-1, EDGE - 1, CONFLICT), (-1, EDGE, NEW), (1, -EDGE, CONFLICT), (1, -EDGE - 1, NEW)]


def events(*those: tuple[int, int, int], oldest: int = DAY_BEFORE) -> Identities:
    """Events as (identity, fingerprint, time since noon)."""
    ids, marks, times = (np.array(column) for column in zip(*those, strict=True))
    lo, hi = ids.astype(np.uint64), (ids * 7).astype(np.uint64)
    return Identities(
        lo, hi, marks.astype(np.uint32), NOON + times.astype(np.int64), np.full(len(those), oldest)
    )


@pytest.mark.parametrize("many", [1, 300])
def test_an_event_is_new_once(many: int) -> None:
    """In one chunk or in two, few or many: the first counts, its repeat does not, other content is a conflict."""
    memory, ids = Memory(), range(1, many + 1)
    first = [(id, 5, 1) for id in ids]
    assert set(memory.settle(events(*first, *first)).tolist()[:many]) == {NEW}
    assert set(memory.settle(events(*first)).tolist()) == {DUPLICATE}
    assert set(memory.settle(events(*((id, 6, 1) for id in ids))).tolist()) == {CONFLICT}
    assert len(memory) == many


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("before", "after", "verdict"), BEYOND)
def test_an_identity_is_looked_for_beyond_an_hours_edge(
    together: bool, before: int, after: int, verdict: int
) -> None:
    """A client whose clock jumps resends an id with another time; near the edge that is seen."""
    memory = Memory()
    one, other = (1, 5, before), (1, 6, after)
    if together:
        assert memory.settle(events(one, other)).tolist() == [NEW, verdict]
    else:
        assert [memory.settle(events(each)).tolist()[0] for each in (one, other)] == [NEW, verdict]


def test_what_may_not_come_again_counts_as_forgotten_before_it_is_dropped() -> None:
    """Else a verdict would hang on when the memory was last swept."""
    memory = Memory()
    memory.settle(events((1, 5, -1)))
    assert memory.settle(events((1, 6, 1), oldest=NOON)).tolist() == [NEW]


def test_a_forgotten_hour_leaves_the_others() -> None:
    memory = Memory()
    memory.settle(events((1, 5, 0), (2, 5, HOUR)))
    memory.forget(NOON // HOUR)
    assert len(memory) == 1 and memory.settle(events((2, 5, HOUR))).tolist() == [DUPLICATE]
