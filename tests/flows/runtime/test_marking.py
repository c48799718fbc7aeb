"""Marks say in time which partitions may still bring something."""

from datetime import datetime
from typing import Any

import pytest
from bytewax.inputs import StatefulSourcePartition

from tidegate.flows.runtime.marking import IDLE_AFTER, Marking
from tidegate.operators.model.ports import Payloads


class Part(StatefulSourcePartition[Payloads, Any]):
    """Hands out the polls that it is given; `None` ends it."""

    def __init__(self) -> None:
        self.polls: list[bytes | None] = []
        self.left = 0

    def next_batch(self) -> list[Payloads]:
        poll = self.polls.pop(0) if self.polls else b""
        if poll is None:
            raise StopIteration
        return [Payloads(poll, 1, None, "part:0")] if poll else []

    def next_awake(self) -> datetime | None:
        return None

    def snapshot(self) -> str:
        return "here"

    def behind(self) -> int:
        return self.left


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def part() -> Part:
    return Part()


@pytest.fixture
def marked(part: Part, clock: Clock) -> StatefulSourcePartition[Payloads, Any]:
    marking = Marking("file:", clock)
    marking.parts = ("a", "b")
    return marking.marked("a", part)


def states(marked: StatefulSourcePartition[Payloads, Any]) -> list[str | bytes | None]:
    return [poll.block or (poll.mark.state if poll.mark else None) for poll in marked.next_batch()]


def test_a_start_names_all_partitions_before_the_first_poll(
    marked: StatefulSourcePartition[Payloads, Any],
) -> None:
    [poll] = marked.next_batch()
    assert poll.mark is not None
    assert (poll.mark.stream, poll.mark.state, poll.mark.parts) == ("file:a", "open", ("file:a", "file:b"))


def test_polls_are_named_by_their_partition(
    marked: StatefulSourcePartition[Payloads, Any], part: Part
) -> None:
    marked.next_batch()
    part.polls = [b"1"]
    [poll] = marked.next_batch()
    assert (poll.block, poll.stream) == (b"1", "file:a")


def test_a_partition_is_idle_once_it_was_empty_for_a_while_and_open_before_what_follows(
    marked: StatefulSourcePartition[Payloads, Any], part: Part, clock: Clock
) -> None:
    marked.next_batch()
    assert states(marked) == []
    clock.now += IDLE_AFTER - 1
    assert states(marked) == []
    clock.now += 1
    assert states(marked) == ["idle"]
    clock.now += 100
    assert states(marked) == []
    part.polls = [b"1", b"2"]
    assert states(marked) == ["open", b"1"]
    assert states(marked) == [b"2"]


def test_a_partition_that_waits_for_what_there_is_is_not_idle(
    marked: StatefulSourcePartition[Payloads, Any], part: Part, clock: Clock
) -> None:
    """As with a broker that is away."""
    marked.next_batch()
    part.left = 5
    states(marked)
    clock.now += 10 * IDLE_AFTER
    assert states(marked) == []


def test_an_end_is_marked_before_it_comes(marked: StatefulSourcePartition[Payloads, Any], part: Part) -> None:
    marked.next_batch()
    part.polls = [b"1", None]
    assert states(marked) == [b"1"]
    assert states(marked) == ["ended"]
    with pytest.raises(StopIteration):
        marked.next_batch()
    assert marked.snapshot() == "here"
