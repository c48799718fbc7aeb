"""What every source of payloads promises, as tests to inherit.

A subclass says in `holding` how payloads come to lie in its outside system, and in `waiting` how to open
a live partition of it with nothing to read. Each payload comes once; reading resumes wherever it was
stopped, without gap or repeat; and no poll blocks. `test_broken_sources.py` shows that it fails broken ones.
"""

import pickle
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.operators.model.ports import Payloads

Source = FixedPartitionedSource[Payloads, Any]
Partition = StatefulSourcePartition[Payloads, Any]

POLLS_MAX = 10_000
HANGS_AFTER_S = 2.0
POLLER = "poller"
POLL_S_MAX = 0.005

texts = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12).map(str.encode)
long_lines = st.integers(40, 400).map(lambda n: b'{"id":"%s"}' % (b"x" * n))
events = st.integers(0, 99).map(lambda n: b'{"id":"%d","subject":"cus_1","data":{"n":%d}}' % (n, n))
payload_lists = st.lists(st.one_of(texts, events, long_lines), max_size=20)

# Run by each subclass, and by sources that are broken on purpose: what fails there says nothing here.
contract = settings(
    max_examples=40,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.differing_executors],
)


def payloads_in(batches: list[Payloads]) -> list[bytes]:
    """The payloads of some polls; blank lines and line ends are not payloads."""
    lines = [line.rstrip(b"\r") for item in batches for line in item.block.split(b"\n")]
    return [line for line in lines if line.strip()]


def poll(partition: Partition) -> list[Payloads] | None:
    """One poll, None at the end; a poll is at most one item, of at least one byte."""
    try:
        batch = list(partition.next_batch())
    except StopIteration:
        return None
    assert len(batch) <= 1
    for item in batch:
        assert item.block and item.origin
        assert isinstance(item.received_at, int)
    return batch


def read(partition: Partition, polls: int = POLLS_MAX) -> list[Payloads]:
    """What up to `polls` polls hand out."""
    got: list[Payloads] = []
    for _ in range(polls):
        batch = poll(partition)
        if batch is None:
            return got
        got += batch
    assert polls < POLLS_MAX, "the source does not end"
    return got


class SourceContract(ABC):
    @abstractmethod
    def holding(self, payloads: list[bytes]) -> AbstractContextManager[Callable[[], Source]]:
        """Puts `payloads` into the outside system; what opens a finite source of them."""

    @abstractmethod
    def waiting(self) -> AbstractContextManager[Partition]:
        """A partition of a live source in which nothing is left to read."""

    @contract
    @given(payload_lists)
    def test_every_payload_comes_once(self, payloads: list[bytes]) -> None:
        """A customer is billed for what was sent, no more and no less."""
        with self.holding(payloads) as opened:
            got = [self._lives(opened, name, []) for name in opened().list_parts()]
            self._equal(got, payloads)

    @contract
    @given(payload_lists, st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=6))
    def test_it_resumes_anywhere(self, payloads: list[bytes], lives: list[tuple[int, int]]) -> None:
        """Each life reads up to its last snapshot and some polls beyond, which are lost in the crash."""
        with self.holding(payloads) as opened:
            names = opened().list_parts()
            got = [self._lives(opened, name, lives) for name in names]
            self._equal(got, payloads)

    def _lives(self, opened: Callable[[], Source], name: str, lives: list[tuple[int, int]]) -> list[Payloads]:
        kept: list[Payloads] = []
        state = None
        for polls, lost in lives:
            partition = opened().build_part("in", name, state)
            kept += read(partition, polls)
            taken = partition.snapshot()
            # Bytewax writes a snapshot later than it takes it.
            read(partition, lost)
            state = pickle.loads(pickle.dumps(taken))
            partition.close()
        last = opened().build_part("in", name, state)
        kept += read(last)
        last.close()
        return kept

    def _equal(self, got: list[list[Payloads]], payloads: list[bytes]) -> None:
        expected = [payload for payload in payloads if payload.strip()]
        if len(got) == 1:
            assert payloads_in(got[0]) == expected
        else:
            assert sorted(p for part in got for p in payloads_in(part)) == sorted(expected)

    def test_no_poll_blocks(self) -> None:
        """A poll that waits holds up every other step of the worker."""
        with self.waiting() as partition, mock.patch.object(time, "sleep", side_effect=_sleep):
            answers: queue.Queue[float | BaseException] = queue.Queue()
            threading.Thread(target=_time_polls, args=(partition, answers), name=POLLER, daemon=True).start()
            try:
                answer = answers.get(timeout=HANGS_AFTER_S)
            except queue.Empty:
                raise AssertionError("a poll with nothing to read blocks") from None
            if isinstance(answer, BaseException):
                raise answer
            assert answer < POLL_S_MAX
            awake = partition.next_awake()
            assert awake is None or awake.timestamp() < time.time() + 1


def _sleep(seconds: float) -> None:
    """For the other threads of this process, which may sleep."""
    assert threading.current_thread().name != POLLER, "a poll sleeps"
    threading.Event().wait(seconds)


def _time_polls(partition: Partition, answers: "queue.Queue[float | BaseException]") -> None:
    took = []
    try:
        for _ in range(5):
            begun = time.perf_counter()
            assert poll(partition) == [], "a live source neither ends nor invents"
            took.append(time.perf_counter() - begun)
        # The best of five: a busy machine is late at times, a waiting poll always.
        answers.put(min(took))
    except BaseException as error:
        answers.put(error)
