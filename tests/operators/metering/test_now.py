"""What moves now and what does not, and that a change of settings makes nothing count twice."""

import random
from collections import Counter
from datetime import timedelta
from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.operators.events.chunk import Ints
from tidegate.operators.events.decode import Decoder
from tidegate.operators.metering.clock import advance, prepare_clocks
from tidegate.operators.metering.shard import Shard
from tidegate.operators.metering.snapshot import Frame
from tidegate.operators.model.catalog import Catalog, Meter
from tidegate.operators.model.ports import Payloads, StreamMark

Clock = Literal["event", "wall"]

SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND
NOON = 20_600 * DAY + 12 * HOUR
LATENESS = timedelta(days=1)
CATALOG = Catalog((Meter("calls", "call", "count"),))


class Metered:
    """One shard over starts; `send` gives what became of the events."""

    def __init__(self, lateness: timedelta = LATENESS, clock: Clock = "event") -> None:
        self.frames: list[Frame] = []
        self.start(lateness, clock)

    def start(self, lateness: timedelta, clock: Clock) -> None:
        """Start again from the last snapshot, perhaps under other settings."""
        self.shard = Shard.restore(0, CATALOG, lateness, clock, self.frames)
        self.decoder = Decoder(CATALOG, shards=1, clock=clock)

    def restart(self, lateness: timedelta = LATENESS, clock: Clock = "event") -> None:
        self.snapshot()
        self.start(lateness, clock)

    def snapshot(self) -> None:
        self.shard.drain_totals()
        self.frames += self.shard.take_delta()

    def mark(self, stream: str, state: Literal["open", "idle", "ended"], *parts: str, at: int = 0) -> None:
        self.shard.note_mark(StreamMark(stream, state, at, parts))

    def send(
        self,
        times: dict[str, int],
        stream: str = "a",
        *,
        taken: int | None = None,
        read_at: int = NOON,
        customer: str = "acme",
    ) -> Counter[str]:
        """Meter a poll of events of one customer, by id and time."""
        lines = (
            f'{{"specversion":"1.0","id":"{id}","source":"s","type":"call","subject":"{customer}","time":"{_text(at)}"}}'
            for id, at in times.items()
        )
        before = Counter(self.shard.counts)
        payloads = Payloads("\n".join(lines).encode(), read_at, taken, "", stream=stream)
        for _, chunk in self.decoder.decode(payloads):
            self.shard.apply(chunk)
        return Counter(self.shard.counts) - before


def _text(at: int) -> str:
    return str(np.datetime64(at, "us")) + "Z"


def hourly(count: int, since: int) -> dict[str, int]:
    return {f"{since}-{n}": since + n * HOUR for n in range(count)}


@pytest.mark.parametrize("wrong", [2 * DAY, 70 * 365 * DAY])
def test_one_wrong_date_makes_no_other_event_late(wrong: int) -> None:
    """Also the very first of a customer, and a retry of it right after."""
    for first in (True, False):
        metered = Metered()
        if not first:
            metered.send(hourly(3, NOON - 3 * HOUR))
        metered.send({"wrong": NOON + wrong})
        metered.send({"wrong": NOON + wrong})
        found = metered.send({f"late {n}": NOON - 20 * HOUR + n * MINUTE for n in range(50)})
        assert found["accepted"] == 50 and not found["too_late"]
        assert metered.shard.counts["outliers"] == 1


def test_a_jump_counts_once_the_stream_confirms_it() -> None:
    metered = Metered()
    metered.send(hourly(3, NOON - 3 * HOUR))
    metered.send({"jump": NOON + 3 * DAY})
    assert metered.send({"before": NOON})["accepted"] == 1
    metered.send({"next": NOON + 3 * DAY + 10 * MINUTE, "and": NOON + 3 * DAY + 11 * MINUTE})
    assert metered.send({"after": NOON})["too_late"] == 1


def test_a_customer_far_ahead_keeps_no_other_customers_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of them sends is confirmed by its own stream; that of the others is forgotten in its time."""
    monkeypatch.setattr("tidegate.operators.metering.shard.SWEEP_ROWS_MIN", 500)
    metered = Metered()
    far = NOON + 70 * 365 * DAY
    metered.send({"far": far, "and": far + MINUTE}, customer="ahead")
    held = []
    for day in range(60):
        metered.send({f"{day}-{n}": NOON + day * DAY + n * MINUTE for n in range(200)})
        metered.snapshot()
        held.append(len(metered.shard.memory))
    assert metered.shard.counts["accepted"] == 60 * 200 + 2
    assert max(held) < 2000


def test_a_customer_with_one_event_a_week_has_a_now() -> None:
    metered = Metered()
    for week in range(10):
        metered.send({f"{week}": NOON + week * 7 * DAY})
    assert metered.send({"old": NOON + 7 * DAY})["too_late"] == 1


def test_an_outage_longer_than_the_lateness_makes_nothing_late() -> None:
    """The transport took the events as they happened; that we read them three days later changes nothing."""
    metered = Metered(clock="wall")
    for n in range(48):
        at = NOON + n * HOUR
        found = metered.send({f"{n}": at - 20 * HOUR}, taken=at, read_at=NOON + 6 * DAY)
        assert found["accepted"] == 1
    assert metered.send({"old": NOON}, taken=NOON + 48 * HOUR, read_at=NOON + 6 * DAY)["too_late"] == 1


def test_the_future_is_after_the_time_at_which_the_transport_took_it() -> None:
    metered = Metered(clock="wall")
    found = metered.send({"ahead": NOON + HOUR, "now": NOON}, taken=NOON, read_at=NOON + 3 * DAY)
    assert (found["rejects"], found["accepted"]) == (1, 1)


@pytest.mark.parametrize("clock", ["event", "wall"])
def test_streams_at_different_speeds_make_nothing_of_each_other_late_or_count_twice(clock: Clock) -> None:
    metered = Metered(clock=clock)
    metered.mark("a", "open", "a", "b")
    sent = hourly(60, NOON)
    for stream in ("a", "b"):
        for id, at in sent.items():
            found = metered.send({id: at}, stream, taken=at)
            assert found["accepted" if stream == "a" else "duplicates"] == 1
            metered.snapshot()


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("state", ["idle", "ended"])
def test_a_stream_that_is_read_to_its_end_holds_nothing_up(
    state: Literal["idle", "ended"], clock: Clock
) -> None:
    metered = Metered(clock=clock)
    metered.mark("a", "open", "a", "b")
    metered.mark("b", state, "a", "b")
    for id, at in hourly(60, NOON).items():
        metered.send({id: at}, taken=at)
        metered.snapshot()
    assert len(metered.shard.memory) < 30


@pytest.mark.parametrize("clock", ["event", "wall"])
def test_a_stream_without_this_customer_holds_nothing_up_once_it_has_come_as_far(clock: Clock) -> None:
    metered = Metered(clock=clock)
    metered.mark("a", "open", "a", "b")
    for id, at in hourly(60, NOON).items():
        metered.send({id: at}, taken=at)
        metered.mark("b", "open", at=at)
        metered.snapshot()
    assert len(metered.shard.memory) < 30


def test_a_customer_who_is_silent_for_long_holds_nothing_up() -> None:
    metered = Metered()
    metered.mark("a", "open", "a")
    metered.send({"1": NOON, "2": NOON + MINUTE})
    for day in range(40):
        metered.shard.latest = NOON + day * DAY
        metered.mark("a", "open", at=NOON + day * DAY)
        metered.snapshot()
    assert not len(metered.shard.memory)
    assert metered.send({"1": NOON})["too_late"] == 1


CHANGES: list[tuple[timedelta, Clock]] = [
    (timedelta(days=35), "event"),
    (timedelta(days=35), "wall"),
    (timedelta(hours=1), "event"),
    (LATENESS, "wall"),
]


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("changes", [CHANGES[:1], CHANGES[2:3] + CHANGES[:1], CHANGES[3:], CHANGES])
def test_a_change_of_settings_makes_nothing_count_twice(
    clock: Clock, changes: list[tuple[timedelta, Clock]]
) -> None:
    metered = Metered(clock=clock)
    sent = hourly(60, NOON)
    end = NOON + 60 * HOUR
    for id, at in sent.items():
        metered.send({id: at}, taken=at)
        metered.snapshot()
    for lateness, next_clock in [*changes, (LATENESS, clock)]:
        metered.restart(lateness, next_clock)
        assert not metered.send(sent, taken=end)["accepted"]


def test_a_longer_lateness_holds_for_times_since_the_change() -> None:
    metered = Metered()
    for id, at in hourly(24 * 3, NOON).items():
        metered.send({id: at})
        metered.snapshot()
    metered.restart(timedelta(days=35))
    end = NOON + 3 * DAY
    assert metered.send({"old": NOON})["too_late"] == 1
    for id, at in hourly(24 * 10, end).items():
        metered.send({id: at})
    assert metered.send({"late": end + HOUR})["accepted"] == 1


@pytest.mark.parametrize("clock", ["event", "wall"])
def test_state_of_a_version_without_a_floor_counts_nothing_twice(clock: Clock) -> None:
    """What it may have forgotten is out of reach, what it remembers is a duplicate."""
    metered = Metered(clock=clock)
    sent = hourly(60, NOON)
    for id, at in sent.items():
        metered.send({id: at}, taken=at)
        metered.snapshot()
    metered.frames = [_before(frame) for frame in metered.frames]
    metered.start(LATENESS, clock)
    found = metered.send(sent, "b", taken=NOON + 60 * HOUR)
    assert not found["accepted"] and found["too_late"] and found["duplicates"] >= 20


def _before(frame: Frame) -> Frame:
    """The frame as the version before wrote it."""
    if frame.stream != "state":
        return frame
    state = msgspec.msgpack.decode(frame.body, strict=False)
    for name in ("lateness", "wall", "store", "floor", "floors", "partitions", "stream_clocks"):
        del state[name]
    return frame._replace(body=msgspec.msgpack.encode(state))


def test_another_store_is_given_all_totals_that_are_held() -> None:
    metered = Metered()
    metered.shard.write_to("sqlite:a")
    metered.send(hourly(3, NOON))
    written = len(metered.shard.drain_totals())
    metered.restart()
    metered.shard.write_to("sqlite:a")
    assert not len(metered.shard.drain_totals())
    metered.restart()
    metered.shard.write_to("sqlite:b")
    assert len(metered.shard.drain_totals()) == written


def test_customers_of_both_clocks_in_one_hour_are_remembered_for_each() -> None:
    """The event clock notes who has identities in an hour, the wall clock does not."""
    metered = Metered(clock="wall")
    metered.send({"1": NOON, "2": NOON + SECOND}, taken=NOON)
    metered.restart(clock="event")
    metered.send({"3": NOON + MINUTE}, customer="other")
    for n in range(40):
        metered.send({f"other {n}": NOON + n * HOUR}, customer="other")
        metered.snapshot()
    assert metered.send({"1": NOON, "2": NOON + SECOND})["duplicates"] == 2


@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY])
def test_a_wall_clock_that_jumps_for_one_start_makes_nothing_count_twice(jump: int) -> None:
    """A file has no transport's time, so with the wall clock it is the time of reading, which may be wrong."""
    metered = Metered(timedelta(hours=1), "wall")
    sent = {f"{n}": NOON - n * MINUTE for n in range(50)}
    assert metered.send(sent, read_at=NOON)["accepted"] == 50
    metered.restart(timedelta(hours=1), "wall")
    for minute in range(3):
        metered.send({f"jump {minute}": NOON}, read_at=NOON + jump + minute * MINUTE)
        metered.snapshot()
    metered.restart(timedelta(hours=1), "wall")
    assert not metered.send(sent, read_at=NOON + 5 * MINUTE)["accepted"]


@given(
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), min_size=1, max_size=30),
    cuts=st.sets(st.integers(1, 29)),
    tolerance=st.sampled_from((0, 1, 3)),
)
def test_clocks_in_columns_are_clocks_one_by_one(
    events: list[tuple[int, int]], cuts: set[int], tolerance: int
) -> None:
    """However events are cut into batches."""
    now, last = np.zeros(4, np.int64), np.zeros(4, np.int64)
    slow = [(0, 0)] * 4
    bounds = [0, *sorted(cut for cut in cuts if cut < len(events)), len(events)]
    for start, end in pairwise(bounds):
        customer = np.array([who for who, _ in events[start:end]], np.int64)
        at = NOON + np.array([offset for _, offset in events[start:end]], np.int64)
        running = prepare_clocks(customer, at, tolerance)
        who = running.customers
        found, now[who], last[who] = running.advance(now[who], last[who])
        meant = []
        for one, time in zip(customer.tolist(), at.tolist(), strict=True):
            before, seen = slow[one]
            slow[one] = advance(before, seen, time, tolerance)
            meant.append(slow[one][0])
        assert found.tolist() == meant
    assert list(zip(now.tolist(), last.tolist(), strict=True)) == slow


def test_many_new_customers_beside_old_ones_have_clocks_of_their_own() -> None:
    """More segments times span than 62 bits hold."""
    rng = random.Random(1)
    customer: Ints = np.array([rng.randrange(5000) for _ in range(20_000)])
    at: Ints = NOON + np.array([rng.randrange(40 * 365 * DAY) for _ in range(20_000)])
    running = prepare_clocks(customer, at, MINUTE)
    zeros = np.zeros(len(running.customers), np.int64)
    _, now, last = running.advance(zeros, zeros)
    for place, one in enumerate(running.customers.tolist()[:50]):
        slow = (0, 0)
        for time in at[customer == one].tolist():
            slow = advance(*slow, time, MINUTE)
        assert (now[place], last[place]) == slow
