"""What is remembered of accepted events: counted once, distinguished from conflicts, whatever time they carry."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.operators.columns.bloom import Bloom
from tidegate.operators.metering import dedup, sorted_runs
from tidegate.operators.metering.dedup import CONFLICT, DUPLICATE, NEW, Identities, IdentityMemory
from tidegate.operators.metering.sorted_runs import NOBODY, Rows
from tidegate.operators.model.periods import HOUR

NOON = 500_000 * HOUR
DAY = 24 * HOUR
YOUNG_MAX = 1000
MANY = 5 * YOUNG_MAX


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few thousand identities lie in several runs."""
    monkeypatch.setattr(dedup, "YOUNG_MAX", YOUNG_MAX)
    monkeypatch.setattr(sorted_runs, "STREAM_ROWS", YOUNG_MAX // 2)


def events(
    ids: Any, marks: Any = 5, at: Any = NOON, now: Any = NOON, lateness: int = DAY, customer: Any = 0
) -> Identities:
    """Events of these identities; the rest may be said for all of them or for each."""
    words = np.asarray(ids, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    columns = (
        np.broadcast_to(np.asarray(each, np.int64), words.shape) for each in (marks, customer, at, now)
    )
    mark, customers, times, nows = columns
    others = words[::-1][::-1] ^ words >> np.uint64(7)
    return Identities(words, others, mark.astype(np.uint32), customers, times, nows, nows - lateness)


def settled(memory: IdentityMemory, *args: Any, **options: Any) -> set[int]:
    """The verdicts that occur."""
    return set(memory.classify(events(*args, **options)).tolist())


def filled(count: int = MANY) -> IdentityMemory:
    """A memory of identities 0 to `count`, in a table and several runs, an hour each."""
    memory = IdentityMemory()
    for hour, start in enumerate(range(0, count, 700)):
        assert settled(memory, range(start, min(start + 700, count)), now=NOON + hour * HOUR) == {NEW}
    return memory


def restored(memory: IdentityMemory, journal: dict[str, list[Rows]]) -> IdentityMemory:
    """The memory as the journal has it once all is appended."""
    for stream, rows in memory.drain_appended():
        journal.setdefault(stream, []).append(rows)
    streams = [
        (stream, sorted_runs.concatenate_rows(journal.get(stream, [NONE]))) for stream in memory.streams
    ]
    other = IdentityMemory()
    other.restore(streams[:-1], streams[-1], memory.serial)
    return other


NO_WORDS, NO_HALVES = np.empty(0, np.uint64), np.empty(0, np.uint32)
NONE = Rows(NO_WORDS, NO_WORDS, NO_HALVES, NO_HALVES, NO_HALVES)


@pytest.mark.parametrize("many", [1, 300, MANY])
def test_an_event_is_new_once(many: int) -> None:
    """In one batch or in two, few or many: the first counts, its repeat does not, other content is a conflict."""
    memory, ids = IdentityMemory(), range(1, many + 1)
    assert set(memory.classify(events([*ids, *ids])).tolist()[:many]) == {NEW}
    assert settled(memory, ids) == {DUPLICATE}
    assert settled(memory, ids, marks=6) == {CONFLICT}
    assert len(memory) == many


@pytest.mark.parametrize("others", [0, MANY])
@pytest.mark.parametrize("by", [-23 * HOUR, -1, 1, HOUR, 700 * HOUR])
def test_a_repeat_at_another_time_is_a_repeat(by: int, others: int) -> None:
    """Identity alone decides; also within a batch, and beside so many others that it lies in a run."""
    memory = IdentityMemory()
    assert memory.classify(events([1, 1, 1], [5, 5, 6], [NOON, NOON + by, NOON + by])).tolist() == [0, 1, 2]
    memory.classify(events(range(2, others)))
    assert memory.classify(events([1, 1], [5, 6], NOON + by)).tolist() == [DUPLICATE, CONFLICT]


@pytest.mark.parametrize("others", [0, MANY])
@pytest.mark.parametrize("is_swept", [False, True])
def test_an_identity_is_forgotten_with_the_hour_in_which_it_was_seen(others: int, is_swept: bool) -> None:
    """A late event counts from its customer's now. Whether memory was swept meanwhile makes no difference."""
    memory = IdentityMemory()
    memory.classify(events([1], at=NOON - DAY))
    memory.classify(events(range(2, others), now=NOON + 30 * HOUR))
    for now, verdict in (
        (NOON + DAY + HOUR - 1, DUPLICATE),
        (NOON + DAY + HOUR, NEW),
        (NOON + 2 * DAY, DUPLICATE),
    ):
        if is_swept:
            memory.sweep(np.array([now - DAY]))
        assert settled(memory, [1], now=now) == {verdict}


@pytest.mark.parametrize("seed", range(60))
def test_verdicts_follow_from_hours_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever identities lie and however events are cut, also where a customer's now goes back and forth."""
    monkeypatch.setattr(dedup, "YOUNG_MAX", 5)
    monkeypatch.setattr(dedup, "RUNS_MAX", 3)
    rng = np.random.default_rng(seed)
    memory, known = IdentityMemory(), dict[int, tuple[int, int]]()
    journal: dict[str, list[Rows]] = {}
    for floor in range(0, 40, 2):
        count = int(rng.integers(1, 40))
        hours = floor + rng.integers(0, 12, (2, count))
        ids, marks = rng.integers(0, 15, count), rng.integers(0, 2, count)
        meant = []
        for id, mark, at, now in zip(ids.tolist(), marks.tolist(), *hours.tolist(), strict=True):
            first, seen = known.get(id, (0, -HOUR))
            if seen >= now - 2:
                meant.append(DUPLICATE if first == mark else CONFLICT)
            else:
                meant.append(NEW)
                known[id] = mark, max(at, now)
        times, nows = NOON + hours * HOUR
        sent = events(ids, marks, times, nows, lateness=2 * HOUR)
        cuts = [0, *sorted(rng.integers(0, count, 2).tolist()), count]
        parts = [sent.select(np.arange(start, end)) for start, end in pairwise(cuts) if end > start]
        assert [verdict for part in parts for verdict in memory.classify(part).tolist()] == meant
        if rng.random() < 0.3:
            memory.sweep(np.array([NOON + floor * HOUR]))
        if rng.random() < 0.3:
            memory = restored(memory, journal)


def test_an_identity_that_was_forgotten_within_a_batch_is_new_there() -> None:
    now = np.array([NOON, NOON, NOON + 2 * DAY, NOON + 2 * DAY, NOON + 2 * DAY])
    for ids in ([1] * 5, [1] * 5 + list(range(2, 300))):
        nows = np.append(now, np.full(len(ids) - 5, NOON + 2 * DAY))
        marks = np.append([5, 6, 6, 6, 5], np.full(len(ids) - 5, 1))
        verdicts = IdentityMemory().classify(events(ids, marks, now=nows)).tolist()
        assert verdicts[:5] == [NEW, CONFLICT, NEW, DUPLICATE, CONFLICT]
        assert set(verdicts[5:]) <= {NEW}


def test_a_time_far_ahead_keeps_its_identity_and_no_others() -> None:
    """10,000 customers, each in another hour to come, take no more room than 10,000 in one."""
    memory, customers = filled(0), np.arange(10_000)
    ahead = NOON + (1 + customers) * 48 * HOUR
    settled(memory, customers, at=ahead, now=ahead, customer=customers)
    alike = IdentityMemory()
    settled(alike, customers, customer=customers)
    assert memory.nbytes == alike.nbytes and len(memory.streams) == len(alike.streams)
    memory.classify(events(range(20_000, 20_000 + MANY), customer=20_000))
    memory.sweep(np.append(ahead - DAY, np.full(10_001, NOON + 2 * DAY)))
    assert len(memory) <= 10_000 + YOUNG_MAX
    assert settled(memory, customers, at=ahead, now=ahead, customer=customers) == {DUPLICATE}


def test_an_idle_customer_holds_only_its_own_identities() -> None:
    """By the event clock it may send what is as old as its last event at any time."""
    memory = IdentityMemory()
    ids = np.arange(MANY)
    memory.classify(events(ids, customer=ids % 100 == 0))
    memory.sweep(np.array([NOON + 2 * DAY, NOON - DAY]))
    assert len(memory) < MANY // 50 + YOUNG_MAX
    assert settled(memory, ids[::100], customer=1) == {DUPLICATE}


@pytest.mark.parametrize("each", [1, 50])
def test_memory_and_journal_stay_small_however_long_it_runs(each: int) -> None:
    """Forty lifetimes, with a customer who is never heard of again in each hour."""
    memory, journal = IdentityMemory(), Counter[str]()
    for hour in range(960):
        now = NOON + hour * HOUR
        memory.classify(events(np.arange(hour * each, hour * each + each), now=now))
        memory.classify(events([10**9 + hour], now=now, customer=1 + hour))
        idle = NOON + np.arange(hour + 1) * HOUR - DAY
        memory.sweep(np.append(now - DAY, idle))
        journal.update({stream: len(rows.lo) for stream, rows in memory.drain_appended()})
    assert len(memory) <= 2 * (25 * each + 960) + YOUNG_MAX
    assert sum(journal[stream] for stream in memory.streams) <= 2 * len(memory) + YOUNG_MAX
    assert len(memory.streams) < 100
    assert settled(memory, 10**9 + np.arange(960), now=NOON, customer=1) == {DUPLICATE}


def test_many_small_streams_become_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is forgotten."""
    monkeypatch.setattr(dedup, "YOUNG_MAX", 2)
    memory = IdentityMemory()
    for start in range(0, 2000, 2):
        memory.classify(events([start, start + 1]))
        memory.sweep(np.array([NOON - DAY]))
    assert len(memory.streams) <= (dedup.RUNS_MAX + 1) * (sorted_runs.STREAMS_MAX + 1)


def test_what_is_remembered_takes_few_bytes() -> None:
    memory = IdentityMemory()
    for start in range(0, 600_000, 50_000):
        memory.classify(events(range(start, start + 50_000)))
    assert memory.nbytes / len(memory) < 33


def test_what_did_not_change_is_not_written_again() -> None:
    memory = filled()
    assert sum(len(rows.lo) for _, rows in memory.drain_appended()) == len(memory)
    assert memory.drain_appended() == []
    memory.classify(events([10**9]))
    assert sum(len(rows.lo) for _, rows in memory.drain_appended()) == 1


def test_a_memory_that_was_read_back_says_the_same() -> None:
    memory = filled()
    memory.classify(events([7, 10**9], marks=9, now=NOON + 60 * HOUR))
    other = restored(memory, {})
    assert len(other) == len(memory) and other.streams == memory.streams
    for ids, marks in ((range(MANY), 5), ([7], 9), ([10**9], 9), ([10**9 + 1], 9)):
        question = events(ids, marks, now=NOON + 40 * HOUR)
        assert other.classify(question).tolist() == memory.classify(question).tolist()


def mark_of(content: int, at: int) -> int:
    """A fingerprint as earlier versions made it, of time and all else."""
    return (content * 0x9E3779B97F4A7C15 + at * 0xC2B2AE3D27D4EB4F >> 32) & 0xFFFFFFFF


@settings(deadline=None)
@given(content=st.integers(0, 2**64 - 1), at=st.integers(0, 1_140_000 * HOUR), by=st.integers(1, HOUR))
def test_an_event_that_an_earlier_version_took_is_known_again(content: int, at: int, by: int) -> None:
    """As a duplicate if the time is the same; else nothing says whether its content is."""
    question = events([1, 1, 1, 2], [mark_of(each, 0) for each in (content, content, content ^ 1, 3)])
    question = question._replace(at=np.array([at, at + by, at, at]))
    hour, who = np.array([at // HOUR], np.uint32), np.array([NOBODY], np.uint32)
    mark = np.array([mark_of(content, at)], np.uint32)
    memory = IdentityMemory()
    memory.restore([("ids-1-1", Rows(question.lo[:1], question.hi[:1], mark, hour, who))], None, 1)
    question = question._replace(oldest=np.full(4, at - DAY))
    assert memory.classify(question).tolist() == [DUPLICATE, CONFLICT, CONFLICT, NEW]


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=200))
@settings(max_examples=50, deadline=None)
def test_the_filter_lets_every_key_pass_that_was_added(keys: list[tuple[int, int]]) -> None:
    lo, hi = (np.array(column, np.uint64) for column in zip(*sorted(keys), strict=True))
    bloom = Bloom([(lo[::2], hi[::2])])
    bloom.add(lo[1::2], hi[1::2])
    assert bloom.passes(lo, hi).all()


def test_the_filter_stops_nearly_all_others() -> None:
    words = np.random.default_rng(3).integers(0, 2**64 - 1, (4, 100_000), np.uint64)
    order = np.argsort(words[0])
    bloom = Bloom([(words[0][order], words[1][order])])
    bloom.add(*(np.sort(words[2][:50_000]), words[3][:50_000]))
    assert not bloom.has_room(1)
    assert bloom.passes(words[2][50_000:], words[3][50_000:]).mean() < 0.003


def test_identities_whose_first_words_are_alike_are_told_apart() -> None:
    count = 3 * YOUNG_MAX
    question = events(range(count))
    question = question._replace(lo=question.lo & np.uint64(0xFF00000000000000))
    memory = IdentityMemory()
    for start in range(0, count, 700):
        assert not memory.classify(question.select(np.arange(start, min(count, start + 700)))).any()
    some = question.select(np.arange(0, count, 97))
    assert set(memory.classify(some).tolist()) == {DUPLICATE}
