"""What a shard reports of its progress, and which reports still say something."""

from tidegate.operators.model.freshness import Heartbeat, Progress, ProgressMark, select_newest_generation

S = 1_000_000


def progress() -> Progress:
    return Progress(3, 16, "0")


def test_nothing_is_reported_until_every_partition_has_sent_a_mark() -> None:
    shard = progress()
    shard.receive(ProgressMark("a", 2, 10, 5 * S))
    shard.mark_stored()
    assert shard.build_heartbeat(6 * S) is None
    shard.receive(ProgressMark("b", 2, 20, 4 * S))
    shard.mark_stored()
    assert shard.build_heartbeat(6 * S) == Heartbeat(3, 16, "0", 6 * S, 4 * S, {"a": 10, "b": 20})


def test_the_slowest_partition_decides_and_what_is_left_to_read_adds_up() -> None:
    shard = progress()
    shard.receive(ProgressMark("a", 2, 10, 5 * S, behind=7))
    shard.receive(ProgressMark("b", 2, 20, 2 * S, behind=5))
    shard.mark_stored()
    heartbeat = shard.build_heartbeat(6 * S)
    assert heartbeat is not None
    assert (heartbeat.counted_until, heartbeat.lag, heartbeat.behind) == (2 * S, 4 * S, 12)


def test_what_was_counted_but_not_stored_is_not_reported() -> None:
    shard = progress()
    shard.receive(ProgressMark("a", 1, 10, 5 * S))
    shard.mark_stored()
    shard.receive(ProgressMark("a", 1, 90, 9 * S))
    shard.advance("a", 95)
    heartbeat = shard.build_heartbeat(9 * S)
    assert heartbeat is not None
    assert (heartbeat.counted_until, heartbeat.positions) == (5 * S, {"a": 10})
    shard.mark_stored()
    assert shard.build_heartbeat(9 * S) == Heartbeat(3, 16, "0", 9 * S, 9 * S, {"a": 95})


def test_a_position_never_goes_back() -> None:
    """A mark may be older than the chunk that came before it."""
    shard = progress()
    shard.advance("a", 95)
    shard.receive(ProgressMark("a", 1, 90, 9 * S))
    shard.mark_stored()
    heartbeat = shard.build_heartbeat(9 * S)
    assert heartbeat is not None and heartbeat.positions == {"a": 95}


def test_a_partition_that_ended_holds_nothing_up_and_an_ended_input_has_no_lag() -> None:
    shard = progress()
    shard.receive(ProgressMark("a", 2, 10, 1 * S, ended=True))
    shard.receive(ProgressMark("b", 2, 10, 8 * S))
    shard.mark_stored()
    heartbeat = shard.build_heartbeat(9 * S)
    assert heartbeat is not None and heartbeat.lag == 1 * S and not heartbeat.ended
    shard.receive(ProgressMark("b", 2, 10, 8 * S, ended=True))
    shard.mark_stored()
    heartbeat = shard.build_heartbeat(99 * S)
    assert heartbeat is not None and heartbeat.lag == 0 and heartbeat.ended


def test_a_backlog_without_times_has_no_known_lag() -> None:
    shard = progress()
    shard.receive(ProgressMark("a", 1, 10, 0))
    shard.mark_stored()
    heartbeat = shard.build_heartbeat(9 * S)
    assert heartbeat is not None and heartbeat.lag is None


def test_heartbeats_of_an_earlier_number_of_shards_say_nothing() -> None:
    old = [Heartbeat(shard, 16, "0", 5 * S, 5 * S, {}) for shard in range(16)]
    new = [Heartbeat(shard, 4, "0", 6 * S, 6 * S, {}) for shard in range(4)]
    assert select_newest_generation([*new, *old[4:]]) == new
    assert select_newest_generation([]) == []
