import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest

from tests.connectors.dodo.billing_world import MINUTE, NOON, SECOND, accepted
from tests.support.places import ROOT
from tidegate.connectors.outbox import operator_actions
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.outbox.retention import BYTES_KEPT, REMEMBERED, STRIPPED_EVERY, TICK_MAX
from tidegate.connectors.outbox.schema import OutboxError, State
from tidegate.operators.model.records import Accepted


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[Outbox]:
    made = Outbox(tmp_path / "outbox.db", sync=False, clock=clock)
    yield made
    made.close()


@pytest.fixture
def reader(outbox: Outbox) -> Iterator[OutboxReader]:
    made = OutboxReader(outbox.path)
    yield made
    made.close()


def events(count: int, ago: float = 10) -> list[Accepted]:
    return [accepted(NOON - int(ago * SECOND) + place, tokens=place) for place in range(count)]


def test_what_comes_again_is_kept_once_in_any_state(outbox: Outbox, reader: OutboxReader) -> None:
    """A flow that was killed hands over again what it had handed over, sent or not."""
    came = events(6)
    assert outbox.add(came) == 6
    rows = outbox.oldest(10)
    outbox.acknowledge(rows[:1])
    outbox.keep_back(rows[1:2], State.parked, "too_old")
    outbox.keep_back(rows[2:3], State.refused, "refused_by_platform")
    outbox.keep_back(rows[3:4], State.skipped, "no_billing_id")
    assert outbox.add(came) == 0
    assert [row.id for row in outbox.oldest(10)] == [event.id for event in came[4:]]
    statistics = reader.read_statistics()
    assert (statistics.waiting, statistics.parked, statistics.refused) == (2, 1, 1)
    assert statistics.counts["came"] == 6 and statistics.counts["replayed"] == 6


def test_numbers_of_the_standing_are_what_a_count_says(outbox: Outbox, reader: OutboxReader) -> None:
    outbox.add(events(20))
    rows = outbox.oldest(20)
    outbox.acknowledge(rows[:7])
    outbox.keep_back(rows[7:10], State.parked, "too_old", "since")
    outbox.keep_back(rows[10:12], State.refused, "value_too_long")
    operator_actions.retry(outbox, [rows[7].id, rows[10].id, "unheard of"], by="test")
    operator_actions.drop(outbox, [rows[8].id], by="test", why="a gift")
    db = sqlite3.connect(outbox.path)
    counted = dict(db.execute("SELECT state, count(*) FROM events GROUP BY state"))
    db.close()
    statistics = reader.read_statistics()
    assert statistics.waiting == counted[State.waiting] == 10
    assert statistics.parked == counted[State.parked] == 1
    assert statistics.refused == counted[State.refused] == 1
    assert reader.reasons() == {(State.parked, "too_old"): 1, (State.refused, "value_too_long"): 1}
    assert statistics.oldest_at == min(row.at for row in (*rows[7:8], *rows[10:11], *rows[12:]))
    assert statistics.bytes > 0


def test_oldest_come_first_and_each_age_has_its_own_list(outbox: Outbox) -> None:
    late, due, ahead = events(2, 56 * 60), events(2, 54 * 60), events(2, -5 * 60)
    outbox.add([*ahead, *due, *late])
    assert [row.id for row in outbox.oldest(10)] == [event.id for event in due]
    assert [row.id for row in outbox.too_old(10)] == [event.id for event in late]
    assert [row.id for row in outbox.youngest(1)] == [due[1].id]


def test_what_is_held_comes_back_when_it_is_time(outbox: Outbox, clock: Clock) -> None:
    outbox.add(events(2))
    row, other = outbox.oldest(2)
    outbox.hold([row], clock.now + MINUTE)
    assert outbox.oldest(2) == [other]
    clock.now += MINUTE
    assert [found.seq for found in outbox.oldest(2)] == [row.seq, other.seq]


def test_an_attempt_is_remembered_unless_it_was_surely_not_taken(outbox: Outbox, clock: Clock) -> None:
    outbox.add(events(1))
    (row,) = outbox.oldest(1)
    outbox.sending([row], [row])
    (sent,) = outbox.oldest(1)
    assert sent.sent_at == sent.unsure_at == sent.restamped_at == clock.now
    clock.now += SECOND
    outbox.sending([sent])
    outbox.not_taken([sent])
    (again,) = outbox.oldest(1)
    assert again.sent_at == again.unsure_at == NOON
    outbox.not_taken([row])
    (fresh,) = outbox.oldest(1)
    assert (fresh.unsure_at, fresh.restamped_at, fresh.sent_at) == (None, None, NOON)


def run_for(outbox: Outbox, clock: Clock, micros: int) -> None:
    """The process runs so long, with its tidying, and the flow takes its snapshots."""
    until = clock.now + micros
    while clock.now < until:
        clock.now += TICK_MAX
        outbox.add([], snapshot=True)
        while outbox.tidy():
            pass


def test_bytes_go_after_a_while_and_ids_when_no_replay_can_bring_them_again(
    outbox: Outbox, reader: OutboxReader, clock: Clock
) -> None:
    came = events(3)
    outbox.tidy()
    outbox.add(came)
    outbox.acknowledge(outbox.oldest(2))
    run_for(outbox, clock, BYTES_KEPT - MINUTE)
    assert all(entry.body for entry in reader.find(e.id for e in came).values())
    run_for(outbox, clock, STRIPPED_EVERY + 3 * MINUTE)
    assert [bool(reader.find([event.id])[event.id].body) for event in came] == [False, False, True]
    assert outbox.add(came) == 0
    run_for(outbox, clock, REMEMBERED)
    assert set(reader.find(e.id for e in came)) == {came[2].id}
    assert reader.read_statistics().counts["forgotten"] == 2


def test_time_in_which_nothing_runs_forgets_nothing(tmp_path: Path, clock: Clock) -> None:
    """Down for a week right after an answer: the replay must still be known."""
    outbox = Outbox(tmp_path / "o.db", clock=clock)
    came = events(1)
    outbox.tidy()
    outbox.add(came)
    outbox.acknowledge(outbox.oldest(1))
    outbox.close()
    clock.now += 7 * 24 * 60 * MINUTE
    outbox = Outbox(tmp_path / "o.db", clock=clock)
    run_for(outbox, clock, 5 * MINUTE)
    assert outbox.add(came) == 0
    outbox.close()


def test_a_flow_that_takes_no_snapshots_is_forgotten_nothing_of(outbox: Outbox, clock: Clock) -> None:
    """It would replay all since its last one, hours ago."""
    came = events(1)
    outbox.tidy()
    outbox.add(came, snapshot=True)
    outbox.acknowledge(outbox.oldest(1))
    for _ in range(2 * REMEMBERED // TICK_MAX):
        clock.now += TICK_MAX
        outbox.tidy()
    assert outbox.add(came) == 0


def test_what_is_kept_back_and_what_was_restamped_stays(
    outbox: Outbox, reader: OutboxReader, clock: Clock
) -> None:
    outbox.tidy()
    outbox.add(events(2))
    first, second = outbox.oldest(2)
    outbox.keep_back([first], State.parked, "too_old")
    outbox.sending([second], [second])
    outbox.acknowledge([second])
    run_for(outbox, clock, REMEMBERED + BYTES_KEPT + STRIPPED_EVERY + 3 * MINUTE)
    assert [entry.id for entry in reader.held_back(State.parked)] == [first.id]
    assert [entry.id for entry in reader.restamped()] == [second.id]


def test_a_full_outbox_takes_nothing_more_and_says_what_to_do(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", bytes_max=300_000, sync=False, clock=Clock())
    came: list[Accepted] = []
    with pytest.raises(OutboxError, match=r"of 300000 that are allowed.*tidegate outbox.*bytes_max"):
        while True:
            some = events(200)
            outbox.add(some)
            came += some
    # What it has can still be sent, which makes room.
    outbox.acknowledge(outbox.oldest(len(came)))
    reader = OutboxReader(tmp_path / "o.db")
    assert reader.read_statistics().counts["acknowledged"] == len(came)
    reader.close()
    outbox.close()


def test_kept_back_usage_is_retried_and_dropped_by_hand_and_it_is_written_down(
    outbox: Outbox, reader: OutboxReader
) -> None:
    outbox.add(events(3))
    rows = outbox.oldest(3)
    outbox.keep_back(rows, State.refused, "refused_by_platform", "400 NO")
    assert operator_actions.retry(outbox, [rows[0].id], by="ann", why="mended") == [rows[0].id]
    assert operator_actions.drop(outbox, [rows[1].id], by="ann", why="a test") == [rows[1].id]
    assert operator_actions.drop(outbox, [rows[0].id], by="ann", why="waits now") == []
    assert [row.id for row in outbox.oldest(3)] == [rows[0].id]
    db = sqlite3.connect(outbox.path)
    assert db.execute("SELECT by, act, id, reason FROM acts ORDER BY seq").fetchall() == [
        ("ann", "retry", rows[0].id, "mended"),
        ("ann", "drop", rows[1].id, "a test"),
    ]
    db.close()


def test_an_alert_is_told_once_per_change(outbox: Outbox, reader: OutboxReader) -> None:
    assert outbox.alert("old", "too old")
    assert not outbox.alert("old", "still too old")
    # The list says how it is now; the change was reported once.
    assert reader.read_statistics().alerts == {"old": "still too old"}
    assert outbox.alert("old", None)
    assert not outbox.alert("old", None)
    assert [(alert.kind, alert.state) for alert in reader.alerts()] == [
        ("old", "raised"),
        ("old", "resolved"),
    ]
    assert len(outbox.unnoted()) == 2
    outbox.noted(2)
    assert not outbox.unnoted()


def test_on_its_way_is_what_waits_and_what_was_just_taken(
    outbox: Outbox, reader: OutboxReader, clock: Clock
) -> None:
    outbox.add(events(3))
    first, second, third = outbox.oldest(3)
    outbox.acknowledge([first])
    clock.now += MINUTE
    outbox.acknowledge([second])
    found = {entry.id: entry.state for entry in reader.on_its_way(clock.now - 1)}
    assert found == {second.id: State.acknowledged, third.id: State.waiting}


def test_switching_rollup_off_sends_what_was_not_yet_rolled_up(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", unfolded=True, clock=Clock())
    outbox.add(events(2))
    assert not outbox.oldest(2)
    outbox.close()
    outbox = Outbox(tmp_path / "o.db", clock=Clock())
    assert len(outbox.oldest(2)) == 2
    reader = OutboxReader(tmp_path / "o.db")
    assert reader.read_statistics().waiting == 2
    reader.close()
    outbox.close()


def test_another_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match=r"no such file.*billing branch"):
        OutboxReader(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("no database at all, but long enough to look like one" * 100)
    with pytest.raises(OutboxError, match=r"text\.db"):
        Outbox(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(OutboxError, match=r"other\.db.*needs Tidegate's outbox, got another database"):
        Outbox(tmp_path / "other.db")


def test_several_writers_keep_everything_once(tmp_path: Path) -> None:
    """Processes share the file; here threads, each with a connection of its own."""
    path = tmp_path / "o.db"
    shared = events(300)

    def write(place: int) -> None:
        outbox = Outbox(path, sync=False, clock=Clock())
        for start in range(0, 300, 20):
            outbox.add(shared[start : start + 20])
            outbox.acknowledge(outbox.oldest(5))
        outbox.close()

    threads = [Thread(target=write, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = OutboxReader(path)
    statistics = reader.read_statistics()
    assert statistics.counts["came"] == 300
    assert statistics.counts["replayed"] == 900
    assert statistics.waiting + statistics.counts["acknowledged"] == 300
    reader.close()


KILLED = """
import sys
from tidegate.connectors.outbox.outbox import Outbox
from tests.connectors.outbox.test_outbox import events
outbox = Outbox(sys.argv[1], sync=False)
print("ready", flush=True)
while True:
    some = events(50)
    outbox.add(some)
    print(*(event.id for event in some), flush=True)
    outbox.acknowledge(outbox.youngest(10))
"""


def test_what_was_added_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    added: list[str] = []
    for _ in range(20):
        added += process.stdout.readline().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    reader = OutboxReader(path)
    assert set(added) - {"ready"} <= set(reader.find(added))
    statistics = reader.read_statistics()
    assert statistics.counts["came"] % 50 == 0
    assert statistics.waiting == statistics.counts["came"] - statistics.counts.get("acknowledged", 0)
    reader.close()


def test_the_clock_of_the_standing_is_event_time(outbox: Outbox, reader: OutboxReader) -> None:
    outbox.add(events(1, 3600))
    oldest = reader.read_statistics().oldest_at
    assert oldest is not None
    assert timedelta(microseconds=NOON - oldest) == timedelta(hours=1)


def test_a_machine_that_slept_has_not_run(outbox: Outbox, clock: Clock) -> None:
    """Woken up after a day, the flow may fall over and replay what came before it slept."""
    came = events(1)
    outbox.tidy()
    outbox.add(came)
    outbox.acknowledge(outbox.oldest(1))
    clock.now += 24 * 60 * MINUTE
    run_for(outbox, clock, 5 * MINUTE)
    assert outbox.add(came) == 0
