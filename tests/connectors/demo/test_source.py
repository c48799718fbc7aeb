import pickle
import queue
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.connectors.contracts.source import Partition, payloads_in, poll
from tidegate.connectors.demo.source import DemoPosition, DemoSource
from tidegate.connectors.demo.traffic import Traffic

START = 1_700_000_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


def demo(clock: Clock, state: DemoPosition | None = None, count: int | None = 300) -> Partition:
    source = DemoSource(seed=3, customers=9, rate=100, count=count, clock=clock)
    assert source.list_parts() == ["demo"]
    return source.build_part("in", "demo", state)


EXPECTED = [Traffic(3, START, 100, 9).event(i) for i in range(300)]


def polled(partition: Partition, clock: Clock, polls: int) -> list[bytes]:
    """What up to `polls` polls hand out, each made when the partition asked for it."""
    got: list[bytes] = []
    for _ in range(polls):
        awake = partition.next_awake()
        if awake:
            clock.now = max(clock.now, round(awake.timestamp() * 1e6))
        batch = poll(partition)
        if batch is None:
            break
        got += payloads_in(batch)
    return got


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5), st.integers(0, 3_000_000)), max_size=6))
def test_every_event_comes_once_wherever_it_is_stopped(lives: list[tuple[int, int, int]]) -> None:
    """A demo that is killed and restarted shows the same totals as one that was not."""
    clock, state = Clock(), None
    got: list[bytes] = []
    for polls, lost, away in lives:
        partition = demo(clock, state)
        got += polled(partition, clock, polls)
        taken = partition.snapshot()
        polled(partition, clock, lost)
        state = pickle.loads(pickle.dumps(taken))
        clock.now += away
    got += polled(demo(clock, state), clock, 10_000)
    assert got == EXPECTED


def test_a_poll_hands_out_what_is_due_and_no_more() -> None:
    clock = Clock()
    partition = demo(clock)
    traffic = Traffic(3, START, 100, 9)
    handed_out = 0
    for _ in range(20):
        clock.now += 50_000
        (item,) = partition.next_batch()
        handed_out += len(payloads_in([item]))
        assert item.received_at == clock.now
        assert traffic.due(handed_out - 1) <= clock.now < traffic.due(handed_out)
    assert item.origin == f"demo:{handed_out - len(payloads_in([item]))}"


def test_it_asks_to_be_woken_when_the_next_event_is_due() -> None:
    clock = Clock()
    partition = demo(clock)
    assert [item.origin for item in partition.next_batch()] == ["demo:0"]
    awake = partition.next_awake()
    assert awake is not None
    due = Traffic(3, START, 100, 9).due(1)
    assert round(awake.timestamp() * 1e6) == due
    clock.now = due - 1
    assert poll(partition) == []
    clock.now = due
    assert len(payloads_in(poll(partition) or [])) == 1


def test_a_fast_rate_is_woken_each_millisecond_not_each_event() -> None:
    clock = Clock()
    partition = DemoSource(rate=100_000, clock=clock).build_part("in", "demo", None)
    partition.next_batch()
    awake = partition.next_awake()
    assert awake is not None and round(awake.timestamp() * 1e6) == START + 1000


def test_what_fell_due_while_nothing_ran_is_caught_up_with_in_bounded_polls() -> None:
    clock = Clock()
    partition = DemoSource(rate=1000, clock=clock).build_part("in", "demo", None)
    clock.now += 10_000_000
    sizes = []
    while partition.next_awake() is None:
        sizes.append(len(payloads_in(poll(partition) or [])))
    assert sizes[:3] == [1000, 1000, 1000]
    assert Traffic(1, START, 1000).due(sum(sizes)) > clock.now


def test_no_poll_blocks() -> None:
    answers: queue.Queue[object] = queue.Queue()
    partition = demo(Clock())
    polls = threading.Thread(target=lambda: answers.put([poll(partition) for _ in range(5)]), daemon=True)
    polls.start()
    assert answers.get(timeout=2)


def test_it_ends_after_count_and_stays_so() -> None:
    clock = Clock()
    partition = demo(clock, count=3)
    clock.now += 60_000_000
    assert len(payloads_in(poll(partition) or [])) == 3
    assert partition.next_awake() is None
    assert poll(partition) is None
    assert poll(demo(clock, partition.snapshot(), count=3)) is None


def test_it_ends_with_its_last_event_and_not_when_one_more_were_due() -> None:
    partition = demo(Clock(), count=1)
    assert len(payloads_in(poll(partition) or [])) == 1
    assert partition.next_awake() is None


@pytest.mark.parametrize("wrong", [{"customers": 0}, {"rate": 0}, {"speed": -1}])
def test_nonsense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="demo: needs 1 customer"):
        DemoSource(**wrong)  # type: ignore[arg-type]
